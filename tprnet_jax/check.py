"""A data set read once, and what of it is wrong or strange."""

import functools
import json
import statistics
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from tprnet_jax import config as configuration
from tprnet_jax.data import folder, images, loader, pairs
from tprnet_jax.report import metrics
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import write_whole
from tprnet_jax.runtime.threads import in_threads

_MOST_PRINTED = 20  # Of each kind of sentence; check.json has them all.


class Sight(NamedTuple):
    """What is kept of one example.

    Attributes:
        split: Its split.
        name: Of the image's file.
        size: Height and width, pixels.
        grey: Smallest, mean and largest grey level, where 0 is black and 255 white.
        values: The values of the mask's file, in words.
        share: Of the mask's pixels, those that are vessel.
        picture: Digest of the image's pixels.
        mask: The mask's pixels, compressed.
    """

    split: str
    name: str
    size: tuple[int, int]
    grey: tuple[float, float, float]
    values: str
    share: float
    picture: str
    mask: bytes


class Twins(NamedTuple):
    """Two identical images, and the Dice of their masks (1 if those are identical too)."""

    first: Sight
    second: Sight
    dice: float


class Findings(NamedTuple):
    """All that was seen and read of a data set.

    Attributes:
        sights: Of the examples without problems.
        explanation: What was done to the files, in a line.
        notes: Sentences on files that are left out.
        fatal: Sentences on what training would trip over.
        problems: Those of single files of a folder.
    """

    sights: list[Sight]
    explanation: str = ""
    notes: Sequence[str] = ()
    fatal: Sequence[str] = ()
    problems: Sequence[pairs.Problem] = ()


def run(config: ConfigDict, workdir: Path) -> dict:
    """Checks the data set that a configuration names; writes `workdir/check.json`, prints a table.

    Returns:
        What `check.json` has. `splits` has for each split `images` (their number), `sizes` ("height
        x width": number), `grey` (0 to 255), `mask_values`, `foreground` (share of the pixels) and
        `empty_masks`. Pairs of names of identical images are in `conflicting_duplicates` if their
        masks differ, else in `duplicates`; in `shared_between_splits` if they are in two splits;
        `identical_images` has all of them with their splits and the Dice of their masks.
        `mask_mismatch` and `unreadable` name files; `fatal` and `warnings` are sentences.

    Raises:
        UserError: There is something fatal; all of it is in `check.json`.
    """
    configuration.check(config)
    findings = _look_at_folder(config) if config.data.name == "folder" else _look(config)
    result = _result(config, findings)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "check.json"
    write_whole(path, json.dumps(result, indent=2) + "\n")
    print(table(result))
    print(f"All of it: {path}")
    if result["fatal"]:
        counts = ", ".join(f"{kind}: {len(result[kind])}" for kind in ("fatal", "warnings"))
        raise UserError(f"{result['fatal'][0]} ({counts}; all in {path})")
    return result


# ---- Looking -------------------------------------------------------------------------------------


def _look(config: ConfigDict) -> Findings:
    """Looks at a data set that has been checked when it was prepared."""
    try:
        sources = loader.prepare_whole(config.data)
    except UserError as error:
        return Findings([], fatal=[str(error)])
    sights = []
    for split, source in sources.items():
        look = functools.partial(_look_at_example, split, source)
        sights += in_threads(look, range(len(source)), f"Checking {split}")
    return Findings(sights)


def _look_at_example(split: str, source, index: int) -> Sight:
    example = source[index]
    image, mask = example["image"][..., 0], example["mask"][..., 0]
    values = " and ".join(map(str, np.unique(mask)))
    return _sight(split, example["name"].decode(), image, mask, values)


def _look_at_folder(config: ConfigDict) -> Findings:
    """Looks at all of a folder, whatever is wrong with parts of it."""
    layout = folder.lay_out(config.data.source, **config.data.folder)
    sights, readings = [], []
    for split, files in layout.splits.items():
        look = functools.partial(_look_at_pair, split)
        for reading, sight in in_threads(look, files, f"Checking {split}"):
            readings.append(reading)
            if sight is not None:
                sights.append(sight)
    problems = [problem for reading in readings for problem in reading.problems]
    fatal = layout.problems + [problem.sentence for problem in problems]
    return Findings(sights, folder.describe(layout, readings), layout.notes, fatal, problems)


