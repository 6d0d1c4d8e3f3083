"""Every field a configuration has, with its default, what it may be and what it means.

Files in `configs/` change some of them.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tprnet_jax.method import augment
from tprnet_jax.method.cascade import (
    BRANCHES,
    CENTRELINE_REGIONS,
    REFINEMENTS,
    TOPOLOGIES,
    WINDOW_COLUMNS,
    Cascade,
)
from tprnet_jax.method.topology import CENTRELINES, FIRST_POINTS
from tprnet_jax.models.unet import UNet
from tprnet_jax.runtime import model_file
from tprnet_jax.runtime.errors import UserError


class Choice(NamedTuple):
    """One of several values.

    Attributes:
        default: The one unless another is set.
        among: All of them.
    """

    default: Any
    among: tuple


class Number(NamedTuple):
    """A number between two bounds, which it may equal.

    Attributes:
        default: The one unless another is set.
        low: Smallest.
        high: Largest; infinite for any finite number.
    """

    default: float
    low: float = 0
    high: float = math.inf


_SEED = Number(0, 0, 2**31 - 1)
_FOLDS = (1, 2)
_DATA = {
    "name": Choice("arcade", ("arcade", "phantom", "folder")),
    "source": "",  # Has syntax/ (arcade; empty: download it) or images/ and masks/ (folder).
    "dir": "",  # Where prepared data sets are kept; empty means TFDS's own folder.
    # Training images kept out of training, to choose checkpoints and settings on; 0 is none.
    "holdout": Number(0),
    "holdout_seed": _SEED,  # Of their choice.
    "phantom": {
        "size": 256,  # Side, pixels.
        "train": 200,  # Number of training phantoms.
        "validation": 40,  # Number of validation phantoms.
        "seed": 0,  # Of all that is drawn.
    },
    "folder": {
        "splits": "",  # JSON file of the names of each split; empty means folds.
        "folds": Number(5, 2),  # Parts that a permutation of the images is cut into.
        "fold": Number(0),  # The part to validate on; the others train.
        "seed": _SEED,  # Of the permutation.
    },
}
_MODEL = {
    "branches": BRANCHES,  # Table II: leave out "focal", or "local" and "focal".
    "global_channels": (32, 64, 128, 256, 512, 512, 512, 512),  # A stage each.
    "local_channels": (32, 64, 128, 256, 512, 512, 512),
    "focal_channels": (32, 64, 128, 256),
    "global_fold": Choice(1, _FOLDS),  # Side of the squares of pixels that become channels: 1, or 2
    "local_fold": Choice(1, _FOLDS),  # for networks at half the resolution, with logits at the
    "focal_fold": Choice(1, _FOLDS),  # image's own.
    "guided": False,  # Local and Focal also see the probability of the stages before.
    "window": Number(448, 1),  # Side a of the local window, pixels.
    "patch": Number(64, 1),  # Side b of a focal patch, pixels.
    "pixels_per_patch": Number(64, 1),  # Centreline pixels to one patch.
    "max_patches": Number(64, 1),  # Most patches an image; a true ARCADE centreline needs 28.
    "chunk": Number(32, 1),  # Patches that FocalNet takes at once.
    # Column of the window's centre: that of the rectangle's, or "half_width" (released code).
    "window_column": Choice("midpoint", WINDOW_COLUMNS),
    "centreline": Choice("skeletonize", CENTRELINES),  # Or "close_and_thin" (released code).
    "centreline_region": Choice("window", CENTRELINE_REGIONS),  # Or "image" (released code).
    # The farthest from the "centroid", or "random", with seed 1 (released code).
    "first_point": Choice("centroid", FIRST_POINTS),
    # Or "location_first", "sequential", "canvas_mean"; see `cascade.Cascade`.
    "refinement": Choice("topology_first", REFINEMENTS),
    "standardise": False,  # Each image to mean 0 and standard deviation 1.
    "dtype": Choice("float32", ("float32", "bfloat16")),  # Of the networks' computation.
}
_OPTIM = {
    "name": Choice("sgd", ("sgd", "adamw", "muon")),  # "sgd" is with Nesterov's momentum.
    "learning_rate": Number(0.01),
    "momentum": Number(0.99, 0, 1),  # sgd only.
    "weight_decay": Number(3e-5),
    "schedule": Choice("poly", ("poly", "cosine")),  # By epoch, exponent 0.9; or by step.
    "warmup": Number(0.0),  # Epochs of linear warm-up; cosine only.
    "clip_norm": Number(12.0),  # Largest norm of the gradient of all branches.
}
_TRAIN = {
    "epochs": Number(100, 1),
    "start_from": "",  # A workdir or model file whose weights to begin with, or "shipped".
    "batch": Number(1, 1),
    "ema": Number(0.0, 0, 1),  # Decay of the weights' average, which is evaluated; 0 for none.
    "image_dice": False,  # The loss takes the Dice of each image, not that of the whole batch.
    "focal_from_epoch": Number(1),  # FocalNet sits out the epochs before.
    "evaluate_every": Number(1, 1),  # Epochs between two evaluations, each with a checkpoint.
    "save_every": Number(500, 1),  # Steps between two checkpoints besides.
    "skip_limit": Number(10, 1),  # Steps in a row without finite loss or gradient that end it.
    "tensorboard": False,  # Write TensorBoard's files besides; needs tensorboardX.
    "refinement": Choice("", ("", *REFINEMENTS)),  # In training; empty means that of the model.
    "remat": (),  # Branches that compute activations again for the gradient, to save memory.
    "patch_gradient": True,  # False: the patches' own loss counts, but without a gradient.
}
_EVAL = {
    "split": Choice("validation", ("train", "validation", "test", "holdout")),
    "checkpoint": Choice("best", ("best", "latest")),  # The best by final Dice.
    "batch": Number(4, 1),
    "figures": Number(8),  # Overlays: best, worst and evenly between.
    "masks": False,  # Write the mask of every image.
}
_PREDICT = {
    "input": "",  # An angiogram, or a folder of angiograms and folders.
    "output": "",  # The folder to write to.
    "outputs": ("mask", "overlay"),  # Of each angiogram, among `predict.OUTPUTS`.
    "overwrite": False,  # Segment again what has all its outputs.
    # By how much images are enlarged for the networks; 0 brings the longer side to that of the
    # training, so that vessels have the width that the networks know.
    "scale": Number(0.0, 0, 16),
    "batch": Number(1, 1),  # Images of one size at a time; more are faster on a GPU.
}
_BENCHMARK = {
    "batches": (1, 2, 4),  # Sizes of batch; stages and peer are timed with the last.
    "sides": (),  # Sides of square images, pixels, to time besides, one at a time.
    "repeats": Number(3, 1),  # Timings that each median is of.
    "peer": False,  # Time the released system too, in PyTorch.
}
FIELDS = {
    "seed": _SEED,  # Of parameters, order of samples and augmentation.
    "data": _DATA,
    # Nothing, unless a probability p_... is set; `augment.Settings` says what each field means.
    "augment": augment.Settings()._asdict(),
    # Where centrelines are found and sampled: "host", or "device" to the same end.
    "topology": Choice("host", TOPOLOGIES),
    "model": _MODEL,
    "optim": _OPTIM,
    "train": _TRAIN,
    "eval": _EVAL,
    "predict": _PREDICT,
    "benchmark": _BENCHMARK,
    "convert": {
        "input": "",  # A PyTorch checkpoint to import into the workdir.
        "output": "",  # Or the file to export the workdir's checkpoint to; or NAME.npz, a model.
    },
    "export": {
        "output": "",  # The file to write the cascade to, for programs without this package.
    },
    "ablate": {
        "seeds": (0,),  # Each ablation is trained with each of them.
    },
}


def default() -> ConfigDict:
    """The paper's TPRNet on ARCADE; locked, so that an unknown field is an error."""
    return ConfigDict(_defaults(FIELDS)).lock()


