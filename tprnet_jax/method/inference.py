"""The cascade on batches of images, the host's part beside the device's."""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tprnet_jax.method import windows
from tprnet_jax.method.cascade import (
    Cascade,
    ToSample,
    chunks,
    coarse_logits,
    finish,
    focal_input,
    focal_logits,
    forward,
    is_vessel,
    lay,
    network_input,
    patches_on_device,
    refine,
    run,
    sample_patches,
    sampling_mask,
)
from tprnet_jax.method.windows import Patches
from tprnet_jax.models.parts import missing


class Job(NamedTuple):
    """A batch to run.

    Attributes:
        steps: Its `forward`.
        topology_stage: What that waits for.
        width: Of an image, pixels.
    """

    steps: Generator
    topology_stage: Callable[[ToSample], Iterable[Patches]]
    width: int


def predict(cascade: Cascade, params: dict, images: np.ndarray) -> dict[str, np.ndarray]:
    """Runs the whole cascade on a batch of images of one size.

    Args:
        cascade: The networks.
        params: Parameters by branch.
        images: `(batch, height, width, 1)` uint8, or float32 in [0, 1].

    Returns:
        Foreground probability `(batch, height, width)` float32 of each stage, in their order.
    """
    steps = forward(Jitted(cascade, params, _probabilities), jnp.asarray(images))
    stage = functools.partial(patches_on_host, cascade, image=images.shape[1:3])
    probabilities = jax.device_get(run(steps, stage))
    return {stage: probabilities[stage] for stage in cascade.stages}


