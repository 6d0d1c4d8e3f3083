"""The networks by the names that configurations use."""

from collections.abc import Callable

import flax.linen as nn

from tprnet_jax.models.unet import UNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
}


def has_auxiliary(name: str) -> bool:
    """Whether a network has outputs that only training uses, such as deep supervision."""
    return hasattr(NETWORKS[name](), "auxiliary_loss")
