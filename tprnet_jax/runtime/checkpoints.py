"""Saving and restoring; all of the project that knows Orbax.

A checkpoint has three parts: "params", which is all that evaluation reads; "optim", the rest of the
training state; and "digests", checksums by which damage is found. How well a checkpoint does is
written beside them, in `scores.json`, once it has been evaluated.
"""

import contextlib
import json
import logging as stdlib_logging
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy

from tprnet_jax.runtime import devices
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import read_json, write_whole

Manager = ocp.CheckpointManager
KEEP = 2  # Newest checkpoints kept, so that one is left if the other is damaged.


def _is_news(record: stdlib_logging.LogRecord) -> bool:
    """Not so of what Orbax logs beside the errors it raises, tracebacks among it."""
    return "orbax" not in record.pathname and "never retrieved" not in record.getMessage()


logging.get_absl_logger().addFilter(_is_news)
stdlib_logging.getLogger("asyncio").addFilter(_is_news)


class _Damaged(Exception):
    """A checkpoint cannot be read, or holds other values than were saved."""


@contextlib.contextmanager
def open_manager(workdir: Path, to_write: bool = True) -> Iterator[Manager]:
    """Opens `workdir/checkpoints`, which keeps the newest checkpoints and the one best by Dice.

    Args:
        workdir: Of the run.
        to_write: Make the folder, and clear what an interrupted save has left there; not while
            the run may still be training. Of several processes, all must open it to write, and
            each reads for itself.
    """
    this = jax.process_index()
    reading = ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})
    folder = _folder(workdir)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_NewestAndBest(folder),
        cleanup_tmp_directories=to_write,
        create=to_write,
        **({} if to_write else {"multiprocessing_options": reading}),
    )
    handlers = {item: ocp.StandardCheckpointHandler() for item in ("params", "optim")}
    handlers["digests"] = ocp.JsonCheckpointHandler()
    manager = ocp.CheckpointManager(folder, options=options, item_handlers=handlers)
    try:
        yield manager
        finish(manager)
    finally:
        with contextlib.suppress(*_WRITING_FAILS):  # Said by `finish`, and raised here again.
            manager.close()


class _NewestAndBest(preservation_policy.PreservationPolicy):
    def __init__(self, folder: Path):
        self.folder = folder

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        keep = {*sorted(steps)[-KEEP:], _best(self.folder, steps)}
        return [step in keep for step in steps]


def _folder(workdir: Path) -> Path:
    return (workdir / "checkpoints").resolve()


# ---- Scores --------------------------------------------------------------------------------------


def write_score(manager: Manager, step: int, dice: float) -> None:
    """Notes the mean Dice of a checkpoint's final output, by which "best" is chosen."""
    folder = Path(manager.directory)
    scores = {**_scores(folder), str(step): dice}
    write_whole(folder / "scores.json", json.dumps(scores, indent=2) + "\n")


def is_scored(manager: Manager, step: int) -> bool:
    """Whether the checkpoint of this step has been evaluated."""
    return str(step) in _scores(Path(manager.directory))


def step_of(manager: Manager, which: str) -> int | None:
    """Step of the "best" or "latest" checkpoint, None if there is none.

    Of equally good ones the first is best; while none has been evaluated, the latest is.
    """
    steps = manager.all_steps()
    best = _best(Path(manager.directory), steps) if which == "best" else None
    return max(steps, default=None) if best is None else best


def _best(folder: Path, steps: Sequence[int]) -> int | None:
    scores = _scores(folder)
    scored = [step for step in sorted(steps) if str(step) in scores]
    return max(scored, key=lambda step: scores[str(step)], default=None)


def _scores(folder: Path) -> dict[str, float]:
    path = folder / "scores.json"
    return read_json(path) if path.is_file() else {}


# ---- Saving --------------------------------------------------------------------------------------


def save(manager: Manager, step: int, parts: dict[str, dict]) -> None:
    """Starts to save a training state under the number of its step; `finish` ends it.

    Args:
        manager: Of the run's checkpoints.
        step: Steps taken.
        parts: The state as "params" and "optim", each a tree of arrays.

    Raises:
        UserError: This one, or the one that was being saved, cannot be written.
    """
    finish(manager)
    if not Path(manager.directory).is_dir():
        raise UserError(
            f"{manager.directory} was deleted while the run was writing to it, so nothing can be "
            "saved; start anew"
        )
    args = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
    args["digests"] = ocp.args.JsonSave({name: _digests(part) for name, part in parts.items()})
    try:
        manager.save(step, args=ocp.args.Composite(**args), force=True)
    except _WRITING_FAILS as error:
        raise _not_written(manager, error) from error


def finish(manager: Manager) -> None:
    """Waits until what is being saved is on disk, whole.

    Raises:
        UserError: It cannot be written.
    """
    try:
        manager.wait_until_finished()
    except _WRITING_FAILS as error:
        raise _not_written(manager, error) from error


_WRITING_FAILS = (OSError, ValueError, RuntimeError)  # Tensorstore's errors are of the last two.


