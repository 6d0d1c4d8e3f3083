"""CoANet (Mei et al. 2021), a network for roads, which like vessels are thin and connected."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tprnet_jax.models import connectivity, resnet, weights
from tprnet_jax.models.aspp import ASPP, he_normal
from tprnet_jax.models.parts import (
    BatchNorm,
    Conv3,
    pad_to_multiple,
    uniform_bias,
    uniform_kernel,
    upsample_bilinear,
    upsample_nearest,
)
from tprnet_jax.runtime.errors import UserError

REACH = 4  # Pixels that a strip sees to either side.
# Steps of row and column from a tap of each strip to the next, and how its kernel lies in PyTorch.
STRIPS = {
    "deconv1": ((0, 1), (1, 9)),
    "deconv2": ((1, 0), (9, 1)),
    "deconv3": ((1, -1), (9, 1)),
}
FOURTH_STRIPS = {"anti": (-1, 1), "main": (1, 1)}


class CoANet(nn.Module):
    """Dilated ResNet-101, ASPP, a decoder of strip convolutions, and heads for connectivity.

    After the released code (mj129/CoANet), whose fourth strip runs along the anti-diagonal that the
    third one sees already; the paper's runs along the main one. Its heads for connectivity learn
    which neighbours of a vessel pixel are vessel, see `connectivity`; their attention is trained
    here, and stays as it began there. Sides that the strides do not divide are padded with their
    border pixels at the bottom and right, and the logits cropped back.

    The released code trains with batches of 16. From one image alone the branch of the ASPP that
    sees the image's mean has no statistics, see `BatchNorm`. Of several GPUs each normalises its
    own images, so that each needs more than one.

    Kernels start He normal by their inputs, those of the backbone by their outputs, those of the
    attention and all biases uniform, as PyTorch's defaults.

    Attributes:
        channels: The backbone's, see `resnet.ResNet`; ASPP and decoder have the third one, then the
            second one and the first one. The third one is at least 8, the others are at least 4.
        blocks: Of each stage of the backbone; ResNet-101's by default.
        classes: Channels of the logits; the official checkpoints have one.
        fourth_strip: Its diagonal, "anti" as released or "main" as published.
        auxiliary: Whether there are heads for connectivity.
        dtype: Type of the computation; parameters and logits are float32.
    """

    channels: Sequence[int] = (64, 128, 256, 512)
    blocks: Sequence[int] = (3, 4, 23, 3)
    classes: int = 2
    fourth_strip: str = "anti"
    auxiliary: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Maps images `(batch, height, width, any)` to logits `(batch, height, width, classes)`.

        The heads' logits `(batch, height, width, 9)` are sown in the collection "auxiliary", where
        that is mutable.

        Raises:
            UserError: There are not four channels, or one of them is too small.
        """
        _check_channels(self.channels)
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, resnet.STRIDE)
        *skips, x = resnet.ResNet(self.channels, self.blocks, self.dtype, name="backbone")(x, train)
        x = ASPP(self.channels[2], self.dtype, name="aspp")(x, train)
        x = Decoder(self.fourth_strip, self.dtype, name="decoder")(x, skips, train)
        with_connectivity = self.auxiliary and self.is_mutable_collection("auxiliary")
        outputs = Heads(self.classes, with_connectivity, self.dtype, name="connect")(x)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        logits, *of_neighbours = (y[:, :height, :width].astype(wide) for y in outputs)
        for name, value in zip(connectivity.HEADS, of_neighbours, strict=False):
            self.sow("auxiliary", name, value)
        return logits

    def auxiliary_loss(self, outputs: dict[str, jax.Array], mask: jax.Array) -> jax.Array:
        """What the official loss adds to cross-entropy and Dice, see `connectivity.loss`.

        It is the official one whatever the loss of the logits: there are no other labels for it.

        Args:
            outputs: What the network has sown in "auxiliary", by name.
            mask: `(batch, height, width, 1)` in {0, 1}, of the size of the images.
        """
        return connectivity.loss(outputs, mask)

    def torch_names(self, path: tuple[str, ...]) -> Iterator[str]:
        """The name in CoANet's state dict, as of `("connect", "seg_branch_2", "kernel")`."""
        yield resnet.torch_name(path)

    def torch_idle(self) -> dict[str, tuple[int, ...]]:
        """What PyTorch counts besides, and without `auxiliary` the heads for connectivity."""
        tensors = list(weights.tensors(self.clone(auxiliary=True)))
        idle = dict.fromkeys(resnet.batches_tracked(tensors), ())
        for tensor in tensors:
            if not self.auxiliary and tensor.path[0] == "connect" and "seg" not in tensor.path[1]:
                idle[tensor.names[0]] = tensor.shape
        return idle


