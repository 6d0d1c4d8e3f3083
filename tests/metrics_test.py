import json
import math

import cv2
import make_metrics_reference as reference
import numpy as np
import pytest
import surface_distance
from scipy import ndimage
from skimage.morphology import skeletonize

from tprnet_jax.report import metrics
from tprnet_jax.report.region import Region

BANDS = ("recall_thin", "recall_middle", "recall_thick")


def draw(shape, *boxes):
    """A mask with boxes (top, left, bottom, right), ends exclusive."""
    mask = np.zeros(shape, bool)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


def of_regions(metric, prediction, truth):
    return metric(Region(prediction), Region(truth))


def average_surface_distance(prediction, truth):
    return of_regions(metrics.average_surface_distance, prediction, truth)


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
    brief = {
        **{"dice": 1.0, "iou": 1.0, "precision": 1.0, "recall": 1.0, "asd": 0.0},
        **{"missed": 0.0, "extra": 0.0, "rim": 1.0, "area_ratio": 1.0},
    }
    assert scores == brief | {
        **{"hd95": 0.0, "cldice": 1.0, "betti0": 0.0, "betti1": 0.0},
        **{"recall_thin": 1.0, "recall_middle": None, "recall_thick": None},
    }
    assert of_regions(metrics.compare_briefly, mask, mask) == brief
    assert tuple(brief) == metrics.BRIEF


def test_asd_of_two_single_pixels_is_their_distance_less_one():
    # A pixel's contour is its four corners, sqrt(1/2) each. Three pixels apart, the two near
    # corners are 2 from the other pixel and the two far ones 3.
    one, other = draw((3, 9), (1, 1, 2, 2)), draw((3, 9), (1, 4, 2, 5))
    assert average_surface_distance(one, other) == pytest.approx(2.5, rel=1e-12)


def test_asd_of_squares_shifted_by_one_pixel():
    # A square of side 4 has 4 corners of length sqrt(1/2) and 12 side points of length 1. Seen from
    # either square, one upright side lies outside the other square: its 2 corners and 3 points are
    # 1 away. The opposite one lies inside: its 3 points are 1 away, its corners on the contour.
    square, shifted = draw((9, 9), (2, 2, 6, 6)), draw((9, 9), (2, 3, 6, 7))
    perimeter = 12 + 4 * math.sqrt(0.5)
    outer_side, inner_side = 3 + 2 * math.sqrt(0.5), 3
    expected = (outer_side + inner_side) / perimeter
    assert average_surface_distance(square, shifted) == pytest.approx(expected, rel=1e-12)


def test_asd_of_nested_squares():
    # Sides 6 and 2, two pixels apart. From the inner square all is 2 away. On each side of the
    # outer one the 3 middle points are 2 away, the 2 beside them sqrt(5), the corners sqrt(8).
    outer, inner = draw((10, 10), (2, 2, 8, 8)), draw((10, 10), (4, 4, 6, 6))
    corner = math.sqrt(0.5)
    to_inner = (12 * 2 + 8 * math.sqrt(5) + 4 * corner * math.sqrt(8)) / (20 + 4 * corner)
    expected = (to_inner + 2) / 2
    assert average_surface_distance(outer, inner) == pytest.approx(expected, rel=1e-12)
    assert average_surface_distance(inner, outer) == pytest.approx(expected, rel=1e-12)


