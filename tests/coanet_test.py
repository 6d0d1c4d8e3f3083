import collections
import functools
import itertools
import json

import golden_baselines
import jax
import jax.numpy as jnp
import network_checks
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, path_aware_map

from tprnet_jax.models import weights
from tprnet_jax.models.coanet import CoANet, Strip, StripBlock, convolve_along
from tprnet_jax.models.parts import STATISTICS
from tprnet_jax.runtime.errors import UserError

TINY = CoANet((4, 4, 8, 4), (1, 1, 1, 1), auxiliary=True)
# Parameters of the official network by stage.
STEM = 9_536
LAYERS = {"layer1": 215_808, "layer2": 1_219_584, "layer3": 26_090_496, "layer4": 14_964_736}
DECODER = {
    "decoder4": 124_224,
    "conv_e3": 262_656,
    "decoder3": 394_752,
    "conv_e2": 65_792,
    "decoder2": 99_072,
    "conv_e1": 16_512,
    "decoder1": 27_104,
}
CONNECT = {
    "seg_branch": 36_993,
    "connect_branch": 42_121,
    "se": 54,
    "connect_branch_d1": 42_121,
    "se_d1": 54,
}


@functools.cache
def _shapes(net, channels=1):
    image = jnp.zeros((1, 16, 16, channels))
    return jax.eval_shape(net.init, jax.random.key(0), image)["params"]


def _filled(shapes):
    """Parameters, all of them random, the running variances positive."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        mean = 1 if path[-1] in ("scale", "var") else 0
        return rng.normal(mean, 0.1 if mean else 0.3, leaf.shape).astype(np.float32)

    return path_aware_map(fill, shapes)


def _is_learned(path):
    return path[-1] not in STATISTICS


@pytest.fixture(scope="module")
def params():
    return _filled(_shapes(TINY))


@functools.partial(jax.jit, static_argnums=0)
def _apply(net, params, images):
    return net.apply({"params": params}, images)


# ---- The official network ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official():
    """The full size for three channels and one class, with the golden parameters."""
    net = CoANet(classes=1, auxiliary=True)
    return net, golden_baselines.read("coanet", net)


def _count(params):
    """Of what is learned, by its module and that module's own, without the numbers of blocks."""
    counts = collections.defaultdict(collections.Counter)
    for path, leaf in flatten_dict(params).items():
        name, _, number = path[1].rpartition("_")
        if _is_learned(path):
            counts[path[0]][name if number.isdigit() else path[1]] += leaf.size
    return counts


def test_parameters_by_stage(official):
    counts = _count(official[1].params)
    stem = {name: counts["backbone"].pop(name) for name in ("conv1", "bn1")}
    assert sum(stem.values()) == STEM
    assert counts["backbone"] == LAYERS
    assert sum(counts["aspp"].values()) == 15_535_104
    assert counts["decoder"] == DECODER
    assert counts["connect"] == CONNECT
    assert sum(sum(part.values()) for part in counts.values()) + STEM == 59_146_719


ACTIVATIONS = {
    "backbone.layer1": "backbone.layer1_2",
    "backbone.layer2": "backbone.layer2_3",
    "backbone.layer3": "backbone.layer3_22",
    "backbone.layer4": "backbone.layer4_2",
    "aspp.aspp1": "aspp.aspp1",
    "aspp.aspp2": "aspp.aspp2",
    "aspp": "aspp",
    "decoder.decoder4": "decoder.decoder4",
    "decoder.decoder3": "decoder.decoder3",
    "decoder": "decoder",
}


def test_golden(official):
    net, (facts, params, image) = official
    kept = {name.split(".")[-1] for name in ACTIVATIONS.values()}

    # Compiled to the least effort, as tests are, it would run four times as long.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    def run(params, image):
        return net.apply(
            {"params": params},
            image,
            mutable=["auxiliary", "intermediates"],
            capture_intermediates=lambda module, _: module.name in kept,
        )

    logits, sown = run(*jax.tree.map(np.float32, (params, image)))
    outputs = {name: value for name, (value,) in sown["auxiliary"].items()}
    for name, value in (outputs | {"prob": jax.nn.sigmoid(logits)}).items():
        golden_baselines.assert_samples(value, facts["outputs"][name], 1e-4)
    for name, ours in ACTIVATIONS.items():
        (activation,) = functools.reduce(dict.get, ours.split("."), sown["intermediates"])[
            "__call__"
        ]
        golden_baselines.assert_activation(activation, facts["activations"][name], 1e-4)


def test_pytorch_counts_the_batches_of_each_normalisation(official):
    net, (facts, *_) = official
    means = {name for name, *_ in facts["tensors"] if name.endswith("running_mean")}
    counted = {name.replace("running_mean", "num_batches_tracked"): () for name in means}
    assert net.torch_idle() == counted
    assert len(counted) == 125


# ---- Strips --------------------------------------------------------------------------------------


def _along(x, taps, step):
    """Sums `taps[t] x(i + u, j + v)`, where (u, v) is the step times t - 4."""
    y = np.zeros((*x.shape[:3], taps.shape[-1]))
    _, height, width, _ = x.shape
    for i, j, t in itertools.product(range(height), range(width), range(9)):
        row, column = (at + (t - 4) * s for at, s in zip((i, j), step, strict=True))
        if 0 <= row < height and 0 <= column < width:
            y[:, i, j] += x[:, row, column] @ taps[t]
    return y


STEPS = {
    "d1_horizontal": (0, 1),
    "d2_vertical": (1, 0),
    "d3": (1, -1),
    "d4": (-1, 1),
    "main": (1, 1),
}


