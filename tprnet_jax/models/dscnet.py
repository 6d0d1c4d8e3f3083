"""DSCNet, a U-Net of convolutions along snakes (Qi et al. 2023, Dynamic Snake Convolution)."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from tprnet_jax.models.parts import (
    EPSILON,
    TORCH_PARAMETERS,
    BatchNorm,
    Conv3,
    max_pool,
    pad_to_multiple,
    uniform_bias,
    uniform_kernel,
    upsample_bilinear,
)
from tprnet_jax.runtime.errors import UserError

VARIANTS = ("original", "pro")
TAPS = 9  # Of a snake.
REACH = TAPS // 2  # Taps on either side of its middle.
_GROUP = 4  # Channels that are normalised together.
_AXES = {"x": 2, "y": 1}
_ROWS = {"x": (TAPS, 1), "y": (1, TAPS)}  # A kernel's sides in PyTorch, which tells them apart.


# ---- Snakes --------------------------------------------------------------------------------------


def displacements(offsets: jax.Array, variant: str) -> jax.Array:
    """How far each tap lies off the straight line, from its offset to the tap nearer the middle.

    Offsets add up from the middle outwards, so that a snake is connected. In the original code
    the two last taps are left out of that: their displacement is their own offset alone, and the
    offset gets no gradient.

    Args:
        offsets: `(batch, height, width, TAPS)`, pixels.
        variant: "original" or "pro".

    Returns:
        Of the shape of `offsets`; 0 for the tap in the middle.
    """
    before = _add_up(jnp.flip(offsets[..., :REACH], -1), variant)
    after = _add_up(offsets[..., REACH + 1 :], variant)
    middle = jnp.zeros_like(offsets[..., :1])
    return jnp.concatenate([jnp.flip(before, -1), middle, after], axis=-1)


def _add_up(outwards: jax.Array, variant: str) -> jax.Array:
    sums = jnp.cumsum(outwards, axis=-1)
    if variant == "pro":
        return sums
    return jnp.concatenate([sums[..., :-1], lax.stop_gradient(outwards[..., -1:])], axis=-1)


@functools.partial(jax.checkpoint, static_argnums=(3, 4))
def snake_convolution(
    x: jax.Array, displacement: jax.Array, kernel: jax.Array, axis: int, variant: str
) -> jax.Array:
    """Convolution with taps side by side along one axis, each displaced along the other.

    Taps are sampled and added up one after the other, and sampled again for the gradient, so that
    memory never holds the samples of more than one.

    Args:
        x: `(batch, height, width, channels)`.
        displacement: `(batch, height, width, TAPS)`, pixels.
        kernel: `(TAPS, channels, features)`, of the type of `x`.
        axis: Along which the taps are side by side, 1 or 2.
        variant: "original" has zeros outside the image, "pro" its border pixels.

    Returns:
        `(batch, height, width, features)`, float32 at least.
    """
    border = [(REACH, REACH) if other == axis else (0, 0) for other in range(4)]
    padded = jnp.pad(x, border, mode="edge" if variant == "pro" else "constant")

    @jax.checkpoint
    def product(number, displacement, weights):
        values = lax.dynamic_slice_in_dim(padded, number, x.shape[axis], axis)
        # Sampling and the product commute: first the one that leaves the fewer channels.
        if weights.shape[0] > weights.shape[1]:
            return _sample(values @ weights, displacement, 3 - axis, variant)
        return _sample(values, displacement, 3 - axis, variant) @ weights

    def add(total, tap):
        return total + product(*tap), None

    accumulator = jnp.promote_types(x.dtype, jnp.float32)
    total = jnp.zeros((*x.shape[:3], kernel.shape[-1]), accumulator)
    taps = jnp.arange(TAPS), jnp.moveaxis(displacement, -1, 0), kernel
    return lax.scan(add, total, taps)[0]


def _sample(x: jax.Array, displacement: jax.Array, axis: int, variant: str) -> jax.Array:
    """Values between pixels, linearly, so far from each along an axis.

    Beyond the last pixel, "pro" repeats it. "original" does so for less than a pixel at the far
    end of the axis; everything else beyond is 0, without a transition.
    """
    last = x.shape[axis] - 1
    pixel = lax.broadcasted_iota(jnp.int32, displacement.shape, axis)
    if variant == "pro":
        displacement = jnp.clip(displacement, -pixel, last - pixel)
    whole = jnp.floor(displacement)
    first = pixel + whole.astype(jnp.int32)
    share = (displacement - whole)[..., None].astype(x.dtype)
    one, other = (
        jnp.take_along_axis(x, jnp.clip(place, 0, last)[..., None], axis, mode="promise_in_bounds")
        for place in (first, first + 1)
    )
    inside = (first >= 0) & (first <= last)
    return jnp.where(inside[..., None], one + share * (other - one), 0)


# ---- Network -------------------------------------------------------------------------------------

_GroupNorm = functools.partial(nn.remat(nn.GroupNorm), epsilon=EPSILON, use_fast_variance=False)
_BlockNorm = functools.partial(_GroupNorm, num_groups=None, group_size=_GROUP, name="norm")


class ConvBlock(nn.Module):
    """3x3 convolution, group normalisation, ReLU.

    Maps `(batch, height, width, any)` to `(batch, height, width, features)`.
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Returns the block's activations."""
        x = Conv3(self.features, dtype=self.dtype, name="conv")(x)
        return nn.relu(_BlockNorm(dtype=self.dtype)(x))


