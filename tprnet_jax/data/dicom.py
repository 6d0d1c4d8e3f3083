"""Angiograms in from DICOM files: X-ray runs and images, and any other two-dimensional ones.

pydicom is imported where it is needed: it comes with the optional installation alone.
"""

import contextlib
import functools
import logging
import os
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tprnet_jax.data import tones
from tprnet_jax.data.angiogram import Angiogram
from tprnet_jax.runtime.errors import UserError

INSTALL = "pip install highdicom pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
_SUFFIXES = ("", ".dcm", ".dicom", ".ima")
_LOUD = "pydicom|highdicom"
_KINDS = ("MONOCHROME1", "MONOCHROME2", *tones.COLOUR)
# Element (0002,0002) of a DICOMDIR: Media Storage Directory Storage.
_OF_INDEX = b"\2\0\2\0UI\x14\x001.2.840.10008.1.3.10"
# Enhanced classes keep in these, for all frames or for each, what others have at the top.
_MACROS = ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence")


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether a file is DICOM: by its mark DICM, or by its content if it has none.

    Without mark it must be named .dcm, .dicom or .ima or have no suffix, pydicom must be installed,
    and the data set must name its class or the height of its image.
    """
    try:
        with open(path, "rb") as file:
            if file.read(132)[128:] == b"DICM":
                return True
        with telling(path):
            return Path(path).suffix.lower() in _SUFFIXES and _is_named(_read(path))
    except (OSError, UserError):
        return False


def is_index(path: str | os.PathLike) -> bool:
    """Whether a file is a DICOMDIR, which lists other files and has no image."""
    try:
        with open(path, "rb") as file:
            return _OF_INDEX in file.read(512)
    except OSError:
        return False


def open_dicom(path: str | os.PathLike) -> Angiogram:
    """What a DICOM file holds: one frame or more, of any transfer syntax with a decoder.

    Grey values are what viewers show first. Stored values go through the modality LUT, then through
    the VOI LUT or window, whose output becomes [0, 1]; without these two, all values that the
    stored bits allow do. MONOCHROME1 is inverted, and colour becomes grey by the weights of ITU-R
    BT.601. Frames are decoded one after another, when they are asked for. One alone is no run.

    Raises:
        UserError: The file cannot be read, holds no image, is damaged or encrypted, needs a decoder
          that is not there, or pydicom is missing.
    """
    with telling(path):
        header = _read(path)
        size = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
        count = int(header.get("NumberOfFrames") or 1)
        _check(header, size, count, path)
        del header.PixelData
        shown = _of_frame(header, 0)
        spacing, at_detector = _spacing(shown)
        notes = tuple(f"{path}: {note}" for note in _notes(shown, at_detector))
        frames = functools.partial(_frames, path, header, count)
        rate = _rate(header) if count > 1 else None
        return Angiogram(size, count, frames, count > 1, spacing, rate, notes, header)


@contextlib.contextmanager
def telling(
    path: str | os.PathLike,
    wrong: str = "cannot be decoded",
    mend: str = "give a whole copy of it, or convert it",
) -> Iterator[None]:
    """Makes a sentence on a file of whatever is raised inside, and silences pydicom.

    Raises:
        UserError: Anything was raised, or pydicom is missing.
    """
    try:
        import pydicom  # noqa: F401  Importing it later would undo what follows.

        _silence()
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{path} needs {error.name}; install it with {INSTALL}") from error
    except Exception as error:  # pydicom raises nearly everything that there is.
        reason = _legible(str(error) or type(error).__name__).rstrip(".")
        sentence = f"{path} {wrong} ({reason}); {mend}"
        if isinstance(error, OSError) and error.strerror:
            sentence = f"cannot read {path} ({error.strerror}); give a file that may be read"
        raise UserError(sentence) from error


def _silence() -> None:
    """What is wrong is said by UserError alone. For good, as files are read in several threads."""
    for name in ("pydicom", "openjpeg"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    # A filter, even the same again, would make Python repeat the warnings of all other modules.
    if not any(getattr(entry[3], "pattern", None) == _LOUD for entry in warnings.filters):
        warnings.filterwarnings("ignore", module=_LOUD)


def _legible(text: str) -> str:
    """Text of a file that may be damaged, in one line."""
    printable = "".join(x if x.isprintable() or x.isspace() else "?" for x in text)
    return textwrap.shorten(printable, 200, placeholder=" ...")


def _read(path: str | os.PathLike, most: int | None = 2**20) -> Any:
    """The data set of a file, whether it makes sense or not, with a transfer syntax.

    What has more than `most` bytes, such as the pixels, stays in the file until it is asked for.
    """
    from pydicom import dcmread, uid

    data = dcmread(os.fspath(path), defer_size=most, force=True)
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return data


def _is_named(data: Any) -> bool:
    return "SOPClassUID" in data or "Rows" in data or "MediaStorageSOPClassUID" in data.file_meta


def _check(header: Any, size: tuple[int, int], count: int, path: str | os.PathLike) -> None:
    from pydicom.pixels import get_decoder

    kind, syntax = header.get("PhotometricInterpretation"), header.file_meta.TransferSyntaxUID
    of = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    length = os.path.getsize(path)
    if not _is_named(header):
        wrong = f"({length} bytes) is encrypted, damaged or no DICOM file"
        mend = "give a whole one"
    elif "PixelData" not in header:
        wrong = f"({getattr(of, 'name', 'of no class')}) is encrypted or has no pixel data"
        mend = "give an angiogram"
    elif min(*size, count) < 1 or count > length:  # A damaged number may be of any size.
        wrong = f"has {count} frames of {size[0]} x {size[1]} pixels in {length} bytes"
        mend = "give a whole copy of it"
    elif kind not in _KINDS:
        wrong, mend = f"has pixels of the kind {kind}", f"give {', '.join(_KINDS)}"
    elif not get_decoder(syntax).is_available:
        wrong, mend = f"is encoded as {syntax.name}, whose decoder is missing", f"run {INSTALL}"
    else:
        return
    raise UserError(f"{path} {_legible(wrong)}; {mend}")


def _of_frame(header: Any, index: int) -> Any:
    """What holds for a frame, counted from 0: the header under the frame's functional groups."""
    import pydicom

    groups = list(header.get("SharedFunctionalGroupsSequence") or [])
    groups += (header.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]
    if not groups:
        return header
    merged = pydicom.Dataset()
    merged.set_original_encoding(*header.original_encoding)
    merged.update(header)
    for item in (item for group in groups for name in _MACROS for item in group.get(name) or []):
        merged.update(item)
    return merged


