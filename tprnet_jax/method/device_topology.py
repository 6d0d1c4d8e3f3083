"""The topology stage on the device: what `topology` does by default, pixel for pixel.

With it the whole cascade is one program. Everything here is pure and meant to be traced under
`jax.jit`; every shape is static, and every number is an integer of 32 bits at most.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tprnet_jax.method import topology, windows
from tprnet_jax.method.windows import Patches


def centreline(mask: jax.Array) -> jax.Array:
    """Centrelines of vessel masks as scikit-image's `skeletonize` thins them.

    Repeats two passes until no image changes; each removes pixels by their neighbourhoods.

    Args:
        mask: `(batch, height, width)` bool.

    Returns:
        `(batch, height, width)` bool.
    """

    def both_passes(state):
        before = after = state[0]
        for table in _SKELETONIZE:
            after = after & ~_look_up(table, after)
        return after, (after != before).any()

    return jax.lax.while_loop(lambda state: state[1], both_passes, (mask, jnp.bool_(True)))[0]


def _look_up(table: np.ndarray, mask: jax.Array) -> jax.Array:
    """What a table says of each pixel's neighbourhood.

    Args:
        table: `(256,)` bool; bit i of an index is neighbour i, clockwise from the one above.
        mask: `(batch, height, width)` bool; there is nothing around the image.

    Returns:
        `(batch, height, width)` bool.
    """
    # The table as eight words of 32 bits, so that arithmetic alone looks it up: with a gather for
    # every pixel, the centreline takes a CPU three times as long.
    words = list(np.packbits(table, bitorder="little").view("<u4"))
    around = _neighbours(mask)
    for neighbour in around[5:]:
        words = [jnp.where(neighbour, b, a) for a, b in zip(words[::2], words[1::2], strict=True)]
    bit = sum(each.astype(jnp.uint32) << np.uint32(i) for i, each in enumerate(around[:5]))
    return (words[0] >> bit) & np.uint32(1) > 0


def _neighbours(mask: jax.Array) -> list[jax.Array]:
    _, height, width = mask.shape
    padded = jnp.pad(mask, ((0, 0), (1, 1), (1, 1)))
    corners = (1 + topology.CLOCKWISE).tolist()
    return [padded[:, i : i + height, j : j + width] for i, j in corners]


_COMPASS = ("N", "NE", "E", "SE", "S", "SW", "W", "NW")

# The neighbourhoods in which scikit-image departs from the rule of Zhang and Suen, by what it does
# with the pixel between them instead: remove it in the first pass, in the second. It also
# takes the inner corners of staircases, and it takes most ends in one of the passes only.
_SKELETONIZE_INSTEAD = {
    (True, True): "N+E E+S S+W W+N",
    (True, False): "NW+N N+NE NE+E N+NE+E NW+N+E W+NW+N W+N+NE S+W+NW SW+W+N SW+W+N+NE",
    (False, True): "E+SE S+SW SW+W N+E+SE E+SE+S E+S+SW S+SW+W SE+S+W NE+E+S+SW",
    (False, False): "SE+S W+NW",
}


def _skeletonize_tables() -> tuple[np.ndarray, np.ndarray]:
    tables = np.array(topology.REMOVABLE)
    for passes, neighbourhoods in _SKELETONIZE_INSTEAD.items():
        for neighbourhood in neighbourhoods.split():
            bits = (1 << _COMPASS.index(neighbour) for neighbour in neighbourhood.split("+"))
            tables[:, sum(bits)] = passes
    return tuple(tables)


_SKELETONIZE = _skeletonize_tables()


def patch_centres(mask: jax.Array, pixels_per_patch: int, most: int) -> tuple[jax.Array, jax.Array]:
    """Centres of the patches that FocalNet refines; see `topology.patch_centres`.

    Args:
        mask: `(batch, height, width)` bool. The first point is exact as long as the pixels of a
            centreline times the longer side are at most 2**30, which always holds up to 1024 x
            1024.
        pixels_per_patch: Centreline pixels to a patch.
        most: Largest number of patches an image.

    Returns:
        Centres `(batch, most, 2)` int32, rows and columns in sampling order, then zeros; and
        `(batch,)` int32, the number of centres of each image.
    """
    line = centreline(mask)
    points = _count(line)
    count = jnp.minimum(jnp.maximum(points // pixels_per_patch, 1), most)
    count = jnp.where(points > 0, count, 0)
    centres = _farthest_points(line, _farthest_from_centroid(line), most, count.max())
    used = jnp.arange(most, dtype=jnp.int32)[None] < count[:, None]
    return jnp.where(used[:, :, None], centres, 0), count


def _count(line: jax.Array) -> jax.Array:
    return line.sum(axis=(1, 2), dtype=jnp.int32)


def _farthest_points(line: jax.Array, start: jax.Array, most: int, count: jax.Array) -> jax.Array:
    """Farthest-point sampling (Eq. 4) on all images at once.

    Args:
        line: `(batch, height, width)` bool.
        start: `(batch, 2)` int32, the first point of each image.
        most: Room for this many samples.
        count: Scalar, how many to take.

    Returns:
        `(batch, most, 2)` int32; no point beyond an image's own number means anything.
    """
    image = line.shape[1:]
    samples = jnp.zeros((line.shape[0], most, 2), jnp.int32).at[:, 0].set(start)
    farness = jnp.where(line, _squared_distances(start, image), -1)

    def sample(index, state):
        samples, farness = state
        point = _first_largest(farness)
        samples = jax.lax.dynamic_update_index_in_dim(samples, point, index, axis=1)
        return samples, jnp.minimum(farness, _squared_distances(point, image))

    return jax.lax.fori_loop(jnp.int32(1), count, sample, (samples, farness))[0]


def _squared_distances(point: jax.Array, image: tuple[int, int]) -> jax.Array:
    rows, columns = (
        jnp.square(jnp.arange(size, dtype=jnp.int32)[None] - point[:, axis, None])
        for axis, size in enumerate(image)
    )
    return _outer_sum(rows, columns)


def _outer_sum(rows: jax.Array, columns: jax.Array) -> jax.Array:
    return rows[:, :, None] + columns[:, None, :]


def _first_largest(values: jax.Array) -> jax.Array:
    """Row and column of each image's first largest value, row by row: `(batch, 2)` int32."""
    row = jax.lax.argmax(values.max(axis=2), 1, jnp.int32)
    in_row = jnp.take_along_axis(values, row[:, None, None], axis=1)[:, 0]
    return jnp.stack([row, jax.lax.argmax(in_row, 1, jnp.int32)], axis=-1)


