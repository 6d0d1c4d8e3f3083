"""Saving and restoring; all of the project that knows Orbax.

A checkpoint has two parts: "params", which is all that evaluation reads, and "optim", the rest of
the training state.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from tprnet_jax.cascade import Cascade, init
from tprnet_jax.errors import UserError
from tprnet_jax.step import State

Manager = ocp.CheckpointManager


def open_manager(workdir: Path, to_write: bool = True) -> Manager:
    """Opens `workdir/checkpoints`, which keeps the latest checkpoint and the one best by Dice.

    Args:
        workdir: Of the run.
        to_write: Make the folder, and clear what an interrupted save has left there; not while
            the run may still be training.
    """
    keep = preservation_policy.AnyPreservationPolicy(
        [
            preservation_policy.LatestN(1),
            preservation_policy.BestN(get_metric_fn=_dice, n=1),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        best_fn=_dice,
        best_mode="max",
        preservation_policy=keep,
        cleanup_tmp_directories=to_write,
        create=to_write,
    )
    handlers = {item: ocp.StandardCheckpointHandler() for item in ("params", "optim")}
    return ocp.CheckpointManager(_folder(workdir), options=options, item_handlers=handlers)


def _dice(metrics: dict) -> float:
    return metrics["dice"]


def _folder(workdir: Path) -> Path:
    return (workdir / "checkpoints").resolve()


def save(manager: Manager, state: State, dice: float) -> None:
    """Starts to save a state; `manager.wait_until_finished()` or `close()` ends it.

    Args:
        manager: Of the run's checkpoints.
        state: What to save, under the number of its step.
        dice: Mean Dice of its final output on the validation split, by which "best" is chosen.
    """
    items = {"params": state.params, "optim": {"step": state.step, "optim": state.optim}}
    args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    manager.save(int(state.step), args=ocp.args.Composite(**args), metrics={"dice": dice})


def restore_latest(manager: Manager, template: Callable[[], State]) -> State | None:
    """The state of the latest checkpoint, or None if there is none.

    Args:
        manager: Of the run's checkpoints.
        template: Makes a state of the configured architecture; it is only traced.

    Raises:
        UserError: The checkpoint has another architecture.
    """
    step = manager.latest_step()
    if step is None:
        return None
    expected = jax.eval_shape(template)
    params = _restore(manager, step, "params", expected.params)
    optim = {"step": expected.step, "optim": expected.optim}
    return State(params=params, **_restore(manager, step, "optim", optim))


def restore_params(workdir: Path, which: str, cascade: Cascade) -> tuple[dict, int]:
    """Parameters of a run's "best" or "latest" checkpoint, and their step.

    Raises:
        UserError: There is no checkpoint, or it has another architecture.
    """
    folder = _folder(workdir)
    if not folder.is_dir():
        raise _no_checkpoint(folder)
    with open_manager(workdir, to_write=False) as manager:
        step = step_of(manager, which)
        if step is None:
            raise _no_checkpoint(folder)
        expected = jax.eval_shape(lambda: init(cascade, jax.random.key(0)))
        return _restore(manager, step, "params", expected), step


def step_of(manager: Manager, which: str) -> int | None:
    """Step of the "best" or "latest" checkpoint, None if there is none."""
    return manager.best_step() if which == "best" else manager.latest_step()


def _no_checkpoint(folder: Path) -> UserError:
    return UserError(
        f"there is no checkpoint in {folder}; train first, or give the --workdir of a trained run"
    )


def _restore(manager: Manager, step: int, item: str, expected):
    _check_architecture(manager, step, item, expected)
    # Named here, the device need not be the one that saved: a GPU's checkpoint opens on a CPU.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    expected = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), expected
    )
    args = ocp.args.Composite(**{item: ocp.args.StandardRestore(expected)})
    return manager.restore(step, args=args)[item]


def _check_architecture(manager: Manager, step: int, item: str, expected) -> None:
    stored = manager.item_metadata(step)[item].tree
    found, wanted = _shapes(stored), _shapes(expected)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"the checkpoint {manager.directory / str(step)} is of another architecture: its "
                f"{item} {name} is {found.get(name, 'absent')}, but --config makes it "
                f"{wanted.get(name, 'absent')}; use the --config of that run or another --workdir"
            )


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}
