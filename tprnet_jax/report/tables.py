"""Scores as means, tables and CSV."""

import csv
import io
from typing import NamedTuple

from tprnet_jax.report import metrics

COLUMNS = {"dice": "Dice", "iou": "IoU", "precision": "Precision", "recall": "Recall", "asd": "ASD"}
STAGES = {"global": "Global", "global_local": "Global + Local", "final": "Final"}


class Scores(NamedTuple):
    """Metrics of every image.

    Attributes:
        names: Name of each image.
        rows: For each stage, the metrics of each image.
        cases: For each stage, which masks of each image are empty (`metrics.emptiness`).
    """

    names: list[str]
    rows: dict[str, list[dict[str, float]]]
    cases: dict[str, list[str | None]]


def means(scores: Scores) -> dict[str, dict[str, float]]:
    """Mean metrics of each stage."""
    return {stage: metrics.summarise(rows) for stage, rows in scores.rows.items()}


def summary(scores: Scores) -> dict:
    """Number of images, mean metrics of each stage, and how many masks were empty."""
    empty = {stage: metrics.count_empty(cases) for stage, cases in scores.cases.items()}
    return {"images": len(scores.names), **means(scores), "empty": empty}


def table(result: dict) -> str:
    """The paper's columns, a row for each stage, and where the Dice is lost.

    Args:
        result: What `summary` returns, or an earlier version wrote, with the paper's metrics alone.
    """
    lines = ["", f"{'':16}" + "".join(f"{title:>11}" for title in COLUMNS.values())]
    for stage, title in STAGES.items():
        if stage in result:
            values = (f"{result[stage][name]:11.{2 if name == 'asd' else 4}f}" for name in COLUMNS)
            lines.append(f"{title:16}" + "".join(values))
    lines.append(f"Mean over {result['images']} images; ASD in pixels.")
    if set(metrics.NAMES) <= set(result["final"]):
        lines.append(_breakdown(result["final"]))
    for stage, cases in result["empty"].items():
        if any(cases.values()):
            counts = ", ".join(f"{case}: {count}" for case, count in cases.items())
            lines.append(f"{STAGES[stage]}: empty masks ({counts}) scored, none left out.")
    return "\n".join(lines)


def _breakdown(means: dict[str, float]) -> str:
    return (
        f"{STAGES['final']}: branches missed {means['missed']:.3f}, extra {means['extra']:.3f} of "
        f"the true area (over {metrics.REACH} px away); Dice without these {means['rim']:.3f}; "
        f"area {means['area_ratio']:.2f} of the true."
    )


def per_image(scores: Scores) -> str:
    """All metrics as CSV, a row an image."""
    text = io.StringIO()
    header = [f"{stage}_{name}" for stage in scores.rows for name in metrics.NAMES]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *header])
    for index, name in enumerate(scores.names):
        values = (rows[index][key] for rows in scores.rows.values() for key in metrics.NAMES)
        writer.writerow([name, *(f"{value:.6f}" for value in values)])
    return text.getvalue()
