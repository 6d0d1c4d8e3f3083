"""A network with running statistics, dropout and auxiliary outputs in GlobalNet's place."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tprnet_jax.method import step
from tprnet_jax.method.state import Trainer, initial_state, update
from tprnet_jax.models.parts import BatchNorm


class Net(nn.Module):
    """One layer, whose mean over channels is also to be the mask."""

    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = BatchNorm(name="norm")(nn.Conv(3, (1, 1), name="conv")(x), train)
        self.sow("auxiliary", "mean", x.mean(-1, keepdims=True))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Conv(2, (1, 1), name="head")(x)

    def auxiliary_loss(self, outputs, mask):
        return jnp.square(outputs["mean"] - mask).mean()


@pytest.fixture(scope="module")
def trainer(tiny):
    """Large steps of pure decay beside the gradient, which is clipped to nearly nothing."""
    cascade = dataclasses.replace(tiny, global_net=Net(), local_net=None, focal_net=None)
    return Trainer(cascade, optax.add_decayed_weights(0.5), lambda step: 0.1, clip_norm=1e-12)


def _masks(images):
    return np.where(images > 150, 255, 0).astype(np.uint8)


def test_running_statistics_follow_the_batch_and_nothing_else(trainer, tiny_images):
    state = initial_state(trainer, 0)
    before = jax.device_get(state.params["global"])
    after, scalars = step.train_step(trainer, state, tiny_images, _masks(tiny_images), False)
    after = jax.device_get(after.params["global"])
    x = tiny_images / 255 @ before["conv"]["kernel"][0, 0] + before["conv"]["bias"]
    np.testing.assert_allclose(after["norm"]["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(after["norm"]["var"], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(after["norm"]["scale"], 0.95)  # The decay of all else.
    assert scalars["loss"] == pytest.approx(scalars["loss_global"] + scalars["loss_auxiliary"])
    mean = ((x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)).mean(-1, keepdims=True)
    expected = np.square(mean - _masks(tiny_images) / 255).mean()
    assert scalars["loss_auxiliary"] == pytest.approx(expected, rel=1e-4)


def test_the_norm_of_the_gradient_leaves_the_statistics_out(trainer):
    state = initial_state(trainer, 0)
    gradients = jax.tree.map(lambda p: jnp.zeros((1, *p.shape)), {"global": state.params["global"]})
    gradients["global"]["norm"]["mean"] += 7
    gradients["global"]["norm"]["bias"] += 2
    _, scalars = update(trainer, state, gradients, jnp.float32(0))
    assert scalars["gradient_norm"] == pytest.approx(np.sqrt(3 * 2**2))


def test_devices_add_their_gradients_and_share_the_mean_of_their_statistics(trainer):
    state = initial_state(trainer, 0)
    gradients = jax.tree.map(lambda p: jnp.ones((2, *p.shape)), {"global": state.params["global"]})
    after, scalars = update(trainer, state, gradients, jnp.float32(0))
    np.testing.assert_allclose(after.params["global"]["norm"]["mean"], -0.1)
    # All of 1 x 3 + 3 weights, 3 + 3 of the normalisation, 3 x 2 + 2 of the logits, each twice.
    assert scalars["gradient_norm"] == pytest.approx(2 * np.sqrt(20))


def test_dropout_differs_from_step_to_step(trainer, tiny_images):
    cascade = dataclasses.replace(trainer.cascade, global_net=Net(dropout=0.5))
    trainer = trainer._replace(cascade=cascade, schedule=lambda step: 0.0)
    state, losses = initial_state(trainer, 0), []
    for _ in range(2):
        state, scalars = step.train_step(trainer, state, tiny_images, _masks(tiny_images), False)
        losses.append(float(scalars["loss_global"]))
    assert losses[0] != losses[1]
