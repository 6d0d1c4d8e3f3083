"""Random changes to training images and their masks, on the device.

What may happen is nnU-Net's augmentation in 2-D (Isensee et al. 2021, and its package
batchgeneratorsv2), with shear and elastic deformation added. Everything is pure and of static
shape: one sample's result is a function of its image, its mask and its key alone.
"""

import functools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from tprnet_jax.method.cascade import to_unit

# The strength at which each transformation changes nothing.
NEUTRAL = {
    "rotation": 0.0,
    "scaling": 1.0,
    "shear": 0.0,
    "elastic": 0.0,
    "noise": 0.0,
    "blur": 0.0,
    "brightness": 1.0,
    "contrast": 1.0,
    "low_resolution": 1.0,
    "inverted_gamma": 1.0,
    "gamma": 1.0,
}
WARPS = ("rotation", "scaling", "shear", "elastic")
BOUNDS = {
    "ramp": (0, math.inf),
    "p_mirror": (0, 1),
    **{f"p_{name}": (0, 1) for name in NEUTRAL},
    "rotation": (-180, 180),
    "scaling": (0.25, 4),
    "shear": (-45, 45),
    "elastic": (0, 0.25),  # Beyond, the field often folds over itself.
    "noise": (0, math.inf),
    "blur": (0.1, 10),
    "brightness": (0, math.inf),
    "contrast": (0, math.inf),
    "low_resolution": (0.05, 1),
    "inverted_gamma": (0.1, 10),
    "gamma": (0.1, 10),
}
NODES = 8  # Of the elastic displacement along each axis.
BLUR_REACH = 4.0  # Standard deviations at which the Gaussian is cut off, as in SciPy.


class Settings(NamedTuple):
    """How often each transformation happens to a sample, and how strong it is; hashable, static.

    Strengths are uniform in their range. Where the neutral strength (`NEUTRAL`) lies inside the
    range, half of them are below it, so that shrinking is as likely as enlarging and darkening as
    brightening (batchgenerators' rule for its factors).

    Attributes:
        ramp: Passes through the images over which all probabilities rise from 0 to their settings,
            evenly; a network that has learnt nothing yet learns from plain images first.
        p_rotation: Probability; vessels have no preferred orientation across projections.
        rotation: Degrees, counter-clockwise, about the image's centre.
        p_scaling: Probability; hearts, detectors and magnifications differ.
        scaling: Magnification about the centre, 2 doubles every length.
        p_shear: Probability; a first-order change of the projection's angle.
        shear: Degrees by which columns tilt: what is below the centre moves to the right.
        p_elastic: Probability; the heart deforms as it beats.
        elastic: Standard deviation of the displacement of the nodes of a coarse grid, `NODES` to
            an axis, as a share of the distance between them.
        p_mirror: Probability of mirroring along each axis, drawn for either.
        p_noise: Probability; detectors and doses differ.
        noise: Standard deviation of white Gaussian noise as a share of the image's own.
        p_blur: Probability; motion and focus differ.
        blur: Standard deviation of the Gaussian, pixels.
        p_brightness: Probability; exposures differ.
        brightness: Factor of the grey values.
        p_contrast: Probability; contrast agent and tube voltage differ.
        contrast: Factor of the distance from the image's mean, cut off at the image's range.
        p_low_resolution: Probability; detectors' matrices differ.
        low_resolution: Share of the pixels along each axis that is kept before interpolation.
        p_inverted_gamma: Probability of a gamma correction of the negative.
        inverted_gamma: Its exponent.
        p_gamma: Probability; display curves differ.
        gamma: Exponent on the image's own range; mean and standard deviation are kept.
    """

    ramp: float = 0.0
    p_rotation: float = 0.0
    rotation: tuple[float, float] = (-180.0, 180.0)
    p_scaling: float = 0.0
    scaling: tuple[float, float] = (0.7, 1.4)
    p_shear: float = 0.0
    shear: tuple[float, float] = (-10.0, 10.0)
    p_elastic: float = 0.0
    elastic: tuple[float, float] = (0.0, 0.1)
    p_mirror: float = 0.0
    p_noise: float = 0.0
    noise: tuple[float, float] = (0.0, 0.1)
    p_blur: float = 0.0
    blur: tuple[float, float] = (0.5, 1.0)
    p_brightness: float = 0.0
    brightness: tuple[float, float] = (0.75, 1.25)
    p_contrast: float = 0.0
    contrast: tuple[float, float] = (0.75, 1.25)
    p_low_resolution: float = 0.0
    low_resolution: tuple[float, float] = (0.5, 1.0)
    p_inverted_gamma: float = 0.0
    inverted_gamma: tuple[float, float] = (0.7, 1.5)
    p_gamma: float = 0.0
    gamma: tuple[float, float] = (0.7, 1.5)