def _check_channels(channels: Sequence[int]) -> None:
    if len(channels) != 4 or min(channels) < 4 or channels[2] < 8:
        raise UserError(
            f"the channels of CoANet are {tuple(channels)}; give four numbers, the third one at "
            "least 8 and the others at least 4"
        )


class Decoder(nn.Module):
    """Strip blocks from the coarsest features up, each but the last joined by a stage's features.

    Of a stage's features it takes as many as the stage's blocks have inside, and as its own block
    there gives.
    """

    fourth_strip: str
    dtype: Any

    @nn.compact
    def __call__(self, x, skips: list[jax.Array], train: bool):
        """Brings features back to the resolution of the image.

        Args:
            x: `(batch, height / 8, width / 8, any)`.
            skips: Features of the backbone's first three stages.
            train: Whether the batch is normalised by its own statistics.

        Returns:
            `(batch, height, width, channels)`, a quarter of the channels of the first stage.
        """
        for number, skip in zip((3, 2, 1), reversed(skips), strict=True):
            features = skip.shape[-1] // 4
            block = StripBlock(features, self.fourth_strip, self.dtype, name=f"decoder{number + 1}")
            x = block(x, train)
            if number == 1:
                x = upsample_nearest(x)
            skip = _conv1(skip, features, self.dtype, f"conv_e{number}_0")
            skip = nn.relu(BatchNorm(name=f"conv_e{number}_1")(skip, train))
            x = jnp.concatenate([x, skip], axis=-1)
        x = StripBlock(features, self.fourth_strip, self.dtype, name="decoder1")(x, train)
        return upsample_bilinear(upsample_nearest(x))


