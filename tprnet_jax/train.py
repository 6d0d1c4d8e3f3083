"""The training loop: data, step, log, checkpoint, evaluate."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from tprnet_jax import config as configuration
from tprnet_jax import evaluate, segmenter
from tprnet_jax.data import loader
from tprnet_jax.data.images import Known
from tprnet_jax.method import augment, optimiser
from tprnet_jax.method.cascade import Cascade
from tprnet_jax.method.state import State, Trainer, has_statistics, initial_state
from tprnet_jax.method.step import train_step
from tprnet_jax.report import metrics, tables
from tprnet_jax.runtime import checkpoints, devices, signals
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import read_json
from tprnet_jax.runtime.progress import NotFinite, Progress, say
from tprnet_jax.workdir import (
    check_same_images,
    check_same_run,
    images_seen_earlier,
    only_run,
    write_config,
    write_training_images,
)

AGREE_EVERY = 10  # Steps after which several processes ask each other for signals.


def run(config: ConfigDict, workdir: Path) -> dict:
    """Trains, evaluating as it goes, and reports on the checkpoint that `config.eval` names.

    A run that was stopped goes on from its newest whole checkpoint, to the same end, bit for bit,
    as if it had not been; one that is complete only reports.

    Returns:
        What `eval/<split>/metrics.json` has.

    Raises:
        UserError: The configuration, the data or the checkpoints cannot be used, another run
            writes to the workdir, or loss or gradient are not finite for too long.
        Interrupted: SIGTERM or SIGINT came; the state has been saved.
    """
    configuration.check(config)
    mesh = devices.mesh(config.train.batch)
    sources = loader.prepare(config.data)
    splits = "train", loader.choosing_split(config.data)
    source, held_out = (loader.examples(sources, split) for split in splits)
    reported = loader.examples(sources, config.eval.split)
    per_epoch = _steps_per_epoch(len(source), config.train)
    trainer = make_trainer(config, per_epoch, mesh)
    with only_run(workdir), checkpoints.open_manager(workdir) as manager:
        is_begun = manager.latest_step() is not None
        if is_begun:
            check_same_run(config, workdir)
        data = source, held_out, reported
        training = Training(config, workdir, trainer, *data, per_epoch, manager)
        if not training.is_complete():
            images = loader.known(source)
            if is_begun:
                check_same_images(images, workdir)
            with _saying_how_to_go_on(manager) as stop:
                _train(training, images, stop)
        elif (finished := _earlier_report(config, workdir, manager)) is not None:
            return finished
    return evaluate.run(config, workdir)


def make_trainer(
    config: ConfigDict, steps_per_epoch: int, mesh: jax.sharding.Mesh | None = None
) -> Trainer:
    """What the training steps of a configuration need, on the devices of `mesh` or on one."""
    cascade = configuration.cascade(config)
    mesh = None if mesh is None or _trains_alone(cascade) else mesh
    shares = 1 if mesh is None else mesh.size
    again = {f"{name}_net": cascade.networks[name].clone(remat=True) for name in config.train.remat}
    cascade = dataclasses.replace(
        cascade,
        **again,
        refinement=config.train.refinement or cascade.refinement,
        chunk=-(-cascade.chunk // shares) * shares,
    )
    return Trainer(
        cascade,
        optimiser.direction(config.optim),
        optimiser.schedule(config.optim, config.train.epochs, steps_per_epoch),
        clip_norm=config.optim.clip_norm,
        ema=config.train.ema,
        image_dice=config.train.image_dice,
        with_dice=config.train.loss == "cross_entropy_dice",
        patch_gradient=config.train.patch_gradient,
        mesh=mesh,
        augmentation=augment.settings(config.augment),
        seed=config.seed,
    )


def _trains_alone(cascade: Cascade) -> bool:
    """Whether one device has to train, however many could.

    Each device normalises by the statistics of its own images, so that what is learnt depends on
    how many share a batch. A CPU's cores are devices for speed alone; on another CPU the same
    command is to learn the same.
    """
    return jax.default_backend() == "cpu" and jax.process_count() == 1 and has_statistics(cascade)


class Training(NamedTuple):
    """What does not change from the first step to the last.

    Attributes:
        config: All of it.
        workdir: Where the run writes.
        trainer: What a step needs.
        source: Training examples by index.
        held_out: Examples by index to choose the checkpoint on.
        reported: Examples by index to evaluate on at the end.
        per_epoch: Steps to an epoch.
        manager: Of the checkpoints.
    """

    config: ConfigDict
    workdir: Path
    trainer: Trainer
    source: object
    held_out: object
    reported: object
    per_epoch: int
    manager: checkpoints.Manager

    @property
    def steps(self) -> int:
        """Number of the last step."""
        return self.config.train.epochs * self.per_epoch

    def is_evaluated(self, step: int) -> bool:
        """Whether the state after so many steps is evaluated."""
        every = self.config.train.evaluate_every * self.per_epoch
        return step == self.steps or (step > 0 and step % every == 0)

    def is_saved(self, step: int) -> bool:
        """Whether the state after so many steps is saved, if nothing stops it before."""
        return step % self.config.train.save_every == 0 or self.is_evaluated(step)

    def is_complete(self) -> bool:
        """Whether the last state is there and has been evaluated."""
        latest = self.manager.latest_step() or 0
        return latest >= self.steps and checkpoints.is_scored(self.manager, latest)


def _steps_per_epoch(examples: int, config: ConfigDict) -> int:
    if config.batch > examples:
        raise UserError(
            f"config.train.batch is {config.batch}, but there are only {examples} training "
            "images; make it smaller"
        )
    return config.steps_per_epoch or examples // config.batch


def _train(training: Training, images: Sequence[Known], stop: signals.Stop) -> None:
    """Takes the steps that are left, on these images."""
    config, trainer, manager = training.config, training.trainer, training.manager
    state, seen_earlier = _restored(training) or _fresh(training)
    # Better refused now than after the training.
    seen = seen_earlier | {image.digest for image in images}
    evaluate.check_unseen(config, training.workdir, training.reported, seen)
    state = devices.replicate(trainer.mesh, state)
    start, batch = int(state.step), config.train.batch
    if devices.is_first():
        write_config(config, training.workdir, loader.side(images))
        write_training_images(images, seen_earlier, training.workdir)
    _say_how_it_starts(training, start)
    part = jax.process_index(), jax.process_count()
    batches = loader.train_batches(training.source, config.seed, batch, start, part)
    scored = checkpoints.is_scored(manager, start)
    with Progress(config.train, training.workdir, training.per_epoch, start, scored) as progress:
        if training.is_evaluated(start) and not scored:
            _validate(training, state, progress)  # It was stopped after the state was saved.
        for step in range(start, training.steps):
            stop.patient = True
            examples = next(batches)
            state, scalars = train_step(trainer, state, *_arguments(training, step, examples))
            progress.end_step(step, scalars, examples)
            done = step + 1
            number = _agreed(training, stop, done)
            if number or training.is_saved(done):
                progress.finish_step()
                _save(training, state)
                number = number or _agreed(training, stop, done)  # It may have come meanwhile.
            if number:
                raise signals.Interrupted("", number)
            if training.is_evaluated(done):
                stop.patient = False
                _validate(training, state, progress)
        checkpoints.finish(manager)


@contextlib.contextmanager
def _saying_how_to_go_on(manager: checkpoints.Manager) -> Iterator[signals.Stop]:
    """Notes signals; an interruption, and numbers that are not finite, say what comes next."""

    def goes_on() -> str:
        checkpoints.finish(manager)
        step = manager.latest_step()
        return "starts anew" if step is None else f"goes on from step {step}"

    with signals.noted() as stop:
        try:
            yield stop
        except signals.Interrupted as interrupt:
            message = f"interrupted; the same command {goes_on()}"
            raise signals.Interrupted(message, interrupt.status - 128) from None
        except NotFinite as error:
            raise UserError(
                f"{error}; mend these images or lower config.optim.learning_rate, and the same "
                f"command {goes_on()}"
            ) from error


def _restored(training: Training) -> tuple[State, set[str]] | None:
    """The newest whole state, if there is one; and as for `_fresh`."""
    shapes = jax.eval_shape(lambda: initial_state(training.trainer, 0))
    parts = checkpoints.restore_latest(training.manager, shapes.parts)
    if parts is None:
        return None
    return State.of_parts(**parts), images_seen_earlier(training.workdir)


def _fresh(training: Training) -> tuple[State, set[str]]:
    """The state before the first step: random weights, or those of `config.train.start_from`.

    Returns:
        The state, and the digests of the images that its weights were trained on.
    """
    config, trainer = training.config, training.trainer
    state = initial_state(trainer, config.seed)
    if not config.train.start_from:
        return state, set()
    given = segmenter.parameters(config.train.start_from, state.params)
    say(f"Starting from the weights of {given.name}.")
    average = None if state.average is None else jax.tree.map(jnp.copy, given.params)
    return state._replace(params=given.params, average=average), given.seen


def _say_how_it_starts(training: Training, start: int) -> None:
    batch, used = training.config.train.batch, training.trainer.shares[1]
    if start:
        say(f"Going on from step {start} of {training.steps}.")
    if used < (count := jax.device_count()):
        reason = f"no more divide config.train.batch={batch}"
        if _trains_alone(training.trainer.cascade):
            reason = "batch normalisation needs the whole batch"
        say(f"{used} of {count} devices train; {reason}.")


def _arguments(training: Training, step: int, examples: dict) -> tuple:
    """What `train_step` takes of the examples."""
    epoch, has_focal = step // training.per_epoch, training.trainer.cascade.focal_net is not None
    focal = has_focal and epoch >= training.config.train.focal_from_epoch
    return examples["image"], examples["mask"], focal, (examples["epoch"], examples["index"])


def _agreed(training: Training, stop: signals.Stop, done: int) -> int:
    """The signal that has come to any of the processes, 0 for none; all stop for it, or none.

    Several processes ask each other only after every so many steps, and where the state is saved:
    no step can be under way meanwhile.
    """
    if jax.process_count() > 1 and done % AGREE_EVERY and not training.is_saved(done):
        return 0
    return int(max(devices.allgather(stop.number or 0)))


def _save(training: Training, state: State) -> None:
    if (step := int(state.step)) not in training.manager.all_steps():
        checkpoints.save(training.manager, step, state.parts)


def _validate(training: Training, state: State, progress: Progress) -> None:
    """Evaluates a saved state, and notes how good it is."""
    params = state.evaluated
    if training.trainer.mesh is not None:
        params = devices.unreplicate(params)
    # Not the trainer's cascade, whose refinement may be another, but that which is reported on.
    cascade, batch = configuration.cascade(training.config), training.config.eval.batch
    scores = evaluate.score(cascade, params, training.held_out, batch, metrics.compare_briefly)
    split, means = loader.choosing_split(training.config.data), tables.means(scores)
    progress.evaluated(int(state.step), split, means)
    if devices.is_first():
        checkpoints.write_score(training.manager, int(state.step), means["final"]["dice"])
    devices.barrier("the score")


def _earlier_report(config: ConfigDict, workdir: Path, manager) -> dict | None:
    """The report of a complete run, printed again, if it is what evaluating would give."""
    folder = evaluate.result_folder(config, workdir)
    if not all((folder / name).is_file() for name in ("metrics.json", "report.html")):
        return None
    result = read_json(folder / "metrics.json")
    step = checkpoints.step_of(manager, config.eval.checkpoint)
    if (result["step"], result["source"]) != (step, config.data.source):
        return None
    print(f"{workdir} is complete; with a larger --config.train.epochs it goes on.")
    print(tables.table(result))
    return result
