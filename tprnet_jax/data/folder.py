"""A user's own data: `images/` and `masks/` with equal names, read where they are.

    SOURCE/images/x.jpg    PNG, JPEG, TIFF or BMP; grey or colour, 8 or 16 bit
    SOURCE/masks/x.png     of the same size: vessels bright, all else 0

Training, validation and test images are named in a split file, or are folds of a seeded
permutation. Nothing is copied: files are decoded whenever an example is asked for.
"""

import json
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tprnet_jax.data import images
from tprnet_jax.data.images import Known
from tprnet_jax.data.pairs import TRAITS, Pair, Reading, read, short_name
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.threads import in_threads

SPLITS = ("train", "validation", "test")


class Layout(NamedTuple):
    """What the names of the files and the split file say; no image has been read.

    Attributes:
        splits: The pairs of each split.
        notes: A sentence on each kind of file that is left out.
        problems: A sentence on each mistake.
    """

    splits: dict[str, list[Pair]]
    notes: list[str]
    problems: list[str]


class Source:
    """Random access to the examples of a split, each decoded when it is asked for.

    They have `image` and `mask` (0 or 255), both uint8 (height, width, 1), and `name`, the image's
    file name as bytes; images are float32 in [0, 1] if any file has more than 8 bits.

    Attributes:
        known: What is known of each image without reading it again.
    """

    def __init__(self, pairs: Sequence[Pair], known: Sequence[Known], floating: bool):
        self._pairs, self.known, self._floating = pairs, list(known), floating

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self._pairs[index]
        reading = read(pair)
        _raise_first([problem.sentence for problem in reading.problems])
        image = reading.image
        if self._floating and image.dtype == np.uint8:
            image = image / np.float32(255)
        name = pair.image.name.encode()
        return {"image": image[..., None], "mask": reading.mask[..., None], "name": name}


def prepare(source: str, splits: str, folds: int, fold: int, seed: int) -> dict[str, Source]:
    """Reads every file once, and says in one line what training will make of them.

    Args:
        source: The folder that contains `images/` and `masks/`.
        splits: JSON file {"train": [names], "validation": [...], "test": [...]}, of which any may
          be absent; images that it does not name are left out. Or "" for folds.
        folds: Into how many parts a permutation of all images is cut.
        fold: The part that is "validation", counted from 0; the others are "train".
        seed: Of the permutation.

    Returns:
        The examples of each split, in the order of the split file, or of their names.

    Raises:
        UserError: There is something that training would trip over; the first such thing.
    """
    layout = lay_out(source, splits, folds, fold, seed)
    _raise_first(layout.problems)
    looked = {
        split: in_threads(_look, pairs, f"Checking {split}")
        for split, pairs in layout.splits.items()
    }
    everything = [reading for each in looked.values() for reading, _ in each]
    _raise_first([problem.sentence for reading in everything for problem in reading.problems])
    if "train" in looked and not any(reading.share for reading, _ in looked["train"]):
        raise UserError(
            f"the {len(looked['train'])} training masks in {source} are all empty, so there is "
            "nothing to learn; give masks with vessels"
        )
    print(describe(layout, everything))
    floating = any("deep" in reading.traits for reading in everything)
    return {
        split: Source(pairs, [known for _, known in looked[split]], floating)
        for split, pairs in layout.splits.items()
    }


def _look(pair: Pair) -> tuple[Reading, Known | None]:
    """What is to be said of a pair, and known of its image if it can be read."""
    reading = read(pair)
    known = None if reading.image is None else images.known(pair.image.name, reading.image)
    return reading._replace(image=None, mask=None), known


def _raise_first(sentences: Sequence[str]) -> None:
    if len(sentences) > 1:
        count = len(sentences)
        raise UserError(f"{sentences[0]} (first of {count} problems; --mode=check lists all)")
    if sentences:
        raise UserError(sentences[0])


def describe(layout: Layout, readings: Sequence[Reading]) -> str:
    """One line: how many images there are, what was done to them, and what is left out."""
    total = len(readings)
    counts = ", ".join(f"{len(pairs)} {split}" for split, pairs in layout.splits.items())
    traits = Counter(trait for reading in readings for trait in reading.traits)
    values = Counter(reading.values for reading in readings if reading.values)
    full = sum(reading.share is not None and reading.share > 0.5 for reading in readings)
    parts = [f"images: {counts or 'none'}"]
    parts += [f"{traits[t]} of {total} images {done}" for t, done in TRAITS.items() if traits[t]]
    parts += [f"{count} of {total} masks holding {what}" for what, count in values.items()]
    if full:
        parts.append(f"{full} of {total} masks mostly vessel, as if inverted")
    return "; ".join(parts + layout.notes)


# ---- Which files there are -----------------------------------------------------------------------


def lay_out(source: str, splits: str, folds: int, fold: int, seed: int) -> Layout:
    """Pairs the files by name and deals them to the splits; arguments as of `prepare`."""
    root = Path(source).expanduser()
    if not source or not root.is_dir():
        sentence = (
            f"config.data.source={source} is no folder; give the one that contains images/ and "
            "masks/"
        )
        return Layout({}, [], [sentence])
    notes, problems = [], []
    pictures = _files(root / "images", notes, problems)
    masks = _files(root / "masks", notes, problems)
    if splits:
        stems = _named(Path(splits).expanduser(), pictures, problems)
        used = set(chain.from_iterable(stems.values()))
        if left_out := sorted(pictures.keys() - used):
            notes.append(f"{len(left_out)} images in no split, the first is {left_out[0]}")
    else:
        stems = _folds(sorted(pictures.keys() & masks.keys()), folds, fold, seed, problems)
        used = pictures.keys() | masks.keys()
    if pictures and masks:
        problems += _unpaired(pictures, masks, used, root)
    pairs = {
        split: [Pair(pictures[stem], masks[stem]) for stem in each if stem in masks]
        for split, each in stems.items()
    }
    return Layout(pairs, notes, problems)


