"""A data set and parameters in; metrics, table and figures out."""

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from tprnet_jax import config as configuration
from tprnet_jax.data import loader
from tprnet_jax.data.images import known, write_png
from tprnet_jax.method import inference
from tprnet_jax.method.cascade import Cascade
from tprnet_jax.report import curves, figures, html, metrics, pictures
from tprnet_jax.report.region import Region
from tprnet_jax.report.tables import STAGES, Scores, per_image, summary, table
from tprnet_jax.runtime import devices
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import shortened, write_whole
from tprnet_jax.workdir import about, changed, images_seen, restore


def run(config: ConfigDict, workdir: Path) -> dict:
    """Evaluates a run's checkpoint on `config.eval.split` and reports.

    Writes `workdir/eval/<split>/metrics.json`, `per_image.csv`, `figures/`, `report.html` and, if
    asked, `masks/`, and prints the table. With another model or other data than in training, the
    folder's name says so.

    Returns:
        What `metrics.json` has.

    Raises:
        UserError: There is no usable checkpoint or data set, or images to evaluate on were trained
            on, and `config.eval.split` is not "train".
    """
    configuration.check(config)
    cascade = configuration.cascade(config)
    params, step = restore(config, workdir, cascade)
    source = loader.examples(loader.prepare(config.data), config.eval.split)
    check_unseen(config, workdir, source, images_seen(workdir))
    folder = result_folder(config, workdir)
    plots = curves.plots(curves.read(workdir / "metrics.jsonl"))
    album = pictures.Album(pictures.BUDGET // jax.process_count())
    masks = folder / "masks" if config.eval.masks else None
    keep = functools.partial(_keep, album, len(source) > pictures.MANY, masks)
    scores = score(cascade, params, source, config.eval.batch, keep=keep)
    albums = devices.allgather_json(list(album.pictures.items()))
    result = summary(scores) | {
        "split": config.eval.split,
        "source": config.data.source,
        "digest": _digest(source),
        "checkpoint": config.eval.checkpoint,
        "step": step,
        "changed": changed(config, workdir),
    }
    if not devices.is_first():
        return result
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "report.html").unlink(missing_ok=True)  # While it is there, all is of one evaluation.
    write_whole(folder / "per_image.csv", per_image(scores))
    write_whole(folder / "metrics.json", json.dumps(result, indent=2) + "\n")
    _draw(cascade, params, source, scores, config.eval, folder / "figures")
    shown = dict(itertools.chain.from_iterable(albums))
    report = html.evaluation(result, scores, shown, plots, about(config), str(workdir))
    write_whole(folder / "report.html", report)
    print(table(result))
    print(f"Per image and in pictures: {folder / 'report.html'}")
    return result


def result_folder(config: ConfigDict, workdir: Path) -> Path:
    """Where the results of `config.eval.split` are written."""
    fields = changed(config, workdir).items()
    name = ",".join([config.eval.split, *(f"{field}={value}" for field, value in fields)])
    return workdir / "eval" / shortened(name.replace(os.sep, "_"))


def _digest(source) -> str:
    """16 digits that only data sets of equal names, images and masks share, in any order."""
    examples = (source[index] for index in range(len(source)))
    of_each = sorted(
        (each["name"].decode(), known("", each["image"]).digest, known("", each["mask"]).digest)
        for each in examples
    )
    return hashlib.sha256(json.dumps(of_each).encode()).hexdigest()[:16]


def check_unseen(config: ConfigDict, workdir: Path, source, trained: set[str]) -> None:
    """Refuses to take for a test what the run was trained on.

    Args:
        config: All of it; asked for by name, the training images may be evaluated on.
        workdir: Of the run.
        source: Examples by index, to evaluate on.
        trained: Digests of the images trained on, see `workdir.images_seen`.

    Raises:
        UserError: Some examples of the source were.
    """
    if config.eval.split == "train" or not trained:
        return
    if seen := sorted(image.name for image in loader.known(source) if image.digest in trained):
        named = ", ".join(seen[:5]) + (", ..." if len(seen) > 5 else "")
        fields = ", ".join(f for f in changed(config, workdir) if f.startswith("data."))
        mend = f"set {fields} as in the training, or " if fields else ""
        raise UserError(
            f"{len(seen)} of the {len(source)} images to evaluate on ({named}) are trained on by "
            f"the run in {workdir}, or by what it starts from; {mend}keep every image for one of "
            "the two"
        )


