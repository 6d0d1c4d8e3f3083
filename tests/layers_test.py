"""Gradients written by hand, against automatic ones in float64 and against sums by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tprnet_jax.models import cpu_gradient, layers


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def _with_gradients(function, gradient, *arguments):
    """The result, and what `gradient` of it is to each argument."""

    def both(gradient, *arguments):
        result, pullback = jax.vjp(function, *arguments)
        return result, *pullback(gradient)

    return jax.jit(both)(gradient, *arguments)


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def _convolution(x, kernel, stride):
    border = ((1, 1), (1, 1))
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), border, dimension_numbers=layout)


# More and fewer pixels than `_SMALL`, where a batch is one tall image; one block and several, that
# fill the rows and that do not; a stride with and without a pixel left over.
SHAPES = [
    ((2, 9, 7, 3), 1, 4),
    ((3, 9, 8, 3), 2, 4),
    ((1, 80, 64, 2), 1, 4),
    ((1, 40, 72, 10), 1, 4),  # Channels in pieces of 4, the last one of 2.
    ((1, 36, 70, 2), 1, 256),  # Wide.
    ((3, 65, 70, 1), 1, 4),
    ((2, 136, 130, 3), 2, 4),
    ((1, 131, 141, 2), 2, 4),
]


@pytest.mark.parametrize(("shape", "stride", "features"), SHAPES)
def test_gradients_of_the_convolution(float64, shape, stride, features):
    x, kernel = _normal(0, *shape), _normal(1, 3, 3, shape[-1], features)
    gradient = _normal(2, shape[0], *(-(-side // stride) for side in shape[1:3]), features)
    expected = _with_gradients(lambda *a: _convolution(*a, stride), gradient, x, kernel)
    found = _with_gradients(lambda *a: layers.convolve(*a, stride), gradient, x, kernel)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float64
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_weight_gradient_is_a_sum_over_pixels(stride):
    x = _normal(0, 2, 22, 17, 3).astype(np.float32)
    rows, columns = -(-22 // stride), -(-17 // stride)
    gradient = _normal(1, 2, rows, columns, 4).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float64)
    expected = np.zeros((3, 3, 3, 4))
    for i in range(rows):
        for j in range(columns):
            field = padded[:, stride * i : stride * i + 3, stride * j : stride * j + 3]
            expected += np.einsum("nabc,nf->abcf", field, gradient[:, i, j])
    found = jax.jit(cpu_gradient.weight_gradient, static_argnums=2)(x, gradient, stride)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.dtype == np.float32


def test_the_weight_gradient_of_a_large_image_is_exact_to_rounding():
    """Of 2**18 products each, XLA's own sums are off by some 2e-5 of the largest."""
    x, gradient = _normal(0, 1, 512, 512, 2), _normal(1, 1, 512, 512, 3)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = [
        [
            np.einsum("nijc,nijf->cf", padded[:, a : a + 512, b : b + 512], gradient)
            for b in range(3)
        ]
        for a in range(3)
    ]
    weight_gradient = jax.jit(cpu_gradient.weight_gradient, static_argnums=2)
    found = weight_gradient(x.astype(np.float32), gradient.astype(np.float32), 1)
    assert np.abs(found - np.array(exact)).max() < 2e-6 * np.abs(exact).max()


def test_a_bfloat16_convolution_has_bfloat16_gradients_summed_in_float32():
    x, kernel = np.ones((1, 72, 72, 1), jnp.bfloat16), np.ones((3, 3, 1, 1), jnp.bfloat16)
    _, x_gradient, kernel_gradient = _with_gradients(
        lambda *a: layers.convolve(*a, 1), x, x, kernel
    )
    assert x_gradient.dtype == kernel_gradient.dtype == jnp.bfloat16
    # Where bfloat16 counts, it stops at 256.
    assert kernel_gradient[1, 1, 0, 0] == jnp.bfloat16(72 * 72)
    assert x_gradient[0, 0, 0, 0] == 4


def _normalisation(x, scale, bias, slope):
    mean, variance = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    y = (x - mean) / jnp.sqrt(variance + 1e-5) * scale[None, None, None] + bias[None, None, None]
    return jnp.where(y >= 0, y, slope * y)


@pytest.mark.parametrize(
    ("shape", "slope"),
    [((2, 5, 7, 3), 0.01), ((1, 1, 1, 2), 0.01), ((3, 16, 2, 1), 0.01), ((2, 5, 7, 3), 1.0)],
)
def test_gradients_of_the_normalisation(float64, shape, slope):
    x = 3 + 2 * _normal(0, *shape)
    scale, bias = _normal(1, shape[-1]), _normal(2, shape[-1])
    gradient = _normal(3, *shape)
    arrays = gradient, x, scale, bias
    expected = _with_gradients(lambda *a: _normalisation(*a, slope), *arrays)
    found = _with_gradients(lambda *a: layers.normalise(*a, slope), *arrays)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_a_constant_added_before_the_normalisation_has_no_effect():
    """Why the bias of a convolution is not added."""
    x = _normal(0, 2, 8, 8, 3).astype(np.float32)
    scale, bias = np.ones(3, np.float32), np.zeros(3, np.float32)
    normalise = jax.jit(layers.normalise)
    np.testing.assert_allclose(normalise(x + 5, scale, bias), normalise(x, scale, bias), atol=1e-5)


def test_the_normalisation_keeps_one_large_array_for_its_gradient():
    x, scale = np.ones((2, 16, 16, 3), np.float32), np.ones(3, np.float32)
    pullback = jax.eval_shape(lambda *a: jax.vjp(layers.normalise, *a)[1], x, scale, 0 * scale)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if leaf.size == x.size]
    assert len(kept) == 1
