import collections
import functools
import itertools
import json
import math

import golden_baselines
import jax
import jax.numpy as jnp
import network_checks
import numpy as np
import pytest

from tprnet_jax.models import weights
from tprnet_jax.models.dscnet import (
    REACH,
    TAPS,
    VARIANTS,
    DSCNet,
    Snake,
    displacements,
    snake_convolution,
)
from tprnet_jax.runtime.errors import UserError

SNAKES = list(itertools.product(VARIANTS, "xy"))
AXES = {"x": 2, "y": 1}


# ---- Snakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_offsets_add_up_from_the_middle_outwards(variant):
    offsets = jnp.array([10.0, 1, 2, 3, 4, 5, 6, 7, 20]).reshape(1, 1, 1, TAPS)
    ends = {"original": (10, 20), "pro": (16, 38)}[variant]
    expected = [ends[0], 6, 5, 3, 0, 5, 11, 18, ends[1]]
    np.testing.assert_array_equal(displacements(offsets, variant).ravel(), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_offset_moves_its_tap_and_those_farther_out(variant):
    """The gradient of the displacements' sum counts them; original ends have none."""
    offsets = np.zeros((1, 1, 1, TAPS), np.float32)
    gradient = jax.grad(lambda offsets: displacements(offsets, variant).sum())(offsets)
    moved = {"original": [0, 1, 2, 3, 0, 3, 2, 1, 0], "pro": [1, 2, 3, 4, 0, 4, 3, 2, 1]}
    np.testing.assert_array_equal(gradient.ravel(), moved[variant])


def _sampled(image, row, column, along, variant):
    """The values `(channels,)` at a place of which one coordinate is whole."""
    moved, place = (0, row) if along == "x" else (1, column)
    last = np.array(image.shape[:2]) - 1
    position = np.array([row, column], float)
    if variant == "pro":
        position = np.clip(position, 0, last)
    elif (position < 0).any() or (position >= last + 1).any():
        return np.zeros(image.shape[2])
    elif place > last[moved]:
        position[moved] = last[moved]
    low = np.floor(position).astype(int)
    high = np.minimum(low + np.eye(2, dtype=int)[moved], last)
    share = (position - low)[moved]
    return (1 - share) * image[tuple(low)] + share * image[tuple(high)]


def _snake_by_loops(x, displacement, kernel, along, variant):
    total = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for place in np.ndindex(displacement.shape):
        image, row, column, tap = place
        aside, ahead = displacement[place], tap - REACH
        steps = (aside, ahead) if along == "x" else (ahead, aside)
        values = _sampled(x[image], row + steps[0], column + steps[1], along, variant)
        total[place[:3]] += values @ kernel[tap]
    return total


# With more channels than features, the product goes first; with fewer, sampling.
@pytest.mark.parametrize(
    ("variant", "along", "channels", "features"),
    [("original", "x", 3, 2), ("original", "y", 2, 3), ("pro", "x", 2, 3), ("pro", "y", 3, 2)],
)
def test_snake_convolution_against_loops(variant, along, channels, features):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 10, channels)).astype(np.float32)
    displacement = rng.uniform(-4, 4, (2, 7, 10, TAPS)).astype(np.float32)
    displacement[:, ::3] = displacement[:, ::3].round()  # Whole pixels, and a border's very edge.
    kernel = rng.normal(size=(TAPS, channels, features)).astype(np.float32)
    expected = _snake_by_loops(x, displacement, kernel, along, variant)
    run = jax.jit(snake_convolution, static_argnums=(3, 4))
    found = run(x, displacement, kernel, AXES[along], variant)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_the_snake_convolution_are_finite_differences(variant):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        arguments = [rng.normal(size=shape) for shape in [(2, 5, 6, 2), (2, 5, 6, 9), (9, 2, 1)]]
        weight = rng.normal(size=(2, 5, 6, 1))

        @jax.jit
        @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
        def loss(*arguments):
            return (weight * snake_convolution(*arguments, 2, variant)).sum()

        gradients = loss(*arguments)[1]
        for number, gradient in enumerate(gradients):
            for place in map(tuple, rng.integers(0, gradient.shape, (8, gradient.ndim))):
                above, below = ([a.copy() for a in arguments] for _ in range(2))
                above[number][place] += 1e-6
                below[number][place] -= 1e-6
                slope = (loss(*above)[0] - loss(*below)[0]) / 2e-6
                assert gradient[place] == pytest.approx(float(slope), rel=1e-6, abs=1e-7)


