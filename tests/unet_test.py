import itertools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tprnet_jax import config
from tprnet_jax.models.unet import ConvBlock, UNet, UpConv

# Parameters of dynamic-network-architectures' PlainConvUNet, 1 channel in and 2 classes.
PUBLISHED = {"global": 46_324_558, "local": 33_471_820, "focal": 1_928_262}
OURS = {"global": 46_320_578, "local": 33_468_866, "focal": 1_927_874}


def _leaves(params, name):
    flat = flax.traverse_util.flatten_dict(params)
    return [value for path, value in flat.items() if path[-1] == name]


def _init(net, *shape):
    return jax.jit(net.init)(jax.random.key(0), jnp.zeros(shape))["params"]


# ---- Parameters ----------------------------------------------------------------------------------


def _plain_conv_unet(channels):
    """Parameters of a PlainConvUNet, and those of its idle heads for deep supervision."""

    def block(before, after):
        return 9 * before * after + after + 2 * after

    inputs = (1, *channels[:-1])
    encoder = sum(block(a, b) + block(b, b) for a, b in zip(inputs, channels, strict=True))
    decoder = sum(
        4 * below * skip + skip + block(2 * skip, skip) + block(skip, skip)
        for skip, below in itertools.pairwise(channels)
    )
    heads = [2 * features + 2 for features in channels[:-1]]
    return encoder + decoder + sum(heads), sum(heads[1:])


@pytest.mark.parametrize("branch", ["global", "local", "focal"])
def test_parameter_counts_of_the_full_size_branches(branch):
    net = config.cascade(config.default()).networks[branch]
    published, idle = _plain_conv_unet(net.channels)
    assert published == PUBLISHED[branch]
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 128, 128, 1)))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == published - idle == OURS[branch]


def _assert_he_normal(kernel, fan_in, tolerance):
    """Variance 2 / ((1 + slope^2) fan_in), and tails as long as a normal distribution's."""
    kernel = np.asarray(kernel)
    expected = np.sqrt(2 / ((1 + 0.01**2) * fan_in))
    assert kernel.std() == pytest.approx(expected, rel=tolerance)
    assert abs(kernel.mean()) < tolerance * expected * 3
    assert np.abs(kernel).max() > 3 * expected


def test_kernels_start_he_normal():
    """A standard deviation from n samples is off by 1 / sqrt(2 n): at most four times that."""
    conv = _init(ConvBlock(32), 1, 4, 4, 48)["conv"]["kernel"]
    _assert_he_normal(conv, 9 * 48, 4 / np.sqrt(2 * conv.size))
    up = _init(UpConv(32), 1, 4, 4, 96)["kernel"]
    _assert_he_normal(up, 4 * 32, 4 / np.sqrt(2 * up.size))
    head = _init(UNet((48,), classes=64), 1, 4, 4, 1)["head"]["kernel"]
    _assert_he_normal(head, 48, 4 / np.sqrt(2 * head.size))


def test_biases_start_at_zero_and_scales_at_one():
    params = _init(UNet((2,)), 1, 4, 4, 1)
    up = _init(UpConv(2), 1, 2, 2, 1)
    biases, scales = [*_leaves(params, "bias"), up["bias"]], _leaves(params, "scale")
    # Two blocks of convolution and normalisation, a head, a transposed convolution.
    assert (len(biases), len(scales)) == (6, 2)
    assert all((bias == 0).all() for bias in biases)
    assert all((scale == 1).all() for scale in scales)


# ---- Layers --------------------------------------------------------------------------------------


def _conv_block(x, kernel, bias, scale, shift, stride):
    """Padding of 1 on every side whatever the stride, as PyTorch's `Conv2d(padding=1)`."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = ((side + 2 - 3) // stride + 1 for side in x.shape[1:3])
    y = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i, j in itertools.product(range(rows), range(columns)):
        field = padded[:, stride * i : stride * i + 3, stride * j : stride * j + 3]
        y[:, i, j] = np.tensordot(field, kernel, 3) + bias
    y = (y - y.mean(axis=(1, 2), keepdims=True)) / np.sqrt(y.var(axis=(1, 2), keepdims=True) + 1e-5)
    y = y * scale + shift
    return np.where(y > 0, y, 0.01 * y)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_conv_block_against_numpy(stride, size):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, 3)), rng.normal(size=(3, 3, 3, 4))
    bias, scale, shift = rng.normal(size=(3, 4))
    params = {"conv": {"kernel": kernel, "bias": bias}, "norm": {"scale": scale, "bias": shift}}
    found = ConvBlock(4, stride).apply({"params": params}, jnp.asarray(x, jnp.float32))
    expected = _conv_block(x, kernel, bias, scale, shift, stride)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_up_conv_against_numpy():
    """`out[2 i + k, 2 j + l] = kernel[k, l] x[i, j] + bias`, as PyTorch's `ConvTranspose2d`."""
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 2, 5, 6)), np.arange(6.0)
    expected = np.zeros((2, 6, 8, 6))
    for i, j, k, m in itertools.product(range(3), range(4), range(2), range(2)):
        expected[:, 2 * i + k, 2 * j + m] = x[:, i, j] @ kernel[k, m] + bias
    params = {"kernel": kernel, "bias": bias}
    found = UpConv(6).apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)


