import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tprnet_jax.method import windows
from tprnet_jax.method.windows import Patches


def _patches(owner, origin):
    return Patches(np.array(owner, np.int32), np.array(origin, np.int32).reshape(-1, 2))


@functools.partial(jax.jit, static_argnames=("image", "batch"))
def _lay(values, patches, image, batch):
    canvas = windows.empty_canvas(batch, image, values.shape[-1])
    return windows.lay_patches(canvas, values, patches)


# ---- Rectangle -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixels", "start", "end"),
    [
        ([], (0, 0), (5, 7)),
        ([(2, 3)], (2, 3), (3, 4)),
        ([(0, 0)], (0, 0), (1, 1)),
        ([(4, 6)], (4, 6), (5, 7)),
        ([(0, 5), (4, 2)], (0, 2), (5, 6)),
        ([(1, 0), (3, 6)], (1, 0), (4, 7)),
        ([(1, 2), (3, 2), (2, 4)], (1, 2), (4, 5)),
    ],
)
def test_rectangle_by_hand(pixels, start, end):
    mask = np.zeros((1, 5, 7), bool)
    for row, column in pixels:
        mask[0, row, column] = True
    found = windows.rectangle(jnp.asarray(mask))
    np.testing.assert_array_equal(found, np.array([[start], [end]]))


def test_rectangle_of_each_mask_of_a_batch():
    masks = np.random.default_rng(0).random((20, 6, 9)) < 0.06
    masks[3] = False
    start, end = windows.rectangle(jnp.asarray(masks))
    for index, mask in enumerate(masks):
        pixels = np.argwhere(mask) if mask.any() else np.argwhere(np.ones_like(mask))
        np.testing.assert_array_equal(start[index], pixels.min(axis=0))
        np.testing.assert_array_equal(end[index], pixels.max(axis=0) + 1)


# ---- Origins -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "origin"),
    [
        ((3, 3), (7, 9), (3, 3)),
        ((0, 4), (2, 8), (0, 3)),
        ((8, 4), (10, 8), (6, 3)),
        ((4, 0), (6, 2), (3, 0)),
        ((4, 10), (6, 12), (3, 6)),
        ((2, 3), (5, 6), (1, 1)),
        ((0, 0), (10, 12), (3, 3)),
    ],
    ids=["centred", "top", "bottom", "left", "right", "odd", "whole image"],
)
def test_window_origin_by_hand(start, end, origin):
    found = windows.window_origin(jnp.array([start]), jnp.array([end]), (4, 6), (10, 12))
    np.testing.assert_array_equal(found, [origin])


@pytest.mark.parametrize(
    ("start", "end", "column"), [((3, 3), (7, 11), 1), ((3, 0), (7, 4), 0), ((3, 1), (7, 12), 2)]
)
def test_the_released_column_is_half_the_width(start, end, column):
    """A rectangle 8 wide has its window, 6 wide, around column 4, wherever it lies."""
    found = windows.window_origin(
        jnp.array([start]), jnp.array([end]), (4, 6), (10, 12), column="half_width"
    )
    np.testing.assert_array_equal(found, [(3, column)])


def test_window_as_large_as_the_image_starts_at_its_corner():
    start = jnp.array([[0, 0], [9, 0], [4, 11]])
    found = windows.window_origin(start, start + 1, (10, 12), (10, 12))
    np.testing.assert_array_equal(found, np.zeros((3, 2)))


@pytest.mark.parametrize("xp", [np, jnp])
def test_valid_origin_is_eq_2(xp):
    rows, columns = 12, 9
    centres = np.array(list(itertools.product(range(rows), range(columns))))
    found = windows.valid_origin(xp.asarray(centres), (6, 4), (rows, columns))
    assert isinstance(found, np.ndarray if xp is np else jnp.ndarray)
    for (row, column), origin in zip(centres, np.asarray(found), strict=True):
        valid = max(3, min(row, rows - 3)), max(2, min(column, columns - 2))
        np.testing.assert_array_equal(origin, np.subtract(valid, (3, 2)))


