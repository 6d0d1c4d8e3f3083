import contextlib
import functools
import hashlib
import http.server
import json
import os
import pickle
import shutil
import socket
import threading
import zipfile

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tprnet_jax.data import arcade
from tprnet_jax.runtime.errors import UserError

ARCADE = os.environ.get("TPRNET_ARCADE")

SQUARE = [2, 3, 6, 3, 6, 8, 2, 8]  # x, y of the corners


def draw_image(value):
    return np.full((12, 10), value, np.uint8)


def coco():
    """Two images whose ids, file names and positions all disagree with each other's order."""
    return {
        "images": [
            {"id": 7, "file_name": "1.png", "width": 10, "height": 12},
            {"id": 3, "file_name": "2.png", "width": 10, "height": 12},
        ],
        "annotations": [
            {"id": 70, "image_id": 3, "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]},
            {"id": 71, "image_id": 7, "segmentation": [SQUARE]},
        ],
    }


def write_split(source, folder="train", document=None):
    """Writes a split: two images, 12 high and 10 wide, of the values 10 and 20."""
    images = source / "syntax" / folder / "images"
    annotations = source / "syntax" / folder / "annotations"
    images.mkdir(parents=True)
    annotations.mkdir()
    for name, value in (("1.png", 10), ("2.png", 20)):
        assert cv2.imwrite(str(images / name), draw_image(value))
    (annotations / f"{folder}.json").write_text(json.dumps(document or coco()))
    return source


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---- Masks ---------------------------------------------------------------------------------------


def test_mask_holds_the_polygon_and_its_outline():
    expected = np.zeros((12, 10), np.uint8)
    expected[3:9, 2:7] = 255
    np.testing.assert_array_equal(arcade.draw_mask([SQUARE], 12, 10), expected)


def test_mask_truncates_coordinates():
    fractions = [value + 0.99 for value in SQUARE]
    np.testing.assert_array_equal(
        arcade.draw_mask([fractions], 12, 10), arcade.draw_mask([SQUARE], 12, 10)
    )


def test_mask_is_the_union_of_overlapping_polygons():
    other = [4, 5, 9, 5, 9, 10, 4, 10]
    union = arcade.draw_mask([SQUARE], 12, 10) | arcade.draw_mask([other], 12, 10)
    mask = arcade.draw_mask([SQUARE, other], 12, 10)
    np.testing.assert_array_equal(mask, union)
    assert mask[6, 5] == 255


def test_mask_is_clipped_at_the_far_border():
    mask = arcade.draw_mask([[8, 10, 10, 10, 10, 12, 8, 12]], 12, 10)
    assert np.argwhere(mask).tolist() == [[10, 8], [10, 9], [11, 8], [11, 9]]


# ---- A prepared data set -------------------------------------------------------------------------


def test_examples_follow_the_annotation_file(tmp_path):
    builder = arcade.prepare(str(write_split(tmp_path / "a")), str(tmp_path / "tfds"))
    examples = list(builder.as_data_source("train"))
    assert [example["name"] for example in examples] == [b"1.png", b"2.png"]
    for example, value in zip(examples, (10, 20), strict=True):
        np.testing.assert_array_equal(example["image"], draw_image(value)[..., None])
    first, second = (example["mask"] for example in examples)
    assert first.dtype == second.dtype == np.uint8
    np.testing.assert_array_equal(first[..., 0], arcade.draw_mask([SQUARE], 12, 10))
    assert np.argwhere(second[..., 0] == 255).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert second.sum() == 4 * 255


def test_polygons_of_one_image_are_united(tmp_path):
    document, corners = coco(), [[8, 0, 9, 0, 9, 1], [8, 11, 9, 11, 9, 10]]
    document["annotations"].append({"id": 72, "image_id": 7, "segmentation": corners})
    source = write_split(tmp_path / "a", document=document)
    mask = arcade.prepare(str(source), str(tmp_path / "tfds")).as_data_source("train")[0]["mask"]
    expected = np.zeros((12, 10), np.uint8)
    expected[3:9, 2:7] = 255
    expected[[0, 0, 1, 11, 11, 10], [8, 9, 9, 8, 9, 9]] = 255
    np.testing.assert_array_equal(mask[..., 0], expected)


def test_only_the_splits_that_are_there(tmp_path):
    source = write_split(write_split(tmp_path / "a", "val"), "test")
    builder = arcade.prepare(str(source), str(tmp_path / "tfds"))
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "validation": 2,
        "test": 2,
    }