def _defaults(fields: dict) -> dict:
    return {
        name: _defaults(field) if isinstance(field, dict) else getattr(field, "default", field)
        for name, field in fields.items()
    }


def get_config(path: str | Path) -> ConfigDict:
    """The configuration in the config.json of a run, or in a model file, for `--config=` either.

    Raises:
        UserError: The file is neither, or has fields that this version does not know.
    """
    path, config = Path(path), default()
    try:
        is_model = path.suffix == model_file.SUFFIX
        about = model_file.read_about(path) if is_model else json.loads(path.read_text())
        config.update(about["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--config={path} is not the config.json of a run of this version ("
            f"{' '.join(str(error).split())}); give one, or a file such as configs/quickstart.py"
        ) from error
    return config


def compact(config: ConfigDict) -> None:
    """Makes the networks those of configs/tprnet_compact.py, and trains them accordingly.

    They fold squares of 2 x 2 pixels into channels, so that they are wide at half the resolution,
    and LocalNet and FocalNet see what the stages before found. They train on a CPU.
    """
    config.model.global_channels = (32, 64, 96, 192, 192, 192, 192)
    config.model.local_channels = (16, 32, 64, 128, 128, 128)
    config.model.focal_channels = (32, 64, 96)
    config.model.global_fold = config.model.local_fold = config.model.focal_fold = 2
    config.model.guided = True
    config.model.refinement = "location_first"
    config.model.chunk = 16
    config.optim.name = "muon"
    config.optim.learning_rate = 4e-3
    config.optim.weight_decay = 1e-2
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.5
    config.train.ema = 0.999


def check(config: ConfigDict) -> None:
    """Checks, before any data is read, what needs no data.

    Raises:
        UserError: A field has a value that cannot be used.
    """
    _check_fields(FIELDS, config, "config")
    if config.train.ema == 1:
        raise UserError("config.train.ema is 1, so the average never changes; make it less, 0.999")
    if config.data.name == "folder" and not config.data.source:
        raise UserError(
            "config.data.source is empty; give the folder that contains images/ and masks/"
        )
    if config.data.source and config.data.name == "phantom":
        raise UserError(
            f"config.data.source is {config.data.source!r}, but config.data.name is "
            f"{config.data.name!r}, which has none; set config.data.name to 'arcade' or "
            "'folder', or leave the source out"
        )
    if config.eval.split == "holdout" and not config.data.holdout:
        raise UserError(
            "config.eval.split is 'holdout', but config.data.holdout is 0; set it as in the "
            "training, or choose another split"
        )
    _check_augmentation(config.augment)
    _check_branches(config.model, config.train.remat)
    if config.topology == "device":
        check_on_device(
            config.model, "config.topology is 'device'", "set config.topology to 'host'"
        )
    if "focal" in config.model.branches and config.train.focal_from_epoch >= config.train.epochs:
        raise UserError(
            f"config.train.focal_from_epoch is {config.train.focal_from_epoch}, but there are only "
            f"{config.train.epochs} epochs, so FocalNet would never train; make it smaller"
        )


def _check_fields(fields: dict, config: ConfigDict, path: str) -> None:
    for name, field in fields.items():
        value, where = config[name], f"{path}.{name}"
        if isinstance(field, dict):
            _check_fields(field, value, where)
        elif isinstance(field, Choice) and value not in field.among:
            named = ", ".join(map(str, field.among))
            raise UserError(f"{where} is {value!r}; choose one of {named}")
        elif isinstance(field, Number) and not _is_within(value, field.low, field.high):
            raise UserError(f"{where} is {value}; {_must_be(field.low, field.high)}")


def _is_within(value: float, low: float, high: float) -> bool:
    return low <= value <= high and math.isfinite(value)


def _must_be(low: float, high: float) -> str:
    upper = "finite" if high == math.inf else f"at most {high}"
    return f"it must be at least {low} and {upper}"


def _check_augmentation(fields: ConfigDict) -> None:
    for field, (low, high) in augment.BOUNDS.items():
        value = fields[field]
        given = value if isinstance(value, tuple) else (value,)
        if not all(_is_within(v, low, high) for v in given) or given[0] > given[-1]:
            raise UserError(
                f"config.augment.{field} is {value}; {_must_be(low, high)}"
                + (", and the smaller bound first" if isinstance(value, tuple) else "")
            )


def check_on_device(model: ConfigDict, wanted: str, mend: str) -> None:
    """Checks that the topology stage of a model can be on the device.

    Args:
        model: `config.model`.
        wanted: What puts it there, as a clause.
        mend: What to do where it cannot, as a clause.

    Raises:
        UserError: It cannot.
    """
    for field, only in (("centreline", "skeletonize"), ("first_point", "centroid")):
        if (given := model[field]) != only:
            raise UserError(
                f"{wanted}, which has no model.{field}={given!r}, only {only!r}; {mend}"
            )


def _check_branches(model: ConfigDict, remat: tuple[str, ...]) -> None:
    branches = tuple(model.branches)
    if not branches or branches != BRANCHES[: len(branches)]:
        raise UserError(
            f"config.model.branches is {branches}; choose ('global',), ('global', 'local') or "
            f"{BRANCHES}"
        )
    if not set(remat) <= set(branches):
        raise UserError(f"config.train.remat is {remat}; choose among {branches}")
    for branch in branches:
        channels = tuple(model[f"{branch}_channels"])
        if not channels or not all(isinstance(c, int) and c > 0 for c in channels):
            raise UserError(
                f"config.model.{branch}_channels is {channels}; give a positive whole number for "
                "each stage, at least one"
            )


def cascade(config: ConfigDict) -> Cascade:
    """The networks that a configuration describes; `check` it before."""
    model = config.model
    nets = {
        name: UNet(tuple(model[f"{name}_channels"]), fold=model[f"{name}_fold"], dtype=model.dtype)
        for name in model.branches
    }
    return Cascade(
        *(nets.get(name) for name in BRANCHES),
        window=model.window,
        patch=model.patch,
        pixels_per_patch=model.pixels_per_patch,
        max_patches=model.max_patches,
        chunk=model.chunk,
        refinement=model.refinement,
        window_column=model.window_column,
        centreline_region=model.centreline_region,
        centreline=model.centreline,
        first_point=model.first_point,
        standardise=model.standardise,
        guided=model.guided,
        topology=config.topology,
    )
