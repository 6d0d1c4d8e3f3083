import math

import cv2
import numpy as np
import pytest
import surface_distance
from scipy import ndimage

from tprnet_jax.report import metrics


def draw(shape, *boxes):
    """A mask with boxes (top, left, bottom, right), ends exclusive."""
    mask = np.zeros(shape, bool)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


def test_overlap_counted_by_hand():
    truth = draw((4, 6), (0, 0, 2, 4))  # 8 pixels
    prediction = draw((4, 6), (1, 2, 3, 5))  # 6 pixels, of which 2 true
    assert metrics.overlap(prediction, truth) == {
        "dice": 4 / 14,
        "iou": 2 / 12,
        "precision": 2 / 6,
        "recall": 2 / 8,
    }


def test_overlap_is_the_definition_pixel_by_pixel():
    generator = np.random.default_rng(1)
    for _ in range(20):
        prediction, truth = generator.random((2, 9, 13)) < generator.uniform(0.2, 0.8)
        pairs = list(zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True))
        tp, fp, fn = (pairs.count(pair) for pair in ((True, True), (True, False), (False, True)))
        assert metrics.overlap(prediction, truth) == pytest.approx(
            {
                "dice": 2 * tp / (2 * tp + fp + fn),
                "iou": tp / (tp + fp + fn),
                "precision": tp / (tp + fp),
                "recall": tp / (tp + fn),
            },
            rel=1e-12,
        )


def test_evaluate_gives_the_names_in_order_and_perfect_scores_to_equal_masks():
    mask = draw((8, 8), (2, 3, 5, 7))
    scores = metrics.evaluate(mask, mask)
    assert tuple(scores) == metrics.NAMES
    assert scores == {
        **{"dice": 1.0, "iou": 1.0, "precision": 1.0, "recall": 1.0, "asd": 0.0},
        **{"missed": 0.0, "extra": 0.0, "rim": 1.0, "area_ratio": 1.0},
    }


def test_asd_of_two_single_pixels_is_their_distance_less_one():
    # A pixel's contour is its four corners, sqrt(1/2) each. Three pixels apart, the two near
    # corners are 2 from the other pixel and the two far ones 3.
    assert metrics.average_surface_distance(
        draw((3, 9), (1, 1, 2, 2)), draw((3, 9), (1, 4, 2, 5))
    ) == pytest.approx(2.5, rel=1e-12)


def test_asd_of_squares_shifted_by_one_pixel():
    # A square of side 4 has 4 corners of length sqrt(1/2) and 12 side points of length 1. Seen from
    # either square, one upright side lies outside the other square: its 2 corners and 3 points are
    # 1 away. The opposite one lies inside: its 3 points are 1 away, its corners on the contour.
    square, shifted = draw((9, 9), (2, 2, 6, 6)), draw((9, 9), (2, 3, 6, 7))
    perimeter = 12 + 4 * math.sqrt(0.5)
    outer_side, inner_side = 3 + 2 * math.sqrt(0.5), 3
    expected = (outer_side + inner_side) / perimeter
    assert metrics.average_surface_distance(square, shifted) == pytest.approx(expected, rel=1e-12)


def test_asd_of_nested_squares():
    # Sides 6 and 2, two pixels apart. From the inner square all is 2 away. On each side of the
    # outer one the 3 middle points are 2 away, the 2 beside them sqrt(5), the corners sqrt(8).
    outer, inner = draw((10, 10), (2, 2, 8, 8)), draw((10, 10), (4, 4, 6, 6))
    corner = math.sqrt(0.5)
    to_inner = (12 * 2 + 8 * math.sqrt(5) + 4 * corner * math.sqrt(8)) / (20 + 4 * corner)
    expected = (to_inner + 2) / 2
    assert metrics.average_surface_distance(outer, inner) == pytest.approx(expected, rel=1e-12)
    assert metrics.average_surface_distance(inner, outer) == pytest.approx(expected, rel=1e-12)


