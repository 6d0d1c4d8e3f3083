"""TPRNet on ARCADE.

The paper's sizes and the released training (SGD, 100 epochs, batch 1), for a GPU or TPU:

    python -m tprnet_jax.main --config=configs/tprnet.py

Not yet trained to the end. On two cores of an AMD EPYC a step took 2.8 seconds and 5.7 GiB (commit
85f93a5); configs/tprnet_compact.py is for machines without a GPU.

The argument `augmented` turns on nnU-Net's augmentation, and shear and elastic deformation; without
it there is none. The arguments `global` and `global_local` leave out branches (Table II of the
paper). Words are joined by commas, as in `tprnet.py:augmented,global`.
"""

from ml_collections import ConfigDict

from tprnet_jax.config import default
from tprnet_jax.method.augment import EVERYTHING
from tprnet_jax.method.cascade import BRANCHES
from tprnet_jax.runtime.errors import UserError

ABLATIONS = {"global": BRANCHES[:1], "global_local": BRANCHES[:2]}


def get_config(argument: str = "") -> ConfigDict:
    config = default()
    for word in filter(None, argument.split(",")):
        if word == "augmented":
            config.augment.update(EVERYTHING._asdict())
        elif word in ABLATIONS:
            config.model.branches = ABLATIONS[word]
        else:
            raise UserError(
                f"configs/tprnet.py has no argument {word!r}; choose from "
                f"augmented, {', '.join(ABLATIONS)}, joined by commas"
            )
    return config
