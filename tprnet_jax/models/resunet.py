"""ResUNet, a U-Net of pre-activation residual units (Zhang et al. 2018, Deep Residual U-Net)."""

from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tprnet_jax.models.parts import (
    TORCH_PARAMETERS,
    BatchNorm,
    Conv3,
    pad_to_multiple,
    uniform_bias,
    uniform_kernel,
)
from tprnet_jax.models.unet import UpConv

_STEM = {"conv_0": "layer.0", "norm": "layer.1", "conv_1": "layer.3", "skip": "skip.0"}
_UNIT = {
    "norm_0": "conv_block.0",
    "conv_0": "conv_block.2",
    "norm_1": "conv_block.3",
    "conv_1": "conv_block.5",
    "skip": "conv_skip.0",
    "skip_norm": "conv_skip.1",
}


class Stem(nn.Module):
    """The first unit: its input has no normalisation and activation before, its skip none after.

    Maps `(batch, height, width, any)` to `(batch, height, width, features)`.
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Returns the sum of both paths."""
        y = Conv3(self.features, dtype=self.dtype, name="conv_0")(x)
        y = nn.relu(BatchNorm(name="norm")(y, train))
        y = Conv3(self.features, dtype=self.dtype, name="conv_1")(y)
        return y + Conv3(self.features, dtype=self.dtype, name="skip")(x)


class ResidualUnit(nn.Module):
    """Twice normalisation, ReLU and convolution, beside a convolution and a normalisation.

    Maps `(batch, height, width, any)` to `(batch, height / stride, width / stride, features)`.
    """

    features: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Returns the sum of both paths, without an activation after it."""
        y = nn.relu(BatchNorm(name="norm_0")(x, train))
        y = Conv3(self.features, self.stride, dtype=self.dtype, name="conv_0")(y)
        y = nn.relu(BatchNorm(name="norm_1")(y, train))
        y = Conv3(self.features, dtype=self.dtype, name="conv_1")(y)
        skip = Conv3(self.features, self.stride, dtype=self.dtype, name="skip")(x)
        return y + BatchNorm(name="skip_norm")(skip, train)


class ResUNet(nn.Module):
    """The ResUNet in wide use as `rishikksh20/ResUnet`: Zhang et al.'s, with 3x3 skips.

    The Weighted Res-UNet of Xiao et al. (2018), which the paper's comparison cites, has no public
    code. Of Zhang et al.'s network this one differs by its 3x3 convolutions on the skips, where
    theirs are 1x1, and its transposed convolutions, where theirs repeat pixels.

    Every stage but the first halves the resolution with the stride of its residual unit; the
    decoder upsamples with a 2x2 transposed convolution and concatenates (upsampled first, then
    skip). Sides that the strides do not divide are padded with their border pixels at the bottom
    and right, and the logits cropped back. Parameters start as PyTorch's do by default.

    Attributes:
        channels: Channels of each stage, from full resolution down.
        classes: Channels of the logits; the original has one, for a sigmoid.
        dtype: Type of the computation; parameters and logits are float32.
    """

    channels: Sequence[int] = (64, 128, 256, 512)
    classes: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Maps images `(batch, height, width, any)` to logits `(batch, height, width, classes)`.

        In training, batch normalisation is by the statistics of the batch.
        """
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, 2 ** (len(self.channels) - 1))
        x = Stem(self.channels[0], self.dtype, name="stem")(x, train)
        skips = []
        for stage in range(1, len(self.channels)):
            skips.append(x)
            unit = ResidualUnit(self.channels[stage], 2, self.dtype, name=f"encoder_{stage}")
            x = unit(x, train)
        for stage in reversed(range(len(self.channels) - 1)):
            x = _decode(self, x, skips.pop(), stage, train)
        head = nn.Conv(
            self.classes,
            (1, 1),
            kernel_init=uniform_kernel,
            bias_init=uniform_bias(self.channels[0]),
            dtype=self.dtype,
            name="head",
        )
        return head(x)[:, :height, :width].astype(jnp.float32)

    def torch_names(self, path: tuple[str, ...]) -> Iterator[str]:
        """The official name of a parameter, as of `("encoder_1", "conv_0", "kernel")`."""
        parameter, place = TORCH_PARAMETERS[path[-1]], self._torch_module(path[0])
        if path[0] == "stem":
            yield f"{place}_{_STEM[path[1]]}.{parameter}"
        elif len(path) == 3:
            yield f"{place}.{_UNIT[path[1]]}.{parameter}"
        else:
            yield f"{place}.{parameter}"

    def torch_idle(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the counters of steps that PyTorch's batch normalisations have."""
        deepest = len(self.channels) - 1
        units = [f"encoder_{stage}" for stage in range(1, deepest + 1)]
        units += [f"decoder_{stage}" for stage in range(deepest)]
        norms = [
            f"{self._torch_module(unit)}.{_UNIT[norm]}"
            for unit in units
            for norm in ("norm_0", "norm_1", "skip_norm")
        ]
        return {f"{norm}.num_batches_tracked": () for norm in ("input_layer.1", *norms)}

    def _torch_module(self, name: str) -> str:
        part, _, stage = name.partition("_")
        deepest = len(self.channels) - 1
        if part in ("stem", "head"):
            return {"stem": "input", "head": "output_layer.0"}[part]
        if part == "encoder":
            return "bridge" if int(stage) == deepest else f"residual_conv_{stage}"
        number = deepest - int(stage)
        return f"upsample_{number}.upsample" if part == "up" else f"up_residual_conv{number}"


def _decode(net: ResUNet, x: jax.Array, skip: jax.Array, stage: int, train: bool) -> jax.Array:
    below, features = net.channels[stage + 1], net.channels[stage]
    # PyTorch takes the outputs of a transposed convolution for its inputs: here they are as many.
    start = {"kernel_init": uniform_kernel, "bias_init": uniform_bias(4 * below)}
    x = UpConv(below, net.dtype, **start, name=f"up_{stage}")(x)
    x = jnp.concatenate([x, skip], axis=-1)
    return ResidualUnit(features, 1, net.dtype, name=f"decoder_{stage}")(x, train)
