"""The compact TPRNet on ARCADE: trains and segments on a CPU.

The networks fold squares of 2 x 2 pixels into channels, so that they are wide at half the
resolution, while their logits keep the image's. LocalNet and FocalNet also see what the stages
before found. What is evaluated is a moving average of the weights, and the best checkpoint is
chosen on 100 training images that are held out.

    python -m tprnet_jax.main --config=configs/tprnet_compact.py:short

trains for five epochs on all training images, without a hold-out.
"""

from ml_collections import ConfigDict

from tprnet_jax.config import default
from tprnet_jax.errors import UserError


def get_config(argument: str = "") -> ConfigDict:
    config = default()
    config.model.global_channels = (16, 32, 64, 128, 128, 128, 128)
    config.model.local_channels = (16, 32, 64, 128, 128, 128)
    config.model.focal_channels = (32, 64, 96)
    config.model.global_fold = 2
    config.model.local_fold = 2
    config.model.focal_fold = 2
    config.model.guided = True
    config.model.refinement = "location_first"
    config.model.chunk = 16
    config.optim.name = "muon"
    config.optim.learning_rate = 2e-3
    config.optim.weight_decay = 1e-2
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.5
    config.train.epochs = 40
    config.train.batch = 4
    config.train.ema = 0.999
    config.train.evaluate_every = 2
    config.data.holdout = 100
    for word in filter(None, argument.split(",")):
        if word != "short":
            raise UserError(f"configs/tprnet_compact.py has no argument {word!r}; choose short")
        config.train.epochs = 5
        config.train.evaluate_every = 5
        config.data.holdout = 0
    return config
