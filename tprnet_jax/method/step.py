"""One training step: `cascade.forward` with a way back, and the backward pass.

Each stage is a jitted call. The pullback that `jax.vjp` returns inside a jitted function is a
pytree, so it leaves the device call, waits while the host places the patches, and enters the
backward call. The coordinates of window and patches are constants to the gradient.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tprnet_jax.method import augment, losses, windows
from tprnet_jax.method.cascade import (
    Coarse,
    ToSample,
    chunks,
    coarse_logits,
    focal_input,
    focal_logits,
    forward,
    lay,
    network_input,
    refine,
    run,
    sample_patches,
    sampling_mask,
    to_unit,
)
from tprnet_jax.method.state import State, Trainer, update
from tprnet_jax.method.windows import Patches
from tprnet_jax.models.supervision import deep_supervision
from tprnet_jax.runtime import devices
from tprnet_jax.runtime.devices import EVERYWHERE, ROWS


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
        state: Before the step; it cannot be used again.
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
    images, masks = on_devices(trainer, images, masks, samples)
    tape = Tape(trainer, state.params, masks, with_focal, state.step)
    stage = functools.partial(patches_for_devices, trainer, image=images.shape[1:3])
    terms, gradients = run(forward(tape, images), stage)
    state, scalars = update(trainer, state, tape.backward(gradients), terms["loss"])
    return state, {**terms, **scalars, "patches": np.int32(tape.count)}


def on_devices(
    trainer: Trainer, images, masks, samples: tuple | None = None
) -> tuple[jax.Array, jax.Array]:
    """Images and masks on the devices, augmented; see `train_step`.

    Images that the networks see standardised are so before the augmentation, as in nnU-Net: after
    it, brightness and contrast would be gone again.
    """
    images, masks = devices.shard(trainer.mesh, (images, masks))
    if trainer.cascade.standardise:
        images = _standardised(trainer, images)
    if samples is None or not augment.happens(trainer.augmentation):
        return images, masks
    samples = devices.shard(trainer.mesh, tuple(samples))
    return _augment(trainer, images, masks, *samples, np.int32(trainer.seed))


@functools.partial(jax.jit, static_argnums=0)
def _standardised(trainer: Trainer, images):
    see = functools.partial(network_input, trainer.cascade)
    return devices.on_each(trainer.mesh, see, (ROWS,), ROWS)(images)


@functools.partial(jax.jit, static_argnums=0)
def _augment(trainer: Trainer, images, masks, epoch, index, seed):
    def change(images, masks, epoch, index, seed):
        keys = augment.sample_keys(seed, epoch, index)
        share = augment.ramp(trainer.augmentation, epoch)
        in_unit = not trainer.cascade.standardise
        return augment.augment(trainer.augmentation, images, masks, keys, share, in_unit=in_unit)

    each = devices.on_each(trainer.mesh, change, (*[ROWS] * 4, EVERYWHERE), ROWS)
    return each(images, masks, epoch, index, seed)


def patches_for_devices(
    trainer: Trainer, to_sample: ToSample, image: tuple[int, int]
) -> tuple[list[Patches], int]:
    """The topology stage for this process's images: chunks for all devices, and how many patches.

    Each device has the patches of its own images, and as many chunks as the one with most.
    """
    cascade = trainer.cascade
    vessel, corner = (devices.local_rows(array) for array in to_sample)
    owner, origin = sample_patches(cascade, vessel, corner, tuple(image))
    here, everywhere = trainer.shares
    rows = len(vessel) // here
    each = [owner // rows == device for device in range(here)]
    most = max(devices.allgather(max(np.count_nonzero(own) for own in each)))
    size = cascade.chunk // everywhere
    of_each = [chunks(size, owner[own] % rows, origin[own], rows, most) for own in each]
    together = zip(*of_each, strict=True)
    stacked = (jax.tree.map(lambda *each: np.concatenate(each), *some) for some in together)
    total = sum(devices.allgather(len(owner)))
    return [devices.shard(trainer.mesh, chunk) for chunk in stacked], total


class Tape:
    """The stages of a training step, each with its way back; see `cascade.Stages`.

    Args:
        trainer: Networks and objective.
        params: Parameters by branch.
        masks: On the devices, see `train_step`.
        with_focal: Whether FocalNet takes part.
        step: Number of the step, from 0, which decides what dropout drops.

    Attributes:
        count: Number of patches.
    """

    def __init__(self, trainer: Trainer, params: dict, masks, with_focal: bool, step: jax.Array):
        self.trainer, self.params, self.masks, self.step = trainer, params, masks, step
        self.with_focal, self.count, self.auxiliary = with_focal, 0, None
        self.coarse_pullback, self.focal_pullbacks = None, []

    def coarse(self, images: jax.Array) -> tuple[Coarse, jax.Array | None, ToSample | None]:
        """GlobalNet and LocalNet, of images as `on_devices` gives them."""
        (coarse, self.auxiliary), seen, to_sample, self.coarse_pullback = _coarse(
            self.trainer, self.params, images, self.step, np.int32(self.trainer.seed)
        )
        return (coarse, seen, to_sample) if self.with_focal else (coarse, None, None)

    def focal(self, seen: jax.Array, patches: tuple[list[Patches], int]):
        """FocalNet, chunk after chunk: the canvas and, of each device, its patches' losses."""
        chunks_of_all, self.count = patches
        laid = _nothing_laid(self.trainer, seen)
        for chunk in chunks_of_all:
            laid, pullback = _focal(self.trainer, self.params, *laid, seen, self.masks, chunk)
            self.focal_pullbacks.append(pullback)
        return laid

    def refine(self, coarse: Coarse, laid) -> tuple[dict, tuple]:
        """Terms of the objective, and its gradients by the logits and by what was laid."""
        count = np.float32(max(self.count, 1))
        return _objective(self.trainer, (coarse, self.auxiliary), laid, count, self.masks)

    def backward(self, gradients: tuple) -> dict:
        """Each device's own gradients of the parameters of each branch that took part."""
        coarse, laid = gradients
        total = {"focal": self._focal_backward(laid)} if self.with_focal else {}
        return total | _coarse_backward(self.trainer, self.coarse_pullback, coarse)

    def _focal_backward(self, gradient) -> dict:
        total = _no_gradient(self.trainer, self.params["focal"])
        while self.focal_pullbacks:  # Popped, because each holds the activations of a chunk.
            pullback = self.focal_pullbacks.pop()
            total, gradient = _focal_chunk_backward(self.trainer, total, gradient, pullback)
        return total


