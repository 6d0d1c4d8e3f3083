"""Parameters under the names of PyTorch's `PlainConvUNet`, and back; NumPy on both sides.

The class is that of nnU-Net's package `dynamic-network-architectures`. Its state dict has most
tensors under several names, and a head at each coarser stage of the decoder, which only deep
supervision uses: ours has none, so they are dropped on the way in, and zero on the way out.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from tprnet_jax.models.unet import UNet
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


_AXES = {"conv": (2, 3, 1, 0), "up": (2, 3, 0, 1), "vector": (0,)}
_PARAMETERS = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def tensors(net: UNet) -> Iterator[Tensor]:
    """All tensors of a network."""
    key, image = jax.random.key(0), jnp.zeros((1, 8, 8, 1))
    shapes = jax.eval_shape(net.init, key, image)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        path = tuple(step.key for step in path)
        axes = _AXES["vector" if leaf.ndim == 1 else "up" if path[0][:2] == "up" else "conv"]
        shape = tuple(leaf.shape[axes.index(axis)] for axis in range(leaf.ndim))
        yield Tensor(path, tuple(_names(path, len(net.channels))), shape, axes)


def _names(path: tuple[str, ...], stages: int) -> Iterator[str]:
    """Names in a state dict, for example of `("encoder_0_1", "conv", "kernel")`."""
    parameter = _PARAMETERS[path[-1]]
    part, *numbers = path[0].split("_")
    if part == "head":
        yield f"decoder.seg_layers.{stages - 2}.{parameter}"
        return
    if part == "up":
        yield f"decoder.transpconvs.{stages - 2 - int(numbers[0])}.{parameter}"
        return
    stage, block = map(int, numbers)
    layers = (path[1], {"conv": "all_modules.0", "norm": "all_modules.1"}[path[1]])
    if part == "encoder":
        stems = [f"{owner}stages.{stage}.0." for owner in ("encoder.", "decoder.encoder.")]
    else:
        stems = [f"decoder.stages.{stages - 2 - stage}."]
    for stem in stems:
        yield from (f"{stem}convs.{block}.{layer}.{parameter}" for layer in layers)


def idle_heads(net: UNet) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the heads that only deep supervision uses."""
    heads = {}
    for index, channels in enumerate(reversed(net.channels[1:-1])):
        heads[f"decoder.seg_layers.{index}.weight"] = (net.classes, channels, 1, 1)
        heads[f"decoder.seg_layers.{index}.bias"] = (net.classes,)
    return heads


def from_torch(networks: dict[str, UNet], state: dict[str, np.ndarray]) -> dict:
    """Parameters by branch from a state dict.

    Args:
        networks: The branches by name. GlobalNet alone is a plain `PlainConvUNet`; several are
            those of the released TPRNet, each under its prefix.
        state: PyTorch's tensors by name.

    Raises:
        UserError: A tensor is missing, one too many, of another shape, or has two values.
    """
    state, params = dict(state), {}
    for branch, prefix in _prefixes(networks).items():
        net = networks[branch]
        for tensor in tensors(net):
            value = _take(state, [prefix + name for name in tensor.names], tensor.shape)
            params[branch, *tensor.path] = np.ascontiguousarray(value.transpose(tensor.axes))
        for name, shape in idle_heads(net).items():
            _take(state, [prefix + name], shape, needed=False)
    if state:
        name = min(state)
        raise UserError(
            f"it has the tensor {name} {state[name].shape}, which these networks have not"
        )
    return unflatten_dict(params)


def to_torch(networks: dict[str, UNet], params: dict) -> dict[str, np.ndarray]:
    """The state dict of parameters, complete with every name; the inverse of `from_torch`."""
    state, values = {}, flatten_dict(params)
    for branch, prefix in _prefixes(networks).items():
        net = networks[branch]
        for tensor in tensors(net):
            value = values[branch, *tensor.path]
            value = np.ascontiguousarray(np.transpose(value, np.argsort(tensor.axes)))
            state |= {prefix + name: value for name in tensor.names}
        for name, shape in idle_heads(net).items():
            state[prefix + name] = np.zeros(shape, np.float32)
    return state


def _prefixes(networks: dict[str, UNet]) -> dict[str, str]:
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
