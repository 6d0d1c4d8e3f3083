"""Phantoms as a TFDS data set: the embedded default, which needs no download."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
import tqdm

from tprnet_jax.data import records, scene
from tprnet_jax.runtime.errors import UserError


@dataclasses.dataclass(kw_only=True)
class PhantomConfig(tfds.core.BuilderConfig):
    """What a set of phantoms depends on: side in pixels, number of images by split, seed."""

    size: int
    train: int
    validation: int
    seed: int


class Phantom(tfds.core.GeneratorBasedBuilder):
    """Phantoms as a TFDS builder; `prepare` makes one that is ready to read.

    Features: `image` and `mask` (0 or 255), both uint8 (size, size, 1), and `name`, such as
    train_00012.png. The examples of a split are in the order of their names.
    """

    # A change of what `scene.draw` returns needs a new version, or old files would be taken for it.
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Synthetic X-ray coronary angiograms with exact masks of the vessels",
            features=records.features(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing to download
        config = self.builder_config
        # Odd against even: no phantom is in both splits, and neither split's size moves the other.
        return {
            "train": self._generate_examples("train", range(0, 2 * config.train, 2)),
            "validation": self._generate_examples("validation", range(1, 2 * config.validation, 2)),
        }

    def _generate_examples(self, split: str, indices: range) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        bar = tqdm.tqdm(indices, desc=f"Drawing {split}", unit="image", delay=1, leave=False)
        for key, index in enumerate(bar):
            image, mask = scene.draw(config.seed, index, config.size)
            yield key, records.example(image, mask, f"{split}_{key:05d}.png")


def prepare(size: int, train: int, validation: int, seed: int, data_dir: str | None) -> Phantom:
    """Draws a set of phantoms, writes it as a TFDS data set unless that is done, and opens it.

    Args:
        size: Side of the images in pixels, at least 32.
        train: Number of training images, at least 1.
        validation: Number of validation images, at least 1.
        seed: Of all that is drawn, at least 0.
        data_dir: Where TFDS keeps its data sets; None for its own default.

    Returns:
        A builder that is ready for `as_data_source(split)`, split `train` or `validation`.

    Raises:
        UserError: An argument is too small, or the data set cannot be written.
    """
    least = {"size": 32, "train": 1, "validation": 1, "seed": 0}
    given = {"size": size, "train": train, "validation": validation, "seed": seed}
    for field, value in given.items():
        if value < least[field]:
            raise UserError(
                f"config.data.phantom.{field}={value} is too small; give {least[field]} or more"
            )
    config = PhantomConfig(name="_".join(f"{k}{v}" for k, v in given.items()), **given)
    with records.quiet():
        builder = Phantom(config=config, data_dir=data_dir, file_format="array_record")
    if not records.is_written(builder):
        records.write(builder)
    return builder
