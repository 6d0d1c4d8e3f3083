import itertools
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import skeletonize

from tprnet_jax.data import scene
from tprnet_jax.method import topology


def _blobs(seed, size=48):
    noise = np.random.default_rng(seed).normal(size=(size, size))
    return ndimage.gaussian_filter(noise, 2) > 0.03


def _first_largest(values):
    return values.index(max(values))


def _squared_distance(a, b):
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))


def _farthest_points_by_definition(points, count):
    """Eq. 4 with every distance recomputed, in whole and rational numbers."""
    points = points.tolist()
    centroid = [Fraction(sum(axis), len(points)) for axis in zip(*points, strict=True)]
    chosen = [_first_largest([_squared_distance(point, centroid) for point in points])]
    while len(chosen) < count:
        before = [points[index] for index in chosen]
        nearest = [min(_squared_distance(point, b) for b in before) for point in points]
        chosen.append(_first_largest(nearest))
    return chosen


# ---- Centreline ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_centreline_is_scikit_images_skeleton(seed):
    mask = _blobs(seed)
    found = topology.centreline(mask)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, skeletonize(mask))
    assert 0 < found.sum() < mask.sum()


def test_centreline_of_a_vessel_tree_is_scikit_images_skeleton():
    mask = scene.draw(0, 0, 128)[1] > 0
    np.testing.assert_array_equal(topology.centreline(mask), skeletonize(mask))


def test_centreline_keeps_the_parts_and_stays_inside():
    mask, eight = _blobs(7), np.ones((3, 3))
    line = topology.centreline(mask)
    assert not (line & ~mask).any()
    assert ndimage.label(line, eight)[1] == ndimage.label(mask, eight)[1] > 1


def test_centreline_of_a_line_is_the_line():
    mask = np.zeros((7, 12), bool)
    mask[3, 2:10] = True
    np.testing.assert_array_equal(topology.centreline(mask), mask)


def test_centreline_takes_read_only_arrays_and_leaves_its_argument():
    mask = _blobs(0)
    expected, before = skeletonize(mask), mask.copy()
    np.testing.assert_array_equal(topology.centreline(np.asarray(jnp.asarray(mask))), expected)
    mask.setflags(write=False)
    np.testing.assert_array_equal(topology.centreline(mask), expected)
    np.testing.assert_array_equal(mask, before)


def _thin_by_definition(mask):
    """Zhang and Suen (1984), pixel by pixel; the border of the image is left alone."""
    mask = mask.astype(int)
    changed = True
    while changed:
        changed = False
        for faces in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
            gone = []
            for i, j in itertools.product(*(range(1, n - 1) for n in mask.shape)):
                p = [mask[i - 1, j], mask[i - 1, j + 1], mask[i, j + 1], mask[i + 1, j + 1]]
                p += [mask[i + 1, j], mask[i + 1, j - 1], mask[i, j - 1], mask[i - 1, j - 1]]
                entries = sum(a < b for a, b in zip(p, p[1:] + p[:1], strict=True))
                open_faces = all(0 in [p[k] for k in face] for face in faces)
                if mask[i, j] and 2 <= sum(p) <= 6 and entries == 1 and open_faces:
                    gone.append((i, j))
            for pixel in gone:
                mask[pixel] = 0
                changed = True
    return mask.astype(bool)


@pytest.mark.parametrize("seed", range(3))
def test_thin_by_definition(seed):
    mask = _blobs(seed, 30)
    assert mask[[0, -1]].any()
    assert (topology.thin(mask) != skeletonize(mask)).any()
    np.testing.assert_array_equal(topology.thin(mask), _thin_by_definition(mask))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (3, 3)])
def test_thin_of_the_smallest_images(shape):
    full = np.ones(shape, bool)
    np.testing.assert_array_equal(topology.thin(full), _thin_by_definition(full))
    assert not topology.thin(~full).any()


