"""How a training goes: `metrics.jsonl`, a bar that counts images, and sentences in between."""

import contextlib
import datetime
import json
import os
import time
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from tprnet_jax.report import curves
from tprnet_jax.runtime import devices
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import write_whole

LOG_EVERY = 10  # Steps between two lines of metrics.jsonl.


class NotFinite(Exception):
    """Loss or gradient were not finite for too many steps in a row; says what was in the batch."""


class Progress:
    """Of a training from some step on. Of several processes, the first one speaks for all.

    Args:
        config: `config.train`.
        workdir: Of the run.
        per_epoch: Steps to an epoch.
        start: Number of the first step to come.
        scored: Whether the state before it has been evaluated.

    Raises:
        UserError: TensorBoard's files are asked for, and what writes them is not installed.
    """

    def __init__(self, config: ConfigDict, workdir: Path, per_epoch: int, start: int, scored: bool):
        self.config, self.workdir, self.per_epoch = config, workdir, per_epoch
        self.board = _board(workdir, start) if config.tensorboard and devices.is_first() else None
        self.log = open_log(workdir / "metrics.jsonl", start, scored)
        self.pending, self.written = None, (start, time.monotonic())
        self.bar = tqdm.tqdm(
            total=config.epochs * per_epoch * config.batch,
            initial=start * config.batch,
            unit="image",
            smoothing=0.05,
            disable=not devices.is_first(),
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()
        with contextlib.suppress(OSError):  # Of what is left to write, `_write` has said it.
            self.log.close()
        if self.board is not None:
            self.board.close()

    def end_step(self, step: int, scalars: dict, examples: dict) -> None:
        """Takes what `train_step` returned for these examples.

        It is written down only when the next step is under way, so that the device need not wait.

        Raises:
            NotFinite: The step before was one too many that was not applied.
            UserError: The log cannot be written.
        """
        self.finish_step()
        self.pending = step, scalars, examples

    def finish_step(self) -> None:
        """Writes down the last step; raises what `end_step` does."""
        if self.pending is None:
            return
        (step, scalars, examples), self.pending = self.pending, None
        values = {name: value.item() for name, value in jax.device_get(scalars).items()}
        skipped = values.pop("skipped")
        epoch = step // self.per_epoch + 1
        self.bar.set_description(f"epoch {epoch}/{self.config.epochs}", refresh=False)
        self.bar.update(self.config.batch)
        self.bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
        if skipped:
            self._not_applied(step, values, examples, skipped)
        elif step % LOG_EVERY == 0:
            speed = {"images_per_second": self._speed(step)}
            self._write({"step": step, "split": "train", "epoch": epoch, **values, **speed})

    def _speed(self, step: int) -> float:
        """Images a second since it was last asked."""
        before, now = self.written, (step + 1, time.monotonic())
        self.written = now
        return round((now[0] - before[0]) * self.config.batch / max(now[1] - before[1], 1e-9), 3)

    def _not_applied(self, step: int, values: dict, examples: dict, skipped: int) -> None:
        report = _report(step, values, examples)
        say(f"warning: {report}; it was not applied")
        names = [name.decode() for name in examples["name"]]
        self._write({"step": step, "split": "train", "skipped": names})
        if skipped >= self.config.skip_limit:
            raise NotFinite(f"{skipped} steps in a row were not applied: {report}")

    def evaluated(self, step: int, split: str, means: dict[str, dict[str, float]]) -> None:
        """Writes down how good the state before this step is on a split.

        Args:
            step: Number of the step.
            split: What was evaluated on.
            means: Mean metrics of each stage.
        """
        values = {
            f"{stage}_{name}": value
            for stage, metrics in means.items()
            for name, value in metrics.items()
        }
        self._write({"step": step, "split": split, **values})
        if devices.is_first():
            records = curves.read(self.workdir / "metrics.jsonl")
            write_whole(self.workdir / "curves.png", curves.draw(records))
        dice = "  ".join(f"{stage} {metrics['dice']:.4f}" for stage, metrics in means.items())
        name = "hold-out" if split == "holdout" else split
        say(f"step {step}: {name} Dice  {dice}")

    def _write(self, record: dict) -> None:
        if self.board is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{record['split']}/{name}", value, record["step"])
        record["time"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            self.log.write(json.dumps(record) + "\n")
            self.log.flush()
        except OSError as error:
            raise UserError(
                f"{self.log.name} cannot be written ({error.strerror}); free space, and the same "
                "command goes on from the last checkpoint"
            ) from error


def _board(workdir: Path, start: int):
    """What writes TensorBoard's files; what it wrote of the steps to come is hidden."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError(
            "config.train.tensorboard needs tensorboardX; install it with pip install tensorboardX"
        ) from error
    return SummaryWriter(str(workdir / "tensorboard"), purge_step=start)


def say(text: str) -> None:
    """Prints a line beside the bar."""
    if devices.is_first():
        tqdm.tqdm.write(text)


def open_log(path: Path, start: int, scored: bool) -> TextIO:
    """Opens the log without the lines of steps and evaluations that are about to come again.

    Args:
        path: The log.
        start: Number of the first step to come.
        scored: Whether the evaluation before it is done.
    """
    if not devices.is_first():
        return open(os.devnull, "w")
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    if lines and not lines[-1].endswith("\n"):  # Cut off when the run was stopped.
        lines.pop()
    try:
        before = [line for line in lines if _is_before(json.loads(line), start, scored)]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove the lines that are not whole, or the file"
        ) from error
    write_whole(path, "".join(before))
    return path.open("a")


def _is_before(record: dict, start: int, scored: bool) -> bool:
    # An evaluation after step n is logged as n, training in step n too.
    return record["step"] < start + (scored and record["split"] != "train")


def _report(step: int, values: dict, examples: dict) -> str:
    numbers = ", ".join(f"{name} {values[name]}" for name in ("loss", "gradient_norm"))
    batch = "; ".join(
        _describe(*one)
        for one in zip(*(examples[key] for key in ("image", "mask", "name")), strict=True)
    )
    return f"step {step} has {numbers} on {batch}"


def _describe(image: np.ndarray, mask: np.ndarray, name: bytes) -> str:
    finite = image[np.isfinite(image)]
    grey = f"grey {finite.min():g} to {finite.max():g}" if finite.size else "no finite pixel"
    if finite.size < image.size:
        grey += f", {image.size - finite.size} pixels not finite"
    return f"{name.decode()} ({grey}, {100 * (mask > 127).mean():.1f} % vessel)"
