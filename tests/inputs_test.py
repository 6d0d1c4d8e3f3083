import os
from pathlib import Path

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


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/x.PNG", "a/x"), ("x.y.dcm", "x.y"), ("a/1.2.840.5", "a/1.2.840.5"), ("IM01", "IM01")],
)
def test_only_what_says_the_kind_of_a_file_is_no_part_of_its_name(path, name):
    assert inputs.without_suffix(Path(path)) == Path(name)


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


# ---- What else may be in a folder ----------------------------------------------------------------


def test_pipes_are_not_waited_for(tmp_path):
    """Neither for what is in one that is named like an image, nor for what kind of file it is."""
    _write(tmp_path / "a.png")
    for name in ("b.png", "c.mp4", "d.dcm", "e"):
        os.mkfifo(tmp_path / name)
    listing = inputs.find(str(tmp_path))
    assert [each.name for each in listing.inputs] == ["a", "b", "c", "d"]
    assert listing.notes[0].startswith("1 other files are left out")
    for each in listing.inputs[1:]:
        with pytest.raises(UserError, match=rf"{each.path} is a folder, a pipe or the like; give"):
            inputs.open_angiogram(each.path)


@pytest.mark.parametrize("others", [True, False])
def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch, others):
    """Root may read every folder, so the system's answer is put here."""
    (tmp_path / "closed").mkdir()
    if others:
        _write(tmp_path / "a.png")
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    sentence = f"cannot search {tmp_path / 'closed'} (Permission denied); give a folder that may be"
    if others:
        (problem,) = inputs.find(str(tmp_path)).problems
        assert problem.startswith(sentence)
    else:
        with pytest.raises(UserError, match=r"cannot search .*closed \(Permission denied\)"):
            inputs.find(str(tmp_path))


def test_a_link_to_a_folder_is_not_followed_but_said(tmp_path):
    _write(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    listing = inputs.find(str(tmp_path / "in"))
    assert [each.name for each in listing.inputs] == ["a"]
    (note,) = listing.notes
    assert note.endswith(f"the first is {tmp_path / 'in' / 'circle'}")


def test_an_index_of_dicom_files_is_no_angiogram(tmp_path):
    """With or without pydicom, whatever it is named; other files of the same mark are."""
    _write(tmp_path / "a.png")
    storage = {"DICOMDIR": "1.2.840.10008.1.3.10", "IM1": "1.2.840.10008.5.1.4.1.1.12.1"}
    for name, uid in storage.items():
        kind = b"\2\0\2\0UI" + len(uid).to_bytes(2, "little") + uid.encode()
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + b"\2\0\0\0UL\4\0\x99\0\0\0" + kind)
    (tmp_path / "index.dcm").write_bytes((tmp_path / "DICOMDIR").read_bytes())
    listing = inputs.find(str(tmp_path))
    assert [each.name for each in listing.inputs] == ["IM1", "a"]
    assert listing.notes[0].startswith("2 other files are left out")


# ---- Several processes, and where outputs go -----------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_file_is_in_one_share_and_the_images_of_a_run_are_with_it(count):
    names = ["a", "a_0001", "a_0002", "b", "c_0001", "c_0002", "d", "e/a_0001"]
    files = [inputs.Input(Path(f"{name}.png"), name) for name in names]
    shares = [inputs.share(files, process, count) for process in range(count)]
    assert sorted(each.name for share in shares for each in share) == sorted(names)
    of_name = {each.name: number for number, share in enumerate(shares) for each in share}
    assert of_name["a"] == of_name["a_0001"] == of_name["a_0002"]
    assert all(shares)
    if count > 1:
        assert of_name["c_0001"] != of_name["c_0002"]


@pytest.mark.parametrize(
    ("given", "output", "hit"),
    [
        ("in", "in", True),
        ("in", "in/out", True),
        ("in", "out", False),
        ("in", "in/../out", False),
        ("in", ".", True),  # Of in/in/a.png, the mask would be in in/.
        ("in/in", ".", False),
        ("in/in", "in", False),
        ("in/in", "link", True),
        ("in/in/a.png", "in/in", True),
        ("in/in/a.png", "in/in/out", False),
        ("in/in/a.png", "in", False),
    ],
)
def test_whether_outputs_would_be_among_the_inputs(tmp_path, given, output, hit):
    _write(tmp_path / "in/in/a.png")
    (tmp_path / "link").symlink_to("in/in")
    given = str(tmp_path / given)
    assert inputs.would_be_hit(given, inputs.find(given), tmp_path / output) == hit