# nnU-Net's probabilities for a sample, where it has the transformation: it has no shear, and its
# elastic deformation is off. Half of the channels that it would blur or coarsen it then spares,
# which for an image of one channel would halve these two.
EVERYTHING = Settings(
    p_rotation=0.2,
    p_scaling=0.2,
    p_shear=0.2,
    p_elastic=0.2,
    p_mirror=0.5,
    p_noise=0.1,
    p_blur=0.2,
    p_brightness=0.15,
    p_contrast=0.15,
    p_low_resolution=0.25,
    p_inverted_gamma=0.1,
    p_gamma=0.3,
)


def settings(config: ConfigDict) -> Settings:
    """The settings that `config.augment` describes; its fields are those of `Settings`."""
    return Settings(**config.to_dict())


def happens(settings: Settings) -> bool:
    """Whether anything can happen to an image."""
    return any(value > 0 for name, value in settings._asdict().items() if name.startswith("p_"))


def ramp(settings: Settings, epoch: jax.Array) -> jax.Array:
    """The share of its probabilities that a sample has in an epoch, in [0, 1].

    Args:
        settings: With `ramp`.
        epoch: `(batch,)` int32, from 0.

    Returns:
        `(batch,)` float32: epoch / ramp, at most 1; 1 without a ramp.
    """
    if settings.ramp == 0:
        return jnp.ones(epoch.shape, jnp.float32)
    return jnp.minimum(epoch / settings.ramp, 1.0)


def sample_keys(seed: int, epoch: jax.Array, index: jax.Array) -> jax.Array:
    """A key for each sample, whatever batch, worker or device it ends up in.

    Args:
        seed: Of the run.
        epoch: `(batch,)` int32, how often the data set was passed before.
        index: `(batch,)` int32, the sample's number in the data set.

    Returns:
        Keys, `(batch,)`.
    """
    fold = jax.vmap(jax.random.fold_in)
    keys = jnp.broadcast_to(jax.random.key(seed), epoch.shape)
    return fold(fold(keys, epoch), index)


