"""Optimisers and learning-rate schedules, by the names that configurations use."""

from collections.abc import Callable

import jax
import optax
import optax.contrib
from ml_collections import ConfigDict

from tprnet_jax.errors import UserError


def direction(config: ConfigDict) -> optax.GradientTransformation:
    """What turns gradients into a direction of descent; the learning rate is applied after it.

    Args:
        config: `config.optim`, its `name` "sgd", "adamw" or "muon".
    """
    if config.name == "muon":
        return _muon(config.weight_decay)
    decay = optax.add_decayed_weights(config.weight_decay)
    if config.name == "sgd":
        # PyTorch's order: the decay enters the momentum.
        return optax.chain(decay, optax.trace(config.momentum, nesterov=True))
    return optax.chain(optax.scale_by_adam(), decay)


def _muon(decay: float) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the kernels, AdamW with Nesterov's momentum for all else.

    A kernel is a matrix of what it sees by its features; that of the logits is left to AdamW. Its
    steps are as long as AdamW's usually are (Liu et al. 2025), so that both take one learning rate.
    """

    def as_matrix(path, parameter):
        is_kernel = parameter.ndim == 4 and path[0].key != "head"
        return optax.contrib.MuonDimensionNumbers((0, 1, 2), (3,)) if is_kernel else None

    muon = optax.contrib.muon(
        1.0,
        weight_decay=decay,
        adam_weight_decay=decay,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map_with_path(as_matrix, params),
    )
    return optax.chain(muon, optax.scale(-1.0))  # It descends, and the step does too.


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
