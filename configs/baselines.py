"""The networks that the paper compares with TPRNet, on one protocol.

    python -m tprnet_jax.main --config=configs/baselines.py:NAME
    python -m tprnet_jax.main --mode=compare --config.compare.runs=runs/tprnet,runs/baselines_NAME

NAME is one of coanet, coanet_main, dscnet, dscnet_pro, lkm_unet, lkm_unet_windows, nnunet,
nnunet_resenc, resunet, umamba_bot, umamba_enc; what each is, and where its official code and its
paper differ, is said in its file in tprnet_jax/models. Data, masks, loss, optimiser, schedule,
augmentation and number of epochs are those of configs/tprnet.py.

Further words, joined by commas as in `baselines.py:coanet,small`:

    small       fewer channels, and all else as in configs/tprnet_compact.py: for CPUs
    official    the recipe of the official code, as far as there are fields for it: see `OFFICIAL`
    auxiliary   with the network's auxiliary outputs and their loss (deep supervision, connectivity)
    cascade     in GlobalNet's place, with TPRNet's LocalNet and FocalNet after it

Not yet trained to the end.
"""

from ml_collections import ConfigDict

from tprnet_jax.config import compact, default
from tprnet_jax.models.networks import NETWORKS, SMALL, has_auxiliary
from tprnet_jax.runtime.errors import UserError

# The official recipes. None of them has a field here for its crops (ResUNet and DSCNet of 224
# pixels, CoANet of 512 after a change of size, nnU-Net centred on vessels in a third of a batch),
# nor CoANet for a tenth of the learning rate in its backbone, nor DSCNet and nnU-Net for the
# standard deviations of the whole data set and of each channel.
_NNUNET = {
    "optim": {"name": "sgd", "learning_rate": 0.01, "momentum": 0.99, "weight_decay": 3e-5},
    "train": {"batch": 12, "epochs": 1000},
    "augment": {
        "p_rotation": 0.2,
        "rotation": (-180.0, 180.0),
        "p_scaling": 0.2,
        "scaling": (0.7, 1.4),
        "p_noise": 0.1,
        "p_blur": 0.2,
        "p_brightness": 0.15,
        "p_contrast": 0.15,
        "p_low_resolution": 0.25,
        "p_gamma": 0.3,
        "p_mirror": 0.5,
    },
    "model": {"standardise": True},
}
