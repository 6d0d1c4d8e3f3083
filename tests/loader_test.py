import itertools

import numpy as np
import pytest

from tprnet_jax import config as configuration
from tprnet_jax.data import loader
from tprnet_jax.errors import UserError


def _source(count):
    """Examples whose every pixel says which one they are, but for one corner that says up."""
    examples = []
    for index in range(count):
        image = np.full((4, 4, 1), index, np.uint8)
        mask = np.zeros((4, 4, 1), np.uint8)
        image[0, 0], mask[0, 0] = 200, 255
        examples.append({"image": image, "mask": mask, "name": f"{index}.png".encode()})
    return examples


def _take(batches, count):
    return list(itertools.islice(batches, count))


def _ids(batches):
    return [int(np.median(image)) for batch in batches for image in batch["image"]]


@pytest.mark.parametrize("batch", [1, 4, 12])
def test_an_epoch_has_every_example_once_and_epochs_differ(batch):
    ids = _ids(_take(loader.train_batches(_source(12), 0, batch, 0), 24 // batch))
    assert sorted(ids[:12]) == sorted(ids[12:]) == list(range(12))
    assert ids[:12] != ids[12:]
    assert ids[:12] != list(range(12))


def test_order_is_a_function_of_the_seed():
    first, again, other = (
        _ids(_take(loader.train_batches(_source(12), seed, 4, 0), 3)) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_stream_started_late_goes_on_as_an_undisturbed_one():
    whole = _take(loader.train_batches(_source(7), 3, 2, 0), 12)
    rest = _take(loader.train_batches(_source(7), 3, 2, 5), 7)
    for left, right in zip(whole[5:], rest, strict=True):
        np.testing.assert_array_equal(left["image"], right["image"])
        np.testing.assert_array_equal(left["mask"], right["mask"])


def test_a_batch_says_which_examples_it_has():
    batch = next(loader.train_batches(_source(4), 0, 4, 0))
    assert batch["image"].dtype == np.uint8
    assert (batch["image"][:, 0, 0] == 200).all()
    np.testing.assert_array_equal(batch["index"], _ids([batch]))
    np.testing.assert_array_equal(batch["name"], [f"{i}.png".encode() for i in batch["index"]])


def test_an_epoch_counts_passes_over_the_data():
    """Batches of 4 of 6 examples: the second one ends the first pass and begins the next."""
    batches = _take(loader.train_batches(_source(6), 0, 4, 0), 4)
    epochs = np.concatenate([batch["epoch"] for batch in batches])
    np.testing.assert_array_equal(epochs, [0] * 6 + [1] * 6 + [2] * 4)
    indices = np.concatenate([batch["index"] for batch in batches])
    assert sorted(indices[:6]) == sorted(indices[6:12]) == list(range(6))


def test_processes_share_each_batch():
    whole = _take(loader.train_batches(_source(12), 0, 4, 3), 5)
    parts = [
        _take(loader.train_batches(_source(12), 0, 4, 3, (process, 2)), 5) for process in (0, 1)
    ]
    for batch, first, second in zip(whole, *parts, strict=True):
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([first[key], second[key]]))


def test_images_of_different_sizes_in_a_batch_are_named():
    source = _source(4)
    source[2] = {**source[2], "image": np.zeros((5, 4, 1), np.uint8)}
    batches = loader.train_batches(source, 0, 4, 0)
    with pytest.raises(UserError, match=r"different sizes, .*\((4|5), 4\) and .*batch to 1"):
        next(batches)


def test_absent_split_is_named(tmp_path):
    data = configuration.default().data
    data.name, data.dir = "phantom", str(tmp_path)
    data.phantom.size, data.phantom.train, data.phantom.validation = 32, 2, 1
    builder = loader.prepare(data)
    assert len(loader.examples(builder, "train")) == 2
    with pytest.raises(UserError, match=r"phantom has no split test, only train, validation"):
        loader.examples(builder, "test")
