"""Angiograms in from video files, and RGB frames out as one."""

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from tprnet_jax.data import images
from tprnet_jax.data.angiogram import Angiogram
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import for_opencv, partial_of, unwritable

# What is wrong with a file is said by UserError alone. OpenCV looks here before its first video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_SLOWEST, _FASTEST = 0.1, 600  # Frames a second; with two decimals, the codec can count no more.


def open_video(path: str | os.PathLike) -> Angiogram:
    """What an MP4, AVI, MOV or MKV file holds, or any other that OpenCV's FFmpeg can decode.

    Frames are divided by 255, and colour becomes grey as in `images.read_grey`. All are decoded
    once to count them, because what the file says of their number is often wrong.

    Raises:
        UserError: The file cannot be read, is no video, or is damaged. So do its frames.
    """
    with _opened(path) as capture:
        first = _next(capture)
        if first is None:
            raise UserError(
                f"{path} ({os.path.getsize(path)} bytes) is damaged or no video; give a whole MP4, "
                "AVI, MOV or MKV file"
            )
        count = 1 + sum(1 for _ in iter(capture.grab, False))
        promised, rate = (capture.get(x) for x in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
    size, notes = first.shape[:2], ()
    if count < promised:
        notes = (f"{path}: has {count} frames of the {promised:.0f} that it promises",)
    rate = rate if 0 < rate < math.inf else None
    frames = functools.partial(_frames, path, size, count)
    return Angiogram(size, count, frames, is_run=True, rate=rate, notes=notes)


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[cv2.VideoCapture]:
    try:
        with open(path, "rb"):
            pass  # OpenCV would not say why it cannot.
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}); give a video file that may be read"
        ) from error
    capture = cv2.VideoCapture(for_opencv(path), cv2.CAP_FFMPEG)
    try:
        yield capture
    finally:
        capture.release()


def _next(capture: cv2.VideoCapture) -> np.ndarray | None:
    """BGR (height, width, 3), uint8; None at the end, or where nothing can be decoded."""
    try:
        return capture.read()[1]
    except cv2.error:
        return None


def _frames(path: str | os.PathLike, size: tuple[int, int], count: int) -> Iterator[np.ndarray]:
    with _opened(path) as capture:
        for number in range(1, count + 1):
            frame = _next(capture)
            if frame is None or frame.shape[:2] != size:
                found = "cannot be decoded" if frame is None else f"is of {frame.shape[:2]} pixels"
                raise UserError(
                    f"{path} is damaged: frame {number} of {count} {found}; give a whole copy of it"
                )
            yield images.to_unit_grey(frame, path)


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], rate: float) -> None:
    """Writes an MP4 file, whole or not at all.

    The codec is MPEG-4 Part 2 (mp4v): of those that OpenCV's packages encode by themselves, the one
    that most players know (VLC, QuickTime, those of Windows), but no browser. There is no H.264,
    and VP9, which browsers play, takes ten times as long and QuickTime does not know it. Sides have
    to be even, so the last row or column of odd ones is repeated.

    Args:
        path: The file; one that is there is replaced.
        frames: RGB, uint8 (height, width, 3), at least one, all of one size.
        rate: Frames a second; at least 0.1 and at most 600 are written.

    Raises:
        UserError: The file cannot be written.
        ValueError: There are no frames.
    """
    target = Path(path)
    partial = partial_of(target, ".mp4")  # FFmpeg chooses the format by the last suffix.
    try:
        partial.touch()  # OpenCV would not say why it cannot.
        written = _encode(partial, iter(frames), rate)
        _check(partial, written, path)
        os.replace(partial, target)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _encode(path: Path, frames: Iterator[np.ndarray], rate: float) -> int:
    """Writes frames, whether there is space for them or not, and returns their number."""
    first = next(frames, None)
    if first is None:
        raise ValueError("There are no frames to write.")
    writer = _writer(path, _even(first).shape, rate)
    count = 0
    try:
        for frame in itertools.chain([first], frames):
            writer.write(_even(frame))
            count += 1
    finally:
        writer.release()
    return count


def _writer(path: Path, shape: tuple[int, ...], rate: float) -> cv2.VideoWriter:
    height, width = shape[:2]
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    rate = min(max(round(rate, 2), _SLOWEST), _FASTEST)
    return cv2.VideoWriter(for_opencv(path), cv2.CAP_FFMPEG, codec, rate, (width, height))


def _even(frame: np.ndarray) -> np.ndarray:
    """BGR of RGB, its last row and column repeated where there is an odd number of them."""
    height, width = frame.shape[:2]
    return np.pad(frame[..., ::-1], ((0, height % 2), (0, width % 2), (0, 0)), "edge")


def _check(partial: Path, written: int, path: str | os.PathLike) -> None:
    """Looks whether all frames have arrived; OpenCV does not say."""
    with _opened(partial) as capture:
        found = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    if found != written:
        raise UserError(
            f"cannot write {path} ({found} of {written} frames arrived); choose a folder that has "
            "space left, and an OpenCV that encodes mp4v"
        )
