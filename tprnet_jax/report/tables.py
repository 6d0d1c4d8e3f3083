"""Scores as means, tables and CSV."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tprnet_jax.report import bootstrap, metrics

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
    rows: dict[str, list[metrics.Row]]
    cases: dict[str, list[str | None]]


def grid(rows: Iterable[Sequence[str]], first: int, rest: int = 11) -> list[str]:
    """Lines of a table, its first column to the left and so wide, the others to the right."""
    return [
        f"{head:{first}}" + "".join(f"{cell:>{rest}}" for cell in cells) for head, *cells in rows
    ]


def number(metric: str, value: float) -> str:
    """A metric as the tables print it; distances have two digits."""
    return f"{value:.{2 if metric == 'asd' else 4}f}"


def means(scores: Scores) -> dict[str, metrics.Row]:
    """Mean metrics of each stage."""
    return {stage: metrics.summarise(rows) for stage, rows in scores.rows.items()}


def interval(rows: Sequence[metrics.Row]) -> dict[str, list[float] | None]:
    """95 % interval [low, high] of the mean of each metric, None where that is None.

    See `bootstrap.intervals`.

    Args:
        rows: Of one stage, the metrics of each image.
    """
    values = np.array([[row[name] for name in rows[0]] for row in rows], dtype=float)
    ends = zip(rows[0], bootstrap.intervals(values).tolist(), strict=True)
    return {name: None if math.isnan(low) else [low, high] for name, (low, high) in ends}


def summary(scores: Scores) -> dict:
    """What is written as `metrics.json`.

    Returns:
        images, their number; under the name of each stage, its mean metrics; counts, the images
        with true centreline in each band of calibre; interval, of each stage, see `interval`;
        empty, how many masks were empty.
    """
    empty = {stage: metrics.count_empty(cases) for stage, cases in scores.cases.items()}
    return {
        "images": len(scores.names),
        **means(scores),
        # A matter of the truth, which is the same for all stages.
        "counts": metrics.count_bands(scores.rows["final"]),
        "interval": {stage: interval(rows) for stage, rows in scores.rows.items()},
        "empty": empty,
    }


def table(result: dict) -> str:
    """The paper's columns, a row for each stage; where the Dice is lost; the field's other metrics.

    Args:
        result: What `summary` returns, or an earlier version wrote, with fewer metrics.
    """
    rows = [("", *COLUMNS.values())]
    for stage in filter(result.__contains__, STAGES):
        rows.append((STAGES[stage], *(number(name, result[stage][name]) for name in COLUMNS)))
    lines = ["", *grid(rows, first=16)]
    lines.append(f"Mean over {result['images']} images; ASD in pixels.")
    if set(metrics.BREAKDOWN) <= set(result["final"]):
        lines.append(_breakdown(result["final"]))
    if "hd95" in result["final"]:
        lines.append(_beyond_the_paper(result["final"]))
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


def _beyond_the_paper(means: metrics.Row) -> str:
    recalls = (means[name] for name in metrics.BANDS)
    thin, middle, thick = ("none" if value is None else f"{value:.3f}" for value in recalls)
    return (
        f"{STAGES['final']}: HD95 {means['hd95']:.2f}, clDice {means['cldice']:.4f}; Betti errors "
        f"{means['betti0']:.2f}, {means['betti1']:.2f}; centreline recall thin {thin}, middle "
        f"{middle}, thick {thick} (radius up to {metrics.THIN}, up to {metrics.MIDDLE}, over "
        f"{metrics.MIDDLE} px)."
    )


def per_image(scores: Scores) -> str:
    """All metrics as CSV, a row an image; what is undefined has an empty cell."""
    text = io.StringIO()
    header = [f"{stage}_{name}" for stage in scores.rows for name in metrics.NAMES]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *header])
    for index, name in enumerate(scores.names):
        values = (rows[index][key] for rows in scores.rows.values() for key in metrics.NAMES)
        writer.writerow([name, *("" if value is None else f"{value:.6f}" for value in values)])
    return text.getvalue()


def of_speed(result: dict) -> str:
    """The figures of `benchmark.run`, for people."""
    peak, copied = result["peak_flops"] / 1e9, result["copy_bytes_per_second"] / 1e9
    lines = [
        f"{result['device']}, {result['dtype']}; {result['images']}",
        f"Machine: {peak:.0f} GFLOP/s (product), {copied:.1f} GB/s (copy)",
    ]
    for task in ("inference", "training"):
        lines += _task_lines(task, result[task])
    return "\n".join(lines)


def _task_lines(name: str, task: dict) -> list[str]:
    rows = [(name.capitalize(), "images/s")]
    for kind, each in (("batch", task["batches"]), ("side", task["sides"])):
        rows += [(f"{kind} {row[kind]}", f"{row['images_per_second']:.3f}") for row in each]
    lines = ["", *grid(rows, first=12, rest=12)]
    lines.append(f"Most memory up to here: {task['peak_bytes'] / 2**30:.1f} GiB")
    lines.append(
        f"{task['flops_per_second'] / 1e9:.0f} GFLOP/s, {task['share_of_peak']:.0%} of the "
        f"product's; {task['patches_per_image']:.1f} patches an image"
    )
    stages = ", ".join(f"{stage} {1e3 * s:.1f}" for stage, s in task["stages"].items())
    lines.append(f"Stages one after another, ms an image: {stages}")
    if "peer" in task:
        peers = ", ".join(f"{kind} {task['peer'][kind]:.3f}" for kind in ("eager", "compiled"))
        lines.append(
            f"PyTorch, images/s: {peers}; ours is {task['ratio_to_peer']:.2f} and "
            f"{task['ratio_to_compiled_peer']:.2f} times as fast"
        )
    if "ratio_to_full_size" in task:
        lines.append(f"{task['ratio_to_full_size']:.2f} times as fast as at the paper's sizes")
    return lines
