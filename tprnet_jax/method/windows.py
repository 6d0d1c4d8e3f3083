"""Rectangle, valid centre, crop and reconstruction on the device (paper, Eqs. 1-3, 5 and 6).

Positions are integers in pixels, (row, column); a window is named by its first row and column, its
origin. Everything here is pure, and every shape is static: the number of patches that an image
needs never reaches the compiler.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Patches(NamedTuple):
    """A chunk of patches from the images of one batch.

    Attributes:
        owner: `(chunk,)` int32, the image that each patch belongs to; the batch size where the
            slot is empty, so that whatever is added there is dropped.
        origin: `(chunk, 2)` int32, first row and column of each patch in its image.
    """

    owner: jax.Array
    origin: jax.Array


def rectangle(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Minimum bounding rectangle of each mask (Eq. 1).

    Args:
        mask: `(batch, height, width)` bool.

    Returns:
        `start` and `end` (exclusive), each `(batch, 2)` int32. An empty mask has the whole image
        as its rectangle, which centres the window on the image.
    """
    bounds = [_extent(mask.any(axis=other)) for other in (2, 1)]
    start, end = (jnp.stack(sides, axis=-1) for sides in zip(*bounds, strict=True))
    return start, end


def _extent(occupied: jax.Array) -> tuple[jax.Array, jax.Array]:
    size = occupied.shape[-1]
    empty = ~occupied.any(axis=-1)
    start = jnp.argmax(occupied, axis=-1)
    end = size - jnp.argmax(occupied[:, ::-1], axis=-1)
    return jnp.where(empty, 0, start), jnp.where(empty, size, end)


