"""An image and its mask as a user's files have them, and what can be wrong with the two."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from tprnet_jax.data import images
from tprnet_jax.runtime.errors import UserError

TRAITS = {
    "colour": "converted from colour to grey",
    "transparent": "without their alpha channel",
    "deep": "of more than 8 bits, each stretched over its own range",
}
# Greys from a tenth to nine tenths of the largest belong to edges. Strong blur of ARCADE's masks,
# and JPEG of quality 1, leave less than this share of them; angiograms have over 0.7.
_MOST_EDGE = 0.2


class Pair(NamedTuple):
    """The files of one image and its mask."""

    image: Path
    mask: Path


class Problem(NamedTuple):
    """What is wrong with a file.

    Attributes:
        kind: "unreadable", "mask_mismatch" or "mask_values".
        name: Of the file, as `images/x.png` or `masks/x.png`.
        sentence: For the user.
    """

    kind: str
    name: str
    sentence: str


class Reading(NamedTuple):
    """A pair as it was read; None where a problem forbids.

    Attributes:
        image: uint8 (height, width), or float32 in [0, 1] if the file has more than 8 bits.
        size: Height and width of the image, pixels.
        mask: uint8 (height, width), 0 or 255.
        traits: Those of "colour", "transparent" and "deep" that the image's file has.
        values: What the mask's file holds, such as "0 and 1" or "grey edges, cut at half".
        share: Of the mask's pixels, those that are 255.
        problems: All that are wrong.
    """

    image: np.ndarray | None
    size: tuple[int, int] | None
    mask: np.ndarray | None
    traits: tuple[str, ...]
    values: str | None
    share: float | None
    problems: list[Problem]


def read(pair: Pair) -> Reading:
    """Reads an image and its mask, and collects what is wrong with them instead of raising it."""
    problems = []
    image, traits, stored, mask, values, share = None, (), None, None, None, None
    with _noted(problems, "unreadable", pair.image):
        pixels = _read_stored(pair.image)
        image, traits = _grey(pixels, pair.image), _traits(pixels)
    with _noted(problems, "unreadable", pair.mask):
        stored = _read_stored(pair.mask)
    if stored is not None:
        with _noted(problems, "mask_values", pair.mask):
            mask, values = binarise(stored, pair.mask)
            share = np.count_nonzero(mask) / mask.size
    if image is not None and stored is not None:
        with _noted(problems, "mask_mismatch", pair.mask):
            _check_fit(pair, image.shape, stored.shape)
    size = None if image is None else image.shape
    return Reading(image, size, mask, traits, values, share, problems)


@contextlib.contextmanager
def _noted(problems: list[Problem], kind: str, path: Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        problems.append(Problem(kind, short_name(path), str(error)))


def _read_stored(path: Path) -> np.ndarray:
    stored = images.read_stored(path)
    if (pages := images.count_pages(path)) > 1:
        raise UserError(f"{path} has {pages} pages; give a file with only the one that is meant")
    return stored


def _grey(stored: np.ndarray, path: Path) -> np.ndarray:
    grey = images.to_unit_grey(stored, path)
    return np.rint(grey * 255).astype(np.uint8) if stored.dtype == np.uint8 else grey


def _traits(stored: np.ndarray) -> tuple[str, ...]:
    has = {
        "colour": images.is_colour(stored),
        "transparent": stored.ndim == 3 and stored.shape[2] == 4,
        "deep": stored.dtype != np.uint8,
    }
    return tuple(trait for trait in TRAITS if has[trait])


def _check_fit(pair: Pair, image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    if image[:2] != mask[:2]:
        raise UserError(
            f"{pair.mask} is {mask[0]} high and {mask[1]} wide, but {pair.image} is {image[0]} "
            f"high and {image[1]} wide; give both one size"
        )


def binarise(stored: np.ndarray, path: str | os.PathLike) -> tuple[np.ndarray, str]:
    """Makes a mask of stored pixels: what is brighter than half the largest value is vessel.

    Of colour, the brightest channel counts.

    Args:
        stored: (height, width) or BGR(A) (height, width, channels): 0 and one larger value, or
          grey edges between the two.
        path: Where they are from, for what is said of them.

    Returns:
        uint8 (height, width), 0 or 255, and what was there in words, such as "0 and 1" or "grey
          edges, cut at half".

    Raises:
        UserError: The values are no mask's, but class labels or a picture's, say.
    """
    grey = stored if stored.ndim == 2 else stored[..., :3].max(axis=2)
    levels = _levels(grey)
    low, high = levels[0], levels[-1]
    usable = low >= 0 and np.isfinite(high)
    if usable and len(levels) == 1:
        values = f"only {low:g}"
    elif usable and low == 0 and len(levels) == 2:
        values = f"0 and {high:g}"
    elif usable and _has_grey_edges(grey, levels):
        values = "grey edges, cut at half"
    else:
        raise UserError(
            f"{path} has the values {_in_words(levels)} and is no mask of two values (class "
            "labels, or a picture?); give 255 (or 1) to vessels and 0 to all else"
        )
    return np.where(grey > high / 2, np.uint8(255), np.uint8(0)), values


def _levels(grey: np.ndarray) -> np.ndarray:
    """The distinct values in ascending order, the last one NaN if there is any."""
    if grey.dtype == np.uint8:  # Several times as fast as sorting.
        return np.flatnonzero(np.bincount(grey.ravel(), minlength=256))
    return np.unique(grey)


def _has_grey_edges(grey: np.ndarray, levels: np.ndarray) -> bool:
    """Whether few pixels lie between dark and bright, and none within an area of one grey."""
    high = levels[-1]
    if high < 128 and np.array_equal(levels, np.rint(levels)):
        return False
    grey, block = grey.astype(np.float32), np.ones((3, 3), np.uint8)
    between = (grey > 0.1 * high) & (grey < 0.9 * high)
    flat = cv2.erode(grey, block) == cv2.dilate(grey, block)
    return between.mean() <= _MOST_EDGE and not np.any(between & flat)


def _in_words(levels: np.ndarray) -> str:
    if len(levels) <= 6:
        return ", ".join(f"{level:g}" for level in levels)
    return f"{levels[0]:g} to {levels[-1]:g} ({len(levels)} of them)"


def short_name(path: Path) -> str:
    """Name of a file as `images/x.png`."""
    return f"{path.parent.name}/{path.name}"