def test_golden_strips():
    """Whole numbers: 0 to 35 row by row, seen by taps 1 to 9."""
    ramp = jnp.arange(36.0).reshape(1, 6, 6, 1)
    taps = jnp.arange(1.0, 10.0).reshape(9, 1, 1)
    expected = json.loads((golden_baselines.FOLDER / "golden_units.json").read_text())["strip"]
    for name in ("d1_horizontal", "d2_vertical", "d3", "d4"):
        found = convolve_along(ramp, taps, STEPS[name])[0, ..., 0]
        np.testing.assert_array_equal(found, expected[name])


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("size", [(5, 11), (12, 3)])
def test_strips_on_any_map(step, size):
    rng = np.random.default_rng(0)
    x, taps = rng.normal(size=(2, *size, 3)), rng.normal(size=(9, 3, 2))
    found = convolve_along(*map(jnp.float32, (x, taps)), step)
    np.testing.assert_allclose(found, _along(x, taps, step), atol=1e-5)


@pytest.mark.parametrize("fourth", ["anti", "main"])
def test_the_fourth_strip_has_its_diagonal(fourth):
    rng = np.random.default_rng(0)
    block, x = StripBlock(3, fourth, None), rng.normal(size=(1, 5, 7, 16)).astype(np.float32)
    init = functools.partial(block.init, train=False)
    params = _filled(jax.eval_shape(init, jax.random.key(0), x)["params"])
    _, sown = block.apply({"params": params}, x, train=False, capture_intermediates=True)
    inside, strip = (sown["intermediates"][name]["__call__"][0] for name in ("bn1", "deconv4"))
    taps = params["deconv4"]["kernel"].reshape(9, 4, 2)
    expected = _along(np.maximum(inside, 0), taps, {"anti": (-1, 1), "main": (1, 1)}[fourth])
    np.testing.assert_allclose(strip, expected + params["deconv4"]["bias"], atol=1e-5)


def test_strips_start_he_normal_by_their_inputs():
    """Nine taps of 16 channels; a standard deviation of n samples is off by 1 / sqrt(2 n)."""
    strip, x = Strip(24, (1, 0), (9, 1)), jnp.zeros((1, 2, 2, 16))
    kernel, bias = (strip.init(jax.random.key(0), x)["params"][name] for name in ("kernel", "bias"))
    expected = (2 / (9 * 16)) ** 0.5
    assert float(kernel.std()) == pytest.approx(expected, rel=4 / (2 * kernel.size) ** 0.5)
    assert 0 < np.abs(bias).max() <= 1 / (9 * 16) ** 0.5


# ---- What it does --------------------------------------------------------------------------------


def test_each_image_of_any_size_is_segmented_by_itself(params):
    images = np.random.default_rng(0).random((2, 21, 13, 1)).astype(np.float32)
    logits = _apply(TINY, params, images)
    assert (logits.shape, logits.dtype) == ((2, 21, 13, 2), jnp.float32)
    padded = np.pad(images[1:], ((0, 0), (0, 3), (0, 3), (0, 0)), mode="edge")
    np.testing.assert_allclose(logits[1:], _apply(TINY, params, padded)[:, :21, :13], atol=1e-4)


@pytest.mark.parametrize("channels", [(8, 16, 32), (4, 4, 4, 4), (3, 4, 8, 4)])
def test_channels_that_leave_nothing_for_a_strip_are_refused(channels):
    with pytest.raises(UserError, match="the channels of CoANet are"):
        _shapes(CoANet(channels))


def test_connectivity_is_computed_where_asked_alone(params):
    image = np.ones((1, 9, 14, 1), np.float32)
    apply = functools.partial(TINY.apply, mutable=["auxiliary"])
    _, sown = jax.eval_shape(apply, {"params": params}, image)
    assert {name: value.shape for name, (value,) in sown["auxiliary"].items()} == {
        "connect_d2": (1, 9, 14, 9),
        "connect_d4": (1, 9, 14, 9),
    }
    without = TINY.clone(auxiliary=False)
    assert set(_shapes(without)["connect"]) == {"seg_branch_0", "seg_branch_2"}
    apply = functools.partial(without.apply, mutable=["auxiliary"])
    assert not jax.eval_shape(apply, {"params": params}, image)[1]


def test_to_pytorch_and_back_with_and_without_connectivity(params):
    state = weights.to_torch({"global": TINY}, {"global": params})
    again = weights.from_torch({"global": TINY}, state)["global"]
    jax.tree.map(np.testing.assert_array_equal, again, params)
    without = TINY.clone(auxiliary=False)
    fewer = weights.from_torch({"global": without}, state)["global"]
    assert jax.tree.map(np.shape, fewer) == jax.tree.map(np.shape, _shapes(without))
    exported = weights.to_torch({"global": without}, {"global": fewer})
    assert {name: value.shape for name, value in exported.items()} == {
        name: value.shape for name, value in state.items()
    }


def test_bfloat16_gives_finite_float32_logits(params):
    image = np.random.default_rng(0).random((1, 16, 16, 1)).astype(np.float32)
    logits = _apply(TINY.clone(dtype="bfloat16"), params, image)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()


def test_gradients_in_training_are_finite_differences(params):
    """Of the whole objective."""
    rng = np.random.default_rng(2)
    images, mask = rng.random((2, 8, 16, 1)), rng.integers(0, 2, (2, 8, 16, 1))

    def loss(params):
        logits, sown = TINY.apply(
            {"params": params},
            images,
            train=True,
            mutable=["auxiliary"],
            rngs={"dropout": jax.random.key(0)},
        )
        outputs = {name: value for name, (value,) in sown["auxiliary"].items()}
        return jnp.square(logits).sum() + TINY.auxiliary_loss(outputs, mask)

    network_checks.assert_slopes(loss, params, rng)
