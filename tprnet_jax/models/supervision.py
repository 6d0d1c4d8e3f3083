"""Deep supervision (Lee et al. 2015) as nnU-Net has it: each stage of the decoder has a loss."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from tprnet_jax.models.parts import pad_to_multiple
from tprnet_jax.models.unet import he_normal, torch_coarse_heads


class Supervised:
    """Part of a network with `channels` and `classes`, and coarser heads if it is `auxiliary`."""

    def torch_idle(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the heads that only deep supervision uses, if ours has none."""
        return {} if self.auxiliary else torch_coarse_heads(self.channels, self.classes)


def supervise(net: nn.Module, x: jax.Array, stage: int) -> None:
    """Hands out the logits of a stage of the decoder below full resolution, where they are asked.

    They are sown in the collection "auxiliary" as "logits_1" at half the resolution, "logits_2" at
    a quarter and so on, where that collection is mutable. The heads that give them, "head_1",
    "head_2" and so on, exist if the network is `auxiliary`.
    """
    if net.auxiliary and net.is_mutable_collection("auxiliary"):
        net.sow("auxiliary", f"logits_{stage}", head(net, x, f"head_{stage}"))


def head(net: nn.Module, x: jax.Array, name: str = "head") -> jax.Array:
    """The logits, float32, of a stage of a network with `classes` and a `dtype`."""
    convolution = nn.Conv(net.classes, (1, 1), kernel_init=he_normal, dtype=net.dtype, name=name)
    logits = convolution(x)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def deep_supervision(
    outputs: dict[str, jax.Array], mask: jax.Array, loss: Callable[..., jax.Array]
) -> jax.Array:
    """What the coarser outputs add to the loss of the one at full resolution.

    Each has the same loss, on every 2nd, 4th, ... label, that nearest to the square's centre.
    nnU-Net weights its n outputs 1, 1/2, 1/4, ..., but the coarsest 0, divided by the sum of these
    weights, 2 - 2^(2 - n). Here the full resolution counts 1, half of it 1/2 and so on: with the
    loss of the full resolution, the total is that sum times nnU-Net's, 63/32 with the 7 outputs of
    8 stages.

    Args:
        outputs: What `supervise` hands out, of a network that has padded its images by
            `pad_to_multiple` to what its stages need; each `(batch, rows, columns, 2)`.
        mask: `(batch, height, width, 1)` in {0, 1}; it is padded like the image.
        loss: That of the full resolution, of logits and a mask of their size.

    Returns:
        A scalar.
    """
    coarsest = len(outputs)
    mask = pad_to_multiple(mask, 2 ** (coarsest + 1))
    total = jnp.zeros(())
    for stage in range(1, coarsest):
        logits, labels = outputs[f"logits_{stage}"], _coarse(mask, 2**stage)
        total += loss(logits, labels) / 2**stage
    return total


def _coarse(mask: jax.Array, step: int) -> jax.Array:
    """Of each square the pixel at the centre; of the four there the last, as "nearest-exact"."""
    return mask[:, step // 2 :: step, step // 2 :: step]
