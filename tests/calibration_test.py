import cv2
import numpy as np
import pytest
from scipy.special import expit, logit

from tprnet_jax.report import calibration, palette


def test_pixels_are_counted_by_margin_and_kind():
    margin = np.array([[-20.0, 0.0], [1e-3, 20.0]])
    truth = np.array([[False, True], [False, True]])
    background, vessel = calibration.count(margin, truth)
    zero = np.searchsorted(calibration.EDGES, 0)
    assert calibration.EDGES[zero] == 0
    assert np.flatnonzero(background).tolist() == [0, zero + 1]
    assert np.flatnonzero(vessel).tolist() == [zero, len(calibration.EDGES)]
    assert background.sum() == vessel.sum() == 2


def _counts(margin, truth):
    return calibration.count(np.asarray(margin), np.asarray(truth))


def test_error_of_what_is_too_sure():
    """0.9 is given to ten pixels, of which six are vessel."""
    found = calibration.reliability(_counts([logit(0.9)] * 10, [True] * 6 + [False] * 4))
    assert found.error == pytest.approx(0.3, abs=1e-3)
    assert found.pixels.tolist() == [0] * 13 + [10, 0]
    assert found.probability[13] == pytest.approx(0.9, abs=1e-3)
    assert found.vessel[13] == 0.6
    assert np.isnan(found.vessel).sum() == 14


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_reliability_is_that_of_the_pixels_themselves(temperature):
    rng = np.random.default_rng(0)
    margin = rng.normal(-1, 4, 20_000)
    truth = rng.random(20_000) < expit(margin / 2)
    given = expit(margin / temperature)
    bins = (given * 15).astype(int)
    error = sum(abs((given - truth)[bins == b].sum()) for b in range(15)) / 20_000
    found = calibration.reliability(_counts(margin, truth), temperature)
    assert found.error == pytest.approx(error, abs=5e-4)
    np.testing.assert_allclose(found.pixels, np.bincount(bins), rtol=0.05)
    loss = -np.log(np.where(truth, given, 1 - given)).mean()
    assert calibration.log_loss(_counts(margin, truth), temperature) == pytest.approx(
        loss, rel=1e-3
    )


def test_the_temperature_that_makes_probabilities_true():
    """Margins of 3 and -3 are right in four of five pixels, which a margin of log 4 would say."""
    counts = _counts([3.0] * 5 + [-3.0] * 5, [True] * 4 + [False] * 5 + [True])
    assert calibration.fit_temperature(counts) == pytest.approx(3 / np.log(4), rel=0.005)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_thresholds_against_dice_of_masks(temperature):
    rng = np.random.default_rng(0)
    margins, truths = rng.normal(0, 2, (3, 40, 40)), rng.random((3, 40, 40)) < 0.3
    truths[2], margins[2] = False, -9.0  # Both empty at any threshold.
    counts = np.stack([calibration.count(*pair) for pair in zip(margins, truths, strict=True)])
    found = calibration.thresholds(counts, temperature)
    assert [each.threshold for each in found] == [n / 100 for n in range(5, 100, 5)]
    dice = {}
    for each in found:
        masks = expit(margins / temperature) > each.threshold
        overlap = (masks & truths).sum(axis=(1, 2))
        both = masks.sum(axis=(1, 2)) + truths.sum(axis=(1, 2))
        dice[each.threshold] = np.where(both, 2 * overlap / np.maximum(both, 1), 1)
        # Of other temperatures than 1, pixels within half a bin of the threshold may be off.
        within = 1e-9 if temperature == 1 else 0.005
        assert each.dice == pytest.approx(dice[each.threshold].mean(), abs=within)
    for each in found:
        mean, low, high = each.difference
        assert mean == pytest.approx((dice[each.threshold] - dice[0.5]).mean(), abs=within)
        assert low <= mean <= high


def _marks(picture):
    """Centres (column, row) of the first series' marks that no line joins, from the left."""
    blue = np.abs(picture.astype(int) - palette.SERIES[0][::-1]) < 60
    blobs = cv2.connectedComponentsWithStats(blue.all(axis=2).astype(np.uint8))
    sizes = blobs[2][:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
    is_mark = (sizes >= 4).all(axis=1) & (sizes <= 8).all(axis=1)
    return sorted(blobs[3][is_mark].tolist())


def test_marks_are_where_their_values_are():
    """On axes from 0 to 1, which the frame tells; empty bins between them leave out the line."""
    probability, vessel = np.full((2, calibration.BINS), np.nan)
    probability[[1, 7, 13]], vessel[[1, 7, 13]] = (0.1, 0.5, 0.9), (0.3, 0.4, 0.8)
    found = calibration.Reliability(probability, vessel, np.ones(calibration.BINS), 0.1)
    picture = cv2.imdecode(np.frombuffer(calibration.draw({"one": found}), np.uint8), 1)
    assert picture.shape == (650, 550, 3)
    dark = picture.max(axis=2) < 60
    top, bottom, *_ = np.flatnonzero(dark.mean(axis=1) > 0.6)
    left, right = np.flatnonzero(dark.mean(axis=0) > 0.6)
    expected = [
        (left + x * (right - left), bottom - y * (bottom - top))
        for x, y in ((0.1, 0.3), (0.5, 0.4), (0.9, 0.8))
    ]
    np.testing.assert_allclose(_marks(picture), expected, atol=1)
