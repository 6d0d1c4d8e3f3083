"""The golden numbers of the compared networks: what their official PyTorch modules give.

Weights and input follow from names and shapes by a rule (a hash), so that the files in
`tests/baselines/` need only have results. Computed in float64, in evaluation mode.
"""

import json
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tprnet_jax.models import weights

FOLDER = Path(__file__).parent / "baselines"


class Golden(NamedTuple):
    """One network's numbers.

    Attributes:
        facts: The file.
        params: Parameters of our network, float64.
        image: Its input `(batch, height, width, channels)`, float64.
    """

    facts: dict
    params: dict
    image: np.ndarray


def read(name: str, net) -> Golden:
    """The golden numbers `name` for our `net`, by way of its names in PyTorch."""
    facts = json.loads((FOLDER / f"golden_{name}.json").read_text())
    shape = facts["input"]["shape"]
    image = wave(shape)
    np.testing.assert_allclose(image.mean(), facts["input"]["stats"]["mean"], atol=1e-9)
    state = {name: filled(name, *about, facts.get("gain")) for name, *about in facts["tensors"]}
    params = weights.from_torch({"global": net}, state, channels=shape[1])["global"]
    return Golden(facts, params, image.transpose(0, 2, 3, 1))


def values(name: str, shape) -> np.ndarray:
    """Numbers in [-1, 1), by a hash of their place and name."""
    with np.errstate(over="ignore"):
        x = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(2654435761)
        x = x + np.uint32(zlib.crc32(name.encode()))
        x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
        x = x ^ (x >> 16)
    return (2 * x.astype(np.float64) / 2**32 - 1).reshape(shape)


def filled(name: str, shape, kind: str, gain) -> np.ndarray:
    """A tensor by its name, its shape in PyTorch and its kind."""
    v = values(name, shape)
    if kind in ("w", "convT"):
        fan = shape[0] if kind == "convT" else math.prod(shape[1:])
        return _gain(name, gain) * v * math.sqrt(3 / fan)
    if kind == "A_log":
        return np.log(np.arange(1, shape[1] + 1)) + 0.1 * v
    offset, factor = {
        "scale": (1, 0.1),
        "D": (1, 0.1),
        "bias": (0, 0.1),
        "dtbias": (-3, 1),
        "mean": (0, 0.1),
        "var": (1, 0.2),
    }[kind]
    return offset + factor * v


def wave(shape) -> np.ndarray:
    """The input, `(batch, channels, height, width)`."""
    height, width = shape[2:]
    row, column = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    wave = np.sin(2 * np.pi * (3 * row + 2 * column)) + np.cos(2 * np.pi * (5 * column - row))
    return 0.5 * values("input", shape) + 0.5 * wave


def _gain(name: str, gain: dict | None) -> float:
    if gain is None:
        return 1
    return gain["backbone." if name.startswith("backbone.") else "others"]


def assert_samples(output, facts: dict, tolerance: float) -> None:
    """Compares `(batch, height, width, channels)` with one entry of a file's "outputs"."""
    output = np.asarray(output).transpose(0, 3, 1, 2)
    assert list(output.shape) == facts["shape"]
    *places, expected = np.array(facts["samples_bchw_value"]).T
    found = output[tuple(place.astype(int) for place in places)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def assert_activation(activation, facts: dict, tolerance: float) -> None:
    """Compares `(batch, height, width, channels)` with one entry of a file's "activations"."""
    activation = np.asarray(activation).transpose(0, 3, 1, 2)
    assert list(activation.shape) == facts["shape"]
    found = activation.ravel()[np.array(facts["flat_index"])]
    np.testing.assert_allclose(found, facts["value"], rtol=0, atol=tolerance)


def loss(outputs: dict, facts: dict):
    """That of a file's gradients: the sum of the means of outputs, each times numbers in [-1, 1).

    Args:
        outputs: By name, `(batch, height, width, channels)`.
        facts: The file.
    """
    total = 0
    for name, output in outputs.items():
        weight = values("cot." + name, facts["outputs"][name]["shape"]).transpose(0, 2, 3, 1)
        total += (output * weight.astype(output.dtype)).mean()
    return total


def assert_gradients(gradients: dict, net, facts: dict, tolerance: float) -> None:
    """Compares the gradients of `loss` by a network's parameters with a file's.

    Of some tensors the file has the norm, the sum, and the first number. An error as large as a
    share of the norm moves the norm and the first number by no more, and the sum by no more than
    that times the root of how many numbers there are.

    Args:
        gradients: As the parameters.
        net: Whose they are.
        facts: The file.
        tolerance: The share.
    """
    found = weights.to_torch({"global": net}, {"global": gradients})
    for name, expected in facts["gradients"]["params"].items():
        error, tensor = tolerance * expected["l2"], np.float64(found[name])
        assert abs(np.linalg.norm(tensor) - expected["l2"]) <= error, name
        assert abs(tensor.flat[0] - expected["first"]) <= error, name
        assert abs(tensor.sum() - expected["sum"]) <= error * tensor.size**0.5, name
