"""TPRNet on ARCADE.

The paper's sizes and the released training (SGD, 100 epochs, batch 1), for a GPU or TPU:

    python -m tprnet_jax.main --config=configs/tprnet.py

Not yet trained to the end. On two cores of an AMD EPYC a step took 2.8 seconds and 5.7 GiB (commit
85f93a5).

Narrow networks, for machines without a GPU:

    python -m tprnet_jax.main --config=configs/tprnet.py:small

Two cores of an AMD EPYC, seed 0, commit eb40c3b: 75 minutes beside other work. Mean
over the 200 images of the official validation split, on which the best checkpoint was chosen too:

                    Dice     IoU  Precision  Recall   ASD
    global        0.7614  0.6237     0.7791  0.7576  8.86
    global_local  0.7765  0.6440     0.8046  0.7627  8.08
    final         0.7744  0.6411     0.7970  0.7655  8.32

The argument `augmented` turns on nnU-Net's augmentation, and shear and elastic deformation; without
it there is none (`small` mirrors). The arguments `global` and `global_local` leave out branches
(Table II of the paper). Words are joined by commas, as in `tprnet.py:small,global`.
"""

from ml_collections import ConfigDict

from tprnet_jax.config import default, narrow
from tprnet_jax.method.augment import EVERYTHING
from tprnet_jax.method.cascade import BRANCHES
from tprnet_jax.runtime.errors import UserError

ABLATIONS = {"global": BRANCHES[:1], "global_local": BRANCHES[:2]}


def get_config(argument: str = "") -> ConfigDict:
    config = default()
    for word in filter(None, argument.split(",")):
        if word == "small":
            _small(config)
        elif word == "augmented":
            config.augment.update(EVERYTHING._asdict())
        elif word in ABLATIONS:
            config.model.branches = ABLATIONS[word]
        else:
            raise UserError(
                f"configs/tprnet.py has no argument {word!r}; choose from small, "
                f"augmented, {', '.join(ABLATIONS)}, joined by commas"
            )
    return config


def _small(config: ConfigDict) -> None:
    narrow(config)
    config.augment.p_mirror = 0.5
    config.train.epochs = 7
    config.train.batch = 2
    config.train.evaluate_every = 2
