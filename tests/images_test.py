import os
import sys

import cv2
import numpy as np
import pytest
import tifffile  # That scikit-image brings along.
from PIL import Image

from tprnet_jax.data import images
from tprnet_jax.runtime.errors import UserError


def write(path, array):
    assert cv2.imwrite(str(path), array)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_grey_bytes_are_divided_by_255(tmp_path, suffix):
    stored = np.arange(256, dtype=np.uint8).reshape(8, 32)
    grey = images.read_grey(write(tmp_path / f"a{suffix}", stored))
    assert grey.dtype == np.float32
    np.testing.assert_array_equal(grey, (np.arange(256) / 255).astype(np.float32).reshape(8, 32))


def test_jpeg_of_one_value_keeps_it(tmp_path):
    grey = images.read_grey(write(tmp_path / "a.jpg", np.full((16, 24), 51, np.uint8)))
    np.testing.assert_array_equal(grey, np.full((16, 24), 0.2, np.float32))


def test_sixteen_bits_are_stretched_over_their_own_range(tmp_path):
    stored = np.array([[1000, 2000], [1500, 3000]], np.uint16)
    grey = images.read_grey(write(tmp_path / "a.png", stored))
    np.testing.assert_array_equal(grey, np.array([[0, 0.5], [0.25, 1]], np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["minisblack", "miniswhite"])
def test_what_is_bright_in_a_tiff_is_for_it_to_say(tmp_path, dtype, kind):
    stored = np.linspace(0, np.iinfo(dtype).max, 16).astype(dtype).reshape(4, 4)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=kind)
    shown = stored if kind == "minisblack" else np.iinfo(dtype).max - stored
    np.testing.assert_array_equal(images.read_stored(tmp_path / "a.tif"), shown)


def test_float_tiff_is_stretched_over_its_own_range(tmp_path):
    stored = np.array([[-2.0, 0.0, 6.0]], np.float32)
    grey = images.read_grey(write(tmp_path / "a.tiff", stored))
    np.testing.assert_array_equal(grey, np.array([[0, 0.25, 1]], np.float32))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_constant_image_without_fixed_scale_is_zero(tmp_path, dtype):
    grey = images.read_grey(write(tmp_path / "a.tiff", np.full((3, 4), 700, dtype)))
    np.testing.assert_array_equal(grey, np.zeros((3, 4), np.float32))


def test_equal_channels_give_the_same_values_as_one(tmp_path):
    channel = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colour = write(tmp_path / "colour.png", np.dstack([channel] * 3))
    grey = write(tmp_path / "grey.png", channel)
    np.testing.assert_array_equal(images.read_grey(colour), images.read_grey(grey))


def test_colour_becomes_luma(tmp_path):
    blue_green_red = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    grey = images.read_grey(write(tmp_path / "a.png", blue_green_red))
    np.testing.assert_allclose(grey, [[0.114, 0.587, 0.299]], rtol=1e-6)


def test_transparency_is_dropped(tmp_path):
    stored = np.dstack([np.full((2, 2), 102, np.uint8)] * 3 + [np.zeros((2, 2), np.uint8)])
    grey = images.read_grey(write(tmp_path / "a.png", stored))
    np.testing.assert_array_equal(grey, np.full((2, 2), 0.4, np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_stored_pixels_keep_their_type_and_values(tmp_path, dtype):
    stored = np.array([[0, 1], [2, 200]], dtype)
    found = images.read_stored(write(tmp_path / "a.tif", stored))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, stored)


def test_pages_are_counted(tmp_path):
    page = np.zeros((4, 5), np.uint8)
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), [page] * 3)
    assert images.count_pages(tmp_path / "a.tif") == 3
    assert images.count_pages(write(tmp_path / "a.png", page)) == 1
    (tmp_path / "b.tif").write_text("no image")
    assert images.count_pages(tmp_path / "b.tif") == 0


def test_colour_is_a_difference_between_channels():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    colour = np.dstack([grey] * 3)
    assert not images.is_colour(grey)
    assert not images.is_colour(colour)
    assert not images.is_colour(np.dstack([grey] * 3 + [grey * 0]))  # Transparency is none.
    colour[0, 0, 1] += 1
    assert images.is_colour(colour)


def test_path_with_spaces_and_accents(tmp_path):
    image = np.full((2, 3), 255, np.uint8)
    path = tmp_path / "angiographie nº 1 é 血管.png"
    images.write_png(path, image)
    np.testing.assert_array_equal(images.read_grey(path), np.ones((2, 3), np.float32))


def test_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png .*No such file"):
        images.read_grey(tmp_path / "gone.png")


def test_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="Is a directory"):
        images.read_grey(tmp_path)


