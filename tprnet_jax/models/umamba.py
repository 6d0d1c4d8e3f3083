"""U-Mamba in 2-D (Ma et al. 2024): a residual U-Net with Mamba layers, after nnU-Net."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tprnet_jax.models import unet
from tprnet_jax.models.layers import NEGATIVE_SLOPE
from tprnet_jax.models.mamba import MambaLayer, mamba_name
from tprnet_jax.models.parts import TORCH_PARAMETERS, pad_to_multiple, upsample_nearest
from tprnet_jax.models.supervision import Supervised, head, supervise
from tprnet_jax.runtime.errors import UserError

VARIANTS = ("bot", "enc")


class UMamba(Supervised, nn.Module):
    """U-Mamba, by default that for images of 512 x 512.

    "bot" has one Mamba layer, over the pixels of the coarsest stage (64,794,638 parameters with
    all heads); "enc" one after every second stage of the encoder (64,011,598). A layer takes a
    stage's place in the skip too, with no residual around it, and reads pixels row by row. Where a
    stage of "enc" has no more pixels than channels, the layer reads channels instead, each with
    all its pixels. So its parameters are for one size of image alone.

    As in the official networks, stages of the lower half of the encoder and of the upper half of
    the decoder have one residual block, the others two; and the decoder does not see the skip at
    full resolution. Convolutions start He normal with zero bias, normalisations as the identity,
    Mamba layers as `mamba.Mamba` says. Sides that the strides do not divide are padded with their
    border pixels at the bottom and right, and the logits cropped back.

    Attributes:
        channels: Channels of each stage, from full resolution down.
        classes: Channels of the logits.
        variant: One of `VARIANTS`.
        size: Height and width of the images that "enc" is for. Parameters can be initialised with
            an image of any size.
        dtype: Type of the computation, except in Mamba layers; parameters and logits are float32.
        auxiliary: Whether the coarser stages of the decoder have heads too; their logits are sown
            in the collection "auxiliary" where that is mutable, see `supervise`.
    """

    channels: Sequence[int] = (32, 64, 128, 256, 512, 512, 512, 512)
    classes: int = 2
    variant: str = "bot"
    size: Sequence[int] = (512, 512)
    dtype: Any = None
    auxiliary: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Maps images `(batch, height, width, any)` to logits `(batch, height, width, classes)`.

        In training as in evaluation.

        Raises:
            UserError: Images for "enc" have, padded, another size than `size`, padded.
        """
        height, width = x.shape[1:3]
        if not self.is_initializing():
            self.check_size(height, width)
        x = pad_to_multiple(x, 2 ** (len(self.channels) - 1))
        x = unet.down_and_up(self, x, _encode, _decode)
        return head(self, x)[:, :height, :width]

    def check_size(self, height: int, width: int) -> None:
        """Checks that there are weights for images of this size.

        Raises:
            UserError: Images for "enc" have, padded, another size than `size`, padded.
        """
        if self.variant == "enc" and _padded(self, (height, width)) != _padded(self, self.size):
            raise UserError(
                f"the images are {height} x {width}, but this U-Mamba with variant='enc' has "
                f"weights for size={tuple(self.size)} alone; resize the images to it, or train "
                "one for theirs, or one with variant='bot', which takes any size"
            )

    def torch_names(self, path: tuple[str, ...]) -> Iterator[str]:
        """Names in the state dict of the official class; the first one is always there."""
        part, *numbers = path[0].split("_")
        if part == "head":
            yield from unet.torch_names(path, len(self.channels))
        elif part == "match":
            stage = len(self.channels) - 2 - int(numbers[0])
            yield f"decoder.upsample_layers.{stage}.conv.{TORCH_PARAMETERS[path[-1]]}"
        elif part == "decoder":
            stage = len(self.channels) - 2 - int(numbers[0])
            yield from _block_names(f"decoder.stages.{stage}.{numbers[1]}", path[1:])
        elif part == "mamba" and self.variant == "bot":
            yield mamba_name("mamba_layer", path[1:])
        else:
            for owner in ("encoder", "decoder.encoder"):
                yield from _encoder_names(owner, path)


