"""The course of a training as one picture."""

import io
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

# Colours that the colour-blind can tell apart (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")


def draw(records: Sequence[dict]) -> bytes:
    """Loss terms, learning rate, and the Dice of each stage, by step.

    Args:
        records: The lines of `metrics.jsonl`, in their order.

    Returns:
        A PNG file.
    """
    train = [r for r in records if r["split"] == "train" and "loss" in r]
    held_out = [r for r in records if r["split"] != "train"]
    figure = Figure(figsize=(9, 9), layout="constrained")
    loss, rate, dice = figure.subplots(3, 1, sharex=True)
    _lines(loss, train, [key for key in _keys(train) if key.startswith("loss")], "Loss")
    _lines(rate, train, ["learning_rate"], "Learning rate")
    stages = [key for key in _keys(held_out) if key.endswith("_dice")]
    _lines(dice, held_out, stages, f"Dice ({held_out[-1]['split'] if held_out else 'validation'})")
    dice.set_xlabel("Step")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()


def _keys(records: Iterable[dict]) -> list[str]:
    """All keys, in the order in which they first occur."""
    return list(dict.fromkeys(key for record in records for key in record))


def _lines(axes, records: Sequence[dict], keys: Sequence[str], title: str) -> None:
    for key, colour in zip(keys, COLOURS, strict=False):
        points = [(record["step"], record[key]) for record in records if key in record]
        marker = "o" if len(points) < 50 else None
        axes.plot(*zip(*points, strict=True), color=colour, label=key, marker=marker, markersize=3)
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    if len(keys) > 1:
        axes.legend(fontsize="small", ncols=len(keys))
