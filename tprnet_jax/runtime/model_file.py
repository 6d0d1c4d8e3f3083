"""One file that holds a trained model: its parameters at half precision, and what it is."""

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

import tprnet_jax
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import write_whole

SUFFIX = ".npz"
SHIPPED = Path(tprnet_jax.__file__).parent / "shipped" / "compact.npz"  # That comes along.
ABOUT = "about"  # Beside the parameters; its text is JSON.


def located(path: str | Path) -> Path:
    """A workdir or model file; nothing or "shipped" is the model that comes along."""
    return SHIPPED if path in ("", "shipped") else Path(path).expanduser()


def write(path: Path, params: dict, about: dict) -> None:
    """Writes a model, whole or not at all.

    Args:
        path: The file.
        params: Tree of arrays; kept as float16.
        about: Anything that JSON can hold; a checksum of the parameters is added.

    Raises:
        OSError: It cannot be written.
    """
    arrays = {
        name: np.asarray(array, np.float16) for name, array in flatten_dict(params, sep="/").items()
    }
    text = json.dumps({**about, "sha256": _digest(arrays)})
    file = io.BytesIO()
    np.savez(file, **arrays, **{ABOUT: np.array(text)})
    write_whole(path, file.getvalue())


def read(path: Path, expected: dict) -> tuple[dict, dict]:
    """What `write` was given, the parameters as float32.

    Args:
        path: The file.
        expected: Tree of the arrays' shapes.

    Raises:
        UserError: The file is no model, is damaged, or of other networks.
    """
    with _opened(path) as file:
        arrays = {name: file[name] for name in file.files if name != ABOUT}
    about = read_about(path)
    if (found := _digest(arrays)) != about["sha256"]:
        raise UserError(
            f"{path} is damaged: its parameters have the SHA-256 {found[:16]}..., not "
            f"{about['sha256'][:16]}...; copy it again"
        )
    _check_shapes(path, arrays, flatten_dict(expected, sep="/"))
    params = {name: array.astype(np.float32) for name, array in arrays.items()}
    return unflatten_dict(params, sep="/"), about


def _check_shapes(path: Path, arrays: dict, expected: dict) -> None:
    for name in sorted(arrays.keys() | expected.keys()):
        found, wanted = (getattr(x.get(name), "shape", "absent") for x in (arrays, expected))
        if found != wanted:
            raise UserError(
                f"{path} is of other networks: its {name} is {found}, but the configuration makes "
                f"it {wanted}; use the configuration that it comes with"
            )


def read_about(path: Path) -> dict:
    """What the model says of itself; see `read`."""
    with _opened(path) as file:
        return json.loads(str(file[ABOUT]))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Mapping]:
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} is no model of this project, or damaged ({reason}); give the workdir of a "
            "run, or copy the file again"
        ) from error


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
