"""Finished runs beside each other: the paper's Table I, and its Fig. 2."""

import csv
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from tprnet_jax import config as configuration
from tprnet_jax.benchmark import forward_flops
from tprnet_jax.data import loader
from tprnet_jax.data.images import encode_png
from tprnet_jax.method import inference, topology
from tprnet_jax.method.cascade import Cascade
from tprnet_jax.report import comparison, figures, tradeoff
from tprnet_jax.report.comparison import Method
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import read_json, write_whole
from tprnet_jax.workdir import images_seen, restore


class Run(NamedTuple):
    """An evaluated run.

    Attributes:
        workdir: Its folder.
        config: Its configuration, with the checkpoint that was evaluated.
        step: Of that checkpoint.
        images: Names of the images it was evaluated on.
        digest: Of these images and their masks, as in `metrics.json`; evaluations of earlier
            versions have none.
        metrics: Of the final output, by name the value of each image, NaN where undefined.
    """

    workdir: Path
    config: ConfigDict
    step: int
    images: list[str]
    digest: str | None
    metrics: dict[str, np.ndarray]


class Shown(NamedTuple):
    """An image of the sheet.

    Attributes:
        name: Of the image.
        image: uint8 `(height, width, 1)`, or float32 in [0, 1].
        truth: bool `(height, width)`.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray


def run(config: ConfigDict, workdir: Path) -> dict:
    """Compares the runs in the workdirs `config.compare.runs`, evaluated on `config.eval.split`.

    Runs that differ in their seed alone are one method, named after the folder of the first of
    them. Prints the table, and writes it to the workdir as `table.md`, `table.csv` and `table.tex`,
    all figures as `comparison.json`, accuracy against time as `tradeoff.png`, and some images with
    the masks of all methods as `sheet.png`.

    Returns:
        What `comparison.json` has.

    Raises:
        UserError: A run has not been evaluated, or on other images than the first, or two are of
            one method and one seed.
    """
    configuration.check(config)
    runs = [_read(Path(str(path)).expanduser(), config.eval.split) for path in config.compare.runs]
    runs = _in_one_order(runs)
    shown = _shown(runs[0], config)
    masks, methods = {}, []
    for name, seeds in _by_method(runs).items():
        masks[name], costs = _segmented(seeds[0], shown)
        methods.append(Method(name, [seed.metrics for seed in seeds], *costs))
    report = {"split": config.eval.split, **comparison.report(methods)}
    report["runs"] = [str(run.workdir) for run in runs]
    _write(workdir, report, _sheet(shown, masks))
    print(comparison.markdown(report))
    print(f"Tables and pictures: {workdir}")
    return report


def _read(workdir: Path, split: str) -> Run:
    folder = workdir / "eval" / split
    table = folder / "per_image.csv"
    for file in (workdir / "config.json", table, folder / "metrics.json"):
        if not file.is_file():
            raise UserError(
                f"the run in {workdir} has not been evaluated on {split} (no {file}); evaluate it "
                f"with --workdir={workdir} --mode=eval --config.eval.split={split}"
            )
    rows = list(csv.DictReader(table.read_text().splitlines()))
    names = [name for name in rows[0] if name.startswith("final_")]
    metrics = {
        name.removeprefix("final_"): np.array([float(row[name] or "nan") for row in rows])
        for name in names
    }
    evaluated = read_json(folder / "metrics.json")
    config = configuration.get_config(workdir / "config.json")
    config.eval.checkpoint = evaluated["checkpoint"]
    images, digest = [row["name"] for row in rows], evaluated.get("digest")
    return Run(workdir, config, evaluated["step"], images, digest, metrics)


def _in_one_order(runs: list[Run]) -> list[Run]:
    """The runs, with the images of all in the order of the first one's."""
    if len(runs) < 2:
        raise UserError(
            f"config.compare.runs names {len(runs)}; give the workdirs of two or more, such as "
            "--config.compare.runs=runs/a,runs/b"
        )
    first = runs[0]
    for run in runs[1:]:
        if set(run.images) != set(first.images):
            alike = len(set(run.images) & set(first.images))
            raise UserError(
                f"the run in {run.workdir} was evaluated on {len(run.images)} images and that in "
                f"{first.workdir} on {len(first.images)}, of which {alike} are the same; evaluate "
                "both on the same images"
            )
        if run.digest != first.digest:
            raise UserError(
                f"the images that the run in {run.workdir} was evaluated on have the names of "
                f"those of {first.workdir}, but not their digest in metrics.json: they are others, "
                "have other masks, or an earlier version evaluated them; evaluate both again, on "
                "the same data set"
            )
    return [_reordered(run, first.images) for run in runs]


def _reordered(run: Run, images: list[str]) -> Run:
    place = {name: index for index, name in enumerate(run.images)}
    order = [place[name] for name in images]
    return run._replace(
        images=images, metrics={name: values[order] for name, values in run.metrics.items()}
    )


