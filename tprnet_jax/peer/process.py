"""The released system as the benchmark runs it: batch 1, eager or compiled by PyTorch.

It runs in a process of its own, as its users run it: neither system has the other's threads,
memory or settings about it.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import cv2
import numpy as np

from tprnet_jax.method.cascade import Cascade
from tprnet_jax.runtime import memory
from tprnet_jax.runtime.errors import UserError

_MODELS = {}  # In the peer's process: the function of each task.


class Peer:
    """The released system with random weights, at the sizes of a cascade.

    On a GPU it computes in mixed precision (float16 with a scaled loss), as the released training
    does; on a CPU in float32. Centrelines are those of the true masks, as in our own benchmark.
    """

    def __init__(self, cascade: Cascade, compiled: bool):
        """Starts its process.

        Args:
            cascade: With all three networks.
            compiled: Whether `torch.compile` has compiled the networks.

        Raises:
            UserError: PyTorch or what it needs is not installed, or a network is missing.
        """
        if cascade.focal_net is None:
            raise UserError("config.benchmark.peer needs all three of config.model.branches")
        channels = [tuple(net.channels) for net in cascade.networks.values()]
        sizes = (*channels, cascade.window, cascade.patch, cascade.pixels_per_patch)
        self.process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        with memory.untuned():
            self._call(_prepare, sizes, compiled)

    def seconds(self, task: str, images: np.ndarray, masks: np.ndarray) -> float:
        """How long it takes for these images, one after another.

        Args:
            task: "inference", or "training", which is a step an image.
            images: `(batch, height, width, 1)` uint8.
            masks: True masks, of the same shape, 0 and 255.

        Raises:
            UserError: Its process was killed.
        """
        return self._call(_seconds, task, images, masks)

    def _call(self, function: Callable, *arguments):
        try:
            return self.process.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError(
                "the peer's process was killed, perhaps for want of memory; give less to "
                "config.benchmark.batches"
            ) from error


def _prepare(sizes: tuple, compiled: bool) -> None:
    _MODELS.update(make(sizes, compiled))


def _seconds(task: str, images: np.ndarray, masks: np.ndarray) -> float:
    start = time.perf_counter()
    _MODELS[task](images, masks)
    return time.perf_counter() - start


def make(sizes: tuple, compiled: bool) -> dict[str, Callable]:
    """The functions that are timed, by task; see `Peer`.

    Args:
        sizes: What `released.Released` is built from.
        compiled: As for `Peer`.

    Raises:
        UserError: PyTorch or what it needs is not installed.
    """
    torch, released = _import()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = released.Released(*sizes).to(device)
    if compiled:
        # All three are one class, and each mode of each counts as a compilation of it.
        torch._dynamo.config.recompile_limit = 64
        model.global_net.compile(dynamic=False)
        model.local_net.compile(dynamic=False)
        model.focus_net.compile(dynamic=True)  # The number of patches differs.
    optim = released.Optim()
    sgd = released.optimiser(model, optim)
    mixed = torch.autocast(device, dtype=torch.float16, enabled=device == "cuda")
    scaler = torch.amp.GradScaler(device, enabled=device == "cuda")

    def tensor(image):
        return torch.from_numpy(image[None, None, :, :, 0]).to(device).float() / 255

    def segment(images, masks):
        found = []
        with torch.inference_mode(), mixed:
            for image, mask in zip(images, masks, strict=True):
                vessel = mask[..., 0] > 127
                output = model(tensor(image), released.fuse_on_canvas, vessel=vessel)
                found.append(released.is_vessel(output.final))
        return np.stack(found)

    def train(images, masks):
        for image, mask in zip(images, masks, strict=True):
            vessel = mask[..., 0] > 127
            with mixed:
                output = model(tensor(image), released.fuse_in_sequence, vessel=vessel)
                loss = released.objective(output, tensor(mask))[0]
            released.descend(model, sgd, loss, optim.clip_norm, scaler)
        if device == "cuda":
            torch.cuda.synchronize()

    return {"inference": segment, "training": train}


def _import():
    try:
        import torch

        from tprnet_jax.peer import released
    except ImportError as error:
        raise _missing() from error
    if not hasattr(cv2, "ximgproc"):
        raise _missing()
    return torch, released


def _missing() -> UserError:
    return UserError(
        "config.benchmark.peer needs PyTorch, dynamic-network-architectures and OpenCV's contrib "
        "modules; pip install torch dynamic-network-architectures, then pip install "
        "--force-reinstall --no-deps opencv-contrib-python-headless"
    )
