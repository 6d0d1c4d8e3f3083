import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys

import pytest

from tprnet_jax import convert, evaluate, predict, train
from tprnet_jax.data import loader, scene
from tprnet_jax.data.images import write_png
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.workdir import (
    check_same_run,
    images_seen,
    images_seen_earlier,
    only_run,
    write_config,
)

HOLD = """
import sys
from pathlib import Path
from tprnet_jax.workdir import check_same_run, only_run
with only_run(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def _files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_is_refused_until_the_first_has_gone(trained, tmp_path):
    """Killed, a run leaves its lock file behind, but not the lock."""
    config, workdir = trained[0], tmp_path / "run"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "held\n"
    before = _files(workdir)
    with pytest.raises(UserError) as error:
        train.run(config, workdir)
    assert str(error.value).startswith(
        f"{workdir} is being written to by another run (process {first.pid} on "
    )
    assert _files(workdir) == before
    first.kill()
    first.communicate()
    with only_run(workdir):
        assert (workdir / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    sentence = (
        rf"^{tmp_path}/\.lock cannot be locked or written \(Function not impl.*; choose a --w"
    )
    with pytest.raises(UserError, match=sentence), only_run(tmp_path):
        pass


@pytest.mark.parametrize(("field", "value", "was"), [("focal_fold", 2, 1), ("guided", True, False)])
def test_networks_that_see_something_else_are_refused(trained, tmp_path, field, value, was):
    config, workdir = trained[0].copy_and_resolve_references(), trained[1]
    config.model[field] = value
    config.predict.input, config.predict.output = str(tmp_path / "a.png"), str(tmp_path / "out")
    (tmp_path / "a.png").touch()
    for run in (train.run, evaluate.run, predict.run):
        with pytest.raises(UserError, match=rf"config\.model\.{field} is {value}, .*{was}"):
            run(config, workdir)


def test_a_field_that_a_run_was_started_without_had_its_default(trained, tmp_path):
    config, workdir = trained[0].copy_and_resolve_references(), tmp_path / "run"
    shutil.copytree(trained[1], workdir)
    earlier = json.loads((workdir / "config.json").read_text())
    del earlier["config"]["train"]["ema"]
    (workdir / "config.json").write_text(json.dumps(earlier))
    check_same_run(config, workdir)
    config.train.ema = 0.9
    with pytest.raises(UserError, match=r"config\.train\.ema is 0\.9, not 0\.0 as the run"):
        check_same_run(config, workdir)


def test_images_that_were_trained_on_are_refused_wherever_they_are(trained, tmp_path):
    """Five images, five folds: what validates in one was trained on in every other."""
    workdir, source = tmp_path / "run", tmp_path / "own"
    _with_images(source, 5)
    config = _on_folder(trained, source)
    train.run(config, workdir)
    assert evaluate.run(config, workdir)["images"] == 1
    config.data.folder.fold = 1
    with pytest.raises(UserError, match=r"1 of the 1 .*set .*data\.folder\.fold.* as in the"):
        evaluate.run(config, workdir)
    shutil.copytree(source, tmp_path / "moved")
    for kind in ("images", "masks"):
        (tmp_path / "moved" / kind / "1.png").rename(tmp_path / "moved" / kind / "other.png")
    config.data.source = str(tmp_path / "moved")
    with pytest.raises(UserError, match=r"of the 1 images to evaluate on \(\w+\.png\) are trained"):
        evaluate.run(config, workdir)
    config.eval.split = "train"
    assert evaluate.run(config, workdir)["images"] == 4


def test_a_folder_of_other_images_with_the_same_names_may_be_evaluated_on(trained, tmp_path):
    workdir, source, others = tmp_path / "run", tmp_path / "own", tmp_path / "others"
    _with_images(source, 5)
    _with_images(others, 5, seed=1)
    config = _on_folder(trained, source)
    train.run(config, workdir)
    config.data.source, config.data.folder.fold = str(others), 1
    assert evaluate.run(config, workdir)["images"] == 1


def test_results_on_other_data_have_a_folder_however_long_its_path(trained, tmp_path):
    deep = tmp_path / ("a" * 150) / ("b" * 150)
    _with_images(deep, 5)
    config = trained[0].copy_and_resolve_references()
    config.data.name, config.data.source = "folder", str(deep)
    folder = evaluate.result_folder(config, trained[1])
    assert len(folder.name) == 200
    config.data.source += "/"
    assert evaluate.result_folder(config, trained[1]) != folder  # The name has it as it is spelt.
    write_config(config, tmp_path)
    config.data.source = os.path.relpath(deep)
    assert evaluate.result_folder(config, tmp_path) == tmp_path / "eval" / "validation"


def test_an_image_to_train_on_under_another_name_is_refused_before_the_training(
    trained, tmp_path, monkeypatch
):
    _with_images(tmp_path / "own", 5)
    for kind in ("images", "masks"):
        twin = (tmp_path / "own" / kind / "0.png").read_bytes()
        (tmp_path / "own" / kind / "twin.png").write_bytes(twin)
    config = _on_folder(trained, tmp_path / "own")
    config.data.folder.splits = str(tmp_path / "splits.json")
    splits = {"train": ["0", "1"], "validation": ["2", "twin"]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    monkeypatch.delattr(train, "train_step")
    with pytest.raises(UserError, match=r"^1 of the 2 images to evaluate on \(twin\.png\) are tr"):
        train.run(config, tmp_path / "run")


def test_what_weights_were_trained_on_goes_where_they_go(trained, tmp_path):
    """From a run to a model file, to a run made of that, and to one that starts from it."""
    source, file = tmp_path / "own", tmp_path / "model.npz"
    _with_images(source, 5)
    config = _on_folder(trained, source)
    train.run(config, tmp_path / "first")
    seen = images_seen(tmp_path / "first")
    assert len(seen) == 4
    config.convert.output = str(file)
    convert.run(config, tmp_path / "first")
    config.convert.output, config.convert.input = "", str(file)
    convert.run(config, tmp_path / "imported")
    config.convert.input = ""
    assert images_seen(tmp_path / "imported") == seen
    config.train.start_from = str(file)
    train.run(config, tmp_path / "second")
    assert images_seen_earlier(tmp_path / "second") == seen
    config.data.folder.fold = 1
    with pytest.raises(UserError, match=r"^1 of the 1 images .*, or by what it starts from; keep"):
        train.run(config, tmp_path / "third")
    assert not (tmp_path / "third" / "config.json").exists()


def _on_folder(trained, source):
    """Of a training of two steps on the images in a folder."""
    config = trained[0].copy_and_resolve_references()
    config.data.name, config.data.source, config.train.batch = "folder", str(source), 1
    config.train.epochs, config.train.steps_per_epoch = 2, 1
    return config


def _with_images(source, count, seed=0):
    for index in range(count):
        for folder, array in zip(("images", "masks"), scene.draw(seed, index, 32), strict=True):
            (source / folder).mkdir(parents=True, exist_ok=True)
            write_png(source / folder / f"{index}.png", array)


def test_a_folder_that_has_grown_since_is_noticed(trained, tmp_path):
    """Folds are of all images, so that new ones deal them anew."""
    workdir, source = tmp_path / "run", tmp_path / "own"
    _with_images(source, 10)
    config = _on_folder(trained, source)
    train.run(config, workdir)
    images = json.loads((workdir / "training_images.json").read_text())["images"]
    first = loader.known(loader.examples(loader.prepare(config.data), "train"))
    assert images == {image.name: image.digest for image in first}
    assert len(images) == 8
    assert json.loads((workdir / "config.json").read_text())["side"] == 32
    _with_images(source, 14)
    now = loader.known(loader.examples(loader.prepare(config.data), "validation"))
    seen = {image.name for image in now} & images.keys()
    assert seen
    with pytest.raises(UserError, match=rf"^{len(seen)} of the 3 .*; keep every image for one"):
        evaluate.run(config, workdir)
    config.train.epochs = 3
    with pytest.raises(UserError, match=r"^the 11 images to train on are not the 8 .* are new"):
        train.run(config, workdir)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("checkpoints/scores.json", '{"3": 0.'),
        ("metrics.jsonl", '{"step"\n{"step": 6, "split": "train"}\n'),
        ("metrics.jsonl", "7\n"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(trained, tmp_path, name, content):
    workdir = tmp_path / "run"
    shutil.copytree(trained[1], workdir)
    (workdir / name).write_text(content)
    config = trained[0].copy_and_resolve_references()
    config.train.epochs = 3
    with pytest.raises(UserError, match=rf"{workdir / name} (is damaged|has no configuration)"):
        train.run(config, workdir)
    assert (workdir / name).read_text() == content
