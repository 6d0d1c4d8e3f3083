"""What a training step changes, and the update that ends it."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tprnet_jax.method import augment
from tprnet_jax.method.cascade import Cascade, init, param_shapes
from tprnet_jax.models.parts import PACE, STATISTICS
from tprnet_jax.runtime import devices


class Trainer(NamedTuple):
    """What a training step needs besides arrays; hashable, a static argument.

    Attributes:
        cascade: The networks.
        direction: Turns a branch's gradients into a direction of descent.
        schedule: Learning rate by step.
        clip_norm: Largest norm of the gradient of all branches together.
        ema: Decay of the moving average of the weights, a step; 0 for no average.
        image_dice: Whether the Dice loss is the mean over images, see `losses.soft_dice`.
        with_dice: Whether the loss has a Dice at all.
        patch_gradient: Whether the patches' own loss has a gradient, or only enters the total.
        mesh: Devices that share a batch, see `devices.mesh`; None for one.
        augmentation: What may happen to an image before a step.
        seed: Of the augmentation and of what dropout drops.
    """

    cascade: Cascade
    direction: optax.GradientTransformation
    schedule: Callable
    clip_norm: float
    ema: float = 0.0
    image_dice: bool = False
    with_dice: bool = True
    patch_gradient: bool = True
    mesh: jax.sharding.Mesh | None = None
    augmentation: augment.Settings = augment.Settings()
    seed: int = 0

    @property
    def shares(self) -> tuple[int, int]:
        """Devices that share a batch: of this process, and of all."""
        return (1, 1) if self.mesh is None else (len(self.mesh.local_devices), self.mesh.size)


class State(NamedTuple):
    """All that a step changes.

    Attributes:
        step: Steps taken, int32 scalar.
        params: Parameters by branch.
        optim: State of the optimiser by branch, so that a branch that sits out an epoch is not
            touched by weight decay or momentum.
        skipped: Steps in a row, up to the last one, that were not applied because the loss or
            the gradient was not finite, int32 scalar.
        average: Moving average of the parameters, which is what evaluation uses; None without.
    """

    step: jax.Array
    params: dict
    optim: dict
    skipped: jax.Array
    average: dict | None = None

    @property
    def evaluated(self) -> dict:
        """The parameters that evaluation uses."""
        return self.params if self.average is None else self.average

    @property
    def parts(self) -> dict[str, dict]:
        """The state as a checkpoint keeps it: "params", all that evaluation reads, and "optim"."""
        rest = {"step": self.step, "optim": self.optim, "skipped": self.skipped}
        if self.average is not None:
            rest["weights"] = self.params
        return {"params": self.evaluated, "optim": rest}

    @classmethod
    def of_parts(cls, params: dict, optim: dict) -> "State":
        """The inverse of `parts`."""
        rest = dict(optim)
        weights = rest.pop("weights", None)
        if weights is None:
            return cls(params=params, **rest)
        return cls(params=weights, average=params, **rest)


def has_statistics(cascade: Cascade) -> bool:
    """Whether a network has running statistics, see `parts.BatchNorm`."""
    parameters = jax.tree.leaves_with_path(param_shapes(cascade))
    return any(_is_statistic(path) for path, _ in parameters)


def initial_state(trainer: Trainer, seed: int) -> State:
    """Fresh parameters and optimiser state, on one device."""
    params = init(trainer.cascade, jax.random.key(seed))
    optim = {name: trainer.direction.init(branch) for name, branch in params.items()}
    average = jax.tree.map(jnp.copy, params) if trainer.ema else None
    return State(jnp.zeros((), jnp.int32), params, optim, jnp.zeros((), jnp.int32), average)


@devices.alone
@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def update(
    trainer: Trainer, state: State, gradients: dict, loss: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """The state after a step, and its scalars.

    Args:
        trainer: Optimiser and schedule.
        state: Before; its memory is that of the state after, so it cannot be used again.
        gradients: By branch, each device's own, see `Tape.backward`.
        loss: Of the batch.
    """
    gradients = jax.tree.map_with_path(_together, gradients)
    learned = [g for path, g in jax.tree.leaves_with_path(gradients) if not _is_statistic(path)]
    norm = optax.tree.norm(learned)
    scale = jnp.minimum(1.0, trainer.clip_norm / (norm + 1e-6))
    rate = trainer.schedule(state.step)
    params, optim = dict(state.params), dict(state.optim)
    for name, gradient in gradients.items():
        clipped = jax.tree.map(lambda g: g * scale, gradient)
        descent, optim[name] = trainer.direction.update(clipped, optim[name], params[name])
        move = functools.partial(_moved, rate)
        params[name] = jax.tree.map_with_path(move, params[name], descent, gradient)
    usable = jnp.isfinite(norm) & jnp.isfinite(loss)
    average = _averaged(trainer.ema, state.average, params, state.step)
    params, optim, average = jax.tree.map(
        lambda new, old: jnp.where(usable, new, old),
        (params, optim, average),
        (state.params, state.optim, state.average),
    )
    skipped = jnp.where(usable, 0, state.skipped + 1)
    scalars = {"gradient_norm": norm, "learning_rate": rate, "skipped": skipped}
    after = State(state.step + 1, params, optim, skipped, average)
    return devices.keep_everywhere(trainer.mesh, (after, scalars))


def _averaged(decay: float, average: dict | None, params: dict, step: jax.Array) -> dict | None:
    """The moving average after a step.

    The decay is (1 + step) / (10 + step) until that reaches its setting, so that the average
    forgets the random weights it starts from (TensorFlow's ExponentialMovingAverage).
    """
    if average is None:
        return None
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), average, params)


def _together(path: tuple, of_each: jax.Array) -> jax.Array:
    """What the devices' gradients are together; of a running statistic, their mean distance."""
    return of_each.mean(axis=0) if _is_statistic(path) else of_each.sum(axis=0)


def _moved(rate, path: tuple, parameter, descent, gradient) -> jax.Array:
    """A parameter after a step; a running statistic follows the batch (`parts.BatchNorm`)."""
    if _is_statistic(path):
        return parameter - PACE * gradient
    return parameter - rate * descent


def _is_statistic(path: tuple) -> bool:
    return path[-1].key in STATISTICS
