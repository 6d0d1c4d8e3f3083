"""The weight gradient of a 3x3 convolution, for CPUs.

On large images XLA takes several times as long for it there as for the convolution.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax

# Output pixels of a block; output pixels up to which a batch is one tall image; and features from
# which one product keeps two cores busy.
_BLOCK_PIXELS = 2048
_SMALL = 32 * 32
_WIDE = 256


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
