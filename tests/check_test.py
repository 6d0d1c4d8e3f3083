import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tprnet_jax import check
from tprnet_jax import config as configuration
from tprnet_jax.runtime.errors import UserError

ARCADE = os.environ.get("TPRNET_ARCADE")

LEFT = np.zeros((4, 8), np.uint8)
LEFT[:, :2] = 255  # 8 of 32 pixels
HALF = np.zeros((4, 8), np.uint8)
HALF[:, :4] = 255  # 16 of 32 pixels, 8 of them LEFT's: Dice 2 * 8 / 24 = 2 / 3


def picture(value, shape=(4, 8)):
    image = np.full(shape, value, np.uint8)
    image[0, 0] = 0
    return image


def write_pair(source, stem, image, mask):
    for name, array in (("images", image), ("masks", mask)):
        (source / name).mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(source / name / f"{stem}.png"), array)


def folder_config(source, **splits):
    """A configuration of a folder with the splits given."""
    (source.parent / "splits.json").write_text(json.dumps(splits))
    config = configuration.default()
    config.data.name, config.data.source = "folder", str(source)
    config.data.folder.splits = str(source.parent / "splits.json")
    return config


def arcade_config(tmp_path, masks):
    """A configuration of a small ARCADE: images of one value, each with a rectangle as mask."""
    images = tmp_path / "arcade" / "syntax" / "train" / "images"
    images.mkdir(parents=True)
    document = {"images": [], "annotations": []}
    for number, (value, right) in enumerate(masks):
        assert cv2.imwrite(str(images / f"{number}.png"), picture(value))
        record = {"id": number, "file_name": f"{number}.png", "height": 4, "width": 8}
        document["images"].append(record)
        corners = [[0, 0, right, 0, right, 3, 0, 3]]
        document["annotations"].append({"image_id": number, "segmentation": corners})
    annotations = images.parent / "annotations"
    annotations.mkdir()
    (annotations / "train.json").write_text(json.dumps(document))
    config = configuration.default()
    config.data.source, config.data.dir = str(tmp_path / "arcade"), str(tmp_path / "tfds")
    return config


def written(workdir):
    return json.loads((workdir / "check.json").read_text())


