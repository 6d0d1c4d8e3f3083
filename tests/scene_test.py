import hashlib
import math

import numpy as np
import pytest

from tprnet_jax.data import anatomy, scene


def _tree(index):
    return anatomy.grow_tree(np.random.default_rng(index))


def _canvas(points, radii, size):
    window, chord = scene.tube(np.array(points, float), np.array(radii, float), size)
    canvas = np.zeros((size, size))
    canvas[window] = chord
    return canvas


def _inside_by_definition(segment, size):
    """Whether pixel centres lie inside a segment's round cones, piece by piece."""
    scale = size / 512
    rows, columns = np.mgrid[:size, :size] + 0.5
    inside = np.zeros((size, size), bool)
    points, radii = segment.points * scale, segment.radii * scale
    for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
        span = b - a
        t = ((rows - a[0]) * span[0] + (columns - a[1]) * span[1]) / (span @ span)
        t = t.clip(0, 1)
        away = np.hypot(rows - a[0] - t * span[0], columns - a[1] - t * span[1])
        inside |= away < ra + t * (rb - ra)
    return inside


def test_draw_is_a_function_of_its_arguments():
    image, mask = scene.draw(3, 5, 64)
    again = scene.draw(3, 5, 64)
    assert image.shape == mask.shape == (64, 64)
    assert image.dtype == mask.dtype == np.uint8
    assert image.tobytes() == again[0].tobytes()
    assert mask.tobytes() == again[1].tobytes()


def test_draw_differs_by_index_and_by_seed():
    keys = [(0, 0), (0, 1), (1, 0), (1, 1)]
    digests = {hashlib.sha256(scene.draw(*key, 64)[0].tobytes()).digest() for key in keys}
    masks = {scene.draw(*key, 64)[1].tobytes() for key in keys}
    assert len(digests) == len(masks) == 4


def test_smaller_image_is_the_block_mean_of_the_larger():
    large, small = scene.draw(0, 2, 512)[0], scene.draw(0, 2, 128)[0]
    mean = large.reshape(128, 4, 128, 4).mean(axis=(1, 3))
    # Both were rounded: half a grey value each.
    assert np.abs(mean - small).max() <= 1.0


