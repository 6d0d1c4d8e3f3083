"""A data set and parameters in; metrics, table and figures out."""

import csv
import io
import json
import statistics
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tqdm
from ml_collections import ConfigDict

from tprnet_jax import config as configuration
from tprnet_jax import figures, inference, metrics
from tprnet_jax.cascade import Cascade
from tprnet_jax.data import loader
from tprnet_jax.data.images import write_png
from tprnet_jax.files import write_whole
from tprnet_jax.workdir import restore

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


def run(config: ConfigDict, workdir: Path) -> dict:
    """Evaluates a run's checkpoint on `config.eval.split` and reports.

    Writes `workdir/eval/<split>/metrics.json`, `per_image.csv` and `figures/`, and prints the
    table.

    Returns:
        What `metrics.json` has.

    Raises:
        UserError: There is no usable checkpoint or data set.
    """
    cascade = configuration.cascade(config)
    params, step = restore(config, workdir, cascade)
    source = loader.examples(loader.prepare(config.data), config.eval.split)
    scores = score(cascade, params, source, config.eval.batch)
    result = summary(scores) | {
        "split": config.eval.split,
        "source": config.data.source,
        "checkpoint": config.eval.checkpoint,
        "step": step,
    }
    folder = result_folder(config, workdir)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    _draw(cascade, params, source, scores, config.eval, folder / "figures")
    write_whole(folder / "per_image.csv", _per_image(scores))
    write_whole(folder / "metrics.json", json.dumps(result, indent=2) + "\n")
    print(table(result))
    print(f"Per image and in pictures: {folder}")
    return result


def result_folder(config: ConfigDict, workdir: Path) -> Path:
    """Where the results of `config.eval.split` are written."""
    return workdir / "eval" / config.eval.split


def score(cascade: Cascade, params, source, batch: int) -> Scores:
    """Runs the cascade on every example and computes the metrics of each stage.

    Args:
        cascade: The networks.
        params: Parameters by branch.
        source: Examples by index, see `loader.prepare`.
        batch: Images at a time.
    """
    scores = Scores([], {s: [] for s in cascade.stages}, {s: [] for s in cascade.stages})
    # At position 0 it takes the place of a training's bar, which stands still meanwhile.
    progress = tqdm.tqdm(total=len(source), desc="evaluate", unit="image", leave=False, position=0)
    examples = (source[index] for index in range(len(source)))
    for example, masks in segment(cascade, params, examples, batch):
        truth = example["mask"][..., 0] > 127
        scores.names.append(example["name"].decode())
        for stage, mask in masks.items():
            scores.rows[stage].append(metrics.evaluate(mask, truth))
            scores.cases[stage].append(metrics.emptiness(mask, truth))
        progress.update()
    progress.close()
    return scores


def segment(
    cascade: Cascade, params, examples: Iterable[dict], batch: int
) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
    """Each example with its masks: bool `(height, width)` of each stage.

    Neighbours of one size pass together; batches are filled up to `batch`, so that a shorter one
    compiles nothing.

    Args:
        cascade: The networks.
        params: Parameters by branch.
        examples: With an "image" `(height, width, 1)`, see `cascade.to_unit`.
        batch: Images at a time.
    """
    groups = deque()

    def images():
        for group in _of_one_size(examples, batch):
            groups.append(group)
            stack = np.stack([example["image"] for example in group])
            yield np.pad(stack, ((0, batch - len(group)), (0, 0), (0, 0), (0, 0)))

    for masks in inference.segment(cascade, params, images()):
        for index, example in enumerate(groups.popleft()):
            yield example, {stage: mask[index] for stage, mask in masks.items()}


def _of_one_size(examples: Iterable[dict], most: int) -> Iterator[list[dict]]:
    for _, group in groupby(examples, key=lambda example: example["image"].shape):
        while some := list(islice(group, most)):
            yield some


def summary(scores: Scores) -> dict:
    """Number of images, mean metrics of each stage, and how many masks were empty."""
    means = {stage: metrics.summarise(rows) for stage, rows in scores.rows.items()}
    empty = {stage: metrics.count_empty(cases) for stage, cases in scores.cases.items()}
    return {"images": len(scores.names), **means, "empty": empty}


def mean_dice(scores: Scores) -> float:
    """Mean Dice of the final output."""
    return statistics.fmean(row["dice"] for row in scores.rows["final"])


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


def _per_image(scores: Scores) -> str:
    text = io.StringIO()
    header = [f"{stage}_{name}" for stage in scores.rows for name in metrics.NAMES]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *header])
    for index, name in enumerate(scores.names):
        values = (rows[index][key] for rows in scores.rows.values() for key in metrics.NAMES)
        writer.writerow([name, *(f"{value:.6f}" for value in values)])
    return text.getvalue()


def _draw(cascade, params, source, scores: Scores, config: ConfigDict, folder: Path) -> None:
    """Replaces the figures in the folder."""
    for old in folder.glob("*.png"):
        old.unlink()
    dice = [row["dice"] for row in scores.rows["final"]]
    chosen = figures.choose(dice, config.figures)
    segmented = segment(cascade, params, (source[index] for index in chosen), config.batch)
    for rank, (index, (example, masks)) in enumerate(zip(chosen, segmented, strict=True)):
        image = example["image"][..., 0]
        if image.dtype == np.uint8:
            image = image.astype(np.float32) / 255
        named = {STAGES[stage]: mask for stage, mask in masks.items()}
        picture = figures.panel(image, example["mask"][..., 0] > 127, named, scores.names[index])
        stem = Path(scores.names[index]).stem
        write_png(folder / f"{rank:02d}_{stem}_dice_{dice[index]:.3f}.png", picture)