class Snake(nn.Module):
    """Snake convolution, group normalisation, ReLU.

    A 3x3 convolution, normalised and bounded by a tanh, gives each pixel the offsets of its taps.
    It also gives those of a snake the other way, which nothing uses: official checkpoints have
    them, and the normalisation of "pro" takes a used and an unused one together.

    Maps `(batch, height, width, any)` to `(batch, height, width, features)`.

    Attributes:
        features: Channels of the result.
        along: The axis along which the taps are side by side, "x" or "y".
        variant: See `DSCNet`.
        dtype: Type of the computation; offsets are float32 at least.
    """

    features: int
    along: str
    variant: str = "original"
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Returns the block's activations."""
        displacement = displacements(self._offsets(x, train), self.variant)
        channels = x.shape[-1]
        kernel = self.param("kernel", uniform_kernel, (*_ROWS[self.along], channels, self.features))
        bias = self.param("bias", uniform_bias(TAPS * channels), (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        kernel = kernel.reshape(TAPS, channels, self.features)
        x = snake_convolution(x, displacement, kernel, _AXES[self.along], self.variant)
        return nn.relu(_BlockNorm(dtype=self.dtype)(x + bias.reshape(1, 1, 1, -1)))

    def _offsets(self, x, train):
        x = Conv3(2 * TAPS, dtype=self.dtype, name="offset")(x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.variant == "pro":
            x = _GroupNorm(num_groups=TAPS, name="offset_norm")(x)
        else:
            x = BatchNorm(name="offset_norm")(x, train)
        return nn.tanh(x[..., :TAPS] if self.along == "x" else x[..., TAPS:])


class Triple(nn.Module):
    """A convolution and a snake each way, side by side, merged by a convolution.

    Maps `(batch, height, width, any)` to `(batch, height, width, features)`.
    """

    features: int
    variant: str = "original"
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Returns the merged activations."""
        views = [ConvBlock(self.features, self.dtype, name="plain")(x)]
        for along in _AXES:
            snake = Snake(self.features, along, self.variant, self.dtype, name=f"along_{along}")
            views.append(snake(x, train))
        merge = ConvBlock(self.features, self.dtype, name="merge")
        return merge(jnp.concatenate(views, axis=-1))


class DSCNet(nn.Module):
    """The 2-D network of `YaoleiQi/DSCNet`, without the topological loss, which was not released.

    A triple block at each level of encoder and decoder; the encoder halves the resolution by the
    largest of 2 x 2 pixels, the decoder doubles it bilinearly and concatenates (upsampled first,
    then skip). Sides that this does not divide are padded with their border pixels at the bottom
    and right, and the logits cropped back. Parameters start as PyTorch's do by default.

    The original samples the features of a batch's first image for all of them; here each image has
    its own. Its snakes also have the weights of a snake the other way, 484,832 of its 2,094,169
    parameters, which nothing uses; ours have none.

    Attributes:
        channels: Channels of each level, from full resolution down; multiples of 4.
        classes: Channels of the logits; the original has one, for a sigmoid.
        variant: "original", or "pro", the authors' later version: offsets are normalised by groups
            rather than by batch, the last taps are connected, the image's border is repeated.
        dtype: Type of the computation; parameters and logits are float32.
    """

    channels: Sequence[int] = (16, 32, 64, 128)
    classes: int = 2
    variant: str = "original"
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Maps images `(batch, height, width, any)` to logits `(batch, height, width, classes)`.

        In training, the offsets of "original" are normalised by the statistics of the batch.

        Raises:
            UserError: Channels cannot be normalised in groups.
        """
        _check(self.channels)
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, 2 ** (len(self.channels) - 1))
        skips = []
        for level in range(len(self.channels)):
            x = self._triple("encoder", level)(x if level == 0 else max_pool(x), train)
            skips.append(x)
        skips.pop()
        for level in reversed(range(len(self.channels) - 1)):
            x = jnp.concatenate([upsample_bilinear(x), skips.pop()], axis=-1)
            x = self._triple("decoder", level)(x, train)
        head = nn.Conv(
            self.classes,
            (1, 1),
            kernel_init=uniform_kernel,
            bias_init=uniform_bias(self.channels[0]),
            dtype=self.dtype,
            name="head",
        )
        return head(x)[:, :height, :width].astype(jnp.float32)

    def _triple(self, part: str, level: int) -> Triple:
        name = f"{part}_{level}"
        return Triple(self.channels[level], self.variant, self.dtype, name=name)

    def torch_names(self, path: tuple[str, ...]) -> Iterator[str]:
        """The official name of a parameter, as of `("encoder_0", "along_x", "norm", "scale")`."""
        parameter = TORCH_PARAMETERS[path[-1]]
        if path[0] == "head":
            yield f"out_conv.{parameter}"
            return
        layer = {
            "conv": "conv",
            "norm": "gn",
            "offset": "offset_conv",
            "offset_norm": "gn_offset" if self.variant == "pro" else "bn",
        }.get(path[2], f"dsc_conv_{path[1][-1]}")
        yield f"{self._torch_block(*path[:2])}.{layer}.{parameter}"

    def torch_idle(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what only official checkpoints have, for images of one channel.

        Those are each snake's weights for the other axis, and the counters of steps of PyTorch's
        batch normalisations.
        """
        idle = {}
        for name, before, features in self._triples():
            for along, other in (("x", "y"), ("y", "x")):
                snake = self._torch_block(name, f"along_{along}")
                idle[f"{snake}.dsc_conv_{other}.weight"] = (features, before, *_ROWS[other])
                idle[f"{snake}.dsc_conv_{other}.bias"] = (features,)
                if self.variant == "original":
                    idle[f"{snake}.bn.num_batches_tracked"] = ()
        return idle

    def _triples(self) -> Iterator[tuple[str, int, int]]:
        """Name, channels before and channels of each triple block."""
        for level, (before, features) in enumerate(itertools.pairwise((1, *self.channels))):
            yield f"encoder_{level}", before, features
        for level, (features, below) in enumerate(itertools.pairwise(self.channels)):
            yield f"decoder_{level}", below + features, features

    def _torch_block(self, triple: str, block: str) -> str:
        """The official name of a block: two numbers to a triple, the decoder's from its bottom."""
        part, level = triple.split("_")
        number = 2 * int(level) if part == "encoder" else 4 * len(self.channels) - 2 * int(level)
        if block == "merge":
            return f"conv{number + 1}"
        return f"conv{number}{0 if block == 'plain' else block[-1]}"


def _check(channels: Sequence[int]) -> None:
    if any(features % _GROUP for features in channels):
        raise UserError(
            f"the channels of DSCNet are {tuple(channels)}; make each a multiple of {_GROUP}, "
            "because so many are normalised together"
        )
