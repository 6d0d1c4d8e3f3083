"""Every field a configuration has, with its default; files in `configs/` change some of them."""

import json
import math
from pathlib import Path

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
from tprnet_jax.runtime.errors import UserError

FOLDS = (1, 2)
CHOICES = {
    "data.name": ("arcade", "phantom", "folder"),
    "model.global_fold": FOLDS,
    "model.local_fold": FOLDS,
    "model.focal_fold": FOLDS,
    "model.window_column": WINDOW_COLUMNS,
    "model.centreline": CENTRELINES,
    "model.centreline_region": CENTRELINE_REGIONS,
    "model.first_point": FIRST_POINTS,
    "model.refinement": REFINEMENTS,
    "model.dtype": ("float32", "bfloat16"),
    "topology": TOPOLOGIES,
    "optim.name": ("sgd", "adamw", "muon"),
    "optim.schedule": ("poly", "cosine"),
    "train.refinement": ("", *REFINEMENTS),
    "eval.split": ("train", "validation", "test", "holdout"),
    "eval.checkpoint": ("best", "latest"),
}
BOUNDS = {
    "seed": (0, 2**31 - 1),
    "data.holdout": (0, math.inf),
    "data.holdout_seed": (0, 2**31 - 1),
    "data.folder.folds": (2, math.inf),
    "data.folder.fold": (0, math.inf),
    "data.folder.seed": (0, 2**31 - 1),
    "model.window": (1, math.inf),
    "model.patch": (1, math.inf),
    "model.pixels_per_patch": (1, math.inf),
    "model.max_patches": (1, math.inf),
    "model.chunk": (1, math.inf),
    "optim.learning_rate": (0, math.inf),
    "optim.momentum": (0, 1),
    "optim.weight_decay": (0, math.inf),
    "optim.warmup": (0, math.inf),
    "optim.clip_norm": (0, math.inf),
    "train.epochs": (1, math.inf),
    "train.batch": (1, math.inf),
    "train.ema": (0, 1),
    "train.focal_from_epoch": (0, math.inf),
    "train.evaluate_every": (1, math.inf),
    "train.save_every": (1, math.inf),
    "train.skip_limit": (1, math.inf),
    "eval.batch": (1, math.inf),
    "eval.figures": (0, math.inf),
    "predict.batch": (1, math.inf),
    "benchmark.repeats": (1, math.inf),
}


def default() -> ConfigDict:
    """The paper's TPRNet on ARCADE; locked, so that an unknown field is an error."""
    config = ConfigDict()
    config.seed = 0  # Of parameters, order of samples and augmentation.

    config.data = _data()
    # Nothing, unless a probability p_... is set; `augment.Settings` says what each field means.
    config.augment = ConfigDict(augment.Settings()._asdict())

    # Where centrelines are found and sampled: "host", or "device" to the same end.
    config.topology = "host"
    config.model = _model()
    config.optim = optim = ConfigDict()
    optim.name = "sgd"  # "sgd" (Nesterov momentum), "adamw" or "muon".
    optim.learning_rate = 0.01
    optim.momentum = 0.99  # sgd only.
    optim.weight_decay = 3e-5
    optim.schedule = "poly"  # "poly" (by epoch, exponent 0.9) or "cosine" (by step).
    optim.warmup = 0.0  # Epochs of linear warm-up; cosine only.
    optim.clip_norm = 12.0  # Largest norm of the gradient of all branches.

    config.train = train = ConfigDict()
    train.epochs = 100
    train.batch = 1
    train.ema = 0.0  # Decay of the weights' moving average, which is evaluated; 0 for none.
    train.image_dice = False  # The loss takes the Dice of each image, not that of the whole batch.
    train.focal_from_epoch = 1  # FocalNet sits out the epochs before.
    train.evaluate_every = 1  # Epochs between two evaluations, each with a checkpoint.
    train.save_every = 500  # Steps between two checkpoints besides.
    train.skip_limit = 10  # Steps in a row without a finite loss and gradient that end the run.
    train.refinement = ""  # In training, validation included; empty means that of the model.
    train.remat = ()  # Branches that compute activations again for the gradient, to save memory.
    train.patch_gradient = True  # False: the patches' own loss counts, but without a gradient.

    config.eval = evaluate = ConfigDict()
    evaluate.split = "validation"  # "train", "validation", "test" or "holdout".
    evaluate.checkpoint = "best"  # "best" (final Dice) or "latest".
    evaluate.batch = 4
    evaluate.figures = 8  # Overlays: best, worst and evenly between.

    config.predict = predict = ConfigDict()
    predict.input = ""  # An image, or a folder of images.
    predict.output = ""  # The folder to write masks and overlays to.
    predict.batch = 1  # Images of one size at a time; more are faster on a GPU.

    config.benchmark = benchmark = ConfigDict()
    benchmark.batches = (1, 2, 4)  # Sizes of batch; stages and peer are timed with the last.
    benchmark.sides = ()  # Sides of square images, pixels, to time besides, one at a time.
    benchmark.repeats = 3  # Timings that each median is of.
    benchmark.peer = False  # Time the released system too, in PyTorch.

    config.convert = convert = ConfigDict()
    convert.input = ""  # A PyTorch checkpoint to import into the workdir.
    convert.output = ""  # Or the file to export the workdir's checkpoint to.

    config.ablate = ablate = ConfigDict()
    ablate.seeds = (0,)  # Each ablation is trained with each of them.
    return config.lock()


