"""What a workdir says of the run that it belongs to."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import jax
from absl import logging
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import tprnet_jax
from tprnet_jax import config as configuration
from tprnet_jax.data.images import Known
from tprnet_jax.method.cascade import Cascade, param_shapes
from tprnet_jax.runtime import checkpoints, devices
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import read_json, write_whole

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "scikit-image",
    "tensorflow-datasets",
)
TRAINING_IMAGES = "training_images.json"
# What a network is, or sees; its parameters fit nothing else.
NETWORK = ("global_net", "global_fold", "local_fold", "focal_fold", "guided")
# Where a user's folder and its splits are.
_OF_FOLDER = ("data.source", "data.folder.splits")
# What may change from one start of a run to the next; all else decides what its steps mean.
FREE = (
    "topology",
    "model.chunk",
    "model.temperature",
    "train.remat",
    "data.dir",
    *_OF_FOLDER,
    "optim.learning_rate",
    "optim.clip_norm",
    "train.epochs",
    "train.evaluate_every",
    "train.save_every",
    "train.skip_limit",
    "train.tensorboard",
    "eval.",
    "predict.",
    "serve.",
    "convert.",
    "export.",
    "ablate.",
    "compare.",
    "benchmark.",
)


@contextlib.contextmanager
def only_run(workdir: Path) -> Iterator[None]:
    """Keeps other runs from writing to the workdir meanwhile; the system ends it with the process.

    Raises:
        UserError: Another run writes to it, or the file that says so cannot be written or locked.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if not devices.is_first():  # The first process of a run speaks for all.
        yield
        return
    with (workdir / ".lock").open("ab+", buffering=0) as lock:
        _take(lock, workdir)
        yield


def _take(lock: IO[bytes], workdir: Path) -> None:
    """Locks the file, and writes into it for whom."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}\n".encode())
    except BlockingIOError:
        lock.seek(0)
        raise UserError(
            f"{workdir} is being written to by another run ({lock.read().decode().strip()}); let "
            "it end, or choose another --workdir"
        ) from None
    except OSError as error:  # A full disk, or a file system without locks.
        raise UserError(
            f"{lock.name} cannot be locked or written ({error.strerror}); choose a --workdir on a "
            "file system that has space and locks"
        ) from error


def write_config(config: ConfigDict, workdir: Path, side: int | None = None) -> None:
    """Writes `config.json`: the resolved configuration and what it runs with.

    Args:
        config: All of it.
        workdir: Of the run.
        side: Longer side of the training images, pixels; None if it is not known, or not one.
    """
    resolved = {
        "config": config.to_dict(),
        "side": side,
        "versions": _versions(),
        "devices": _devices(),
    }
    write_whole(workdir / "config.json", json.dumps(resolved, indent=2) + "\n")


def about(config: ConfigDict) -> dict[str, dict[str, str]]:
    """Configuration and versions as tables of names and values, by title."""
    fields = flatten_dict(config.to_dict(), sep=".")
    return {
        "Configuration": {f"config.{name}": str(value) for name, value in fields.items()},
        "Versions and devices": _versions() | {"devices": ", ".join(_devices())},
    }


def _versions() -> dict[str, str]:
    return {
        "tprnet-jax": tprnet_jax.__version__,
        "python": platform.python_version(),
        "opencv": cv2.__version__,  # Installed under several names.
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _devices() -> list[str]:
    return [device.device_kind for device in jax.devices()]


def side(workdir: Path) -> int | None:
    """Longer side of the images that the run in the workdir was trained on, if it is known."""
    path = workdir / "config.json"
    if not path.is_file():
        return None
    data = _stored(path)["data"]
    # What is not in the file of an import, or of an earlier version, the data set may tell.
    known = {"arcade": 512, "phantom": data["phantom"]["size"]}
    return read_json(path).get("side") or known.get(data["name"])


def check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Checks that training in this workdir goes on with what it was started with.

    Raises:
        UserError: A field outside `FREE` differs from that in `config.json`.
    """
    differences = [d for d in _differences(config, workdir) if not d[0].startswith(FREE)]
    if differences:
        each = " and ".join(
            f"config.{f} is {given}, not {stored}" for f, stored, given in differences
        )
        raise UserError(
            f"{each} as the run in {workdir} was started with; go on with that or choose another "
            "--workdir"
        )