def augment(
    settings: Settings,
    images: jax.Array,
    masks: jax.Array,
    keys: jax.Array,
    share: jax.Array | float = 1.0,
    in_unit: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Changes each image at random, and its mask with it.

    A transformation of probability 0 is not in the compiled program; where none is drawn, image
    and mask pass bit for bit.

    Args:
        settings: What may happen; a static argument of `jax.jit`.
        images: `(batch, height, width, 1)` uint8, or float32.
        masks: `(batch, height, width, 1)` uint8, 0 or 255.
        keys: `(batch,)`, see `sample_keys`.
        share: `(batch,)` of every probability, see `ramp`, or one for all.
        in_unit: Whether the images are in [0, 1], and stay so; or standardised, without bounds.

    Returns:
        Images `(batch, height, width, 1)` float32, and masks like those given.
    """
    sample, share = (
        functools.partial(_augment_sample, settings, in_unit),
        jnp.broadcast_to(share, keys.shape),
    )
    images, masks = jax.vmap(sample)(to_unit(images)[..., 0], masks[..., 0], keys, share)
    return images[..., None], masks[..., None]


def _augment_sample(settings: Settings, in_unit: bool, image, mask, key, share):
    key, elastic_key, noise_key = jax.random.split(key, 3)
    numbers = jax.random.uniform(key, (1 + len(NEUTRAL), 2))
    # Below p as often as the numbers themselves are below share * p: both of mirroring's, and the
    # first of each other transformation, see `_draw`.
    numbers = numbers.at[:, 0].divide(share).at[0, 1].divide(share)
    uniform = dict(zip(("mirror", *NEUTRAL), numbers, strict=True))
    if settings.p_mirror:
        image, mask = _mirror(uniform["mirror"] < settings.p_mirror, image, mask)
    if any(_happens_at_all(settings, name) for name in WARPS):
        image, mask = _warp(settings, image, mask, uniform, elastic_key)
    image = _change_grey(settings, image, uniform, noise_key)
    return jnp.clip(image, 0, 1) if in_unit else image, mask


def _happens_at_all(settings: Settings, name: str) -> bool:
    return getattr(settings, f"p_{name}") > 0


def _draw(settings: Settings, name: str, uniform) -> tuple[jax.Array, jax.Array]:
    """Whether a transformation happens, and how strong it then is, from two uniform numbers."""
    chance, place = uniform[name]
    low, high = getattr(settings, name)
    middle = NEUTRAL[name] if low < NEUTRAL[name] < high else (low + high) / 2
    below = low + 2 * place * (middle - low)
    above = middle + (2 * place - 1) * (high - middle)
    return chance < getattr(settings, f"p_{name}"), jnp.where(place < 0.5, below, above)


# ---- Space ---------------------------------------------------------------------------------------


def _mirror(flips, image, mask):
    for axis, flip in enumerate(flips):
        image, mask = (jnp.where(flip, jnp.flip(x, axis), x) for x in (image, mask))
    return image, mask


def _warp(settings: Settings, image, mask, uniform, key):
    """Rotates, scales, shears and bends in one resampling."""
    draws = {
        name: _draw(settings, name, uniform) for name in WARPS if _happens_at_all(settings, name)
    }
    strengths = dict(NEUTRAL)
    for name, (happens, value) in draws.items():
        strengths[name] = jnp.where(happens, value, NEUTRAL[name])
    warped = functools.reduce(operator.or_, (happens for happens, _ in draws.values()))
    displacement = _displacement(image.shape, key) if "elastic" in draws else None
    row, column = _source(image.shape, strengths, displacement)
    image = jnp.where(warped, _bilinear(image, row, column), image)
    mask = jnp.where(warped, _nearest(mask, row, column), mask)
    return image, mask


def _displacement(shape: tuple[int, int], key):
    """Elastic displacement of unit strength, `(height, width, 2)` pixels."""
    nodes = jax.random.normal(key, (NODES, NODES, 2))
    distance = jnp.array(shape, jnp.float32) / NODES
    return jax.image.resize(nodes, (*shape, 2), "cubic") * distance.reshape(1, 1, 2)


def _source(shape: tuple[int, int], strengths: dict, displacement):
    """Row and column, `(height, width)` each, that every pixel of the warped image is taken from.

    The inverse of: scale, shear, rotate about the centre, then displace. It is written out instead
    of being a product of matrices, which accelerators would round to bfloat16.
    """
    centre = [(side - 1) / 2 for side in shape]
    row = jax.lax.broadcasted_iota(jnp.float32, shape, 0) - centre[0]
    column = jax.lax.broadcasted_iota(jnp.float32, shape, 1) - centre[1]
    if displacement is not None:
        row = row + strengths["elastic"] * displacement[..., 0]
        column = column + strengths["elastic"] * displacement[..., 1]
    angle = jnp.deg2rad(strengths["rotation"])
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    row, column = cosine * row + sine * column, cosine * column - sine * row
    column = column - jnp.tan(jnp.deg2rad(strengths["shear"])) * row
    return row / strengths["scaling"] + centre[0], column / strengths["scaling"] + centre[1]


def _bilinear(image, row, column):
    """Values between pixels; black outside, as behind the collimator that frames many angiograms.

    Outside a standardised image it is the mean grey, as in nnU-Net. Repeating or reflecting the
    border instead would draw vessels that the mask does not have.
    """
    take, row, column = _with_border(image, row, column)
    top, left = jnp.floor(row), jnp.floor(column)
    right_share, bottom_share = column - left, row - top
    above = _mix(take(top, left), take(top, left + 1), right_share)
    below = _mix(take(top + 1, left), take(top + 1, left + 1), right_share)
    return _mix(above, below, bottom_share)


def _nearest(mask, row, column):
    take, row, column = _with_border(mask, row, column)
    return take(jnp.floor(row + 0.5), jnp.floor(column + 0.5))


def _with_border(image, row, column):
    """A reader of pixels, and positions moved into the border of zeros that it has."""
    height, width = image.shape
    padded = jnp.pad(image, ((1, 2), (1, 2)))
    pixels = padded.ravel()

    def take(row, column):
        index = (row.astype(jnp.int32) + 1) * padded.shape[1] + column.astype(jnp.int32) + 1
        return jnp.take(pixels, index, mode="clip")

    return take, jnp.clip(row, -1, height), jnp.clip(column, -1, width)


def _mix(first, second, share):
    return first + share * (second - first)


# ---- Grey values ---------------------------------------------------------------------------------


def _change_grey(settings: Settings, image, uniform, key):
    """Everything that leaves the mask alone, in nnU-Net's order."""
    steps = {
        "noise": functools.partial(_add_noise, key),
        "blur": functools.partial(_blur, math.ceil(BLUR_REACH * settings.blur[1])),
        "brightness": operator.mul,
        "contrast": _contrast,
        "low_resolution": _lower_resolution,
        "inverted_gamma": lambda image, gamma: -_gamma(-image, gamma),
        "gamma": _gamma,
    }
    for name, step in steps.items():
        if _happens_at_all(settings, name):
            happens, strength = _draw(settings, name, uniform)
            image = jnp.where(happens, step(image, strength), image)
    return image


def _add_noise(key, image, strength):
    # nnU-Net calls the number a variance but uses it as a standard deviation, on images whose own
    # is 1.
    return image + strength * image.std() * jax.random.normal(key, image.shape)


def _blur(radius: int, image, sigma):
    """Gaussian filter, reflected at the border so that the pixels there count twice."""
    steps = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * (steps / sigma) ** 2)
    weights = weights / weights.sum()
    for axis, side in enumerate(image.shape):
        padding = [(radius, radius) if axis == other else (0, 0) for other in range(2)]
        padded = jnp.pad(image, padding, mode="symmetric")
        shifted = (
            jax.lax.slice_in_dim(padded, start, start + side, axis=axis)
            for start in range(2 * radius + 1)
        )
        image = sum(weight * part for weight, part in zip(weights, shifted, strict=True))
    return image