def test_the_gradient_keeps_the_samples_of_no_tap():
    """Nor has it those of all of them at once, which are of two pixels each."""
    shapes = [(1, 32, 32, 8), (1, 32, 32, TAPS), (TAPS, 8, 8)]
    arguments = [np.ones(shape, np.float32) for shape in shapes]

    def pullback(*arguments):
        return jax.vjp(lambda *a: snake_convolution(*a, 1, "original"), *arguments)[1]

    kept = jax.tree.leaves(jax.eval_shape(pullback, *arguments))
    assert sum(leaf.size for leaf in kept) == sum(argument.size for argument in arguments)
    gradient = jax.jit(lambda cotangent, *a: pullback(*a)(cotangent))
    needed = gradient.lower(*arguments[:1], *arguments).compile().memory_analysis()
    assert needed.temp_size_in_bytes < 2 * TAPS * arguments[0].nbytes


@pytest.mark.parametrize(("variant", "along"), SNAKES)
def test_golden_snake(variant, along):
    units = json.loads((golden_baselines.FOLDER / "golden_units.json").read_text())
    facts = units["snake"][f"{variant}_morph{'xy'.index(along)}"]
    x = golden_baselines.values("snake.input", (1, 4, 7, 10)).transpose(0, 2, 3, 1)
    run = functools.partial(
        Snake(8, along, variant).apply, capture_intermediates=True, mutable=["intermediates"]
    )
    inputs = jax.tree.map(np.float32, ({"params": _golden_params(variant, along)}, x))
    out, seen = jax.jit(run)(*inputs)
    golden_baselines.assert_activation(out, facts["out"], 1e-5)
    np.testing.assert_allclose(out[0, 3, :, 0], facts["out_channel0_row3"], atol=1e-5)
    offsets = np.tanh(seen["intermediates"]["offset_norm"]["__call__"][0])
    golden_baselines.assert_activation(offsets, facts["offset_tanh"], 1e-5)
    mine = offsets[:, 3:4, 4:5, :TAPS] if along == "x" else offsets[:, 3:4, 4:5, TAPS:]
    aside, start = ("y", 3) if along == "x" else ("x", 4)
    coordinates = start + displacements(mine, variant).ravel()
    np.testing.assert_allclose(coordinates, facts[f"coords_{aside}_at_pixel_3_4"], atol=1e-5)


def _golden_params(variant, along):
    """By the rule of the golden files; 4 channels to 8."""

    def tensor(name, shape, kind):
        value = golden_baselines.filled(name, shape, kind, None)
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value

    def norm(name, channels):
        kinds = {"scale": ("weight", "scale"), "bias": ("bias", "bias")}
        if name == "bn":
            kinds |= {"mean": ("running_mean", "mean"), "var": ("running_var", "var")}
        return {
            ours: tensor(f"{name}.{theirs}", (channels,), kind)
            for ours, (theirs, kind) in kinds.items()
        }

    snake, row = f"dsc_conv_{along}", {"x": (TAPS, 1), "y": (1, TAPS)}[along]
    return {
        "offset": {
            "kernel": tensor("offset_conv.weight", (2 * TAPS, 4, 3, 3), "w"),
            "bias": tensor("offset_conv.bias", (2 * TAPS,), "bias"),
        },
        "offset_norm": norm({"original": "bn", "pro": "gn_offset"}[variant], 2 * TAPS),
        "kernel": tensor(f"{snake}.weight", (8, 4, *row), "w"),
        "bias": tensor(f"{snake}.bias", (8,), "bias"),
        "norm": norm("gn", 8),
    }


# ---- The official network ------------------------------------------------------------------------