def test_what_is_reported_of_a_sound_folder(tmp_path, capsys):
    source = tmp_path / "data"
    write_pair(source, "a", picture(32), LEFT)
    write_pair(source, "b", picture(64), HALF // 255)
    write_pair(source, "c", picture(128), LEFT)
    config = folder_config(source, train=["a", "b"], validation=["c"])
    result = check.run(config, tmp_path / "run")
    assert result == written(tmp_path / "run")
    assert result["splits"] == {
        "train": {
            "images": 2,
            "sizes": {"4 x 8": 2},
            "grey": {"min": 0, "mean": 46.5, "max": 64},  # (31 + 62) / 2: one pixel of 32 is black
            "mask_values": {"0 and 255": 1, "0 and 1": 1},
            "foreground": {"min": 0.25, "mean": 0.375, "max": 0.5},
            "empty_masks": [],
        },
        "validation": {
            "images": 1,
            "sizes": {"4 x 8": 1},
            "grey": {"min": 0, "mean": 124, "max": 128},
            "mask_values": {"0 and 255": 1},
            "foreground": {"min": 0.25, "mean": 0.25, "max": 0.25},
            "empty_masks": [],
        },
    }
    explanation = (
        "images: 2 train, 1 validation; 2 of 3 masks holding 0 and 255; 1 of 3 masks holding 0 "
        "and 1"
    )
    assert (result["data"], result["source"]) == ("folder", str(source))
    assert result["explanation"] == explanation
    assert result["fatal"] == result["warnings"] == result["identical_images"] == []
    assert capsys.readouterr().out.splitlines() == [
        "",
        "Split       Images  Height x width  Grey                 Vessel %               "
        "Empty masks",
        "train       2       4 x 8           0.0 / 46.5 / 64.0    25.00 / 37.50 / 50.00  0",
        "validation  1       4 x 8           0.0 / 124.0 / 128.0  25.00 / 25.00 / 25.00  0",
        "Grey (0 to 255) and vessel are least / mean / most.",
        "Mask values of train: 0 and 255 (1), 0 and 1 (1)",
        "Mask values of validation: 0 and 255 (1)",
        explanation,
        f"All of it: {tmp_path / 'run' / 'check.json'}",
    ]


def test_identical_images_are_found_within_and_between_splits(tmp_path):
    source = tmp_path / "data"
    masks = {"a": LEFT, "b": HALF, "c": LEFT, "d": LEFT, "e": LEFT}
    values = {"a": 10, "b": 10, "c": 20, "d": 20, "e": 10}
    for stem, mask in masks.items():
        write_pair(source, stem, picture(values[stem]), mask)
    # The same bytes in another shape are another image.
    write_pair(source, "f", picture(20, (8, 4)), LEFT.T.copy())
    config = folder_config(source, train=["a", "b", "c", "d", "f"], validation=["e"])
    sentence = "train/a.png and validation/e.png are one image, and no run is evaluated on what it"
    with pytest.raises(UserError, match=f"^{sentence}"):
        check.run(config, tmp_path)
    result = written(tmp_path)
    assert len(result["fatal"]) == 1
    assert result["conflicting_duplicates"] == [["a.png", "b.png"]]
    assert result["duplicates"] == [["a.png", "e.png"], ["c.png", "d.png"]]
    assert result["shared_between_splits"] == [["a.png", "e.png"]]
    within, between = ["train", "train"], ["train", "validation"]
    assert result["identical_images"] == [
        {"splits": within, "names": ["a.png", "b.png"], "mask_dice": pytest.approx(2 / 3)},
        {"splits": between, "names": ["a.png", "e.png"], "mask_dice": 1},
        {"splits": within, "names": ["c.png", "d.png"], "mask_dice": 1},
    ]
    assert result["warnings"] == [
        "train/a.png and train/b.png are one image with two masks (Dice 0.667); keep the better "
        "mask",
        "train/a.png and validation/e.png are one image with one mask; remove one of the two",
        "train/c.png and train/d.png are one image with one mask; remove one of the two",
    ]


def test_strange_images_and_masks_are_warnings(tmp_path):
    source = tmp_path / "data"
    write_pair(source, "a", picture(10), LEFT)
    write_pair(source, "b", picture(20), LEFT * 0)
    write_pair(source, "c", np.full((4, 8), 9, np.uint8), 255 - LEFT)
    write_pair(source, "d", picture(40), LEFT)
    (source / "images" / "notes.txt").write_text("")
    result = check.run(folder_config(source, train=["a", "b", "c"]), tmp_path)
    assert result["splits"]["train"]["empty_masks"] == ["b.png"]
    assert result["warnings"] == [
        "1 other files ignored, the first is images/notes.txt",
        "1 images in no split, the first is d",
        "there is no split validation, and training needs it",
        "train: 1 of 3 masks empty: b.png",
        "train: 1 of 3 masks mostly vessel, as if inverted: c.png",
        "train: 1 of 3 images of one grey: c.png",
    ]


def test_sixteen_bits_are_reported_on_the_scale_of_eight(tmp_path):
    source = tmp_path / "data"
    deep = np.full((4, 8), 3000, np.uint16)
    deep[:, :4] = 1000
    write_pair(source, "a", deep, LEFT)
    result = check.run(folder_config(source, train=["a"]), tmp_path)
    assert result["splits"]["train"]["grey"] == {"min": 0, "mean": 127.5, "max": 255}
    assert "1 of 1 images of more than 8 bits" in result["explanation"]


def test_every_problem_is_in_the_file_before_the_error(tmp_path, capsys):
    source = tmp_path / "data"
    for number, stem in enumerate("abcdefg"):
        write_pair(source, stem, picture(10 * number + 10), LEFT)
    (source / "masks" / "a.png").unlink()
    (source / "images" / "b.png").write_bytes(b"damaged")
    (source / "masks" / "b.png").write_bytes(b"")
    assert cv2.imwrite(str(source / "masks" / "c.png"), np.full((8, 4), 255, np.uint8))
    assert cv2.imwrite(str(source / "masks" / "d.png"), np.arange(32, dtype=np.uint8).reshape(4, 8))
    assert cv2.imwrite(str(source / "masks" / "x.png"), LEFT)
    config = folder_config(source)
    config.data.folder.splits = ""
    counted = r"\(fatal: 6, warnings: 0; all in .*check\.json\)"
    with pytest.raises(UserError, match=r"images/a\.png has no mask .*" + counted):
        check.run(config, tmp_path / "run")
    result = written(tmp_path / "run")
    assert result["mask_mismatch"] == ["masks/c.png"]
    assert sorted(result["unreadable"]) == ["images/b.png", "masks/b.png"]
    for fatal, part in zip(
        sorted(result["fatal"], key=lambda sentence: sentence.split()[0][-5]),
        ("images/a.png has no mask", "b.png", "b.png", "c.png", "d.png has the values 0", "x.png"),
        strict=True,
    ):
        assert part in fatal
    assert sum(split["images"] for split in result["splits"].values()) == 3
    printed = capsys.readouterr().out
    assert [sentence for sentence in result["fatal"] if f"Fatal: {sentence}" not in printed] == []


def test_a_folder_that_is_not_there_is_fatal_and_reported(tmp_path):
    config = folder_config(tmp_path / "data", train=["a"])
    with pytest.raises(UserError, match=r"data is no folder"):
        check.run(config, tmp_path / "run")
    result = written(tmp_path / "run")
    assert len(result["fatal"]) == 1
    assert result["splits"] == {}


@pytest.mark.parametrize(("batch", "fatal"), [(1, 0), (2, 1)])
def test_sizes_that_differ_are_fatal_to_batches(tmp_path, batch, fatal):
    source = tmp_path / "data"
    write_pair(source, "a", picture(10), LEFT)
    write_pair(source, "b", picture(10, (8, 4)), LEFT.T.copy())
    config = folder_config(source, train=["a", "b"])
    config.train.batch = batch
    if fatal:
        with pytest.raises(UserError, match=r"2 sizes, from 4 x 8 to 8 x 4 .*batch is 2; set"):
            check.run(config, tmp_path)
    else:
        check.run(config, tmp_path)
    result = written(tmp_path)
    assert result["splits"]["train"]["sizes"] == {"4 x 8": 1, "8 x 4": 1}
    assert len(result["fatal"]) == fatal


@pytest.mark.parametrize(("holdout", "fatal"), [(0, False), (1, True)])
def test_a_batch_larger_than_what_is_left_to_train_on_is_fatal(tmp_path, holdout, fatal):
    source = tmp_path / "data"
    for value in (10, 20, 30):
        write_pair(source, str(value), picture(value), LEFT)
    config = folder_config(source, train=["10", "20", "30"])
    config.train.batch, config.data.holdout = 3, holdout
    if fatal:
        with pytest.raises(UserError, match=r"train\.batch is 3, but there are only 2 images to"):
            check.run(config, tmp_path)
    else:
        check.run(config, tmp_path)


def test_nothing_to_learn_is_fatal(tmp_path):
    source = tmp_path / "data"
    write_pair(source, "a", picture(10), LEFT * 0)
    write_pair(source, "b", picture(20), LEFT)
    with pytest.raises(UserError, match="the 1 training masks are all empty"):
        check.run(folder_config(source, train=["a"], validation=["b"]), tmp_path)


def test_arcade_is_read_as_prepared(tmp_path):
    config = arcade_config(tmp_path, [(10, 1), (20, 3), (10, 3), (20, 3)])
    result = check.run(config, tmp_path / "run")
    assert result["conflicting_duplicates"] == [["0.png", "2.png"]]
    assert result["duplicates"] == [["1.png", "3.png"]]
    assert result["splits"]["train"]["foreground"] == {"min": 0.25, "mean": 0.4375, "max": 0.5}
    assert result["splits"]["train"]["mask_values"] == {"0 and 255": 4}
    assert result["identical_images"][0]["mask_dice"] == pytest.approx(2 / 3)


def test_all_training_images_are_looked_at_whatever_is_held_out(tmp_path):
    config = arcade_config(tmp_path, [(10, 1), (20, 3), (10, 3), (40, 3)])
    config.data.holdout, config.eval.split = 2, "holdout"
    result = check.run(config, tmp_path / "run")
    assert result["splits"]["train"]["images"] == 4
    assert list(result["splits"]) == ["train"]
    assert len(result["warnings"]) == 1  # The twins; a validation split is not needed.
    config.data.holdout = 3
    with pytest.raises(UserError, match=r"holdout is 3, but of the 4 training .* at most 2 can"):
        check.run(config, tmp_path / "run")


def test_an_unusable_arcade_is_fatal_and_reported(tmp_path):
    config = arcade_config(tmp_path, [(10, 1)])
    path = tmp_path / "arcade" / "syntax" / "train" / "images" / "0.png"
    assert cv2.imwrite(str(path), picture(10, (8, 4)))
    with pytest.raises(UserError, match=r"image id 0 is 8 x 4 by its annotation, but .* is 4 x 8"):
        check.run(config, tmp_path / "run")
    (fatal,) = written(tmp_path / "run")["fatal"]
    assert "0.png is 4 x 8; restore the file or correct the annotation" in fatal


def test_phantoms_are_sound(tmp_path):
    config = configuration.default()
    config.data.name, config.data.dir = "phantom", str(tmp_path / "tfds")
    config.data.phantom.size, config.data.phantom.train = 32, 3
    config.data.phantom.validation = 2
    result = check.run(config, tmp_path)
    assert {name: each["images"] for name, each in result["splits"].items()} == {
        "train": 3,
        "validation": 2,
    }
    assert result["fatal"] == result["warnings"] == []


def test_a_mistake_ends_the_command_with_one_sentence(tmp_path):
    command = [sys.executable, "-m", "tprnet_jax.main", "--config=configs/folder.py:1,compact"]
    flags = ["--mode=check", f"--config.data.source={tmp_path}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot read the folder ")
    assert done.stderr.count("\n") == 1
    assert len(written(tmp_path / "run")["fatal"]) == 2


@pytest.mark.arcade
def test_real_arcade_has_five_images_annotated_twice_and_none_in_both_splits(real_arcade, tmp_path):
    config = configuration.default()
    config.data.source, config.data.dir = ARCADE, str(real_arcade)
    result = check.run(config, tmp_path)
    assert result["conflicting_duplicates"] == [
        ["20.png", "214.png"],
        ["168.png", "793.png"],
        ["337.png", "972.png"],
        ["478.png", "887.png"],
        ["501.png", "612.png"],
    ]
    dice = [round(each["mask_dice"], 3) for each in result["identical_images"]]
    assert dice == [0.941, 0.745, 0.906, 0.933, 0.897]
    assert result["shared_between_splits"] == result["duplicates"] == result["fatal"] == []
    assert {name: each["images"] for name, each in result["splits"].items()} == {
        "train": 1000,
        "validation": 200,
    }
    assert {size for each in result["splits"].values() for size in each["sizes"]} == {"512 x 512"}