@pytest.mark.parametrize("xp", [np, jnp])
def test_valid_origin_of_one_centre_and_of_none(xp):
    one = windows.valid_origin(xp.array([7, 0]), (3, 3), (8, 8))
    np.testing.assert_array_equal(one, [5, 0])
    assert windows.valid_origin(xp.zeros((0, 2), int), (3, 3), (8, 8)).shape == (0, 2)


# ---- Crop and stack ------------------------------------------------------------------------------


def test_crop_slices_and_uncrop_puts_back():
    images = np.random.default_rng(0).random((3, 7, 9, 2)).astype(np.float32)
    origin = np.array([[0, 0], [3, 4], [1, 2]], np.int32)
    cropped = windows.crop(jnp.asarray(images), jnp.asarray(origin), (4, 5))
    restored = windows.uncrop(cropped, jnp.asarray(origin), (7, 9))
    for index, (row, column) in enumerate(origin):
        there = np.s_[index, row : row + 4, column : column + 5]
        np.testing.assert_array_equal(cropped[index], images[there])
        kept = np.zeros_like(images)
        kept[there] = images[there]
        np.testing.assert_array_equal(restored[index], kept[index])
    np.testing.assert_array_equal(windows.crop(restored, jnp.asarray(origin), (4, 5)), cropped)


def test_stack_patches_slices_the_owners():
    images = np.random.default_rng(0).random((3, 7, 9, 2)).astype(np.float32)
    patches = _patches([2, 0, 0, 1], [(0, 0), (4, 6), (2, 1), (1, 6)])
    stack = windows.stack_patches(jnp.asarray(images), patches, (3, 3))
    assert stack.shape == (4, 3, 3, 2)
    for patch, owner, (row, column) in zip(stack, *patches, strict=True):
        np.testing.assert_array_equal(patch, images[owner, row : row + 3, column : column + 3])


def test_an_empty_slot_stacks_a_patch_of_the_last_image():
    images = np.arange(2 * 4 * 4, dtype=np.float32).reshape(2, 4, 4, 1)
    stack = windows.stack_patches(jnp.asarray(images), _patches([2], [(0, 0)]), (2, 3))
    np.testing.assert_array_equal(stack[0], images[1, :2, :3])


# ---- Laying in order -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first_share", "values", "shares"),
    [
        # Each takes half: 8 / 2, then 4 / 2 + 16 / 2, then 32 / 2 of what was empty.
        (0.5, [4, 10, 8, 16, 0], [0.5, 0.75, 0.5, 0.5, 0]),
        # The first one is written.
        (1.0, [8, 12, 16, 32, 0], [1, 1, 1, 1, 0]),
    ],
)
def test_patches_laid_in_order_by_hand(first_share, values, shares):
    """8 on pixels 0 and 1, 16 on 1 and 2, 32 on pixel 3 in the next chunk, one in an empty slot."""
    canvas = windows.empty_canvas(2, (1, 5), 1)
    first = jnp.array([8.0, 16.0])[:, None, None, None] * jnp.ones((2, 1, 2, 1))
    canvas = windows.lay_in_order(canvas, first, _patches([1, 1], [(0, 0), (0, 1)]), first_share)
    then = jnp.array([32.0, 99.0])[:, None, None, None] * jnp.ones((2, 1, 1, 1))
    canvas = windows.lay_in_order(canvas, then, _patches([1, 2], [(0, 3), (0, 4)]), first_share)
    np.testing.assert_array_equal(canvas[0], np.zeros((1, 5, 2)))
    np.testing.assert_array_equal(canvas[1, 0, :, 0], values)
    np.testing.assert_array_equal(canvas[1, 0, :, 1], shares)


# ---- Reconstruction ------------------------------------------------------------------------------


def test_patch_weight_by_hand():
    low, high = 0.5, 1.0
    even = [[low] * 4, [low, high, high, low], [low, high, high, low], [low] * 4]
    np.testing.assert_array_equal(windows.patch_weight((4, 4)), even)
    third, two = 1 / 3, 2 / 3
    border = [third, low, low, low, third]
    odd = [border, [third, two, high, two, third], border]
    np.testing.assert_allclose(windows.patch_weight((3, 5)), odd, rtol=1e-6)
    np.testing.assert_array_equal(windows.patch_weight((1, 1)), [[1]])