def window_origin(
    start: jax.Array,
    end: jax.Array,
    window: tuple[int, int],
    image: tuple[int, int],
    column: str = "midpoint",
) -> jax.Array:
    """Origin of the window around each rectangle, shifted to lie inside the image (Eq. 2).

    Args:
        start: `(batch, 2)` first row and column of the rectangles.
        end: `(batch, 2)` row and column after their last.
        window: Height and width of the window, at most those of the image.
        image: Height and width of the image.
        column: Column of the window's centre: "midpoint", that of the rectangle; or "half_width",
            half the rectangle's width, a defect of the released code.

    Returns:
        `(batch, 2)` int32.
    """
    centre = (start + end) // 2
    if column == "half_width":
        centre = jnp.stack([centre[:, 0], (end - start)[:, 1] // 2], axis=-1)
    return valid_origin(centre, window, image)


def valid_origin(centre: jax.Array, window: tuple[int, int], image: tuple[int, int]) -> jax.Array:
    """Origin of the window around each `(..., 2)` centre, shifted to lie inside (Eq. 2).

    Takes and returns NumPy or JAX integers alike.
    """
    sides = enumerate(zip(window, image, strict=True))
    axes = [(centre[..., axis] - side // 2).clip(0, whole - side) for axis, (side, whole) in sides]
    return centre.__array_namespace__().stack(axes, axis=-1)


def crop(images: jax.Array, origin: jax.Array, window: tuple[int, int]) -> jax.Array:
    """Cuts one window out of each image (Eq. 3).

    Args:
        images: `(batch, height, width, channels)`.
        origin: `(batch, 2)`.
        window: Height and width of the windows.

    Returns:
        `(batch, *window, channels)`.
    """

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), (*window, image.shape[-1]))

    return jax.vmap(cut)(images, origin)


def uncrop(windows: jax.Array, origin: jax.Array, image: tuple[int, int]) -> jax.Array:
    """Puts each window back into an image of zeros; the inverse of `crop`.

    Args:
        windows: `(batch, rows, columns, channels)`.
        origin: `(batch, 2)`.
        image: Height and width of the images.

    Returns:
        `(batch, *image, channels)`.
    """

    def lay(window, corner):
        canvas = jnp.zeros((*image, window.shape[-1]), window.dtype)
        return jax.lax.dynamic_update_slice(canvas, window, (*corner, 0))

    return jax.vmap(lay)(windows, origin)


def stack_patches(images: jax.Array, patches: Patches, patch: tuple[int, int]) -> jax.Array:
    """Stacks the patches of a whole batch (Eq. 5).

    Args:
        images: `(batch, height, width, channels)`.
        patches: Where to cut; empty slots give some patch of the last image.
        patch: Height and width of a patch.

    Returns:
        `(chunk, *patch, channels)`.
    """

    def cut(owner, corner):
        start = (owner, *corner, jnp.zeros_like(owner))
        return jax.lax.dynamic_slice(images, start, (1, *patch, images.shape[-1]))[0]

    return jax.vmap(cut)(*patches)


def empty_canvas(batch: int, image: tuple[int, int], channels: int) -> jax.Array:
    """A canvas on which no patch lies yet: `(batch, *image, channels + 1)`, all zero.

    The first channels are for weighted values, the last one for the weights.
    """
    return jnp.zeros((batch, *image, channels + 1), jnp.float32)


def lay_patches(canvas: jax.Array, values: jax.Array, patches: Patches) -> jax.Array:
    """Adds patches to a canvas, each pixel weighted by `patch_weight` (Eq. 6).

    Sums do not depend on the order in which overlapping patches are laid.

    Args:
        canvas: `(batch, height, width, channels + 1)`, see `empty_canvas`.
        values: `(chunk, rows, columns, channels)`.
        patches: Where they belong.

    Returns:
        The canvas with the patches added.
    """
    weight = patch_weight(values.shape[1:3])[None, :, :, None]
    weighted = jnp.concatenate(
        [weight * values, jnp.broadcast_to(weight, (*values.shape[:-1], 1))], axis=-1
    )
    rows = patches.origin[:, :1] + jnp.arange(values.shape[1])[None]
    columns = patches.origin[:, 1:] + jnp.arange(values.shape[2])[None]
    place = canvas.at[patches.owner[:, None, None], rows[:, :, None], columns[:, None, :]]
    return place.add(weighted, mode="drop")


def lay_in_order(
    canvas: jax.Array, values: jax.Array, patches: Patches, first_share: float
) -> jax.Array:
    """Lays patches one after another, each averaged with what lies there, as the released code.

    Where patches overlap, the later one counts for more: half, and the one before it a quarter.

    Args:
        canvas: `(batch, height, width, channels + 1)`, see `empty_canvas`; the last channel is the
            share of a pixel that patches have, the first ones what they amount to.
        values: `(chunk, rows, columns, channels)`.
        patches: Where they belong.
        first_share: Share that the first patch on a pixel takes.

    Returns:
        The canvas with the patches laid.
    """
    batch = canvas.shape[0]
    values = jnp.concatenate([values, jnp.ones((*values.shape[:-1], 1))], axis=-1)

    def lay(canvas, patch):
        value, owner, origin = patch
        start = (owner, *origin, 0)
        there = jax.lax.dynamic_slice(canvas, start, (1, *value.shape))
        share = jnp.where(there[..., -1:] > 0, 0.5, first_share)
        share = jnp.where(owner < batch, share, 0.0)
        mixed = share * value[None] + (1 - share) * there
        return jax.lax.dynamic_update_slice(canvas, mixed, start), None

    return jax.lax.scan(lay, canvas, (values, *patches))[0]


def reconstruct(canvas: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weighted mean of all patches laid on a canvas, and where there is one (Eq. 6).

    Args:
        canvas: `(batch, height, width, channels + 1)`.

    Returns:
        Values `(batch, height, width, channels)`, zero where no patch lies, and coverage
        `(batch, height, width, 1)` bool.
    """
    total, weight = canvas[..., :-1], canvas[..., -1:]
    covered = weight > 0
    return total / jnp.where(covered, weight, 1.0), covered


def patch_weight(patch: tuple[int, int]) -> jax.Array:
    """Weight of each pixel of a patch, `(rows, columns)`: a pyramid, 1 at most.

    The network sees least around a pixel at the border of its patch; where patches overlap, the
    one that has the pixel nearer to its middle counts for more. No weight is zero.
    """
    ramps = []
    for size in patch:
        steps = jnp.arange(size)
        ramps.append(jnp.minimum(steps + 1, size - steps) / ((size + 1) // 2))
    return jnp.minimum(ramps[0][:, None], ramps[1][None, :])


def merge(
    first: jax.Array, first_covers: jax.Array, second: jax.Array, second_covers: jax.Array
) -> jax.Array:
    """Mean of two outputs where both are defined, elsewhere the one that is, or zero.

    Args:
        first: `(batch, height, width, channels)`.
        first_covers: `(batch, height, width, 1)` bool, or a scalar.
        second: As `first`.
        second_covers: As `first_covers`.
    """
    both = first_covers & second_covers
    return jnp.where(
        both, 0.5 * (first + second), jnp.where(first_covers, first, second_covers * second)
    )
