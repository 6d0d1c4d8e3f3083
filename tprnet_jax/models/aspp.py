"""Atrous spatial pyramid pooling (DeepLab v3, Chen et al. 2017)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tprnet_jax.models.parts import BatchNorm

DILATIONS = (0, 12, 24, 36)
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class ASPP(nn.Module):
    """One map seen at several dilations and as its mean, merged; dropout in training."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        """Maps `(batch, height, width, any)` to `(batch, height, width, features)`."""
        conv = functools.partial(AtrousConv, self.features, dtype=self.dtype)
        seen = [
            Level(self.features, dilation, self.dtype, name=f"aspp{number}")(x, train)
            for number, dilation in enumerate(DILATIONS, start=1)
        ]
        mean = conv(name="global_avg_pool_1")(x.mean(axis=(1, 2), keepdims=True))
        mean = nn.relu(BatchNorm(name="global_avg_pool_2")(mean, train))
        seen.append(jnp.broadcast_to(mean, seen[0].shape))
        x = conv(name="conv1")(jnp.concatenate(seen, axis=-1))
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        return nn.Dropout(0.5, deterministic=not train)(x)


class Level(nn.Module):
    """Convolution, normalisation and ReLU at one dilation."""

    features: int
    dilation: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        """Maps `(batch, height, width, any)` to `(batch, height, width, features)`."""
        x = AtrousConv(self.features, self.dilation, self.dtype, name="atrous_conv")(x)
        return nn.relu(BatchNorm(name="bn")(x, train))


class AtrousConv(nn.Module):
    """Convolution of pixels far apart, without bias, with zeros outside.

    Attributes:
        features: Channels of the result.
        dilation: Pixels between the nine that are seen; 0 for the one pixel alone.
        dtype: Type of the computation.
    """

    features: int
    dilation: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Maps `(batch, height, width, any)` to `(batch, height, width, features)`."""
        steps = (-self.dilation, 0, self.dilation) if self.dilation else (0,)
        shape = (len(steps), len(steps), x.shape[-1], self.features)
        kernel = self.param("kernel", he_normal, shape)
        return _convolve(*nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype), steps)


# Where nothing is kept but the arguments: XLA would keep all that each tap has seen.
@functools.partial(jax.checkpoint, static_argnums=2)
def _convolve(x: jax.Array, kernel: jax.Array, steps: tuple[int, ...]) -> jax.Array:
    """The sum over the taps, which lie at these rows and columns, of one product each.

    Far from the centre most of what a tap would see lies outside, so that a product of what is
    inside is less work than a dilated convolution; and that one's gradient, on GPUs, is XLA's
    slowest.
    """
    height, width = x.shape[1:3]
    products = [
        _product(x, matrix, row, column)
        for row, line in zip(steps, kernel, strict=True)
        for column, matrix in zip(steps, line, strict=True)
        if abs(row) < height and abs(column) < width
    ]
    return sum(products).astype(x.dtype)


def _product(x: jax.Array, matrix: jax.Array, row: int, column: int) -> jax.Array:
    """Each pixel's product with what lies `row` and `column` from it, zero where nothing does."""
    height, width = x.shape[1:3]
    top, bottom = max(0, -row), max(0, row)
    left, right = max(0, -column), max(0, column)
    seen = x[:, bottom : height - top, right : width - left]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    product = jnp.matmul(seen, matrix, preferred_element_type=wide)
    return jnp.pad(product, ((0, 0), (top, bottom), (left, right), (0, 0)))
