"""Writes golden.npz: what the released system gives on a small case, for tests without PyTorch.

    python tests/make_golden.py

It needs PyTorch, dynamic-network-architectures, opencv-contrib-python-headless and scikit-image,
and nothing of `tprnet_jax` but `released.py`. The networks are narrow and otherwise those of the
released system; their weights were random, none of them zero, before a short training. Kept are:

- `image`, `mask`: `(256, 256)` uint8. `sizes`: window, patch, and centreline pixels to a patch.
- `global_channels`, `local_channels`, `focal_channels`.
- `names`, `shapes` (filled up with zeros to four numbers): the tensors of the state dict, each
  under one of its names, idle heads included. The following are these tensors, raveled and joined:
  `state`, the weights; `gradient` of the five-term objective (zero for the idle heads); `stepped`,
  the weights after three steps.
- `optim`: learning rate, momentum, weight decay, largest norm, epochs. Each step is an epoch.
- `window` `(2,)`, `corners` `(patches, 2)` in sampling order, and the masks of the topology stage,
  as bits: `binary`, `closed`, `centreline`.
- Logits, channels last, every third row and column: `global`, `local`, `focal` (one more axis in
  front), `global_local`, `final_training` and `final_test`.
- `terms_five`, `terms_three`: the terms of the objective with FocalNet and without it, in the order
  of `released.objective`, and last their mean.
- Small masks, one after another as bits: `small_shapes` `(masks, 2)`, `small_masks`, and what
  becomes of them: `small_closed`, `small_thinned`, `small_skeletons` (scikit-image).
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from skimage.morphology import skeletonize

from tprnet_jax.peer import released

GOLDEN = Path(__file__).with_name("golden.npz")
SIDE = 256
CHANNELS = ((3, 4, 4, 4, 4, 4, 4, 4), (3, 4, 4, 4, 4, 4, 4), (3, 4, 4, 4))
SIZES = (192, 32, 32)
WARM_UP, WARM_UP_STEPS = released.Optim(epochs=100, learning_rate=0.1, momentum=0.9), 60
# Of the vessels in the mask that is kept, pixels: so gradients are not near zero, nor mere noise.
WIDER = 2
# Stronger than published, so that three steps show the clipping and the decay.
OPTIM = released.Optim(epochs=5, learning_rate=0.1, weight_decay=1e-2, clip_norm=0.2)


# ---- The case ------------------------------------------------------------------------------------


def draw_vessels(wider: float = 0) -> np.ndarray:
    """Curved vessels, their radius wider by so many pixels, `(SIDE, SIDE)` bool."""
    t = np.linspace(0, 1, 400)
    trunk = 40 + 150 * t + 14 * np.sin(5 * t), 60 + 60 * np.sin(2.6 * t)
    branches = [
        (trunk, 7.0),
        ((78 + 30 * t + 18 * np.sin(6 * t), 90 + 140 * t), 5.0),
        ((105 + 130 * t**2, 104 + 92 * t + 8 * np.sin(9 * t)), 4.5),
        ((60 + 95 * t, 74 - 50 * t**2 - 6 * np.sin(8 * t)), 4.0),
        ((170 + 50 * t, 119 - 45 * t + 7 * np.sin(7 * t)), 3.5),
    ]
    rows, columns = np.mgrid[:SIDE, :SIDE]
    vessels = np.zeros((SIDE, SIDE), bool)
    for (row, column), radius in branches:
        for r, c, limit in zip(row, column, radius * (1 - 0.5 * t), strict=True):
            vessels |= (rows - r) ** 2 + (columns - c) ** 2 <= (limit + wider) ** 2
    return vessels


def draw_angiogram(vessels: np.ndarray) -> np.ndarray:
    """Dark vessels on an uneven, noisy background, uint8."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    background = 150 + 40 * rows - 30 * columns + 12 * np.sin(9 * columns + 4 * rows)
    contrast = cv2.GaussianBlur(vessels.astype(np.float64), (0, 0), 1.0)
    noise = np.random.default_rng(0).normal(0, 6, (SIDE, SIDE))
    return np.clip(background - 60 * contrast + noise, 0, 255).astype(np.uint8)


def draw_case(wider: float) -> tuple[np.ndarray, np.ndarray]:
    """The angiogram, and a mask with vessels wider than they are, `(SIDE, SIDE)` uint8."""
    mask = np.where(draw_vessels(wider), 255, 0).astype(np.uint8)
    return draw_angiogram(draw_vessels()), mask


def to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float32) / 255)[None, None]


def build() -> released.Released:
    """The narrow system with random weights, none of them zero."""
    model = released.Released(*CHANNELS, *SIZES)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            fan_in = np.prod(tensor.shape[1:])
            scale = np.sqrt(2 / fan_in) if tensor.ndim == 4 else 0.2
            mean = 1 if name.endswith("norm.weight") else 0
            values = rng.normal(mean, scale, tuple(tensor.shape)).astype(np.float32)
            tensor.copy_(torch.from_numpy(values))
    return model


def canonical_names(model: released.Released) -> list[str]:
    """One name for each tensor: the one that stays when the aliases are left out."""
    names = model.state_dict()
    return [name for name in names if "all_modules" not in name and "decoder.encoder" not in name]


# ---- What is kept --------------------------------------------------------------------------------


def every_third(logits: torch.Tensor) -> np.ndarray:
    """`(batch, 2, height, width)` to `(batch, height / 3, width / 3, 2)`."""
    return np.ascontiguousarray(logits.detach()[:, :, ::3, ::3].permute(0, 2, 3, 1).numpy())


def join(tensors) -> np.ndarray:
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])


def bits(mask: np.ndarray) -> np.ndarray:
    return np.packbits(mask > 0)


