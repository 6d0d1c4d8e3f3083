"""The training loop: data, step, log, checkpoint, evaluate."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import jax
import tqdm
from ml_collections import ConfigDict

from tprnet_jax import checkpoints, evaluate, optimiser
from tprnet_jax import config as configuration
from tprnet_jax.data import loader
from tprnet_jax.errors import UserError
from tprnet_jax.files import write_whole
from tprnet_jax.step import State, Trainer, initial_state, train_step
from tprnet_jax.workdir import check_same_run, write_config

LOG_EVERY = 10  # Steps between two lines of metrics.jsonl.


def run(config: ConfigDict, workdir: Path) -> dict:
    """Trains, evaluating as it goes, and reports on the checkpoint that `config.eval` names.

    A run that was stopped goes on from its latest checkpoint; one that is complete only reports.

    Returns:
        What `eval/<split>/metrics.json` has.

    Raises:
        UserError: The configuration, the data or the checkpoints cannot be used.
    """
    configuration.cascade(config)  # A mistake is found before any data is read.
    builder = loader.prepare(config.data)
    source, held_out = (loader.examples(builder, split) for split in ("train", "validation"))
    loader.examples(builder, config.eval.split)  # Better missed now than after the training.
    steps_per_epoch = _steps_per_epoch(len(source), config.train.batch)
    trainer = make_trainer(config, steps_per_epoch)
    with checkpoints.open_manager(workdir) as manager:
        if manager.latest_step() is not None:
            check_same_run(config, workdir)
        if (manager.latest_step() or 0) < config.train.epochs * steps_per_epoch:
            try:
                _train(config, workdir, trainer, source, held_out, steps_per_epoch, manager)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_what_next(manager)) from None
        elif (finished := _earlier_report(config, workdir, manager)) is not None:
            return finished
    return evaluate.run(config, workdir)


def make_trainer(config: ConfigDict, steps_per_epoch: int) -> Trainer:
    """What the training steps of a configuration need."""
    cascade = configuration.cascade(config)
    refinement = config.train.refinement or cascade.refinement
    return Trainer(
        dataclasses.replace(cascade, refinement=refinement),
        optimiser.direction(config.optim),
        optimiser.schedule(config.optim, config.train.epochs, steps_per_epoch),
        config.optim.clip_norm,
        config.train.patch_gradient,
    )


def _what_next(manager) -> str:
    manager.wait_until_finished()
    step = manager.latest_step()
    if step is None:
        return "interrupted before the first checkpoint; the same command starts anew"
    return f"interrupted; the same command goes on from step {step}"


def _steps_per_epoch(examples: int, batch: int) -> int:
    if batch > examples:
        raise UserError(
            f"config.train.batch is {batch}, but there are only {examples} training images; make "
            "it smaller"
        )
    return examples // batch


def _train(config, workdir: Path, trainer: Trainer, source, held_out, per_epoch: int, manager):
    """Takes the steps that are left, epoch by epoch."""
    state = checkpoints.restore_latest(manager, lambda: initial_state(trainer, config.seed))
    if state is None:
        state = initial_state(trainer, config.seed)
    write_config(config, workdir)
    start, batch, epochs = int(state.step), config.train.batch, config.train.epochs
    if start:
        print(f"Going on from step {start} of {epochs * per_epoch}.")
    batches = loader.train_batches(source, config.data, config.seed, batch, start)
    with (
        _open_log(workdir / "metrics.jsonl", start) as log,
        tqdm.tqdm(
            total=epochs * per_epoch * batch, initial=start * batch, unit="image", smoothing=0.05
        ) as bar,
    ):
        progress = Progress(log, bar, batch)
        for epoch in range(start // per_epoch, epochs):
            bar.set_description(f"epoch {epoch + 1}/{epochs}")
            focal = trainer.cascade.focal_net is not None and epoch >= config.train.focal_from_epoch
            steps = range(int(state.step), (epoch + 1) * per_epoch)
            state = _epoch(trainer, state, batches, steps, focal, progress)
            if epoch + 1 == epochs or (epoch + 1) % config.train.evaluate_every == 0:
                scores = evaluate.score(trainer.cascade, state.params, held_out, config.eval.batch)
                checkpoints.save(manager, state, evaluate.mean_dice(scores))
                _log_scores(log, int(state.step), scores)


class Progress(NamedTuple):
    """Where a training says how it goes: `metrics.jsonl`, and a bar that counts images."""

    log: TextIO
    bar: tqdm.tqdm
    batch: int


def _open_log(path: Path, start: int) -> TextIO:
    """Opens the log without the lines of steps that are about to be taken again."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    write_whole(path, "".join(line for line in lines if _is_before(line, start)))
    return path.open("a")


def _is_before(line: str, start: int) -> bool:
    if not line.endswith("\n"):  # Cut off when the run was stopped.
        return False
    record = json.loads(line)
    # Validation after step n is logged as n, training in step n too.
    return record["step"] < start + (record["split"] == "validation")


def _epoch(
    trainer: Trainer, state: State, batches: Iterator, steps: range, focal: bool, progress: Progress
) -> State:
    """Takes the given steps, reading each step's numbers only after the next one is under way."""
    pending = None
    for step in steps:
        examples = next(batches)
        state, scalars = train_step(trainer, state, examples["image"], examples["mask"], focal)
        if pending is not None:
            _log_step(progress, *pending)
        pending = step, scalars
        progress.bar.update(progress.batch)
    _log_step(progress, *pending)
    return state


def _log_step(progress: Progress, step: int, scalars: dict) -> None:
    scalars = {name: float(value) for name, value in jax.device_get(scalars).items()}
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(scalars[name]):
            raise UserError(
                f"{name} became {scalars[name]} at step {step}; lower config.optim.learning_rate, "
                "and run again"
            )
    progress.bar.set_postfix(loss=f"{scalars['loss']:.3f}", refresh=False)
    if step % LOG_EVERY == 0:
        _write_line(progress.log, {"step": step, "split": "train", **scalars})


def _log_scores(log: TextIO, step: int, scores: evaluate.Scores) -> None:
    result = evaluate.summary(scores)
    values = {
        f"{stage}_{name}": value for stage in scores.rows for name, value in result[stage].items()
    }
    _write_line(log, {"step": step, "split": "validation", **values})
    dice = "  ".join(f"{stage} {result[stage]['dice']:.4f}" for stage in scores.rows)
    tqdm.tqdm.write(f"step {step}: validation Dice  {dice}")


def _write_line(log: TextIO, record: dict) -> None:
    log.write(json.dumps(record) + "\n")
    log.flush()


def _earlier_report(config: ConfigDict, workdir: Path, manager) -> dict | None:
    """The report of a complete run, printed again, if it is what evaluating would give."""
    path = evaluate.result_folder(config, workdir) / "metrics.json"
    if not path.is_file():
        return None
    result = json.loads(path.read_text())
    step = checkpoints.step_of(manager, config.eval.checkpoint)
    if (result["step"], result["source"]) != (step, config.data.source):
        return None
    print(f"{workdir} is complete; to train longer, choose another --workdir.")
    print(evaluate.table(result))
    return result
