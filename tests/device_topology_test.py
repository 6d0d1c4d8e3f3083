import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from tprnet_jax.data import arcade, scene
from tprnet_jax.method import device_topology, topology, windows

ARCADE = os.environ.get("TPRNET_ARCADE")

SIDES = (37, 29)

centreline = jax.jit(device_topology.centreline)
patch_centres = jax.jit(device_topology.patch_centres, static_argnums=2)
sample_patches = jax.jit(device_topology.sample_patches, static_argnums=(3, 4))


def _blobs(seed, width):
    noise = np.random.default_rng(seed).normal(size=SIDES)
    smooth = ndimage.gaussian_filter(noise, width)
    return smooth > smooth.std() / 2


def _lines(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros(SIDES, bool)
    mask[rng.integers(SIDES[0], size=2)] = True
    mask[:, rng.integers(SIDES[1], size=2)] = True
    return mask | np.eye(*SIDES, dtype=bool)


def _single(row, column):
    mask = np.zeros(SIDES, bool)
    mask[row, column] = True
    return mask


def _frame():
    mask = np.ones(SIDES, bool)
    mask[4:-3, 2:-5] = False
    return mask


def _masks():
    """Vessel-like and degenerate masks, all of one size: `(36, *SIDES)` bool."""
    blobs = [_blobs(seed, width) for seed in range(5) for width in (0.6, 1, 2, 4)]
    noise = [np.random.default_rng(seed).random(SIDES) < 0.3 + 0.1 * seed for seed in range(6)]
    corners = [_single(i, j) for i in (0, -1) for j in (0, -1)]
    vessel = scene.draw(0, 0, 128)[1][40 : 40 + SIDES[0], 50 : 50 + SIDES[1]] > 0
    plain = [np.ones(SIDES, bool), np.zeros(SIDES, bool), _single(9, 7), _frame(), vessel]
    return np.stack([*blobs, *noise, *corners, *plain, _lines(0)])


def assert_same_centreline(masks):
    found = np.asarray(centreline(masks))
    assert found.dtype == bool
    np.testing.assert_array_equal(found, [topology.centreline(mask) for mask in masks])


def assert_same_centres(masks, pixels_per_patch, most):
    """Returns how many centres were compared."""
    sizes = pixels_per_patch, most
    centres, count = map(np.asarray, patch_centres(masks, *sizes))
    assert centres.dtype == count.dtype == np.int32
    assert centres.shape == (len(masks), most, 2)
    for mask, centre, number in zip(masks, centres, count, strict=True):
        np.testing.assert_array_equal(centre[:number], topology.patch_centres(mask, *sizes))
        assert not centre[number:].any()
    return count.sum()


# ---- Centreline ----------------------------------------------------------------------------------


def test_centreline_as_on_the_host():
    masks = _masks()
    assert all(edge.any(axis=1).sum() > 20 for edge in (masks[:, 0], masks[:, -1]))
    assert all(edge.any(axis=1).sum() > 20 for edge in (masks[..., 0], masks[..., -1]))
    assert_same_centreline(masks)
    assert_same_centreline(masks.transpose(0, 2, 1)[:, ::-1])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (3, 3), (5, 4)])
def test_centreline_in_the_smallest_images(shape):
    rng = np.random.default_rng(0)
    masks = np.concatenate([np.ones((1, *shape), bool), rng.random((40, *shape)) < 0.7])
    assert_same_centreline(masks)


