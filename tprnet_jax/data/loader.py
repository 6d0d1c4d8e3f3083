"""From prepared data sets to splits and batches (Grain)."""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence

import grain.python as grain
import numpy as np
from ml_collections import ConfigDict

from tprnet_jax.data import arcade, folder, phantom
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.threads import in_threads


class Part:
    """Random access to a part of a source's examples, in their order.

    Args:
        source: Examples by index.
        indices: Gives the indices of the part; asked once, when an example or their number is.
    """

    def __init__(self, source, indices: Callable[[], Sequence[int]]):
        self._source, self._indices = source, functools.cache(indices)

    def __len__(self) -> int:
        return len(self._indices())

    def __getitem__(self, index: int) -> dict:
        return self._source[self._indices()[index]]

    @property
    def files(self) -> list[folder.File] | None:
        """See `files`."""
        whole = files(self._source)
        return None if whole is None else [whole[index] for index in self._indices()]


def files(source) -> list[folder.File] | None:
    """The files that examples are read from, where they are a user's own."""
    return getattr(source, "files", None)


def names(source) -> list[str]:
    """The name of every example."""
    if (own := files(source)) is not None:
        return [file.name for file in own]
    return [source[index]["name"].decode() for index in range(len(source))]


def side(source) -> int | None:
    """Longer side of the images, pixels; None where they differ."""
    if (own := files(source)) is None:  # Of a data set that comes along, all are alike.
        return max(source[0]["image"].shape)
    sides = {file.side for file in own}
    return sides.pop() if len(sides) == 1 else None


def hold_out(sources: dict, count: int, seed: int) -> dict:
    """Sources by split, a part of "train" being "holdout" instead; see `choose_holdout`."""
    train = sources["train"]

    @functools.cache
    def chosen() -> set[int]:
        pictures = in_threads(
            lambda index: _digest(train[index]["image"]), range(len(train)), "Looking for twins"
        )
        return choose_holdout(pictures, count, seed)

    def part(of_holdout: bool) -> Part:
        return Part(train, lambda: [i for i in range(len(train)) if (i in chosen()) == of_holdout])

    return {**sources, "train": part(False), "holdout": part(True)}


def _digest(image: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return image.shape, hashlib.sha256(image.tobytes()).digest()


def choose_holdout(pictures: Sequence[Hashable], count: int, seed: int) -> set[int]:
    """Indices of the training images to hold out, none of which is trained on as another.

    Args:
        pictures: Of each training image, what only identical ones share.
        count: Number to hold out: the first ones without a twin in a permutation of all.
        seed: Of the permutation.

    Raises:
        UserError: There are not as many without a twin, or none would be left to train on.
    """
    images, of_picture = len(pictures), Counter(pictures)
    order = np.random.default_rng(seed).permutation(images).tolist()
    alone = [index for index in order if of_picture[pictures[index]] == 1]
    if count > (most := min(len(alone), images - 1)):
        raise UserError(
            f"config.data.holdout is {count}, but of the {images} training images at most {most} "
            f"can be held out ({images - len(alone)} have an identical twin, and one must be left "
            "to train on); make it smaller"
        )
    return set(alone[:count])


def choosing_split(config: ConfigDict) -> str:
    """The split that checkpoints are chosen on.

    Args:
        config: `config.data`.
    """
    return "holdout" if config.holdout else "validation"


def prepare(config: ConfigDict) -> dict:
    """Prepares the data set that a configuration names, with its hold-out if it has one.

    Args:
        config: `config.data`.

    Returns:
        By split, random access to its examples, which have "image" `(height, width, 1)` uint8 (or
        float32 in [0, 1]), "mask" likewise with 0 and 255, and "name".

    Raises:
        UserError: The source is unusable, or the data cannot be written.
    """
    sources = prepare_whole(config)
    if not config.holdout or "train" not in sources:
        return sources
    return hold_out(sources, config.holdout, config.holdout_seed)


def prepare_whole(config: ConfigDict) -> dict:
    """As `prepare`, but all training images are in the split "train"."""
    data_dir = os.path.expanduser(config.dir) or None
    if config.name == "folder":
        return folder.prepare(config.source, **config.folder)
    if config.name == "arcade":
        builder = arcade.prepare(config.source, data_dir)
    else:
        builder = phantom.prepare(**config.phantom, data_dir=data_dir)
    return {split: builder.as_data_source(split) for split in builder.info.splits}


def examples(sources: dict, split: str):
    """Random access to the examples of a split.

    Raises:
        UserError: The data set has no such split, or too few images for its hold-out.
    """
    if split not in sources:
        raise UserError(
            f"the data set has no split {split}, only {', '.join(sources)}; choose one of these, "
            "or a source that has it"
        )
    len(sources[split])  # Chooses the hold-out.
    return sources[split]


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
