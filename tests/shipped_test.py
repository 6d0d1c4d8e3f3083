"""The model that comes along: what its card says of it, and what it finds."""

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

import tprnet_jax
from tprnet_jax import config as configuration
from tprnet_jax import predict
from tprnet_jax.data import arcade, images, scene
from tprnet_jax.report import metrics
from tprnet_jax.runtime import model_file

ARCADE = os.environ.get("TPRNET_ARCADE")
CARD = (model_file.SHIPPED.parent / "README.md").read_text()


@pytest.fixture(scope="module")
def model():
    return tprnet_jax.load()


def test_the_card_is_of_this_file():
    about = model_file.read_about(model_file.SHIPPED)
    assert re.search(r"SHA-256 (\w{16})", CARD)[1] == about["sha256"][:16]
    size = model_file.SHIPPED.stat().st_size
    assert f"{size / 1e6:.1f} MB" in CARD
    assert size < 20e6
    assert about["side"] == 512


def test_python_gives_what_predict_writes(model, tmp_path):
    (tmp_path / "in").mkdir()
    drawn = {f"{side}.png": scene.draw(0, side, side)[0] for side in (64, 96)}
    for name, image in drawn.items():
        cv2.imwrite(str(tmp_path / "in" / name), image)
    config = configuration.get_config(model_file.SHIPPED)
    config.predict.input, config.predict.output = str(tmp_path / "in"), str(tmp_path / "out")
    config.predict.outputs = ("mask", "probability")
    config.predict.scale = 1.0
    predict.run(config, model_file.SHIPPED)
    for name, image in drawn.items():
        found = model(image, scale=1)
        for kind, values in (
            ("mask", found.mask * 255),
            ("probability", np.rint(found.probability * 65535)),
        ):
            path = tmp_path / "out" / f"{Path(name).stem}_{kind}.png"
            np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), values)


@pytest.mark.arcade
def test_real_angiograms_are_segmented_as_in_the_evaluation(model):
    """Every tenth validation image, whose mean Dice in the evaluation was 0.8495."""
    folder = Path(ARCADE, "syntax", "val")
    (annotations,) = (folder / "annotations").glob("*.json")
    document = json.loads(annotations.read_text())
    ids = {each["file_name"]: each["id"] for each in document["images"]}
    polygons = {number: [] for number in ids.values()}
    for each in document["annotations"]:
        polygons[each["image_id"]] += each["segmentation"]
    dice = []
    for name in [f"{number}.png" for number in range(1, 201, 10)]:
        truth = arcade.draw_mask(polygons[ids[name]], 512, 512) > 0
        found = model(images.read_grey(folder / "images" / name)).mask
        dice.append(metrics.overlap(found, truth)["dice"])
    assert np.mean(dice) == pytest.approx(0.8495, abs=5e-4)