def test_rgb_files_become_grey(tmp_path):
    source = write_split(tmp_path / "a")
    rgb = np.dstack([np.arange(120, dtype=np.uint8).reshape(12, 10)] * 3)
    assert cv2.imwrite(str(source / "syntax/train/images/1.png"), rgb)
    builder = arcade.prepare(str(source), str(tmp_path / "tfds"))
    np.testing.assert_array_equal(builder.as_data_source("train")[0]["image"], rgb[..., :1])


def test_data_source_survives_pickling(tmp_path):
    builder = arcade.prepare(str(write_split(tmp_path / "a")), str(tmp_path / "tfds"))
    copy = pickle.loads(pickle.dumps(builder.as_data_source("train")))
    assert copy[1]["name"] == b"2.png"


def test_unchanged_source_is_not_prepared_again(tmp_path, monkeypatch):
    source = write_split(tmp_path / "a")
    first = arcade.prepare(str(source), str(tmp_path / "tfds"))
    monkeypatch.setattr(arcade.images, "read_grey", pytest.fail)
    second = arcade.prepare(str(source), str(tmp_path / "tfds"))
    assert second.data_dir == first.data_dir
    assert len(second.as_data_source("train")) == 2


def change_annotation(source):
    path = source / "syntax/train/annotations/train.json"
    path.write_text(
        path.read_text().replace("[0, 0, 1, 0, 1, 1, 0, 1]", "[0, 0, 2, 0, 2, 2, 0, 2]")
    )


def change_image(source):
    path = source / "syntax/train/images/2.png"
    assert cv2.imwrite(str(path), draw_image(30))
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize(
    ("change", "pixels", "value"), [(change_annotation, 9, 20), (change_image, 4, 30)]
)
def test_changed_source_is_prepared_anew(tmp_path, change, pixels, value):
    source = write_split(tmp_path / "a")
    before = arcade.prepare(str(source), str(tmp_path / "tfds")).as_data_source("train")[1]
    assert (np.count_nonzero(before["mask"]), before["image"].max()) == (4, 20)
    change(source)
    after = arcade.prepare(str(source), str(tmp_path / "tfds")).as_data_source("train")[1]
    assert (np.count_nonzero(after["mask"]), after["image"].max()) == (pixels, value)


