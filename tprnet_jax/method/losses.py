"""The training objective: cross-entropy + soft Dice (nnU-Net), as the released TPRNet uses it."""

import jax

LOSSES = ("cross_entropy_dice", "cross_entropy")
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


def segmentation_loss(
    logits: jax.Array, mask: jax.Array, of_images: bool = False, with_dice: bool = True
) -> jax.Array:
    """Cross-entropy + soft Dice, equal weights, see `soft_dice`; or the former alone."""
    loss = cross_entropy(logits, mask)
    return loss + soft_dice(logits, mask, of_images) if with_dice else loss


def patch_losses(logits: jax.Array, masks: jax.Array, with_dice: bool = True) -> jax.Array:
    """`segmentation_loss` of each patch by itself.

    Args:
        logits: `(patches, rows, columns, 2)`.
        masks: `(patches, rows, columns, 1)` in {0, 1}.
        with_dice: See `segmentation_loss`.

    Returns:
        `(patches,)`.
    """

    def loss(one, mask):
        return segmentation_loss(one[None], mask[None], with_dice=with_dice)

    return jax.vmap(loss)(logits, masks)
