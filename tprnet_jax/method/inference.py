"""The cascade on batches of images, the host's part beside the device's."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import groupby, islice, repeat
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tprnet_jax.method import windows
from tprnet_jax.method.cascade import (
    Cascade,
    Coarse,
    chunks,
    coarse_logits,
    focal_input,
    focal_logits,
    is_vessel,
    lay,
    network_input,
    patches_on_device,
    refine,
    sample_patches,
    sampling_mask,
)
from tprnet_jax.method.windows import Patches


def unwatched(stage: str, result):
    """Nobody times the stages: returns the result."""
    del stage
    return result


def predict(cascade: Cascade, params: dict, images: np.ndarray) -> dict[str, np.ndarray]:
    """Runs the whole cascade on a batch of images of one size.

    Args:
        cascade: The networks.
        params: Parameters by branch.
        images: `(batch, height, width, 1)` uint8, or float32 in [0, 1].

    Returns:
        Foreground probability `(batch, height, width)` float32 of each stage, in their order.
    """
    with ThreadPoolExecutor(1) as host:
        logits = _finish(cascade, params, _begin(cascade, params, images, None, host))
    probabilities = jax.device_get(_probabilities(cascade, *logits))
    return {stage: probabilities[stage] for stage in cascade.stages}


def segment(
    cascade: Cascade,
    params: dict,
    batches: Iterable[np.ndarray],
    vessels: Iterable[np.ndarray | None] = repeat(None),
    watch: Callable = unwatched,
) -> Iterator[dict[str, np.ndarray]]:
    """Runs the whole cascade on batch after batch.

    While the device works on one batch, the host samples the patches of the next, and the caller
    has the one before. Masks travel as bits.

    Args:
        cascade: The networks.
        params: Parameters by branch.
        batches: Images, each batch as for `predict`; a new size of batch or image compiles.
        vessels: Masks `(batch, height, width)` bool to take the centrelines from in place of what
            the networks find, for benchmarks of untrained ones.
        watch: Called with the name of each stage and what it gave, which it returns.

    Yields:
        Mask `(batch, height, width)` bool of each stage, in their order: where the foreground
        probability exceeds 0.5.
    """
    pairs = zip(batches, vessels, strict=False)
    if cascade.topology == "device":
        sent = (_send(whole(cascade, params, *pair), pair[0]) for pair in pairs)
    else:
        sent = _beside_the_host(cascade, params, pairs, watch)
    for bits, width in _one_behind(sent):
        masks = np.unpackbits(np.asarray(bits), axis=-1, count=width).astype(bool)
        watch("fusion", masks)
        yield dict(zip(cascade.stages, masks, strict=True))


def segment_examples(
    cascade: Cascade, params, examples: Iterable[dict], batch: int
) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
    """Each example with its masks: bool `(height, width)` of each stage.

    Neighbours of one size pass together; batches are filled up to `batch`, so that a shorter one
    compiles nothing.

    Args:
        cascade: The networks.
        params: Parameters by branch.
        examples: With an "image" `(height, width, 1)`, see `cascade.to_unit`.
        batch: Images at a time.
    """
    groups = deque()

    def images():
        for group in _of_one_size(examples, batch):
            groups.append(group)
            stack = np.stack([example["image"] for example in group])
            yield np.pad(stack, ((0, batch - len(group)), (0, 0), (0, 0), (0, 0)))

    for masks in segment(cascade, params, images()):
        for index, example in enumerate(groups.popleft()):
            yield example, {stage: mask[index] for stage, mask in masks.items()}


def _of_one_size(examples: Iterable[dict], most: int) -> Iterator[list[dict]]:
    for _, group in groupby(examples, key=lambda example: example["image"].shape):
        while some := list(islice(group, most)):
            yield some


def _beside_the_host(cascade, params, pairs, watch) -> Iterator[tuple[jax.Array, int]]:
    with ThreadPoolExecutor(1) as host:
        begun = (_begin(cascade, params, *pair, host, watch) for pair in pairs)
        for batch in _one_behind(begun):
            bits = _bits(cascade, *_finish(cascade, params, batch, watch))
            yield _send(bits, batch.images)


def _send(bits: jax.Array, images) -> tuple[jax.Array, int]:
    """The bits, on their way to the host, and the width of an image."""
    bits.copy_to_host_async()
    return bits, images.shape[2]


def _one_behind(items: Iterable) -> Iterator:
    """Each item when the next one has been drawn too."""
    waiting = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) == 2:
            yield waiting.popleft()
    yield from waiting


class _Batch(NamedTuple):
    """A batch under way.

    Attributes:
        images: On the device.
        coarse: Logits of Global and Local.
        seen: What the patches are cut from; None without FocalNet.
        patches: What the topology stage will return; None without FocalNet.
    """

    images: jax.Array
    coarse: Coarse
    seen: jax.Array | None
    patches: Future | None


def _begin(cascade, params, images, vessel, host: Executor, watch=unwatched) -> _Batch:
    images = jnp.asarray(images)
    coarse, seen, to_sample = watch("coarse", _coarse(cascade, params, images))
    if to_sample is None:
        return _Batch(images, coarse, None, None)
    patches = host.submit(_host_stage, cascade, to_sample, images.shape[1:3], vessel, watch)
    return _Batch(images, coarse, seen, patches)


def _host_stage(cascade: Cascade, to_sample, image: tuple[int, int], vessel, watch):
    found, corner = watch("transfer", jax.device_get(to_sample))
    if vessel is not None:
        found = _cut_out(vessel, corner, found.shape[1:])
    return watch("sampling", sample_patches(cascade, found, corner, image))


def _cut_out(masks: np.ndarray, corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    cut = zip(masks, corners, strict=True)
    return np.stack([mask[r : r + size[0], c : c + size[1]] for mask, (r, c) in cut])


def _finish(cascade, params, batch: _Batch, watch=unwatched) -> tuple[Coarse, jax.Array | None]:
    """Logits of Global and Local, and the canvas of the patches."""
    if batch.patches is None:
        return batch.coarse, None
    size, *image, _ = batch.images.shape
    canvas = windows.empty_canvas(size, tuple(image), channels=2)
    for patches in chunks(cascade.chunk, *batch.patches.result(), size):
        canvas = _focal(cascade, params, batch.seen, canvas, patches)
    return batch.coarse, watch("focal", canvas)


@functools.partial(jax.jit, static_argnums=0)
def whole(cascade: Cascade, params, images: jax.Array, vessel: jax.Array | None) -> jax.Array:
    """The whole cascade as one program, the topology stage on the device.

    Args:
        cascade: The networks.
        params: Parameters by branch.
        images: As for `predict`.
        vessel: As an item of `segment`'s `vessels`.

    Returns:
        Masks `(stages, batch, height, ceil(width / 8))` uint8, eight pixels a byte.
    """
    coarse, seen, to_sample = _coarse(cascade, params, images)
    if to_sample is None:
        return _bits(cascade, coarse, None)
    found, corner = to_sample
    if vessel is not None:
        found = windows.crop(vessel[..., None], corner, found.shape[1:])[..., 0]
    patches, count = patches_on_device(cascade, found, corner, images.shape[1:3])
    return _bits(cascade, coarse, _all_patches(cascade, params, seen, patches, count))


def _all_patches(cascade: Cascade, params, seen, patches: Patches, count) -> jax.Array:
    batch, *image, _ = seen.shape
    missing = -len(patches.owner) % cascade.chunk
    owner = jnp.pad(patches.owner, (0, missing), constant_values=batch)
    patches = Patches(owner, jnp.pad(patches.origin, ((0, missing), (0, 0))))

    def lay_chunk(state):
        start, canvas = state
        some = [jax.lax.dynamic_slice_in_dim(array, start, cascade.chunk) for array in patches]
        canvas = _focal(cascade, params, seen, canvas, Patches(*some))
        return start + cascade.chunk, canvas

    canvas = windows.empty_canvas(batch, tuple(image), channels=2)
    state = jnp.int32(0), canvas
    return jax.lax.while_loop(lambda state: state[0] < count, lay_chunk, state)[1]


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
def _bits(cascade, coarse, canvas):
    """Masks `(stages, batch, height, ceil(width / 8))` uint8."""
    logits = refine(cascade, coarse, canvas)
    masks = jnp.stack([is_vessel(logits[stage]) for stage in cascade.stages])
    return jnp.packbits(masks, axis=-1)
