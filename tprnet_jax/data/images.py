"""Angiograms in from image files, and PNG files out."""

import os

import cv2
import numpy as np

from tprnet_jax.errors import UserError
from tprnet_jax.files import write_whole

# What is wrong with a file is said by UserError alone.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def read_grey(path: str | os.PathLike) -> np.ndarray:
    """Reads a PNG, JPEG, TIFF or BMP file as one grey image.

    Unsigned 8-bit values are divided by 255. All others (16-bit, floating point) have no such fixed
    scale and are stretched from their own minimum and maximum to 0 and 1; if the two are equal, the
    image is 0. Colour becomes grey by the weights of ITU-R BT.601, but images whose three channels
    agree keep their exact values. Transparency is dropped, and of several pages the first is read.

    Args:
        path: The image file.

    Returns:
        float32 in [0, 1], (height, width).

    Raises:
        UserError: The file cannot be read, is no image, or holds values that are not finite.
    """
    image = _decode(path)
    grey = _to_grey(image)
    return (grey / 255).astype(np.float32) if image.dtype == np.uint8 else _stretch(grey, path)


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a PNG file, whole or not at all.

    Args:
        path: The file to write; one that is there is replaced.
        image: uint8, grey (height, width) or RGB (height, width, 3).

    Raises:
        UserError: The file cannot be written.
    """
    try:
        write_whole(path, encode_png(image))
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}); choose a folder that exists, can be "
            "written to and has space left"
        ) from error


def encode_png(image: np.ndarray) -> bytes:
    """Returns the PNG file of a uint8 image, grey (height, width) or RGB (height, width, 3)."""
    return cv2.imencode(".png", image if image.ndim == 2 else image[..., ::-1])[1].tobytes()


def _decode(path: str | os.PathLike) -> np.ndarray:
    """Returns the file's pixels as stored, (height, width) or BGR(A) (height, width, channels)."""
    try:
        # OpenCV's own imread fails on paths that are not in the system's code page.
        encoded = np.fromfile(path, np.uint8)
        image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if encoded.size else None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); give an image file") from error
    except cv2.error:
        image = None
    if image is None:
        raise UserError(
            f"{path} ({encoded.size} bytes) is damaged or no image; give a whole PNG, JPEG, TIFF "
            "or BMP file"
        )
    return image


def _to_grey(image: np.ndarray) -> np.ndarray:
    """Maps (height, width) or BGR(A) (height, width, channels) to (height, width)."""
    if image.ndim == 2:
        return image
    blue, green, red = image[..., 0], image[..., 1], image[..., 2]
    if np.array_equal(blue, green) and np.array_equal(green, red):
        return blue
    return 0.114 * blue + 0.587 * green + 0.299 * red


def _stretch(grey: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    """Maps the range of (height, width) to float32 in [0, 1]."""
    low, high = float(grey.min()), float(grey.max())
    if not np.isfinite(high - low):
        raise UserError(
            f"{path} has values from {low} to {high}; replace those that are not finite"
        )
    return ((grey - low) / (high - low or 1.0)).astype(np.float32)
