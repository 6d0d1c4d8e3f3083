"""What CoANet's connectivity heads learn (Mei et al. 2021): which neighbours are vessel as well."""

import jax
import jax.numpy as jnp

# Names of the heads' logits, with the distance of their neighbours in pixels and their weight.
HEADS = {"connect_d2": (2, 0.6), "connect_d4": (4, 0.4)}
SHARE = 0.2  # Of their loss, beside the main one.
# Rows and columns to the nine neighbours, in the order of the official channels: the columns run
# backwards, because the official label files are written in BGR and read in RGB.
NEIGHBOURS = [(row, column) for row in (-1, 0, 1) for column in (1, 0, -1)]


def labels(mask: jax.Array, distance: int) -> jax.Array:
    """Whether a pixel and its neighbour in each of nine directions, itself one, are both vessel.

    Args:
        mask: `(batch, height, width, 1)` in {0, 1}.
        distance: Of the neighbours along either axis, pixels; those outside are no vessel.

    Returns:
        `(batch, height, width, 9)` in {0, 1}, in the order of `NEIGHBOURS`.
    """
    height, width = mask.shape[1:3]
    border = (distance, distance)
    padded = jnp.pad(mask, ((0, 0), border, border, (0, 0)))
    firsts = [(distance * (1 + row), distance * (1 + column)) for row, column in NEIGHBOURS]
    shifted = [padded[:, row : row + height, column : column + width] for row, column in firsts]
    return mask * jnp.concatenate(shifted, axis=-1)


def loss(outputs: dict[str, jax.Array], mask: jax.Array) -> jax.Array:
    """The heads' share of CoANet's loss, to be added to that of the segmentation.

    Args:
        outputs: Logits `(batch, height, width, 9)` of each of `HEADS`.
        mask: `(batch, height, width, 1)` in {0, 1}.

    Returns:
        0.2 (0.6 near + 0.4 far), means of the binary cross-entropy over pixels and neighbours.
    """
    total = 0.0
    for name, (distance, weight) in HEADS.items():
        total += weight * cross_entropy(outputs[name], labels(mask, distance))
    return SHARE * total


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean binary cross-entropy of logits and labels in {0, 1}, both of one shape."""
    return (jax.nn.softplus(logits) - labels * logits).mean()
