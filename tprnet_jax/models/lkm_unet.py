"""LKM-UNet in 2-D (Wang et al. 2024): a residual U-Net with Mamba over windows, after nnU-Net."""

from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tprnet_jax.models import residual, unet
from tprnet_jax.models.mamba import Mamba, mamba_name, token_norm
from tprnet_jax.models.parts import pad_to_multiple, uniform_kernel
from tprnet_jax.models.residual import ResidualBlock, residual_names
from tprnet_jax.models.supervision import Supervised, head, supervise

WINDOWS = ("strided", "contiguous")


class LKMUNet(Supervised, nn.Module):
    """LKM-UNet, by default the one that nnU-Net plans for images of 512 x 512.

    109,422,062 parameters with all heads. A stage of the encoder has two residual blocks, and then
    two Mamba layers, which read their pixels row by row in both directions and add what they find:

    - The pixel layer cuts a map into p x p sequences, where p divides its sides; else it is one
      sequence. The paper has windows next to each other, `window="contiguous"`; the released code
      takes every p-th row and column, "strided".
    - The pooled layer reads the means of windows, 8 x 8 in the first stage, as one sequence.

    The pixel layer's p is `window_factor` times the pooled layer's: 40 40 20 20 10 10 5 5 by
    default, set for images of 320 x 320. None of these divides its map of a 512 x 512 image, the
    first of which is a sequence of 262,144 pixels. With a factor of 4 all do, and the longest
    sequence, but for the 4,096 means, has 256.

    A stage of the decoder has two residual blocks. Convolutions start He normal with zero bias,
    normalisations as the identity, but the last of each residual block at zero, Mamba layers as
    `mamba.Mamba` says. Sides that the strides do not divide are padded with their border pixels at
    the bottom and right, and the logits cropped back.

    Attributes:
        channels: Channels of each stage, from full resolution down.
        classes: Channels of the logits.
        window: One of `WINDOWS`.
        window_factor: Pixel windows to a side of the map, for each pixel of a pooled window's side.
        dtype: Type of the computation, except in Mamba layers; parameters and logits are float32.
        auxiliary: Whether the coarser stages of the decoder have heads too; their logits are sown
            in the collection "auxiliary" where that is mutable, see `supervise`.
    """

    channels: Sequence[int] = (32, 64, 128, 256, 512, 512, 512, 512)
    classes: int = 2
    window: str = "strided"
    window_factor: int = 5
    dtype: Any = None
    auxiliary: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Maps images `(batch, height, width, any)` to logits `(batch, height, width, classes)`.

        In training as in evaluation.
        """
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, 2 ** (len(self.channels) - 1))
        x = unet.down_and_up(self, x, _encode, _decode)
        return head(self, x)[:, :height, :width]

    def torch_names(self, path: tuple[str, ...]) -> Iterator[str]:
        """Names in the state dict of the official class; the first one is always there."""
        part, *numbers = path[0].split("_")
        if part in ("up", "head"):
            yield from unet.torch_names(path, len(self.channels))
        elif part == "decoder":
            stem = f"decoder.stages.{len(self.channels) - 2 - int(numbers[0])}.blocks.{numbers[1]}"
            yield from residual_names(stem, path[1:], stride=1)
        else:
            for owner in ("encoder", "decoder.encoder"):
                yield from _encoder_names(owner, path)


def _encode(net: LKMUNet, x: jax.Array, stage: int) -> jax.Array:
    """A stage of the encoder: residual blocks, then the Mamba layers."""
    x = residual.encode(net, x, stage, blocks=2)
    pixel, pooled = window_sides(net, stage)
    x += _over_windows(_TwoWayMamba(name=f"pixel_{stage}"), x, pixel, net.window)
    return x + _over_means(_TwoWayMamba(name=f"pooled_{stage}"), x, pooled)


def window_sides(net: LKMUNet, stage: int) -> tuple[int, int]:
    """The p of the pixel layer and that of the pooled layer of a stage."""
    pooled = 2 ** ((len(net.channels) - stage + 1) // 2 - 1)
    return net.window_factor * pooled, pooled


def _decode(net: LKMUNet, x: jax.Array, skip: jax.Array, stage: int) -> jax.Array:
    x = unet.UpConv(net.channels[stage], net.dtype, name=f"up_{stage}")(x)
    x = jnp.concatenate([x, skip], axis=-1)
    for block in range(2):
        x = ResidualBlock(net.channels[stage], 1, net.dtype, name=f"decoder_{stage}_{block}")(x)
    if stage > 0:
        supervise(net, x, stage)
    return x


class _TwoWayMamba(nn.Module):
    """Mamba from both ends of `(batch, tokens, width)`, with one last product."""

    @nn.compact
    def __call__(self, x):
        tokens = token_norm(name="norm")(x)
        forward = Mamba(project=False, name="mamba_forw")(tokens)
        backward = Mamba(project=False, name="mamba_backw")(tokens[:, ::-1])[:, ::-1]
        project = nn.Dense(x.shape[-1], False, kernel_init=uniform_kernel, name="out_proj")
        return project(forward + backward).astype(x.dtype)


def _over_windows(layer, x: jax.Array, side: int, window: str) -> jax.Array:
    """A layer over `side` x `side` windows, as sequences of their own, or over all where uneven."""
    batch, height, width, channels = x.shape
    if height % side or width % side:
        side = 1
    rows, columns = height // side, width // side
    if window == "contiguous":
        split, axes = (side, rows, side, columns), (0, 1, 3, 2, 4, 5)
    else:
        split, axes = (rows, side, columns, side), (0, 2, 4, 1, 3, 5)
    windows = x.reshape(batch, *split, channels).transpose(axes)
    y = layer(windows.reshape(-1, rows * columns, channels)).reshape(windows.shape)
    return y.transpose(np.argsort(axes)).reshape(x.shape)


def _over_means(layer, x: jax.Array, side: int) -> jax.Array:
    """A layer over the means of squares, for each of their pixels."""
    means = nn.avg_pool(x, (side, side), (side, side))
    y = layer(means.reshape(len(means), -1, means.shape[-1])).reshape(means.shape)
    return y.repeat(side, axis=1).repeat(side, axis=2)


def _encoder_names(owner: str, path: tuple[str, ...]) -> Iterator[str]:
    part, *numbers = path[0].split("_")
    if part in ("stem", "encoder"):
        yield from residual.encoder_names(owner, path)
    else:
        layers = {"pixel": "mamba_layers", "pooled": "w_mamba_layers"}[part]
        yield mamba_name(f"{owner}.{layers}.{numbers[0]}", path[1:])
