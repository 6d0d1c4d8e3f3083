"""The plain convolutional U-Net of nnU-Net, which all three branches of TPRNet are."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tprnet_jax.models import layers

# He et al. 2015 for a leaky ReLU: variance 2 / ((1 + slope^2) fan_in).
_GAIN = 2.0 / (1.0 + layers.NEGATIVE_SLOPE**2)
he_normal = nn.initializers.variance_scaling(_GAIN, "fan_in", "normal")
# A transposed convolution's fan-in counts its output channels, as in PyTorch, where the released
# networks were initialised.
he_normal_transposed = nn.initializers.variance_scaling(
    _GAIN, "fan_in", "normal", in_axis=-1, out_axis=-2
)


class Conv(nn.Module):
    """3x3 convolution, to be followed by a `Norm`.

    Its bias has no effect, because the normalisation takes any constant away; it is there because
    the networks of nnU-Net and their checkpoints have it.
    """

    features: int
    stride: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Maps `(batch, height, width, any)` to `(batch, height / stride, ..., features)`."""
        kernel = self.param("kernel", he_normal, (3, 3, x.shape[-1], self.features))
        self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return layers.convolve(x, kernel, self.stride)


class Norm(nn.Module):
    """Affine instance normalisation and leaky ReLU, see `layers.normalise`."""

    @nn.compact
    def __call__(self, x):
        """Returns the activations."""
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        return layers.normalise(x, scale, bias)


class ConvBlock(nn.Module):
    """3x3 convolution with bias, affine instance normalisation, leaky ReLU.

    Maps `(batch, height, width, any)` to `(batch, height / stride, width / stride, features)`.
    """

    features: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Returns the block's activations."""
        x = Conv(self.features, self.stride, self.dtype, name="conv")(x)
        return Norm(name="norm")(x)


class UpConv(nn.Module):
    """2x2 transposed convolution with stride 2.

    The taps of neighbouring outputs never overlap, so each of the two rows that a row becomes is
    one matrix product, its pixels already in order. Maps `(batch, height, width, any)` to
    `(batch, 2 height, 2 width, features)`.
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Returns the upsampled activations."""
        kernel = self.param("kernel", he_normal_transposed, (2, 2, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        batch, height, width, channels = x.shape
        pixels = x.reshape(-1, channels)
        rows = [
            pixels @ taps.transpose(1, 0, 2).reshape(channels, -1) + jnp.tile(bias, 2)[None]
            for taps in kernel
        ]
        rows = [row.reshape(batch, height, 1, 2 * width, self.features) for row in rows]
        return jnp.concatenate(rows, axis=2).reshape(batch, 2 * height, 2 * width, self.features)


class UNet(nn.Module):
    """Plain convolutional U-Net (`PlainConvUNet` of nnU-Net, without deep supervision).

    Two blocks a stage in encoder and decoder; every stage but the first halves the resolution with
    the stride of its first convolution; the decoder upsamples with a 2x2 transposed convolution
    and concatenates (upsampled first, then skip). Sides that the strides do not divide are padded
    with their border pixels at the bottom and right, and the logits cropped back.

    PyTorch's class also keeps a head at each coarser stage of the decoder, idle without deep
    supervision; ours has none (46,320,578 parameters for GlobalNet, not 46,324,558).

    Attributes:
        channels: Channels of each stage, from full resolution down.
        classes: Channels of the logits.
        fold: Side of the squares of pixels that become channels before the first convolution, and
            that the logits become again at the end, 1 or 2. At 2 every stage works at half the
            resolution, and input, logits and loss keep theirs (Shi et al. 2016, sub-pixel
            convolution).
        dtype: Type of the computation; parameters and logits are float32.
        remat: Whether stages keep only their input for the gradient, and compute the rest again:
            less memory, a third more time.
    """

    channels: Sequence[int]
    classes: int = 2
    fold: int = 1
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        """Maps images `(batch, height, width, any)` to logits `(batch, height, width, classes)`."""
        encode = nn.remat(_encode, static_argnums=2) if self.remat else _encode
        decode = nn.remat(_decode, static_argnums=3) if self.remat else _decode
        height, width = x.shape[1:3]
        x = _fold(_pad_to_multiple(x, self.fold * 2 ** (len(self.channels) - 1)), self.fold)
        skips = []
        for stage in range(len(self.channels)):
            x = encode(self, x, stage)
            skips.append(x)
        skips.pop()
        for stage in reversed(range(len(self.channels) - 1)):
            x = decode(self, x, skips.pop(), stage)
        classes = self.classes * self.fold**2
        head = nn.Conv(classes, (1, 1), kernel_init=he_normal, dtype=self.dtype, name="head")
        return _unfold(head(x), self.fold)[:, :height, :width].astype(jnp.float32)


def _encode(net: UNet, x: jax.Array, stage: int) -> jax.Array:
    for block in range(2):
        stride = 2 if stage > 0 and block == 0 else 1
        name = f"encoder_{stage}_{block}"
        x = ConvBlock(net.channels[stage], stride, net.dtype, name=name)(x)
    return x


def _decode(net: UNet, x: jax.Array, skip: jax.Array, stage: int) -> jax.Array:
    features = net.channels[stage]
    x = UpConv(features, net.dtype, name=f"up_{stage}")(x)
    x = jnp.concatenate([x, skip], axis=-1)
    for block in range(2):
        x = ConvBlock(features, 1, net.dtype, name=f"decoder_{stage}_{block}")(x)
    return x


def _pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    rows, columns = (missing(side, multiple) for side in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="edge")


def missing(size: int, multiple: int) -> int:
    """What a size lacks to the next multiple of a number."""
    # Not -size % multiple: of that, JAX cannot tell that symbolic sizes then divide.
    return -(-size // multiple) * multiple - size


def _fold(x: jax.Array, side: int) -> jax.Array:
    """Squares of pixels as channels: `(batch, h, w, c)` to `(batch, h/side, w/side, side^2 c)`.

    Channels are ordered by row in the square, column in the square, channel.
    """
    if side == 1:
        return x
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // side, width // side, -1)


def _unfold(x: jax.Array, side: int) -> jax.Array:
    """The inverse of `_fold`."""
    if side == 1:
        return x
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, side, side, channels // side**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * height, side * width, -1)
