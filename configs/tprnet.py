"""TPRNet on ARCADE."""

from ml_collections import ConfigDict

from tprnet_jax.cascade import BRANCHES
from tprnet_jax.config import default
from tprnet_jax.errors import UserError

ABLATIONS = {"global": BRANCHES[:1], "global_local": BRANCHES[:2]}


def get_config(argument: str = "") -> ConfigDict:
    config = default()
    for word in filter(None, argument.split(",")):
        if word == "small":
            _narrow(config)
        elif word in ABLATIONS:
            config.model.branches = ABLATIONS[word]
        else:
            raise UserError(
                f"configs/tprnet.py has no argument {word!r}; choose from small, "
                f"{', '.join(ABLATIONS)}, joined by commas"
            )
    return config


def _narrow(config: ConfigDict) -> None:
    config.model.global_channels = (8, 16, 32, 64, 128, 128, 128, 128)
    config.model.local_channels = (8, 16, 32, 64, 128, 128, 128)
    config.model.focal_channels = (8, 16, 32, 64)
    config.model.chunk = 8
    config.data.mirror = True
    config.optim.name = "adamw"
    config.optim.learning_rate = 3e-3
    config.optim.weight_decay = 1e-2
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.2
    config.train.epochs = 7
    config.train.batch = 2
    config.train.evaluate_every = 2
