"""Writes metrics_reference.json: what MONAI and gudhi give, for tests without them.

    python tests/make_metrics_reference.py

It needs monai, torch and gudhi, and nothing of `tprnet_jax`. Of the pairs of masks that `pairs`
draws, in their order, are kept:

- `versions` of the packages.
- `pixels`: of prediction and truth, how many are foreground: the masks are still the same.
- `hd95`: MONAI's `compute_hausdorff_distance` with percentile=95, in float32.
- `betti`: Betti numbers 0 and 1 of the prediction, then those of the truth, by gudhi.
"""

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

REFERENCE = Path(__file__).with_name("metrics_reference.json")
TREES, NOISES = 100, 20
WIDEST = 8  # Pixels, the largest radius.


# ---- The masks -----------------------------------------------------------------------------------


def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Predictions and truths, bool (height, width), in whole numbers alone: the same everywhere."""
    return [_trees(seed) for seed in range(TREES)] + [_noises(seed) for seed in range(NOISES)]


def _trees(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A tree; and the same one shifted, narrower or wider, without some branches, with others."""
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(48, 128, 2).tolist())
    true, invented = list(_grow(generator, shape, 9)), list(_grow(generator, shape, 3))
    found = [branch for branch in true if generator.integers(4)] + invented[1:]
    shift, wider = generator.integers(-2, 3, 2), int(generator.integers(-1, 2))
    found = [(one + shift, other + shift, max(radius + wider, 0)) for one, other, radius in found]
    return _draw(found, shape), _draw(true, shape)


def _noises(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shape, density = generator.integers(8, 64, 2), generator.integers(1, 9, 2)
    return tuple(generator.integers(10, size=shape) < each for each in density)


def _grow(generator, shape: tuple[int, int], count: int) -> Iterator[tuple]:
    """Branches, each from where one before ended: ends (2,) and radius. Some leave the image."""
    ends = [(generator.integers(shape), int(generator.integers(1, 8)))]
    for _ in range(count):
        start, radius = ends[generator.integers(len(ends))]
        end = start + generator.integers(-40, 41, 2)
        yield start, end, radius
        ends.append((end, max(radius - int(generator.integers(3)), 0)))


def _draw(branches: list[tuple], shape: tuple[int, int]) -> np.ndarray:
    """Discs along the branches."""
    canvas = np.zeros(np.add(shape, 2 * WIDEST), bool)
    for start, end, radius in branches:
        offsets = np.arange(-radius, radius + 1) ** 2
        disc = np.add.outer(offsets, offsets) <= radius**2
        steps = max(int(np.abs(end - start).max()), 1)
        for step in range(steps + 1):
            row, column = (start + (end - start) * step // steps).tolist()
            if 0 <= row < shape[0] and 0 <= column < shape[1]:
                top, left = row + WIDEST - radius, column + WIDEST - radius
                canvas[top : top + len(disc), left : left + len(disc)] |= disc
    return canvas[WIDEST:-WIDEST, WIDEST:-WIDEST]


# ---- The packages --------------------------------------------------------------------------------


def monai_hd95(prediction: np.ndarray, truth: np.ndarray) -> float:
    """In pixels; neither mask is empty."""
    import torch
    from monai.metrics import compute_hausdorff_distance

    batches = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth))
    found = compute_hausdorff_distance(*batches, include_background=True, percentile=95)
    return found.item()


def gudhi_betti(mask: np.ndarray) -> list[int]:
    """Betti numbers 0 and 1 of the foreground's pixels as closed squares."""
    import gudhi

    # As the top cells of a filtration, in which the foreground comes first.
    complex_ = gudhi.CubicalComplex(top_dimensional_cells=np.where(mask, 0.0, 1.0))
    complex_.compute_persistence()
    return list(complex_.persistent_betti_numbers(0.0, 0.5)[:2])


def make_reference() -> dict:
    """What the file has."""
    drawn = pairs()
    return {
        "versions": {name: importlib.metadata.version(name) for name in ("monai", "gudhi")},
        "pixels": [[int(mask.sum()) for mask in pair] for pair in drawn],
        "hd95": [monai_hd95(*pair) for pair in drawn],
        "betti": [gudhi_betti(prediction) + gudhi_betti(truth) for prediction, truth in drawn],
    }


if __name__ == "__main__":
    REFERENCE.write_text(json.dumps(make_reference()) + "\n")