@pytest.mark.parametrize("kept", [0, 20, 0.5, -12])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_truncated_file_is_a_user_error(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    path = write(tmp_path / f"cut{suffix}", noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match=rf"cut\{suffix} \(\d+ bytes\) is damaged or no image"):
        images.read_grey(path)


def test_text_file_is_a_user_error(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("not an image")
    with pytest.raises(UserError, match=r"notes\.png \(12 bytes\)"):
        images.read_grey(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_a_user_error(tmp_path, value):
    path = write(tmp_path / "a.tiff", np.array([[0, value, 1]], np.float32))
    with pytest.raises(UserError, match=r"a\.tiff has values .*finite"):
        images.read_grey(path)


def test_written_rgb_reads_back_in_opencv_order(tmp_path):
    image = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)
    images.write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png")), image[..., ::-1])


def test_write_replaces_and_leaves_one_file(tmp_path):
    path = tmp_path / "a.png"
    for value in (0, 255):
        images.write_png(path, np.full((2, 2), value, np.uint8))
    np.testing.assert_array_equal(images.read_grey(path), np.ones((2, 2), np.float32))
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_is_a_user_error_and_leaves_nothing(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*a\.png"):
        images.write_png(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_write_into_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="No such file or directory"):
        images.write_png(tmp_path / "none" / "a.png", np.zeros((2, 2), np.uint8))


@pytest.mark.parametrize(
    ("shape", "written", "what"),
    [
        ((2, 3, 2), {"photometric": "minisblack", "planarconfig": "contig"}, "grey with transp"),
        ((3, 2, 3), {"photometric": "rgb", "planarconfig": "separate"}, "its channels apart"),
    ],
)
def test_a_tiff_that_opencv_misreads_is_refused(tmp_path, shape, written, what):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.arange(np.prod(shape), dtype=np.uint16).reshape(shape), **written)
    with pytest.raises(UserError, match=rf"a\.tif has {what}.* in 16 bits, .*; save it as grey"):
        images.read_grey(path)


@pytest.mark.parametrize(("start", "field"), [(0, b"\xff\xff"), (2, b"\x02\x00"), (4, b"\0\0\0\0")])
def test_a_tiff_whose_layout_is_damaged_is_named(tmp_path, start, field):
    """The entry of BitsPerSample with another tag, of another type, or without a value."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((2, 3, 3), np.uint8), photometric="rgb", byteorder="<")
    content = bytearray(path.read_bytes())
    entry = content.index(b"\x02\x01\x03\x00\x03\x00\x00\x00") + start
    content[entry : entry + len(field)] = field
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tif \(\d+ bytes\) is damaged or no image"):
        images.read_grey(path)


def test_a_tiff_of_16_bits_in_colour_is_read(tmp_path):
    colour = np.zeros((2, 3, 3), np.uint16)
    colour[0] = 1000
    tifffile.imwrite(tmp_path / "a.tif", colour, photometric="rgb")
    np.testing.assert_array_equal(images.read_grey(tmp_path / "a.tif"), [[1] * 3, [0] * 3])


# ---- Before the pixels ---------------------------------------------------------------------------

# What a viewer shows of the rows (1 2 3) and (4 5 6) by their EXIF orientation (JEITA CP-3451).
UPRIGHT = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


@pytest.mark.parametrize(("orientation", "expected"), UPRIGHT.items())
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_turned_image_is_read_upright(tmp_path, orientation, expected, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8)).save(path, exif=exif)
    np.testing.assert_array_equal(images.read_stored(path), expected)
    assert images.read_header(path)[:2] == (np.shape(expected), 1)


def test_the_header_of_a_huge_image_is_read_without_its_pixels(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (13000, 13000)).save(path)
    assert images.read_header(path).size == (13000, 13000)
    Image.new("1", (20000, 20000)).save(path)
    with pytest.raises(UserError, match=r"bomb\.png is far too large .*; scale it down"):
        images.read_header(path)


@pytest.mark.parametrize("big", [False, True])
def test_a_huge_image_that_pillow_does_not_know_is_not_decoded(tmp_path, monkeypatch, big):
    path = tmp_path / "bomb.tif"
    pixels = np.zeros((300, 200), np.float64)
    tifffile.imwrite(path, pixels, compression="zlib", bigtiff=big)
    assert images.read_header(path).size == (300, 200)
    monkeypatch.setattr(images, "MOST_PIXELS", pixels.size - 1)
    monkeypatch.setattr(images, "read_stored", pytest.fail)
    with pytest.raises(UserError, match=r"bomb\.tif is far too large \(60000 pixels\); scale it"):
        images.read_header(path)


def test_what_pillow_does_not_know_is_judged_by_its_pixels(tmp_path):
    cv2.imwrite(str(tmp_path / "a.tif"), np.zeros((4, 7, 3), np.float32))
    assert images.read_header(tmp_path / "a.tif") == ((4, 7), 1, 1)
    (tmp_path / "b.tif").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b\.tif \(8 bytes\) is damaged or no image"):
        images.read_header(tmp_path / "b.tif")


@pytest.mark.skipif(sys.platform == "darwin", reason="its names are UTF-8 alone")
def test_a_name_that_is_not_utf8_is_read_and_its_pages_are_a_sentence(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.png")
    Image.new("L", (3, 2), 255).save(path)
    np.testing.assert_array_equal(images.read_grey(path), np.ones((2, 3), np.float32))
    with pytest.raises(UserError, match=r"is not UTF-8; rename it"):
        images.count_pages(path)