def test_a_size_that_does_not_divide_512_shows_the_same_scene():
    odd, even = scene.draw(0, 2, 150), scene.draw(0, 2, 512)
    blocks = [
        image.reshape(2, len(image) // 2, 2, -1).mean(axis=(1, 3)) for image, _ in (odd, even)
    ]
    np.testing.assert_allclose(*blocks, atol=1.0)
    assert (odd[1] > 0).mean() == pytest.approx((even[1] > 0).mean(), rel=0.05)


def test_straight_tube_has_its_pixel_set_and_chords():
    chord = _canvas([(8, -10), (8, 30)], [2, 2], 16)
    expected = np.zeros((16, 16))
    expected[[7, 8]] = 2 * math.sqrt(4 - 0.25)  # centres half a pixel off the axis
    expected[[6, 9]] = 2 * math.sqrt(4 - 2.25)
    np.testing.assert_allclose(chord, expected, atol=1e-12)


def test_tube_excludes_centres_at_exactly_its_radius():
    chord = _canvas([(8.5, -10), (8.5, 30)], [2, 2], 16)
    assert np.flatnonzero(chord[:, 0]).tolist() == [7, 8, 9]


def test_slanted_tube_with_round_ends_has_the_analytic_area():
    start, end, radius = np.array([100.3, 80.1]), np.array([310.7, 395.2]), 12.4
    area = 2 * radius * np.linalg.norm(end - start) + math.pi * radius**2
    assert (_canvas([start, end], [radius] * 2, 512) > 0).sum() == pytest.approx(area, rel=2e-3)


def test_tube_outside_the_image_is_nothing():
    assert not _canvas([(-30, 5), (-20, 9)], [4, 4], 16).any()
    assert not _canvas([(5, 40), (9, 60)], [4, 4], 16).any()


@pytest.mark.parametrize(("index", "size"), [(0, 128), (1, 96), (2, 200)])
def test_mask_is_exactly_the_centres_inside_the_tree(index, size):
    tree = _tree(index)
    expected = np.any([_inside_by_definition(segment, size) for segment in tree], axis=0)
    np.testing.assert_array_equal(scene.project(tree, size) > 0, expected)


def test_draw_masks_the_tree_of_its_generator():
    rng = np.random.default_rng(np.random.SeedSequence([4, 9]))
    expected = scene.project(anatomy.grow_tree(rng), 96) > 0
    np.testing.assert_array_equal(scene.draw(4, 9, 96)[1], expected * np.uint8(255))


def _straight(start, end, radius, parent=-1):
    points = np.linspace(start, end, 20)
    return anatomy.Segment(points, np.full(20, float(radius)), parent)


def test_crossing_vessels_add_up():
    flat = _straight((256.5, 0), (256.5, 512), 8)
    steep = _straight((0, 256.5), (512, 256.5), 5)
    thickness = scene.project([flat, steep], 512)
    assert thickness[256, 256] == pytest.approx(2 * 8 + 2 * 5)
    assert thickness[256, 100] == pytest.approx(2 * 8)


def test_a_branch_does_not_thicken_its_parent_where_it_leaves():
    parent = _straight((256.5, 0), (256.5, 256.5), 8)
    branch = _straight((256.5, 256.5), (512, 256.5), 5, parent=0)
    thickness = scene.project([parent, branch], 512)
    assert thickness[256, 256] == pytest.approx(2 * 8)
    assert thickness[400, 256] == pytest.approx(2 * 5)


def test_murray_law_holds_at_every_bifurcation():
    bifurcations = 0
    for index in range(20):
        tree = _tree(index)
        for number, segment in enumerate(tree):
            children = [child for child in tree if child.parent == number]
            assert len(children) in (0, 2)
            if children:
                bifurcations += 1
                cubes = sum(child.radii[0] ** 3 for child in children)
                assert cubes == pytest.approx(segment.radii[-1] ** 3, rel=1e-9)
                for child in children:
                    np.testing.assert_allclose(child.points[0], segment.points[-1], atol=1e-9)
    assert bifurcations > 60


def test_murray_angle_of_equal_branches():
    # Murray 1926 gives 74.9 degrees: cos = 2^(1/3) - 1.
    assert math.degrees(anatomy.murray_angle(3.0, 3.0)) == pytest.approx(74.93, abs=0.01)


def test_trees_stay_in_the_picture_and_visible():
    for index in range(20):
        for segment in _tree(index):
            assert segment.radii.min() >= anatomy.MIN_RADIUS
            assert segment.points.min() >= 0
            assert segment.points.max() <= 512


def test_catheter_is_dark_and_not_in_the_mask():
    for index in range(5):
        rng = np.random.default_rng(np.random.SeedSequence([0, index]))
        tree = anatomy.grow_tree(rng)
        catheter = anatomy.lay_catheter(rng, tree[0])
        assert np.ptp(catheter.radii) == 0
        assert catheter.points[0].min() < 0  # enters from outside
        assert np.linalg.norm(catheter.points[-1] - tree[0].points[0]) < 7  # ends in the ostium
        image, mask = scene.draw(0, index, 256)
        shaft = (scene.project([catheter], 256) > 2) & (scene.project(tree, 256) == 0)
        assert shaft.sum() > 30
        assert not mask[shaft].any()
        rows, columns = np.nonzero(shaft)
        beside = np.concatenate([columns - 8, columns + 8]).clip(0, 255)
        assert image[shaft].mean() < image[np.tile(rows, 2), beside].mean()


def test_statistics_are_like_those_of_angiograms():
    pairs = [scene.draw(1, index, 128) for index in range(16)]
    masks = np.array([mask for _, mask in pairs])
    assert set(np.unique(masks)) == {0, 255}
    share = (masks > 0).mean(axis=(1, 2))
    assert share.min() > 0.015
    assert share.max() < 0.07
    assert 0.025 < share.mean() < 0.042
    assert 100 < np.mean([image.mean() for image, _ in pairs]) < 160
    contrast = [image[mask == 0].mean() - image[mask > 0].mean() for image, mask in pairs]
    assert 10 < np.mean(contrast) < 40