def test_asd_where_pixels_meet_at_a_corner_only():
    # Two diagonal pixels: the shared corner counts twice, sqrt(2), the six others sqrt(1/2) each.
    # The other mask is the upper pixel alone, whose four corners all lie on the first contour.
    # Of the lower pixel's three own corners two are 1 and one is sqrt(2) from it.
    pair, single = draw((5, 5), (1, 1, 2, 2), (2, 2, 3, 3)), draw((5, 5), (1, 1, 2, 2))
    to_single = (2 + math.sqrt(2)) * math.sqrt(0.5) / (8 * math.sqrt(0.5))
    assert metrics.average_surface_distance(pair, single) == pytest.approx(to_single / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("prediction", "truth", "case", "score", "others"),
    [
        ((), (), "both", 1.0, [0.0, 0.0, 0.0, 1.0, 1.0]),
        ((), ((0, 0, 1, 2),), "prediction", 0.0, [5.0, 1.0, 0.0, 1.0, 0.0]),
        # Beside no truth, two pixels are twice the one that it counts as.
        (((0, 0, 1, 2),), (), "truth", 0.0, [5.0, 0.0, 2.0, 1.0, 2.0]),
    ],
)
def test_empty_masks(prediction, truth, case, score, others):
    prediction, truth = draw((3, 4), *prediction), draw((3, 4), *truth)
    assert metrics.emptiness(prediction, truth) == case
    assert metrics.evaluate(prediction, truth) == {
        **dict.fromkeys(("dice", "iou", "precision", "recall"), score),
        **dict(zip(("asd", "missed", "extra", "rim", "area_ratio"), others, strict=True)),
    }


def test_disjoint_masks_are_no_empty_case():
    prediction, truth = draw((3, 9), (1, 1, 2, 2)), draw((3, 9), (1, 4, 2, 5))
    assert metrics.emptiness(prediction, truth) is None
    scores = metrics.evaluate(prediction, truth)
    assert [scores[name] for name in metrics.NAMES[:4]] == [0, 0, 0, 0]


