import dataclasses
import json
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from scipy.special import logit

import tprnet_jax
from tprnet_jax import config as configuration
from tprnet_jax import convert, segmenter
from tprnet_jax.data import scene
from tprnet_jax.method import inference
from tprnet_jax.models.networks import NETWORKS
from tprnet_jax.runtime import devices
from tprnet_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def model(trained):
    return tprnet_jax.load(trained[1])


@pytest.fixture(scope="module")
def image():
    return scene.draw(0, 5, 64)[0]


def test_a_run_is_loaded_with_its_configuration_and_the_size_it_was_trained_on(model, trained):
    assert model.cascade == configuration.cascade(trained[0])
    assert model.side == 64
    assert model.name.startswith("step ")


def test_the_mask_is_what_the_cascade_gives(model, image):
    found = model(image)
    unit = (image / 255).astype(np.float32)[None, ..., None]
    expected = inference.predict(model.cascade, model.params, unit)["final"][0]
    assert (found.mask.dtype, found.probability.dtype) == (bool, np.float32)
    np.testing.assert_array_equal(found.mask, expected > 0.5)
    np.testing.assert_allclose(found.probability, expected, atol=1e-6)
    assert 0 < found.mask.sum() < found.mask.size


def test_a_temperature_of_two_halves_the_margin_and_leaves_the_mask(model, image):
    plain = model(image)
    tempered = model._replace(temperature=2.0)(image)
    np.testing.assert_array_equal(tempered.mask, plain.mask)
    np.testing.assert_allclose(logit(tempered.probability), logit(plain.probability) / 2, atol=1e-5)


def test_a_batch_gives_what_each_image_gives_alone(model):
    images = np.stack([scene.draw(0, index, 64)[0] for index in range(3)])
    together = model(images)
    assert together.mask.shape == (3, 64, 64)
    for index, each in enumerate(images):
        np.testing.assert_array_equal(together.mask[index], model(each).mask)


def test_types_of_pixels_mean_the_same_picture(model, image):
    """8 bits of 255, floats of 1; 16 bits are stretched over their own range."""
    full = np.array(image)
    full[0, :2] = 0, 255
    expected = model(full).probability
    for same in (full / 255, (full / 255).astype(np.float32), full.astype(np.uint16) * 16 + 3):
        np.testing.assert_allclose(model(same).probability, expected, atol=1e-5)


def test_an_image_is_seen_at_the_size_of_the_training_and_given_back_at_its_own(model, image):
    assert model.seen((128, 96)) == (64, 48)
    assert model.seen((40, 33)) == (64, 53)
    assert model.seen((128, 96), scale=1) == (128, 96)
    assert model.seen((128, 96), scale=0.25) == (32, 24)
    assert model._replace(side=None).seen((128, 96)) == (128, 96)
    doubled = image.repeat(2, axis=0).repeat(2, axis=1)
    found = model(doubled)
    assert found.mask.shape == (128, 128)
    # Squares of equal pixels shrink to the image itself; its logits are then enlarged.
    margin = np.log(model(image).probability) - np.log1p(-model(image).probability)
    enlarged = cv2.resize(margin, (128, 128), interpolation=cv2.INTER_LINEAR)
    clear = np.abs(enlarged) > 1e-3
    np.testing.assert_array_equal(found.mask[clear], enlarged[clear] > 0)


def test_shrinking_averages_and_enlarging_interpolates():
    image = np.array([[0, 1], [2, 5]], np.float32)
    np.testing.assert_array_equal(segmenter.resized(image, (1, 1)), [[2]])
    np.testing.assert_allclose(segmenter.resized(image[:1], (1, 4)), [[0, 0.25, 0.75, 1]])
    assert segmenter.resized(image, (2, 2)) is image


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((64, 64, 3), np.uint8), r"not \(64, 64, 3\); .*\.read_grey reads colour as grey"),
        (np.zeros((64, 64, 3, 1), np.uint8), r"must be \(height, width\) or .* not \(64, 64, 3, 1"),
        (np.zeros((64, 31), np.uint8), r"is \(64, 31\); at least 32 x 32 is needed"),
        (np.full((64, 64), 2.0), r"is float64 from 2.0 to 2.0; give"),
        (np.full((64, 64), np.nan), r"is float64 from nan to nan; give"),
        (np.zeros((64, 64), bool), r"is bool from False to False; give"),
        (np.zeros((64, 64), complex), r"is complex128"),
    ],
)
def test_arrays_that_are_no_angiogram_are_named(model, images, message):
    with pytest.raises(ValueError, match=message):
        model(images)