def _contrast(image, factor):
    mean = image.mean()
    return jnp.clip(mean + factor * (image - mean), image.min(), image.max())


def _lower_resolution(image, kept):
    """Samples fewer pixels, and interpolates between them linearly."""
    first_row, second_row, row_share = _coarse_axis(image.shape[0], kept)
    first_column, second_column, column_share = _coarse_axis(image.shape[1], kept)
    rows = _mix(image[first_row], image[second_row], row_share[:, None])
    return _mix(rows[:, first_column], rows[:, second_column], column_share[None, :])


def _coarse_axis(side: int, kept):
    """The two kept pixels about each pixel of an axis, and the second one's share."""
    count = jnp.maximum(1, jnp.round(side * kept)).astype(jnp.int32)
    position = jnp.arange(side, dtype=jnp.int32)
    coarse = ((2 * position + 1) * count - side) / (2 * side)
    coarse = jnp.clip(coarse, 0, count - 1)
    first = jnp.floor(coarse).astype(jnp.int32)
    second = jnp.minimum(first + 1, count - 1)
    # Whole numbers, because a rounded quotient could fall short of a pixel by one.
    nearest = [(2 * node + 1) * side // (2 * count) for node in (first, second)]
    return *nearest, coarse - first


def _gamma(image, gamma):
    """Power law on the image's own range, with the image's mean and standard deviation after."""
    low, high = image.min(), image.max()
    # Clipped, because fused arithmetic may leave the minimum a rounding error below 0.
    bent = jnp.clip((image - low) / jnp.maximum(high - low, 1e-7), 0, 1) ** gamma
    scale = image.std() / jnp.maximum(bent.std(), 1e-7)
    return image.mean() + scale * (bent - bent.mean())
