"""The topology stage on the device: what `topology` does on the host, pixel for pixel.

With it the whole cascade is one program. Everything here is pure and meant to be traced under
`jax.jit`; every shape is static, and every number is an integer of 32 bits at most.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tprnet_jax.method import topology, windows
from tprnet_jax.method.windows import Patches


def centreline(mask: jax.Array, method: str = "skeletonize") -> jax.Array:
    """Centrelines of vessel masks; see `topology.centreline`.

    Args:
        mask: `(batch, height, width)` bool.
        method: See `topology.centreline`.

    Returns:
        `(batch, height, width)` bool.
    """
    if method == "skeletonize":
        return _peel(mask, _SKELETONIZE, may_go=jnp.bool_(True))
    return thin(close(mask))


def close(mask: jax.Array) -> jax.Array:
    """The released code's closing, `(batch, height, width)` bool to the same; see `topology.close`.

    Where a square reaches past the image, only the pixels inside count. Of an even square's two
    middles, OpenCV takes the second.
    """
    for reduce, nothing, reach in (
        (jax.lax.max, np.False_, (1, 1)),
        (jax.lax.min, np.True_, (2, 1)),
    ):
        side = 1 + sum(reach)
        for window in ((1, side, 1), (1, 1, side)):
            padding = [reach if size > 1 else (0, 0) for size in window]
            mask = jax.lax.reduce_window(mask, nothing, reduce, window, (1, 1, 1), padding)
    return mask


def thin(mask: jax.Array) -> jax.Array:
    """Zhang and Suen's thinning, `(batch, height, width)` bool to the same; see `topology.thin`."""
    return _peel(mask, _ZHANG_SUEN, may_go=_inside(mask.shape[1:]))


def _inside(image: tuple[int, int]) -> jax.Array:
    """All pixels but those on the border of the image: `(1, height, width)` bool."""
    rows, columns = (jnp.arange(size, dtype=jnp.int32) for size in image)
    rows, columns = ((i > 0) & (i < i.shape[0] - 1) for i in (rows, columns))
    return (rows[:, None] & columns[None, :])[None]


def _peel(mask: jax.Array, tables: tuple[np.ndarray, np.ndarray], may_go: jax.Array) -> jax.Array:
    """Repeats two passes until no image changes; each removes pixels by their neighbourhoods.

    Args:
        mask: `(batch, height, width)` bool.
        tables: `(256,)` bool for each pass, see `_look_up`.
        may_go: `(1, height, width)` bool or a scalar, the pixels that may be removed.

    Returns:
        `(batch, height, width)` bool.
    """

    def both_passes(state):
        before = after = state[0]
        for table in tables:
            after = after & ~(_look_up(table, after) & may_go)
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


_ZHANG_SUEN = topology.REMOVABLE

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
    tables = np.array(_ZHANG_SUEN)
    for passes, neighbourhoods in _SKELETONIZE_INSTEAD.items():
        for neighbourhood in neighbourhoods.split():
            bits = (1 << _COMPASS.index(neighbour) for neighbour in neighbourhood.split("+"))
            tables[:, sum(bits)] = passes
    return tuple(tables)


_SKELETONIZE = _skeletonize_tables()


def patch_centres(
    mask: jax.Array,
    pixels_per_patch: int,
    most: int,
    method: str = "skeletonize",
    first: str = "centroid",
) -> tuple[jax.Array, jax.Array]:
    """Centres of the patches that FocalNet refines; see `topology.patch_centres`.

    Args:
        mask: `(batch, height, width)` bool. The first point is exact as long as the pixels of a
            centreline times the longer side are at most 2**30, which always holds up to 1024 x
            1024.
        pixels_per_patch: Centreline pixels to a patch.
        most: Largest number of patches an image.
        method: See `topology.centreline`.
        first: See `topology.farthest_points`.

    Returns:
        Centres `(batch, most, 2)` int32, rows and columns in sampling order, then zeros; and
        `(batch,)` int32, the number of centres of each image.
    """
    line = centreline(mask, method)
    points = _count(line)
    count = jnp.minimum(jnp.maximum(points // pixels_per_patch, 1), most)
    count = jnp.where(points > 0, count, 0)
    start = _farthest_from_centroid(line) if first == "centroid" else _drawn(line)
    centres = _farthest_points(line, start, most, count.max())
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


def _drawn(line: jax.Array) -> jax.Array:
    """The point that the released code draws in each image: `(batch, 2)` int32."""
    nth = jnp.cumsum(line.reshape(line.shape[0], -1), axis=1, dtype=jnp.int32).reshape(line.shape)
    return _first_largest(nth == _draw(_count(line))[:, None, None] + 1)


# What the generator behind `numpy.random.RandomState(1)` gives first. For a number below a limit,
# NumPy keeps the bits that the largest such number needs, and takes the first that is not larger.
# Eight are enough for any limit of 31 bits.
_RAW = np.random.RandomState(1).randint(0, 2**32, 8, np.uint32)


def _draw(limit: jax.Array) -> jax.Array:
    """`numpy.random.RandomState(1).randint(0, limit)` for each limit; 0 where the limit is 0.

    Args:
        limit: `(batch,)` int32.

    Returns:
        `(batch,)` int32.
    """
    last = jnp.maximum(limit - 1, 0)
    bits = jnp.left_shift(jnp.int32(1), 32 - jax.lax.clz(last)) - 1
    drawn = _RAW.view(np.int32)[None] & bits[:, None]
    accepted = jax.lax.argmax(drawn <= last[:, None], 1, jnp.int32)
    return jnp.take_along_axis(drawn, accepted[:, None], axis=1)[:, 0]


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