def random_mask(generator, kind, shape):
    """A mask of a kind that is hard on contours."""
    height, width = shape
    row, left, right = generator.integers((height, width // 2, width // 2))
    if kind == "left pixel":
        return draw(shape, (row, left, row + 1, left + 1))
    if kind == "right pixel":
        return draw(shape, (row, width // 2 + right, row + 1, width // 2 + right + 1))
    if kind == "full":
        return np.ones(shape, bool)
    if kind == "border":
        return draw(shape, (0, 0, height, left + 1), (height - 1, 0, height, width))
    if kind == "noise":
        return generator.random(shape) < generator.uniform(0.1, 0.9)
    points = generator.integers(0, (width, height), (4, 5, 2)).astype(np.int32)
    thickness = int(generator.integers(1, 6))
    return cv2.polylines(np.zeros(shape, np.uint8), points, False, 1, thickness) > 0


def reference_distance(prediction, truth):
    distances = surface_distance.compute_surface_distances(truth, prediction, spacing_mm=(1, 1))
    return np.mean(surface_distance.compute_average_surface_distance(distances))


# The package calls SciPy's filters by names that SciPy has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_asd_agrees_with_the_surface_distance_package():
    generator = np.random.default_rng(0)
    kinds = ("thin lines", "noise", "border", "full", "left pixel", "right pixel")
    pairs = [("left pixel", "right pixel"), ("thin lines", "thin lines")]
    pairs += [generator.choice(kinds, 2) for _ in range(48)]
    for kind, true_kind in pairs:
        shape = tuple(generator.integers(8, 120, 2))
        prediction = random_mask(generator, kind, shape)
        truth = random_mask(generator, true_kind, shape)
        expected = reference_distance(prediction, truth)
        asd = metrics.average_surface_distance(prediction, truth)
        assert asd == pytest.approx(expected, abs=1e-6, rel=0), (kind, true_kind, shape)


def test_breakdown_of_a_missed_and_an_extra_bar():
    found, missed, extra = (10, 0, 12, 40), (30, 0, 32, 20), (50, 0, 52, 10)
    truth, prediction = draw((60, 40), found, missed), draw((60, 40), found, extra)
    assert metrics.breakdown(prediction, truth) == {
        "missed": 40 / 120,
        "extra": 20 / 120,
        "rim": 1.0,
        "area_ratio": 100 / 120,
    }


def test_breakdown_leaves_the_rim_of_found_branches_as_it_is():
    # The upper bar of 4 x 40 is found one row too low, 3 x 40 in common; the lower one is missed.
    truth = draw((60, 40), (10, 0, 14, 40), (40, 0, 44, 10))
    prediction = draw((60, 40), (11, 0, 15, 40))
    assert metrics.breakdown(prediction, truth) == {
        "missed": 40 / 200,
        "extra": 0.0,
        "rim": 2 * (120 + 40) / (160 + 40 + 200),
        "area_ratio": 160 / 200,
    }


def test_part_of_a_branch_may_be_missed():
    # The prediction ends in column 9: columns 10 to 14 of the truth are near, 15 to 19 too far.
    truth, prediction = draw((3, 20), (1, 0, 2, 20)), draw((3, 20), (1, 0, 2, 10))
    found = metrics.breakdown(prediction, truth)
    assert (found["missed"], found["extra"]) == (5 / 20, 0.0)
    assert found["rim"] == 2 * 15 / (15 + 20)


@pytest.mark.parametrize(
    ("rows", "columns", "far"),
    [(0, 5, 0), (0, 6, 1), (5, 0, 0), (6, 0, 1), (3, 4, 0), (4, 3, 0), (4, 4, 1), (5, 1, 1)],
)
@pytest.mark.parametrize(("down", "right"), [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_reach_is_five_pixels_between_centres(rows, columns, far, down, right):
    row, column = 7 + down * rows, 7 + right * columns
    one, other = draw((15, 15), (7, 7, 8, 8)), draw((15, 15), (row, column, row + 1, column + 1))
    found = metrics.breakdown(one, other)
    assert found == {"missed": far, "extra": far, "rim": far, "area_ratio": 1.0}


def test_nothing_beyond_the_image_is_near():
    # A frame of truth, and a prediction in its middle, 10 from each side.
    frame = ~draw((21, 21), (1, 1, 20, 20))
    middle = draw((21, 21), (10, 10, 11, 11))
    assert metrics.breakdown(middle, frame)["missed"] == 1
    assert metrics.breakdown(frame, middle)["extra"] == 80
    # Pixels in all corners of an image that is too large for them to reach each other.
    corners, alone = np.zeros((2, 9, 9), bool)
    corners[::8, ::8] = alone[0, 0] = True
    assert metrics.breakdown(alone, corners)["missed"] == 3 / 4


def reference_breakdown(prediction, truth):
    """From Euclidean distances to the nearest pixel of the other mask."""
    missed = truth & (ndimage.distance_transform_edt(~prediction) > 5)
    extra = prediction & (ndimage.distance_transform_edt(~truth) > 5)
    mended = np.where(missed, True, np.where(extra, False, prediction))
    return {
        "missed": missed.sum() / truth.sum(),
        "extra": extra.sum() / truth.sum(),
        "rim": 2 * (mended & truth).sum() / (mended.sum() + truth.sum()),
        "area_ratio": prediction.sum() / truth.sum(),
    }


def test_breakdown_agrees_with_distance_transforms():
    generator = np.random.default_rng(2)
    kinds = ("thin lines", "noise", "border", "full", "left pixel", "right pixel")
    near = far = 0
    for _ in range(200):
        shape = tuple(generator.integers(8, 120, 2))
        kind, true_kind = generator.choice(kinds, 2)
        prediction = random_mask(generator, kind, shape)
        truth = random_mask(generator, true_kind, shape)
        found = metrics.breakdown(prediction, truth)
        assert found == pytest.approx(reference_breakdown(prediction, truth), rel=1e-12)
        if found["missed"] == found["extra"] == 0:
            assert found["rim"] == metrics.overlap(prediction, truth)["dice"]
            near += 1
        else:
            assert found["rim"] >= metrics.overlap(prediction, truth)["dice"]
            far += 1
    assert min(near, far) > 20


@pytest.mark.parametrize(
    ("prediction", "truth", "quoted"),
    [
        (np.zeros((3, 4), bool), np.zeros((4, 3), bool), r"\(3, 4\).*\(4, 3\)"),
        (np.zeros((3, 4), np.uint8), np.zeros((3, 4), bool), r"prediction.*uint8 \(3, 4\)"),
        (np.zeros((3, 4), bool), np.zeros((3, 4), np.float32), r"truth.*float32 \(3, 4\)"),
        (np.zeros((3, 4, 1), bool), np.zeros((3, 4, 1), bool), r"bool \(3, 4, 1\)"),
    ],
)
def test_wrong_arrays_are_quoted(prediction, truth, quoted):
    with pytest.raises(ValueError, match=quoted):
        metrics.evaluate(prediction, truth)


def test_summary_is_the_mean_over_images_not_over_pixels():
    small = metrics.evaluate(draw((3, 4), (0, 0, 1, 1)), draw((3, 4), (0, 0, 1, 1)))
    missed = metrics.evaluate(draw((3, 4)), draw((3, 4), (0, 0, 3, 4)))
    assert metrics.summarise([small, missed]) == {
        "dice": 0.5,
        "iou": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "asd": 2.5,
        "missed": 0.5,
        "extra": 0.0,
        "rim": 1.0,
        "area_ratio": 0.5,
    }


def test_summary_of_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        metrics.summarise([])


def test_empty_cases_are_counted():
    cases = [None, "both", "truth", None, "truth"]
    assert metrics.count_empty(cases) == {"both": 1, "prediction": 0, "truth": 2}
