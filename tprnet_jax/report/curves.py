"""The course of a training as one picture, or as numbers for a page to draw."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from tprnet_jax.report import palette
from tprnet_jax.runtime.errors import UserError

COLOURS = [palette.as_hex(colour) for colour in palette.SERIES]


class Plot(NamedTuple):
    """One of the plots, by step.

    Attributes:
        title: What its values are.
        lines: For each name, its points (step, value).
    """

    title: str
    lines: dict[str, list[tuple[int, float]]]


def read(path: Path) -> list[dict]:
    """The whole lines of a `metrics.jsonl`; none of a run that was not trained.

    Raises:
        UserError: It is damaged.
    """
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); remove the lines that are not whole, or the file"
        ) from error


def plots(records: Sequence[dict]) -> list[Plot]:
    """Loss terms, learning rate, and the Dice of each stage.

    Args:
        records: The lines of `metrics.jsonl`, in their order.
    """
    train = [r for r in records if r["split"] == "train" and "loss" in r]
    held_out = [r for r in records if r["split"] != "train"]
    split = held_out[-1]["split"] if held_out else "validation"
    return [
        _plot("Loss", train, [key for key in _keys(train) if key.startswith("loss")]),
        _plot("Learning rate", train, ["learning_rate"]),
        _plot(f"Dice ({split})", held_out, [k for k in _keys(held_out) if k.endswith("_dice")]),
    ]


def draw(records: Sequence[dict]) -> bytes:
    """The `plots` of these records.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=(9, 9), layout="constrained")
    every = figure.subplots(3, 1, sharex=True)
    for axes, plot in zip(every, plots(records), strict=True):
        _draw(axes, plot)
    every[-1].set_xlabel("Step")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()


def _keys(records: Iterable[dict]) -> list[str]:
    """All keys, in the order in which they first occur."""
    return list(dict.fromkeys(key for record in records for key in record))


def _plot(title: str, records: Sequence[dict], keys: Iterable[str]) -> Plot:
    return Plot(title, {k: [(r["step"], r[k]) for r in records if k in r] for k in keys})


def _draw(axes, plot: Plot) -> None:
    for (name, points), colour in zip(plot.lines.items(), COLOURS[: len(plot.lines)], strict=True):
        marker = "o" if len(points) < 50 else None
        columns = zip(*points, strict=True) if points else ([], [])
        axes.plot(*columns, color=colour, label=name, marker=marker, markersize=3)
    axes.set_ylabel(plot.title)
    axes.grid(alpha=0.3)
    if len(plot.lines) > 1:
        axes.legend(fontsize="small", ncols=len(plot.lines))