def score(
    cascade: Cascade,
    params,
    source,
    batch: int,
    compare: Callable = metrics.compare,
    keep: Callable[[int, dict, dict], None] | None = None,
) -> Scores:
    """Runs the cascade on every example and computes the metrics of each stage.

    Each of several processes takes its share, and has the scores of all.

    Args:
        cascade: The networks.
        params: Parameters by branch.
        source: Examples by index, see `loader.prepare`.
        batch: Images at a time.
        compare: Gives the metrics of a predicted and a true region, as `metrics.compare`.
        keep: Is given the index of each example of this process, the example, and its masks by
            stage.
    """
    process, processes = jax.process_index(), jax.process_count()
    share = range(process, len(source), processes)
    # At position 0 it takes the place of a training's bar, which stands still meanwhile.
    bar = {"leave": False, "position": 0, "disable": not devices.is_first()}
    progress = tqdm.tqdm(total=len(share), desc="evaluate", unit="image", **bar)
    own = []
    examples = (source[index] for index in share)
    segmented = inference.segment_examples(cascade, params, examples, batch)
    for index, (example, masks) in zip(share, segmented, strict=True):
        truth = Region(example["mask"][..., 0] > 127)
        rows = {stage: compare(Region(mask), truth) for stage, mask in masks.items()}
        cases = {stage: metrics.emptiness(mask, truth.mask) for stage, mask in masks.items()}
        name = example["name"].decode()
        own.append((name, rows, cases))
        if keep is not None:
            keep(index, example, masks)
        progress.update()
    progress.close()
    parts = devices.allgather_json(own)
    names, rows, cases = zip(
        *(parts[index % processes][index // processes] for index in range(len(source))),
        strict=True,
    )
    of_stage = ({s: [each[s] for each in part] for s in cascade.stages} for part in (rows, cases))
    return Scores(list(names), *of_stage)


def _keep(
    album: pictures.Album,
    many: bool,
    masks_to: Path | None,
    index: int,
    example: dict,
    masks: dict[str, np.ndarray],
) -> None:
    """Puts an image with its masks into the album, and writes its final mask to the folder."""
    if album.wants(index):
        truth = example["mask"][..., 0] > 127
        album.add(index, pictures.encode(example["image"][..., 0], {"truth": truth, **masks}, many))
    if masks_to is not None:
        masks_to.mkdir(parents=True, exist_ok=True)
        path = (masks_to / example["name"].decode()).with_suffix(".png")
        write_png(path, masks["final"].astype(np.uint8) * 255)


def _draw(cascade, params, source, scores: Scores, config: ConfigDict, folder: Path) -> None:
    """Replaces the figures in the folder."""
    for old in folder.glob("*.png"):
        old.unlink()
    dice = [row["dice"] for row in scores.rows["final"]]
    chosen = figures.choose(dice, config.figures)
    segmented = inference.segment_examples(
        cascade, params, (source[index] for index in chosen), config.batch
    )
    for rank, (index, (example, masks)) in enumerate(zip(chosen, segmented, strict=True)):
        image = example["image"][..., 0]
        if image.dtype == np.uint8:
            image = image.astype(np.float32) / 255
        named = {STAGES[stage]: mask for stage, mask in masks.items()}
        picture = figures.panel(image, example["mask"][..., 0] > 127, named, scores.names[index])
        stem = shortened(Path(scores.names[index]).stem)
        write_png(folder / f"{rank:02d}_{stem}_dice_{dice[index]:.3f}.png", picture)