# ---- Network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (7, 8), (13, 17), (16, 16), (33, 5)])
def test_logits_have_the_size_of_the_image(size, fold):
    net = UNet((2, 3, 4), classes=3, fold=fold)
    image = jax.ShapeDtypeStruct((2, *size, 1), jnp.float32)
    logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), image)
    assert logits.shape == (2, *size, 3)


def test_odd_sizes_are_padded_with_the_border_and_cropped_back(tiny, tiny_params):
    net, variables = tiny.global_net, {"params": tiny_params["global"]}
    image = np.random.default_rng(0).random((1, 9, 7, 1)).astype(np.float32)
    padded = np.pad(image, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    apply = jax.jit(net.apply)
    found, whole = apply(variables, image), apply(variables, padded)
    np.testing.assert_allclose(found, whole[:, :9, :7], atol=1e-5)


def test_bfloat16_is_the_type_of_the_computation_alone():
    block = ConvBlock(3, dtype="bfloat16")
    activations, variables = block.init_with_output(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    assert activations.dtype == jnp.bfloat16
    logits, more = jax.eval_shape(
        UNet((2, 3), dtype="bfloat16").init_with_output,
        jax.random.key(0),
        jnp.ones((1, 4, 4, 1)),
    )
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, more))} == {jnp.dtype("float32")}


def test_rematerialised_gradients_are_the_same_from_the_stages_alone(tiny, tiny_params):
    net, params = tiny.global_net, tiny_params["global"]
    image = np.random.default_rng(0).random((1, 16, 16, 1)).astype(np.float32)
    again = net.clone(remat=True)

    def gradient(net):
        """In float64: in float32, XLA rounds the two programs each in its own way."""
        net = net.clone(dtype="float64")
        with jax.enable_x64(True):
            loss = jax.grad(lambda p: jnp.square(net.apply({"params": p}, image)).sum())
            return jax.jit(loss)(jax.tree.map(np.float64, params))

    def kept(batch):
        images = jax.ShapeDtypeStruct((batch, *image.shape[1:]), image.dtype)
        pullback = jax.eval_shape(
            lambda p, x: jax.vjp(lambda p: again.apply({"params": p}, x), p)[1], params, images
        )
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12),
        gradient(again),
        gradient(net),
    )
    encoded = [features * (16 >> stage) ** 2 for stage, features in enumerate(net.channels)]
    assert kept(2) - kept(1) == image.size + sum(encoded) + sum(encoded[:-1])


# ---- Folding -------------------------------------------------------------------------------------


def test_a_folded_network_is_a_plain_one_on_squares_of_pixels():
    """Channel `4 r + 2 c + k` is channel k of row r and column c of a square of 2 x 2 pixels."""
    rng = np.random.default_rng(0)
    images = rng.random((2, 8, 12, 2)).astype(np.float32)
    folded = np.zeros((2, 4, 6, 8), np.float32)
    for r, c, k in itertools.product(range(2), range(2), range(2)):
        folded[..., 4 * r + 2 * c + k] = images[:, r::2, c::2, k]
    plain, net = UNet((2, 3), classes=12), UNet((2, 3), classes=3, fold=2)
    params = _init(plain, *folded.shape)
    shapes = jax.eval_shape(net.init, jax.random.key(0), images)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    expected = np.zeros((2, 8, 12, 3), np.float32)
    logits = np.asarray(plain.apply({"params": params}, folded))
    for r, c, k in itertools.product(range(2), range(2), range(3)):
        expected[:, r::2, c::2, k] = logits[..., 6 * r + 3 * c + k]
    found = net.apply({"params": params}, images)
    np.testing.assert_allclose(found, expected, atol=1e-6)
