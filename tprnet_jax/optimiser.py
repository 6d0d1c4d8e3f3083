"""Optimisers and learning-rate schedules, by the names that configurations use."""

from collections.abc import Callable

import optax
from ml_collections import ConfigDict

from tprnet_jax.errors import UserError


def direction(config: ConfigDict) -> optax.GradientTransformation:
    """What turns gradients into a direction of descent; the learning rate is applied after it.

    Args:
        config: `config.optim`, its `name` "sgd" or "adamw".
    """
    decay = optax.add_decayed_weights(config.weight_decay)
    if config.name == "sgd":
        # PyTorch's order: the decay enters the momentum.
        return optax.chain(decay, optax.trace(config.momentum, nesterov=True))
    return optax.chain(optax.scale_by_adam(), decay)


def schedule(config: ConfigDict, epochs: int, steps_per_epoch: int) -> Callable:
    """Learning rate by step.

    "poly": `learning_rate * (1 - epoch / epochs) ** 0.9`, constant within an epoch, as nnU-Net
    and the released TPRNet have it. "cosine": a linear warm-up of `warmup` epochs from 0, then
    half a cosine to 0, both by step.

    Args:
        config: `config.optim`, its `schedule` "poly" or "cosine".
        epochs: Length of the training in epochs.
        steps_per_epoch: Steps an epoch has.

    Raises:
        UserError: The warm-up leaves no step after it.
    """
    if config.schedule == "poly":
        by_epoch = optax.polynomial_schedule(config.learning_rate, 0.0, 0.9, epochs)
        return lambda step: by_epoch(step // steps_per_epoch)
    warmup, steps = round(config.warmup * steps_per_epoch), epochs * steps_per_epoch
    if warmup >= steps:
        raise UserError(
            f"config.optim.warmup is {config.warmup}, but there are only {epochs} epochs; make it "
            "smaller"
        )
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, steps)
