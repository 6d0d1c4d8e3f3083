"""What several of the compared networks are made of, as PyTorch defines it."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from tprnet_jax.models import layers

EPSILON = 1e-5  # Of every normalisation; Flax's own default is another.
# What a step of training moves the running statistics by, of their distance to the batch's.
PACE = 0.1
STATISTICS = ("mean", "var")
_AXES = {4: (2, 3, 1, 0), 3: (2, 1, 0), 2: (1, 0), 1: (0,)}
_AXES_UP = (2, 3, 0, 1)
TORCH_PARAMETERS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def torch_axes(path: tuple[str, ...], ndim: int) -> tuple[int, ...]:
    """For each axis of a parameter here, the axis in PyTorch.

    Convolutions (one or two dimensions), dense layers and vectors; a module whose name begins with
    "up" is a transposed convolution (`unet.UpConv`).
    """
    return _AXES_UP if ndim == 4 and path[-2].startswith("up") else _AXES[ndim]


def uniform_kernel(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """PyTorch's default start of a convolution or dense layer: uniform, up to 1 / sqrt(fan_in)."""
    return _uniform(key, shape, math.prod(shape[:-1]), dtype)


def uniform_bias(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default start of the bias of a layer with this many inputs to an output."""
    return lambda key, shape, dtype=jnp.float32: _uniform(key, shape, fan_in, dtype)


def _uniform(key, shape, fan_in, dtype):
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv3(nn.Module):
    """3x3 convolution with a border of `dilation` zeros, see `layers.convolve`.

    Maps `(batch, height, width, any)` to `(batch, height / stride, width / stride, features)`.

    Attributes:
        features: Channels of the result.
        stride: Between the pixels of the result; 1 where dilated.
        dilation: Between the pixels that the kernel sees.
        use_bias: Whether there is one.
        kernel_init: Start of the kernel.
        dtype: Type of the computation.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = uniform_kernel
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Returns the convolution."""
        channels = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (3, 3, channels, self.features))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        if self.dilation == 1:
            x = layers.convolve(x, kernel, self.stride)
        else:
            x = _convolve_dilated(x, kernel, self.dilation)
        if not self.use_bias:
            return x
        bias = self.param("bias", uniform_bias(9 * channels), (self.features,))
        return x + bias.astype(x.dtype).reshape(1, 1, 1, -1)


def _convolve_dilated(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """`layers.convolve` with `dilation` - 1 pixels between those that the kernel sees.

    Pixels that agree in row and column modulo `dilation` see only one another, as images of their
    own; what fills the last ones up is as zero as the border. XLA's dilated convolution gives the
    same, but on GPUs its gradient is that of a kernel as large as the image.
    """
    batch, height, width, channels = x.shape
    rows, columns = (-(-side // dilation) for side in (height, width))
    below, right = rows * dilation - height, columns * dilation - width
    x = jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))
    x = x.reshape(batch, rows, dilation, columns, dilation, channels).transpose(0, 2, 4, 1, 3, 5)
    x = layers.convolve(x.reshape(-1, rows, columns, channels), kernel, 1)
    x = x.reshape(batch, dilation, dilation, rows, columns, -1).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(batch, rows * dilation, columns * dilation, -1)[:, :height, :width]


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015), affine.

    The running statistics are parameters like all others, so that whatever keeps, averages or
    ships parameters has them too. In training, the gradient that arrives at them is their distance
    to the batch's statistics, whatever the loss; `state.update` moves them by `PACE` of it. The
    running variance is the batch's biased one; PyTorch notes the unbiased one, which differs by a
    factor of n / (n - 1) for n pixels a channel. A batch of one value a channel, such as the mean
    over its only image, has no spread of its own: it is normalised as in evaluation and moves
    nothing, where PyTorch refuses it.

    Of several devices each normalises its own images by their statistics alone, as PyTorch's
    unsynchronised BatchNorm2d; the running ones follow the mean of the devices' (PyTorch keeps
    those of the first).
    """

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Normalises `(batch, height, width, channels)`, in training by its own statistics."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones_init(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), shape)
        running = {
            "mean": self.param("mean", nn.initializers.zeros_init(), shape),
            "var": self.param("var", nn.initializers.ones_init(), shape),
        }
        if not train or x.size == x.shape[-1]:
            return _normalised(x, lax.stop_gradient(running), scale, bias)
        y, of_batch = _normalised_by_batch(x, scale, bias)
        return _follow(y, running, lax.stop_gradient(of_batch))


@jax.checkpoint  # Of the activations, the gradient keeps those before alone.
def _normalised_by_batch(x, scale, bias):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axis=(0, 1, 2))
    of_batch = {"mean": mean, "var": jnp.square(wide - _row(mean)).mean(axis=(0, 1, 2))}
    return _normalised(x, of_batch, scale, bias), of_batch


def _normalised(x, statistics, scale, bias):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    rate = scale * lax.rsqrt(statistics["var"] + EPSILON)
    return ((wide - _row(statistics["mean"])) * _row(rate) + _row(bias)).astype(x.dtype)


def _row(channels):
    return channels.reshape(1, 1, 1, -1)


@jax.custom_vjp
def _follow(y, running, of_batch):
    """`y`; the gradient by the running statistics is their distance to the batch's."""
    return y


def _follow_forward(y, running, of_batch):
    return y, (running, of_batch)


def _follow_backward(residuals, gradient):
    running, of_batch = residuals
    distance = jax.tree.map(jnp.subtract, running, of_batch)
    return gradient, distance, jax.tree.map(jnp.zeros_like, of_batch)


_follow.defvjp(_follow_forward, _follow_backward)


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """Repeats the border pixels at the bottom and right until `multiple` divides both sides.

    Maps `(batch, height, width, channels)` to sides less than `multiple` longer.
    """
    rows, columns = (missing(side, multiple) for side in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="edge")


def missing(size: int, multiple: int) -> int:
    """What a size lacks to the next multiple of a number."""
    # Not -size % multiple: of that, JAX cannot tell that symbolic sizes then divide.
    return -(-size // multiple) * multiple - size


def upsample_bilinear(x: jax.Array) -> jax.Array:
    """Bilinear to twice the sides, corner on corner (PyTorch's `align_corners=True`).

    Maps `(batch, height, width, channels)` to `(batch, 2 height, 2 width, channels)`.
    """
    rows, columns = (_interpolation(side).astype(x.dtype) for side in x.shape[1:3])
    return jnp.einsum("ph,qw,bhwc->bpqc", rows, columns, x)


def _interpolation(side: int) -> jax.Array:
    """Weights `(2 side, side)` of the values between which each new one lies."""
    source = jnp.arange(2 * side) * (max(side - 1, 0) / (2 * side - 1))
    return jnp.maximum(1 - jnp.abs(source[:, None] - jnp.arange(side)[None]), 0)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Each pixel of `(batch, height, width, channels)` as a square of 2 x 2."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


max_pool = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
mean_pool = functools.partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2))
