"""The cascade on batches of images, the host's part beside the device's."""

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tprnet_jax import windows
from tprnet_jax.cascade import (
    Cascade,
    Coarse,
    chunks,
    coarse_logits,
    focal_logits,
    is_vessel,
    lay,
    network_input,
    refine,
    sample_patches,
    sampling_mask,
)


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
        logits = _finish(cascade, params, _begin(cascade, params, images, host))
    probabilities = jax.device_get(_probabilities(cascade, *logits))
    return {stage: probabilities[stage] for stage in cascade.stages}


def segment(
    cascade: Cascade, params: dict, batches: Iterable[np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """Runs the whole cascade on batch after batch.

    While the device works on one batch, the host samples the patches of the next, and the caller
    has the one before. Masks travel as bits.

    Args:
        cascade: The networks.
        params: Parameters by branch.
        batches: Images, each batch as for `predict`; a new size of batch or image compiles.

    Yields:
        Mask `(batch, height, width)` bool of each stage, in their order: where the foreground
        probability exceeds 0.5.
    """
    with ThreadPoolExecutor(1) as host:
        begun = (_begin(cascade, params, images, host) for images in batches)
        finished = (_sent(cascade, params, batch) for batch in _one_behind(begun))
        for bits, width in _one_behind(finished):
            masks = np.unpackbits(np.asarray(bits), axis=-1, count=width).astype(bool)
            yield dict(zip(cascade.stages, masks, strict=True))


def _one_behind(items: Iterable) -> Iterator:
    """Each item when the next one has been drawn too."""
    waiting = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) == 2:
            yield waiting.popleft()
    yield from waiting


class _Batch(NamedTuple):
    """A batch under way: images, logits of Global and Local, and what the host will return."""

    images: jax.Array
    coarse: Coarse
    patches: Future | None


def _begin(cascade: Cascade, params, images: np.ndarray, host: Executor) -> _Batch:
    images = jnp.asarray(images)
    coarse, to_sample = _coarse(cascade, params, images)
    if to_sample is None:
        return _Batch(images, coarse, None)
    return _Batch(images, coarse, host.submit(_host_stage, cascade, to_sample, images.shape[1:3]))


def _host_stage(cascade: Cascade, to_sample, image: tuple[int, int]):
    return sample_patches(cascade, *jax.device_get(to_sample), image)


def _finish(cascade: Cascade, params, batch: _Batch) -> tuple[Coarse, jax.Array | None]:
    """Logits of Global and Local, and the canvas of the patches."""
    if batch.patches is None:
        return batch.coarse, None
    size, *image, _ = batch.images.shape
    canvas = windows.empty_canvas(size, tuple(image), channels=2)
    for patches in chunks(cascade.chunk, *batch.patches.result(), size):
        canvas = _focal(cascade, params, batch.images, canvas, patches)
    return batch.coarse, canvas


def _sent(cascade: Cascade, params, batch: _Batch) -> tuple[jax.Array, int]:
    """The masks as bits, on their way to the host, and the width of an image."""
    bits = _bits(cascade, *_finish(cascade, params, batch))
    bits.copy_to_host_async()
    return bits, batch.images.shape[2]


@functools.partial(jax.jit, static_argnums=0)
def _coarse(cascade, params, images):
    coarse = coarse_logits(cascade, params, network_input(cascade, images))
    return coarse, None if cascade.focal_net is None else sampling_mask(cascade, coarse)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _focal(cascade, params, images, canvas, patches):
    logits = focal_logits(cascade, params, network_input(cascade, images), patches)
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
