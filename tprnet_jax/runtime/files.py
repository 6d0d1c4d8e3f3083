"""Files that are written whole or not at all, and read with a sentence for what is wrong."""

import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

from tprnet_jax.runtime.errors import UserError

_PARTIAL = re.compile(r"\.[0-9a-f]{8}\.(\d+)\.partial(\.\w+)?")


def write_whole(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file under another name and renames it, so that no half of it is ever seen.

    Args:
        path: The file; one that is there is replaced.
        content: Bytes, or text to be encoded as UTF-8.

    Raises:
        OSError: It cannot be written; names the file, and nothing is left behind.
    """
    target = Path(path)
    partial = partial_of(target)
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, target)
    except OSError as error:  # Of a full disk, the system does not say which file.
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_or_tell(path: str | os.PathLike, content: bytes | str) -> None:
    """As `write_whole`.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: str | os.PathLike, error: OSError) -> UserError:
    """What is said of a file that cannot be written."""
    return UserError(
        f"cannot write {path} ({error.strerror}); choose a folder that exists, can be written to "
        "and has space left"
    )


def partial_of(target: Path, suffix: str = "") -> Path:
    """Where this process writes a file until it is whole; see `sweep`.

    The name of the file itself would be too long where it is nearly so already.
    """
    digest = zlib.crc32(os.fsencode(target.name))
    return target.with_name(f".{digest:08x}.{os.getpid()}.partial{suffix}")


def shortened(name: str, most: int = 200) -> str:
    """A file's name of at most so many bytes, which file systems want to be 255 or less.

    A checksum stands for the end that a longer one loses.
    """
    encoded = os.fsencode(name)
    if len(encoded) <= most:
        return name
    digest = f",{zlib.crc32(encoded):08x}"
    return encoded[: most - len(digest)].decode(errors="ignore") + digest


def sweep(folder: Path) -> None:
    """Deletes what killed processes have left in a folder of files in the making."""
    for path in folder.glob(".*.partial*"):
        match = _PARTIAL.fullmatch(path.name)
        if match and not _runs_beside(int(match[1])):
            path.unlink(missing_ok=True)


def _runs_beside(process: int) -> bool:
    """Whether another process has this number; in a container, the killed one often had ours."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # It is another user's; or no number of a process.
        return True
    return process != os.getpid()


def for_opencv(path: str | os.PathLike) -> str:
    """The whole path of a file, as OpenCV takes it.

    FFmpeg takes what is before a colon for a protocol, but not in a whole path.

    Raises:
        UserError: It is not UTF-8, of which OpenCV would die.
    """
    whole = os.path.abspath(path)
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the name of {path} is not UTF-8; rename it, or its folder") from error
    return whole


def read_json(path: Path) -> Any:
    """What a JSON file of a run holds.

    Raises:
        UserError: It is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); bring back a copy, or choose another folder"
        ) from error