def _spacing(header: Any) -> tuple[tuple[float, float] | None, bool]:
    """Millimetres between rows and between columns, and whether they are the detector's.

    Pixel Spacing that nothing was calibrated for is Imager Pixel Spacing once more (DICOM PS3.3,
    10.7.1.1).
    """
    uncalibrated = (
        tones.numbers(header, "PixelSpacing") == tones.numbers(header, "ImagerPixelSpacing")
        and "PixelSpacingCalibrationType" not in header
    )
    factors = tones.numbers(header, "EstimatedRadiographicMagnificationFactor")
    factor = next((value for value in factors if value > 0), None)
    for keyword, divisor in (("PixelSpacing", 1), ("ImagerPixelSpacing", factor or 1)):
        if keyword == "PixelSpacing" and uncalibrated:
            continue
        found = tuple(value / divisor for value in tones.numbers(header, keyword))
        if len(found) == 2 and min(found) > 0:
            return found, keyword == "ImagerPixelSpacing" and factor is None
    return None, False


def _rate(header: Any) -> float | None:
    """Frames a second."""
    for keyword in ("RecommendedDisplayFrameRate", "CineRate", "FrameTime"):
        for value in tones.numbers(header, keyword)[:1]:
            if value > 0:
                return 1000 / value if keyword == "FrameTime" else value
    return None


def _notes(header: Any, at_detector: bool) -> Iterator[str]:
    kind, window = header.PhotometricInterpretation, tones.window(header)
    if kind in tones.COLOUR:
        yield "converted from colour to grey"
    elif tones.voi_table(header):
        yield "shown through the VOI LUT of its header"
    elif window:
        yield "shown through the window of its header, centre {:g} and width {:g}".format(*window)
    else:
        yield f"has no window, so all values of {header.BitsStored} bits share the grey scale"
    if kind == "MONOCHROME1":
        yield "inverted, because its large values are dark (MONOCHROME1)"
    if at_detector:
        yield "its spacing is that at the detector; what is in the patient is smaller"


def _frames(path: str | os.PathLike, header: Any, count: int) -> Iterator[np.ndarray]:
    with telling(path):
        from pydicom import uid
        from pydicom.pixels import iter_pixels

        # Another decoder of these panics at damage, which nothing can keep from the user.
        plugin = "pydicom" if header.file_meta.TransferSyntaxUID == uid.RLELossless else ""
        decoded = iter_pixels(_read(path, most=None), decoding_plugin=plugin)
    for index in range(count):
        with telling(path):
            if (stored := next(decoded, None)) is None:
                wrong = f"has only {index} of the {count} frames that its header promises"
                raise UserError(f"{path} {wrong}; give a whole copy of it")
            grey = tones.to_grey(stored, _of_frame(header, index))
        yield grey
