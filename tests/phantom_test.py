import re
from pathlib import Path

import numpy as np
import pytest

from tprnet_jax.data import phantom, records, scene
from tprnet_jax.runtime.errors import UserError


def test_builder_returns_what_draw_drew(tmp_path):
    builder = phantom.prepare(48, train=4, validation=3, seed=7, data_dir=str(tmp_path))
    for split, count, offset in (("train", 4, 0), ("validation", 3, 1)):
        examples = list(builder.as_data_source(split))
        assert len(examples) == count
        for number, example in enumerate(examples):
            image, mask = scene.draw(7, 2 * number + offset, 48)
            assert example["name"].decode() == f"{split}_{number:05d}.png"
            np.testing.assert_array_equal(example["image"], image[..., None])
            np.testing.assert_array_equal(example["mask"], mask[..., None])


def test_splits_are_disjoint(tmp_path):
    builder = phantom.prepare(32, train=6, validation=5, seed=0, data_dir=str(tmp_path))
    images = [e["image"].tobytes() for s in builder.info.splits for e in builder.as_data_source(s)]
    assert len(images) == len(set(images)) == 11


def test_prepare_reuses_the_same_and_keeps_others_apart(tmp_path, monkeypatch, capsys):
    folders = [
        phantom.prepare(*arguments, data_dir=str(tmp_path)).data_path
        for arguments in ((32, 2, 1, 0), (33, 2, 1, 0), (32, 1, 2, 0), (32, 2, 1, 1), (32, 2, 2, 0))
    ]
    assert len(set(folders)) == 5
    monkeypatch.delattr(scene, "draw")
    again = phantom.prepare(32, 2, 1, 0, data_dir=str(tmp_path))
    assert again.data_path == folders[0]
    assert len(again.as_data_source("train")) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((31, 1, 1, 0), "config.data.phantom.size=31"),
        ((32, 0, 1, 0), "config.data.phantom.train=0"),
        ((32, 1, -2, 0), "config.data.phantom.validation=-2"),
        ((32, 1, 1, -1), "config.data.phantom.seed=-1"),
    ],
)
def test_arguments_too_small_are_named(tmp_path, arguments, field):
    with pytest.raises(UserError, match=field):
        phantom.prepare(*arguments, data_dir=str(tmp_path))
    assert not any(tmp_path.iterdir())


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        phantom.prepare(32, 1, 1, 0, data_dir=str(tmp_path / "file"))


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: file.unlink(),
        lambda file: (file.parent / "dataset_info.json").unlink(),
    ],
)
def test_prepared_data_that_are_damaged_are_named(tmp_path, change):
    arguments = {"size": 32, "train": 4, "validation": 1, "seed": 0, "data_dir": str(tmp_path)}
    builder = phantom.prepare(**arguments)
    assert list(records.sources(builder)) == ["train", "validation"]
    change(next(Path(builder.data_path).glob("*train.array_record*")))
    folder = re.escape(str(builder.data_path))
    with pytest.raises(UserError, match=rf"data set in {folder} is damaged \(.*\); delete that"):
        records.sources(phantom.prepare(**arguments))


def test_a_disk_that_is_full_is_named(tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("write() failed: No space left on device")  # As ArrayRecord.

    monkeypatch.setattr(phantom.Phantom, "download_and_prepare", full)
    with pytest.raises(UserError, match=r"cannot write the prepared .*No space left .*space left"):
        phantom.prepare(size=32, train=1, validation=1, seed=0, data_dir=str(tmp_path))
