"""How far a mean over images might lie from that over others like them."""

import numpy as np

RESAMPLES, AT_ONCE = 10_000, 1_000  # At once, so that thousands of images need little memory.
LEVELS = (2.5, 97.5)


def intervals(values: np.ndarray) -> np.ndarray:
    """95 % intervals of the columns' means: the percentile bootstrap over images.

    Every resample draws as many images as there are, with replacement, and the same ones for all
    columns; its means are over those drawn that have a value. The draws are always the same.
    Efron and Tibshirani, 1993, doi:10.1201/9780429246593, chapter 13.

    Args:
        values: (images, columns), NaN where an image has no value.

    Returns:
        (columns, 2), the 2.5th and the 97.5th percentile of the means of 10,000 resamples; NaN for
        a column without a value.
    """
    known = ~np.isnan(values)
    filled, counted = np.nan_to_num(values), known.astype(float)
    generator, means = np.random.default_rng(0), []
    for _ in range(RESAMPLES // AT_ONCE):
        times = _times_drawn(generator, len(values))
        with np.errstate(invalid="ignore"):  # A resample may have none of the few that count.
            means.append((times @ filled) / (times @ counted))
    found = np.full((values.shape[1], 2), np.nan)
    some = known.any(axis=0)
    found[some] = np.nanpercentile(np.concatenate(means)[:, some], LEVELS, axis=0).T
    return found


def _times_drawn(generator: np.random.Generator, images: int) -> np.ndarray:
    """How often each of some resamples has each image, float64 (`AT_ONCE`, images)."""
    drawn = generator.integers(images, size=(AT_ONCE, images))
    places = drawn + images * np.arange(AT_ONCE)[:, None]
    times = np.bincount(places.ravel(), minlength=AT_ONCE * images)
    return times.reshape(AT_ONCE, images).astype(float)
