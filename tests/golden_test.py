"""The released system here against golden.npz, which PyTorch wrote; see make_golden.py."""

import runpy
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tprnet_jax import config as configuration
from tprnet_jax.method import cascade, inference, topology
from tprnet_jax.method.state import State
from tprnet_jax.method.step import train_step
from tprnet_jax.method.windows import Patches, empty_canvas
from tprnet_jax.models.weights import from_torch, to_torch
from tprnet_jax.train import make_trainer

TESTS = Path(__file__).parent
# Largest gradient of a tensor whose gradient should be zero, relative to its kernel's. Sums over
# 65536 pixels that cancel leave 1.5e-5 of it in PyTorch; a gradient that is there is about 1.
NOISE = 1e-4
TERMS = ("loss_global", "loss_local", "loss_global_local", "loss_final", "loss_focal", "loss")


@pytest.fixture(scope="module")
def golden():
    with np.load(TESTS / "golden.npz") as file:
        return dict(file)


# ---- Shared with the live comparison -------------------------------------------------------------


def released_config(global_channels, local_channels, focal_channels, sizes):
    """The preset with other sizes."""
    config = runpy.run_path(str(TESTS.parent / "configs/tprnet_released.py"))["get_config"]()
    config.model.global_channels = tuple(map(int, global_channels))
    config.model.local_channels = tuple(map(int, local_channels))
    config.model.focal_channels = tuple(map(int, focal_channels))
    config.model.window, config.model.patch, config.model.pixels_per_patch = map(int, sizes)
    config.model.chunk = 8
    return config


class Steps(NamedTuple):
    """Three training steps on one image, each an epoch of its own.

    `gradient` and `after`, the weights after the last step, are under PyTorch's names; `first` and
    `last` are the scalars of those steps.
    """

    gradient: dict
    first: dict
    last: dict
    after: dict


def take_steps(trainer, optim, params, image, mask):
    """See `Steps`; `optim` is the configuration that the trainer was made with."""
    nets, pair = trainer.cascade.networks, (image[None, ..., None], mask[None, ..., None])
    state, first = train_step(trainer, initial_state(trainer, params), *pair, with_focal=True)
    momentum = {name: branch[1].trace for name, branch in state.optim.items()}
    # What the momentum starts with: the gradient, clipped, and the decay.
    clipping = min(1, optim.clip_norm / float(first["gradient_norm"]))
    gradient = jax.tree.map(
        lambda m, p: (np.asarray(m) - optim.weight_decay * p) / clipping, momentum, params
    )
    for _ in range(2):
        state, last = train_step(trainer, state, *pair, with_focal=True)
    first, last, after = jax.device_get((first, last, state.params))
    return Steps(to_torch(nets, gradient), first, last, to_torch(nets, after))


def initial_state(trainer, params):
    optim = {name: trainer.direction.init(branch) for name, branch in params.items()}
    return State(jnp.int32(0), params, optim, skipped=jnp.int32(0))


def deviation(found, expected):
    """Largest difference of logits relative to their standard deviation."""
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / expected.std()


def relative(found, expected):
    """Relative L2 difference."""
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def is_cancelled(name):
    """Whether a tensor is the bias of a convolution before a normalisation, which takes it off."""
    return name.endswith("conv.bias")


def worst(deviations):
    """The largest of the deviations by name: (name, deviation)."""
    return max(deviations.items(), key=lambda item: item[1])


def compare_gradients(found, expected):
    """Relative L2 differences by name, and the largest of the gradients that ought to be zero.

    The gradient of a convolution's bias before a normalisation is zero, so both sides have nothing
    but noise there. Its norm is given relative to that of the same convolution's kernel.
    """
    kernels = {name: name.replace("bias", "weight") for name in expected if is_cancelled(name)}
    noise = {
        name: max(np.linalg.norm(side[name]) for side in (found, expected))
        / np.linalg.norm(expected[kernel])
        for name, kernel in kernels.items()
    }
    differences = {
        name: relative(found[name], expected[name]) for name in expected if name not in kernels
    }
    return differences, noise


