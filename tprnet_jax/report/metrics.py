"""Segmentation metrics of one image and their means over a data set, on the host in NumPy.

The paper's Table I: Dice, IoU, precision, recall and ASD are computed for each image, then averaged
over the images. So is what tells a missed or invented branch from an inaccurate rim.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from scipy.spatial import KDTree

NAMES = ("dice", "iou", "precision", "recall", "asd", "missed", "extra", "rim", "area_ratio")
REACH = 5  # Pixels; what lies farther from the other mask is a branch of its own, no mere rim.


def evaluate(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """All metrics of one image, under the names and in the order of `NAMES`.

    Two empty masks agree perfectly: every overlap is 1 and the distance 0. If only one is empty,
    every overlap is 0 and the distance is the image diagonal sqrt(height^2 + width^2).

    Args:
        prediction: Boolean (height, width).
        truth: Boolean (height, width).

    Returns:
        dice, iou, precision and recall in [0, 1], asd in pixels; the others see `breakdown`.

    Raises:
        ValueError: The masks are not boolean, not two-dimensional, or differ in shape.
    """
    scores = overlap(prediction, truth)
    case = emptiness(prediction, truth)
    if case is None:
        scores["asd"] = average_surface_distance(prediction, truth)
    else:
        scores["asd"] = 0.0 if case == "both" else math.hypot(*truth.shape)
    return scores | breakdown(prediction, truth)


def overlap(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Dice, IoU, precision and recall, counted on pixels; arguments and errors as `evaluate`.

    With TP, FP and FN the numbers of true positive, false positive and false negative pixels:
    dice 2 TP / (2 TP + FP + FN), iou TP / (TP + FP + FN), precision TP / (TP + FP), recall
    TP / (TP + FN).
    """
    _check(prediction, truth)
    if emptiness(prediction, truth) == "both":
        return {"dice": 1.0, "iou": 1.0, "precision": 1.0, "recall": 1.0}
    both = np.count_nonzero(prediction & truth)
    predicted, true = np.count_nonzero(prediction), np.count_nonzero(truth)
    return {
        "dice": 2 * both / (predicted + true),
        "iou": both / (predicted + true - both),
        "precision": both / predicted if predicted else 0.0,
        "recall": both / true if true else 0.0,
    }


def average_surface_distance(prediction: np.ndarray, truth: np.ndarray) -> float:
    """ASD in pixels: the mean of the two directed average distances between the contours.

    A contour is the set of pixel corners whose four pixels are neither all inside the mask nor all
    outside; what lies beyond the image is outside. Each corner counts by the length of contour that
    passes it. This is the definition of the PyPI package surface-distance
    (`compute_surface_distances`, `compute_average_surface_distance`) at spacing (1, 1).

    Args:
        prediction: Boolean (height, width), not empty.
        truth: Boolean (height, width), not empty.
    """
    predicted, true = _contour(prediction), _contour(truth)
    return (_directed_distance(predicted, true) + _directed_distance(true, predicted)) / 2


