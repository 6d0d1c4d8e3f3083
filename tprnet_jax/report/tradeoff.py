"""Accuracy against time, as one picture."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from tprnet_jax.report import palette

_INCHES, _DPI = (9, 4.5), 100


class Point(NamedTuple):
    """What a method reaches, and how fast.

    Attributes:
        name: Of the method.
        images_per_second: In inference.
        dice: Mean over images.
        deviation: Of it over the seeds of the training; 0 where there is one.
        quoted: Whether the Dice is another's report, not measured here.
    """

    name: str
    images_per_second: float
    dice: float
    deviation: float = 0.0
    quoted: bool = False


def draw(points: Sequence[Point]) -> bytes:
    """A mark a point, hollow if its Dice is quoted, with names in a column on the right.

    Args:
        points: One or more.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    colour = palette.as_hex(palette.SERIES[0])
    for _, speed, dice, deviation, quoted in points:
        inside = "white" if quoted else colour
        axes.errorbar(speed, dice, deviation, fmt="o", color=colour, mfc=inside, capsize=3)
    axes.set_xlabel("Images a second")
    axes.set_ylabel("Dice")
    axes.grid(alpha=0.3)
    _name(axes, points)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI)
    return picture.getvalue()


def _name(axes, points: Sequence[Point]) -> None:
    """Names the points beside the axes, from best to worst, with a line from each to its name."""
    ordered = sorted(points, key=lambda point: point.dice, reverse=True)
    line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkB": 4, "relpos": (0, 0.5)}
    for point, height in zip(ordered, np.linspace(1, 0, len(ordered)), strict=True):
        axes.annotate(
            f"{point.name}: {point.dice:.4f}" + " (quoted)" * point.quoted,
            (point.images_per_second, point.dice),
            xytext=(1.05, height),
            textcoords="axes fraction",
            va="center",
            fontsize="small",
            arrowprops=line,
        )
