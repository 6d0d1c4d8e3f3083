"""Segmentation metrics of one image and their means over a data set, on the host in NumPy.

The paper's Table I: Dice, IoU, precision, recall and ASD are computed for each image, then averaged
over the images. So is what tells a missed or invented branch from an inaccurate rim, and what the
field reports besides: HD95, clDice, Betti errors, and recall by the vessels' calibre.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from scipy.spatial import KDTree

from tprnet_jax.report.region import Region

THIN, MIDDLE = 2, 4  # Largest radii of vessels that are so called, pixels.
BANDS = {
    "recall_thin": (0, THIN),
    "recall_middle": (THIN, MIDDLE),
    "recall_thick": (MIDDLE, math.inf),
}  # Over the first radius, up to the second.
BREAKDOWN = ("missed", "extra", "rim", "area_ratio")
BRIEF = ("dice", "iou", "precision", "recall", "asd", *BREAKDOWN)
NAMES = (*BRIEF, "hd95", "cldice", "betti0", "betti1", *BANDS)
REACH = 5  # Pixels; what lies farther from the other mask is a branch of its own, no mere rim.

Row = dict[str, float | None]


def evaluate(prediction: np.ndarray, truth: np.ndarray) -> Row:
    """All metrics of one image, under the names and in the order of `NAMES`.

    Two empty masks agree perfectly: every overlap is 1 and the distances 0. If only one is empty,
    every overlap is 0 and the distances are the image diagonal sqrt(height^2 + width^2).

    Args:
        prediction: Boolean (height, width).
        truth: Boolean (height, width).

    Returns:
        dice, iou, precision, recall and cldice in [0, 1], asd and hd95 in pixels, betti0 and betti1
        as numbers of components and of holes; the others see `breakdown` and `recall_by_calibre`,
        whose recalls alone may be None.

    Raises:
        ValueError: The masks are not boolean, not two-dimensional, or differ in shape.
    """
    return compare(Region(prediction), Region(truth))


def compare(prediction: Region, truth: Region) -> Row:
    """`evaluate` for regions, which remember what was worked out of them."""
    scores = compare_briefly(prediction, truth)
    case = emptiness(prediction.mask, truth.mask)
    if case is None:
        scores |= {"hd95": hausdorff95(prediction, truth), "cldice": cldice(prediction, truth)}
    else:
        scores |= {"hd95": scores["asd"], "cldice": scores["dice"]}
    return scores | betti_errors(prediction, truth) | recall_by_calibre(prediction, truth)


def compare_briefly(prediction: Region, truth: Region) -> dict[str, float]:
    """As `compare`, but `BRIEF` alone: the paper's metrics and `breakdown`, in half the time."""
    scores = overlap(prediction.mask, truth.mask)
    case = emptiness(prediction.mask, truth.mask)
    if case is None:
        scores["asd"] = average_surface_distance(prediction, truth)
    else:
        scores["asd"] = 0.0 if case == "both" else math.hypot(*truth.mask.shape)
    return scores | breakdown(prediction.mask, truth.mask)


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


def average_surface_distance(prediction: Region, truth: Region) -> float:
    """ASD in pixels: the mean of the two directed average distances between the contours.

    A contour is the set of pixel corners whose four pixels are neither all inside the mask nor all
    outside; what lies beyond the image is outside. Each corner counts by the length of contour that
    passes it. This is the definition of the PyPI package surface-distance
    (`compute_surface_distances`, `compute_average_surface_distance`) at spacing (1, 1).

    Args:
        prediction: Not empty.
        truth: Not empty.
    """
    (predicted, predicted_lengths), (true, true_lengths) = prediction.contour, truth.contour
    there = np.average(_distances(predicted, true), weights=predicted_lengths)
    back = np.average(_distances(true, predicted), weights=true_lengths)
    return float(there + back) / 2


def hausdorff95(prediction: Region, truth: Region) -> float:
    """HD95 in pixels: the larger of the two directed 95th percentiles of distances between edges.

    An edge is the set of the mask's pixels that have a side in common with a pixel outside, or with
    what lies beyond the image; distances are Euclidean, between pixel centres, and percentiles are
    linear between ranks. This is the definition of MONAI (`compute_hausdorff_distance` with
    percentile=95, without spacing), which computes it in float32. It is not that of ASD.

    Args:
        prediction: Not empty.
        truth: Not empty.
    """
    both_ways = (prediction.edge, truth.edge), (truth.edge, prediction.edge)
    return float(max(np.percentile(_distances(*way), 95) for way in both_ways))


def cldice(prediction: Region, truth: Region) -> float:
    """Centreline Dice, the harmonic mean of Tprec and Tsens.

    Tprec is the share of the prediction's centreline that lies in the truth, Tsens the share of the
    truth's that lies in the prediction. Shit et al., 2021, doi:10.1109/CVPR46437.2021.01629.

    Args:
        prediction: Not empty.
        truth: Not empty.
    """
    precision = float(np.mean(_along(truth.mask, prediction)))
    sensitivity = float(np.mean(_along(prediction.mask, truth)))
    total = precision + sensitivity
    return 2 * precision * sensitivity / total if total else 0.0


def betti_errors(prediction: Region, truth: Region) -> dict[str, float]:
    """By how much the numbers of components, betti0, and of holes, betti1, differ.

    They are counted on the whole image; see `Region.betti`.
    """
    pairs = zip(("betti0", "betti1"), prediction.betti, truth.betti, strict=True)
    return {name: float(abs(predicted - true)) for name, predicted, true in pairs}


def recall_by_calibre(prediction: Region, truth: Region) -> Row:
    """Share of the true centreline that lies in the prediction, by the local radius, see `BANDS`.

    The radius is that of `Region.radii`: 1 in a straight line of 1 or 2 pixels, 2 in one of 3 or 4.
    A band without true centreline is undefined, None.
    """
    found, radii = _along(prediction.mask, truth), truth.radii
    bands = {name: (radii > low) & (radii <= high) for name, (low, high) in BANDS.items()}
    return {name: float(found[b].mean()) if b.any() else None for name, b in bands.items()}


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


def summarise(rows: Sequence[Row]) -> Row:
    """Mean of each metric over the images that have it, every image counting the same.

    Args:
        rows: What `evaluate` or `compare_briefly` returned, one for each image.

    Returns:
        The means under the same names; None for what no image has.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("There are no images to average over.")
    columns = {name: [row[name] for row in rows if row[name] is not None] for name in rows[0]}
    return {name: float(np.mean(values)) if values else None for name, values in columns.items()}


def count_bands(rows: Sequence[Row]) -> dict[str, int]:
    """How many images have true centreline in each of `BANDS`, so that its recall is a number."""
    return {name: sum(row[name] is not None for row in rows) for name in BANDS}


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


def _distances(start: KDTree, end: KDTree) -> np.ndarray:
    """Of each point to the nearest one of the other tree, in the order of `start.data`."""
    distances, _ = end.query(start.data)
    return distances


def _along(mask: np.ndarray, region: Region) -> np.ndarray:
    """Whether each pixel of a region's centreline lies in the mask, bool (pixels,)."""
    return mask[tuple(region.centreline.T)]


_OFFSETS = np.arange(-REACH, REACH + 1)
_DISC = (np.add.outer(_OFFSETS**2, _OFFSETS**2) <= REACH**2).astype(np.uint8)
