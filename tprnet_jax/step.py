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
from tprnet_jax.inference import unwatched
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
        from_truth: Whether the centrelines are those of the true masks in place of what the
            networks find, for benchmarks of untrained ones.
    """

    cascade: Cascade
    direction: optax.GradientTransformation
    schedule: Callable
    clip_norm: float
    patch_gradient: bool = True
    mesh: jax.sharding.Mesh | None = None
    augmentation: augment.Settings = augment.Settings()
    seed: int = 0
    from_truth: bool = False


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
    watch: Callable = unwatched,
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
        watch: Called with the name of each stage and what it gave, which it returns.

    Returns:
        The state after the step and scalars: "loss", each of its terms, "gradient_norm",
        "learning_rate", "skipped" (see `State`) and "patches" (their number). Where the loss or
        the gradient is not finite, only the numbers of steps and of skipped ones change.
    """
    halves = _halves(trainer, images, masks, samples)
    forward = [_forward(trainer, state.params, images) for images, _ in halves]
    watch("coarse", forward)
    focal = []
    if with_focal:
        # While the host samples the patches of one half, the device is at the other.
        pairs = zip(halves, forward, strict=True)
        focal = [_focal(trainer, state.params, *half, coarse, watch) for half, coarse in pairs]
    count = sum(half.count for half in focal)
    logits, laid = [half.logits for half in forward], [half.laid for half in focal]
    masks = [masks for _, masks in halves]
    terms, gradients = watch(
        "fusion", _objective(trainer, logits, laid, np.float32(max(count, 1)), masks)
    )
    pullbacks = [half.pullback for half in forward]
    del forward  # So that `_backward` frees what it has used.
    gradients = watch("backward", _backward(state.params, pullbacks, *gradients, focal))
    state, scalars = watch("update", _update(trainer, state, gradients, terms["loss"]))
    return state, {**terms, **scalars, "patches": np.int32(count)}


def _halves(trainer: Trainer, images, masks, samples) -> list[tuple[jax.Array, jax.Array]]:
    """Images and masks on the device, augmented; in one piece if the host has nothing to do."""
    devices_here = 1 if trainer.mesh is None else len(trainer.mesh.local_devices)
    divisible = len(images) % (2 * devices_here) == 0
    number = 2 if divisible and trainer.cascade.focal_net is not None else 1
    augmented = samples is not None and trainer.augmentation != augment.Settings()
    parts = []
    for rows in np.split(np.arange(len(images)), number):
        part = devices.shard(trainer.mesh, (images[rows], masks[rows]))
        if augmented:
            some = devices.shard(trainer.mesh, tuple(sample[rows] for sample in samples))
            part = _augment(trainer, *part, *some)
        parts.append(part)
    return parts


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


class _Forward(NamedTuple):
    """What `_forward` gives: logits, mask to sample, empty canvas, and the way back."""

    logits: Coarse
    to_sample: tuple[jax.Array, jax.Array] | None
    canvas: jax.Array | None
    pullback: Callable


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
    return _Forward(coarse, to_sample, canvas, pullback)


class _Focal(NamedTuple):
    """What FocalNet gives for half a batch.

    Attributes:
        laid: Canvas and sum of the patches' losses.
        pullbacks: The way back of each chunk.
        count: Number of patches.
    """

    laid: tuple[jax.Array, jax.Array]
    pullbacks: list
    count: int


def _focal(trainer: Trainer, params, images, masks, forward: _Forward, watch) -> _Focal:
    to_sample = forward.to_sample
    if trainer.from_truth:
        to_sample = _crop_truth(masks, *to_sample)
    patches, count = _patches(trainer, to_sample, images.shape)
    watch("sampling", count)
    laid, pullbacks = (forward.canvas, np.float32(0)), []
    for chunk in patches:
        laid, pullback = _focal_forward(trainer, params, *laid, images, masks, chunk)
        pullbacks.append(pullback)
    return _Focal(watch("focal", laid), pullbacks, count)


@jax.jit
def _crop_truth(masks, found, corner):
    return windows.crop(masks > 127, corner, found.shape[1:3])[..., 0], corner


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
def _objective(trainer: Trainer, halves: list[Coarse], laid, count, masks):
    """Mean of the terms (the released code's five; three while FocalNet sits out)."""
    cascade, truth = trainer.cascade, to_unit(_joined(masks))
    origins = [half.origin for half in halves]

    def total(logits, laid):
        coarse = _joined([half._replace(origin=o) for half, o in zip(logits, origins, strict=True)])
        canvas = _joined([canvas for canvas, _ in laid]) if laid else None
        stages = refine(cascade, coarse, canvas)
        terms = {"global": losses.segmentation_loss(stages["global"], truth)}
        if cascade.local_net is not None:
            window = coarse.local_logits.shape[1:3]
            truth_window = windows.crop(truth, coarse.origin, window)
            terms["local"] = losses.segmentation_loss(coarse.local_logits, truth_window)
            terms["global_local"] = losses.segmentation_loss(stages["global_local"], truth)
        if canvas is not None:
            terms["final"] = losses.segmentation_loss(stages["final"], truth)
            focal = sum(loss for _, loss in laid) / count
            terms["focal"] = focal if trainer.patch_gradient else jax.lax.stop_gradient(focal)
        loss = sum(terms.values()) / len(terms)
        return loss, {"loss": loss} | {f"loss_{name}": term for name, term in terms.items()}

    logits = [half._replace(origin=None) for half in halves]
    gradients, terms = jax.grad(total, (0, 1), has_aux=True)(logits, laid)
    return terms, gradients


def _joined(parts: list):
    """Halves of a batch as one; over several devices, each row stays where it is."""

    def join(*arrays):
        return jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])

    return jax.tree.map(join, *parts)


def _backward(params, pullbacks: list, coarse_gradients, laid_gradients, focal: list[_Focal]):
    """Gradients of the parameters of each branch that took part."""
    # Popped, because each holds the activations of half a batch, or of a chunk.
    coarse = _coarse_backward(pullbacks.pop(), coarse_gradients.pop())
    while pullbacks:
        coarse = _add(coarse, _coarse_backward(pullbacks.pop(), coarse_gradients.pop()))
    if not focal:
        return coarse
    total = _zeros_like(params["focal"])
    for gradient, half in zip(laid_gradients, focal, strict=True):
        while half.pullbacks:
            total, gradient = _focal_chunk_backward(total, gradient, half.pullbacks.pop())
    return {**coarse, "focal": total}


@jax.jit
def _coarse_backward(pullback, gradient):
    return pullback(gradient)[0]


@functools.partial(jax.jit, donate_argnums=0)
def _add(total, more):
    return jax.tree.map(jnp.add, total, more)


@jax.jit
def _zeros_like(tree):
    return jax.tree.map(jnp.zeros_like, tree)


@functools.partial(jax.jit, donate_argnums=0)
def _focal_chunk_backward(total, gradient, pullback):
    params_gradient, *gradient = pullback(tuple(gradient))
    return jax.tree.map(jnp.add, total, params_gradient), gradient


@functools.partial(jax.jit, static_argnums=0)
def _update(trainer: Trainer, state: State, gradients, loss):
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
