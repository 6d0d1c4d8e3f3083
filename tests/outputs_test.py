import json

import cv2
import numpy as np
import pytest

from tprnet_jax.data import arcade
from tprnet_jax.report import figures, graph, outputs
from tprnet_jax.report.outputs import Segmented


def _segmented(mask):
    mask = np.asarray(mask, bool)
    image = np.full(mask.shape, 0.5, np.float32)
    probability = np.where(mask, np.float32(0.75), np.float32(0.25))
    return Segmented("a.png", image, mask, probability)


def _decode(png):
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.fixture
def two_vessels():
    """A block of 3 x 4 pixels, and a slanted line of one pixel's width."""
    mask = np.zeros((40, 50), bool)
    mask[5:8, 10:14] = True
    mask[range(20, 30), range(20, 30)] = True
    return mask


def test_a_mask_is_black_and_white(two_vessels):
    pixels = _decode(outputs.mask(_segmented(two_vessels)))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, two_vessels * 255)


def test_a_probability_has_sixteen_bits(two_vessels):
    pixels = _decode(outputs.probability(_segmented(two_vessels)))
    assert pixels.dtype == np.uint16
    # 0.75 of 65535 is 49151.25, a quarter 16383.75.
    np.testing.assert_array_equal(pixels, np.where(two_vessels, 49151, 16384))


@pytest.mark.parametrize(("side", "drawn"), [(50, 550), (300, 600), (511, 1022), (512, 512)])
def test_an_overlay_is_enlarged_to_512_pixels(side, drawn):
    found = _segmented(np.zeros((side - 10, side), bool))
    factor = drawn // side
    assert _decode(outputs.overlay(found)).shape == ((side - 10) * factor, drawn, 3)


def test_a_vessel_two_pixels_wide_is_seen_through_its_outline():
    mask = np.zeros((64, 64), bool)
    mask[:, 30:32] = True
    row = outputs.drawn(np.full((64, 64), 0.5, np.float32), mask)[100]
    is_outline = (row == figures.PREDICTION).all(axis=-1)
    assert np.flatnonzero(is_outline).tolist() == [30 * 8 - 1, 32 * 8]


def test_a_tree_is_in_millimetres_where_they_are_known(two_vessels):
    found = _segmented(two_vessels)
    assert "length_mm" not in json.loads(outputs.tree(found))["edges"][0]
    document = json.loads(outputs.tree(found._replace(spacing=(0.5, 0.5))))
    assert document == graph.vessel_tree(two_vessels, (0.5, 0.5))
    (edge,) = document["edges"]
    assert edge["length_mm"] == pytest.approx(edge["length"] / 2, abs=1e-3)


# ---- Contours ------------------------------------------------------------------------------------


def _drawn(document, size):
    """The masks of the annotations, by their own words."""
    mask = np.zeros(size, bool)
    for annotation in document["annotations"]:
        if annotation["iscrowd"]:
            counts = annotation["segmentation"]["counts"]
            values = np.arange(len(counts)) % 2 == 1
            mask |= np.repeat(values, counts).reshape(size[::-1]).T
        else:
            mask |= arcade.draw_mask(annotation["segmentation"], *size) > 0
    return mask


def test_contours_are_polygons_that_fill_to_the_mask(two_vessels):
    document = json.loads(outputs.contours(_segmented(two_vessels)))
    assert document["images"] == [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}]
    block, line = document["annotations"]
    assert (block["area"], block["bbox"]) == (12, [10, 5, 4, 3])
    # x, y of the corner pixels' centres.
    assert sorted(zip(*[iter(block["segmentation"][0])] * 2, strict=True)) == [
        (10, 5),
        (10, 7),
        (13, 5),
        (13, 7),
    ]
    assert (line["area"], line["bbox"]) == (10, [20, 20, 10, 10])
    np.testing.assert_array_equal(_drawn(document, (40, 50)), two_vessels)


def test_a_vessel_around_a_hole_is_told_by_run_lengths():
    ring = np.zeros((5, 6), bool)
    ring[1:4, 1:4] = True
    ring[2, 2] = False
    document = json.loads(outputs.contours(_segmented(ring)))
    (annotation,) = document["annotations"]
    # Columns of five: 5 + 1 outside, 3 in; 2 out, 1 in, 1 out, 1 in; 2 out, 3 in; 1 + 10 out.
    assert annotation["segmentation"] == {
        "size": [5, 6],
        "counts": [6, 3, 2, 1, 1, 1, 2, 3, 11],
    }
    np.testing.assert_array_equal(_drawn(document, (5, 6)), ring)


def test_run_lengths_begin_outside_and_end_with_the_image():
    full = np.ones((2, 3), bool)
    assert outputs._run_lengths(full)["counts"] == [0, 6, 0]


def test_a_single_pixel_has_three_points():
    mask = np.zeros((9, 9), bool)
    mask[4, 7] = True
    (annotation,) = json.loads(outputs.contours(_segmented(mask)))["annotations"]
    assert annotation["segmentation"] == [[7, 4] * 3]


def test_an_empty_mask_has_no_annotation():
    empty = _segmented(np.zeros((9, 9), bool))
    assert json.loads(outputs.contours(empty))["annotations"] == []


def test_random_trees_come_back_from_their_contours():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = cv2.GaussianBlur(rng.random((60, 70)), (0, 0), 2) > 0.51
        document = json.loads(outputs.contours(_segmented(mask)))
        np.testing.assert_array_equal(_drawn(document, mask.shape), mask)
