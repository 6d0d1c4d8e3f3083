"""nnU-Net v2 in 2-D (Isensee et al. 2021), with deep supervision."""

from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax

from tprnet_jax.models import residual, unet
from tprnet_jax.models.parts import pad_to_multiple
from tprnet_jax.models.supervision import Supervised, head, supervise

VARIANTS = ("plain", "resenc")
_RESIDUAL_BLOCKS = (1, 3, 4, 6)  # Of each stage of the residual encoder; of deeper ones the last.


class NNUNet(Supervised, nn.Module):
    """The two networks that nnU-Net plans, by default those for images of 512 x 512.

    "plain" (`PlainConvUNet`) is `unet.UNet` with a head at each stage of the decoder (46,324,558
    parameters). "resenc" (`ResidualEncoderUNet`; Isensee et al. 2024) begins with one block at full
    resolution, has 1, 3, 4, 6, 6, ... residual blocks a stage of the encoder, and one block a stage
    of the decoder (140,017,038).

    Convolutions start He normal with zero bias, normalisations as the identity, but the last of
    each residual block at zero, see `ResidualBlock`. Sides that the strides do not divide are
    padded with their border pixels at the bottom and right, and the logits cropped back.

    Attributes:
        channels: Channels of each stage, from full resolution down.
        classes: Channels of the logits.
        variant: One of `VARIANTS`.
        dtype: Type of the computation; parameters and logits are float32.
        auxiliary: Whether the coarser stages of the decoder have heads too; their logits are sown
            in the collection "auxiliary" where that is mutable, see `supervise`.
    """

    channels: Sequence[int] = (32, 64, 128, 256, 512, 512, 512, 512)
    classes: int = 2
    variant: str = "plain"
    dtype: Any = None
    auxiliary: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Maps images `(batch, height, width, any)` to logits `(batch, height, width, classes)`.

        In training nothing is different.
        """
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, 2 ** (len(self.channels) - 1))
        encode = {"plain": unet.encode, "resenc": _encode}[self.variant]
        x = unet.down_and_up(self, x, encode, _decode)
        return head(self, x)[:, :height, :width]

    def torch_names(self, path: tuple[str, ...]) -> Iterator[str]:
        """Names in the state dict of nnU-Net's class; the first one is always there."""
        if self.variant == "plain" or path[0].split("_")[0] not in ("stem", "encoder"):
            yield from unet.torch_names(path, len(self.channels))
            return
        for owner in ("encoder", "decoder.encoder"):
            yield from residual.encoder_names(owner, path)


def _encode(net: NNUNet, x: jax.Array, stage: int) -> jax.Array:
    deepest = len(_RESIDUAL_BLOCKS) - 1
    return residual.encode(net, x, stage, blocks=_RESIDUAL_BLOCKS[min(stage, deepest)])


def _decode(net: NNUNet, x: jax.Array, skip: jax.Array, stage: int) -> jax.Array:
    x = unet.decode(net, x, skip, stage, blocks={"plain": 2, "resenc": 1}[net.variant])
    if stage > 0:
        supervise(net, x, stage)
    return x