def test_no_images_give_no_masks(model):
    assert model(np.zeros((0, 64, 64), np.uint8)).mask.shape == (0, 64, 64)


# ---- Model files ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_path(trained, tmp_path_factory):
    config, workdir = trained[0].copy_and_resolve_references(), trained[1]
    config.convert.output = str(tmp_path_factory.mktemp("model") / "tiny.npz")
    convert.run(config, workdir)
    return config.convert.output


def test_a_model_file_is_the_run_at_half_precision(model, model_path, image):
    found = tprnet_jax.load(model_path)
    assert (found.cascade, found.side) == (model.cascade, 64)
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(np.float32(np.float16(x)), y),
        model.params,
        found.params,
    )
    np.testing.assert_allclose(found(image).probability, model(image).probability, atol=0.01)


def test_a_model_file_names_no_place_of_the_machine_it_was_made_on(model_path, tmp_path):
    with np.load(model_path) as file:
        about = json.loads(str(file["about"]))
    assert about["config"]["data"]["dir"] == ""
    assert "/" not in json.dumps(about).replace("and/or", "")


def test_a_model_file_becomes_a_run_again(trained, model_path, tmp_path):
    config = trained[0].copy_and_resolve_references()
    config.convert.input = model_path
    convert.run(config, tmp_path / "run")
    again, direct = tprnet_jax.load(tmp_path / "run"), tprnet_jax.load(model_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, direct.params)
    assert again.side == 64
    stored = configuration.get_config(tmp_path / "run" / "config.json")
    assert stored.convert.input == ""  # So that it can be exported by --workdir alone.


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent holds no run \(no config\.json\); give the"):
        tprnet_jax.load(tmp_path / "absent")
    with pytest.raises(UserError, match=r"absent\.npz is no model of this project"):
        tprnet_jax.load(tmp_path / "absent.npz")


def test_a_size_that_there_are_no_weights_for_is_of_that_image_alone(model):
    """U-Mamba's "enc" has weights for images of 64 x 64 and what is padded to as much."""
    net = NETWORKS["umamba_enc"](channels=(4, 8), size=(64, 64))
    other = model._replace(cascade=dataclasses.replace(model.cascade, global_net=net))
    other.check_size(Path("a.png"), (64, 63), scale=1)
    with pytest.raises(UserError, match=r"^a\.png cannot be segmented: the images are 48 x"):
        other.check_size(Path("a.png"), (48, 64), scale=1)


@pytest.mark.parametrize(
    ("network", "channels"),
    [
        ("unet", (16, 32, 32, 32)),
        ("nnunet", (16, 32, 32, 32)),
        ("resunet", (16, 16, 32)),
        ("coanet", (16, 32, 64, 128)),
        ("dscnet", (16, 16, 16, 16)),
        ("umamba_enc", (16, 32, 32, 32)),
        ("lkm_unet", (16, 16, 32)),
    ],
)
def test_the_memory_named_is_what_xla_allots(model, network, channels):
    """For networks wide enough that their first maps are most of it."""
    config = configuration.default()
    config.model.branches = ("global",)
    config.model.global_net, config.model.global_channels = network, channels
    config.model.global_size = (256, 256)
    cascade = configuration.cascade(config)
    images = jax.ShapeDtypeStruct((1, 256, 256, 1), np.float32)
    shapes = segmenter.param_shapes(cascade)
    program = inference._coarse.lower(cascade, shapes, images).compile()
    sizes = program.memory_analysis()
    allotted = sizes.temp_size_in_bytes + sizes.output_size_in_bytes
    named = model._replace(cascade=cascade).bytes_for((256, 256))
    assert allotted <= named < 2 * allotted
    assert named < devices.free_bytes()
