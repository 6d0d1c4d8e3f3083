import cv2
import numpy as np
import pytest
from PIL import Image

from tprnet_jax.data import inputs
from tprnet_jax.runtime.errors import UserError


def _write(path, size=(40, 50), value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full(size, value, np.uint8))


def test_a_folder_is_searched_with_its_subfolders_in_the_order_of_names(tmp_path):
    for name in ("b.png", "a.JPG", "deep/er/c.tif", "deep/d.bmp", ".hidden/e.png", "._a.png"):
        _write(tmp_path / name)
    listing = inputs.find(str(tmp_path))
    assert [each.name for each in listing.inputs] == ["a", "b", "deep/d", "deep/er/c"]
    assert listing.inputs[0].path == tmp_path / "a.JPG"
    assert (listing.problems, listing.notes) == ([], [])


def test_a_file_is_named_after_itself(tmp_path):
    _write(tmp_path / "x.y.png")
    assert inputs.find(str(tmp_path / "x.y.png")).inputs == [(tmp_path / "x.y.png", "x.y")]


def test_files_of_other_types_are_said(tmp_path):
    _write(tmp_path / "a.png")
    for name in ("n.txt", "m.txt", "deep/x.xlsx", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    listing = inputs.find(str(tmp_path))
    assert [each.name for each in listing.inputs] == ["a"]
    (note,) = listing.notes
    assert note.startswith("4 other files are left out (2 .txt, ")
    assert note.endswith(f"the first is {tmp_path / 'README'}")


def test_two_files_that_would_write_one_name_are_both_left_out(tmp_path):
    for name in ("a.png", "a.jpg", "b.png", "deep/a.png"):
        _write(tmp_path / name)
    listing = inputs.find(str(tmp_path))
    assert [each.name for each in listing.inputs] == ["b", "deep/a"]
    assert listing.problems == [
        f"{tmp_path / name} would write a_mask.png, and so would another; rename one of a.jpg, "
        "a.png"
        for name in ("a.jpg", "a.png")
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", r"config\.predict\.input is empty"),
        ("absent", r"config\.predict\.input=.*absent does not exist"),
        (".", r"has no angiogram among its 1 files: no DICOM, \.png, .* or \.mp4"),
    ],
)
def test_a_path_that_cannot_be_used_is_named(tmp_path, given, message):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(UserError, match=message):
        inputs.find(given and str(tmp_path / given))


def test_a_picture_is_one_frame_of_its_size(tmp_path):
    _write(tmp_path / "a.png", (40, 50), 51)
    found = inputs.open_angiogram(tmp_path / "a.png")
    assert (found.size, found.count, found.is_run, found.notes) == ((40, 50), 1, False, ())
    (frame,) = found.frames()
    np.testing.assert_array_equal(frame, np.full((40, 50), 0.2, np.float32))


def test_further_pages_are_said(tmp_path):
    pages = [Image.new("L", (50, 40), grey) for grey in (51, 0, 0)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    found = inputs.open_angiogram(tmp_path / "a.tif")
    assert found.notes == (f"{tmp_path / 'a.tif'} has 3 pages, of which the first is segmented",)
    (frame,) = found.frames()
    assert frame[0, 0] == np.float32(0.2)


def test_a_turned_picture_has_the_size_that_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (50, 40), 0).save(tmp_path / "a.png", exif=exif)
    found = inputs.open_angiogram(tmp_path / "a.png")
    assert found.size == (50, 40) == next(found.frames()).shape


def test_a_picture_of_more_pixels_than_any_detector_has_is_named(tmp_path):
    Image.new("1", (8192, 8193)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png has 8192 x 8193 pixels, more than the 67,108,864"):
        inputs.open_angiogram(tmp_path / "a.png")
