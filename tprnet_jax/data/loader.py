"""From prepared data sets to batches (Grain)."""

import os
from collections.abc import Iterator

import grain.python as grain
import numpy as np
from ml_collections import ConfigDict

from tprnet_jax.data import arcade, folder, phantom
from tprnet_jax.errors import UserError


def prepare(config: ConfigDict):
    """Prepares the data set that a configuration names.

    Args:
        config: `config.data`.

    Returns:
        A TFDS builder whose examples have "image" `(height, width, 1)` uint8, "mask" likewise
        with 0 and 255, and "name".

    Raises:
        UserError: The source is unusable, or the data cannot be written.
    """
    data_dir = os.path.expanduser(config.dir) or None
    if config.name == "arcade":
        return arcade.prepare(config.source, data_dir)
    if config.name == "folder":
        return folder.prepare(config.source, **config.folder)
    return phantom.prepare(**config.phantom, data_dir=data_dir)


def examples(builder, split: str):
    """Random access to the examples of a split.

    Raises:
        UserError: The data set has no such split.
    """
    if split not in builder.info.splits:
        raise UserError(
            f"the data set {builder.name} has no split {split}, only "
            f"{', '.join(builder.info.splits)}; choose one of these, or a source that has it"
        )
    return builder.as_data_source(split)


def train_batches(
    source, seed: int, batch: int, start: int, part: tuple[int, int] = (0, 1)
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled batches, each epoch in a new order.

    Batch number n is a function of the seed and n alone, whatever number the stream starts at, so
    a resumed run sees what an undisturbed one would.

    Args:
        source: Examples by index.
        seed: Seed of the order.
        batch: Examples to a batch, of all processes together.
        start: Number of the first batch.
        part: This process and the number of processes; each reads its own rows of the batch.

    Returns:
        Batches of "image" and "mask", `(rows, height, width, 1)` uint8 (or images float32 in
        [0, 1]), and of each row its "name", its "index" in the source and its "epoch", `(rows,)`.
    """
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    process, processes = part
    rows = batch // processes

    def read(number: int) -> dict[str, np.ndarray]:
        first = number * batch + process * rows
        positions = np.arange(first, first + rows)
        indices = [order[int(position)] for position in positions]
        return _stack([source[index] for index in indices]) | {
            "index": np.array(indices, np.int32),
            "epoch": (positions // len(source)).astype(np.int32),
        }

    numbers = grain.MapDataset.range(start, 2**31).map(read)
    return iter(numbers.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)))


def _stack(examples: list[dict]) -> dict[str, np.ndarray]:
    sizes = {example["image"].shape[:2] for example in examples}
    if len(sizes) > 1:
        raise UserError(
            f"training images have different sizes, among them {' and '.join(map(str, sizes))}; "
            "set config.train.batch to 1, or bring the images to one size"
        )
    return {key: np.stack([e[key] for e in examples]) for key in ("image", "mask", "name")}