def _farthest_from_centroid(line: jax.Array) -> jax.Array:
    """The point farthest from the centroid of its image's points: `(batch, 2)` int32.

    The host compares |N p - S|^2, for N points p whose sum is S, in 64 bits. With c = floor(S / N),
    q = p - c and T = S - N c, this is N (N |q|^2 - 2 q.T) + |T|^2, so it is enough to compare
    |q|^2 + floor(-2 q.T / N), and where that is equal, the remainder.
    """
    points = jnp.maximum(_count(line), 1)[:, None]
    parts = [_squared_offset(line.sum(axis=other, dtype=jnp.int32), points) for other in (2, 1)]
    whole, rest = (_outer_sum(*axes) for axes in zip(*parts, strict=True))
    carry = rest >= points[:, :, None]
    whole = jnp.where(line, whole + carry, jnp.iinfo(jnp.int32).min)
    rest = jnp.where(carry, rest - points[:, :, None], rest)
    largest = whole.max(axis=(1, 2), keepdims=True)
    return _first_largest(jnp.where(whole == largest, rest, -1))


def _squared_offset(profile: jax.Array, points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One axis' part of the distance from the centroid, see `_farthest_from_centroid`.

    Args:
        profile: `(batch, size)` int32, the number of points at each coordinate.
        points: `(batch, 1)` int32, their total.

    Returns:
        The part divided by the total, and the remainder, both `(batch, size)` int32.
    """
    coordinate = jnp.arange(profile.shape[1], dtype=jnp.int32)[None]
    total = (profile * coordinate).sum(axis=1, keepdims=True, dtype=jnp.int32)
    centre = total // points
    offset = coordinate - centre
    whole, rest = jnp.divmod(-2 * offset * (total - points * centre), points)
    return jnp.square(offset) + whole, rest


def sample_patches(
    centres: jax.Array,
    count: jax.Array,
    region: jax.Array,
    image: tuple[int, int],
    patch: tuple[int, int],
) -> tuple[Patches, jax.Array]:
    """The patches around the centres, without gaps (Eq. 2).

    Args:
        centres: `(batch, most, 2)` int32, in the regions, see `patch_centres`.
        count: `(batch,)` int32, the number of centres of each image.
        region: `(batch, 2)` int32, the origin of the region in each image.
        image: Height and width of the images.
        patch: Height and width of a patch.

    Returns:
        `batch * most` patches, image after image, each image's in sampling order, then empty
        slots with the origin 0; and the number of patches, an int32 scalar.
    """
    batch, most = centres.shape[:2]
    origin = windows.valid_origin(centres + region[:, None], patch, image).astype(jnp.int32)
    end = jnp.cumsum(count, dtype=jnp.int32)
    slot = jnp.arange(batch * most, dtype=jnp.int32)
    owner = (slot[:, None] >= end[None]).sum(axis=1, dtype=jnp.int32)
    nth = slot - (end - count)[owner]
    return Patches(owner, origin.at[owner, nth].get(mode="fill", fill_value=0)), end[-1]
