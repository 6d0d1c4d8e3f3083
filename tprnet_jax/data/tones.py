"""From the stored values of a DICOM image to the grey values that viewers show first."""

from typing import Any

import numpy as np

COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
_BT601 = np.array([0.299, 0.587, 0.114])  # Of red, green and blue.


def to_grey(stored: np.ndarray, header: Any) -> np.ndarray:
    """Maps stored (height, width), or RGB (height, width, 3), to float32 (height, width)."""
    values, kind = stored.astype(np.float64), header.PhotometricInterpretation
    low = -(2 ** (header.BitsStored - 1)) if header.PixelRepresentation else 0
    span = low, low + 2**header.BitsStored - 1
    with np.errstate(all="ignore"):  # Of absurd headers; what comes of them is cut below.
        if kind == "PALETTE COLOR":
            values, span = _palette(stored, header)
        if kind in COLOUR:
            values = values @ _BT601
        else:
            values, span = _voi(*_modality(values, span, header), header)
        unit = np.nan_to_num(np.clip((values - span[0]) / (span[1] - span[0] or 1), 0, 1))
    return (1 - unit if kind == "MONOCHROME1" else unit).astype(np.float32)


def _palette(stored: np.ndarray, header: Any) -> tuple[np.ndarray, tuple]:
    """RGB (height, width, 3) of indices (height, width), and the ends of its range."""
    from pydicom.pixels import apply_color_lut

    colours = apply_color_lut(stored, header)[..., :3]
    bits = min(header.RedPaletteColorLookupTableDescriptor[2], 8 * colours.itemsize)
    return colours.astype(np.float64), (0, 2**bits - 1)


def _modality(values: np.ndarray, span: tuple, header: Any) -> tuple[np.ndarray, tuple]:
    """The values that the VOI LUT or window is meant for, and the ends of their range."""
    tables = header.get("ModalityLUTSequence")
    # Of these runs it leads back to the intensity of X-rays and is not for viewing (DICOM PS3.3
    # C.8.7.1.1.2, PS3.4 N.2.5).
    if tables and header.get("PixelIntensityRelationship") not in ("LOG", "DISP"):
        return _look_up(values, tables[0], header)
    slope, intercept = numbers(header, "RescaleSlope"), numbers(header, "RescaleIntercept")
    if slope and intercept:
        values, *span = (slope[0] * x + intercept[0] for x in (values, *span))
    return values, (min(span), max(span))


def _voi(values: np.ndarray, span: tuple, header: Any) -> tuple[np.ndarray, tuple]:
    """The values to be seen, and the ends of their range: of black and of white."""
    if table := voi_table(header):
        return _look_up(values, table, header)
    if not (found := window(header)):
        return values, span
    (centre, width), form = found, header.get("VOILUTFunction")
    if form == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width)), (0, 1)
    if form != "LINEAR_EXACT":  # DICOM's way of counting whole grey values.
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return values > centre, (0, 1)
    return values, (centre - width / 2, centre + width / 2)


def voi_table(header: Any) -> Any:
    """The first whole VOI LUT, None without one."""
    tables = header.get("VOILUTSequence") or []
    return next((item for item in tables if "LUTDescriptor" in item and "LUTData" in item), None)


def window(header: Any) -> tuple[float, float] | None:
    """Centre and width of the first window that makes sense."""
    exact = header.get("VOILUTFunction") in ("LINEAR_EXACT", "SIGMOID")
    least = np.finfo(np.float64).tiny if exact else 1
    windows = zip(numbers(header, "WindowCenter"), numbers(header, "WindowWidth"), strict=False)
    return next(((centre, width) for centre, width in windows if width >= least), None)


def _look_up(values: np.ndarray, table: Any, header: Any) -> tuple[np.ndarray, tuple]:
    """The entries of a table for values, and the ends of the range of entries."""
    count, first, bits = (int(value) for value in table.LUTDescriptor)
    count = count & 0xFFFF or 2**16
    if header.PixelRepresentation:  # Some write a negative first value as unsigned.
        first = (first + 2**15) % 2**16 - 2**15
    entries = table.LUTData
    if isinstance(entries, bytes):
        wide = "<u2" if header.original_encoding[1] else ">u2"
        entries = np.frombuffer(entries, wide if len(entries) >= 2 * count else np.uint8)
    entries = np.atleast_1d(entries).astype(np.uint16)
    places = np.clip(np.rint(values - first), 0, min(count, len(entries)) - 1)
    return entries[places.astype(np.intp)].astype(np.float64), (0, 2**bits - 1)


def numbers(header: Any, keyword: str) -> list[float]:
    """The values of an element; none if it is absent or holds anything but finite numbers."""
    try:
        values = np.atleast_1d(np.asarray(header.get(keyword), np.float64))
    except (TypeError, ValueError):
        return []
    return values.tolist() if np.isfinite(values).all() else []
