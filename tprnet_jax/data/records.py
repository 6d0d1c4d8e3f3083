"""What the project's TFDS data sets share: features, and writing them without TensorFlow."""

import contextlib
import io
import os
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from tprnet_jax.data import images
from tprnet_jax.runtime.errors import UserError


def features() -> tfds.features.FeaturesDict:
    """`image` and `mask` (0 or 255), both uint8 (height, width, 1), and `name`, a file name."""
    image = tfds.features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png")
    return tfds.features.FeaturesDict({"image": image, "mask": image, "name": tfds.features.Text()})


def example(image: np.ndarray, mask: np.ndarray, name: str) -> dict[str, bytes | str]:
    """An example for TFDS, which could encode arrays only with TensorFlow.

    Args:
        image: uint8 (height, width).
        mask: uint8 (height, width), 0 or 255.
        name: Of the image's file.
    """
    return {"image": images.encode_png(image), "mask": images.encode_png(mask), "name": name}


def is_written(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether the data set is there, whole."""
    # TFDS writes elsewhere and renames at the end: what is interrupted never gets this name.
    return builder.data_path.exists()


def write(builder: tfds.core.DatasetBuilder) -> None:
    """Writes a data set.

    Raises:
        UserError: The folder cannot be written to.
    """
    try:
        with quiet():
            builder.download_and_prepare()
    except (OSError, RuntimeError) as error:  # The latter is ArrayRecord's.
        # Of two runs that prepare at the same time, the second finds the place taken.
        if not is_written(builder):
            raise cannot_write(builder.data_dir_root, error) from error


def sources(builder: tfds.core.DatasetBuilder) -> dict:
    """Random access to the examples of each split of a data set that is written.

    Raises:
        UserError: Some of its files are lost or damaged.
    """
    try:
        found = {split: builder.as_data_source(split) for split in builder.info.splits}
        for source in found.values():
            source[len(source) - 1]
    except Exception as error:  # Whatever TFDS and ArrayRecord trip over.
        raise _damaged(builder, " ".join(str(error).split())) from error
    if not found:
        raise _damaged(builder, "it has no splits")
    return found


def _damaged(builder: tfds.core.DatasetBuilder, reason: str) -> UserError:
    return UserError(
        f"the prepared data set in {builder.data_path} is damaged ({reason}); delete that folder, "
        "and the same command makes it anew"
    )


def cannot_write(folder: str | os.PathLike, error: Exception) -> UserError:
    """What to tell the user if prepared data cannot be written to a folder."""
    return UserError(
        f"cannot write the prepared data set to {folder} ({error}); set config.data.dir to a "
        "folder that can be written to and has space left"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences TFDS's progress bars, announcements and its warning of a config made on the spot."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)