def write_training_images(images: Sequence[Known], earlier: Iterable[str], workdir: Path) -> None:
    """Notes which images the run trains on.

    Args:
        images: They.
        earlier: Digests of those that its first weights had been trained on, see `images_seen`.
        workdir: Of the run.
    """
    noted = {"images": _digests(images), "earlier": sorted(earlier)}
    write_whole(workdir / TRAINING_IMAGES, json.dumps(noted, indent=0) + "\n")


def images_seen(workdir: Path) -> set[str]:
    """Digests of all images that the run, and what it started from, were trained on."""
    noted = _training_images(workdir)
    return {*noted["images"].values(), *noted["earlier"]}


def images_seen_earlier(workdir: Path) -> set[str]:
    """Of these, those that the run's first weights had been trained on."""
    return set(_training_images(workdir)["earlier"])


def check_same_images(images: Sequence[Known], workdir: Path) -> None:
    """Checks that training goes on with the images it was started with.

    Raises:
        UserError: It was started with others.
    """
    before, now = _training_images(workdir)["images"], _digests(images)
    if not before or list(before.items()) == list(now.items()):
        return
    gone, new = sorted(before.keys() - now.keys()), sorted(now.keys() - before.keys())
    changed = sorted(name for name in before.keys() & now.keys() if before[name] != now[name])
    named = f"{len(gone)} of them are gone, {len(new)} are new and {len(changed)} have changed"
    others = [*gone, *new, *changed]
    example = f", such as {others[0]}" if others else ", but in another order"
    raise UserError(
        f"the {len(now)} images to train on are not the {len(before)} that the run in {workdir} "
        f"was started with ({named}{example}); bring those back or choose another --workdir"
    )


def _training_images(workdir: Path) -> dict:
    """As noted; runs of earlier versions, and those of imported weights, have noted none."""
    path = workdir / TRAINING_IMAGES
    return read_json(path) if path.is_file() else {"images": {}, "earlier": []}


def _digests(images: Sequence[Known]) -> dict[str, str]:
    return {image.name: image.digest for image in images}


def restore(config: ConfigDict, workdir: Path, cascade: Cascade) -> tuple[dict, int]:
    """Parameters of the checkpoint that `config.eval` names, and their step.

    Says where the model differs from that of the training.

    Raises:
        UserError: There is no usable checkpoint, or its networks see something else, see `NETWORK`.
    """
    differences = _differences(config, workdir)
    for field, stored, given in differences:
        if field.removeprefix("model.") in NETWORK:
            raise UserError(
                f"config.{field} is {given}, but the run in {workdir} was trained with {stored}; "
                "use the --config of that run or another --workdir"
            )
    restored = checkpoints.restore_params(workdir, config.eval.checkpoint, param_shapes(cascade))
    for field, stored, given in differences:
        if field.startswith("model.") and not field.startswith(FREE):
            logging.warning("config.%s is %s, but was %s in training", field, given, stored)
    return restored


def changed(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What of the model and the data differs from what the run was started with, but for paths.

    A folder of other images is other data; where ARCADE lies does not matter.
    """
    paths = _OF_FOLDER if config.data.name == "folder" else ()
    free = tuple(field for field in FREE if field not in paths)
    parts = ("model.", "data.")
    differences = [d for d in _differences(config, workdir) if d[0].startswith(parts)]
    return {
        field: given
        for field, stored, given in differences
        if not field.startswith(free) and not (field in paths and _is_same(stored, given))
    }


def _is_same(first: str, second: str) -> bool:
    """Whether two paths, each of which may be empty, lead to the same place."""
    if not (first and second):
        return first == second
    return Path(first).expanduser().resolve() == Path(second).expanduser().resolve()


def _differences(config: ConfigDict, workdir: Path) -> list[tuple]:
    path = workdir / "config.json"
    if not path.is_file():
        return []
    # What a run was started without, it had as the default.
    before = json.loads(json.dumps(configuration.default().to_dict()))
    stored = flatten_dict(before, sep=".") | flatten_dict(_stored(path), sep=".")
    given = flatten_dict(json.loads(json.dumps(config.to_dict())), sep=".")
    return [
        (field, stored[field], given[field]) for field in given if stored[field] != given[field]
    ]


def _stored(path: Path) -> dict:
    stored = read_json(path)
    if not isinstance(stored, dict) or not isinstance(stored.get("config"), dict):
        raise UserError(f"{path} has no configuration; bring back a copy, or start anew elsewhere")
    return stored["config"]
