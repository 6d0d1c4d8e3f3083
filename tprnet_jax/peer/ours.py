"""Our system as the benchmark times it: random weights, and the patches on the true centrelines.

So there are as many patches as a trained network asks for.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tprnet_jax.method import inference, step, windows
from tprnet_jax.method.cascade import Cascade, ToSample, forward, patches_on_device, run
from tprnet_jax.method.state import State, Trainer, update
from tprnet_jax.runtime import devices


class Batch(NamedTuple):
    """What a call is timed with.

    Attributes:
        images: `(batch, height, width, 1)` uint8.
        masks: True masks, of the same shape, 0 and 255.
    """

    images: np.ndarray
    masks: np.ndarray

    @property
    def vessel(self) -> np.ndarray:
        """True masks `(batch, height, width)` bool."""
        return self.masks[..., 0] > 127


class Subject(NamedTuple):
    """What is timed.

    Attributes:
        cascade: The networks.
        state: Random weights, on one device.
        trainer: By size of batch, on the devices that share it.
        repeats: Timings that a median is of.
    """

    cascade: Cascade
    state: State
    trainer: Callable[[int], Trainer]
    repeats: int


def segment(subject: Subject, batches: Sequence[Batch]) -> Iterator[dict[str, np.ndarray]]:
    """As `inference.segment`, with the patches on the true centrelines."""
    cascade, params = subject.cascade, subject.state.params
    if cascade.topology == "device":
        sent = (
            (_one_program(cascade, params, batch.images, batch.vessel), batch.images.shape[2])
            for batch in batches
        )
    else:
        stages = inference.Jitted(cascade, params, inference.bits)
        sent = inference.beside_the_host(
            inference.Job(
                forward(stages, jnp.asarray(batch.images)),
                functools.partial(patches_on_truth, cascade, batch),
                batch.images.shape[2],
            )
            for batch in batches
        )
    return inference.unpacked(cascade, sent)


def patches_on_truth(cascade: Cascade, batch: Batch, to_sample: ToSample):
    """The topology stage on the true masks, after what the networks found has come to the host."""
    found = jax.device_get(to_sample)
    size = found.vessel.shape[1:]
    cut = zip(batch.vessel, found.origin, strict=True)
    truth = np.stack([mask[r : r + size[0], c : c + size[1]] for mask, (r, c) in cut])
    return inference.patches_on_host(cascade, found._replace(vessel=truth), batch.images.shape[1:3])


@functools.partial(jax.jit, static_argnums=0)
def _one_program(cascade: Cascade, params: dict, images: jax.Array, vessel: jax.Array) -> jax.Array:
    """As `inference.whole`, with the patches on the true masks."""
    stages = inference.OneProgram(cascade, params, inference.bits)
    return run(
        forward(stages, images),
        lambda found: patches_on_device(
            cascade, *_crop_truth(vessel[..., None], found), images.shape[1:3]
        ),
    )


@jax.jit
def _crop_truth(vessel: jax.Array, found: ToSample) -> ToSample:
    cropped = windows.crop(vessel, found.origin, found.vessel.shape[1:])
    return found._replace(vessel=cropped[..., 0])


def train(subject: Subject, batches: Sequence[Batch], clock: "Clock | None" = None) -> State:
    """As `step.train_step`, with the patches on the true centrelines; each step from the last."""
    trainer = subject.trainer(len(batches[0].images))
    # A copy, because each step takes its state's memory.
    state = devices.replicate(trainer.mesh, jax.tree.map(jnp.copy, subject.state))
    clock = clock or Clock(waits=False)
    for batch in batches:
        images, masks = step.on_devices(trainer, *batch)
        with_focal = subject.cascade.focal_net is not None
        tape = step.Tape(trainer, state.params, masks, with_focal, state.step)
        steps = forward(_Timed(tape, clock), images)
        terms, gradients = run(steps, functools.partial(_share_truth, trainer, masks, clock))
        gradients = clock.watch("backward", tape.backward(gradients))
        state, _ = clock.watch("update", update(trainer, state, gradients, terms["loss"]))
    return state


def _share_truth(trainer: Trainer, masks: jax.Array, clock: "Clock", found: ToSample):
    truth = _crop_truth(masks > 127, found)
    patches = step.patches_for_devices(trainer, truth, masks.shape[1:3])
    return clock.watch("sampling", patches)


def segment_in_turn(subject: Subject, batches: Sequence[Batch], clock: "Clock") -> None:
    """The stages one after another, the topology stage on the host."""
    cascade = dataclasses.replace(subject.cascade, topology="host")
    for batch in batches:
        stages = _Timed(inference.Jitted(cascade, subject.state.params, inference.bits), clock)

        def sample(found: ToSample, batch=batch):
            return clock.watch("sampling", list(patches_on_truth(cascade, batch, found)))

        run(forward(stages, jnp.asarray(batch.images)), sample)


class _Timed:
    """The stages of the cascade, each noted when its result is there."""

    def __init__(self, stages, clock: "Clock"):
        self.stages, self.clock = stages, clock

    def coarse(self, images):
        """See `cascade.Stages`, as for the others."""
        return self.clock.watch("coarse", self.stages.coarse(images))

    def focal(self, seen, patches):
        """FocalNet."""
        return self.clock.watch("focal", self.stages.focal(seen, patches))

    def refine(self, coarse, laid):
        """The refinement."""
        return self.clock.watch("fusion", self.stages.refine(coarse, laid))


class Clock:
    """Notes how long after the stage before each stage was done.

    Args:
        waits: Whether it waits for each result; if not, it notes nothing.
    """

    def __init__(self, waits: bool = True):
        self.seconds = {}
        self.waits, self.last = waits, time.perf_counter()

    def watch(self, stage: str, result):
        """Waits for the result of a stage, and returns it."""
        if self.waits:
            jax.block_until_ready(result)
            now = time.perf_counter()
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
            self.last = now
        return result
