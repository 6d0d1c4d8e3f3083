"""The compact TPRNet on ARCADE: trains and segments on a CPU.

The networks fold squares of 2 x 2 pixels into channels, so that they are wide at half the
resolution, while their logits keep the image's. LocalNet and FocalNet also see what the stages
before found. What is evaluated is a moving average of the weights, and the best checkpoint is
chosen on 100 training images that are held out.

    python -m tprnet_jax.main --config=configs/tprnet_compact.py

trains for 60 epochs, which has not been done to the end yet.

    python -m tprnet_jax.main --config=configs/tprnet_compact.py:short

trains a narrower GlobalNet, which learns as much in a short time, for five epochs on all training
images, without a hold-out: 60 CPU minutes on two cores of an Intel Xeon (Sapphire Rapids) that did
other work for a third of the time (seed 0, commit 9e0212d). Mean over the 200 images of the
official validation split:

                    Dice     IoU  Precision  Recall   ASD
    global        0.8082  0.6859     0.8406  0.7888  6.06
    global_local  0.8121  0.6916     0.8497  0.7885  6.11
    final         0.8135  0.6936     0.8462  0.7941  6.10

Over images, LocalNet adds 0.0039 Dice (95 % interval 0.0028 to 0.0051), FocalNet 0.0013 (0.0005 to
0.0022).
"""

from ml_collections import ConfigDict

from tprnet_jax.config import compact, default
from tprnet_jax.method.augment import Settings
from tprnet_jax.runtime.errors import UserError


def get_config(argument: str = "") -> ConfigDict:
    config = default()
    compact(config)
    config.train.epochs = 60
    config.train.batch = 4
    config.train.evaluate_every = 2
    config.data.holdout = 100
    # Little, and late: in short trainings augmentation costs more than it gives.
    config.augment.ramp = 20
    config.augment.p_rotation, config.augment.rotation = 0.3, (-20.0, 20.0)
    config.augment.p_scaling, config.augment.scaling = 0.3, (0.85, 1.2)
    config.augment.p_brightness = config.augment.p_contrast = config.augment.p_gamma = 0.3
    for word in filter(None, argument.split(",")):
        if word != "short":
            raise UserError(f"configs/tprnet_compact.py has no argument {word!r}; choose short")
        config.model.global_channels = (16, 32, 64, 128, 128, 128, 128)
        config.train.epochs = 5
        config.train.evaluate_every = 5
        config.data.holdout = 0
        config.augment.update(Settings()._asdict())
    return config