@functools.partial(jax.jit, static_argnums=0)
def _coarse(trainer: Trainer, params, images, step, seed):
    # The seed is an argument so that the programs of one seed, once compiled, serve all others.
    cascade = trainer.cascade
    coarse_params = {name: params[name] for name in params if name != "focal"}

    def stage(params, images, step, seed):
        images = to_unit(images)
        key = jax.random.fold_in(jax.random.key(seed), step)
        key = jax.random.fold_in(key, devices.number(trainer.mesh))

        def logits(params):
            global_logits, auxiliary = _global_in_training(
                cascade.global_net, params["global"], images, key
            )
            coarse = coarse_logits(cascade, params, images, global_logits)
            return (coarse._replace(origin=None), auxiliary), coarse.origin

        (coarse, auxiliary), pullback, origin = jax.vjp(logits, params, has_aux=True)
        coarse, pullback = coarse._replace(origin=origin), devices.own(pullback)
        if cascade.focal_net is None:
            return (coarse, auxiliary), None, None, pullback
        seen = focal_input(cascade, images, coarse)
        return (coarse, auxiliary), seen, sampling_mask(cascade, coarse), pullback

    each = devices.on_each(trainer.mesh, stage, (EVERYWHERE, ROWS, EVERYWHERE, EVERYWHERE), ROWS)
    return each(coarse_params, images, step, seed)