def _by_method(runs: list[Run]) -> dict[str, list[Run]]:
    """The runs that differ in their seed alone, under the name of the first one's folder.

    Those trained on other images are another method. Where folders of several methods have the
    same name, as after --mode=ablate, their paths tell them apart.
    """
    groups = {}
    for run in runs:
        groups.setdefault(_recipe(run), []).append(run)
    for seeds in groups.values():
        _check_seeds(seeds)
    folders = [seeds[0].workdir.resolve() for seeds in groups.values()]
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        above = os.path.commonpath(folders)
        names = [str(folder.relative_to(above)) for folder in folders]
    return dict(zip(names, groups.values(), strict=True))


def _check_seeds(runs: list[Run]) -> None:
    """Refuses to take two runs of one seed, or one run named twice, for a spread over seeds."""
    of_seed = {}
    for run in runs:
        seed = run.config.seed
        if other := of_seed.get(seed):
            raise UserError(
                f"the runs in {other} and {run.workdir} are of one method and one seed ({seed}); "
                "leave one of them out of config.compare.runs"
            )
        of_seed[seed] = run.workdir


def _recipe(run: Run) -> str:
    """What makes the method: networks, training, and the images trained on, wherever they lie."""
    recipe = run.config.to_dict()
    parts = {name: recipe[name] for name in ("model", "optim", "train", "augment", "data")}
    parts["data"] |= {"source": "", "dir": "", "seen": sorted(images_seen(run.workdir))}
    return json.dumps(parts, sort_keys=True)


def _shown(first: Run, config: ConfigDict) -> list[Shown]:
    """The images of the sheet: best, worst and between, of the first run."""
    data = first.config.data.copy_and_resolve_references()
    data.source, data.dir = config.data.source or data.source, config.data.dir or data.dir
    source = loader.examples(loader.prepare(data), config.eval.split)
    chosen = figures.choose(first.metrics["dice"].tolist(), config.compare.images)
    examples = [source[index] for index in chosen if len(source) == len(first.images)]
    if [e["name"].decode() for e in examples] != [first.images[index] for index in chosen]:
        raise UserError(
            f"the images of {config.eval.split} are others than when the run in {first.workdir} "
            "was evaluated; evaluate all runs again"
        )
    return [
        Shown(e["name"].decode(), e["image"], np.asarray(e["mask"][..., 0]) > 127) for e in examples
    ]


def _segmented(run: Run, shown: list[Shown]) -> tuple[list[np.ndarray], tuple]:
    """The final masks, and what they cost: parameters, GFLOP an image, images a second."""
    cascade = configuration.cascade(run.config)
    params, step = restore(run.config, run.workdir, cascade)
    if step != run.step:
        raise UserError(
            f"the run in {run.workdir} was evaluated at step {run.step}, and its "
            f"{run.config.eval.checkpoint} checkpoint now is of step {step}; evaluate it again"
        )

    def masks():
        batches = (each.image[None] for each in shown)
        return [found["final"][0] for found in inference.segment(cascade, params, batches)]

    found = masks()  # Compiles.
    start = time.perf_counter()
    masks()
    speed = len(shown) / (time.perf_counter() - start)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return found, (parameters, _gflop(cascade, shown), speed)


def _gflop(cascade: Cascade, shown: list[Shown]) -> float:
    """Mean of the images, with patches along their true centrelines."""
    patches = [len(_centres(cascade, each.truth)) if cascade.focal_net else 0 for each in shown]
    flops = [
        forward_flops(cascade, each.truth.shape, count)
        for each, count in zip(shown, patches, strict=True)
    ]
    return float(np.mean(flops)) / 1e9


def _centres(cascade: Cascade, truth: np.ndarray) -> np.ndarray:
    return topology.patch_centres(
        truth,
        cascade.pixels_per_patch,
        cascade.max_patches,
        cascade.centreline,
        cascade.first_point,
    )


def _sheet(shown: list[Shown], masks: dict[str, list[np.ndarray]]) -> np.ndarray:
    """A row an image, a column a method."""
    rows = []
    for index, each in enumerate(shown):
        image = each.image[..., 0]
        image = image / np.float32(255) if image.dtype == np.uint8 else image
        of_methods = {name: found[index] for name, found in masks.items()}
        rows.append(figures.panel(image, each.truth, of_methods, each.name))
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def _write(workdir: Path, report: dict, sheet: np.ndarray) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / "comparison.json", json.dumps(report, indent=2) + "\n")
    for suffix, format_as in comparison.FORMATS.items():
        write_whole(workdir / f"table{suffix}", format_as(report))
    write_whole(workdir / "tradeoff.png", tradeoff.draw(_points(report)))
    write_whole(workdir / "sheet.png", encode_png(sheet))


def _points(report: dict) -> list[tradeoff.Point]:
    return [
        tradeoff.Point(
            row["name"],
            row["images_per_second"],
            row["mean"]["dice"],
            row.get("sd", {}).get("dice", 0.0),
        )
        for row in report["methods"]
    ]
