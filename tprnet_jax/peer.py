"""The released system as the benchmark runs it: batch 1, eager or compiled by PyTorch."""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from tprnet_jax.cascade import Cascade
from tprnet_jax.errors import UserError


class Peer(NamedTuple):
    """Both take images and true masks, `(batch, height, width, 1)` uint8, one image at a time.

    Attributes:
        segment: Gives the final masks, `(batch, height, width)` bool.
        train: Takes a step an image.
    """

    segment: Callable[[np.ndarray, np.ndarray], np.ndarray]
    train: Callable[[np.ndarray, np.ndarray], None]


def make(cascade: Cascade, compiled: bool) -> Peer:
    """The released system with random weights, at the sizes of a cascade.

    On a GPU it computes in mixed precision (float16 with a scaled loss), as the released training
    does; on a CPU in float32. Centrelines are those of the true masks, as in our own benchmark.

    Args:
        cascade: With all three networks.
        compiled: Whether `torch.compile` has compiled the networks.

    Raises:
        UserError: PyTorch or what it needs is not installed, or a network is missing.
    """
    torch, released = _import()
    if cascade.focal_net is None:
        raise UserError("config.benchmark.peer needs all three of config.model.branches")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    channels = [net.channels for net in cascade.networks.values()]
    sizes = cascade.window, cascade.patch, cascade.pixels_per_patch
    model = released.Released(*channels, *sizes).to(device)
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

    return Peer(segment, train)


def _import():
    try:
        import torch

        from tprnet_jax import released
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
