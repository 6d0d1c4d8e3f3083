import collections
import functools

import flax
import golden_baselines
import jax
import jax.numpy as jnp
import network_checks
import numpy as np
import pytest

from tprnet_jax.models import lkm_unet, weights
from tprnet_jax.models.lkm_unet import LKMUNet

FIVE_STAGES = (32, 64, 128, 256, 512)
TINY = (2, 3, 4)
SMALL = (2, 3)  # Compiles sooner.


@functools.cache
def _shapes(net):
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))["params"]


def _random(net):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda v: rng.normal(0, 0.5, v.shape).astype(np.float32), _shapes(net))


# ---- Parameters ----------------------------------------------------------------------------------

LAYERS = [17_856, 57_216, 200_448, 744_960, *[2_866_176] * 4]
STAGES = {
    "stem": [384],
    "encoder": [37_248, 131_968, 526_080, 2_100_736, 8_395_776, *[9_443_328] * 3],
    "pixel": LAYERS,
    "pooled": LAYERS,
    "up": [8_224, 32_832, 131_200, 524_544, *[1_049_088] * 3],
    "decoder": [48_576, 193_408, 771_840, 3_083_776, *[12_327_936] * 3],
    "head": [66, 130, 258, 514, *[1_026] * 3],
}


def test_parameter_counts_at_full_size():
    counts = collections.defaultdict(lambda: collections.defaultdict(int))
    for path, leaf in flax.traverse_util.flatten_dict(_shapes(LKMUNet(auxiliary=True))).items():
        part, stage = [*path[0].split("_"), "0"][:2]
        counts[part][int(stage)] += leaf.size
    assert {part: [found[s] for s in sorted(found)] for part, found in counts.items()} == STAGES
    assert sum(map(sum, STAGES.values())) == 109_422_062


# ---- The official network ------------------------------------------------------------------------


def test_golden():
    """Of 64 x 64 pixels, which no pixel window divides."""
    net = LKMUNet(FIVE_STAGES, auxiliary=True)
    facts, params, image = golden_baselines.read("lkm_unet_unwindowed", net)

    @jax.jit
    def run(params, image):
        return net.apply(
            {"params": params},
            image,
            mutable=["auxiliary", "intermediates"],
            capture_intermediates=lambda module, _: len(module.path) == 1,
        )

    logits, sown = run(*jax.tree.map(np.float32, (params, image)))
    outputs = {f"logits_s{stage}": sown["auxiliary"][f"logits_{stage}"][0] for stage in range(1, 4)}
    gap = facts["float32_vs_float64_max_abs"]
    for output, value in (outputs | {"logits_s0": logits}).items():
        tolerance = max(1e-4, 10 * gap[output])
        golden_baselines.assert_samples(value, facts["outputs"][output], tolerance)
    for module, expected in facts["activations"].items():
        if (name := _stage_of(module)) is not None:
            (activation,) = sown["intermediates"][name]["__call__"]
            tolerance = max(1e-4, 10 * max(gap.values()))
            golden_baselines.assert_activation(activation, expected, tolerance)


def _stage_of(module):
    """The last block of an official stage; a Mamba layer is another there."""
    part, kind, *number = module.split(".")
    if kind == "stem":
        return "stem"
    if kind != "stages":
        return None
    number = int(number[0])
    return f"{part}_{number if part == 'encoder' else len(FIVE_STAGES) - 2 - number}_1"


def test_to_pytorch_and_back():
    net = LKMUNet(TINY)
    params = {"global": _random(net)}
    state = weights.to_torch({"global": net}, params)
    heads = {name for name in state if "seg_layers" in name}
    assert heads == {f"decoder.seg_layers.{j}.{p}" for j in (0, 1) for p in ("weight", "bias")}
    jax.tree.map(np.testing.assert_array_equal, weights.from_torch({"global": net}, state), params)


# ---- Windows -------------------------------------------------------------------------------------


def _cumulative(tokens):
    """A layer whose result says which tokens come before, and in which sequence."""
    return jnp.cumsum(tokens, axis=1)