def test_interrupted_preparation_is_begun_anew(tmp_path, monkeypatch):
    source = write_split(tmp_path / "a")

    draws = iter([arcade.draw_mask])  # the second image finds none left

    def interrupted(*args):
        for draw in draws:
            return draw(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(arcade, "draw_mask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            arcade.prepare(str(source), str(tmp_path / "tfds"))
    assert files_below(tmp_path / "tfds") == []
    assert len(arcade.prepare(str(source), str(tmp_path / "tfds")).as_data_source("train")) == 2


def test_second_of_two_runs_takes_what_the_first_wrote(tmp_path, monkeypatch):
    source, data_dir = write_split(tmp_path / "a"), str(tmp_path / "tfds")
    draw_mask = arcade.draw_mask

    def overtaken(*args):
        monkeypatch.setattr(arcade, "draw_mask", draw_mask)
        arcade.prepare(str(source), data_dir)
        return draw_mask(*args)

    monkeypatch.setattr(arcade, "draw_mask", overtaken)
    assert len(arcade.prepare(str(source), data_dir).as_data_source("train")) == 2


def test_image_without_annotation_is_ignored_with_a_warning(tmp_path, caplog):
    source = write_split(tmp_path / "a")
    shutil.copy(source / "syntax/train/images/1.png", source / "syntax/train/images/9.png")
    builder = arcade.prepare(str(source), str(tmp_path / "tfds"))
    assert len(builder.as_data_source("train")) == 2
    assert "1 images without annotation are ignored, the first is 9.png" in caplog.text


def test_prepares_without_noise(tmp_path, capfd, caplog):
    arcade.prepare(str(write_split(tmp_path / "a")), str(tmp_path / "tfds"))
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_data_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the prepared data set to .*file"):
        arcade.prepare(str(write_split(tmp_path / "a")), str(tmp_path / "file" / "tfds"))


# ---- Mistakes in the source ----------------------------------------------------------------------


def edit(function):
    """Makes a mistake that is one edit of the annotation document."""

    def make(source):
        path = source / "syntax/val/annotations/val.json"
        document = json.loads(path.read_text())
        function(document)
        path.write_text(json.dumps(document))

    return make


def polygon(part):
    return edit(lambda document: document["annotations"][1].update(segmentation=[part]))


def overwrite(name, content):
    return lambda source: (source / "syntax/val" / name).write_bytes(content)


def remove(name):
    def make(source):
        path = source / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return make


JSON = "annotations/val.json"
IMAGES, ANNOTATIONS = "images", "annotations"
MISTAKES = {
    "no source": (
        lambda source: shutil.rmtree(source),
        ["config.data.source=", "no folder syntax/"],
    ),
    "no syntax": (remove("syntax"), ["config.data.source=", "no folder syntax/"]),
    "no split": (
        lambda source: [remove(f"syntax/{name}")(source) for name in ("train", "val")],
        ["syntax has none of the folders train, val and test"],
    ),
    "no annotation file": (remove(f"syntax/val/{JSON}"), [f"val/{JSON} is missing"]),
    "no image folder": (remove("syntax/val/images"), ["val/images is missing"]),
    "no JSON": (
        overwrite(JSON, b'{"images": ['),
        [f"val/{JSON} is not readable as JSON", "line 1"],
    ),
    "binary JSON": (overwrite(JSON, b"\xff\xfe\x00"), [f"val/{JSON} is not readable as JSON"]),
    "nested JSON": (
        overwrite(JSON, b"[" * 10**6),
        [f"val/{JSON} is not readable as JSON", "restore the file"],
    ),
    "name with a null": (
        edit(lambda d: d[IMAGES][0].update(file_name="1\0.png")),
        [f"val/{JSON}: image id 7 has the file_name '1\\x00.png'", "bare name"],
    ),
    "coordinate beyond numbers": (
        polygon([10**400, 1, 2, 2, 3, 3]),
        ["annotation 71 of 1.png (id 7)", "a coordinate of which is too large"],
    ),
    "a list": (overwrite(JSON, b"[1]"), [f"val/{JSON}: [1] has no valid field 'images'"]),
    "no images key": (edit(lambda d: d.pop(IMAGES)), [f"val/{JSON}", "no valid field 'images'"]),
    "no annotations key": (
        edit(lambda d: d.pop(ANNOTATIONS)),
        [f"val/{JSON}", "no valid field 'annotations'"],
    ),
    "no images": (edit(lambda d: d[IMAGES].clear()), [f"val/{JSON} lists no images"]),
    "image without id": (
        edit(lambda d: d[IMAGES][0].pop("id")),
        [f"val/{JSON}", "1.png", "no valid field 'id'"],
    ),
    "height as text": (
        edit(lambda d: d[IMAGES][0].update(height="12")),
        [f"val/{JSON}", "'id': 7", "no valid field 'height'"],
    ),
    "annotation without image_id": (
        edit(lambda d: d[ANNOTATIONS][0].pop("image_id")),
        [f"val/{JSON}", "'id': 70", "no valid field 'image_id'"],
    ),
    "missing image": (
        remove("syntax/val/images/2.png"),
        [f"val/{JSON}: image id 3: ", "val/images/2.png", "No such file"],
    ),
    "dangling link": (
        lambda source: [
            remove("syntax/val/images/2.png")(source),
            (source / "syntax/val/images/2.png").symlink_to("gone.png"),
        ],
        [f"val/{JSON}: image id 3: ", "val/images/2.png", "No such file"],
    ),
    "image elsewhere": (
        edit(lambda d: d[IMAGES][0].update(file_name="../../train/images/1.png")),
        [f"val/{JSON}: image id 7 has the file_name '../../train/images/1.png'", "bare name"],
    ),
    "empty image": (
        overwrite("images/2.png", b""),
        [f"val/{JSON}: image id 3: ", "val/images/2.png (0 bytes) is damaged or no image"],
    ),
    "damaged image": (
        overwrite("images/2.png", b"\x89PNG\r\n\x1a\n"),
        [f"val/{JSON}: image id 3: ", "val/images/2.png (8 bytes) is damaged or no image"],
    ),
    "other size": (
        edit(lambda d: d[IMAGES][0].update(width=12, height=10)),
        [f"val/{JSON}: image id 7 is 12 x 10", "val/images/1.png is 10 x 12"],
    ),
    "unknown image": (
        edit(lambda d: d[ANNOTATIONS][0].update(image_id=99)),
        [f"val/{JSON}: annotation 70 belongs to image id 99", "not among the images"],
    ),
    "no polygon": (
        edit(lambda d: d[ANNOTATIONS].pop(1)),
        [f"val/{JSON}: image 1.png (id 7) has no polygon"],
    ),
    "empty segmentation": (
        edit(lambda d: d[ANNOTATIONS][1].update(segmentation=[])),
        [f"val/{JSON}: annotation 71 of 1.png (id 7)", "segmentation []", "list of polygons"],
    ),
    "RLE": (
        edit(lambda d: d[ANNOTATIONS][1].update(segmentation={"counts": "a", "size": [12, 10]})),
        [f"val/{JSON}: annotation 71 of 1.png (id 7)", "'counts'", "list of polygons"],
    ),
    "two points": (polygon([1, 1, 2, 2]), ["annotation 71", "4 coordinates", "at least 3 points"]),
    "odd": (polygon([1, 1, 2, 2, 3, 3, 4]), ["annotation 71", "7 coordinates", "x and y"]),
    "text": (polygon([1, 1, 2, "2", 3, 3]), ["annotation 71 of 1.png (id 7)", "list of numbers"]),
    "right of the image": (
        polygon([1, 1, 10.5, 2, 3, 3]),
        [f"val/{JSON}: annotation 71 of 1.png (id 7)", "(10.5, 2) outside", "10 wide and 12 high"],
    ),
    "below the image": (polygon([1, 1, 2, 12.1, 3, 3]), ["annotation 71", "(2, 12.1) outside"]),
    "above the image": (polygon([1, -0.1, 2, 2, 3, 3]), ["annotation 71", "(1, -0.1) outside"]),
    "NaN": (polygon([1, 1, float("nan"), 2, 3, 3]), ["annotation 71", "(nan, 2) outside"]),
    "same file name": (
        edit(lambda d: d[IMAGES][1].update(file_name="1.png")),
        [f"val/{JSON}: file_name 1.png occurs twice", "id 3"],
    ),
    "same image id": (
        edit(lambda d: d[IMAGES][1].update(id=7)),
        [f"val/{JSON}: image id 7 occurs twice", "2.png"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_sentence_and_nothing_is_written(tmp_path, mistake):
    make, parts = MISTAKES[mistake]
    source = write_split(write_split(tmp_path / "a"), "val")
    make(source)
    with pytest.raises(UserError) as caught:
        arcade.prepare(str(source), str(tmp_path / "tfds"))
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message
    assert not (tmp_path / "tfds").exists()


def test_points_on_the_border_are_inside(tmp_path):
    source = write_split(tmp_path / "a", "val")
    polygon([0, 0, 10, 0, 10, 12, 0, 12])(source)
    mask = arcade.prepare(str(source), str(tmp_path / "tfds")).as_data_source("validation")[0]
    assert np.all(mask["mask"] == 255)


# ---- The official archive ------------------------------------------------------------------------


@contextlib.contextmanager
def served(folder):
    """Serves a folder over HTTP and yields its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def archive(tmp_path):
    """A small archive laid out as the official one, shadow tree included."""
    folder = write_split(tmp_path / "tree" / "arcade")
    (tmp_path / "web").mkdir()
    path = tmp_path / "web" / "arcade.zip"
    with zipfile.ZipFile(path, "w") as file:
        for each in files_below(folder):
            file.write(each, each.relative_to(tmp_path / "tree"))
        file.writestr("__MACOSX/arcade/syntax/train/._train.json", b"shadow")
        file.writestr("arcade/stenosis/train/annotations/train.json", b"other task")
    return path


def test_official_archive_is_downloaded_once_and_leaves_only_the_data_set(
    tmp_path, archive, monkeypatch
):
    monkeypatch.setattr(arcade, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    with served(archive.parent) as address:
        monkeypatch.setattr(arcade, "URL", f"{address}/arcade.zip")
        first = arcade.prepare("", str(tmp_path / "tfds"))
    second = arcade.prepare("", str(tmp_path / "tfds"))  # the server is gone
    assert second.data_dir == first.data_dir
    assert [example["name"] for example in second.as_data_source("train")] == [b"1.png", b"2.png"]
    assert {path.parent for path in files_below(tmp_path / "tfds")} == {first.data_path}


def assert_download_fails(tmp_path, match):
    with pytest.raises(UserError, match=match) as caught:
        arcade.prepare("", str(tmp_path / "tfds"))
    assert arcade.URL in str(caught.value)
    assert "by hand" in str(caught.value)
    assert "config.data.source" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files_below(tmp_path / "tfds") == []


def test_archive_with_another_checksum_is_refused(tmp_path, archive, monkeypatch):
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    with served(archive.parent) as address:
        monkeypatch.setattr(arcade, "URL", f"{address}/arcade.zip")
        assert_download_fails(tmp_path, f"{found} and not {arcade.SHA256}")


def test_archive_that_is_not_there_is_a_user_error(tmp_path, monkeypatch):
    with served(tmp_path) as address:
        monkeypatch.setattr(arcade, "URL", f"{address}/arcade.zip")
        assert_download_fails(tmp_path, "HTTP code: 404")


def test_no_network_is_a_user_error(tmp_path, monkeypatch):
    with socket.socket() as held:  # Nobody else has the port, and nobody listens at it.
        held.bind(("127.0.0.1", 0))
        monkeypatch.setattr(arcade, "URL", f"http://127.0.0.1:{held.getsockname()[1]}/arcade.zip")
        assert_download_fails(tmp_path, "refused")


# ---- The real data -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(real_arcade):
    return arcade.prepare(ARCADE, str(real_arcade))


@pytest.mark.arcade
def test_real_masks_have_the_published_bounding_boxes(real):
    boxes = os.path.join(ARCADE, "reference_boxes_train.json")
    if not os.path.exists(boxes):
        pytest.skip(f"{boxes}, the boxes that TPRNet's authors published, is not there")
    with open(boxes) as file:
        published = json.load(file)
    masks_alone = {"image": tfds.decode.SkipDecoding()}
    train = real.as_data_source("train", decoders=masks_alone)
    assert len(train) == len(published) == 1000
    different = {}
    for example in train:
        rows, columns = np.nonzero(example["mask"][..., 0])
        box = {"height": int(np.ptp(rows)) + 1, "width": int(np.ptp(columns)) + 1}
        if box != published[example["name"].decode()]:
            different[example["name"].decode()] = (box, published[example["name"].decode()])
    print(different)
    assert len(different) <= 2


@pytest.mark.arcade
def test_real_images_are_those_of_the_files(real):
    validation = real.as_data_source("validation")
    names = [example["name"].decode() for example in validation]
    folder = os.path.join(ARCADE, "syntax", "val", "images")
    assert sorted(names) == sorted(os.listdir(folder))
    assert len(names) == 200
    for name, example in zip(names, validation, strict=True):
        stored = cv2.imread(os.path.join(folder, name), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(example["image"][..., 0], stored)
        assert set(np.unique(example["mask"]).tolist()) == {0, 255}
