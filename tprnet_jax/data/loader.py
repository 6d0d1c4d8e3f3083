"""From prepared data sets to batches (Grain)."""

from collections.abc import Iterator

import grain.python as grain
import numpy as np
from ml_collections import ConfigDict

from tprnet_jax.errors import UserError


def prepare(config: ConfigDict):
    """Prepares the data set that a configuration names.

    Args:
        config: `config.data`.

    Returns:
        A TFDS builder whose examples have "image" `(height, width, 1)` uint8, "mask" likewise
        with 0 and 255, and "name".

    Raises:
        UserError: The data set is unknown or its source is unusable.
    """
    # The builders import TFDS, which takes a second that other modes need not wait for.
    if config.name == "arcade":
        from tprnet_jax.data import arcade

        return arcade.prepare(config.source, config.dir or None)
    if config.name == "phantom":
        from tprnet_jax.data import phantom

        return phantom.prepare(**config.phantom, data_dir=config.dir or None)
    raise UserError(f"config.data.name is {config.name!r}; choose 'arcade' or 'phantom'")


def examples(builder, split: str):
    """Random access to the examples of a split.

    Raises:
        UserError: The data set has no such split.
    """
    if split not in builder.info.splits:
        raise UserError(
            f"config.eval.split is {split!r}, but {builder.name} has only "
            f"{', '.join(builder.info.splits)} here"
        )
    return builder.as_data_source(split)


def train_batches(
    source, config: ConfigDict, seed: int, batch: int, start: int
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled batches, each epoch in a new order.

    Batch number n is a function of the seed and n alone, whatever number the stream starts at, so
    a resumed run sees what an undisturbed one would.

    Args:
        source: Examples by index.
        config: `config.data`.
        seed: Seed of order and augmentation.
        batch: Examples to a batch.
        start: Number of the first batch.

    Returns:
        Batches of "image" and "mask", `(batch, height, width, 1)` uint8.
    """
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    if config.mirror:
        dataset = dataset.random_map(_mirror)
    dataset = dataset.map(_arrays).batch(batch)[start:]
    stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=16))
    return iter(stream)


def _arrays(example: dict) -> dict[str, np.ndarray]:
    return {"image": example["image"], "mask": example["mask"]}


def _mirror(example: dict, rng: np.random.Generator) -> dict:
    for axis in (0, 1):
        if rng.integers(2):
            flipped = {key: np.flip(example[key], axis) for key in ("image", "mask")}
            example = {**example, **flipped}
    return example


def eval_batches(source, batch: int) -> Iterator[list[dict]]:
    """The examples in order, `batch` at a time; the last batch may be shorter."""
    for start in range(0, len(source), batch):
        yield [source[index] for index in range(start, min(start + batch, len(source)))]