def _files(folder: Path, notes: list[str], problems: list[str]) -> dict[str, Path]:
    """The folder's image files by their names without suffix."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        problems.append(
            f"cannot read the folder {folder} ({error.strerror}); config.data.source must contain "
            "readable folders images/ and masks/"
        )
        return {}
    # A dot begins the names of companion files that macOS leaves on other disks.
    entries = [path for path in entries if not path.name.startswith(".")]
    candidates = [path for path in entries if path.suffix.lower() in images.SUFFIXES]
    if not candidates:
        problems.append(
            f"{folder} has no {', '.join(images.SUFFIXES)} among its {len(entries)} files; put "
            "the image files there, without subfolders"
        )
    elif len(candidates) < len(entries):
        others = sorted(set(entries) - set(candidates))
        notes.append(f"{len(others)} other files ignored, the first is {short_name(others[0])}")
    return _by_stem(candidates, problems)


def _by_stem(paths: list[Path], problems: list[str]) -> dict[str, Path]:
    found = {}
    for path in paths:
        if not path.name.isprintable():
            problems.append(f"{str(path)!a} has a name that cannot be printed; rename the file")
        elif path.stem in found:
            problems.append(
                f"{path.parent} has both {found[path.stem].name} and {path.name}, which make two "
                "files for one name; remove or rename one"
            )
        else:
            found[path.stem] = path
    return found


def _unpaired(pictures: dict, masks: dict, used: Iterable[str], root: Path) -> list[str]:
    """A sentence on each of the used names that has only one of the two files."""
    sentences = []
    for stem in sorted(used):
        if stem not in masks:
            sentences.append(
                f"{pictures[stem]} has no mask {root / 'masks' / stem}.*; add the mask or remove "
                "the image"
            )
        elif stem not in pictures:
            sentences.append(
                f"{masks[stem]} has no image {root / 'images' / stem}.*; add the image or remove "
                "the mask"
            )
    return sentences


def _folds(
    stems: list[str], folds: int, fold: int, seed: int, problems: list[str]
) -> dict[str, list[str]]:
    """Names of the splits "train" and "validation", each in the order given."""
    if folds < 2:
        problems.append(f"config.data.folder.folds is {folds}; give 2 or more")
    elif not 0 <= fold < folds:
        problems.append(
            f"config.data.folder.fold is {fold}, but config.data.folder.folds is {folds}; give a "
            f"fold from 0 to {folds - 1}"
        )
    elif 0 < len(stems) < folds:
        problems.append(
            f"config.data.folder.folds is {folds}, but there are only {len(stems)} images with a "
            "mask in config.data.source; give fewer folds or more images"
        )
    elif stems:
        order = np.random.default_rng(seed).permutation(len(stems))
        chosen = set(np.array_split(order, folds)[fold].tolist())
        return {
            "train": [stem for index, stem in enumerate(stems) if index not in chosen],
            "validation": [stem for index, stem in enumerate(stems) if index in chosen],
        }
    return {}


def _named(path: Path, pictures: dict[str, Path], problems: list[str]) -> dict[str, list[str]]:
    """Names of the splits that a split file has, without suffixes and without its mistakes."""
    try:
        document = _load(path)
    except UserError as error:
        problems.append(str(error))
        return {}
    stems, taken = {}, {}
    for split, names in document.items():
        if split not in SPLITS:
            problems.append(
                f"{path} has the split {split!r}; name splits {', '.join(SPLITS[:-1])} or "
                f"{SPLITS[-1]}"
            )
        elif not isinstance(names, list) or not names:
            problems.append(
                f"{path}: the split {split} is {reprlib.repr(names)}; give a list of names of "
                "images, or leave the split out"
            )
        elif pictures:
            stems[split] = _take(path, split, names, pictures, taken, problems)
    return stems


def _load(path: Path) -> dict:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"cannot read config.data.folder.splits={path} ({error.strerror}); give a JSON file, "
            "or leave it empty for folds"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON ({error}); mend the file") from error
    if not isinstance(document, dict) or not document:
        raise UserError(
            f"{path} holds {reprlib.repr(document)}; give an object such as "
            '{"train": ["a.png"], "validation": ["b.png"]}'
        )
    return document


def _take(
    path: Path, split: str, names: list, pictures: dict, taken: dict, problems: list[str]
) -> list[str]:
    """The names of one split without suffixes; notes in `taken` the split of each."""
    stems = []
    for name in names:
        stem = _stem(name, pictures)
        if stem is None:
            problems.append(
                f"{path}: the split {split} names {name!r:.200}, which is no image in "
                "images/; correct the name or add the image"
            )
        elif stem in taken:
            problems.append(
                f"{path}: {name} is named in {taken[stem]} and again in {split}; keep one of the "
                "two"
            )
        else:
            taken[stem] = split
            stems.append(stem)
    return stems


def _stem(name: Any, pictures: dict[str, Path]) -> str | None:
    """The key of an image that is named with or without a suffix."""
    if not isinstance(name, str):
        return None
    if name in pictures:
        return name
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in images.SUFFIXES and stem in pictures else None
