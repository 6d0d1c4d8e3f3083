import base64
import io

import html_test
import numpy as np
import pytest
from PIL import Image

from tprnet_jax.report import pictures
from tprnet_jax.report.journal import Journal


def _opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_picture_is_that_of_its_image_and_a_mask_exact(kind):
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    mask = np.random.default_rng(0).random((48, 64)) < 0.5
    image = ramp if kind == np.uint8 else (ramp / 255).astype(np.float32)
    found = pictures.encode(image, {"truth": mask, "final": ~mask})
    opened = _opened(found["image"])
    assert (opened.format, opened.mode) == ("JPEG", "L")
    assert np.abs(np.asarray(opened, int) - ramp).max() < 12
    np.testing.assert_array_equal(html_test.mask_of(found["masks"]["truth"]), mask)
    np.testing.assert_array_equal(html_test.mask_of(found["masks"]["final"]), ~mask)
    assert _opened(found["masks"]["truth"]).mode == "1"


@pytest.mark.parametrize(
    ("size", "many", "picture", "mask"),
    [
        ((600, 1024), False, (512, 300), (512, 300)),
        ((600, 1024), True, (256, 150), (512, 300)),
        ((300, 200), True, (171, 256), (200, 300)),
        ((90, 80), True, (80, 90), (80, 90)),
    ],
)
def test_large_images_shrink_and_of_many_the_angiograms_more(size, many, picture, mask):
    found = pictures.encode(np.zeros(size), {"final": np.ones(size, bool)}, many)
    assert _opened(found["image"]).size == picture
    assert _opened(found["masks"]["final"]).size == mask
    assert html_test.mask_of(found["masks"]["final"]).all()


def test_an_album_keeps_even_steps_within_its_budget():
    album = pictures.Album(budget=50)
    picture = {"image": "x" * 6, "masks": {"a": "yy", "b": "yy"}}  # 10 characters.
    for number in range(21):
        album.add(number, picture)
        assert len(album.pictures) <= 5
    assert list(album.pictures) == [0, 8, 16]
    assert album.every == 8
    assert [number for number in range(30) if album.wants(number)] == [0, 8, 16, 24]


def test_an_album_keeps_one_picture_whatever_its_length():
    album = pictures.Album(budget=1)
    for number in range(3):
        album.add(number, {"image": "xx", "masks": {}})
    assert list(album.pictures) == [0]


def test_a_journal_has_numbers_of_all_images_and_pictures_of_some():
    journal = Journal(files=1, budget=1)
    mask = np.zeros((32, 40), bool)
    mask[:8] = True
    tree = b'{"edges": [{"length": 5.5, "length_mm": 1.5}, {"length": 2.5, "length_mm": 0.5}]}'
    journal.enter("a.dcm", (1, 2), np.zeros((32, 40)), mask, 0.5, tree)
    journal.enter("a.dcm", (2, 2), None, mask)
    first, second = journal.entries
    assert first.pop("picture")["masks"].keys() == {"mask"}
    assert first == {
        "file": "a.dcm",
        "frame": 1,
        "number": 0,
        "size": (32, 40),
        "area": 25.0,
        "seconds": 0.5,
        "branches": 2,
        "length": 8.0,
        "length_mm": 2.0,
    }
    assert "picture" not in second
    assert (second["frame"], second["seconds"]) == (2, None)
    assert "branches" not in second