def _all_squares(side):
    """Every mask of this side, each surrounded by nothing, in one image."""
    bits = np.arange(2 ** (side * side))[:, None] >> np.arange(side * side) & 1
    squares = np.pad(bits.reshape(-1, side, side) > 0, ((0, 0), (1, 1), (1, 1)))
    across = 2 ** (side * side // 2)
    rows = squares.reshape(-1, across, side + 2, side + 2).swapaxes(1, 2)
    return rows.reshape(-1, across * (side + 2))


@pytest.mark.parametrize("side", [3, 4])
def test_skeleton_of_every_small_shape(side):
    assert_same_centreline(_all_squares(side)[None])


def _every_3x3_image():
    return (np.arange(2**9)[:, None] >> np.arange(9) & 1).reshape(-1, 3, 3) > 0


def test_centreline_of_every_3x3_image():
    """Here the border is part of every neighbourhood."""
    assert_same_centreline(_every_3x3_image())


# ---- Patch centres -------------------------------------------------------------------------------


def test_patch_centres_as_on_the_host():
    masks = _masks()
    assert assert_same_centres(masks, 1, 25) > 600
    assert assert_same_centres(masks, 9, 25) > 200
    assert assert_same_centres(masks, 999, 25) < len(masks)


def test_ties_go_to_the_first_pixel_row_by_row():
    """The corners of a square lie equally far from its middle, the second and third from both."""
    masks = np.zeros((2, 9, 9), bool)
    masks[0, 1:8:6, 1:8:6] = masks[1, 4, 1:8:6] = masks[1, 1:8:6, 4] = True
    centres, count = patch_centres(masks, 1, 5)
    np.testing.assert_array_equal(count, [4, 4])
    np.testing.assert_array_equal(centres[0], [(1, 1), (7, 7), (1, 7), (7, 1), (0, 0)])
    np.testing.assert_array_equal(centres[1], [(1, 4), (7, 4), (4, 1), (4, 7), (0, 0)])
    assert_same_centres(masks, 1, 5)


def test_every_image_has_its_own_number():
    masks = np.zeros((4, 9, 30), bool)
    for mask, length in zip(masks, (0, 3, 9, 28), strict=True):
        mask[4, 1 : 1 + length] = True
    centres, count = patch_centres(masks, 4, 5)
    np.testing.assert_array_equal(count, [0, 1, 2, 5])
    assert not centres[0].any()
    np.testing.assert_array_equal(centres[1], [(4, 1), *[(0, 0)] * 4])
    np.testing.assert_array_equal(centres[2], [(4, 1), (4, 9), *[(0, 0)] * 3])
    np.testing.assert_array_equal(centres[3, :3], [(4, 1), (4, 28), (4, 14)])


def assert_same_first_point(lines):
    found = jax.jit(device_topology._farthest_from_centroid)(lines)
    for line, point in zip(lines, found, strict=True):
        points = np.argwhere(line)
        np.testing.assert_array_equal(point, points[topology.farthest_points(points, 1)[0]])


def test_farthest_from_the_centroid_of_every_3x3_image():
    assert_same_first_point(_every_3x3_image()[1:])


def test_farthest_from_the_centroid_of_few_pixels():
    """Where the two farthest often differ by less than 1 in their squared distances."""
    masks = np.random.default_rng(0).random((400, 11, 8)) < 0.15
    assert_same_first_point(masks[masks.any(axis=(1, 2))])


def test_farthest_from_the_centroid_in_the_largest_sums():
    """2**20 points but a few, in 1024 x 1024, as many as are promised to be exact."""
    lines = np.ones((2, 1024, 1024), bool)
    lines[0, 0, :2] = lines[0, -1, -1] = lines[1, :3, 1000:] = False
    assert_same_first_point(lines)


# ---- Patches -------------------------------------------------------------------------------------


def test_patches_lie_image_after_image_without_gaps():
    """Origins worked out by hand: centre + region - half the patch, kept inside 20 x 30."""
    centres = np.zeros((4, 3, 2), np.int32)
    centres[0, :2] = (5, 6), (0, 1)
    centres[2] = (9, 9), (4, 19), (2, 2)
    centres[3, 0] = (3, 0)
    region = np.array([(1, 2), (0, 0), (10, 10), (0, 9)], np.int32)
    count = np.array([2, 0, 3, 1], np.int32)
    patches, total = sample_patches(centres, count, region, (20, 30), (8, 5))
    assert total == 6
    assert patches.owner.dtype == patches.origin.dtype == total.dtype == np.int32
    np.testing.assert_array_equal(patches.owner, [0, 0, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4])
    origins = [(2, 6), (0, 1), (12, 17), (10, 25), (8, 10), (0, 7)]
    np.testing.assert_array_equal(patches.origin, origins + [(0, 0)] * 6)


def test_patches_where_no_image_has_any_and_where_all_are_full():
    sizes = np.zeros((2, 2), np.int32), (9, 9), (3, 3)
    centres = np.arange(12, dtype=np.int32).reshape(2, 3, 2) % 7 + 1
    patches, total = sample_patches(centres, np.int32([0, 0]), *sizes)
    assert total == 0
    np.testing.assert_array_equal(patches.owner, [2] * 6)
    assert not patches.origin.any()
    patches, total = sample_patches(centres, np.int32([3, 3]), *sizes)
    assert total == 6
    np.testing.assert_array_equal(patches.owner, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(patches.origin, centres.reshape(6, 2) - 1)


def test_patches_of_a_batch_as_on_the_host():
    masks = _masks()
    region = np.random.default_rng(0).integers(0, 20, (len(masks), 2), np.int32)
    image, patch, sizes = (57, 49), (11, 8), (5, 12)
    patches, total = sample_patches(*patch_centres(masks, *sizes), region, image, patch)
    expected = [
        windows.valid_origin(topology.patch_centres(mask, *sizes) + corner, patch, image)
        for mask, corner in zip(masks, region, strict=True)
    ]
    owner = np.repeat(np.arange(len(masks)), [len(each) for each in expected])
    assert len(patches.owner) == len(masks) * 12 > total == len(owner) > 100
    np.testing.assert_array_equal(patches.owner[:total], owner)
    np.testing.assert_array_equal(patches.origin[:total], np.concatenate(expected))
    assert (patches.owner[total:] == len(masks)).all()
    assert not patches.origin[total:].any()


def test_the_whole_stage_in_one_program_takes_any_number_of_patches():
    compiled = []

    @jax.jit
    def stage(mask):
        compiled.append(mask.shape)
        centres, count = device_topology.patch_centres(mask, 5, 12)
        return device_topology.sample_patches(centres, count, jnp.zeros((1, 2), int), SIDES, (4, 4))

    totals = [int(stage(mask[None])[1]) for mask in _masks()]
    assert len(set(totals)) > 5
    assert len(compiled) == 1


# ---- The real data -------------------------------------------------------------------------------


def _real_masks(batch):
    for folder in ("train", "val"):
        samples = arcade._read_split(Path(ARCADE) / "syntax" / folder)
        masks = (arcade.draw_mask(each.polygons, each.height, each.width) > 0 for each in samples)
        while some := list(itertools.islice(masks, batch)):
            yield np.stack(some)


@pytest.mark.arcade
def test_real_masks_as_on_the_host():
    masks = patches = 0
    for some in _real_masks(20):
        assert_same_centreline(some)
        patches += assert_same_centres(some, 64, 64)
        masks += len(some)
    print(f"\n{patches} patches of {masks} masks are equal")
    assert masks == 1200
    assert patches > 10 * masks