def _look_at_pair(split: str, pair: pairs.Pair) -> tuple[pairs.Reading, Sight | None]:
    """The reading without its arrays, and the sight if nothing is wrong with it."""
    reading = pairs.read(pair)
    sight = None
    if not reading.problems:
        sight = _sight(split, pair.image.name, reading.image, reading.mask, reading.values)
    return reading._replace(image=None, mask=None), sight


def _sight(split: str, name: str, image: np.ndarray, mask: np.ndarray, values: str) -> Sight:
    white = 255 if image.dtype == np.uint8 else 1
    grey = tuple(255 / white * float(level) for level in (image.min(), image.mean(), image.max()))
    vessel = mask > 127
    return Sight(
        split,
        name,
        image.shape,
        grey,
        values,
        float(vessel.mean()),
        images.known(name, image).digest,
        zlib.compress(np.packbits(vessel), level=1),
    )


# ---- What was seen -------------------------------------------------------------------------------


def _result(config: ConfigDict, findings: Findings) -> dict:
    splits = defaultdict(list)
    for sight in findings.sights:
        splits[sight.split].append(sight)
    twins = find_twins(findings.sights)
    return {
        "data": config.data.name,
        "source": config.data.source,
        "explanation": findings.explanation,
        "splits": {split: _summary(sights) for split, sights in splits.items()},
        "conflicting_duplicates": _names(t for t in twins if _conflict(t)),
        "duplicates": _names(t for t in twins if not _conflict(t)),
        "shared_between_splits": _names(t for t in twins if _shared(t)),
        "identical_images": [
            {"splits": [t.first.split, t.second.split], "names": [*_pair(t)], "mask_dice": t.dice}
            for t in twins
        ],
        "mask_mismatch": [p.name for p in findings.problems if p.kind == "mask_mismatch"],
        "unreadable": [p.name for p in findings.problems if p.kind == "unreadable"],
        "fatal": [
            *findings.fatal,
            *_fatal(config, splits.get("train", [])),
            *_twins_of_reported(config.eval.split, twins),
        ],
        "warnings": [
            *findings.notes,
            *_missing_splits(config, findings),
            *_warnings(splits),
            *_twin_warnings(twins),
        ],
    }


def find_twins(sights: Sequence[Sight]) -> list[Twins]:
    """Pairs of identical images: of three or more, each with the first."""
    groups = defaultdict(list)
    for sight in sights:
        groups[sight.picture].append(sight)
    return [
        Twins(first, other, float(metrics.overlap(_mask(first), _mask(other))["dice"]))
        for first, *others in groups.values()
        for other in others
    ]


def _mask(sight: Sight) -> np.ndarray:
    bits = np.frombuffer(zlib.decompress(sight.mask), np.uint8)
    height, width = sight.size
    return np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool)


def _conflict(twins: Twins) -> bool:
    return twins.first.mask != twins.second.mask


def _shared(twins: Twins) -> bool:
    return twins.first.split != twins.second.split


def _pair(twins: Twins) -> tuple[str, str]:
    return twins.first.name, twins.second.name


def _names(twins: Iterable[Twins]) -> list[list[str]]:
    return [[*_pair(t)] for t in twins]


def _summary(sights: Sequence[Sight]) -> dict:
    shares = [sight.share for sight in sights]
    lows, means, highs = zip(*(sight.grey for sight in sights), strict=True)
    return {
        "images": len(sights),
        "sizes": dict(Counter(_in_words(sight.size) for sight in sights)),
        "grey": {"min": min(lows), "mean": statistics.fmean(means), "max": max(highs)},
        "mask_values": dict(Counter(sight.values for sight in sights)),
        "foreground": {"min": min(shares), "mean": statistics.fmean(shares), "max": max(shares)},
        "empty_masks": [sight.name for sight in sights if sight.share == 0],
    }