class StripBlock(nn.Module):
    """1x1 convolution, four strips side by side, 1x1 convolution; each normalised, with ReLU.

    The released block upsamples after the strips. What follows them treats each pixel by itself,
    with statistics that repeated pixels do not change; so it is cheaper, and the same, to upsample
    the result.
    """

    features: int
    fourth_strip: str
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        """Maps `(batch, height, width, any)` to `(batch, height, width, features)`."""
        channels = x.shape[-1] // 4
        x = _conv1(x, channels, self.dtype, "conv1", use_bias=True)
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        strips = {**STRIPS, "deconv4": (FOURTH_STRIPS[self.fourth_strip], (1, 9))}
        seen = [
            Strip(channels // 2, step, shape, self.dtype, name=name)(x)
            for name, (step, shape) in strips.items()
        ]
        x = nn.relu(BatchNorm(name="bn2")(jnp.concatenate(seen, axis=-1), train))
        x = _conv1(x, self.features, self.dtype, "conv3", use_bias=True)
        return nn.relu(BatchNorm(name="bn3")(x, train))


class Strip(nn.Module):
    """Convolution along a line through each pixel, with bias, and zeros outside.

    Attributes:
        features: Channels of the result.
        step: Rows and columns from a tap to the next.
        shape: Rows and columns of the kernel in PyTorch, one of them 1, whichever way it runs.
        dtype: Type of the computation.
    """

    features: int
    step: tuple[int, int]
    shape: tuple[int, int]
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Maps `(batch, height, width, any)` to `(batch, height, width, features)`."""
        channels = x.shape[-1]
        kernel = self.param("kernel", he_normal, (*self.shape, channels, self.features))
        bias = self.param("bias", uniform_bias(kernel.size // self.features), (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        taps = kernel.reshape(-1, channels, self.features)
        return convolve_along(x, taps, self.step) + bias.reshape(1, 1, 1, -1)


def convolve_along(x: jax.Array, taps: jax.Array, step: tuple[int, int]) -> jax.Array:
    """Convolution of the nine pixels along a line through each one, with zeros outside.

    With zeros between the rows, and these one after the other, the pixels of a line are equally far
    apart: in new rows as long as that distance, they are a column. So along any line it is a plain
    convolution along columns.

    Args:
        x: `(batch, height, width, channels)`.
        taps: `(9, channels, features)`, of the same type.
        step: Rows and columns from one pixel of the line to the next.

    Returns:
        `(batch, height, width, features)`.
    """
    batch, height, width, channels = x.shape
    length = width + REACH
    stride = step[0] * length + step[1]
    if stride < 0:
        stride, taps = -stride, taps[::-1]
    pixels = jnp.pad(x, ((0, 0), (0, 0), (0, REACH), (0, 0))).reshape(batch, -1, channels)
    pixels = jnp.pad(pixels, ((0, 0), (0, -pixels.shape[1] % stride), (0, 0)))
    lines = jax.lax.conv_general_dilated(
        pixels.reshape(batch, -1, stride, channels),
        taps[:, None],
        window_strides=(1, 1),
        padding=((REACH, REACH), (0, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    lines = lines.reshape(batch, -1, taps.shape[-1])[:, : height * length]
    return lines.reshape(batch, height, length, -1)[:, :, :width]


class Heads(nn.Module):
    """Segmentation, and the connectivity of near and far neighbours."""

    classes: int
    with_connectivity: bool
    dtype: Any

    @nn.compact
    def __call__(self, x) -> list[jax.Array]:
        """Maps `(batch, height, width, channels)` to logits, `(batch, height, width, any)` each."""
        hidden = nn.relu(_conv3(x, x.shape[-1], 1, self.dtype, "seg_branch_0"))
        outputs = [_conv1(hidden, self.classes, self.dtype, "seg_branch_2", use_bias=True)]
        neighbours = len(connectivity.NEIGHBOURS)
        for suffix, dilation in (("", 1), ("_d1", 3)) if self.with_connectivity else ():
            name = f"connect_branch{suffix}"
            hidden = nn.relu(_conv3(x, x.shape[-1], 1, self.dtype, f"{name}_0"))
            logits = _conv3(hidden, neighbours, dilation, self.dtype, f"{name}_2")
            outputs.append(Attention(self.dtype, name=f"se{suffix}")(logits))
        return outputs


class Attention(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): channels weighed by the means of all."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        """Maps `(batch, height, width, channels)` to the same."""
        channels = x.shape[-1]
        dense = functools.partial(
            nn.Dense, use_bias=False, kernel_init=uniform_kernel, dtype=self.dtype
        )
        mean = x.mean(axis=(1, 2), keepdims=True)
        squeezed = nn.relu(dense(channels // 3, name="fc_0")(mean))
        return x * nn.sigmoid(dense(channels, name="fc_2")(squeezed))


def _conv1(x: jax.Array, features: int, dtype, name: str, use_bias: bool = False) -> jax.Array:
    """1x1 convolution, in the module that calls."""
    conv = nn.Conv(
        features,
        (1, 1),
        use_bias=use_bias,
        kernel_init=he_normal,
        bias_init=uniform_bias(x.shape[-1]),
        dtype=dtype,
        name=name,
    )
    return conv(x)


def _conv3(x: jax.Array, features: int, dilation: int, dtype, name: str) -> jax.Array:
    """3x3 convolution, in the module that calls."""
    conv = Conv3(features, dilation=dilation, kernel_init=he_normal, dtype=dtype, name=name)
    return conv(x)
