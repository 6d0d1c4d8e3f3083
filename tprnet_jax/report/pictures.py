"""Angiograms and their masks as pictures so small that one page can hold those of many."""

import base64
import io
import threading
from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image

SIDE = 512  # Longer side of a picture, pixels, unless the image is smaller.
MANY = 400  # Of more images, the angiograms, but not their masks, have half of that.
QUALITY = 70  # Of JPEG.
BUDGET = 16_000_000  # Characters of all pictures of a page.


def encode(
    image: np.ndarray, masks: Mapping[str, np.ndarray], many: bool = False
) -> dict[str, str | dict[str, str]]:
    """An image and its masks as a page takes them, each as the Base64 of a file.

    Args:
        image: (height, width), uint8, or floating point in [0, 1].
        masks: By name, bool (height, width).
        many: Whether there are so many images that they have to be small.

    Returns:
        "image", a JPEG file, and "masks", by name PNG files of one bit: opaque in the mask.
    """
    grey = image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 1) * 255)
    small = _shrunk(grey.astype(np.uint8), SIDE // 2 if many else SIDE)
    jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return {
        "image": base64.b64encode(jpeg).decode(),
        "masks": {name: base64.b64encode(_png(mask)).decode() for name, mask in masks.items()},
    }


def _png(mask: np.ndarray) -> bytes:
    small = _shrunk(mask.astype(np.uint8) * 255, SIDE) > 127
    file = io.BytesIO()
    Image.fromarray(small).save(file, "PNG", transparency=0)
    return file.getvalue()


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 (height, width), of which the longer is at most `side`."""
    factor = side / max(image.shape)
    if factor >= 1:
        return image
    height, width = (max(1, round(factor * length)) for length in image.shape)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


class Album:
    """Pictures of images by their number, as many as `budget` characters hold.

    The more come, the fewer are kept: every second, every fourth, and so on. Several threads may
    add to it.

    Attributes:
        pictures: What `encode` returned, by number of the image.
        every: How far the numbers are apart.
    """

    def __init__(self, budget: int = BUDGET):
        self.pictures, self.every = {}, 1
        self._budget, self._size, self._lock = budget, 0, threading.Lock()

    def wants(self, number: int) -> bool:
        """Whether the picture of this image would be kept."""
        return number % self.every == 0

    def add(self, number: int, picture: dict) -> None:
        """Keeps a picture, if it is wanted, and lets go of others that have no room any more."""
        with self._lock:
            if not self.wants(number):
                return
            self.pictures[number] = picture
            self._size += _length(picture)
            while self._size > self._budget and len(self.pictures) > 1:
                self.every *= 2
                self.pictures = {n: kept for n, kept in self.pictures.items() if self.wants(n)}
                self._size = sum(map(_length, self.pictures.values()))


def _length(picture: dict) -> int:
    return len(picture["image"]) + sum(map(len, picture["masks"].values()))
