import os
import resource
import sys

import cv2
import numpy as np
import pytest

from tprnet_jax.data import video
from tprnet_jax.runtime.errors import UserError

SIZE = (36, 52)


def pictures(count=5, size=SIZE):
    """Smooth RGB frames that differ, uint8 (frames, height, width, 3)."""
    noise = np.random.default_rng(0).normal(128, 200, (count, *size, 3))
    smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), 4) for frame in noise])
    return np.clip(smooth, 0, 255).astype(np.uint8)


def write_lossless(path, frames, rate=12.5):
    """RGB frames as FFV1, which keeps every value."""
    height, width = frames.shape[1:3]
    codec = cv2.VideoWriter_fourcc(*"FFV1")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, rate, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def read(path):
    return np.stack(list(video.open_video(path).frames()))


def luma(frames):
    return frames / 255 @ [0.299, 0.587, 0.114]


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mov", ".mkv"])
def test_frames_are_grey_and_divided_by_255(tmp_path, suffix):
    frames = pictures()
    frames[1:] = frames[1:, ..., :1]  # All but the first are grey.
    angiogram = video.open_video(write_lossless(tmp_path / f"a{suffix}", frames))
    assert (angiogram.size, angiogram.count, angiogram.rate) == (SIZE, 5, 12.5)
    assert (angiogram.is_run, angiogram.spacing, angiogram.header) == (True, None, None)
    assert angiogram.notes == ()
    found = np.stack(list(angiogram.frames()))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], luma(frames[0]), atol=1e-6)
    np.testing.assert_array_equal(found[1:], (frames[1:, ..., 0] / 255).astype(np.float32))


def test_frames_can_be_read_again_and_left(tmp_path):
    angiogram = video.open_video(write_lossless(tmp_path / "a.avi", pictures()))
    first = next(angiogram.frames())
    np.testing.assert_array_equal(next(angiogram.frames()), first)


def test_one_frame_is_a_run(tmp_path):
    angiogram = video.open_video(write_lossless(tmp_path / "a.mp4", pictures(1)))
    assert (angiogram.count, angiogram.is_run) == (1, True)


def test_path_with_spaces_colons_and_accents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lossless(tmp_path / "plain.avi", pictures()).rename(tmp_path / "a:b é 100%d.avi")
    np.testing.assert_array_equal(read("a:b é 100%d.avi"), read(tmp_path / "a:b é 100%d.avi"))


def test_wrong_number_of_frames_is_corrected(tmp_path):
    path = write_lossless(tmp_path / "a.avi", pictures())
    content = bytearray(path.read_bytes())
    for stated in (0, 3, 99):
        for chunk, offset in ((b"avih", 24), (b"strh", 40)):  # dwTotalFrames, dwLength
            place = content.index(chunk) + offset
            content[place : place + 4] = stated.to_bytes(4, "little")
        path.write_bytes(content)
        angiogram = video.open_video(path)
        assert angiogram.count == len(list(angiogram.frames())) == 5
        promise = f"{path}: has 5 frames of the 99 that it promises"
        assert angiogram.notes == ((promise,) if stated == 99 else ())


