import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tprnet_jax.models.residual import ResidualBlock, residual_names


def _normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _filled(block, channels):
    """Parameters of which none is where it starts."""
    image = jnp.zeros((1, 8, 8, channels))
    shapes = jax.eval_shape(block.init, jax.random.key(0), image)["params"]
    return jax.tree.map(lambda leaf: _normal(leaf.size, leaf.shape), shapes)


def _convolved(x, kernel, stride):
    side = len(kernel)
    padded = np.pad(x, ((0, 0), *[(side // 2, side // 2)] * 2, (0, 0)))
    taps = [
        padded[:, i : i + x.shape[1] : stride, j : j + x.shape[2] : stride] @ kernel[i, j]
        for i in range(side)
        for j in range(side)
    ]
    return np.sum(taps, axis=0)


def _normalised(x, norm):
    centred = x - x.mean(axis=(1, 2), keepdims=True)
    return (
        centred / np.sqrt(x.var(axis=(1, 2), keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]
    )


def _leaky(x):
    return np.maximum(x, 0.01 * x)


def _expected(x, params, stride):
    y = _convolved(x, params["conv1"]["conv"]["kernel"], stride)
    y = _leaky(_normalised(y, params["conv1"]["norm"]))
    y = _normalised(_convolved(y, params["conv2"]["conv"]["kernel"], 1), params["conv2"]["norm"])
    if stride == 2:
        x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    if "skip" in params:
        x = _normalised(_convolved(x, params["skip"]["conv"]["kernel"], 1), params["skip"]["norm"])
    return _leaky(y + x)


@pytest.mark.parametrize(("channels", "stride"), [(4, 1), (4, 2), (3, 1), (3, 2)])
def test_against_numpy(channels, stride):
    block, x = ResidualBlock(4, stride), _normal(0, (2, 8, 10, channels))
    params = _filled(block, channels)
    assert ("skip" in params) == (channels != 4)
    found = jax.jit(block.apply)({"params": params}, x)
    np.testing.assert_allclose(found, _expected(x, params, stride), atol=2e-5)


def test_a_new_block_passes_its_skip_on():
    x = _normal(0, (1, 8, 8, 4))
    found, _ = jax.jit(ResidualBlock(4).init_with_output)(jax.random.key(0), x)
    np.testing.assert_allclose(found, _leaky(x), atol=1e-6)


def test_names_count_the_pooling_of_the_skip():
    path, layers = ("skip", "norm", "bias"), ("norm.bias", "all_modules.1.bias")
    assert list(residual_names("b", path, stride=1)) == [f"b.skip.0.{layer}" for layer in layers]
    assert list(residual_names("b", path, stride=2)) == [f"b.skip.1.{layer}" for layer in layers]
    found = list(residual_names("b", ("conv2", "conv", "kernel"), stride=2))
    assert found == ["b.conv2.conv.weight", "b.conv2.all_modules.0.weight"]
