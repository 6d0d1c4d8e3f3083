"""Configurations: the default one, what is wrong with one, and the networks that one describes.

Every field is in `fields`; files in `configs/` change some of them.
"""

import json
import math
from pathlib import Path

import flax.linen as nn
from ml_collections import ConfigDict

from tprnet_jax.fields import FIELDS, Choice, Number
from tprnet_jax.method import augment
from tprnet_jax.method.cascade import BRANCHES, Cascade
from tprnet_jax.models import networks
from tprnet_jax.models.networks import NETWORKS
from tprnet_jax.models.unet import UNet
from tprnet_jax.runtime import model_file
from tprnet_jax.runtime.errors import UserError


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
    and LocalNet and FocalNet see what the stages before found. `train_on_cpu` and `train_on_gpu`
    say how long they train.
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


def train_on_cpu(config: ConfigDict) -> None:
    """Sets a training of some hours on a CPU: 40 epochs, augmented little and late.

    In short trainings augmentation costs more than it gives. There is no mirroring, which in one of
    five epochs cost 0.010 Dice (95 % interval -0.0003 to 0.0206).
    """
    config.train.epochs, config.train.batch = 40, 4
    config.augment.ramp = 20
    config.augment.p_mirror = 0.0
    config.augment.p_rotation, config.augment.rotation = 0.3, (-20.0, 20.0)
    config.augment.p_scaling, config.augment.scaling = 0.3, (0.85, 1.2)
    config.augment.p_brightness = config.augment.p_contrast = config.augment.p_gamma = 0.3


def train_on_gpu(config: ConfigDict) -> None:
    """Sets a training of some minutes on a GPU: 100 epochs, augmented more than `train_on_cpu`'s.

    Steps of 16 images take little longer than of 8 there, and the topology stage need not wait for
    the host.
    """
    train_on_cpu(config)
    augment_more(config)
    config.train.epochs, config.train.batch = 100, 16
    config.model.dtype, config.model.chunk = "bfloat16", 64
    config.topology = "device"


def augment_more(config: ConfigDict) -> None:
    """Augments more, and more often, than `train_on_cpu`, which goes before; without mirroring."""
    config.augment.p_rotation, config.augment.rotation = 0.5, (-30.0, 30.0)
    config.augment.p_scaling, config.augment.scaling = 0.5, (0.7, 1.4)
    config.augment.p_shear = config.augment.p_elastic = 0.3
    config.augment.p_noise = config.augment.p_low_resolution = 0.15
    config.augment.p_blur, config.augment.p_inverted_gamma = 0.2, 0.1


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
    _check_global_net(config)
    if config.topology == "device":
        check_on_device(
            config.model, "config.topology is 'device'", "set config.topology to 'host'"
        )
    if "focal" in config.model.branches and config.train.focal_from_epoch >= config.train.epochs:
        raise UserError(
            f"config.train.focal_from_epoch is {config.train.focal_from_epoch}, but there are only "
            f"{config.train.epochs} epochs, so FocalNet would never train; raise these or "
            "lower that"
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


def _are_counts(values: tuple) -> bool:
    return all(isinstance(value, int) and value > 0 for value in values)


def _check_augmentation(fields: ConfigDict) -> None:
    usual = augment.Settings()._asdict()
    for field, (low, high) in augment.BOUNDS.items():
        is_range = isinstance(usual[field], tuple)
        given = fields[field] if is_range else (fields[field],)
        shown = ",".join(map(str, given))
        if is_range and not (len(given) == 2 and all(isinstance(v, int | float) for v in given)):
            example = ",".join(map(str, usual[field]))
            raise UserError(
                f"config.augment.{field} is {shown}; give two numbers, such as "
                f"--config.augment.{field}={example}"
            )
        if not all(_is_within(v, low, high) for v in given) or given[0] > given[-1]:
            raise UserError(
                f"config.augment.{field} is {shown}; {_must_be(low, high)}"
                + (", and the smaller bound first" if is_range else "")
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
        if not channels or not _are_counts(channels):
            raise UserError(
                f"config.model.{branch}_channels is {channels}; give a positive whole number for "
                "each stage, at least one"
            )


def _check_global_net(config: ConfigDict) -> None:
    model = config.model
    given = {
        "config.model.global_fold": model.global_fold > 1,
        "config.train.remat": "global" in config.train.remat,
    }
    for field in (field for field, is_given in given.items() if is_given):
        if model.global_net != "unet":
            raise UserError(
                f"{field} is for GlobalNet's own network, but config.model.global_net is "
                f"{model.global_net!r}; leave it out, or set the network to 'unet'"
            )
    size = tuple(model.global_size)
    if len(size) != 2 or not _are_counts(size):
        raise UserError(f"config.model.global_size is {size}; give height and width in pixels")
    if model.global_auxiliary and not networks.has_auxiliary(model.global_net):
        having = ", ".join(filter(networks.has_auxiliary, NETWORKS))
        raise UserError(
            f"config.model.global_auxiliary is True, but {model.global_net} has no auxiliary "
            f"outputs, only {having}; set it to False"
        )


def cascade(config: ConfigDict) -> Cascade:
    """The networks that a configuration describes; `check` it before."""
    model = config.model
    nets = {"global": _global_net(model)} | {
        name: UNet(tuple(model[f"{name}_channels"]), fold=model[f"{name}_fold"], dtype=model.dtype)
        for name in model.branches[1:]
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


def _global_net(model: ConfigDict) -> nn.Module:
    fields = {"dtype": model.dtype}
    channels = tuple(model.global_channels)
    if model.global_net == "unet":
        return UNet(channels, fold=model.global_fold, **fields)
    if channels != FIELDS["model"]["global_channels"]:
        fields["channels"] = channels
    if model.global_auxiliary:
        fields["auxiliary"] = True
    if model.global_net == "umamba_enc":
        fields["size"] = tuple(model.global_size)
    return NETWORKS[model.global_net](**fields)