def _global_in_training(
    net: nn.Module, params: dict, images: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """GlobalNet's logits, and its auxiliary outputs by name."""
    logits, sown = net.apply(
        {"params": params}, images, train=True, mutable="auxiliary", rngs={"dropout": key}
    )
    return logits, {name: value for name, (value,) in sown.get("auxiliary", {}).items()}


@functools.partial(jax.jit, static_argnums=0)
def _nothing_laid(trainer: Trainer, seen):
    def stage(seen):
        canvas = windows.empty_canvas(len(seen), seen.shape[1:3], channels=2)
        return canvas, jnp.zeros(1, jnp.float32)

    return devices.on_each(trainer.mesh, stage, (ROWS,), ROWS)(seen)


@functools.partial(jax.jit, static_argnums=0)
def _focal(trainer, params, canvas, patch_loss, seen, masks, patches: Patches):
    cascade = trainer.cascade

    def stage(params, canvas, patch_loss, seen, masks, patches):
        truth = windows.stack_patches(to_unit(masks), patches, cascade.patch_in(seen.shape[1:3]))
        taken = patches.owner < len(seen)

        def segment(params, canvas, patch_loss):
            logits = focal_logits(cascade, {"focal": params}, seen, patches)
            loss = jnp.where(taken, losses.patch_losses(logits, truth, trainer.with_dice), 0).sum()
            return lay(cascade, canvas, logits, patches), patch_loss + loss

        laid, pullback = jax.vjp(segment, params, canvas, patch_loss)
        return laid, devices.own(pullback)

    each = devices.on_each(trainer.mesh, stage, (EVERYWHERE, *[ROWS] * 5), ROWS)
    return each(params["focal"], canvas, patch_loss, seen, masks, patches)


@devices.alone
@functools.partial(jax.jit, static_argnums=0)
def _objective(trainer: Trainer, found, laid, count, masks):
    """Mean of the terms (the released code's five; three while FocalNet sits out).

    The loss of GlobalNet's auxiliary outputs, if it has any, is added to its own.
    """
    cascade, truth, origin = trainer.cascade, to_unit(masks), found[0].origin
    segmentation_loss = functools.partial(
        losses.segmentation_loss, of_images=trainer.image_dice, with_dice=trainer.with_dice
    )

    def total(found, laid):
        coarse, auxiliary = found[0]._replace(origin=origin), found[1]
        canvas = None if laid is None else laid[0]
        stages = refine(cascade, coarse, canvas)
        terms = {"global": segmentation_loss(stages["global"], truth)}
        if cascade.local_net is not None:
            truth_window = windows.crop(truth, origin, coarse.local_logits.shape[1:3])
            terms["local"] = segmentation_loss(coarse.local_logits, truth_window)
            terms["global_local"] = segmentation_loss(stages["global_local"], truth)
        if canvas is not None:
            terms["final"] = segmentation_loss(stages["final"], truth)
            focal = laid[1].sum() / count
            terms["focal"] = focal if trainer.patch_gradient else jax.lax.stop_gradient(focal)
        parts = len(terms)
        if auxiliary:
            terms["auxiliary"] = _auxiliary_loss(
                cascade.global_net, auxiliary, truth, segmentation_loss
            )
        loss = sum(terms.values()) / parts
        return loss, {"loss": loss} | {f"loss_{name}": term for name, term in terms.items()}

    without_origin = (found[0]._replace(origin=None), found[1])
    gradients, terms = jax.grad(total, (0, 1), has_aux=True)(without_origin, laid)
    return terms, devices.keep_rows(trainer.mesh, gradients)


def _auxiliary_loss(net: nn.Module, outputs: dict, truth: jax.Array, loss: Callable) -> jax.Array:
    """What the network has for its auxiliary outputs, such as CoANet's, or deep supervision."""
    if hasattr(net, "auxiliary_loss"):
        return net.auxiliary_loss(outputs, truth)
    return deep_supervision(outputs, truth, loss)


@functools.partial(jax.jit, static_argnums=0)
def _coarse_backward(trainer: Trainer, pullback, gradient):
    def backward(pullback, gradient):
        return devices.own(devices.given(pullback)(gradient)[0])

    return devices.on_each(trainer.mesh, backward, ROWS, ROWS)(pullback, gradient)


@functools.partial(jax.jit, static_argnums=0)
def _no_gradient(trainer: Trainer, params):
    def zeros(params):
        return devices.own(jax.tree.map(jnp.zeros_like, params))

    return devices.on_each(trainer.mesh, zeros, EVERYWHERE, ROWS)(params)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _focal_chunk_backward(trainer: Trainer, total, gradient, pullback):
    def backward(total, gradient, pullback):
        more, *gradient = devices.given(pullback)(tuple(gradient))
        return jax.tree.map(jnp.add, total, devices.own(more)), gradient

    return devices.on_each(trainer.mesh, backward, ROWS, ROWS)(total, gradient, pullback)