def _not_written(manager: Manager, error: Exception) -> UserError:
    manager.reload()
    step = manager.latest_step()
    then = "starts anew" if step is None else f"goes on from step {step}, which is whole"
    return UserError(
        f"a checkpoint cannot be written to {manager.directory} ({_first_line(error)}); free space "
        f"there or make it writable, and the same command {then}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _digests(tree) -> dict[str, int]:
    """CRC-32 of every array's bytes, by its name."""
    return {
        name: zlib.crc32(np.ascontiguousarray(leaf)) for name, leaf in _leaves(jax.device_get(tree))
    }


def _leaves(tree) -> list[tuple[str, jax.Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


# ---- Restoring -----------------------------------------------------------------------------------


def restore_latest(manager: Manager, expected: dict[str, dict]) -> dict[str, dict] | None:
    """The parts of the newest whole checkpoint, or None if there is none at all.

    A damaged one is reported and set aside under another name.

    Args:
        manager: Of the run's checkpoints.
        expected: Shapes and types of the parts, as `save` takes them.

    Raises:
        UserError: No checkpoint is whole, or it has another architecture.
    """
    damaged = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            parts = {name: _restore(manager, step, name, expected[name]) for name in expected}
        except _Damaged as error:
            logging.warning("%s; going back to the one before", error)
            damaged.append(step)
            continue
        _set_aside(manager, damaged)
        return parts
    if damaged:
        raise _none_whole(manager)
    return None


def _set_aside(manager: Manager, steps: Sequence[int]) -> None:
    """Renames damaged checkpoints, whose steps are about to be taken and saved again."""
    for step in steps if devices.is_first() else ():
        folder = Path(manager.directory) / str(step)
        target, number = folder.with_name(f"damaged_{step}"), 1
        while target.exists():
            target, number = folder.with_name(f"damaged_{step}_{number}"), number + 1
        os.rename(folder, target)
    if steps:
        devices.barrier("setting damaged checkpoints aside")
        manager.reload()


def restore_params(workdir: Path, which: str, expected: dict) -> tuple[dict, int]:
    """Parameters of a run's "best" or "latest" checkpoint, and their step.

    Where the latest is damaged, the one before is used, with a warning; nothing is renamed.

    Args:
        workdir: Of the run.
        which: "best" or "latest".
        expected: Shapes and types of the parameters.

    Raises:
        UserError: There is no checkpoint, none is whole, or it has another architecture.
    """
    folder = _folder(workdir)
    if not folder.is_dir():
        raise _no_checkpoint(folder)
    with open_manager(workdir, to_write=False) as manager:
        first = step_of(manager, which)
        if first is None:
            raise _no_checkpoint(folder)
        earlier = [step for step in manager.all_steps() if step < first]
        for step in [first, *sorted(earlier, reverse=True)]:
            try:
                return _restore(manager, step, "params", expected), step
            except _Damaged as error:
                if which == "best":
                    raise UserError(
                        f"{error}; --config.eval.checkpoint=latest uses another"
                    ) from error
                logging.warning("%s; using the one before", error)
        raise _none_whole(manager)


def _no_checkpoint(folder: Path) -> UserError:
    return UserError(
        f"there is no checkpoint in {folder}; train first, or give the --workdir of a trained run"
    )


def _none_whole(manager: Manager) -> UserError:
    steps = ", ".join(map(str, sorted(manager.all_steps())))
    return UserError(
        f"every checkpoint in {manager.directory} is damaged (steps {steps}), and nothing was "
        "changed; bring back a copy, or start anew in another --workdir"
    )


def _restore(manager: Manager, step: int, item: str, expected):
    # Named here, the device need not be the one that saved: a GPU's checkpoint opens on a CPU.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    on_device = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), expected
    )
    args = {item: ocp.args.StandardRestore(on_device), "digests": ocp.args.JsonRestore()}
    try:
        stored = manager.item_metadata(step)[item].tree
    except Exception as error:  # Whatever Orbax trips over in a damaged file.
        raise _damage(manager, step, error) from error
    _check_architecture(manager, step, item, stored, expected)
    try:
        restored = manager.restore(step, args=ocp.args.Composite(**args))
        digests = restored["digests"][item]
    except Exception as error:
        raise _damage(manager, step, error) from error
    if _digests(restored[item]) != digests:
        raise _damage(manager, step, "its values are not those that were saved")
    return restored[item]


def _damage(manager: Manager, step: int, reason) -> _Damaged:
    reason = _first_line(reason) if isinstance(reason, Exception) else reason
    return _Damaged(f"the checkpoint {manager.directory / str(step)} is damaged ({reason[:200]})")


def _check_architecture(manager: Manager, step: int, item: str, stored, expected) -> None:
    found, wanted = ({name: x.shape for name, x in _leaves(tree)} for tree in (stored, expected))
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"the checkpoint {manager.directory / str(step)} is of another architecture: its "
                f"{item} {name} is {found.get(name, 'absent')}, but --config makes it "
                f"{wanted.get(name, 'absent')}; use the --config of that run or another --workdir"
            )