# ---- The case ------------------------------------------------------------------------------------


def _without_idle_heads(nets, tensors):
    heads = zip(("global_net.", "local_net.", "focus_net."), nets.values(), strict=True)
    idle = {prefix + name for prefix, net in heads for name in net.torch_idle()}
    assert len(idle) == 2 * (6 + 5 + 2)
    assert idle < set(tensors)
    return {name: value for name, value in tensors.items() if name not in idle}


def _split(golden, key):
    """The tensors that the file has joined, by name."""
    shapes = [tuple(shape[shape > 0]) for shape in golden["shapes"]]
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    assert ends[-1] == len(golden[key])
    parts = np.split(golden[key], ends[:-1])
    return {
        str(name): part.reshape(shape)
        for name, part, shape in zip(golden["names"], parts, shapes, strict=True)
    }


def _mask(golden, key):
    shape = golden["image"].shape
    return np.unpackbits(golden[key], count=np.prod(shape)).reshape(shape).astype(bool)


@pytest.fixture(scope="module")
def config(golden):
    channels = [golden[f"{branch}_channels"] for branch in cascade.BRANCHES]
    config = released_config(*channels, golden["sizes"])
    rate, momentum, decay, clip_norm, epochs = map(float, golden["optim"])
    config.optim.update(
        learning_rate=rate, momentum=momentum, weight_decay=decay, clip_norm=clip_norm
    )
    config.train.epochs = int(epochs)
    return config


@pytest.fixture(scope="module")
def system(config):
    return configuration.cascade(config)


@pytest.fixture(scope="module")
def params(golden, system):
    return from_torch(system.networks, _split(golden, "state"))


@pytest.fixture(scope="module")
def image(golden):
    return jnp.asarray(golden["image"][None, ..., None] / np.float32(255))


@pytest.fixture(scope="module")
def coarse(system, params, image):
    return jax.jit(cascade.coarse_logits, static_argnums=0)(system, params, image)


@pytest.fixture(scope="module")
def patches(golden):
    """The golden patches."""
    corners = golden["corners"].astype(np.int32)
    return Patches(np.zeros(len(corners), np.int32), corners)


@pytest.fixture(scope="module")
def focal(system, params, image, patches):
    """FocalNet's logits."""
    return jax.jit(cascade.focal_logits, static_argnums=0)(system, params, image, patches)


# ---- The forward pass ----------------------------------------------------------------------------


def _every_third(logits):
    return np.asarray(logits)[:, ::3, ::3]


def test_the_case_is_worth_its_name(golden):
    """The window is not centred, some patches lie partly outside it, several chunks are needed."""
    side, patch, _ = golden["sizes"]
    window, corners = golden["window"], golden["corners"]
    assert (window != (256 - side) / 2).all()
    assert (window > 0).all()
    outside = (corners < window) | (corners + patch > window + side)
    assert 0 < outside.any(axis=1).sum() < len(corners)
    assert len(corners) > 16
    assert 0.02 < _mask(golden, "binary").mean() < 0.2


def test_logits_of_global_and_local_net(golden, coarse):
    assert deviation(_every_third(coarse.global_logits)[0], golden["global"]) <= 1e-4
    assert deviation(_every_third(coarse.local_logits)[0], golden["local"]) <= 1e-4


def test_logits_of_focal_net(golden, focal):
    assert deviation(_every_third(focal), golden["focal"]) <= 1e-4


def test_window(golden, coarse):
    np.testing.assert_array_equal(coarse.origin[0], golden["window"])


def test_topology_stage(golden, system, coarse):
    vessel, corner = jax.device_get(cascade.sampling_mask(system, coarse))
    np.testing.assert_array_equal(vessel[0], _mask(golden, "binary"))
    np.testing.assert_array_equal(topology.close(vessel[0]), _mask(golden, "closed"))
    centreline = topology.centreline(vessel[0], system.centreline)
    np.testing.assert_array_equal(centreline, _mask(golden, "centreline"))
    owner, origin = cascade.sample_patches(system, vessel, corner, vessel.shape[1:])
    assert not owner.any()
    np.testing.assert_array_equal(origin, golden["corners"])


