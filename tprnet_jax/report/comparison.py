"""Several methods on the same images, as one table."""

import csv
import io
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from tprnet_jax.report import bootstrap

# What the table shows of each method, and the digits.
METRICS = {
    "dice": ("Dice", 4),
    "iou": ("IoU", 4),
    "precision": ("Precision", 4),
    "recall": ("Recall", 4),
    "asd": ("ASD", 2),
    "hd95": ("HD95", 2),
    "cldice": ("clDice", 4),
    "missed": ("Missed", 3),
    "extra": ("Extra", 3),
}
_COSTS = {"parameters": "Parameters, M", "gflop": "GFLOP", "images_per_second": "Images/s"}
_LESS_IS_BETTER = ("asd", "hd95", "missed", "extra")


class Method(NamedTuple):
    """One line of the table.

    Attributes:
        name: Of the method.
        seeds: For each run of it, by metric the value of each image, NaN where undefined; all runs
            of all methods on the same images in the same order.
        parameters: Their number.
        gflop: Operations for an image, 10^9.
        images_per_second: One at a time.
    """

    name: str
    seeds: list[dict[str, np.ndarray]]
    parameters: int
    gflop: float
    images_per_second: float


def report(methods: list[Method]) -> dict:
    """All figures of the table.

    Returns:
        images, their number; metrics, those that all methods have; methods, for each its name,
        runs, mean and, of several runs, sample standard deviation sd over them, its costs and, but
        for the first, what `against` says of its Dice beside the first one's.
    """
    shared = [m for m in METRICS if all(m in seed for each in methods for seed in each.seeds)]
    first = _dice(methods[0])
    rows = [_row(each, shared) for each in methods]
    for row, each in zip(rows[1:], methods[1:], strict=True):
        row["against_first"] = against(_dice(each) - first)
    return {"images": len(first), "metrics": shared, "methods": rows}


def _dice(method: Method) -> np.ndarray:
    """Of each image, the mean over seeds."""
    return np.mean([seed["dice"] for seed in method.seeds], axis=0)


def _row(method: Method, shared: list[str]) -> dict:
    means = {m: [float(np.nanmean(seed[m])) for seed in method.seeds] for m in shared}
    row = {"name": method.name, "runs": len(method.seeds)}
    row["mean"] = {metric: float(np.mean(values)) for metric, values in means.items()}
    if len(method.seeds) > 1:
        row["sd"] = {metric: float(np.std(values, ddof=1)) for metric, values in means.items()}
    return row | {cost: getattr(method, cost) for cost in _COSTS}


def against(differences: np.ndarray) -> dict:
    """Differences `(images,)` between two methods, paired by image.

    Returns:
        difference, the mean; interval, its 95 % interval (see `bootstrap.intervals`); p, of
        Wilcoxon's signed-rank test, two-sided (Wilcoxon 1945), 1 where all are equal.
    """
    some = np.any(differences != 0)
    return {
        "difference": float(differences.mean()),
        "interval": bootstrap.intervals(differences[:, None])[0].tolist(),
        "p": float(stats.wilcoxon(differences).pvalue) if some else 1.0,
    }


def _cells(report: dict) -> tuple[list[str], list[list[str]], list[list[bool]]]:
    """Header, the cells of each method, and which of them are the best of their column."""
    metrics = report["metrics"]
    difference = "Dice, difference to the first (95 % interval)"
    header = ["", *(METRICS[m][0] for m in metrics), *_COSTS.values(), difference, "p"]
    best = {
        m: (min if m in _LESS_IS_BETTER else max)(row["mean"][m] for row in report["methods"])
        for m in metrics
    }
    rows, marks = [], []
    for row in report["methods"]:
        cells = [_with_deviation(row, m) for m in metrics] + _costs(row) + _paired(row)
        rows.append([row["name"], *cells])
        of_metrics = [row["mean"][m] == best[m] for m in metrics]
        marks.append([False, *of_metrics, *[False] * (len(cells) - len(metrics))])
    return header, rows, marks


def _with_deviation(row: dict, metric: str) -> str:
    digits = METRICS[metric][1]
    return " ± ".join(f"{row[part][metric]:.{digits}f}" for part in ("mean", "sd") if part in row)


def _costs(row: dict) -> list[str]:
    return [
        f"{row['parameters'] / 1e6:.2f}",
        f"{row['gflop']:.1f}",
        f"{row['images_per_second']:.2f}",
    ]


def _paired(row: dict) -> list[str]:
    if "against_first" not in row:
        return ["", ""]
    paired = row["against_first"]
    low, high = paired["interval"]
    return [f"{paired['difference']:+.4f} ({low:+.4f}, {high:+.4f})", f"{paired['p']:.1e}"]


def markdown(report: dict) -> str:
    """The table for people, the best of each column bold."""
    header, rows, marks = _cells(report)
    lines = [header, ["---"] * len(header)]
    for row, best in zip(rows, marks, strict=True):
        lines.append([f"**{c}**" if b else c for c, b in zip(row, best, strict=True)])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n{_caption(report)}\n"


def latex(report: dict) -> str:
    """The table for a paper (package booktabs), the best of each column bold."""
    header, rows, marks = _cells(report)
    body = []
    for row, best in zip(rows, marks, strict=True):
        cells = map(_escaped, row)
        marked = (rf"\textbf{{{c}}}" if b else c for c, b in zip(cells, best, strict=True))
        body.append(" & ".join(marked) + r" \\")
    lines = [
        rf"% {_caption(report)}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(map(_escaped, header)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    for character in "&%_#":
        text = text.replace(character, "\\" + character)
    return text.replace("±", r"$\pm$")


def _caption(report: dict) -> str:
    return (
        f"Means over {report['images']} images, ± sample standard deviation over runs of several "
        "seeds; distances in pixels; p of Wilcoxon's signed-rank test."
    )


def as_csv(report: dict) -> str:
    """The table for programs, a row a method."""
    rows = [_flat(row) for row in report["methods"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(max(rows, key=len)), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(row: dict) -> dict:
    flat = {"name": row["name"], "runs": row["runs"], **row["mean"]}
    flat |= {f"{metric}_sd": row.get("sd", {}).get(metric, math.nan) for metric in row["mean"]}
    flat |= {cost: row[cost] for cost in _COSTS}
    if "against_first" in row:
        paired = row["against_first"]
        low, high = paired["interval"]
        flat |= {"difference": paired["difference"], "low": low, "high": high, "p": paired["p"]}
    return flat


FORMATS = {".md": markdown, ".csv": as_csv, ".tex": latex}