def record_forward(model: released.Released, image: torch.Tensor) -> dict[str, np.ndarray]:
    """Logits, places and masks of both forward passes."""
    with torch.no_grad():
        training = model(image, released.fuse_in_sequence)
        test = model(image, released.fuse_on_canvas)
    coarse, places = training.coarse, training.places
    return {
        "window": np.array(coarse.window),
        "corners": places.corners,
        "binary": bits(places.binary),
        "closed": bits(places.closed),
        "centreline": bits(places.centreline),
        "global": every_third(coarse.global_logits)[0],
        "local": every_third(coarse.local_logits)[0],
        "focal": every_third(training.focal_logits),
        "global_local": every_third(coarse.global_local)[0],
        "final_training": every_third(training.final)[0],
        "final_test": every_third(test.final)[0],
    }


def record_terms(output: released.Output, mask: torch.Tensor) -> np.ndarray:
    total, terms = released.objective(output, mask)
    return torch.stack([*terms.values(), total]).detach().numpy()


def record_gradient(model: released.Released, image, mask) -> dict[str, np.ndarray]:
    """The terms of both objectives and the gradient of the first."""
    model.zero_grad(set_to_none=True)
    output = model(image, released.fuse_in_sequence)
    released.objective(output, mask)[0].backward()
    parameters = dict(model.named_parameters())
    tensors = [parameters[name] for name in canonical_names(model)]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in tensors]
    three = model(image, released.fuse_in_sequence, focal=False)
    return {
        "terms_five": record_terms(output, mask),
        "terms_three": record_terms(three, mask),
        "gradient": join(gradients),
    }


def record_steps(model: released.Released, image, mask) -> dict[str, np.ndarray]:
    """Takes three steps, each an epoch of its own, all with FocalNet; changes the model."""
    released.train(model, [[(image, mask)]] * 3, OPTIM, first_focal_epoch=0)
    state = model.state_dict()
    return {"stepped": join(state[name] for name in canonical_names(model))}


def record_weights(model: released.Released) -> dict[str, np.ndarray]:
    state, names = model.state_dict(), canonical_names(model)
    shapes = [(*state[name].shape, 0, 0, 0)[:4] for name in names]
    return {
        "names": np.array(names),
        "shapes": np.array(shapes),
        "state": join(state[name] for name in names),
    }


def record(model: released.Released, image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Everything of the one case; the model is three steps further afterwards."""
    pair = to_tensor(image), to_tensor(mask)
    branches = ("global_channels", "local_channels", "focal_channels")
    return {
        "image": image,
        "mask": mask,
        "sizes": np.array(SIZES),
        **{name: np.array(channels) for name, channels in zip(branches, CHANNELS, strict=True)},
        "optim": np.array([*OPTIM[1:], OPTIM.epochs]),
        **record_weights(model),
        **record_forward(model, pair[0]),
        **record_gradient(model, *pair),
        **record_steps(model, *pair),
    }


# ---- Small masks ---------------------------------------------------------------------------------


def draw_small_masks() -> list[np.ndarray]:
    """Full, empty, noisy, blotched and line-like masks of many sizes; many touch the border."""
    rng = np.random.default_rng(1)
    masks = [np.full((1, 1), value) for value in (False, True)]
    masks += [np.full(shape, True) for shape in ((1, 9), (7, 1), (2, 2), (5, 6), (30, 21))]
    masks += [np.full((12, 17), False)]
    for density in (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        masks.append(rng.random(rng.integers(3, 40, 2)) < density)
    for _ in range(9):
        noise = rng.normal(size=rng.integers(20, (60, 80)))
        masks.append(cv2.GaussianBlur(noise, (0, 0), rng.uniform(1, 3)) > 0)
    for _ in range(8):
        masks.append(_draw_lines(rng, rng.integers(20, (60, 80), endpoint=True)))
    return masks


def _draw_lines(rng: np.random.Generator, shape) -> np.ndarray:
    lines = np.zeros(shape, np.uint8)
    for _ in range(rng.integers(2, 6)):
        ends = rng.integers(0, [*shape[::-1]] * 2).tolist()
        cv2.line(lines, ends[:2], ends[2:], 255, int(rng.integers(1, 7)))
    return lines > 0


def record_small_masks() -> dict[str, np.ndarray]:
    """Small masks and what OpenCV and scikit-image make of them."""
    masks = draw_small_masks()
    grey = [np.where(mask, 255, 0).astype(np.uint8) for mask in masks]
    results = {
        "small_masks": masks,
        "small_closed": [released.close(mask) for mask in grey],
        "small_thinned": [cv2.ximgproc.thinning(mask) for mask in grey],
        "small_skeletons": [skeletonize(mask) for mask in masks],
    }
    joined = {name: np.concatenate([r.ravel() for r in some]) for name, some in results.items()}
    return {
        "small_shapes": np.array([mask.shape for mask in masks]),
        **{name: bits(values) for name, values in joined.items()},
    }


def restore(golden: dict[str, np.ndarray]) -> released.Released:
    """The system with the weights that are kept."""
    model = released.Released(*CHANNELS, *SIZES)
    state, position = model.state_dict(), 0
    with torch.no_grad():
        for name in golden["names"]:
            tensor = state[name]
            values = golden["state"][position : position + tensor.numel()]
            tensor.copy_(torch.from_numpy(values).reshape(tensor.shape))
            position += tensor.numel()
    return model


def main() -> None:
    model, pair = build(), tuple(map(to_tensor, draw_case(wider=0)))
    released.train(model, [[pair]] * WARM_UP_STEPS, WARM_UP, first_focal_epoch=40)
    np.savez_compressed(GOLDEN, **record(model, *draw_case(WIDER)), **record_small_masks())


if __name__ == "__main__":
    main()
