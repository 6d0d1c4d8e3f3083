"""A trained cascade as one file, which other programs run with JAX alone."""

import dataclasses
import importlib
import operator
from pathlib import Path

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tprnet_jax import config as configuration
from tprnet_jax import segmenter
from tprnet_jax.method import inference
from tprnet_jax.models.coanet import CoANet
from tprnet_jax.models.lkm_unet import LKMUNet
from tprnet_jax.models.umamba import UMamba
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import write_or_tell
from tprnet_jax.segmenter import LEAST, Segmenter

PLATFORMS = ("cpu", "cuda", "tpu")
OF_ONE_SIZE = (CoANet, LKMUNet, UMamba)  # Whose operations themselves depend on that of the images.


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes the cascade with its weights to `config.export.output`, see `exported`.

    Args:
        config: With the networks of the model.
        workdir: A run's, or a model file.

    Raises:
        UserError: The model cannot be used or exported, the file cannot be written, or
            flatbuffers is missing.
    """
    if not config.export.output:
        raise UserError(
            "config.export.output is empty; give the file to write, such as tprnet.stablehlo"
        )
    shape = tuple(config.export.shape)
    configuration.check(config)
    _check_shape(shape, configuration.cascade(config).global_net)
    configuration.check_on_device(
        config.model,
        "--mode=export puts the topology stage on the device",
        "segment with this model by --mode=predict",
    )
    _check_flatbuffers()
    model = segmenter.of(config, workdir)
    name = _name(model, workdir)
    # Else the file would say where each operation stands on this machine.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    content = exported(model, name, shape).serialize()
    path = Path(config.export.output).expanduser()
    write_or_tell(path, bytes(content))
    print(f"{name} exported to {path} ({len(content) / 1e6:.1f} MB)")


def _check_shape(shape: tuple, net: nn.Module) -> None:
    if not shape and isinstance(net, OF_ONE_SIZE):
        raise UserError(
            f"config.export.shape is empty, but {type(net).__name__} can only be exported for "
            "images of one number and size; give these, such as 1,512,512"
        )
    least = (1, LEAST, LEAST)
    fits = len(shape) == 3 and all(isinstance(size, int) for size in shape)
    if shape and not (fits and all(map(operator.ge, shape, least))):
        raise UserError(
            f"config.export.shape is {shape}; give the number of images, their height and width, "
            f"at least {least}, or nothing for any"
        )


def _check_flatbuffers() -> None:
    try:
        importlib.import_module("flatbuffers")
    except ImportError:
        raise UserError(
            '--mode=export needs flatbuffers; install it with pip install -e ".[export]"'
        ) from None


def _name(model: Segmenter, workdir: Path) -> str:
    """The model and the size of its images, without where it lies on this machine."""
    name = model.name.replace(str(workdir), workdir.resolve().name)
    return f"{name}, images of {model.side} pixels" if model.side else name


def exported(model: Segmenter, name: str, shape: tuple[int, ...] = ()) -> jax.export.Exported:
    """The whole cascade as one function, with its weights, for every platform.

    It maps images `(batch, height, width)` float32 in [0, 1] to mask bool and probability float32
    of that shape. What `Segmenter` does around that, it does not: an image is seen as it is.

    Args:
        model: The cascade; its topology stage goes to the device.
        name: Of the function.
        shape: Of the images; empty for any number of any size from `LEAST` on.
    """
    cascade = dataclasses.replace(model.cascade, topology="device")
    kept = jax.tree.map(_as_small, jax.device_get(model.params))

    def segment(images):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(jnp.float32), kept)
        margin = inference.whole(cascade, params, images[..., None], inference.margin)
        return margin > 0, jax.nn.sigmoid(margin / model.temperature)

    segment.__name__ = name
    shape = shape or jax.export.symbolic_shape(
        "batch, height, width", constraints=[f"height >= {LEAST}", f"width >= {LEAST}"]
    )
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.export.export(jax.jit(segment), platforms=PLATFORMS)(images)


def _as_small(array: np.ndarray) -> np.ndarray:
    """As float16 if that loses nothing, as in what was read from a model file."""
    half = array.astype(np.float16)
    return half if np.array_equal(half, array) else array