def get_config(path: str) -> ConfigDict:
    """The configuration in the config.json of a run, for `--config=RUN/config.json`.

    Raises:
        UserError: The file is none, or has fields that this version does not know.
    """
    config = default()
    try:
        config.update(json.loads(Path(path).read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--config={path} is not the config.json of a run of this version ("
            f"{' '.join(str(error).split())}); give one, or a file such as configs/quickstart.py"
        ) from error
    return config


def _data() -> ConfigDict:
    data = ConfigDict()
    data.name = "arcade"  # "arcade", "phantom" or "folder".
    data.source = ""  # Has syntax/ (arcade; empty: download it) or images/ and masks/ (folder).
    data.dir = ""  # Where prepared data sets are kept; empty means TFDS's own folder.
    # Training images kept out of training, to choose checkpoints and settings on; 0 is none.
    data.holdout = 0
    data.holdout_seed = 0  # Of their choice.
    data.phantom = ConfigDict()
    data.phantom.size = 256  # Side, pixels.
    data.phantom.train = 200  # Number of training phantoms.
    data.phantom.validation = 40  # Number of validation phantoms.
    data.phantom.seed = 0  # Of all that is drawn.
    data.folder = ConfigDict()
    data.folder.splits = ""  # JSON file of the names of each split; empty means folds.
    data.folder.folds = 5  # Parts that a permutation of the images is cut into.
    data.folder.fold = 0  # The part to validate on; the others train.
    data.folder.seed = 0  # Of the permutation.
    return data


def _model() -> ConfigDict:
    model = ConfigDict()
    model.branches = BRANCHES  # Table II: leave out "focal", or "local" and "focal".
    model.global_channels = (32, 64, 128, 256, 512, 512, 512, 512)  # A stage each.
    model.local_channels = (32, 64, 128, 256, 512, 512, 512)
    model.focal_channels = (32, 64, 128, 256)
    model.global_fold = 1  # Side of the squares of pixels that become channels: 1, or 2 for
    model.local_fold = 1  # networks at half the resolution, with logits at the image's own.
    model.focal_fold = 1
    model.guided = False  # Local and Focal also see the probability of the stages before.
    model.window = 448  # Side a of the local window, pixels.
    model.patch = 64  # Side b of a focal patch, pixels.
    model.pixels_per_patch = 64  # Centreline pixels to one patch.
    model.max_patches = 64  # Most patches an image; a true ARCADE centreline needs 28 at most.
    model.chunk = 32  # Patches that FocalNet takes at once.
    model.window_column = "midpoint"  # Of the rectangle; or "half_width" (released code).
    model.centreline = "skeletonize"  # Or "close_and_thin" (released code).
    model.centreline_region = "window"  # Or "image" (released code).
    model.first_point = "centroid"  # Farthest from it; or "random", with seed 1 (released code).
    model.refinement = "topology_first"  # Or "location_first", "sequential", "canvas_mean".
    model.standardise = False  # Each image to mean 0 and standard deviation 1.
    model.dtype = "float32"  # Of the networks' computation; or "bfloat16".
    return model


def compact(config: ConfigDict) -> None:
    """Makes the networks those of configs/tprnet_compact.py, and trains them accordingly.

    They fold squares of 2 x 2 pixels into channels, so that they are wide at half the resolution,
    and LocalNet and FocalNet see what the stages before found. They train on a CPU.
    """
    config.model.global_channels = (16, 32, 64, 128, 128, 128, 128)
    config.model.local_channels = (16, 32, 64, 128, 128, 128)
    config.model.focal_channels = (32, 64, 96)
    config.model.global_fold = config.model.local_fold = config.model.focal_fold = 2
    config.model.guided = True
    config.model.refinement = "location_first"
    config.model.chunk = 16
    config.optim.name = "muon"
    config.optim.learning_rate = 2e-3
    config.optim.weight_decay = 1e-2
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.5
    config.train.ema = 0.999


def _check(config: ConfigDict) -> None:
    """Checks, before any data is read, what needs no data."""
    for field, (low, high) in BOUNDS.items():
        value = _value(config, field)
        if not (low <= value <= high and math.isfinite(value)):
            upper = "finite" if high == math.inf else f"at most {high}"
            raise UserError(f"config.{field} is {value}; it must be at least {low} and {upper}")
    for field, choices in CHOICES.items():
        value = _value(config, field)
        if value not in choices:
            named = ", ".join(map(str, choices))
            raise UserError(f"config.{field} is {value!r}; choose one of {named}")
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
    _check_topology(config)
    if "focal" in config.model.branches and config.train.focal_from_epoch >= config.train.epochs:
        raise UserError(
            f"config.train.focal_from_epoch is {config.train.focal_from_epoch}, but there are only "
            f"{config.train.epochs} epochs, so FocalNet would never train; make it smaller"
        )


def _check_augmentation(fields: ConfigDict) -> None:
    for field, (low, high) in augment.BOUNDS.items():
        value = fields[field]
        given = value if isinstance(value, tuple) else (value,)
        if not all(low <= v <= high and math.isfinite(v) for v in given) or given[0] > given[-1]:
            upper = "finite" if high == math.inf else f"at most {high}"
            raise UserError(
                f"config.augment.{field} is {value}; it must be at least {low} and {upper}"
                + (", and the smaller bound first" if isinstance(value, tuple) else "")
            )


def _check_topology(config: ConfigDict) -> None:
    if config.topology == "host":
        return
    for field, only in (("centreline", "skeletonize"), ("first_point", "centroid")):
        if (given := config.model[field]) != only:
            raise UserError(
                f"config.topology is 'device', which has no model.{field}={given!r}, only "
                f"{only!r}; set config.topology to 'host'"
            )


def _value(config: ConfigDict, field: str):
    for name in field.split("."):
        config = config[name]
    return config


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
    """The networks that a configuration describes.

    Raises:
        UserError: A field of the configuration has a value that cannot be used.
    """
    _check(config)
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