@pytest.mark.parametrize("content", [b"", b"no video", bytes(5000)], ids=["empty", "text", "zeros"])
@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mov", ".mkv"])
def test_what_is_no_video_is_a_user_error(tmp_path, suffix, content, capfd):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    wrong = rf"a\{suffix} \({len(content)} bytes\) is damaged or no video; give a whole MP4"
    with pytest.raises(UserError, match=wrong):
        video.open_video(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mov", ".mkv"])
def test_damage_gives_frames_or_a_sentence(tmp_path, suffix, capfd):
    path = tmp_path / f"a{suffix}"
    video.write_video(tmp_path / "a.mp4", pictures(), 15)
    if suffix != ".mp4":
        write_lossless(path, pictures())
    capfd.readouterr()  # What OpenCV says of writing is not at stake.
    whole, chance = path.read_bytes(), np.random.default_rng(0)
    for _ in range(30):
        content = np.frombuffer(whole, np.uint8).copy()
        content[chance.integers(0, len(content), 20)] = chance.integers(0, 256, 20)
        path.write_bytes(content[: chance.integers(len(content))].tobytes())
        try:
            frames = read(path)
        except UserError:
            continue
        assert frames.min() >= 0
        assert frames.max() <= 1
    assert capfd.readouterr() == ("", "")


def test_files_that_cannot_be_read_say_why(tmp_path):
    for path, why in ((tmp_path / "gone.mp4", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=rf"cannot read {path} \({why}.*may be read"):
            video.open_video(path)


@pytest.mark.skipif(sys.platform == "darwin", reason="its names are UTF-8 alone")
def test_a_name_that_is_not_utf8_is_a_sentence(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.mp4")
    os.rename(write_lossless(tmp_path / "a.mp4", pictures()), path)
    with pytest.raises(UserError, match=r"is not UTF-8; rename it, or its folder"):
        video.open_video(path)
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(folder)
    with pytest.raises(UserError, match=r"is not UTF-8; rename it, or its folder"):
        video.write_video(f"{folder}/b.mp4", pictures(), 15)
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("later", "wrong"),
    [
        (pictures(3), "frame 4 of 5 cannot be decoded"),
        (pictures(5, (20, 30)), r"frame 1 of 5 is of \(20, 30\) pixels"),
    ],
)
def test_a_file_that_has_changed_is_a_user_error(tmp_path, later, wrong):
    path = write_lossless(tmp_path / "a.mp4", pictures())
    frames = video.open_video(path).frames
    write_lossless(path, later)
    with pytest.raises(UserError, match=rf"a\.mp4 is damaged: {wrong}; give a whole copy"):
        list(frames())


# ---- Writing -------------------------------------------------------------------------------------


def test_written_video_is_mpeg4_and_reads_back(tmp_path):
    frames = pictures()
    video.write_video(tmp_path / "a.mp4", iter(frames), 15)
    content = (tmp_path / "a.mp4").read_bytes()
    assert content[4:8] == b"ftyp"
    assert b"mp4v" in content
    angiogram = video.open_video(tmp_path / "a.mp4")
    assert (angiogram.size, angiogram.count, angiogram.rate) == (SIZE, 5, 15)
    found = np.stack(list(angiogram.frames()))
    assert np.abs(found - luma(frames)).mean() < 0.01  # The codec loses something.


@pytest.mark.parametrize(("channel", "weight"), [(0, 0.299), (1, 0.587), (2, 0.114)])
def test_written_colours_are_red_green_and_blue(tmp_path, channel, weight):
    frame = np.zeros((*SIZE, 3), np.uint8)
    frame[..., channel] = 255
    video.write_video(tmp_path / "a.mp4", [frame], 15)
    np.testing.assert_allclose(read(tmp_path / "a.mp4"), np.full((1, *SIZE), weight), atol=0.01)


@pytest.mark.parametrize("size", [(36, 51), (35, 52), (35, 51), (1, 1)])
def test_odd_sides_repeat_their_last_row_or_column(tmp_path, size):
    frames = pictures(2, size)
    video.write_video(tmp_path / "a.mp4", frames, 15)
    height, width = size
    found = read(tmp_path / "a.mp4")
    assert found.shape == (2, height + height % 2, width + width % 2)
    assert np.abs(found[:, :height, :width] - luma(frames)).mean() < 0.01
    if height % 2:
        assert np.abs(found[:, -1] - found[:, -2]).max() < 0.02
    if width % 2:
        assert np.abs(found[..., -1] - found[..., -2]).max() < 0.02


@pytest.mark.parametrize(
    ("rate", "written"),
    [(7.4925, 7.49), (29.97, 29.97), (1000 / 15, 66.67), (0.5, 0.5), (1e-9, 0.1), (1e9, 600)],
)
def test_any_rate_can_be_written(tmp_path, rate, written):
    video.write_video(tmp_path / "a.mp4", pictures(), rate)
    assert video.open_video(tmp_path / "a.mp4").rate == pytest.approx(written, rel=1e-6)


def test_write_replaces_and_leaves_one_file(tmp_path):
    path = tmp_path / "a.mp4"
    for count in (2, 4):
        video.write_video(path, pictures(count), 15)
        assert video.open_video(path).count == count
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [UserError("damaged"), KeyboardInterrupt()])
def test_what_is_interrupted_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.mp4"
    path.write_text("old")

    def frames():
        yield from pictures(3)
        raise error

    with pytest.raises(type(error)):
        video.write_video(path, frames(), 15)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_frames_are_an_error_and_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="There are no frames"):
        video.write_video(tmp_path / "a.mp4", [], 15)
    assert not list(tmp_path.iterdir())


def test_failed_write_is_a_user_error_and_leaves_nothing(tmp_path):
    (tmp_path / "a.mp4").mkdir()
    for path, why in (
        (tmp_path / "a.mp4", "Is a directory"),
        (tmp_path / "none" / "a.mp4", "No such file or directory"),
    ):
        with pytest.raises(UserError, match=rf"cannot write {path} \({why}\); choose a folder"):
            video.write_video(path, pictures(), 15)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_full_disk_is_a_user_error_and_leaves_nothing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (30, 300, 300, 3), np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*a\.mp4 \(\d+ of 30 frames arrived\)"):
            video.write_video(tmp_path / "a.mp4", noise, 15)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
