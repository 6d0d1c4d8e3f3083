"""How far a probability of vessel can be trusted, and which threshold serves Dice best.

All that is asked of the pixels is counted once, by margin (the vessel's logit minus the
background's), separately for vessel and background: whatever number of images fits into memory.
"""

import io
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from tprnet_jax.report import bootstrap, palette

BINS = 15  # Of probability, as in Guo et al. 2017.
THRESHOLDS = np.arange(5, 96, 5) / 100
_FINEST = 1 / 64  # Width of a bin of margins; half of it changes a probability by at most 0.002.
_LARGEST = 16.0  # Farther from 0, probabilities are within 2e-7 of 0 or 1.
EDGES = np.union1d(np.arange(-_LARGEST, _LARGEST + _FINEST, _FINEST), logit(THRESHOLDS))
_CENTRES = np.concatenate([EDGES[:1], (EDGES[:-1] + EDGES[1:]) / 2, EDGES[-1:]])
_TEMPERATURES = (0.05, 20.0)  # Between which the best one is searched.


class Reliability(NamedTuple):
    """What is true of pixels by the probability they were given.

    Attributes:
        probability: Mean of each bin, NaN where it is empty.
        vessel: Share of vessel among the pixels of each bin, NaN where it is empty.
        pixels: Number of pixels of each bin.
        error: Expected calibration error: the mean over all pixels of how far their bin's
            probability is from its share of vessel (Guo et al. 2017, equation 3).
    """

    probability: np.ndarray
    vessel: np.ndarray
    pixels: np.ndarray
    error: float


class Threshold(NamedTuple):
    """What a threshold is worth.

    Attributes:
        threshold: A pixel is vessel if its probability is greater.
        dice: Mean over images.
        difference: Mean difference from the threshold 0.5, and its 95 % bootstrap interval.
    """

    threshold: float
    dice: float
    difference: tuple[float, float, float]


def count(margin: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Counts an image's pixels by margin.

    Args:
        margin: Vessel logit minus background logit, of any shape.
        truth: Boolean, of that shape.

    Returns:
        `(2, len(EDGES) + 1)` int64, of background and of vessel: how many margins are up to the
        first of `EDGES`, between each and the next (this one included), and beyond the last.
    """
    places = np.searchsorted(EDGES, margin, side="left")
    return np.stack(
        [np.bincount(places[truth == kind], minlength=len(EDGES) + 1) for kind in (False, True)]
    )


def reliability(counts: np.ndarray, temperature: float = 1.0) -> Reliability:
    """See `Reliability`; in `BINS` bins of equal width.

    Args:
        counts: Sum over images of what `count` gives.
        temperature: That the margins are divided by.
    """
    given = expit(_CENTRES / temperature)
    bins = np.minimum((given * BINS).astype(int), BINS - 1)
    pixels, vessel, total = (
        np.bincount(bins, weights=weights, minlength=BINS)
        for weights in (counts.sum(axis=0), counts[1], counts.sum(axis=0) * given)
    )
    with np.errstate(invalid="ignore"):  # Of an empty bin.
        probability, share = total / pixels, vessel / pixels
    error = np.abs(total - vessel).sum() / pixels.sum()
    return Reliability(probability, share, pixels.astype(int), float(error))


def log_loss(counts: np.ndarray, temperature: float = 1.0) -> float:
    """Mean cross entropy of the pixels, in nats; arguments as for `reliability`."""
    margins = _CENTRES / temperature
    background, vessel = counts
    losses = background * np.logaddexp(0, margins) + vessel * np.logaddexp(0, -margins)
    return float(losses.sum() / counts.sum())


def fit_temperature(counts: np.ndarray) -> float:
    """The temperature with the smallest `log_loss` (Guo et al. 2017, section 4.2).

    Args:
        counts: As for `reliability`.
    """
    found = minimize_scalar(
        lambda logarithm: log_loss(counts, np.exp(logarithm)),
        bounds=np.log(_TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))


def thresholds(counts: np.ndarray, temperature: float = 1.0) -> list[Threshold]:
    """What each of `THRESHOLDS` is worth.

    Args:
        counts: `(images, 2, len(EDGES) + 1)`, what `count` gives of each image.
        temperature: Of the probability. Of others than 1, margins are cut at the nearest of
            `EDGES`.
    """
    above = counts[..., ::-1].cumsum(axis=-1)[..., ::-1]  # Margins beyond the edge before.
    margins = temperature * logit(THRESHOLDS)
    places = np.abs(EDGES[:, None] - margins).argmin(axis=0) + 1
    wrong, right = above[:, 0, places], above[:, 1, places]
    true = above[:, 1, :1]
    with np.errstate(invalid="ignore"):
        dice = 2 * right / (right + wrong + true)
    dice = np.nan_to_num(dice, nan=1.0)  # Of two empty masks, as in `metrics.evaluate`.
    differences = dice - dice[:, THRESHOLDS == 0.5]
    spread = bootstrap.intervals(differences)
    columns = zip(THRESHOLDS, dice.mean(axis=0), differences.mean(axis=0), spread, strict=True)
    return [
        Threshold(float(threshold), float(mean), (float(difference), *map(float, interval)))
        for threshold, mean, difference, interval in columns
    ]


def draw(by_name: dict[str, Reliability]) -> bytes:
    """The reliability diagram, and below it how many pixels have which probability.

    Args:
        by_name: What to draw, by what the legend calls it.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=(5.5, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    places = (np.arange(BINS) + 0.5) / BINS
    for (name, found), colour in zip(by_name.items(), palette.SERIES, strict=False):
        style = {"color": palette.as_hex(colour), "marker": "o", "markersize": 4}
        label = f"{name}: calibration error {found.error:.4f}"
        above.plot(found.probability, found.vessel, label=label, **style)
        below.plot(places, found.pixels / found.pixels.sum(), **style)
    above.set(ylabel="Share of vessel", xlim=(0, 1), ylim=(0, 1))
    above.legend(fontsize="small", loc="upper left")
    below.set(ylabel="Share of pixels", xlabel="Probability of vessel", yscale="log")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()
