"""TPRNet learns on phantoms, on any CPU, without a download.

    python -m tprnet_jax.main --config=configs/quickstart.py

Two cores of an Intel Xeon (Sapphire Rapids), no GPU, seed 0: 2 min 46 s from start to table. Mean
over the 60 validation phantoms: Dice 0.9038 (global), 0.9278 (global_local), 0.9280 (final); final
IoU 0.8667, precision 0.9399, recall 0.9187, ASD 0.28 pixels.
"""

from ml_collections import ConfigDict

from tprnet_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.data.name = "phantom"
    config.augment.p_mirror = 0.5
    config.data.phantom.size = 128
    config.data.phantom.train = 300
    config.data.phantom.validation = 60
    config.model.global_channels = (8, 16, 32, 64, 64)
    config.model.local_channels = (8, 16, 32, 64, 64)
    config.model.focal_channels = (8, 16, 32)
    config.model.window = 112
    config.model.patch = 32
    config.model.pixels_per_patch = 32
    config.model.chunk = 16
    config.optim.name = "adamw"
    config.optim.learning_rate = 3e-3
    config.optim.weight_decay = 1e-2
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.2
    config.train.epochs = 10
    config.train.batch = 4
    config.train.evaluate_every = 2
    return config
