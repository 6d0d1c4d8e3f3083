"""One training step: forward, host stage and backward as separate jitted calls.

GlobalNet and LocalNet run forward once. The pullback that `jax.vjp` returns inside a jitted
function is a pytree, so it leaves the device call, waits while the host places the patches, and
enters the backward call. The coordinates of window and patches are constants to the gradient.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tprnet_jax import devices, losses, windows
from tprnet_jax.cascade import (
    Cascade,
    Coarse,
    chunks,
    coarse_logits,
    focal_logits,
    init,
    lay,
    network_input,
    refine,
    sample_patches,
    sampling_mask,
    to_unit,
)
from tprnet_jax.data import augment
from tprnet_jax.windows import Patches


class Trainer(NamedTuple):
    """What a training step needs besides arrays; hashable, a static argument.

    Attributes:
        cascade: The networks.
        direction: Turns a branch's gradients into a direction of descent.
        schedule: Learning rate by step.
        clip_norm: Largest norm of the gradient of all branches together.
        patch_gradient: Whether the patches' own loss has a gradient, or only enters the total.
        mesh: Devices that share a batch, see `devices.mesh`; None for one.
        augmentation: What may happen to an image before a step.
        seed: Of the augmentation.
    """

    cascade: Cascade
    direction: optax.GradientTransformation
    schedule: Callable
    clip_norm: float
    patch_gradient: bool = True
    mesh: jax.sharding.Mesh | None = None
    augmentation: augment.Settings = augment.Settings()
    seed: int = 0


class State(NamedTuple):
    """All that a step changes.

    Attributes:
        step: Steps taken, int32 scalar.
        params: Parameters by branch.
        optim: State of the optimiser by branch, so that a branch that sits out an epoch is not
            touched by weight decay or momentum.
        skipped: Steps in a row, up to the last one, that were not applied because the loss or
            the gradient was not finite, int32 scalar.
    """

    step: jax.Array
    params: dict
    optim: dict
    skipped: jax.Array


def initial_state(trainer: Trainer, seed: int) -> State:
    """Fresh parameters and optimiser state, on one device."""
    params = init(trainer.cascade, jax.random.key(seed))
    optim = {name: trainer.direction.init(branch) for name, branch in params.items()}
    return State(jnp.zeros((), jnp.int32), params, optim, jnp.zeros((), jnp.int32))


def train_step(
    trainer: Trainer,
    state: State,
    images: np.ndarray,
    masks: np.ndarray,
    with_focal: bool,
    samples: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[State, dict[str, jax.Array]]:
    """Takes one step.

    Args:
        trainer: Networks, optimiser and schedule.
        state: Before the step.
        images: `(batch, height, width, 1)` uint8, or float32 in [0, 1]; of several processes,
            each gives its own rows of the batch.
        masks: `(batch, height, width, 1)` uint8, 0 or 255, likewise.
        with_focal: Whether FocalNet takes part.
        samples: Epoch and index of each image, `(batch,)` int32, which decide what the augmentation
            does to it; None for no augmentation.

    Returns:
        The state after the step and scalars: "loss", each of its terms, "gradient_norm",
        "learning_rate", "skipped" (see `State`) and "patches" (their number). Where the loss or
        the gradient is not finite, only the numbers of steps and of skipped ones change.
    """
    images, masks = devices.shard(trainer.mesh, (images, masks))
    if samples is not None and trainer.augmentation != augment.Settings():
        images, masks = _augment(trainer, images, masks, *devices.shard(trainer.mesh, samples))
    coarse, to_sample, canvas, pullback = _forward(trainer, state.params, images)
    patch_loss, count, pullbacks = np.float32(0), 0, []
    if with_focal:
        patches, count = _patches(trainer, to_sample, images.shape)
        for chunk in patches:
            (canvas, patch_loss), chunk_pullback = _focal_forward(
                trainer, state.params, canvas, patch_loss, images, masks, chunk
            )
            pullbacks.append(chunk_pullback)
    laid = (canvas, patch_loss) if with_focal else (None, None)
    terms, gradients = _objective(trainer, coarse, *laid, np.float32(max(count, 1)), masks)
    coarse_gradient, *focal_gradient = gradients
    focal = _focal_backward(state.params, focal_gradient, pullbacks) if with_focal else {}
    state, scalars = _update(trainer, state, pullback, coarse_gradient, focal, terms["loss"])
    return state, {**terms, **scalars, "patches": np.int32(count)}


@functools.partial(jax.jit, static_argnums=0)
def _augment(trainer: Trainer, images, masks, epoch, index):
    keys = augment.sample_keys(trainer.seed, epoch, index)
    changed = augment.augment(trainer.augmentation, images, masks, keys)
    return devices.keep_rows(trainer.mesh, changed)


def _patches(trainer: Trainer, to_sample, shape: tuple[int, ...]) -> tuple[Iterator[Patches], int]:
    """The host stage for this process's images: chunks for all devices, and how many patches."""
    batch, *image, _ = shape
    (vessel, first), (corner, _) = (devices.own_rows(array) for array in to_sample)
    owner, origin = sample_patches(trainer.cascade, vessel, corner, tuple(image))
    counts = devices.of_all(len(owner))
    own = chunks(trainer.cascade.chunk // len(counts), owner + first, origin, batch, max(counts))
    return (devices.shard(trainer.mesh, chunk) for chunk in own), sum(counts)


@functools.partial(jax.jit, static_argnums=0)
def _forward(trainer: Trainer, params, images):
    cascade, images = trainer.cascade, network_input(trainer.cascade, images)
    coarse_params = {name: params[name] for name in params if name != "focal"}

    def logits(params):
        coarse = coarse_logits(cascade, params, images)
        return coarse._replace(origin=None), coarse.origin

    coarse, pullback, origin = jax.vjp(logits, coarse_params, has_aux=True)
    coarse, to_sample, canvas = coarse._replace(origin=origin), None, None
    if cascade.focal_net is not None:
        to_sample = devices.keep_rows(trainer.mesh, sampling_mask(cascade, coarse))
        canvas = windows.empty_canvas(len(images), images.shape[1:3], channels=2)
        canvas = devices.keep_rows(trainer.mesh, canvas)
    return coarse, to_sample, canvas, pullback


@functools.partial(jax.jit, static_argnums=0)
def _focal_forward(trainer, params, canvas, patch_loss, images, masks, patches: Patches):
    cascade, images = trainer.cascade, network_input(trainer.cascade, images)
    truth = windows.stack_patches(to_unit(masks), patches, cascade.patch_in(images.shape[1:3]))
    taken = patches.owner < images.shape[0]

    def segment(focal_params, canvas, patch_loss):
        logits = focal_logits(cascade, {"focal": focal_params}, images, patches)
        loss = jnp.where(taken, losses.patch_losses(logits, truth), 0).sum()
        canvas = devices.keep_rows(trainer.mesh, lay(cascade, canvas, logits, patches))
        return canvas, devices.keep_everywhere(trainer.mesh, patch_loss + loss)

    return jax.vjp(segment, params["focal"], canvas, patch_loss)


@functools.partial(jax.jit, static_argnums=0)
def _objective(trainer: Trainer, coarse: Coarse, canvas, patch_loss, count, masks):
    """Mean of the terms (the released code's five; three while FocalNet sits out)."""
    cascade, truth = trainer.cascade, to_unit(masks)

    def total(logits, canvas, patch_loss):
        stages = refine(cascade, logits._replace(origin=coarse.origin), canvas)
        terms = {"global": losses.segmentation_loss(stages["global"], truth)}
        if cascade.local_net is not None:
            window = coarse.local_logits.shape[1:3]
            truth_window = windows.crop(truth, coarse.origin, window)
            terms["local"] = losses.segmentation_loss(logits.local_logits, truth_window)
            terms["global_local"] = losses.segmentation_loss(stages["global_local"], truth)
        if canvas is not None:
            terms["final"] = losses.segmentation_loss(stages["final"], truth)
            focal = patch_loss if trainer.patch_gradient else jax.lax.stop_gradient(patch_loss)
            terms["focal"] = focal / count
        loss = sum(terms.values()) / len(terms)
        return loss, {"loss": loss} | {f"loss_{name}": term for name, term in terms.items()}

    logits = coarse._replace(origin=None)
    gradients, terms = jax.grad(total, (0, 1, 2), has_aux=True)(logits, canvas, patch_loss)
    return terms, gradients


def _focal_backward(params, gradient, pullbacks):
    total = _zeros_like(params["focal"])
    while pullbacks:  # Popped, because each holds a chunk's activations.
        total, gradient = _focal_chunk_backward(total, gradient, pullbacks.pop())
    return {"focal": total}


@jax.jit
def _zeros_like(tree):
    return jax.tree.map(jnp.zeros_like, tree)


@functools.partial(jax.jit, donate_argnums=0)
def _focal_chunk_backward(total, gradient, pullback):
    params_gradient, *gradient = pullback(tuple(gradient))
    return jax.tree.map(jnp.add, total, params_gradient), gradient


@functools.partial(jax.jit, static_argnums=0)
def _update(trainer: Trainer, state: State, pullback, coarse_gradient, focal_gradient, loss):
    gradients = {**pullback(coarse_gradient)[0], **focal_gradient}
    norm = optax.tree.norm(gradients)
    scale = jnp.minimum(1.0, trainer.clip_norm / (norm + 1e-6))
    rate = trainer.schedule(state.step)
    params, optim = dict(state.params), dict(state.optim)
    for name, gradient in gradients.items():
        clipped = jax.tree.map(lambda g: g * scale, gradient)
        descent, optim[name] = trainer.direction.update(clipped, optim[name], params[name])
        params[name] = jax.tree.map(lambda p, d: p - rate * d, params[name], descent)
    usable = jnp.isfinite(norm) & jnp.isfinite(loss)
    params, optim = jax.tree.map(
        lambda new, old: jnp.where(usable, new, old), (params, optim), (state.params, state.optim)
    )
    skipped = jnp.where(usable, 0, state.skipped + 1)
    scalars = {"gradient_norm": norm, "learning_rate": rate, "skipped": skipped}
    after = State(state.step + 1, params, optim, skipped)
    return devices.keep_everywhere(trainer.mesh, (after, scalars))