def test_asd_where_pixels_meet_at_a_corner_only():
    # Two diagonal pixels: the shared corner counts twice, sqrt(2), the six others sqrt(1/2) each.
    # The other mask is the upper pixel alone, whose four corners all lie on the first contour.
    # Of the lower pixel's three own corners two are 1 and one is sqrt(2) from it.
    pair, single = draw((5, 5), (1, 1, 2, 2), (2, 2, 3, 3)), draw((5, 5), (1, 1, 2, 2))
    to_single = (2 + math.sqrt(2)) * math.sqrt(0.5) / (8 * math.sqrt(0.5))
    assert average_surface_distance(pair, single) == pytest.approx(to_single / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("prediction", "truth", "case", "score", "distance", "others"),
    [
        ((), (), "both", 1.0, 0.0, [0.0, 0.0, 1.0, 1.0, 0.0, None]),
        ((), ((0, 0, 1, 2),), "prediction", 0.0, 5.0, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]),
        # Beside no truth, two pixels are twice the one that it counts as.
        (((0, 0, 1, 2),), (), "truth", 0.0, 5.0, [0.0, 2.0, 1.0, 2.0, 1.0, None]),
    ],
)
def test_empty_masks(prediction, truth, case, score, distance, others):
    prediction, truth = draw((3, 4), *prediction), draw((3, 4), *truth)
    assert metrics.emptiness(prediction, truth) == case
    others_names = ("missed", "extra", "rim", "area_ratio", "betti0", "recall_thin")
    assert metrics.evaluate(prediction, truth) == {
        **dict.fromkeys(("dice", "iou", "precision", "recall", "cldice"), score),
        **dict.fromkeys(("asd", "hd95"), distance),
        **dict(zip(others_names, others, strict=True)),
        **{"betti1": 0.0, "recall_middle": None, "recall_thick": None},
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
        asd = average_surface_distance(prediction, truth)
        assert asd == pytest.approx(expected, abs=1e-6, rel=0), (kind, true_kind, shape)


# ---- What the field reports besides --------------------------------------------------------------


@pytest.fixture(scope="module")
def random_pairs():
    return reference.pairs()


@pytest.fixture(scope="module")
def stored(random_pairs):
    """What MONAI and gudhi gave for these pairs."""
    values = json.loads(reference.REFERENCE.read_text())
    assert values["pixels"] == [[mask.sum() for mask in pair] for pair in random_pairs]
    return values


def test_hd95_of_squares_shifted_by_one_pixel():
    # Six of the 12 pixels of either edge are not on the other edge, all of them 1 away.
    square, shifted = draw((9, 9), (2, 2, 6, 6)), draw((9, 9), (2, 3, 6, 7))
    assert of_regions(metrics.hausdorff95, square, shifted) == 1.0


@pytest.mark.parametrize(
    ("length", "expected"),
    # From the longer line, its pixels are 0 away but for the last ones: 1, 2 and so on. Of 21, that
    # of rank 19 is the percentile, rank 20 being the farthest; of 11, it is between ranks 9 and 10.
    [(21, 9.0), (11, 4.5)],
)
def test_hd95_of_a_line_and_its_first_half(length, expected):
    line, half = draw((3, 30), (1, 0, 2, length)), draw((3, 30), (1, 0, 2, length // 2 + 1))
    for pair in ((line, half), (half, line)):
        assert of_regions(metrics.hausdorff95, *pair) == pytest.approx(expected, rel=1e-12)


def test_hd95_is_between_edges_and_the_image_border_makes_one():
    full, frame = draw((5, 6), (0, 0, 5, 6)), ~draw((5, 6), (1, 1, 4, 5))
    assert of_regions(metrics.hausdorff95, full, frame) == 0.0
    # Around a hole of 2 pixels run 6 more with a side to it; they are 1 from the outermost 18.
    thick_frame = ~draw((5, 6), (2, 2, 3, 4))
    assert of_regions(metrics.hausdorff95, full, thick_frame) == 1.0


def test_hd95_agrees_with_monai(random_pairs, stored):
    found = [of_regions(metrics.hausdorff95, *pair) for pair in random_pairs]
    # MONAI interpolates between ranks in float32.
    np.testing.assert_allclose(found, stored["hd95"], rtol=0, atol=1e-4)


def test_betti_errors_agree_with_gudhi(random_pairs, stored):
    for pair, (*predicted, true0, true1) in zip(random_pairs, stored["betti"], strict=True):
        assert of_regions(metrics.betti_errors, *pair) == {
            "betti0": abs(predicted[0] - true0),
            "betti1": abs(predicted[1] - true1),
        }


# MONAI warns of its own arguments.
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("package", ["monai", "gudhi"])
def test_the_stored_values_are_what_the_packages_give(random_pairs, stored, package):
    pytest.importorskip(package, reason=f"compares with {package}, beside its stored values")
    for pair, hd95, betti in zip(random_pairs, stored["hd95"], stored["betti"], strict=True):
        if package == "monai":
            assert reference.monai_hd95(*pair) == pytest.approx(hd95, rel=1e-6)
        else:
            assert [number for mask in pair for number in reference.gudhi_betti(mask)] == betti


def test_cldice_counted_by_hand():
    # Lines of one pixel are their own skeletons: 5 of the 20 predicted pixels are true, and 5 of
    # the 10 true ones predicted.
    truth = draw((9, 20), (2, 0, 3, 10))
    prediction = draw((9, 20), (2, 0, 3, 5), (6, 0, 7, 15))
    assert of_regions(metrics.cldice, prediction, truth) == pytest.approx(1 / 3, rel=1e-12)
    assert of_regions(metrics.cldice, draw((9, 20), (6, 0, 7, 15)), truth) == 0.0


def reference_cldice(prediction, truth):
    """The definition in words: pixels as sets."""
    masks = [set(map(tuple, np.argwhere(mask).tolist())) for mask in (prediction, truth)]
    lines = [set(map(tuple, np.argwhere(skeletonize(m)).tolist())) for m in (prediction, truth)]
    precision = len(lines[0] & masks[1]) / len(lines[0])
    sensitivity = len(lines[1] & masks[0]) / len(lines[1])
    both = precision + sensitivity
    return 2 * precision * sensitivity / both if both else 0.0


def test_cldice_is_the_definition(random_pairs):
    for pair in random_pairs:
        expected = reference_cldice(*pair)
        assert of_regions(metrics.cldice, *pair) == pytest.approx(expected, rel=1e-12)


def test_recall_by_calibre_counted_by_hand():
    # Through a bar of even width a straight centreline runs, from which the wall is half of it
    # away: 2 in the one of 4 pixels, 4 in the one of 8, 5 in the one of 10.
    boxes = [(5, 0, 9, 30), (15, 0, 23, 30), (30, 0, 40, 30)]
    truth = draw((50, 30), *boxes)
    found = of_regions(metrics.recall_by_calibre, draw((50, 30), (5, 0, 9, 14), boxes[1]), truth)
    # The thin centreline goes from column 1 to column 27; the first 13 of its pixels are found.
    assert found == {"recall_thin": 13 / 27, "recall_middle": 1.0, "recall_thick": 0.0}


def test_a_calibre_that_the_truth_has_not_is_undefined():
    thin, middle = (5, 0, 9, 30), (15, 0, 23, 30)
    everything = draw((50, 30), (0, 0, 50, 30))
    found = of_regions(metrics.recall_by_calibre, everything, draw((50, 30), middle))
    assert found == {"recall_thin": None, "recall_middle": 1.0, "recall_thick": None}
    # What is predicted has no say in it.
    found = of_regions(metrics.recall_by_calibre, draw((50, 30), middle), draw((50, 30), thin))
    assert found == {"recall_thin": 0.0, "recall_middle": None, "recall_thick": None}


def test_recall_by_calibre_is_the_definition(random_pairs):
    defined = dict.fromkeys(BANDS, 0)
    for prediction, truth in random_pairs:
        line, radius = skeletonize(truth), ndimage.distance_transform_edt(truth)
        bands = (radius <= 2, (radius > 2) & (radius <= 4), radius > 4)
        found = of_regions(metrics.recall_by_calibre, prediction, truth)
        for name, band in zip(BANDS, bands, strict=True):
            if (line & band).any():
                expected = (line & band & prediction).sum() / (line & band).sum()
                assert found[name] == pytest.approx(expected, rel=1e-12)
                defined[name] += 1
            else:
                assert found[name] is None
    assert all(20 < count < len(random_pairs) for count in defined.values())


# ---- Where the Dice is lost ----------------------------------------------------------------------


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
        **dict.fromkeys(("dice", "iou", "precision", "recall", "cldice"), 0.5),
        **dict.fromkeys(("asd", "hd95"), 2.5),
        **{"missed": 0.5, "extra": 0.0, "rim": 1.0, "area_ratio": 0.5},
        **{"betti0": 0.5, "betti1": 0.0},
        # The calibre of what fills the image has no end.
        **{"recall_thin": 1.0, "recall_middle": None, "recall_thick": 0.0},
    }


def test_summary_counts_the_images_that_have_a_calibre():
    rows = [{name: value for name in BANDS} for value in (0.25, 0.75, None)]
    rows[0]["recall_thin"] = rows[1]["recall_thin"] = None
    rows[0]["recall_middle"] = None
    means = {"recall_thin": None, "recall_middle": 0.75, "recall_thick": 0.5}
    assert metrics.summarise(rows) == means
    assert metrics.count_bands(rows) == {"recall_thin": 0, "recall_middle": 1, "recall_thick": 2}


def test_summary_of_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        metrics.summarise([])


def test_empty_cases_are_counted():
    cases = [None, "both", "truth", None, "truth"]
    assert metrics.count_empty(cases) == {"both": 1, "prediction": 0, "truth": 2}
