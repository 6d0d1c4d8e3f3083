"""Parameters under PyTorch's names, and back; NumPy on both sides.

Each network names its own tensors. The state dicts of nnU-Net's classes have most of them under
several names, and heads that only deep supervision uses: those are dropped on the way in where ours
has none, and zero on the way out.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from tprnet_jax.models.parts import torch_axes
from tprnet_jax.runtime.errors import UserError

PREFIXES = {"global": "global_net.", "local": "local_net.", "focal": "focus_net."}


class Tensor(NamedTuple):
    """One tensor of a network on both sides.

    Attributes:
        path: Its place in our parameters.
        names: Its names in a state dict; the first one is always there.
        shape: Its shape there.
        axes: For each axis here, the axis there.
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...]


def tensors(net: nn.Module, channels: int = 1) -> Iterator[Tensor]:
    """All tensors of a network for images of so many channels."""
    for path, leaf in flatten_dict(_shapes(net, channels)).items():
        axes = torch_axes(path, leaf.ndim)
        shape = tuple(leaf.shape[axes.index(axis)] for axis in range(leaf.ndim))
        yield Tensor(path, tuple(net.torch_names(path)), shape, axes)


@functools.cache  # A deep network takes a second.
def _shapes(net: nn.Module, channels: int) -> dict:
    key, image = jax.random.key(0), jnp.zeros((1, 64, 64, channels))
    return jax.eval_shape(net.init, key, image)["params"]


def from_torch(
    networks: dict[str, nn.Module], state: dict[str, np.ndarray], channels: int = 1
) -> dict:
    """Parameters by branch from a state dict.

    Args:
        networks: The branches by name. GlobalNet alone is a plain `PlainConvUNet`; several are
            those of the released TPRNet, each under its prefix.
        state: PyTorch's tensors by name.
        channels: Of the images.

    Raises:
        UserError: A tensor is missing, one too many, of another shape, or has two values.
    """
    state, params = dict(state), {}
    for branch, prefix in _prefixes(networks).items():
        net = networks[branch]
        for tensor in tensors(net, channels):
            value = _take(state, [prefix + name for name in tensor.names], tensor.shape)
            params[branch, *tensor.path] = np.ascontiguousarray(value.transpose(tensor.axes))
        for name, shape in net.torch_idle().items():
            _take(state, [prefix + name], shape, needed=False)
    if state:
        name = min(state)
        raise UserError(
            f"it has the tensor {name} {state[name].shape}, which these networks have not"
        )
    return unflatten_dict(params)


def of_official(net: nn.Module, state: dict[str, np.ndarray]) -> dict:
    """Parameters of a single network from the state dict of its official code.

    There, images may have three channels: a kernel's sum over them does to a grey image what they
    do to it three times. And there may be one class: the other one's logits are 0, so that two
    classes have the same probabilities.

    Args:
        net: The network.
        state: PyTorch's tensors by name.

    Raises:
        UserError: See `from_torch`.
    """
    variants = [(net.clone(classes=classes), c) for c in (1, 3) for classes in (net.classes, 1)]
    fitting = (v for v in variants if all(_has(state, tensor) for tensor in tensors(*v)))
    published, channels = next(fitting, variants[0])
    params = from_torch({"global": published}, state, channels)["global"]
    return jax.tree.map(_fitted, params, _shapes(net, channels=1))


def _has(state: dict, tensor: Tensor) -> bool:
    value = state.get(tensor.names[0])
    return value is not None and value.shape == tensor.shape


def _fitted(value: np.ndarray, ours: jax.ShapeDtypeStruct) -> np.ndarray:
    if value.shape == ours.shape:
        return value
    if value.shape[-1] < ours.shape[-1]:
        return np.concatenate([np.zeros_like(value), value], axis=-1)
    return value.sum(axis=-2, keepdims=True)


def to_torch(
    networks: dict[str, nn.Module], params: dict, channels: int = 1
) -> dict[str, np.ndarray]:
    """The state dict of parameters, complete with every name; the inverse of `from_torch`."""
    state, values = {}, flatten_dict(params)
    for branch, prefix in _prefixes(networks).items():
        net = networks[branch]
        for tensor in tensors(net, channels):
            value = values[branch, *tensor.path]
            value = np.ascontiguousarray(np.transpose(value, np.argsort(tensor.axes)))
            state |= {prefix + name: value for name in tensor.names}
        for name, shape in net.torch_idle().items():
            state[prefix + name] = np.zeros(shape, np.float32)
    return state


def _prefixes(networks: dict[str, nn.Module]) -> dict[str, str]:
    return {"global": ""} if len(networks) == 1 else {name: PREFIXES[name] for name in networks}


def _take(state: dict, names: list[str], shape: tuple[int, ...], needed: bool = True):
    """Takes one tensor, under all its names, out of a state dict."""
    found = {name: state.pop(name) for name in names if name in state}
    if needed and names[0] not in found:
        raise UserError(f"it lacks the tensor {names[0]} {shape}")
    for name, value in found.items():
        if value.shape != shape:
            raise UserError(f"its tensor {name} is {value.shape}, not {shape}")
        if not np.array_equal(value, found[names[0]], equal_nan=True):
            raise UserError(f"its tensors {names[0]} and {name} should be one, but differ")
    return found.get(names[0])
