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
    """3x3 convolution with bias and a border of one zero, see `layers.convolve`.

    Maps `(batch, height, width, any)` to `(batch, height / stride, width / stride, features)`.
    """

    features: int
    stride: int = 1
    kernel_init: nn.initializers.Initializer = uniform_kernel
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Returns the convolution."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", uniform_bias(9 * x.shape[-1]), (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return layers.convolve(x, kernel, self.stride) + bias.reshape(1, 1, 1, -1)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015), affine.

    The running statistics are parameters like all others, so that whatever keeps, averages or
    ships parameters has them too. In training, the gradient that arrives at them is their distance
    to the batch's statistics, whatever the loss; `step.update` moves them by `PACE` of it. The
    running variance is the batch's biased one; PyTorch notes the unbiased one, which differs by a
    factor of n / (n - 1) for n pixels a channel.
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
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if not train:
            return _normalised(wide, running, scale, bias).astype(x.dtype)
        mean = wide.mean(axis=(0, 1, 2))
        of_batch = {"mean": mean, "var": jnp.square(wide - _row(mean)).mean(axis=(0, 1, 2))}
        y = _normalised(wide, of_batch, scale, bias).astype(x.dtype)
        return _follow(y, running, lax.stop_gradient(of_batch))


def _normalised(x, statistics, scale, bias):
    rate = scale * lax.rsqrt(statistics["var"] + EPSILON)
    return (x - _row(statistics["mean"])) * _row(rate) + _row(bias)


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
    rows, columns = (-side % multiple for side in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="edge")


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
