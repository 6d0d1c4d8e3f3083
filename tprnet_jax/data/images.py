"""Angiograms in from image files, and PNG files out."""

import hashlib
import os
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import for_opencv, write_or_tell

# What is wrong with a file is said by UserError alone.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# Far more than any detector has; a few bytes of a file can ask for any number.
MOST_PIXELS = 2**26
_ORIENTATION = 0x0112  # The tag of EXIF, and of TIFF.
_PHOTOMETRIC, _WHITE_IS_ZERO = TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0
_LAYOUT = (
    TiffImagePlugin.BITSPERSAMPLE,
    TiffImagePlugin.SAMPLESPERPIXEL,
    TiffImagePlugin.PLANAR_CONFIGURATION,
)
_APART = 2


class Header(NamedTuple):
    """What an image file says before its pixels.

    Attributes:
        size: Height and width, pixels, as it is to be looked at.
        pages: Of a TIFF, or frames of an animation.
        orientation: By EXIF, 1 to 8, of the pixels that OpenCV reads; 1 is upright.
    """

    size: tuple[int, int]
    pages: int
    orientation: int


class Known(NamedTuple):
    """What is kept of an image that has been read.

    Attributes:
        name: Of its file.
        side: The longer one, pixels.
        digest: 16 digits that only images of equal pixels share, whatever their files are.
    """

    name: str
    side: int
    digest: str


def known(name: str, image: np.ndarray) -> Known:
    """What is kept of an image (height, width), or (height, width, 1)."""
    kind = f"{image.shape[:2]} {image.dtype}".encode()
    digest = hashlib.sha256(kind + np.ascontiguousarray(image).tobytes()).hexdigest()[:16]
    return Known(name, max(image.shape[:2]), digest)


def read_header(path: str | os.PathLike) -> Header:
    """What an image file says before its pixels, which are not read if that can be helped.

    Raises:
        UserError: The file cannot be read, is no image, or is far too large.
    """
    if header := _header(path):
        return header
    if (pixels := _pixels_of_tiff(path)) > MOST_PIXELS:
        raise UserError(f"{path} is far too large ({pixels} pixels); scale it down")
    return Header(read_stored(path).shape[:2], 1, 1)


def _header(path: str | os.PathLike) -> Header | None:
    """None where Pillow cannot tell: it does not know all that OpenCV reads."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of large images; who reads the pixels decides.
            with Image.open(path) as image:
                orientation = image.getexif().get(_ORIENTATION, 1)
                (width, height), pages = image.size, getattr(image, "n_frames", 1)
                is_turned = image.format == "TIFF"  # By OpenCV, and only those.
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is far too large ({error}); scale it down") from error
    except Exception:  # Whatever Pillow trips over in a damaged file; OpenCV then judges it.
        return None
    orientation = orientation if orientation in range(1, 9) else 1
    if is_turned and orientation >= 5:  # Pillow's versions differ in whose height that is.
        return None
    size = (width, height) if orientation >= 5 else (height, width)
    return Header(size, pages, 1 if is_turned else orientation)


def _pixels_of_tiff(path: str | os.PathLike) -> int:
    """How many a TIFF says to have of a kind that Pillow may not know; 0 of what is no TIFF."""
    width, height = _tiff_tags(path, TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH)
    return (width or 0) * (height or 0)


def _tiff_tags(path: str | os.PathLike, *tags: int) -> list[int | None]:
    """What a TIFF's first directory has under these tags; None of what is no TIFF."""
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of what is damaged.
            start = file.read(8)
            start += file.read(8) if start[2:3] == b"+" or start[3:4] == b"+" else b""  # BigTIFF.
            directory = TiffImagePlugin.ImageFileDirectory_v2(start)
            file.seek(directory.next)
            directory.load(file)
            return [directory.get(tag) for tag in tags]
    except Exception:  # Whatever Pillow trips over in a damaged file; OpenCV then judges it.
        return [None] * len(tags)


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
    return to_unit_grey(read_stored(path), path)


