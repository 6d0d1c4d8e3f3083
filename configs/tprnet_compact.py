"""The compact TPRNet on ARCADE."""

from ml_collections import ConfigDict

from tprnet_jax.config import default


def get_config(argument: str = "") -> ConfigDict:
    config = default()
    config.model.global_channels = (24, 48, 96, 160, 160, 160, 160)
    config.model.local_channels = (24, 48, 96, 160, 160, 160)
    config.model.focal_channels = (16, 32, 64, 64)
    config.model.global_fold = 2
    config.model.local_fold = 2
    config.model.guided = True
    config.model.chunk = 16
    config.optim.name = "adamw"
    config.optim.learning_rate = 2e-3
    config.optim.weight_decay = 1e-2
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.5
    config.train.epochs = 8
    config.train.batch = 4
    config.train.ema = 0.999
    config.data.holdout = 100
    config.train.evaluate_every = 2
    return config
