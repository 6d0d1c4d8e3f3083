"""The networks that the paper compares with TPRNet, on one protocol.

    python -m tprnet_jax.main --config=configs/baselines.py:NAME
    python -m tprnet_jax.main --mode=compare --config.compare.runs=runs/tprnet,runs/baselines_NAME

NAME is one of `SMALL` below; what each network is, and where its official code and its paper
differ, is said in its file in tprnet_jax/models. Data, masks, loss, optimiser, schedule,
augmentation and number of epochs are those of configs/tprnet.py.

Further words, joined by commas as in `baselines.py:coanet,small`:

    small       fewer channels, and as configs/tprnet_compact.py:short for five epochs: for CPUs
    official    the recipe of the official code, as far as there are fields for it, see `OFFICIAL`
    auxiliary   with the network's auxiliary outputs and their loss (deep supervision, connectivity)
    cascade     in GlobalNet's place, with TPRNet's LocalNet and FocalNet after it

None has been trained to the end yet. What the small ones learn in twenty CPU minutes each is in
configs/results/README.md.
"""

from ml_collections import ConfigDict

from tprnet_jax.config import compact, default
from tprnet_jax.models.networks import has_auxiliary
from tprnet_jax.runtime.errors import UserError

# Channels for CPUs.
SMALL = {
    "resunet": (8, 16, 32, 64),
    "coanet": (12, 24, 40, 64),
    "coanet_main": (12, 24, 40, 64),
    "dscnet": (8, 8, 16, 32),
    "dscnet_pro": (8, 8, 16, 32),
    "nnunet": (8, 16, 32, 64, 128, 128, 128, 128),
    "nnunet_resenc": (6, 12, 24, 48, 96, 96, 96, 96),
    "umamba_bot": (8, 16, 32, 64, 128, 128, 128, 128),
    "umamba_enc": (8, 16, 32, 64, 128, 128, 128, 128),
    "lkm_unet": (8, 16, 32, 64, 128, 128, 128, 128),
    "lkm_unet_windows": (8, 16, 32, 64, 128, 128, 128, 128),
    "lkm_unet_contiguous": (8, 16, 32, 64, 128, 128, 128, 128),
}
# Their optimiser, number of epochs, loss and augmentation. What has no field here is left out:
# crops (ResUNet's and DSCNet's of 224 pixels, CoANet's of 512 after a change of size), shifts, and
# predicting with mirror images. Besides, CoANet's momentum is plain, ours Nesterov's; its rate is
# ten times larger outside the backbone, and falls with each step, ours with each epoch; its images
# are normalised by ImageNet's mean and deviation. ResUNet's Dice is smoothed by 1, ours by 1e-5.
# DSCNet's images are standardised by the training set's mean and deviation, ours by their own.
_NNUNET = {
    # By deep supervision, main and auxiliary loss together are 63/32 of theirs.
    "optim": {
        "learning_rate": 0.01 * 32 / 63,
        "weight_decay": 3e-5 * 63 / 32,
        "clip_norm": 12 * 63 / 32,
    },
    "train": {"batch": 12, "epochs": 1000, "steps_per_epoch": 250},
    "model": {"standardise": True, "global_auxiliary": True},
    "augment": {
        "p_rotation": 0.2,
        "p_scaling": 0.2,
        "p_noise": 0.1,
        "p_blur": 0.1,
        "p_brightness": 0.15,
        "p_contrast": 0.15,
        "p_low_resolution": 0.125,
        "p_inverted_gamma": 0.1,
        "p_gamma": 0.3,
        "p_mirror": 0.5,
    },
}
_COANET = {
    "optim": {"momentum": 0.9, "weight_decay": 5e-4, "power": 3.0, "clip_norm": 1e9},
    "train": {"batch": 16, "epochs": 150},
    "model": {"global_auxiliary": True},
    "augment": {
        "p_rotation": 1.0,
        "p_scaling": 1.0,
        "scaling": (0.5, 2.0),
        "p_blur": 0.5,
        "blur": (0.1, 1.0),
        "p_mirror": 0.5,
    },
}
_DSCNET = {
    "optim": {
        "name": "adamw",
        "learning_rate": 1e-4,
        "second_momentum": 0.95,
        "weight_decay": 0.01,
        "schedule": "constant",
        "clip_norm": 1e9,
    },
    "train": {"batch": 1, "epochs": 400, "loss": "cross_entropy"},
    "model": {"standardise": True},
    # Of four samples in five, half are warped rigidly and half elastically, half get noise and
    # half are blurred.
    "augment": {
        "p_rotation": 0.4,
        "rotation": (-5.0, 5.0),
        "p_scaling": 0.4,
        "scaling": (0.85, 1.15),
        "p_elastic": 0.4,
        "p_noise": 0.4,
        "noise": (0.0, 1.0),
        "p_blur": 0.4,
        "blur": (0.6, 0.6),
    },
}
_RESUNET = {
    "optim": {
        "name": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "schedule": "tenths",
        "clip_norm": 1e9,
    },
    "train": {"batch": 16, "epochs": 100},
}
OFFICIAL = {
    "resunet": _RESUNET,
    "coanet": _COANET,
    "coanet_main": _COANET,
    "dscnet": _DSCNET,
    "dscnet_pro": _DSCNET,
    "nnunet": _NNUNET,
    "nnunet_resenc": _NNUNET,
    "umamba_bot": _NNUNET,
    "umamba_enc": _NNUNET,
    "lkm_unet": _NNUNET,
    "lkm_unet_windows": _NNUNET,
    "lkm_unet_contiguous": _NNUNET,
}


def get_config(argument: str = "") -> ConfigDict:
    name, *words = argument.split(",")
    if name not in SMALL:
        raise UserError(
            f"configs/baselines.py has no network {name!r}; give one of {', '.join(SMALL)}, as in "
            "configs/baselines.py:coanet"
        )
    config = default()
    config.model.global_net, config.model.branches = name, ("global",)
    for word in words:
        if word not in _WORDS:
            raise UserError(
                f"configs/baselines.py has no word {word!r}; choose from {', '.join(_WORDS)}"
            )
        _WORDS[word](config, name)
    return config


def _small(config: ConfigDict, name: str) -> None:
    compact(config)
    config.model.global_channels, config.model.global_fold = SMALL[name], 1
    config.train.batch, config.train.epochs, config.train.evaluate_every = 4, 5, 5


def _official(config: ConfigDict, name: str) -> None:
    for part, fields in OFFICIAL[name].items():
        config[part].update(fields)


def _auxiliary(config: ConfigDict, name: str) -> None:
    if not has_auxiliary(name):
        raise UserError(f"{name} has no auxiliary outputs; leave out the word auxiliary")
    config.model.global_auxiliary = True


def _cascade(config: ConfigDict, name: str) -> None:
    config.model.branches = default().model.branches


_WORDS = {
    "small": _small,
    "official": _official,
    "auxiliary": _auxiliary,
    "cascade": _cascade,
}