def test_reconstruction_is_the_weighted_mean():
    """Whole numbers and weights of 1/2 and 1 add exactly."""
    rng = np.random.default_rng(0)
    values = rng.integers(-9, 10, (8, 4, 3, 2)).astype(np.float32)
    owner = [0, 0, 0, 0, 1, 1, 1, 1]
    origin = [(0, 0), (1, 1), (1, 1), (2, 0), (5, 6), (4, 5), (3, 6), (0, 2)]
    weight = np.array([[0.5, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 0.5]])
    total, weights = np.zeros((2, 9, 9, 2)), np.zeros((2, 9, 9, 1))
    for value, index, (row, column) in zip(values, owner, origin, strict=True):
        for i, j in itertools.product(range(4), range(3)):
            total[index, row + i, column + j] += weight[i, j] * value[i, j]
            weights[index, row + i, column + j] += weight[i, j]
    canvas = _lay(values, _patches(owner, origin), (9, 9), 2)
    np.testing.assert_array_equal(canvas, np.concatenate([total, weights], axis=-1))
    mean, covered = windows.reconstruct(canvas)
    np.testing.assert_array_equal(covered, weights > 0)
    expected = np.divide(total, weights, out=np.zeros_like(total), where=weights > 0)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)


def test_one_patch_comes_back_unchanged():
    value = np.random.default_rng(0).normal(size=(1, 3, 5, 2)).astype(np.float32)
    mean, _ = windows.reconstruct(_lay(value, _patches([0], [(2, 1)]), (6, 7), 1))
    np.testing.assert_allclose(mean[:, 2:5, 1:6], value, rtol=1e-6)


def test_the_order_of_patches_does_not_matter():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 5, 4, 2)).astype(np.float32)
    patches = _patches(rng.integers(0, 2, 12), rng.integers(0, 5, (12, 2)))
    mean, covered = windows.reconstruct(_lay(values, patches, (9, 8), 2))
    for _ in range(3):
        order = rng.permutation(12)
        shuffled = Patches(patches.owner[order], patches.origin[order])
        again, covered_again = windows.reconstruct(_lay(values[order], shuffled, (9, 8), 2))
        np.testing.assert_array_equal(covered_again, covered)
        np.testing.assert_allclose(again, mean, rtol=0, atol=1e-6)


def test_chunks_of_patches_add_up():
    rng = np.random.default_rng(0)
    values = rng.integers(-9, 10, (6, 4, 4, 1)).astype(np.float32)
    patches = _patches([0, 0, 1, 1, 0, 1], rng.integers(0, 4, (6, 2)))
    canvas = windows.empty_canvas(2, (7, 7), 1)
    for some in (slice(0, 4), slice(4, 6)):
        chunk = Patches(patches.owner[some], patches.origin[some])
        canvas = windows.lay_patches(canvas, values[some], chunk)
    np.testing.assert_array_equal(canvas, _lay(values, patches, (7, 7), 2))


def test_empty_slots_add_nothing():
    values = np.full((3, 4, 4, 1), 7, np.float32)
    filled = _lay(values, _patches([1, 2, 2], [(1, 1), (0, 0), (3, 3)]), (7, 7), 2)
    np.testing.assert_array_equal(filled, _lay(values[:1], _patches([1], [(1, 1)]), (7, 7), 2))
    assert not filled[0].any()


def test_nothing_laid_is_zero_and_not_covered():
    mean, covered = windows.reconstruct(windows.empty_canvas(1, (3, 4), 2))
    np.testing.assert_array_equal(mean, np.zeros((1, 3, 4, 2)))
    assert not covered.any()


def test_merge_in_all_four_cases():
    first = jnp.full((1, 1, 4, 1), 2.0)
    second = jnp.full((1, 1, 4, 1), 8.0)
    first_covers = jnp.array([True, True, False, False]).reshape(1, 1, 4, 1)
    second_covers = jnp.array([True, False, True, False]).reshape(1, 1, 4, 1)
    merged = windows.merge(first, first_covers, second, second_covers)
    np.testing.assert_array_equal(merged.ravel(), [5, 2, 8, 0])
