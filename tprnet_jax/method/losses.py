"""The training objective: cross-entropy + soft Dice (nnU-Net), as the released TPRNet uses it."""

import jax

from tprnet_jax.models.losses import cross_entropy, soft_dice

LOSSES = ("cross_entropy_dice", "cross_entropy")


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
