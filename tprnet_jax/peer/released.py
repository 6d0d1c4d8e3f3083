"""The released TPRNet in PyTorch and OpenCV: the benchmark's peer, and a check in the tests.

Written from a description of the published system, of which it reproduces the exact arithmetic,
defects included. It imports nothing else of `tprnet_jax`, and needs PyTorch,
dynamic-network-architectures and opencv-contrib. Images and logits are NCHW with a batch of one;
positions are (row, column) in pixels; dtype and device are those of the module.
"""

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn


class Optim(NamedTuple):
    """Settings of the training; the defaults are the published ones."""

    epochs: int = 100
    learning_rate: float = 0.01
    momentum: float = 0.99
    weight_decay: float = 3e-5
    clip_norm: float = 12.0


class Coarse(NamedTuple):
    """What GlobalNet and LocalNet give: logits, and the first row and column of the window."""

    global_logits: torch.Tensor
    local_logits: torch.Tensor
    window: tuple[int, int]
    global_local: torch.Tensor


class Places(NamedTuple):
    """What lies between the global-local logits and the patches.

    Masks `(height, width)` uint8 of 0 and 255; first row and column of each patch, int64.
    """

    binary: np.ndarray
    closed: np.ndarray
    centreline: np.ndarray
    corners: np.ndarray


class Output(NamedTuple):
    """All that a forward pass gives; without FocalNet, the last three are None."""

    coarse: Coarse
    places: Places | None
    focal_logits: torch.Tensor | None
    final: torch.Tensor | None


def build_network(channels: tuple[int, ...]) -> PlainConvUNet:
    """One branch, its stages from full resolution down."""
    return PlainConvUNet(
        input_channels=1,
        n_stages=len(channels),
        features_per_stage=list(channels),
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=[1] + [2] * (len(channels) - 1),
        n_conv_per_stage=2,
        num_classes=2,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"negative_slope": 0.01},
        deep_supervision=False,
    )


