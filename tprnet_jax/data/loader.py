"""From prepared data sets to splits and batches (Grain)."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import grain.python as grain
import numpy as np
from ml_collections import ConfigDict

from tprnet_jax.data import arcade, folder, images, phantom, records
from tprnet_jax.data.images import Known
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.threads import in_threads

ROOM = 2**31  # Bytes of decoded examples to keep; the 1000 of ARCADE take a quarter of it.


class Part:
    """Random access to a part of a source's examples, in their order.

    Args:
        source: Examples by index.
        indices: Gives the indices of the part; asked once, when an example or their number is.
        of_all: Gives what is known of all images of the source.
    """

    def __init__(
        self, source, indices: Callable[[], Sequence[int]], of_all: Callable[[], list[Known]]
    ):
        self._source, self._indices = source, functools.cache(indices)
        self._of_all = of_all

    def __len__(self) -> int:
        return len(self._indices())

    def __getitem__(self, index: int) -> dict:
        return self._source[self._indices()[index]]

    @property
    def known(self) -> list[Known]:
        """See `known`."""
        of_all = self._of_all()
        return [of_all[index] for index in self._indices()]


class Remembered:
    """Random access to a source's examples, each read once as long as there is room.

    Reading and decoding two PNGs takes some milliseconds, in which a GPU trains on several images.

    Args:
        source: Examples by index.
        room: Bytes of arrays to keep; what finds none is read again.
    """

    def __init__(self, source, room: int = ROOM):
        self._source, self._room, self._kept = source, room, {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        if (kept := self._kept.get(index)) is not None:
            return kept
        example = self._source[index]
        size = sum(np.asarray(value).nbytes for value in example.values())
        # Threads that come at the same time may keep a few examples too many or count one twice.
        if size <= self._room:
            self._room -= size
            self._kept[index] = example
        return example


def known(source) -> list[Known]:
    """What is known of every image of a source; all are read for it, unless they have been."""
    if isinstance(source, Part | folder.Source):
        return source.known

    def look(index: int) -> Known:
        example = source[index]
        return images.known(example["name"].decode(), example["image"])

    return in_threads(look, range(len(source)), "Reading images")


def side(of_all: Sequence[Known]) -> int | None:
    """Longer side of the images, pixels; None where they differ."""
    sides = {each.side for each in of_all}
    return sides.pop() if len(sides) == 1 else None


def hold_out(sources: dict, count: int, seed: int) -> dict:
    """Sources by split, a part of "train" being "holdout" instead; see `choose_holdout`."""
    train = sources["train"]
    of_all = functools.cache(lambda: known(train))

    @functools.cache
    def chosen() -> set[int]:
        return choose_holdout([each.digest for each in of_all()], count, seed)

    def part(of_holdout: bool) -> Part:
        def indices() -> list[int]:
            return [index for index in range(len(train)) if (index in chosen()) == of_holdout]

        return Part(train, indices, of_all)

    return {**sources, "train": part(False), "holdout": part(True)}


def choose_holdout(pictures: Sequence[str], count: int, seed: int) -> set[int]:
    """Indices of the training images to hold out, none of which is trained on as another.

    Args:
        pictures: The digest of each training image.
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
    return records.sources(builder)


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
    source = Remembered(source)
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
