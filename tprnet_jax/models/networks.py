"""The networks by the names that configurations use."""

import functools
from collections.abc import Callable

import flax.linen as nn

from tprnet_jax.models.coanet import CoANet
from tprnet_jax.models.dscnet import DSCNet
from tprnet_jax.models.lkm_unet import LKMUNet
from tprnet_jax.models.nnunet import NNUNet
from tprnet_jax.models.resunet import ResUNet
from tprnet_jax.models.umamba import UMamba
from tprnet_jax.models.unet import UNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "resunet": ResUNet,
    "coanet": CoANet,
    "coanet_main": functools.partial(CoANet, fourth_strip="main"),
    "dscnet": DSCNet,
    "dscnet_pro": functools.partial(DSCNet, variant="pro"),
    "nnunet": NNUNet,
    "nnunet_resenc": functools.partial(NNUNet, variant="resenc"),
    "umamba_bot": UMamba,
    "umamba_enc": functools.partial(UMamba, variant="enc"),
    "lkm_unet": LKMUNet,
    # With windows that divide images of 512 x 512, as released or as published.
    "lkm_unet_windows": functools.partial(LKMUNet, window_factor=4),
    "lkm_unet_contiguous": functools.partial(LKMUNet, window_factor=4, window="contiguous"),
}


def has_auxiliary(name: str) -> bool:
    """Whether a network has outputs that only training uses, such as deep supervision."""
    network = NETWORKS[name]
    return hasattr(getattr(network, "func", network), "auxiliary")