def _in_words(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _fatal(config: ConfigDict, train: Sequence[Sight]) -> list[str]:
    """What only training trips over."""
    sentences = []
    if train and not any(sight.share for sight in train):
        sentences.append(
            f"the {len(train)} training masks are all empty, so there is nothing to learn; give "
            "masks with vessels"
        )
    sizes = sorted({sight.size for sight in train})
    if len(sizes) > 1 and config.train.batch > 1:
        sentences.append(
            f"training images have {len(sizes)} sizes, from {_in_words(sizes[0])} to "
            f"{_in_words(sizes[-1])} (height x width), but config.train.batch is "
            f"{config.train.batch}; set it to 1, or bring the images to one size"
        )
    kept = len(train) - config.data.holdout
    if train and config.train.batch > kept > 0:
        sentences.append(
            f"config.train.batch is {config.train.batch}, but there are only {kept} images to "
            "train on; make it smaller"
        )
    return sentences + _holdout_problems(config.data, train)


def _holdout_problems(data: ConfigDict, train: Sequence[Sight]) -> list[str]:
    pictures = [sight.picture for sight in train]
    try:
        if train and data.holdout:
            loader.choose_holdout(pictures, data.holdout, data.holdout_seed)
    except UserError as error:
        return [str(error)]
    return []


def _twins_of_reported(split: str, twins: Iterable[Twins]) -> list[str]:
    return [
        f"{_in_splits(pair)} are one image, and no run is evaluated on what it trains on; remove "
        "one of the two"
        for pair in twins
        if {pair.first.split, pair.second.split} == {"train", split}
    ]


def _in_splits(twins: Twins) -> str:
    return " and ".join(f"{sight.split}/{sight.name}" for sight in twins[:2])


def _missing_splits(config: ConfigDict, findings: Findings) -> list[str]:
    if findings.fatal:  # A split may only seem to be missing.
        return []
    needed = {"train", loader.choosing_split(config.data), config.eval.split}
    missing = needed - {"holdout"} - {sight.split for sight in findings.sights}
    return [f"there is no split {split}, and training needs it" for split in sorted(missing)]


def _warnings(splits: dict[str, list[Sight]]) -> list[str]:
    sentences = []
    kinds = {
        "masks empty": lambda sight: sight.share == 0,
        "masks mostly vessel, as if inverted": lambda sight: sight.share > 0.5,
        "images of one grey": lambda sight: sight.grey[0] == sight.grey[2],
    }
    for split, sights in splits.items():
        for kind, is_so in kinds.items():
            names = [sight.name for sight in sights if is_so(sight)]
            if names:
                listed = ", ".join(names[:_MOST_PRINTED]) + ", ..." * (len(names) > _MOST_PRINTED)
                sentences.append(f"{split}: {len(names)} of {len(sights)} {kind}: {listed}")
    return sentences


def _twin_warnings(twins: Sequence[Twins]) -> list[str]:
    sentences = []
    for pair in twins:
        if _conflict(pair):
            what = f"one image with two masks (Dice {pair.dice:.3f}); keep the better mask"
        else:
            what = "one image with one mask; remove one of the two"
        sentences.append(f"{_in_splits(pair)} are {what}")
    return sentences


# ---- Saying it -----------------------------------------------------------------------------------


def table(result: dict) -> str:
    """A row for each split, then the sentences, from what `run` returns."""
    titles = ("Split", "Images", "Height x width", "Grey", "Vessel %", "Empty masks")
    rows = [titles, *(_row(split, each) for split, each in result["splits"].items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)]
    lines.append("Grey (0 to 255) and vessel are least / mean / most.")
    for split, each in result["splits"].items():
        values = ", ".join(f"{what} ({count})" for what, count in each["mask_values"].items())
        lines.append(f"Mask values of {split}: {values}")
    if result["explanation"]:
        lines.append(result["explanation"])
    for kind, title in (("fatal", "Fatal"), ("warnings", "Warning")):
        lines += [f"{title}: {sentence}" for sentence in result[kind][:_MOST_PRINTED]]
        if (more := len(result[kind]) - _MOST_PRINTED) > 0:
            lines.append(f"{title}: and {more} more")
    return "\n".join(lines)


def _row(split: str, summary: dict) -> tuple[str, ...]:
    size, *others = summary["sizes"]
    grey, share = (summary[key].values() for key in ("grey", "foreground"))
    return (
        split,
        str(summary["images"]),
        size + f" and {len(others)} more" * bool(others),
        " / ".join(f"{level:.1f}" for level in grey),
        " / ".join(f"{100 * part:.2f}" for part in share),
        str(len(summary["empty_masks"])),
    )
