import numpy as np
import scipy.stats

from tprnet_jax.report import bootstrap


def column(*values):
    return np.array(values, dtype=float)[:, None]


def test_equal_values_leave_no_doubt():
    assert bootstrap.intervals(column(3, 3, 3)).tolist() == [[3, 3]]
    assert bootstrap.intervals(column(3)).tolist() == [[3, 3]]


def test_mean_of_a_hundred_coins():
    # Heads are binomial: at most 39 have a chance of 0.018, at most 40 of 0.028; above alike.
    assert bootstrap.intervals(column(*[0, 1] * 50)).tolist() == [[0.4, 0.6]]


def test_agrees_with_scipy():
    values = np.random.default_rng(5).gamma(2.0, size=80)
    resampled = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=0)
    expected = tuple(resampled.confidence_interval)
    # Of other draws, the 2.5th percentile of 10,000 deviates by about 0.03 standard errors.
    (found,) = bootstrap.intervals(values[:, None])
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.1 * resampled.standard_error)


def test_the_draws_are_the_same_each_time_and_for_all_columns():
    values = np.random.default_rng(6).random((30, 1))
    found = bootstrap.intervals(np.concatenate([values, 1 - values], axis=1))
    assert found.tolist() == bootstrap.intervals(np.concatenate([values, 1 - values], 1)).tolist()
    np.testing.assert_allclose(found[1], 1 - found[0][::-1], rtol=1e-12)


def test_images_without_a_value_do_not_count():
    nan = np.nan
    found = bootstrap.intervals(np.array([[0.25, nan, 0], [nan, nan, 1], [nan, nan, nan]]))
    assert found[0].tolist() == [0.25, 0.25]
    assert np.isnan(found[1]).all()
    # Of the two that count, each is often drawn without the other.
    assert found[2].tolist() == [0, 1]
