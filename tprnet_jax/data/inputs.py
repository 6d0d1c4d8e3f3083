"""The angiograms that a user's path names: which files there are, and what each holds."""

import os
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
# Far more than any detector has; a few bytes of a file can ask for any number.
MOST_PIXELS = 2**26


class Input(NamedTuple):
    """A file to segment.

    Attributes:
        path: The file.
        name: Its path from the folder that was given, without suffix; outputs are named after it.
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
        return Listing([Input(root, root.stem)], [], [])
    files = sorted(_files(root))
    chosen = [path for path in files if _is_angiogram(path)]
    if not chosen:
        raise UserError(
            f"config.predict.input={given} has no angiogram among its {len(files)} files: no "
            f"DICOM, {', '.join(images.SUFFIXES)} or {', '.join(VIDEOS)}"
        )
    inputs = [Input(path, path.relative_to(root).with_suffix("").as_posix()) for path in chosen]
    clear, problems = _apart(inputs)
    return Listing(clear, problems, _left_out(sorted(set(files) - set(chosen))))


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        # A dot begins the names of hidden files, and of macOS's companion files on other disks.
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _is_angiogram(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in images.SUFFIXES + VIDEOS + DICOMS or dicom.is_dicom(path)


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


def open_angiogram(path: Path) -> Angiogram:
    """What a file holds; its pixels are read when its frames are asked for.

    Raises:
        UserError: It holds no angiogram, is damaged, or is too large.
    """
    suffix = path.suffix.lower()
    if suffix in VIDEOS:
        found = video.open_video(path)
    elif suffix not in images.SUFFIXES and (suffix in DICOMS or dicom.is_dicom(path)):
        found = dicom.open_dicom(path)
    else:
        found = _open_picture(path)
    height, width = found.size
    if height * width > MOST_PIXELS:
        raise UserError(
            f"{path} has {width} x {height} pixels, more than the {MOST_PIXELS:,} that are read; "
            "scale it down"
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
