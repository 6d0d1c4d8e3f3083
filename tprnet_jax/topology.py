"""The topology stage on the host: centreline and farthest-point sampling (paper, Eq. 4).

NumPy in, NumPy out; nothing here knows of JAX.
"""

import numpy as np
from skimage.morphology import skeletonize


def centreline(mask: np.ndarray) -> np.ndarray:
    """Centreline of a vessel mask, one pixel wide.

    Thinning as scikit-image's `skeletonize` does it (Zhang and Suen, 1984).

    Args:
        mask: `(height, width)` bool.

    Returns:
        `(height, width)` bool.
    """
    # A copy, because scikit-image refuses the read-only arrays that JAX hands out.
    return skeletonize(np.array(mask, bool))


def farthest_points(points: np.ndarray, count: int) -> np.ndarray:
    """Farthest-point sampling (Eq. 4).

    The first sample is the point farthest from the centroid, each next one the point farthest
    from all chosen before. Distances are squared Euclidean in exact integers; ties go to the
    first point listed.

    Args:
        points: `(points, 2)` integers, distinct, coordinates below 2**11 (the exact sums
            need 64 bits).
        count: Number of samples wanted; fewer are returned if there are fewer points.

    Returns:
        `(min(count, points),)` int64, indices into `points` in the order of sampling.
    """
    points = np.asarray(points, np.int64)
    count = min(count, len(points))
    chosen = np.empty(count, np.int64)
    # Scaled by the number of points, the centroid is an integer and the comparison exact.
    farness = _squared_distances(len(points) * points, points.sum(axis=0))
    for index in range(count):
        chosen[index] = np.argmax(farness)
        distances = _squared_distances(points, points[chosen[index]])
        farness = distances if index == 0 else np.minimum(farness, distances)
    return chosen


def _squared_distances(points: np.ndarray, origin: np.ndarray) -> np.ndarray:
    return ((points - origin) ** 2).sum(axis=1)


def patch_centres(mask: np.ndarray, pixels_per_patch: int, most: int) -> np.ndarray:
    """Centres of the patches that FocalNet refines.

    One for every `pixels_per_patch` pixels of the centreline, at least one if there is a
    centreline at all, spread by farthest-point sampling.

    Args:
        mask: `(height, width)` bool.
        pixels_per_patch: Centreline pixels to a patch.
        most: Largest number of patches. Sampling spreads the first ones widest, so the ones
            left out lie nearest to those kept.

    Returns:
        `(patches, 2)` int64, rows and columns in sampling order; none for an empty mask.
    """
    points = np.argwhere(centreline(mask))
    count = min(max(len(points) // pixels_per_patch, 1), most)
    return points[farthest_points(points, count)]