class Released(nn.Module):
    """The three networks and how they are joined."""

    def __init__(
        self,
        global_channels: tuple[int, ...],
        local_channels: tuple[int, ...],
        focal_channels: tuple[int, ...],
        window: int,
        patch: int,
        pixels_per_patch: int,
    ):
        super().__init__()
        self.global_net = build_network(global_channels)
        self.local_net = build_network(local_channels)
        self.focus_net = build_network(focal_channels)
        self.window = window
        self.patch = patch
        self.pixels_per_patch = pixels_per_patch

    def coarse(self, image: torch.Tensor) -> Coarse:
        """GlobalNet, the window around what it found, LocalNet, and the mean of both."""
        global_logits = self.global_net(image)
        window = window_origin(is_vessel(global_logits), self.window)
        local_logits = self.local_net(cut(image, window, self.window))
        global_local = global_logits.clone()
        inside = cut(global_local, window, self.window)
        inside[:] = (cut(global_logits, window, self.window) + local_logits) / 2
        return Coarse(global_logits, local_logits, window, global_local)

    def places(self, vessel: np.ndarray) -> Places:
        """The topology stage, from a mask `(height, width)` bool to the patches' corners."""
        binary = np.where(vessel, 255, 0).astype(np.uint8)
        closed = close(binary)
        centreline = cv2.ximgproc.thinning(closed)
        points = np.argwhere(centreline)
        count = max(len(points) // self.pixels_per_patch, 1)
        corners = points[farthest_points(points, count)] - self.patch // 2
        last = np.array(binary.shape) - self.patch
        return Places(binary, closed, centreline, np.clip(corners, 0, last))

    def focal(self, image: torch.Tensor, corners: np.ndarray) -> torch.Tensor:
        """FocalNet on all patches as one batch."""
        patches = [cut(image, corner, self.patch) for corner in corners]
        return self.focus_net(torch.cat(patches))

    def forward(
        self, image: torch.Tensor, fuse, focal: bool = True, vessel: np.ndarray | None = None
    ) -> Output:
        """The whole system.

        Args:
            image: `(1, 1, height, width)`.
            fuse: `fuse_in_sequence` (training) or `fuse_on_canvas` (test).
            focal: Whether FocalNet takes part.
            vessel: The mask to take the centreline from, in place of what was found.
        """
        coarse = self.coarse(image)
        if not focal:
            return Output(coarse, None, None, None)
        found = is_vessel(coarse.global_local)
        places = self.places(found if vessel is None else vessel)
        focal_logits = self.focal(image, places.corners)
        final = fuse(coarse.global_local, focal_logits, places.corners)
        return Output(coarse, places, focal_logits, final)


def is_vessel(logits: torch.Tensor) -> np.ndarray:
    """`(height, width)` bool: where the probability of class 1 exceeds one half."""
    return (torch.softmax(logits.detach(), dim=1)[0, 1] > 0.5).cpu().numpy()


def window_origin(mask: np.ndarray, window: int) -> tuple[int, int]:
    """First row and column of the window; the column from half the width of the box."""
    mask = mask if mask.any() else np.ones_like(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    row = int((rows[0] + rows[-1] + 1) / 2 - window / 2)
    column = int((columns[-1] + 1 - columns[0]) / 2 - window / 2)
    height, width = mask.shape
    return min(max(row, 0), height - window), min(max(column, 0), width - window)


def cut(image: torch.Tensor, corner, side: int) -> torch.Tensor:
    """A view of the square with this first row and column."""
    row, column = corner
    return image[:, :, row : row + side, column : column + side]


def close(binary: np.ndarray) -> np.ndarray:
    """Dilation by a 3x3 square, erosion by a 4x4 square."""
    dilated = cv2.dilate(binary, np.ones((3, 3), np.uint8))
    return cv2.erode(dilated, np.ones((4, 4), np.uint8))


def farthest_points(points: np.ndarray, count: int) -> list[int]:
    """Indices of the sampled points, in order."""
    np.random.seed(1)  # noqa: NPY002, the legacy stream is the published one
    chosen = [np.random.randint(0, len(points))]  # noqa: NPY002
    nearest = np.full(len(points), np.inf)
    while len(chosen) < count:
        squared = np.square(points - points[chosen[-1]]).sum(axis=1)
        nearest = np.minimum(nearest, squared)
        chosen.append(int(nearest.argmax()))
    return chosen


def fuse_in_sequence(
    global_local: torch.Tensor, focal_logits: torch.Tensor, corners: np.ndarray
) -> torch.Tensor:
    """Training: patch after patch is averaged into the logits."""
    final, side = global_local.clone(), focal_logits.shape[-1]
    for logits, corner in zip(focal_logits, corners, strict=True):
        place = cut(final, corner, side)
        place[:] = 0.5 * logits[None] + 0.5 * place.clone()
    return final


def fuse_on_canvas(
    global_local: torch.Tensor, focal_logits: torch.Tensor, corners: np.ndarray
) -> torch.Tensor:
    """Test: the patches on a canvas of zeros, then the mean with the logits everywhere."""
    canvas, side = torch.zeros_like(global_local), focal_logits.shape[-1]
    written = torch.zeros_like(global_local[:, :1], dtype=torch.bool)
    for logits, corner in zip(focal_logits, corners, strict=True):
        place, before = cut(canvas, corner, side), cut(written, corner, side)
        place[:] = torch.where(before, (place + logits[None]) / 2, logits[None])
        before[:] = True
    return (canvas + global_local) / 2


def segmentation_loss(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cross-entropy + soft Dice; mask `(batch, 1, height, width)` in {0, 1}."""
    entropy = nn.functional.cross_entropy(logits, mask[:, 0].long())
    probability = torch.softmax(logits, dim=1)[:, 1:]
    overlap = 2 * (probability * mask).sum() + 1e-5
    return entropy - overlap / (probability.sum() + mask.sum() + 1e-5)


def objective(output: Output, mask: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Mean of the five terms, or of three without FocalNet, and the terms."""
    coarse = output.coarse
    side = coarse.local_logits.shape[-1]
    terms = {
        "global": segmentation_loss(coarse.global_logits, mask),
        "local": segmentation_loss(coarse.local_logits, cut(mask, coarse.window, side)),
        "global_local": segmentation_loss(coarse.global_local, mask),
    }
    if output.final is not None:
        terms["final"] = segmentation_loss(output.final, mask)
        terms["focal"] = patch_loss(output.focal_logits, output.places.corners, mask)
    return sum(terms.values()) / len(terms), terms


def patch_loss(logits: torch.Tensor, corners: np.ndarray, mask: torch.Tensor) -> torch.Tensor:
    """Mean loss of the patches, without a gradient."""
    side = logits.shape[-1]
    losses = [
        segmentation_loss(one[None], cut(mask, corner, side))
        for one, corner in zip(logits.detach(), corners, strict=True)
    ]
    return torch.stack(losses).mean()


def optimiser(model: Released, optim: Optim) -> torch.optim.SGD:
    """The published one."""
    return torch.optim.SGD(
        model.parameters(),
        lr=optim.learning_rate,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=True,
    )


def descend(model: Released, sgd, loss: torch.Tensor, clip_norm: float, scaler=None) -> None:
    """One step down the gradient of a loss, in place.

    Args:
        model: Whose gradient is clipped.
        sgd: Its optimiser.
        loss: Scalar.
        clip_norm: Largest norm of the gradient.
        scaler: Scales the loss in mixed precision; None in float32.
    """
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    sgd.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(sgd)
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    scaler.step(sgd)
    scaler.update()


def train(
    model: Released,
    epochs: Iterable[Iterable[tuple[torch.Tensor, torch.Tensor]]],
    optim: Optim,
    first_focal_epoch: int = 1,
) -> None:
    """Trains in place, a step a pair of image and mask; the epochs may be the first ones only."""
    sgd = optimiser(model, optim)
    for epoch, pairs in enumerate(epochs):
        for group in sgd.param_groups:
            group["lr"] = optim.learning_rate * (1 - epoch / optim.epochs) ** 0.9
        for image, mask in pairs:
            output = model(image, fuse_in_sequence, focal=epoch >= first_focal_epoch)
            descend(model, sgd, objective(output, mask)[0], optim.clip_norm)
