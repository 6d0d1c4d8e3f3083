"""The topology stage on the host: centreline and farthest-point sampling (paper, Eq. 4).

NumPy in, NumPy out; nothing here knows of JAX.
"""

import cv2
import numpy as np
from skimage.morphology import skeletonize

CENTRELINES = ("skeletonize", "close_and_thin")
FIRST_POINTS = ("centroid", "random")


def centreline(mask: np.ndarray, method: str = "skeletonize") -> np.ndarray:
    """Centreline of a vessel mask, one pixel wide.

    Args:
        mask: `(height, width)` bool.
        method: "skeletonize", scikit-image's thinning, the default because its lines reach the
            vessels' ends and have no corners that count twice; or "close_and_thin", the released
            code's `close`, then `thin`.

    Returns:
        `(height, width)` bool.
    """
    # A copy, because both refuse the read-only arrays that JAX hands out.
    mask = np.array(mask, bool)
    return skeletonize(mask) if method == "skeletonize" else thin(close(mask))


def close(mask: np.ndarray) -> np.ndarray:
    """The released code's closing: dilation by a 3x3, then erosion by a 4x4 square.

    The squares differ in size, so a mask also loses one pixel at its top and left: a defect, kept
    to reproduce what was published.

    Args:
        mask: `(height, width)` bool.

    Returns:
        `(height, width)` bool.
    """
    dilated = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    return cv2.erode(dilated, np.ones((4, 4), np.uint8)).astype(bool)


def thin(mask: np.ndarray) -> np.ndarray:
    """Thinning after Zhang and Suen (1984), pixel for pixel that of OpenCV-contrib.

    Like that of `cv2.ximgproc.thinning`, it removes no pixel on the border of the image.
    scikit-image's `skeletonize` is not identical: on 300 true masks of ARCADE, Zhang-Suen's lines
    have 10 % more pixels (99 % of those that only they have are inner corners of staircases), and
    skeletonize's reach further at the ends (by 23 pixels at most).

    Args:
        mask: `(height, width)` bool.

    Returns:
        `(height, width)` bool.
    """
    thinned = np.array(mask, np.uint8)
    around = CLOCKWISE @ (mask.shape[1], 1)
    pixels = thinned.reshape(-1)
    inside = np.zeros(mask.shape, bool)
    inside[1:-1, 1:-1] = mask[1:-1, 1:-1]
    left = np.flatnonzero(inside)
    before = -1
    while before != len(left):
        before = len(left)
        for removable in REMOVABLE:
            codes = pixels[left[:, None] + around] @ _BITS
            pixels[left[removable[codes]]] = 0
            left = left[~removable[codes]]
    return thinned.astype(bool)


# Row and column steps to the eight neighbours, clockwise from the one above (P2 to P9).
CLOCKWISE = np.array([(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)])
_BITS = 1 << np.arange(8)


def _removable(first_pass: bool) -> np.ndarray:
    """For each of the 256 neighbourhoods, whether a pass removes the pixel in its middle."""
    neighbours = (np.arange(256)[:, None] & _BITS) > 0
    count = neighbours.sum(axis=1)
    entries = (~neighbours & np.roll(neighbours, -1, axis=1)).sum(axis=1)
    above, right, below, left = neighbours[:, ::2].T
    if first_pass:
        peeled = ~(above & right & below) & ~(right & below & left)
    else:
        peeled = ~(above & right & left) & ~(above & below & left)
    return (count >= 2) & (count <= 6) & (entries == 1) & peeled


# Of the two passes, by the code of a neighbourhood: bit i is neighbour i of `CLOCKWISE`.
REMOVABLE = (_removable(True), _removable(False))


def farthest_points(points: np.ndarray, count: int, first: str = "centroid") -> np.ndarray:
    """Farthest-point sampling (Eq. 4): each next sample is the point farthest from all before.

    Distances are squared Euclidean in exact integers; ties go to the first point listed.

    Args:
        points: `(points, 2)` integers, distinct, coordinates below 2**11 (the exact sums
            need 64 bits).
        count: Number of samples wanted; fewer are returned if there are fewer points.
        first: Where sampling starts: "centroid", at the point farthest from the centroid; or
            "random", at the point that the released code draws, always with seed 1.

    Returns:
        `(min(count, points),)` int64, indices into `points` in the order of sampling.
    """
    points = np.asarray(points, np.int64)
    chosen = np.empty(min(count, len(points)), np.int64)
    if len(chosen) == 0:
        return chosen
    chosen[0] = _farthest_from_centroid(points) if first == "centroid" else _drawn(len(points))
    farness = _squared_distances(points, points[chosen[0]])
    for index in range(1, len(chosen)):
        chosen[index] = np.argmax(farness)
        farness = np.minimum(farness, _squared_distances(points, points[chosen[index]]))
    return chosen


def _farthest_from_centroid(points: np.ndarray) -> np.intp:
    # Scaled by the number of points, the centroid is an integer and the comparison exact.
    return np.argmax(_squared_distances(len(points) * points, points.sum(axis=0)))


def _drawn(count: int) -> int:
    return np.random.RandomState(1).randint(0, count)


def _squared_distances(points: np.ndarray, origin: np.ndarray) -> np.ndarray:
    return ((points - origin) ** 2).sum(axis=1)


def patch_centres(
    mask: np.ndarray,
    pixels_per_patch: int,
    most: int,
    method: str = "skeletonize",
    first: str = "centroid",
) -> np.ndarray:
    """Centres of the patches that FocalNet refines.

    One for every `pixels_per_patch` pixels of the centreline, at least one if there is a
    centreline at all, spread by farthest-point sampling.

    Args:
        mask: `(height, width)` bool.
        pixels_per_patch: Centreline pixels to a patch.
        most: Largest number of patches. Sampling spreads the first ones widest, so the ones
            left out lie nearest to those kept.
        method: See `centreline`.
        first: See `farthest_points`.

    Returns:
        `(patches, 2)` int64, rows and columns in sampling order; none for an empty mask.
    """
    points = np.argwhere(centreline(mask, method))
    count = min(max(len(points) // pixels_per_patch, 1), most)
    return points[farthest_points(points, count, first)]
