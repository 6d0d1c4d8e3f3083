"""The angiograms that a user's path names: which files there are, and what each holds."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tprnet_jax.data import dicom, images, video
from tprnet_jax.data.angiogram import Angiogram
from tprnet_jax.runtime.errors import UserError

VIDEOS = (".mp4", ".avi", ".mov", ".mkv")
DICOMS = (".dcm", ".dicom", ".ima")
_OF_RUN = re.compile(r"_\d{4,}$")  # Ends the names of what is written of its images.


class Input(NamedTuple):
    """A file to segment.

    Attributes:
        path: The file.
        name: Its path from the folder that was given, see `without_suffix`; outputs are named after
            it.
    """

    path: Path
    name: str


class Listing(NamedTuple):
    """What a path names.

    Attributes:
        inputs: Files to segment, sorted.
        problems: A sentence on each file that cannot be.
        notes: A sentence on what is left out.
    """

    inputs: list[Input]
    problems: list[str]
    notes: list[str]


def find(given: str) -> Listing:
    """The files that `config.predict.input` names: itself, or those in and below a folder.

    Raises:
        UserError: It does not exist, or there is none.
    """
    if not given:
        raise UserError("config.predict.input is empty; give an image file or a folder of images")
    root = Path(given).expanduser()
    if not root.exists():
        raise UserError(f"config.predict.input={given} does not exist; give a file or a folder")
    if root.is_file():
        return Listing([Input(root, without_suffix(root).name)], [], [])
    files, problems = _files(root)
    chosen = [path for path in files if _is_angiogram(path)]
    if not chosen:
        nothing = (
            f"config.predict.input={given} has no angiogram among its {len(files)} files: no "
            f"DICOM, {', '.join(images.SUFFIXES)} or {', '.join(VIDEOS)}"
        )
        raise UserError((problems or [nothing])[0])
    inputs = [Input(path, without_suffix(path.relative_to(root)).as_posix()) for path in chosen]
    clear, unclear = _apart(inputs)
    return Listing(clear, problems + unclear, _left_out(sorted(set(files) - set(chosen))))


def without_suffix(path: Path) -> Path:
    """The path without what says the kind of its file; DICOM's UIDs end in numbers, which stay."""
    known = path.suffix.lower() in images.SUFFIXES + VIDEOS + DICOMS
    return path.with_suffix("") if known else path


def _files(root: Path) -> tuple[list[Path], list[str]]:
    """Files in and below a folder, sorted, and a sentence on each folder that is closed."""
    found, closed = [], []
    for folder, folders, names in os.walk(root, onerror=closed.append):
        # A dot begins the names of hidden files, and of macOS's companion files on other disks.
        folders[:] = [name for name in folders if not name.startswith(".")]
        # Links to folders are not followed, but are among what is said to be left out.
        names += [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    problems = [
        f"cannot search {error.filename} ({error.strerror}); give a folder that may be read"
        for error in closed
    ]
    return sorted(found), problems


def _is_angiogram(path: Path) -> bool:
    is_named = path.suffix.lower() in images.SUFFIXES + VIDEOS + DICOMS
    if not path.is_file():  # To open a pipe would wait for ever.
        return is_named
    return (is_named or dicom.is_dicom(path)) and not dicom.is_index(path)


def _apart(inputs: list[Input]) -> tuple[list[Input], list[str]]:
    """Inputs whose outputs have names of their own, and a sentence on the others."""
    of_name = defaultdict(list)
    for each in inputs:
        of_name[each.name].append(each)
    problems = [
        f"{each.path} would write {each.name}_mask.png, and so would another; rename one of "
        f"{', '.join(other.path.name for other in same)}"
        for same in of_name.values()
        for each in same
        if len(same) > 1
    ]
    return [same[0] for same in of_name.values() if len(same) == 1], problems


def _left_out(others: list[Path]) -> list[str]:
    if not others:
        return []
    kinds = Counter(path.suffix or "without suffix" for path in others)
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    return [f"{len(others)} other files are left out ({named}), the first is {others[0]}"]


def share(files: list[Input], process: int, count: int) -> list[Input]:
    """What one of `count` processes segments of all files; each is in one share.

    A_0001 is with A: if A turns out to be a run, what is written of its first image has that name.
    """
    place = {each.name: index for index, each in enumerate(files)}
    places = (place.get(_OF_RUN.sub("", each.name), place[each.name]) for each in files)
    return [each for each, index in zip(files, places, strict=True) if index % count == process]


def would_be_hit(given: str, listing: Listing, output: Path) -> bool:
    """Whether outputs would lie in or below the folder that was given, or beside the one file."""
    root = Path(given).expanduser().resolve()
    folders = {output.resolve(), *((output / x.name).parent.resolve() for x in listing.inputs)}
    if root.is_file():
        return root.parent in folders
    return any(root in (folder, *folder.parents) for folder in folders)


def open_angiogram(path: Path) -> Angiogram:
    """What a file holds; its pixels are read when its frames are asked for.

    Raises:
        UserError: It holds no angiogram, is damaged, or is too large.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a folder, a pipe or the like; give an image file")
    suffix = path.suffix.lower()
    if suffix in VIDEOS:
        found = video.open_video(path)
    elif suffix not in images.SUFFIXES and (suffix in DICOMS or dicom.is_dicom(path)):
        found = dicom.open_dicom(path)
    else:
        found = _open_picture(path)
    height, width = found.size
    if height * width > images.MOST_PIXELS:
        raise UserError(
            f"{path} has {width} x {height} pixels, more than the {images.MOST_PIXELS:,} that are "
            "read; scale it down"
        )
    return found


def _open_picture(path: Path) -> Angiogram:
    header = images.read_header(path)
    notes = ()
    if header.pages > 1:
        notes = (f"{path} has {header.pages} pages, of which the first is segmented",)

    def frames() -> Iterator[np.ndarray]:
        yield images.read_grey(path)

    return Angiogram(header.size, 1, frames, notes=notes)
