"""Published PyTorch weights in, ours out: of the released TPRNet and the networks compared."""

import io
import pickle
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import tprnet_jax
from tprnet_jax import config as configuration
from tprnet_jax import segmenter
from tprnet_jax.method import optimiser
from tprnet_jax.method.cascade import Cascade, init, param_shapes
from tprnet_jax.method.state import State
from tprnet_jax.models.coanet import CoANet
from tprnet_jax.models.resnet import ResNet, with_torchvision
from tprnet_jax.models.weights import from_torch, of_official, to_torch
from tprnet_jax.runtime import checkpoints, model_file
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import write_whole
from tprnet_jax.segmenter import Trained
from tprnet_jax.workdir import images_seen, restore, side, write_config, write_training_images


def run(config: ConfigDict, workdir: Path) -> None:
    """Imports `config.convert.input` into the workdir, or exports it to `config.convert.output`.

    A name that ends in .npz is a model file of this project, "shipped" the one that comes along;
    all others are PyTorch's.

    Raises:
        UserError: Neither or both are given, a file cannot be used, or PyTorch is missing.
    """
    configuration.check(config)
    given, wanted = config.convert.input, config.convert.output
    if bool(given) == bool(wanted):
        raise UserError(
            f"config.convert.input is {given!r} and config.convert.output {wanted!r}; give one of "
            "them: a checkpoint to import, or a file to export to"
        )
    cascade = configuration.cascade(config)
    if model_file.located(given or wanted).suffix == model_file.SUFFIX:
        if given:
            return _make_run(config, segmenter.parameters(given, param_shapes(cascade)), workdir)
        return write_model(config, cascade, workdir, Path(wanted).expanduser())
    _check_published(config)
    if given:
        path = Path(given).expanduser()
        params = jax.device_put(read(path, cascade, config.seed))
        return _make_run(config, Trained(params, str(path), None, set()), workdir)
    return export_weights(config, cascade, workdir, Path(wanted).expanduser())


def _check_published(config: ConfigDict) -> None:
    for field in ("global_fold", "local_fold", "focal_fold", "guided"):
        value, published = (c.model[field] for c in (config, configuration.default()))
        if value != published:
            raise UserError(
                f"config.model.{field} is {value}, which no published network has; convert with "
                f"{published}"
            )


def _make_run(config: ConfigDict, trained: Trained, workdir: Path) -> None:
    """Makes a workdir whose only checkpoint, at step 0, has these weights.

    It can be evaluated and predicted with, and training goes on from it with a fresh optimiser.
    """
    direction, params = optimiser.direction(config.optim), trained.params
    optim = {name: direction.init(branch) for name, branch in params.items()}
    with checkpoints.open_manager(workdir) as manager:
        if manager.latest_step() is not None:
            raise UserError(f"{workdir} already has a run; give another --workdir")
        zero = jnp.zeros((), jnp.int32)
        average = params if config.train.ema else None
        checkpoints.save(manager, 0, State(zero, params, optim, zero, average).parts)
        checkpoints.finish(manager)
    kept = config.copy_and_resolve_references()
    kept.convert.input = ""
    write_config(kept, workdir, trained.side)
    write_training_images([], trained.seen, workdir)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{count:,} parameters ({', '.join(params)}) of {trained.name} imported into {workdir}")


def write_model(config: ConfigDict, cascade: Cascade, workdir: Path, path: Path) -> None:
    """Writes a workdir's checkpoint as a model file, with its configuration.

    Raises:
        UserError: The workdir has no checkpoint of these networks.
    """
    params, step = restore(config, workdir, cascade)
    shared = config.copy_and_resolve_references()
    # Of one machine alone.
    shared.data.source = shared.data.dir = shared.data.folder.splits = ""
    shared.train.start_from, shared.compare.runs = "", ()
    shared.predict.input = shared.predict.output = ""
    shared.convert.input = shared.convert.output = shared.export.output = ""
    about = {
        "name": f"TPRNet {path.stem}, step {step}",
        "side": side(workdir),
        "version": tprnet_jax.__version__,
        "seen": sorted(images_seen(workdir)),
        "config": shared.to_dict(),
    }
    model_file.write(path, jax.device_get(params), about)
    size = path.stat().st_size / 1e6
    print(f"step {step} of {workdir} written to {path} ({size:.1f} MB)")


