"""Files that are written whole or not at all."""

import os
from pathlib import Path


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
