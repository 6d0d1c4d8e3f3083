"""The residual encoder of nnU-Net, which LKM-UNet has as well, and its block."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax

from tprnet_jax.models.layers import NEGATIVE_SLOPE
from tprnet_jax.models.parts import mean_pool
from tprnet_jax.models.unet import ConvBlock, Norm, block_names, he_normal


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions past a skip (He et al. 2016; `BasicBlockD` of nnU-Net).

    Convolution, instance normalisation, leaky ReLU, convolution, normalisation; the skip is added,
    then leaky ReLU. With a stride the skip is the mean of 2 x 2 pixels (He et al. 2019), and where
    the channels change a normalised 1x1 convolution follows. The scale of the last normalisation
    starts at zero, so that a new block passes its skip on.

    Maps `(batch, height, width, any)` to `(batch, height / stride, width / stride, features)`; the
    stride, 1 or 2, divides the sides.
    """

    features: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Returns the block's activations."""
        y = ConvBlock(self.features, self.stride, self.dtype, name="conv1")(x)
        last = {"slope": 1.0, "scale_init": nn.initializers.zeros, "name": "conv2"}
        y = ConvBlock(self.features, 1, self.dtype, **last)(y)
        skip = x if self.stride == 1 else mean_pool(x)
        if x.shape[-1] != self.features:
            skip = _Projection(self.features, self.dtype, name="skip")(skip)
        return nn.leaky_relu(y + skip, NEGATIVE_SLOPE)


class _Projection(nn.Module):
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        conv = {"use_bias": False, "kernel_init": he_normal, "dtype": self.dtype}
        x = nn.Conv(self.features, (1, 1), name="conv", **conv)(x)
        return Norm(slope=1.0, name="norm")(x)


def residual_names(stem: str, path: tuple[str, str, str], stride: int) -> Iterator[str]:
    """Names of a block's parameter in PyTorch, as of `("conv1", "norm", "scale")`.

    Args:
        stem: The block's own name.
        path: In the parameters of the block.
        stride: Of the block.
    """
    part, *rest = path
    number = {1: ".0", 2: ".1"}[stride]  # The pooling comes first, where there is one.
    yield from block_names(f"{stem}.{part}{number if part == 'skip' else ''}", rest)


def encode(net: nn.Module, x: jax.Array, stage: int, blocks: int) -> jax.Array:
    """So many residual blocks, a stage of the encoder; before the first stage a plain one.

    Args:
        net: With `channels` and a `dtype`, as whose modules the blocks are made.
        x: `(batch, height, width, any)`.
        stage: Its number; all but 0 halve the resolution.
        blocks: Their number.
    """
    if stage == 0:
        x = ConvBlock(net.channels[0], 1, net.dtype, name="stem")(x)
    for block in range(blocks):
        name = f"encoder_{stage}_{block}"
        x = ResidualBlock(net.channels[stage], _stride(stage, block), net.dtype, name=name)(x)
    return x


def _stride(stage: int, block: int) -> int:
    return 2 if stage > 0 and block == 0 else 1


def encoder_names(owner: str, path: tuple[str, ...]) -> Iterator[str]:
    """Names in PyTorch of a parameter of `encode`, as of `("stem", "conv", "kernel")`.

    Args:
        owner: Of the encoder's stages there.
        path: In the parameters of the network.
    """
    part, *numbers = path[0].split("_")
    if part == "stem":
        yield from block_names(f"{owner}.stem.convs.0", path[1:])
    else:
        stage, block = map(int, numbers)
        stem = f"{owner}.stages.{stage}.blocks.{block}"
        yield from residual_names(stem, path[1:], _stride(stage, block))
