"""Files that are written whole or not at all, and read with a sentence for what is wrong."""

import json
import os
from pathlib import Path
from typing import Any

from tprnet_jax.runtime.errors import UserError


def write_whole(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file under another name and renames it, so that no half of it is ever seen.

    Args:
        path: The file; one that is there is replaced.
        content: Bytes, or text to be encoded as UTF-8.

    Raises:
        OSError: It cannot be written; names the file, and nothing is left behind.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, target)
    except OSError as error:  # Of a full disk, the system does not say which file.
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """What a JSON file of a run holds.

    Raises:
        UserError: It is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); bring back a copy, or choose another --workdir"
        ) from error
