"""An angiogram as a user's file has it: one image, or the frames of a run."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np


class Angiogram(NamedTuple):
    """What a file holds, its pixels not read yet.

    Attributes:
        size: Height and width of a frame, pixels.
        count: Number of frames.
        frames: Reads them one after another, each float32 (height, width) in [0, 1], vessels dark;
            raises UserError where the file turns out to be damaged.
        is_run: Whether the file is a run of frames, even if it has only one.
        spacing: Millimetres between rows and between columns, or None where the file does not say.
        rate: Frames a second of a run, or None.
        notes: A sentence on each thing that was done to the file, or left out of it.
        header: Its DICOM data set, without pixels; None of other files.
    """

    size: tuple[int, int]
    count: int
    frames: Callable[[], Iterator[np.ndarray]]
    is_run: bool = False
    spacing: tuple[float, float] | None = None
    rate: float | None = None
    notes: tuple[str, ...] = ()
    header: Any = None