def segment(
    cascade: Cascade, params: dict, batches: Iterable[np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """Runs the whole cascade on batch after batch, on all accelerators of this process in turn.

    While a device works on one batch, the host samples the patches of the next, and the caller
    has the one before. Masks travel as bits.

    Args:
        cascade: The networks.
        params: Parameters by branch.
        batches: Images, each batch as for `predict`; a new size of batch or image compiles.

    Yields:
        Mask `(batch, height, width)` bool of each stage, in their order: where the foreground
        probability exceeds 0.5.
    """
    sent, behind = _sent_batches(cascade, params, batches, bits)
    yield from unpacked(cascade, sent, behind)


def margins(cascade: Cascade, params: dict, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """As `segment`, but of the final output alone: by how much the vessel's logit leads.

    Yields:
        `(batch, height, width)` float32; positive where `segment` has the mask, and the foreground
        probability is its logistic function.
    """
    sent, behind = _sent_batches(cascade, params, batches, margin)
    for found, _ in _behind(sent, behind):
        yield np.asarray(found)


def _sent_batches(
    cascade: Cascade, params: dict, batches: Iterable[np.ndarray], output: Callable
) -> tuple[Iterator[tuple[jax.Array, int]], int]:
    """What is wanted of each batch, and an image's width; and how many batches to have begun."""
    copies = _copies(params)
    pairs = zip(itertools.cycle(copies), batches, strict=False)
    if cascade.topology == "device":
        sent = (
            _sent(whole(cascade, copy, images, output), images.shape[2]) for copy, images in pairs
        )
        return sent, len(copies)
    jobs = (
        Job(
            forward(Jitted(cascade, copy, output), images),
            functools.partial(patches_on_host, cascade, image=images.shape[1:3]),
            images.shape[2],
        )
        for copy, images in pairs
    )
    return beside_the_host(jobs, len(copies)), len(copies)


def _copies(params: dict) -> list[dict]:
    """The parameters on every device to segment on; of CPUs, one uses all cores."""
    devices = jax.local_devices()
    if len(devices) == 1 or devices[0].platform == "cpu":
        return [params]
    return [jax.device_put(params, device) for device in devices]


def unpacked(
    cascade: Cascade, sent: Iterable[tuple[jax.Array, int]], behind: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Bits of masks, and the width of an image, as masks of each stage; so many batches behind."""
    for bits, width in _behind(sent, behind):
        masks = np.unpackbits(np.asarray(bits), axis=-1, count=width).astype(bool)
        yield dict(zip(cascade.stages, masks, strict=True))


def segment_examples(
    cascade: Cascade, params: dict, examples: Iterable[dict], batch: int
) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
    """Each example with its masks: bool `(height, width)` of each stage, in their order.

    Args as for `of_examples`.
    """
    for example, masks in of_examples(functools.partial(segment, cascade, params), examples, batch):
        yield example, {stage: masks[stage] for stage in cascade.stages}  # A tree sorts its names.


def of_examples(call: Callable, examples: Iterable[dict], batch: int) -> Iterator[tuple[dict, Any]]:
    """Each example with what a call on batches of their images gives for it.

    Neighbours of one size pass together; batches are filled up to `batch`, so that a shorter one
    compiles nothing.

    Args:
        call: Maps batches to arrays or trees of them, such as `segment` of a cascade.
        examples: With an "image" `(height, width, 1)`, see `cascade.to_unit`.
        batch: Images at a time.
    """
    groups = deque()

    def images():
        for group in _of_one_size(examples, batch):
            groups.append(group)
            stack = np.stack([example["image"] for example in group])
            yield np.pad(stack, ((0, batch - len(group)), (0, 0), (0, 0), (0, 0)))

    for found in call(images()):
        for index, example in enumerate(groups.popleft()):
            yield example, jax.tree.map(lambda array, index=index: array[index], found)


def _of_one_size(examples: Iterable[dict], most: int) -> Iterator[list[dict]]:
    for _, group in itertools.groupby(examples, key=lambda example: example["image"].shape):
        while some := list(itertools.islice(group, most)):
            yield some


def beside_the_host(jobs: Iterable[Job], behind: int = 1) -> Iterator[tuple[jax.Array, int]]:
    """Runs batch after batch, the topology stage of one beside the networks of another.

    Args:
        jobs: The batches.
        behind: How many may have begun before one is ended.

    Yields:
        What the refinement gives, on its way to the host, and the width of an image.
    """
    with ThreadPoolExecutor(1) as host:
        begun = ((_begin(job, host), job.width) for job in jobs)
        for rest, width in _behind(begun, behind):
            yield _sent(rest(), width)


def _sent(bits: jax.Array, width: int) -> tuple[jax.Array, int]:
    bits.copy_to_host_async()
    return bits, width


def _begin(job: Job, host: Executor) -> Callable:
    """Runs the networks before the topology stage, and hands that to the host; returns the rest."""
    try:
        to_sample = next(job.steps)
    except StopIteration as end:  # Without FocalNet.
        result = end.value
        return lambda: result
    patches = host.submit(job.topology_stage, to_sample)
    return lambda: finish(job.steps, patches.result())


def _behind(items: Iterable, count: int) -> Iterator:
    """Each item when so many more have been drawn too."""
    waiting = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


class Jitted(NamedTuple):
    """The stages, each one program.

    Attributes:
        cascade: The networks.
        params: Parameters by branch.
        output: What is wanted of the logits, such as `bits`.
    """

    cascade: Cascade
    params: dict
    output: Callable

    def coarse(self, images: jax.Array):
        """See `cascade.Stages`, as for the others."""
        return _coarse(self.cascade, self.params, images)

    def focal(self, seen: jax.Array, patches: Iterable[Patches]) -> jax.Array:
        """Chunk after chunk."""
        canvas = windows.empty_canvas(len(seen), seen.shape[1:3], channels=2)
        for chunk in patches:
            canvas = _focal(self.cascade, self.params, seen, canvas, chunk)
        return canvas

    def refine(self, coarse, canvas):
        """The output."""
        return self.output(self.cascade, coarse, canvas)


def patches_on_host(
    cascade: Cascade, to_sample: ToSample, image: tuple[int, int]
) -> Iterator[Patches]:
    """The topology stage for images of this height and width: chunks of patches."""
    found = jax.device_get(to_sample)
    owner, origin = sample_patches(cascade, *found, tuple(image))
    return chunks(cascade.chunk, owner, origin, len(found.vessel))


class OneProgram(Jitted):
    """The stages inside one program, the topology stage among them."""

    def focal(self, seen: jax.Array, patches: tuple[Patches, jax.Array]) -> jax.Array:
        """Chunk after chunk, as many as there are patches."""
        cascade, (all_patches, count) = self.cascade, patches
        batch, *image, _ = seen.shape
        empty = missing(all_patches.owner.shape[0], cascade.chunk)
        owner = jnp.pad(all_patches.owner, (0, empty), constant_values=batch)
        slots = Patches(owner, jnp.pad(all_patches.origin, ((0, empty), (0, 0))))

        def lay_chunk(state):
            start, canvas = state
            some = [jax.lax.dynamic_slice_in_dim(array, start, cascade.chunk) for array in slots]
            canvas = _focal(cascade, self.params, seen, canvas, Patches(*some))
            return start + cascade.chunk, canvas

        state = jnp.int32(0), windows.empty_canvas(batch, tuple(image), channels=2)
        return jax.lax.while_loop(lambda state: state[0] < count, lay_chunk, state)[1]


@functools.partial(jax.jit, static_argnums=(0, 3))
def whole(cascade: Cascade, params: dict, images: jax.Array, output: Callable) -> jax.Array:
    """The whole cascade as one program, the topology stage on the device.

    Args:
        cascade: The networks.
        params: Parameters by branch.
        images: As for `predict`.
        output: What is wanted of the logits, such as `bits`.
    """
    stage = functools.partial(patches_on_device, cascade, image=images.shape[1:3])
    return run(forward(OneProgram(cascade, params, output), images), lambda found: stage(*found))


@functools.partial(jax.jit, static_argnums=0)
def _coarse(cascade, params, images):
    images = network_input(cascade, images)
    coarse = coarse_logits(cascade, params, images)
    if cascade.focal_net is None:
        return coarse, None, None
    return coarse, focal_input(cascade, images, coarse), sampling_mask(cascade, coarse)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _focal(cascade, params, seen, canvas, patches):
    logits = focal_logits(cascade, params, seen, patches)
    return lay(cascade, canvas, logits, patches)


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(cascade, coarse, canvas):
    logits = refine(cascade, coarse, canvas)
    return {stage: jax.nn.softmax(value)[..., 1] for stage, value in logits.items()}


@functools.partial(jax.jit, static_argnums=0)
def bits(cascade: Cascade, coarse, canvas: jax.Array | None) -> jax.Array:
    """Masks `(stages, batch, height, ceil(width / 8))` uint8, eight pixels a byte."""
    logits = refine(cascade, coarse, canvas)
    masks = jnp.stack([is_vessel(logits[stage]) for stage in cascade.stages])
    return jnp.packbits(masks, axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def margin(cascade: Cascade, coarse, canvas: jax.Array | None) -> jax.Array:
    """Final vessel logit minus background logit, `(batch, height, width)` float32."""
    logits = refine(cascade, coarse, canvas)["final"]
    return logits[..., 1] - logits[..., 0]
