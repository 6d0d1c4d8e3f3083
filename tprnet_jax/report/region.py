"""What the metrics ask of one mask: its contour, its centreline, its Betti numbers."""

import functools
import math

import cv2
import numpy as np
from scipy.spatial import KDTree
from skimage.morphology import skeletonize


class Region:
    """The foreground of a mask; each property is worked out once, when it is first asked for.

    So the masks of several stages can be compared with one truth. What lies beyond the image is
    background, but see `radii`.

    Attributes:
        mask: Boolean (height, width).
    """

    def __init__(self, mask: np.ndarray):
        self.mask = mask

    @functools.cached_property
    def contour(self) -> tuple[KDTree, np.ndarray]:
        """Pixel corners on the contour, and the length of the contour that passes each, (corners,).

        These are the corners whose four pixels are neither all inside nor all outside. Corner
        (row, column) is the upper left one of that pixel.
        """
        pixels = np.pad(self._pixels, 1)
        codes = (
            pixels[:-1, :-1] | pixels[:-1, 1:] << 1 | pixels[1:, :-1] << 2 | pixels[1:, 1:] << 3
        )  # (height + 1, width + 1), one bit for each pixel around the corner
        corners = np.nonzero((codes > 0) & (codes < 15))
        return KDTree(self._points(corners)), _CONTOUR_LENGTHS[codes[corners]]

    @functools.cached_property
    def edge(self) -> KDTree:
        """The pixels that have a side in common with the background."""
        inner = cv2.erode(self._pixels, _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        return KDTree(self._points(np.nonzero(self._pixels > inner)))

    @functools.cached_property
    def centreline(self) -> np.ndarray:
        """Pixels of scikit-image's `skeletonize`, (pixels, 2) in rows and columns."""
        return self._points(np.nonzero(self._skeleton))

    @functools.cached_property
    def radii(self) -> np.ndarray:
        """Distance of each centreline pixel to the nearest background pixel, (pixels,).

        The border of the image is no wall: where it cuts off a vessel, only the vessel's own walls
        count. All are infinite, if the whole image is foreground.
        """
        if self.mask.all():
            return np.full(len(self.centreline), math.inf)
        distances = cv2.distanceTransform(self._pixels, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        # Float32 in OpenCV; the squares are whole numbers.
        return np.sqrt(np.rint(np.square(distances[self._skeleton])), dtype=np.float64)

    @functools.cached_property
    def betti(self) -> tuple[int, int]:
        """Number of components and of holes, Betti numbers 0 and 1.

        Foreground pixels that meet at a corner are connected, background pixels are not: the pixels
        are closed squares (a cubical complex).
        """
        components, _ = cv2.connectedComponents(self._pixels, connectivity=8)
        background = np.pad(1 - self._pixels, 1, constant_values=1)
        grounds, _ = cv2.connectedComponents(background, connectivity=4)
        return components - 1, grounds - 2  # OpenCV counts the zeros as one; no hole is outside.

    @functools.cached_property
    def _skeleton(self) -> np.ndarray:
        return skeletonize(self._pixels)

    @functools.cached_property
    def _pixels(self) -> np.ndarray:
        """The crop that matters, uint8: the foreground, and the background around it, if any."""
        return self.mask[self._box].astype(np.uint8)

    @functools.cached_property
    def _box(self) -> tuple[slice, slice]:
        column, row, width, height = cv2.boundingRect(self.mask.astype(np.uint8))
        starts_and_sizes = (row, height), (column, width)
        return tuple(slice(max(start - 1, 0), start + size + 1) for start, size in starts_and_sizes)

    def _points(self, indices: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Indices of the crop as rows and columns of the image, (n, 2)."""
        return np.stack(indices, axis=1) + [part.start for part in self._box]


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


_CONTOUR_LENGTHS = np.array([_contour_length(code) for code in range(16)])
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
