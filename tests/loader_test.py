import itertools
import os

import numpy as np
import pytest

from tprnet_jax import config as configuration
from tprnet_jax.data import loader
from tprnet_jax.runtime.errors import UserError


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


def test_examples_are_read_once_as_long_as_there_is_room():
    class Counting:
        def __init__(self):
            self.reads = []

        def __len__(self):
            return 3

        def __getitem__(self, index):
            self.reads.append(index)
            return {"image": np.full((2, 2, 1), index, np.uint8), "name": b"abc"}

    source = Counting()
    remembered = loader.Remembered(source, room=2 * 7 + 6)  # Two of them: 4 bytes and a name of 3.
    values = [int(remembered[index]["image"][0, 0, 0]) for index in (0, 1, 2, 0, 1, 2)]
    assert values == [0, 1, 2, 0, 1, 2]
    assert source.reads == [0, 1, 2, 2]


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
    sources = loader.prepare(data)
    assert len(loader.examples(sources, "train")) == 2
    with pytest.raises(UserError, match=r"the data set has no split test, only train, validation"):
        loader.examples(sources, "test")


# ---- The hold-out --------------------------------------------------------------------------------


def _sources(*twins):
    """Six training examples, the images of some of which are made equal, and one of validation."""
    train = _source(6)
    for first, second in twins:
        train[second]["image"] = train[first]["image"].copy()
    return {"train": train, "validation": _source(1)}


def _numbers(data_set, split):
    source = loader.examples(data_set, split)
    return [int(source[index]["name"].split(b".")[0]) for index in range(len(source))]


@pytest.mark.parametrize(
    ("twins", "train", "holdout"),
    [
        # NumPy permutes six as 3, 2, 5, 4, 0, 1.
        ([], [0, 1, 4, 5], [2, 3]),
        ([(2, 4)], [0, 1, 2, 4], [3, 5]),
        ([(3, 0), (3, 2)], [0, 1, 2, 3], [4, 5]),
        ([(3, 2), (4, 5)], [2, 3, 4, 5], [0, 1]),
    ],
)
def test_the_first_of_a_permutation_without_a_twin_are_held_out(twins, train, holdout):
    data_set = loader.hold_out(_sources(*twins), 2, seed=0)
    assert _numbers(data_set, "train") == train
    assert _numbers(data_set, "holdout") == holdout
    assert _numbers(data_set, "validation") == [0]


def test_equal_bytes_in_another_shape_are_no_twin():
    data_set = _sources((0, 1))
    data_set["train"][1]["image"] = data_set["train"][1]["image"].reshape(2, 8, 1)
    assert len(_numbers(loader.hold_out(data_set, 5, seed=0), "holdout")) == 5


@pytest.mark.parametrize(
    ("twins", "count", "message"),
    [
        ([], 6, r"holdout is 6, but of the 6 training images at most 5 can .*\(0 have .* smaller"),
        ([], 7, r"holdout is 7, but of the 6 training images at most 5 can"),
        ([(0, 1)], 5, r"holdout is 5, but of the 6 training images at most 4 can .*\(2 have an"),
        ([(0, 1), (2, 3), (4, 5)], 1, r"holdout is 1, but .* at most 0 can be .*\(6 have an"),
    ],
)
@pytest.mark.parametrize("split", ["train", "holdout"])
def test_a_holdout_that_is_too_large_is_named(twins, count, message, split):
    data_set = loader.hold_out(_sources(*twins), count, seed=0)
    with pytest.raises(UserError, match=r"^config\.data\." + message):
        loader.examples(data_set, split)


@pytest.mark.parametrize(("twins", "most"), [([], 5), ([(0, 1)], 4)])
def test_the_largest_holdout_leaves_an_image_and_the_twins(twins, most):
    data_set = loader.hold_out(_sources(*twins), most, seed=0)
    assert len(_numbers(data_set, "holdout")) == most
    assert len(_numbers(data_set, "train")) == 6 - most


def _phantoms(tmp_path, **fields):
    config = configuration.default()
    config.data.name, config.data.dir = "phantom", str(tmp_path)
    config.data.phantom.size, config.data.phantom.train, config.data.phantom.validation = 32, 9, 1
    config.update_from_flattened_dict(fields)
    return loader.prepare(config.data)


def _names(data_set, split):
    source = loader.examples(data_set, split)
    return [source[index]["name"] for index in range(len(source))]


def test_holdout_and_rest_are_disjoint_and_complete_and_a_function_of_their_seed(tmp_path):
    whole = _names(_phantoms(tmp_path), "train")
    held_out = _phantoms(tmp_path, **{"data.holdout": 3})
    assert tuple(held_out) == ("train", "validation", "holdout")
    train, holdout = (_names(held_out, split) for split in ("train", "holdout"))
    assert (len(train), len(holdout)) == (6, 3)
    assert sorted(train + holdout) == whole
    assert train == sorted(train)
    other_run = _phantoms(tmp_path, **{"data.holdout": 3, "seed": 1})
    assert _names(other_run, "holdout") == holdout
    other_choice = _phantoms(tmp_path, **{"data.holdout": 3, "data.holdout_seed": 1})
    assert _names(other_choice, "holdout") != holdout
    assert sorted(_names(other_choice, "train") + _names(other_choice, "holdout")) == whole


def test_without_a_holdout_there_is_no_such_split(tmp_path):
    data_set = _phantoms(tmp_path)
    with pytest.raises(
        UserError, match=r"the data set has no split holdout, only train, validation"
    ):
        loader.examples(data_set, "holdout")
    assert loader.choosing_split(configuration.default().data) == "validation"


@pytest.mark.arcade
def test_the_images_that_arcade_has_twice_are_never_held_out(real_arcade):
    config = configuration.default().data
    config.source, config.dir, config.holdout = os.environ["TPRNET_ARCADE"], str(real_arcade), 990
    twice = {20, 214, 168, 793, 337, 972, 478, 887, 501, 612}
    assert set(_numbers(loader.prepare(config), "train")) == twice