def read_stored(path: str | os.PathLike) -> np.ndarray:
    """Reads the pixels of a file as they are stored, but upright; of several pages the first.

    Large values are bright, of a TIFF that has it the other way round (WhiteIsZero) too.

    Returns:
        (height, width), or BGR(A) (height, width, channels), of the file's own type.

    Raises:
        UserError: The file cannot be read, or is no image.
    """
    try:
        # OpenCV's own imread fails on paths that are not in the system's code page.
        encoded = np.fromfile(path, np.uint8)
        image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if encoded.size else None
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}); give an image file that may be read"
        ) from error
    except cv2.error:
        image = None
    if image is None:
        raise UserError(
            f"{path} ({encoded.size} bytes) is damaged or no image; give a whole PNG, JPEG, TIFF "
            "or BMP file"
        )
    if bytes(encoded[:2]) in (b"II", b"MM"):
        _check_tiff(path)
    # Of 8 bits, OpenCV sees to it.
    if image.dtype == np.uint16 and _tiff_tags(path, _PHOTOMETRIC) == [_WHITE_IS_ZERO]:
        image = np.iinfo(image.dtype).max - image
    header = _header(path)
    return image if header is None else _upright(image, header.orientation)


def _check_tiff(path: str | os.PathLike) -> None:
    """Refuses the kinds of TIFF of which OpenCV gives other values than are there."""
    bits, samples, planes = _tiff_tags(path, *_LAYOUT)
    bits = bits if isinstance(bits, tuple) else (bits,)
    # What is damaged in other ways, OpenCV has judged.
    if not isinstance(samples, int) or not all(isinstance(each, int) for each in bits):
        return
    if max(bits) > 8 and (samples == 2 or (planes == _APART and samples > 1)):
        what = "grey with transparency" if samples == 2 else "its channels apart"
        raise UserError(
            f"{path} has {what} in {max(bits)} bits, which cannot be read; save it as grey alone"
        )


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors (height, width, ...) as its EXIF orientation, 1 to 8, asks."""
    if orientation >= 5:  # Its rows are the columns to be seen.
        image = image.swapaxes(0, 1)
    flips = ((), (1,), (0, 1), (0,))[(orientation - 1) % 4]
    return np.ascontiguousarray(np.flip(image, flips))


def count_pages(path: str | os.PathLike) -> int:
    """Number of pages of a TIFF, or of frames of an animated PNG; 0 if the file is no image.

    Raises:
        UserError: Its name is not UTF-8.
    """
    return cv2.imcount(for_opencv(path), cv2.IMREAD_UNCHANGED)


def to_unit_grey(stored: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    """Makes stored pixels what `read_grey` returns.

    Args:
        stored: (height, width) or BGR(A) (height, width, channels).
        path: Where they are from, for what is said of them.

    Raises:
        UserError: There are values that are not finite.
    """
    grey = _to_grey(stored)
    if stored.dtype == np.uint8:
        return (grey / 255).astype(np.float32)
    try:
        return stretch(grey)
    except ValueError as error:
        raise UserError(f"{path} has {error}; replace those that are not finite") from error


def stretch(grey: np.ndarray) -> np.ndarray:
    """Maps the range of (height, width) to float32 in [0, 1]; one value alone to 0.

    Raises:
        ValueError: There are values that are not finite.
    """
    low, high = float(grey.min()), float(grey.max())
    if not np.isfinite(high - low):
        raise ValueError(f"values from {low} to {high}")
    return ((grey - low) / (high - low or 1.0)).astype(np.float32)


def is_colour(stored: np.ndarray) -> bool:
    """Whether BGR(A) (height, width, channels) holds more than one grey channel thrice."""
    if stored.ndim == 2:
        return False
    blue, green, red = stored[..., 0], stored[..., 1], stored[..., 2]
    return not (np.array_equal(blue, green) and np.array_equal(green, red))


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a PNG file, whole or not at all.

    Args:
        path: The file to write; one that is there is replaced.
        image: uint8, grey (height, width) or RGB (height, width, 3).

    Raises:
        UserError: The file cannot be written.
    """
    write_or_tell(path, encode_png(image))


def encode_png(image: np.ndarray) -> bytes:
    """Returns the PNG file of a uint8 image, grey (height, width) or RGB (height, width, 3)."""
    return cv2.imencode(".png", image if image.ndim == 2 else image[..., ::-1])[1].tobytes()


def _to_grey(image: np.ndarray) -> np.ndarray:
    """Maps (height, width) or BGR(A) (height, width, channels) to (height, width)."""
    if image.ndim == 2:
        return image
    if not is_colour(image):
        return image[..., 0]
    return 0.114 * image[..., 0] + 0.587 * image[..., 1] + 0.299 * image[..., 2]
