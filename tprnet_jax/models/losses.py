"""Cross-entropy and soft Dice, whose sum nnU-Net minimises."""

import jax

SMOOTH = 1e-5


def cross_entropy(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean cross-entropy over all pixels.

    Args:
        logits: `(batch, height, width, 2)`.
        mask: `(batch, height, width, 1)` in {0, 1}.

    Returns:
        A scalar.
    """
    margin = _margin(logits)
    return (jax.nn.softplus(margin) - mask * margin).mean()


def soft_dice(logits: jax.Array, mask: jax.Array, of_images: bool = False) -> jax.Array:
    """Negative soft Dice of the foreground class.

    Args:
        logits: `(batch, height, width, 2)`.
        mask: `(batch, height, width, 1)` in {0, 1}.
        of_images: Whether it is the mean over images, each counting the same as in the metric,
            rather than that of sums pooled over the batch, where large vessel trees count for more.

    Returns:
        A scalar in [-1, 0].
    """
    probability = jax.nn.sigmoid(_margin(logits))
    axes = (1, 2, 3) if of_images else None
    intersection = (probability * mask).sum(axes)
    areas = probability.sum(axes) + mask.sum(axes)
    return -((2 * intersection + SMOOTH) / (areas + SMOOTH)).mean()


def _margin(logits: jax.Array) -> jax.Array:
    """By how much the foreground leads, `(..., 1)`.

    The softmax of two classes is the logistic function of it, without reductions over pairs.
    """
    return logits[..., 1:] - logits[..., :1]