def _padded(net: UMamba, size: Sequence[int]) -> tuple[int, ...]:
    """The size that images of this one are padded to."""
    multiple = 2 ** (len(net.channels) - 1)
    return tuple(side + -side % multiple for side in size)


def _encode(net: UMamba, x: jax.Array, stage: int) -> jax.Array:
    """A stage of the encoder, the first one with the two blocks that come before it."""
    stages = len(net.channels)
    if stage == 0:
        x = _residual(net, x, "stem", stage, blocks=2)
    blocks = 2 if 2 * stage < stages else 1
    x = _residual(net, x, f"encoder_{stage}", stage, blocks, stride=2 if stage > 0 else 1)
    first = stages - 1 if net.variant == "bot" else (stages - 1) % 2
    return _mix(net, x, stage) if stage in range(first, stages, 2) else x


def _decode(net: UMamba, x: jax.Array, skip: jax.Array, stage: int) -> jax.Array:
    stages, features = len(net.channels), net.channels[stage]
    x = upsample_nearest(_conv1(features, net.dtype, f"match_{stage}")(x))
    if stage > 0:
        x = jnp.concatenate([x, skip], axis=-1)
    blocks = 2 if 2 * (stages - 2 - stage) < stages else 1
    x = _residual(net, x, f"decoder_{stage}", stage, blocks)
    if stage > 0:
        supervise(net, x, stage)
    return x


def _residual(net: UMamba, x, name: str, stage: int, blocks: int, stride: int = 1) -> jax.Array:
    """So many blocks; the first one has the stride and a convolution in its skip."""
    for block in range(blocks):
        first = {"stride": stride, "project": True} if block == 0 else {}
        x = _Block(net.channels[stage], dtype=net.dtype, name=f"{name}_{block}", **first)(x)
    return x


class _Block(nn.Module):
    """Two 3x3 convolutions past a skip, which may be a 1x1 convolution without normalisation."""

    features: int
    stride: int = 1
    project: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        y = unet.ConvBlock(self.features, self.stride, self.dtype, name="conv1")(x)
        y = unet.ConvBlock(self.features, 1, self.dtype, slope=1.0, name="conv2")(y)
        if self.project:
            x = x[:, :: self.stride, :: self.stride]
            x = _conv1(self.features, self.dtype, "conv3")(x)
        return nn.leaky_relu(y + x, NEGATIVE_SLOPE)


def _conv1(features: int, dtype: Any, name: str) -> nn.Conv:
    return nn.Conv(features, (1, 1), kernel_init=unet.he_normal, dtype=dtype, name=name)


def _mix(net: UMamba, x: jax.Array, stage: int) -> jax.Array:
    """A Mamba layer over the pixels of a stage, or in "enc" over channels where they are more."""
    layer = MambaLayer(name=f"mamba_{stage}")
    pixels = math.prod(side >> stage for side in _padded(net, net.size))
    tokens = x.reshape(x.shape[0], -1, x.shape[-1])
    if net.variant == "bot" or pixels > x.shape[-1]:
        return layer(tokens).reshape(x.shape)
    if net.is_initializing():
        # Parameters are for `size`, whatever the image.
        layer(jnp.zeros((1, 1, pixels), x.dtype))
        return x
    return layer(tokens.swapaxes(1, 2)).swapaxes(1, 2).reshape(x.shape)


def _encoder_names(owner: str, path: tuple[str, ...]) -> Iterator[str]:
    part, *numbers = path[0].split("_")
    if part == "mamba":
        yield mamba_name(f"{owner}.mamba_layers.{numbers[0]}", path[1:])
    else:
        stem = {"stem": "stem", "encoder": "stages"}[part]
        yield from _block_names(".".join([owner, stem, *numbers]), path[1:])


def _block_names(stem: str, path: tuple[str, ...]) -> Iterator[str]:
    """Names of a parameter of the first block of a stage, or of the second, "1"."""
    part, *rest = path
    if stem.endswith(".1"):
        yield from unet.block_names(f"{stem}.{part}", rest)
        return
    layer = part.replace("conv", "norm") if "norm" in rest else part
    yield f"{stem}.{layer}.{TORCH_PARAMETERS[path[-1]]}"
