"""The training loop: data, step, log, checkpoint, evaluate."""

import importlib.metadata
import json
import math
from pathlib import Path

import jax
import tqdm
from ml_collections import ConfigDict

from tprnet_jax import checkpoints, evaluate, optimiser
from tprnet_jax import config as configuration
from tprnet_jax.data import loader
from tprnet_jax.errors import UserError
from tprnet_jax.step import State, Trainer, initial_state, train_step

LOG_EVERY = 10  # Steps between two lines of metrics.jsonl.
PACKAGES = ("tprnet-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def run(config: ConfigDict, workdir: Path) -> dict:
    """Trains, evaluating as it goes, and reports on the checkpoint that `config.eval` names.

    A run that was stopped goes on from its latest checkpoint; one that is complete only reports.

    Returns:
        What `eval/<split>/metrics.json` has.

    Raises:
        UserError: The configuration, the data or the checkpoints cannot be used.
    """
    cascade = configuration.cascade(config)
    builder = loader.prepare(config.data)
    source, held_out = (loader.examples(builder, s) for s in ("train", "validation"))
    steps_per_epoch = _steps_per_epoch(len(source), config.train.batch)
    trainer = Trainer(
        cascade,
        optimiser.direction(config.optim),
        optimiser.schedule(config.optim, config.train.epochs, steps_per_epoch),
        config.optim.clip_norm,
    )
    write_config(config, workdir)
    with checkpoints.open_manager(workdir) as manager:
        state = checkpoints.restore_latest(manager, lambda: initial_state(trainer, config.seed))
        if state is None:
            state = initial_state(trainer, config.seed)
        if int(state.step) < config.train.epochs * steps_per_epoch:
            _train(config, workdir, trainer, state, source, held_out, steps_per_epoch, manager)
        elif (finished := _earlier_report(config, workdir, manager)) is not None:
            return finished
    return evaluate.run(config, workdir)


def _steps_per_epoch(examples: int, batch: int) -> int:
    if batch > examples:
        raise UserError(
            f"config.train.batch is {batch}, but there are only {examples} training images; make "
            "it smaller"
        )
    return examples // batch


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes `workdir/config.json`: the resolved configuration and the versions it runs with."""
    workdir.mkdir(parents=True, exist_ok=True)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    resolved = {"config": config.to_dict(), "versions": versions}
    (workdir / "config.json").write_text(json.dumps(resolved, indent=2) + "\n")


def _train(config, workdir, trainer, state, source, held_out, steps_per_epoch, manager) -> None:
    """Takes the steps that are left, epoch by epoch."""
    batch, start, epochs = config.train.batch, int(state.step), config.train.epochs
    batches = loader.train_batches(source, config.data, config.seed, batch, start)
    total = epochs * steps_per_epoch
    with (
        (workdir / "metrics.jsonl").open("a") as log,
        tqdm.tqdm(total=total * batch, initial=start * batch, unit="image", smoothing=0.05) as bar,
    ):
        for epoch in range(start // steps_per_epoch, epochs):
            bar.set_description(f"epoch {epoch + 1}/{epochs}")
            focal = trainer.cascade.focal_net is not None and epoch >= config.train.focal_from_epoch
            steps = range(int(state.step), (epoch + 1) * steps_per_epoch)
            state = _epoch(trainer, state, batches, steps, focal, batch, log, bar)
            last = epoch + 1 == epochs
            if last or (epoch + 1) % config.train.evaluate_every == 0:
                scores = evaluate.score(trainer.cascade, state.params, held_out, config.eval.batch)
                _log_scores(log, int(state.step), scores)
                checkpoints.save(manager, state, evaluate.mean_dice(scores))


def _epoch(trainer, state: State, batches, steps, focal: bool, batch: int, log, bar) -> State:
    """Takes the given steps, reading each step's numbers only after the next one is under way."""
    pending = None
    for step in steps:
        examples = next(batches)
        state, scalars = train_step(trainer, state, examples["image"], examples["mask"], focal)
        if pending is not None:
            _log_step(log, bar, *pending)
        pending = step, scalars
        bar.update(batch)
    _log_step(log, bar, *pending)
    return state


def _log_step(log, bar, step: int, scalars: dict) -> None:
    scalars = {name: float(value) for name, value in jax.device_get(scalars).items()}
    if not math.isfinite(scalars["loss"]):
        raise UserError(
            f"the loss became {scalars['loss']} at step {step}; lower config.optim.learning_rate, "
            "and run again to go on from the latest checkpoint"
        )
    bar.set_postfix(loss=f"{scalars['loss']:.3f}", refresh=False)
    if step % LOG_EVERY == 0:
        _write_line(log, {"step": step, "split": "train", **scalars})


def _log_scores(log, step: int, scores: evaluate.Scores) -> None:
    result = evaluate.summary(scores)
    values = {
        f"{stage}_{name}": value for stage in scores.rows for name, value in result[stage].items()
    }
    _write_line(log, {"step": step, "split": "validation", **values})
    dice = "  ".join(f"{stage} {result[stage]['dice']:.4f}" for stage in scores.rows)
    tqdm.tqdm.write(f"step {step}: validation Dice  {dice}")


def _write_line(log, record: dict) -> None:
    log.write(json.dumps(record) + "\n")
    log.flush()


def _earlier_report(config: ConfigDict, workdir: Path, manager) -> dict | None:
    """The report of a complete run, printed again, if it is that of the checkpoint asked for."""
    path = evaluate.result_folder(config, workdir) / "metrics.json"
    if not path.is_file():
        return None
    result = json.loads(path.read_text())
    if result["step"] != checkpoints.step_of(manager, config.eval.checkpoint):
        return None
    print(f"{workdir} is complete; train on with a larger config.train.epochs.")
    print(evaluate.table(result))
    return result
