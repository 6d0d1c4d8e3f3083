"""Convolution, and normalisation with its activation, with gradients written by hand.

Nearly all of a network's time goes into these two. The automatic gradients are right, but slower:
on CPUs, XLA takes several times as long for the weight gradient of a convolution on large images
as for the convolution; and everywhere, the automatic gradient of a normalisation keeps and reads
more arrays than it needs.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax

NEGATIVE_SLOPE = 0.01
EPSILON = 1e-5

# For the weight gradient on CPUs: output pixels of a block; output pixels up to which a batch is
# one tall image; and features from which one product keeps two cores busy.
_BLOCK_PIXELS = 2048
_SMALL = 32 * 32
_WIDE = 256


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


def weight_gradient(x: jax.Array, gradient: jax.Array, stride: int) -> jax.Array:
    """Gradient of `convolve` by its kernel, summed over blocks of rows by matrix products.

    Row r of `x` and row p of `gradient` meet in row r - stride p + 1 of the kernel. So one product
    of `x` shifted by column with `gradient` shifted by row has all nine taps, and needs far fewer
    copies than nine shifts of `x`; those of a block stay in the cache. With few features, two
    blocks to a product keep two cores apart, which is faster than having them share one; and the
    channels are taken in pieces as wide as `gradient`, because the product of two squares is the
    fastest. The sum of partial sums is also closer to the exact one than XLA's.

    Args:
        x: `(batch, height, width, channels)`, what was convolved.
        gradient: `(batch, rows, columns, features)`, that of the result.
        stride: Of the convolution, 1 or 2.

    Returns:
        `(3, 3, channels, features)`, of the type of `x`.
    """
    batch, rows, columns, features = gradient.shape
    if rows * columns <= _SMALL:
        # One image below the other, with zeros between, so that neighbours never meet.
        x = _add_rows(x, 0, (rows + 1) * stride - x.shape[1]).reshape(1, -1, *x.shape[2:])
        gradient = _add_rows(gradient, 0, 1).reshape(1, -1, columns, features)
        batch, rows = gradient.shape[:2]
    at_once = 1 if features >= _WIDE else 2
    per_image = -(-rows * columns // (_BLOCK_PIXELS * at_once)) * at_once
    block_rows = -(-rows // per_image)
    all_rows = per_image * block_rows  # Zeros fill the last ones, and add nothing.
    before = 2 - stride  # Rows of the gradient before, and one after, meet a row of x as well.
    shifts = before + 2
    x = _add_rows(x, 0, all_rows * stride - x.shape[1])
    gradient = _add_rows(gradient, before, all_rows - rows + 1)
    pieces = [slice(first, first + features) for first in range(0, x.shape[-1], features)]

    def block(number):
        image, row = number // per_image, number % per_image * block_rows
        seen = _rows(x, image, row * stride, block_rows * stride)
        sent = _rows(gradient, image, row, block_rows + shifts - 1)
        taps = _column_taps(seen, columns, stride)
        shifted = [sent[shift : shift + block_rows] for shift in range(shifts)]
        return [_matrix([tap[..., piece] for tap in taps]) for piece in pieces], _matrix(shifted)

    accumulator = jnp.promote_types(x.dtype, jnp.float32)
    product = functools.partial(jnp.einsum, "bpc,bpf->bcf", preferred_element_type=accumulator)

    def add(totals, first):
        parts, sent = jax.vmap(block)(first + jnp.arange(at_once))
        return [t + product(part, sent) for t, part in zip(totals, parts, strict=True)], None

    sizes = [(3 * stride * x[..., piece].shape[-1], shifts * features) for piece in pieces]
    totals = [jnp.zeros((at_once, *size), accumulator) for size in sizes]
    totals, _ = lax.scan(add, totals, jnp.arange(0, batch * per_image, at_once))
    # One after the other: XLA's reduction of so few takes as long as the products.
    shape = stride, 3, -1, shifts, features
    totals = [functools.reduce(operator.add, t).reshape(shape) for t in totals]
    total = jnp.concatenate(totals, axis=2)
    phases = [(row - 1) % stride for row in range(3)]
    met = [before + (phase + 1 - row) // stride for row, phase in enumerate(phases)]
    kernel_rows = [total[phase, :, :, shift] for phase, shift in zip(phases, met, strict=True)]
    return jnp.stack(kernel_rows).astype(x.dtype)


def _add_rows(x: jax.Array, above: int, below: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (above, below), (0, 0), (0, 0)))


def _rows(x: jax.Array, image, first, count: int) -> jax.Array:
    return lax.dynamic_slice(x, (image, first, 0, 0), (1, count, *x.shape[2:]))[0]


def _column_taps(rows: jax.Array, columns: int, stride: int) -> list[jax.Array]:
    """What each column of the kernel saw, for each of the `stride` rows to a row of the result."""
    rows = jnp.pad(rows, ((0, 0), (1, stride * columns + 1 - rows.shape[1]), (0, 0)))
    rows = rows.reshape(-1, stride, *rows.shape[1:])
    ends = [(first, first + stride * (columns - 1) + 1) for first in range(3)]
    return [rows[:, p, first:end:stride] for p in range(stride) for first, end in ends]


def _matrix(parts: list[jax.Array]) -> jax.Array:
    """Parts side by side, a row for each pixel."""
    parts = jnp.concatenate(parts, axis=-1)
    return parts.reshape(-1, parts.shape[-1])


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
    # Behind the barrier, XLA does not keep the distances to the mean for a second use, which on
    # CPUs costs a write and a read more than to compute them again.
    x_again, mean_again = lax.optimization_barrier((x, mean))
    affine = _affine(x_again.astype(mean.dtype) - mean_again, rate, scale, bias)
    y = jnp.where(affine >= 0, affine, NEGATIVE_SLOPE * affine).astype(x.dtype)
    return y, (x, mean, rate, scale, bias)


def _normalise_backward(residuals, gradient):
    x, mean, rate, scale, bias = residuals
    distance = x.astype(mean.dtype) - mean
    active = _affine(distance, rate, scale, bias) >= 0
    gradient = gradient.astype(mean.dtype)
    gradient = jnp.where(active, gradient, NEGATIVE_SLOPE * gradient)
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