@pytest.mark.parametrize("mode", ["training", "test"])
def test_fusion(golden, system, trainer, coarse, patches, focal, mode):
    system = trainer.cascade if mode == "training" else system
    canvas = empty_canvas(1, golden["image"].shape, channels=2)
    found = cascade.refine(system, coarse, cascade.lay(system, canvas, focal, patches))
    for name, stage in (("global_local", "global_local"), (f"final_{mode}", "final")):
        assert deviation(_every_third(found[stage])[0], golden[name]) <= 1e-4


def test_prediction(golden, system, params):
    """The whole way at once: the test script's probabilities."""
    found = inference.predict(system, params, golden["image"][None, ..., None])["final"]
    background, vessel = np.moveaxis(golden["final_test"].astype(np.float64), -1, 0)
    expected = 1 / (1 + np.exp(background - vessel))
    np.testing.assert_allclose(_every_third(found)[0], expected, atol=1e-4)


# ---- Training ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainer(config):
    return make_trainer(config, steps_per_epoch=1)


@pytest.fixture(scope="module")
def steps(golden, config, trainer, params):
    return take_steps(trainer, config.optim, params, golden["image"], golden["mask"])


def test_terms_of_the_objective(golden, steps):
    found = [steps.first[name] for name in TERMS]
    np.testing.assert_allclose(found, golden["terms_five"], rtol=1e-5)


def test_terms_without_focal_net(golden, trainer, params):
    pair = [golden[name][None, ..., None] for name in ("image", "mask")]
    _, scalars = train_step(trainer, initial_state(trainer, params), *pair, with_focal=False)
    found = [scalars[name] for name in TERMS if name in scalars]
    np.testing.assert_allclose(found, golden["terms_three"], rtol=1e-5)


def test_gradient_of_every_tensor(golden, system, steps):
    expected = _without_idle_heads(system.networks, _split(golden, "gradient"))
    differences, noise = compare_gradients(steps.gradient, expected)
    assert len(differences) + len(noise) == len(expected)
    name, difference = worst(differences)
    assert difference <= 1e-3, name
    name, ratio = worst(noise)
    assert ratio <= NOISE, name


def test_three_steps(golden, config, system, steps):
    """The changes are compared, too, because steps change weights by little."""
    assert steps.first["gradient_norm"] > 2 * config.optim.clip_norm
    assert steps.last["learning_rate"] == pytest.approx(0.1 * (1 - 2 / 5) ** 0.9)
    before, after = (_split(golden, key) for key in ("state", "stepped"))
    after = _without_idle_heads(system.networks, after)
    differences = {name: relative(steps.after[name], after[name]) for name in after}
    name, difference = worst(differences)
    assert difference <= 1e-3, name
    changes = {
        name: relative(steps.after[name] - before[name], after[name] - before[name])
        for name in after
    }
    name, difference = worst(changes)
    assert difference <= 1e-3, name


# ---- Small masks ---------------------------------------------------------------------------------


def _small(golden, key):
    shapes = golden["small_shapes"]
    ends = np.cumsum(shapes.prod(axis=1))
    parts = np.split(np.unpackbits(golden[key], count=ends[-1]).astype(bool), ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


@pytest.mark.parametrize(
    ("key", "function"),
    [
        ("small_closed", topology.close),
        ("small_thinned", topology.thin),
        ("small_skeletons", topology.centreline),
    ],
)
def test_small_masks(golden, key, function):
    masks, expected = _small(golden, "small_masks"), _small(golden, key)
    assert len(masks) >= 30
    for index, (mask, result) in enumerate(zip(masks, expected, strict=True)):
        np.testing.assert_array_equal(function(mask), result, err_msg=f"mask {index}")


def test_the_two_thinnings_differ_on_small_masks(golden):
    pairs = zip(_small(golden, "small_thinned"), _small(golden, "small_skeletons"), strict=True)
    assert sum((thinned != skeleton).any() for thinned, skeleton in pairs) > 10