# Of a triple block: the convolution, the snakes along x and y, the merging convolution.
PARAMETERS = {
    0: (192, 568, 568, 6_960),
    2: (4_704, 11_990, 11_990, 27_744),
    4: (18_624, 42_358, 42_358, 110_784),
    6: (74_112, 158_390, 158_390, 442_752),
    12: (110_784, 252_598, 252_598, 110_784),
    14: (27_744, 71_030, 71_030, 27_744),
    16: (6_960, 21_718, 21_718, 6_960),
}
MODULES = {
    "conv00": "encoder_0/plain",
    "conv0x": "encoder_0/along_x",
    "conv0y": "encoder_0/along_y",
    "conv1": "encoder_0/merge",
    "conv2x": "encoder_1/along_x",
    "conv2y": "encoder_1/along_y",
    "conv3": "encoder_1",
    "conv5": "encoder_2",
    "conv7": "encoder_3",
    "conv12x": "decoder_2/along_x",
    "conv13": "decoder_2",
    "conv15": "decoder_1",
    "conv17": "decoder_0",
    "out_conv": "head",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts_at_full_size(variant):
    """Those that nothing uses are in the official state dict, and not in our network."""
    net = DSCNet(classes=1, variant=variant)
    unused = {name: shape for name, shape in net.torch_idle().items() if "dsc_conv" in name}
    shapes = unused | {tensor.names[0]: tensor.shape for tensor in weights.tensors(net)}
    found = collections.Counter()
    for name, shape in shapes.items():
        if "running" not in name:
            found[name.split(".")[0]] += math.prod(shape)
    expected = {"out_conv": 17}
    for number, sizes in PARAMETERS.items():
        blocks = f"conv{number}0", f"conv{number}x", f"conv{number}y", f"conv{number + 1}"
        expected |= dict(zip(blocks, sizes, strict=True))
    assert found == expected
    assert found.total() == 2_094_169
    assert sum(map(math.prod, unused.values())) == 484_832


@pytest.mark.parametrize(("name", "variant"), [("dscnet", "original"), ("dscnet_pro", "pro")])
def test_golden(name, variant):
    net = DSCNet(classes=1, variant=variant)
    facts, params, image = golden_baselines.read(name, net)
    run = functools.partial(net.apply, capture_intermediates=True, mutable=["intermediates"])
    logits, seen = jax.jit(run)(*jax.tree.map(np.float32, ({"params": params}, image)))
    tolerance = 10 * facts["float32_vs_float64_max_abs"]["prob"]
    golden_baselines.assert_samples(jax.nn.sigmoid(logits), facts["outputs"]["prob"], tolerance)
    for module, path in MODULES.items():
        found = functools.reduce(dict.get, path.split("/"), seen["intermediates"])["__call__"][0]
        golden_baselines.assert_activation(found, facts["activations"][module], 1e-4)


def test_golden_gradients():
    """In float64, because where a snake is between two pixels decides on the slope.

    Not of "pro", of which the official code has some taps in other pixels, by the float32 of their
    coordinates; its gradients are finite differences, see below.
    """
    net = DSCNet(classes=1)
    facts, params, image = golden_baselines.read("dscnet", net)

    def loss(params):
        outputs = {"prob": jax.nn.sigmoid(net.apply({"params": params}, image))}
        return golden_baselines.loss(outputs, facts)

    with jax.enable_x64(True):
        gradients = jax.jit(jax.grad(loss))(params)
    golden_baselines.assert_gradients(gradients, net, facts, 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_goes_to_pytorch_and_back(variant):
    network_checks.assert_goes_to_pytorch_and_back(DSCNet((4, 4), variant=variant))


def test_pytorchs_counters_of_steps_are_idle():
    net = DSCNet((4, 8))
    state = weights.to_torch({"global": net}, {"global": network_checks.random_params(net)})
    norms = {name.rpartition(".")[0] for name in state if name.endswith("running_mean")}
    assert len(norms) == 6  # Two snakes in each of three triple blocks.
    counters = {f"{norm}.num_batches_tracked": () for norm in norms}
    assert counters.items() <= net.torch_idle().items()


def test_parameters_start_as_pytorchs(monkeypatch):
    network_checks.assert_starts_as_pytorch(DSCNet((4,)), monkeypatch)


# ---- What it does --------------------------------------------------------------------------------

TINY = DSCNet((4, 4))


def test_logits_have_the_size_of_the_smallest_image():
    image = jax.ShapeDtypeStruct((2, 1, 1, 2), np.float32)
    logits, _ = jax.eval_shape(TINY.init_with_output, jax.random.key(0), image)
    assert logits.shape == (2, 1, 1, 2)


def test_images_of_odd_size_each_by_itself():
    """The original samples the first image's features for all of a batch."""
    network_checks.assert_odd_images_apart(TINY, 2)


def test_bfloat16_gives_finite_float32_logits():
    network_checks.assert_bfloat16_gives_float32(DSCNet((4,)))


def test_gradients_are_finite_differences():
    """Not of "original", whose outermost offsets have none."""
    network_checks.assert_gradient_is_finite_differences(DSCNet((4,), variant="pro"))


def test_channels_that_cannot_be_normalised_in_fours_are_named():
    with pytest.raises(
        UserError, match=r"channels of DSCNet are \(4, 6\); make each a multiple of 4"
    ):
        jax.eval_shape(DSCNet((4, 6)).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