def breakdown(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Where the Dice is lost: at whole branches, or at the rim of those found.

    Arguments and errors as `evaluate`. Distances are between pixel centres. Two empty masks have
    missed 0, extra 0, rim 1 and area_ratio 1. If only the prediction is empty, all of the truth is
    missed: missed 1, extra 0, rim 1, area_ratio 0. If only the truth is empty, it counts as one
    pixel, so that the shares stay finite: missed 0, rim 1, extra and area_ratio the predicted area.

    Returns:
        missed: Truth farther than `REACH` from every predicted pixel, as a share of the truth.
        extra: Prediction farther than `REACH` from every true pixel, as a share of the truth.
        rim: The Dice once the missed pixels are added to the prediction and the extra ones removed.
        area_ratio: Predicted area over true area.
    """
    _check(prediction, truth)
    if emptiness(prediction, truth) == "both":
        return {"missed": 0.0, "extra": 0.0, "rim": 1.0, "area_ratio": 1.0}
    missed, extra = truth & ~_surroundings(prediction), prediction & ~_surroundings(truth)
    true = max(np.count_nonzero(truth), 1)
    return {
        "missed": np.count_nonzero(missed) / true,
        "extra": np.count_nonzero(extra) / true,
        "rim": overlap(prediction & ~extra | missed, truth)["dice"],
        "area_ratio": np.count_nonzero(prediction) / true,
    }


def emptiness(prediction: np.ndarray, truth: np.ndarray) -> str | None:
    """Which masks have no pixel: "both", "prediction" only, "truth" only, or None."""
    if prediction.any():
        return None if truth.any() else "truth"
    return "prediction" if truth.any() else "both"


def summarise(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over images, every image counting the same.

    Args:
        rows: What `evaluate` returned, one for each image.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("There are no images to average over.")
    return {name: float(np.mean([row[name] for row in rows])) for name in NAMES}


def count_empty(cases: Sequence[str | None]) -> dict[str, int]:
    """How many images fell into each of the empty cases that `emptiness` names."""
    return {case: list(cases).count(case) for case in ("both", "prediction", "truth")}


def _check(prediction: np.ndarray, truth: np.ndarray) -> None:
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != bool or mask.ndim != 2:
            raise ValueError(
                f"The {name} must be boolean (height, width), not {mask.dtype} {mask.shape}."
            )
    if prediction.shape != truth.shape:
        raise ValueError(
            f"The prediction's shape {prediction.shape} differs from the truth's {truth.shape}."
        )


def _surroundings(mask: np.ndarray) -> np.ndarray:
    """The pixels within `REACH` of the mask, bool (height, width); none, if it is empty."""
    # What lies beyond the image is no part of the mask: OpenCV's default for a dilation.
    return cv2.dilate(mask.astype(np.uint8), _DISC) > 0


def _directed_distance(
    start: tuple[np.ndarray, np.ndarray], end: tuple[np.ndarray, np.ndarray]
) -> float:
    """Mean distance from one contour to the nearest corner of the other, weighted by length."""
    corners, lengths = start
    distances, _ = KDTree(end[0]).query(corners)
    return float(np.average(distances, weights=lengths))


def _contour(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Contour corners (corners, 2), in rows and columns, and the contour length at each."""
    # Padding gives a pixel at the image's border its outer corners.
    pixels = np.pad(mask, 1).astype(np.uint8)
    codes = (
        pixels[:-1, :-1] | pixels[:-1, 1:] << 1 | pixels[1:, :-1] << 2 | pixels[1:, 1:] << 3
    )  # (height + 1, width + 1), one bit for each pixel around the corner
    lengths = _CONTOUR_LENGTHS[codes]
    corners = np.nonzero(lengths)
    return np.stack(corners, axis=1), lengths[corners]


def _contour_length(code: int) -> float:
    """Length of contour in the unit square that joins the centres of the four pixels of `code`.

    The contour runs straight between the midpoints of the sides whose two pixels differ: opposite
    sides give length 1, adjacent ones cut off a corner with length sqrt(1/2), and where only
    diagonal neighbours agree it cuts off two corners.
    """
    upper_left, upper_right, lower_left, lower_right = (code >> bit & 1 for bit in range(4))
    rows_cut = (upper_left != upper_right) + (lower_left != lower_right)
    columns_cut = (upper_left != lower_left) + (upper_right != lower_right)
    corners_cut = min(rows_cut, columns_cut)
    return corners_cut * math.sqrt(0.5) if corners_cut else max(rows_cut, columns_cut) / 2


_OFFSETS = np.arange(-REACH, REACH + 1)
_DISC = (np.add.outer(_OFFSETS**2, _OFFSETS**2) <= REACH**2).astype(np.uint8)
_CONTOUR_LENGTHS = np.array([_contour_length(code) for code in range(16)])