@pytest.mark.parametrize("window", lkm_unet.WINDOWS)
def test_windows_are_sequences_of_their_own(window):
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 3))
    expected = np.zeros_like(x)
    for b, d in np.ndindex(2, 2):
        part = {
            "strided": np.s_[:, b::2, d::2],
            "contiguous": np.s_[:, 3 * b : 3 * b + 3, 2 * d : 2 * d + 2],
        }[window]
        expected[part] = np.cumsum(x[part].reshape(2, 6, 3), axis=1).reshape(2, 3, 2, 3)
    found = lkm_unet._over_windows(_cumulative, x, 2, window)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("window", lkm_unet.WINDOWS)
def test_windows_that_do_not_divide_a_map_are_left_out(window):
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 3))
    expected = np.cumsum(x.reshape(2, 24, 3), axis=1).reshape(x.shape)
    np.testing.assert_allclose(
        lkm_unet._over_windows(_cumulative, x, 3, window), expected, atol=1e-5
    )


def test_means_are_one_sequence():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3))
    means = x.reshape(2, 2, 2, 3, 2, 3).mean(axis=(2, 4))
    sums = np.cumsum(means.reshape(2, 6, 3), axis=1).reshape(2, 2, 3, 3)
    found = lkm_unet._over_means(_cumulative, jnp.asarray(x), 2)
    np.testing.assert_allclose(found, np.kron(sums, np.ones((1, 2, 2, 1))), atol=1e-5)


@pytest.mark.parametrize(
    ("stages", "factor", "pixel", "pooled"),
    [
        (8, 5, [40, 40, 20, 20, 10, 10, 5, 5], [8, 8, 4, 4, 2, 2, 1, 1]),
        (8, 4, [32, 32, 16, 16, 8, 8, 4, 4], [8, 8, 4, 4, 2, 2, 1, 1]),
        (5, 5, [20, 10, 10, 5, 5], [4, 2, 2, 1, 1]),
    ],
)
def test_sides_of_windows(stages, factor, pixel, pooled):
    net = LKMUNet((1,) * stages, window_factor=factor)
    found = [lkm_unet.window_sides(net, stage) for stage in range(stages)]
    assert found == list(zip(pixel, pooled, strict=True))


# ---- What it does --------------------------------------------------------------------------------


def test_images_of_any_size_each_by_itself_in_bfloat16():
    net = LKMUNet(SMALL, dtype="bfloat16")
    apply = jax.jit(lambda params, images: net.apply({"params": params}, images))
    params, images = _random(net), np.random.default_rng(1).random((2, 9, 13, 1))
    logits = apply(params, images.astype(np.float32))
    assert (logits.shape, logits.dtype) == ((2, 9, 13, 2), jnp.float32)
    assert np.isfinite(logits).all()
    images[0] = 0
    changed = apply(params, images.astype(np.float32))
    assert (changed[0] != logits[0]).any()
    np.testing.assert_array_equal(changed[1], logits[1])


def test_deep_supervision_is_computed_where_asked_alone():
    net, image = LKMUNet(TINY, auxiliary=True), np.ones((1, 5, 8, 1), np.float32)
    run = functools.partial(jax.eval_shape, functools.partial(net.apply, mutable=["auxiliary"]))
    _, sown = run({"params": _shapes(net)}, image)
    ((coarse,),) = sown["auxiliary"].values()
    assert coarse.shape == (1, 4, 4, 2)
    plain = net.clone(auxiliary=False)
    assert _shapes(net).keys() - _shapes(plain).keys() == {"head_1"}
    run = functools.partial(jax.eval_shape, functools.partial(plain.apply, mutable=["auxiliary"]))
    assert not run({"params": _shapes(plain)}, image)[1]


def test_gradients_are_finite_differences():
    """Of the sum of squares of the logits."""
    net, rng = LKMUNet((4,), window_factor=2), np.random.default_rng(2)
    image = rng.random((1, 4, 4, 1))

    def loss(params):
        return jnp.square(net.apply({"params": params}, image)).sum()

    network_checks.assert_slopes(loss, _random(net), rng)
