import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tprnet_jax.method import losses
from tprnet_jax.models.losses import cross_entropy, soft_dice

LN3 = math.log(3)  # The difference of logits that makes the foreground 3/4 likely.


def _pixels(differences, mask):
    """Logits and mask of one image, a row of pixels, from the logits' differences."""
    foreground = jnp.array(differences, jnp.float32).reshape(1, 1, -1, 1)
    logits = jnp.concatenate([jnp.zeros_like(foreground), foreground], axis=-1)
    return logits, jnp.array(mask, jnp.float32).reshape(1, 1, -1, 1)


@pytest.mark.parametrize(
    ("differences", "mask", "value"),
    [
        ([0, 0], [0, 1], math.log(2)),
        ([LN3], [1], -math.log(3 / 4)),
        ([LN3], [0], -math.log(1 / 4)),
        ([LN3, -LN3, LN3, 0], [1, 0, 0, 1], -math.log(9 / 16 * 1 / 4 * 1 / 2) / 4),
    ],
)
def test_cross_entropy_by_hand(differences, mask, value):
    assert cross_entropy(*_pixels(differences, mask)) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    ("differences", "mask", "value"),
    [
        ([0, 0], [0, 1], -(2 * 0.5 + 1e-5) / (1 + 1 + 1e-5)),
        ([LN3, -LN3, LN3, 0], [1, 0, 0, 1], -(2 * 1.25 + 1e-5) / (2.25 + 2 + 1e-5)),
        ([LN3, LN3], [0, 0], -1e-5 / (1.5 + 1e-5)),
    ],
)
def test_soft_dice_by_hand(differences, mask, value):
    assert soft_dice(*_pixels(differences, mask)) == pytest.approx(value, rel=1e-6)


def test_soft_dice_pools_the_batch():
    logits, mask = _pixels([LN3, -LN3, LN3, 0], [1, 0, 0, 1])
    pooled = soft_dice(logits.reshape(2, 1, 2, 2), mask.reshape(2, 1, 2, 1))
    assert pooled == pytest.approx(-(2.5 + 1e-5) / (4.25 + 1e-5), rel=1e-6)


def test_soft_dice_of_images_counts_them_alike():
    logits, mask = _pixels([LN3, -LN3, LN3, 0], [1, 0, 0, 1])
    of_images = soft_dice(logits.reshape(2, 1, 2, 2), mask.reshape(2, 1, 2, 1), True)
    each = [(1.5 + 1e-5) / (2 + 1e-5), (1 + 1e-5) / (2.25 + 1e-5)]
    assert of_images == pytest.approx(-sum(each) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("differences", "mask", "value"),
    [
        ([60, -60], [1, 0], -1),
        ([-60, -60], [0, 0], -1),
        ([60, -60], [0, 1], 60),
        ([60, 60], [0, 0], 60),
    ],
    ids=["right", "rightly empty", "wrong", "wrongly full"],
)
def test_segmentation_loss_at_its_extremes(differences, mask, value):
    logits, mask = _pixels(differences, mask)
    assert losses.segmentation_loss(logits, mask) == pytest.approx(value, abs=1e-5)
    assert np.isfinite(jax.grad(losses.segmentation_loss)(logits, mask)).all()


def test_patch_losses_are_those_of_the_patches_one_by_one():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(5, 3, 4, 2)), jnp.float32)
    masks = jnp.asarray(rng.integers(0, 2, (5, 3, 4, 1)), jnp.float32).at[2].set(0)
    found = losses.patch_losses(logits, masks)
    assert found.shape == (5,)
    for index, value in enumerate(found):
        alone = losses.segmentation_loss(logits[index : index + 1], masks[index : index + 1])
        assert value == pytest.approx(float(alone), rel=1e-6)


def test_the_dice_can_be_left_out():
    logits, mask = jnp.zeros((1, 2, 2, 2)), jnp.ones((1, 2, 2, 1))
    assert losses.segmentation_loss(logits, mask, with_dice=False) == pytest.approx(np.log(2))
    assert losses.patch_losses(logits, mask, with_dice=False) == pytest.approx([np.log(2)])