def test_close_by_definition():
    """Dilated by one pixel all around, then eroded by two above and left, one below and right."""
    mask = np.zeros((12, 12), bool)
    mask[3:8, 4:6] = True
    expected = np.zeros((12, 12), bool)
    expected[4:8, 5:6] = True
    np.testing.assert_array_equal(topology.close(mask), expected)
    everything = np.ones((5, 5), bool)
    np.testing.assert_array_equal(topology.close(everything), everything)


def test_the_released_centreline_is_closed_then_thinned():
    mask = _blobs(7)
    mask.flags.writeable = False
    found = topology.centreline(mask, "close_and_thin")
    np.testing.assert_array_equal(found, topology.thin(topology.close(mask)))
    assert (found != topology.centreline(mask)).any()


# ---- Farthest points -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_farthest_points_satisfy_eq_4(seed):
    rng = np.random.default_rng(seed)
    grid = np.array(list(itertools.product(range(5), range(6))))
    points = rng.permutation(grid)[: rng.integers(2, len(grid) + 1)]
    chosen = topology.farthest_points(points, len(points))
    np.testing.assert_array_equal(chosen, _farthest_points_by_definition(points, len(points)))


def test_ties_go_to_the_first_point_listed():
    corners = np.array([(0, 4), (4, 4), (4, 0), (0, 0)])
    np.testing.assert_array_equal(topology.farthest_points(corners, 4), [0, 2, 1, 3])
    np.testing.assert_array_equal(topology.farthest_points(corners[[1, 3, 0, 2]], 2), [0, 1])


def test_farthest_points_start_farthest_from_the_centroid():
    """Centroid (0, 10/3): the ends lie 3 1/3, 2 1/3 and 5 2/3 away."""
    points = np.array([(0, 0), (0, 1), (0, 9)])
    np.testing.assert_array_equal(topology.farthest_points(points, 3), [2, 0, 1])


def test_the_released_first_point_is_drawn_with_seed_1():
    """`numpy.random.seed(1); numpy.random.randint(0, 100)` is 37."""
    points = np.stack([np.arange(100), np.zeros(100, int)], axis=1)
    chosen = topology.farthest_points(points, 3, first="random")
    np.testing.assert_array_equal(chosen, [37, 99, 0])
    np.testing.assert_array_equal(topology.farthest_points(points, 3, first="random"), chosen)


def test_farthest_points_are_exact_for_large_coordinates():
    points = np.random.default_rng(0).permutation(2**20)[:400]
    points = np.stack([points // 2**10 + 2**10, points % 2**10 + 2**10], axis=1)
    chosen = topology.farthest_points(points.astype(np.int32), 6)
    np.testing.assert_array_equal(chosen, _farthest_points_by_definition(points, 6))


def test_fewer_points_than_wanted_are_all_returned():
    points = np.array([(0, 0), (5, 5), (0, 7)])
    assert sorted(topology.farthest_points(points, 10)) == [0, 1, 2]
    np.testing.assert_array_equal(topology.farthest_points(np.array([(3, 4)]), 2), [0])
    assert topology.farthest_points(np.zeros((0, 2), int), 2).shape == (0,)


# ---- Patch centres -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "most", "count"),
    [(1, 9, 1), (3, 9, 1), (7, 9, 1), (8, 9, 2), (21, 9, 5), (21, 3, 3)],
)
def test_one_patch_for_every_so_many_centreline_pixels(length, most, count):
    mask = np.zeros((9, 30), bool)
    mask[4, 2 : 2 + length] = True
    centres = topology.patch_centres(mask, pixels_per_patch=4, most=most)
    assert len({tuple(centre) for centre in centres}) == len(centres) == count
    assert mask[tuple(centres.T)].all()


def test_patch_centres_come_in_sampling_order():
    mask = np.zeros((9, 30), bool)
    mask[4, 2:15] = True
    centres = topology.patch_centres(mask, pixels_per_patch=4, most=9)
    np.testing.assert_array_equal(centres, [(4, 2), (4, 14), (4, 8)])


def test_an_empty_mask_has_no_patch():
    centres = topology.patch_centres(np.zeros((9, 9), bool), pixels_per_patch=4, most=9)
    assert centres.shape == (0, 2)
