import collections

import flax
import golden_baselines
import jax
import jax.numpy as jnp
import network_checks
import numpy as np
import pytest

from tprnet_jax.models import lkm_unet, weights
from tprnet_jax.models.lkm_unet import LKMUNet

STAGE_CHANNELS = (32, 64, 128, 256, 512, 512)
TINY = (2, 3, 4)
SMALL = (2, 3)  # Compiles sooner.


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
    shapes = network_checks.shapes(LKMUNet(auxiliary=True))
    for path, leaf in flax.traverse_util.flatten_dict(shapes).items():
        part, stage = [*path[0].split("_"), "0"][:2]
        counts[part][int(stage)] += leaf.size
    assert {part: [found[s] for s in sorted(found)] for part, found in counts.items()} == STAGES
    assert sum(map(sum, STAGES.values())) == 109_422_062


# ---- The official network ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels"),
    [("lkm_unet_unwindowed", STAGE_CHANNELS[:5]), ("lkm_unet", STAGE_CHANNELS)],
    ids=["unwindowed", "windowed"],
)
def test_golden(name, channels):
    """Of 64 x 64 pixels, which no pixel window divides, and of 160 x 160, which all do."""
    net = LKMUNet(channels, auxiliary=True)
    facts, params, image = golden_baselines.read(name, net)

    @jax.jit
    def run(params, image):
        return net.apply(
            {"params": params},
            image,
            mutable=["auxiliary", "intermediates"],
            capture_intermediates=lambda module, _: len(module.path) == 1,
        )

    logits, sown = run(*jax.tree.map(np.float32, (params, image)))
    outputs = {
        f"logits_s{stage}": sown["auxiliary"][f"logits_{stage}"][0]
        for stage in range(1, len(channels) - 1)
    }
    gap = facts["float32_vs_float64_max_abs"]
    for output, value in (outputs | {"logits_s0": logits}).items():
        tolerance = max(1e-4, 10 * gap[output])
        golden_baselines.assert_samples(value, facts["outputs"][output], tolerance)
    for module, expected in facts["activations"].items():
        if (block := _stage_of(module, len(channels))) is not None:
            (activation,) = sown["intermediates"][block]["__call__"]
            tolerance = max(1e-4, 10 * max(gap.values()))
            golden_baselines.assert_activation(activation, expected, tolerance)


def _stage_of(module, stages):
    """The last block of an official stage; a Mamba layer is another there."""
    part, kind, *number = module.split(".")
    if kind == "stem":
        return "stem"
    if kind != "stages":
        return None
    number = int(number[0])
    return f"{part}_{number if part == 'encoder' else stages - 2 - number}_1"


def test_to_pytorch_and_back():
    net = LKMUNet(TINY)
    params = {"global": network_checks.random_params(net)}
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
    network_checks.assert_images_apart_in_bfloat16(LKMUNet(SMALL))


def test_deep_supervision_is_computed_where_asked_alone():
    network_checks.assert_supervised_where_asked_alone(LKMUNet(TINY, auxiliary=True))


def test_gradients_are_finite_differences():
    """Of the sum of squares of the logits."""
    net, rng = LKMUNet((4,), window_factor=2), np.random.default_rng(2)
    image = rng.random((1, 4, 4, 1))

    def loss(params):
        return jnp.square(net.apply({"params": params}, image)).sum()

    network_checks.assert_slopes(loss, network_checks.random_params(net), rng)
