"""Pictures of masks on angiograms, as RGB arrays, in the sense of the paper's Fig. 2."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from tprnet_jax.report import metrics
from tprnet_jax.report.palette import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    PREDICTION,
    TRUE_POSITIVE,
)

_MIN_TILE = 256  # Labels cannot be read on less.
_BACKGROUND = (24, 24, 24)
_TEXT = (235, 235, 235)
_LEGEND = (
    ("true positive", TRUE_POSITIVE),
    ("false positive", FALSE_POSITIVE),
    ("false negative", FALSE_NEGATIVE),
)


def overlay(
    image: np.ndarray, prediction: np.ndarray, truth: np.ndarray | None = None
) -> np.ndarray:
    """A predicted mask drawn on its angiogram.

    With the truth, true positives are white, false positives vermillion and false negatives sky
    blue on the darkened angiogram. Without it, the predicted vessels are tinted and outlined.

    Args:
        image: Float (height, width) in [0, 1].
        prediction: Boolean (height, width).
        truth: Boolean (height, width), or None.

    Returns:
        RGB, uint8 (height, width, 3).

    Raises:
        ValueError: The image is not floating point (height, width), or a mask is not boolean or not
          of the image's shape.
    """
    _check(image, {"prediction": prediction})
    if truth is None:
        return _tinted(image, prediction)
    _check(image, {"truth": truth})
    # White must stand out from bright lung, so the angiogram recedes.
    canvas = _grey(image * 0.6)
    canvas[prediction & truth] = TRUE_POSITIVE
    canvas[prediction & ~truth] = FALSE_POSITIVE
    canvas[~prediction & truth] = FALSE_NEGATIVE
    return canvas


def panel(
    image: np.ndarray, truth: np.ndarray, stages: dict[str, np.ndarray], caption: str
) -> np.ndarray:
    """One row for one image: the angiogram, the truth, and the overlay of each stage.

    The caption stands above the angiogram, the name and the Dice of a stage above its overlay, the
    legend of colours below the row. Small images are enlarged, each pixel to a square.

    Args:
        image: Float (height, width) in [0, 1].
        truth: Boolean (height, width).
        stages: The name of each stage and its predicted mask, boolean (height, width).
        caption: ASCII, say the image's name; cut off where the tile ends.

    Returns:
        RGB, uint8 (panel height, panel width, 3).

    Raises:
        ValueError: The image is not floating point (height, width), or a mask is not boolean or not
          of the image's shape.
    """
    _check(image, {"truth": truth} | stages)
    tiles = [_labelled(caption, _grey(image)), _labelled("truth", _grey(truth))]
    for name, mask in stages.items():
        dice = metrics.overlap(mask, truth)["dice"]
        tiles.append(_labelled(f"{name}  Dice {dice:.3f}", overlay(image, mask, truth)))
    separator = np.full((tiles[0].shape[0], 4, 3), _BACKGROUND, np.uint8)
    separated = [piece for tile in tiles for piece in (separator, tile)][1:]
    row = np.hstack(separated)
    return np.vstack([row, _legend(row.shape[1], tiles[0].shape[1])])


def choose(dice: Sequence[float], count: int) -> list[int]:
    """Indices of images worth showing: the best, the worst, and evenly between by rank.

    Args:
        dice: The score of each image; of equal scores the earlier image ranks first.
        count: How many images; all of them if there are fewer.

    Returns:
        Indices into `dice`, from the best image to the worst.
    """
    ranking = sorted(range(len(dice)), key=lambda index: -dice[index])
    if count >= len(ranking):
        return ranking
    steps = max(count - 1, 1)
    return [ranking[step * (len(ranking) - 1) // steps] for step in range(count)]


def _check(image: np.ndarray, masks: dict[str, np.ndarray]) -> None:
    if image.ndim != 2 or image.dtype.kind != "f":
        raise ValueError(
            f"The image must be floating point (height, width), not {image.dtype} {image.shape}."
        )
    for name, mask in masks.items():
        if mask.dtype != bool or mask.shape != image.shape:
            raise ValueError(
                f"The mask {name} must be bool {image.shape} as its image, "
                f"not {mask.dtype} {mask.shape}."
            )


def _grey(image: np.ndarray) -> np.ndarray:
    """RGB, uint8 (height, width, 3), of a (height, width) image in [0, 1]."""
    levels = np.rint(np.clip(image, 0, 1) * 255.0).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=-1)


def _tinted(image: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    canvas = _grey(image)
    tint = 0.75 * canvas[prediction] + 0.25 * np.array(PREDICTION)
    canvas[prediction] = np.rint(tint).astype(np.uint8)
    # The outline runs outside the mask, so that it never hides a vessel two pixels wide.
    grown = cv2.dilate(prediction.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    canvas[grown & ~prediction] = PREDICTION
    return canvas


def _labelled(label: str, picture: np.ndarray) -> np.ndarray:
    """The picture, enlarged to at least `_MIN_TILE` a side, below a strip with its label."""
    factor = math.ceil(_MIN_TILE / min(picture.shape[:2]))
    picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    strip = _strip(picture.shape[1], picture.shape[1])
    _write(strip, label, 0, picture.shape[1])
    return np.vstack([strip, picture])


def _legend(width: int, tile_width: int) -> np.ndarray:
    """A strip that names the overlay's colours, each entry behind a square of its colour."""
    strip = _strip(width, tile_width)
    height = strip.shape[0]
    side = height // 2
    top, left = height // 4, height // 4
    for text, colour in _LEGEND:
        strip[top : top + side, left : left + side] = colour
        left = _write(strip, text, left + side, tile_width) + height
    return strip


def _strip(width: int, tile_width: int) -> np.ndarray:
    return np.full((tile_width // 11, width, 3), _BACKGROUND, np.uint8)


def _write(strip: np.ndarray, text: str, left: int, tile_width: int) -> int:
    """Writes on the strip in a size that suits the tile; returns the column where it ends."""
    font, scale, thickness = cv2.FONT_HERSHEY_SIMPLEX, tile_width / 560, round(tile_width / 300)
    (width, height), _ = cv2.getTextSize(text, font, scale, thickness)
    left += strip.shape[0] // 4
    baseline = (strip.shape[0] + height) // 2
    cv2.putText(strip, text, (left, baseline), font, scale, _TEXT, thickness, cv2.LINE_AA)
    return left + width
