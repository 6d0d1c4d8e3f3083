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

from tprnet_jax.models.cpu_gradient import weight_gradient

NEGATIVE_SLOPE = 0.01
EPSILON = 1e-5


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

    by_blocks = functools.partial(weight_gradient, stride=stride)
    return x_gradient, lax.platform_dependent(x, gradient, cpu=by_blocks, default=by_xla)


convolve.defvjp(_convolve_forward, _convolve_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, slope: float = NEGATIVE_SLOPE
) -> jax.Array:
    """Instance normalisation (Ulyanov et al. 2016), affine, then leaky ReLU.

    Statistics are float32 at least, and the variance is the mean square distance to the mean: the
    fast E[x^2] - E[x]^2 cancels, and doubles the distance to PyTorch's logits. For the gradient
    only `x` and the statistics are kept.

    Args:
        x: `(batch, height, width, channels)`.
        scale: `(channels,)` float32.
        bias: `(channels,)` float32.
        slope: Of the leaky ReLU below zero; 1 leaves it out.

    Returns:
        Of the shape and type of `x`.
    """
    return _normalise_forward(x, scale, bias, slope)[0]


def _normalise_forward(x, scale, bias, slope):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axis=(1, 2), keepdims=True)
    variance = jnp.square(wide - mean).mean(axis=(1, 2), keepdims=True)
    rate = lax.rsqrt(variance + EPSILON)
    # Behind the barrier, XLA does not keep the distances to the mean for a second use, which on
    # CPUs costs a write and a read more than to compute them again.
    x_again, mean_again = lax.optimization_barrier((x, mean))
    affine = _affine(x_again.astype(mean.dtype) - mean_again, rate, scale, bias)
    y = jnp.where(affine >= 0, affine, slope * affine).astype(x.dtype)
    return y, (x, mean, rate, scale, bias)


def _normalise_backward(slope, residuals, gradient):
    x, mean, rate, scale, bias = residuals
    distance = x.astype(mean.dtype) - mean
    active = _affine(distance, rate, scale, bias) >= 0
    gradient = gradient.astype(mean.dtype)
    gradient = jnp.where(active, gradient, slope * gradient)
    by_bias = gradient.sum(axis=(1, 2), keepdims=True)
    by_scale = rate * (gradient * distance).sum(axis=(1, 2), keepdims=True)
    pixels = x.shape[1] * x.shape[2]
    centred = gradient - by_bias / pixels - distance * (rate * by_scale / pixels)
    x_gradient = _row(scale) * rate * centred
    sums = [s.sum(axis=(0, 1, 2)).astype(scale.dtype) for s in (by_scale, by_bias)]
    return x_gradient.astype(x.dtype), *sums


normalise.defvjp(_normalise_forward, _normalise_backward)


def _affine(distance, rate, scale, bias):
    """Of the distance to the mean, standardised."""
    return distance * rate * _row(scale) + _row(bias)


def _row(channels):
    return channels.reshape(1, 1, 1, -1)
