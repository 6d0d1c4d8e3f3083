"""Convolution, and normalisation with its activation, with gradients written by hand.

Nearly all of a network's time goes into these two. The automatic gradients are right, but slower:
on CPUs, XLA takes several times as long for the weight gradient of a convolution on large images
as for the convolution; and everywhere, the automatic gradient of a normalisation keeps and reads
more arrays than it needs.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

NEGATIVE_SLOPE = 0.01
EPSILON = 1e-5

# On CPUs, XLA's own weight gradient is the faster one up to this number of output pixels.
_SMALL = 64 * 64
_BLOCK_ROWS = 4
_BLOCKS_AT_ONCE = 2


def _convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    border = ((1, 1), (1, 1))
    return lax.conv_general_dilated(x, kernel, (stride, stride), border, dimension_numbers=layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """3x3 convolution with a border of one zero.

    Args:
        x: `(batch, height, width, channels)`.
        kernel: `(3, 3, channels, features)`, of the same type.
        stride: Between the pixels of the result.

    Returns:
        `(batch, ceil(height / stride), ceil(width / stride), features)`.
    """
    return _convolution(x, kernel, stride)


def _convolve_forward(x, kernel, stride):
    return _convolution(x, kernel, stride), (x, kernel)


def _convolve_backward(stride, residuals, gradient):
    x, kernel = residuals
    (x_gradient,) = jax.vjp(lambda x: _convolution(x, kernel, stride), x)[1](gradient)

    def by_xla(x, gradient):
        return jax.vjp(lambda kernel: _convolution(x, kernel, stride), kernel)[1](gradient)[0]

    # What XLA divides over several devices, blocks would first have to gather.
    if gradient.shape[1] * gradient.shape[2] <= _SMALL or jax.device_count() > 1:
        return x_gradient, by_xla(x, gradient)
    by_blocks = functools.partial(weight_gradient, stride=stride)
    return x_gradient, lax.platform_dependent(x, gradient, cpu=by_blocks, default=by_xla)


convolve.defvjp(_convolve_forward, _convolve_backward)


def weight_gradient(x: jax.Array, gradient: jax.Array, stride: int) -> jax.Array:
    """Gradient of `convolve` by its kernel, summed over blocks of rows by matrix products.

    The nine shifted copies that a block needs stay in the cache. Two blocks to a product keep two
    cores apart, which is faster than having them share one. The sum of partial sums is also closer
    to the exact one than XLA's.

    Args:
        x: `(batch, height, width, channels)`, what was convolved.
        gradient: `(batch, rows, columns, features)`, that of the result.
        stride: Of the convolution.

    Returns:
        `(3, 3, channels, features)`, of the type of `x`.
    """
    batch, rows, columns, features = gradient.shape
    channels = x.shape[-1]
    per_image = -(-rows // (_BLOCK_ROWS * _BLOCKS_AT_ONCE)) * _BLOCKS_AT_ONCE
    rows_in_blocks = per_image * _BLOCK_ROWS  # Zeros fill the last ones, and add nothing.
    height, width = ((side - 1) * stride + 3 for side in (rows_in_blocks, columns))
    below, right = height - x.shape[1] - 1, width - x.shape[2] - 1
    x = jnp.pad(x, ((0, 0), (1, below), (1, right), (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (0, rows_in_blocks - rows), (0, 0), (0, 0)))
    seen_rows = (_BLOCK_ROWS - 1) * stride + 3

    def block(number):
        image, row = number // per_image, number % per_image * _BLOCK_ROWS
        seen = lax.dynamic_slice(x, (image, row * stride, 0, 0), (1, seen_rows, width, channels))
        sent = lax.dynamic_slice(gradient, (image, row, 0, 0), (1, _BLOCK_ROWS, columns, features))
        shifted = [
            seen[:, i : i + seen_rows - 2 : stride, j : j + width - 2 : stride]
            for i in range(3)
            for j in range(3)
        ]
        matrices = jnp.concatenate(shifted, axis=-1), sent
        return [m.reshape(_BLOCK_ROWS * columns, m.shape[-1]) for m in matrices]

    accumulator = jnp.promote_types(x.dtype, jnp.float32)

    def add(total, first):
        some = jax.vmap(block)(first + jnp.arange(_BLOCKS_AT_ONCE))
        product = jnp.einsum("bpc,bpf->bcf", *some, preferred_element_type=accumulator)
        return total + product, None

    total = jnp.zeros((_BLOCKS_AT_ONCE, 9 * channels, features), accumulator)
    total, _ = lax.scan(add, total, jnp.arange(0, batch * per_image, _BLOCKS_AT_ONCE))
    return total.sum(axis=0).reshape(3, 3, channels, features).astype(x.dtype)


@jax.custom_vjp
def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Instance normalisation (Ulyanov et al. 2016), affine, then leaky ReLU.

    Statistics are float32 at least, and the variance is the mean square distance to the mean: the
    fast E[x^2] - E[x]^2 cancels, and doubles the distance to PyTorch's logits. For the gradient
    only `x` and the statistics are kept.

    Args:
        x: `(batch, height, width, channels)`.
        scale: `(channels,)` float32.
        bias: `(channels,)` float32.

    Returns:
        Of the shape and type of `x`.
    """
    return _normalise_forward(x, scale, bias)[0]


def _normalise_forward(x, scale, bias):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axis=(1, 2), keepdims=True)
    variance = jnp.square(wide - mean).mean(axis=(1, 2), keepdims=True)
    rate = lax.rsqrt(variance + EPSILON)
    affine = _affine(_standard(x, mean, rate), scale, bias)
    y = jnp.where(affine >= 0, affine, NEGATIVE_SLOPE * affine).astype(x.dtype)
    return y, (x, mean, rate, scale, bias)


def _normalise_backward(residuals, gradient):
    x, mean, rate, scale, bias = residuals
    standard = _standard(x, mean, rate)
    active = _affine(standard, scale, bias) >= 0
    gradient = gradient.astype(standard.dtype)
    gradient = jnp.where(active, gradient, NEGATIVE_SLOPE * gradient)
    by_bias = gradient.sum(axis=(1, 2), keepdims=True)
    by_scale = (gradient * standard).sum(axis=(1, 2), keepdims=True)
    pixels = x.shape[1] * x.shape[2]
    centred = gradient - (by_bias + standard * by_scale) / pixels
    x_gradient = _row(scale) * rate * centred
    sums = [s.sum(axis=(0, 1, 2)).astype(scale.dtype) for s in (by_scale, by_bias)]
    return x_gradient.astype(x.dtype), *sums


normalise.defvjp(_normalise_forward, _normalise_backward)


def _standard(x, mean, rate):
    return (x.astype(mean.dtype) - mean) * rate


def _affine(standard, scale, bias):
    return standard * _row(scale) + _row(bias)


def _row(channels):
    return channels.reshape(1, 1, 1, -1)
