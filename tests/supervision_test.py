import json

import golden_baselines
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import transform

from tprnet_jax.method.losses import segmentation_loss
from tprnet_jax.models.losses import cross_entropy, soft_dice
from tprnet_jax.models.supervision import deep_supervision


@pytest.fixture(scope="module")
def units():
    """nnU-Net's own losses, with their logits and mask, `(2, 16, 16, 2)` and `(2, 16, 16, 1)`."""
    facts = json.loads((golden_baselines.FOLDER / "golden_units.json").read_text())["losses"]
    logits = 2 * golden_baselines.values("logits", (2, 2, 16, 16)).transpose(0, 2, 3, 1)
    mask = golden_baselines.values("mask", (2, 1, 16, 16)).transpose(0, 2, 3, 1) > 0.5
    assert mask.sum() == facts["foreground"]
    return facts, jnp.float32(logits), jnp.float32(mask)


def test_its_parts_are_those_of_nnunet(units):
    facts, logits, mask = units
    assert cross_entropy(logits, mask) == pytest.approx(facts["ce_part"], rel=1e-6)
    pooled, of_images = soft_dice(logits, mask), soft_dice(logits, mask, of_images=True)
    assert pooled == pytest.approx(facts["dice_part_batch_dice_True"], rel=1e-6)
    assert of_images == pytest.approx(facts["dice_part_batch_dice_False"], rel=1e-6)


def test_half_the_resolution_counts_half_and_the_coarsest_nothing(units):
    facts, logits, mask = units
    mask = mask.repeat(2, axis=1).repeat(2, axis=2)
    outputs = {"logits_1": logits, "logits_2": 7 * logits[:, ::2, ::2]}
    expected = facts["dc_ce_batch_dice_True"] / 2
    assert deep_supervision(outputs, mask, segmentation_loss) == pytest.approx(expected, rel=1e-6)


def test_with_the_main_loss_it_is_in_proportion_to_nnunets_total():
    """Four outputs: weights 1, 1/2, 1/4 and 0, divided by their sum, 7/4."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (2, 32, 48, 1)).astype(np.float32)
    outputs = {
        f"logits_{stage}": rng.normal(size=(2, 32 >> stage, 48 >> stage, 2)).astype(np.float32)
        for stage in range(4)
    }
    total = 0
    for logits, weight in zip(outputs.values(), np.array([4, 2, 1, 0]) / 7, strict=True):
        # Order 0 is the nearest pixel.
        size = len(mask), *logits.shape[1:3], 1
        labels = transform.resize(mask, size, order=0, mode="edge", anti_aliasing=False)
        total += weight * (cross_entropy(logits, labels) + soft_dice(logits, labels))
    main = outputs.pop("logits_0")
    coarser = deep_supervision(outputs, mask, segmentation_loss)
    assert segmentation_loss(main, mask) + coarser == pytest.approx(7 / 4 * float(total), rel=1e-6)


def test_a_mask_of_another_size_is_padded_like_its_image():
    """To 8 x 16 for four stages, with its border; the second label of a square is the nearest."""
    mask = np.zeros((1, 7, 9, 1), np.float32)
    mask[:, -1], mask[:, :, -1] = 1, 1
    labels = np.array([[0, 0, 0, 0, 1, 1, 1, 1]] * 3 + [[1] * 8], np.float32)[None, ..., None]
    logits = np.random.default_rng(0).normal(size=(1, 4, 8, 2)).astype(np.float32)
    expected = (cross_entropy(logits, labels) + soft_dice(logits, labels)) / 2
    outputs = {"logits_1": logits, "logits_2": logits[:, ::2, ::2]}
    found = deep_supervision(outputs, mask, segmentation_loss)
    assert found == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("outputs", [{}, {"logits_1": jnp.ones((1, 4, 4, 2))}])
def test_one_coarser_output_or_none_adds_nothing(outputs):
    assert deep_supervision(outputs, jnp.ones((1, 8, 8, 1)), segmentation_loss) == 0