def export_weights(config: ConfigDict, cascade: Cascade, workdir: Path, path: Path) -> None:
    """Writes a workdir's checkpoint as the released code's PyTorch checkpoint, without optimiser.

    Raises:
        UserError: The workdir has no checkpoint of these networks.
    """
    torch = _torch()
    params, step = restore(config, workdir, cascade)
    state = to_torch(cascade.networks, jax.device_get(params))
    file = io.BytesIO()
    torch.save(
        {
            "epoch": config.train.epochs,
            "network_weights": _as_tensors(torch, state),
            "optimizer_state": {},
            "best_pred": 0.0,
        },
        file,
    )
    write_whole(path, file.getvalue())
    print(f"{len(state)} tensors of step {step} of {workdir} exported to {path}")


def _as_tensors(torch, state: dict[str, np.ndarray]) -> dict:
    # Names of one tensor share its memory, as in PyTorch's own state dicts.
    shared = {id(value): torch.from_numpy(np.array(value)) for value in state.values()}
    return {name: shared[id(value)] for name, value in state.items()}


def read(path: Path, cascade: Cascade, seed: int) -> dict:
    """Parameters by branch from a PyTorch checkpoint; no code in it is run.

    It is one of the released TPRNet; or, for GlobalNet alone, of that network's official code; or
    torchvision's ResNet for CoANet, the rest of which starts at random.

    Args:
        path: The file.
        cascade: The networks.
        seed: Of what starts at random.

    Raises:
        UserError: The file cannot be read, or is not a checkpoint of these networks.
    """
    state, net = _state(path), cascade.global_net
    try:
        if isinstance(net, CoANet) and "conv1.weight" in state:
            params = init(cascade, jax.random.key(seed))
            backbone = ResNet(net.channels, net.blocks)
            return params | {"global": with_torchvision(params["global"], backbone, state)}
        if len(cascade.networks) == 1:
            return {"global": of_official(net, state)}
        return from_torch(cascade.networks, state)
    except UserError as error:
        one = not any(name.startswith("global_net.") for name in state)
        mend = (
            "a single network, as nnU-Net's, is imported with --config=configs/tprnet.py:global"
            if one and len(cascade.networks) > 1
            else "give the --config that describes the networks of the file"
        )
        raise UserError(
            f"{path} is of other networks than --config describes: {error}; {mend}"
        ) from error


def _state(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, under the names of the network that was saved."""
    weights = _load(path)
    for key in ("network_weights", "state_dict", "model_state_dict"):
        if isinstance(weights, dict) and key in weights:
            weights = weights[key]
    if not isinstance(weights, dict) or not all(hasattr(v, "numpy") for v in weights.values()):
        raise UserError(
            f"{path} has no network_weights or state_dict; give a checkpoint of the released "
            "TPRNet, or of one of the networks of config.model.global_net"
        )
    # Wrappers of PyTorch leave their mark on the names.
    return {
        re.sub(r"^(module\.|_orig_mod\.)+", "", name): value.float().numpy()
        for name, value in weights.items()
    }


def _load(path: Path):
    torch = _torch()
    if not path.is_file():
        raise UserError(f"config.convert.input={path} is not a file; give a PyTorch checkpoint")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign:
            raise UserError(
                f"{path} holds {foreign[1]}, which is code and not weights; nothing of it was run, "
                "and it should not be trusted: give a checkpoint of tensors and numbers"
            ) from error
        raise _unreadable(path) from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError) as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> UserError:
    return UserError(
        f"{path} ({path.stat().st_size} bytes) is cut off or no PyTorch checkpoint; copy it again"
    )


def _numpy_scalars() -> list:
    """What pickled NumPy numbers need, such as the best Dice in a checkpoint; harmless."""
    scalar = np._core.multiarray.scalar
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]


def _torch():
    try:
        import torch
    except ImportError:
        raise UserError(
            '--mode=convert needs PyTorch; install it with pip install -e ".[convert]"'
        ) from None
    return torch
