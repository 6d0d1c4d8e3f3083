"""End to end on a tiny configuration: what a workdir holds, resuming, stopping."""

import datetime
import json
import os
import shutil
import struct
from pathlib import Path
from signal import SIGINT, SIGTERM, raise_signal

import jax
import numpy as np
import pytest
import run_log
from tensorboardX.proto import event_pb2

from tprnet_jax import config as configuration
from tprnet_jax import evaluate, train
from tprnet_jax.data import loader
from tprnet_jax.method import augment
from tprnet_jax.method.cascade import param_shapes
from tprnet_jax.report import metrics
from tprnet_jax.runtime import checkpoints, progress
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.signals import Interrupted


def _params(config, workdir):
    cascade = configuration.cascade(config)
    return checkpoints.restore_params(workdir, "latest", param_shapes(cascade))[0]


def test_a_run_leaves_what_the_readme_lists(trained):
    _, workdir = trained
    found = {
        str(p.relative_to(workdir)) for p in workdir.rglob("*") if "checkpoints/" not in str(p)
    }
    figures = {name for name in found if name.endswith(".png")}
    assert found - figures == {
        ".lock",
        "config.json",
        "checkpoints",
        "metrics.jsonl",
        "training_images.json",
        "eval",
        "eval/validation",
        "eval/validation/metrics.json",
        "eval/validation/per_image.csv",
        "eval/validation/figures",
        "eval/validation/report.html",
    }
    assert "curves.png" in figures
    assert len(figures) == 3


def test_config_json_has_configuration_and_versions(trained):
    config, workdir = trained
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["config"]["train"] == json.loads(config.train.to_json())
    assert stored["versions"]["jax"] == jax.__version__


def test_metrics_have_the_terms_of_each_epoch(trained):
    _, workdir = trained
    # Step 0 is logged, and each epoch ends with a validation.
    first, *validations = run_log.lines(workdir)
    assert (first["step"], first["split"], first["patches"]) == (0, "train", 0)
    assert first["epoch"] == 1
    terms = [first[f"loss_{name}"] for name in ("global", "local", "global_local")]
    assert first["loss"] == pytest.approx(np.mean(terms), rel=1e-6)
    assert "loss_focal" not in first
    assert [(line["step"], line["split"]) for line in validations] == [
        (3, "validation"),
        (6, "validation"),
    ]
    # The slower metrics are those of the report alone.
    stages = ("global", "global_local", "final")
    names = [f"{stage}_{name}" for stage in stages for name in metrics.BRIEF]
    assert list(validations[0]) == ["step", "split", *names]


def test_metrics_say_when_and_how_fast(trained):
    records = [json.loads(line) for line in (trained[1] / "metrics.jsonl").read_text().splitlines()]
    times = [datetime.datetime.fromisoformat(record["time"]) for record in records]
    assert times == sorted(times)
    assert times[0].utcoffset() == datetime.timedelta(0)
    assert all(r["images_per_second"] > 0 for r in records if r["split"] == "train")


def test_tensorboard_has_what_the_log_has(trained, tmp_path):
    config = trained[0].copy_and_resolve_references()
    config.train.tensorboard, config.train.epochs, config.train.focal_from_epoch = True, 1, 0
    train.run(config, tmp_path)
    (path,) = (tmp_path / "tensorboard").glob("events.*")
    content, found = path.read_bytes(), {}
    while content:  # Records: length, its checksum, an event, its checksum.
        (length,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
    for line in run_log.lines(tmp_path):
        for name, value in line.items():
            if isinstance(value, float):
                assert found[f"{line['split']}/{name}", line["step"]] == pytest.approx(value)
    assert ("validation/final_dice", 3) in found


def test_a_complete_run_ends_at_once_and_prints_its_table(trained, monkeypatch, capsys):
    config, workdir = trained
    monkeypatch.delattr(train, "train_step")
    result = train.run(config, workdir)
    assert result == json.loads((workdir / "eval/validation/metrics.json").read_text())
    assert f"{result['final']['dice']:.4f}" in capsys.readouterr().out


def _assert_same_run(config, workdir, undisturbed):
    expected = _params(config, undisturbed)
    jax.tree.map(np.testing.assert_array_equal, _params(config, workdir), expected)
    assert run_log.lines(workdir) == run_log.lines(undisturbed)


@pytest.mark.parametrize("signal", [SIGINT, SIGTERM])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_run_saves_and_goes_on_as_if_undisturbed(
    trained, tmp_path, monkeypatch, stop, signal
):
    config, undisturbed = trained
    take = train.train_step

    def take_and_signal(trainer, state, *rest):
        if int(state.step) == stop:
            raise_signal(signal)
        return take(trainer, state, *rest)

    monkeypatch.setattr(train, "train_step", take_and_signal)
    message = f"interrupted; the same command goes on from step {stop + 1}"
    with pytest.raises(Interrupted, match=message) as interrupt:
        train.run(config, tmp_path)
    assert interrupt.value.status == 128 + signal
    monkeypatch.setattr(train, "train_step", take)
    train.run(config, tmp_path)
    _assert_same_run(config, tmp_path, undisturbed)


def test_a_signal_that_comes_while_processes_agree_on_none_stops_the_next_step(
    trained, tmp_path, monkeypatch
):
    config, undisturbed = trained
    asked = []

    def allgather(number):
        """The signal comes after the process has said that it has none."""
        asked.append(number)
        if len(asked) == 2:
            raise_signal(SIGTERM)
        return np.array([number])

    with monkeypatch.context() as patch:
        patch.setattr(train.devices, "allgather", allgather)
        with pytest.raises(Interrupted, match="goes on from step 3"):
            train.run(config, tmp_path)
    train.run(config, tmp_path)
    _assert_same_run(config, tmp_path, undisturbed)


def test_a_signal_during_the_last_save_stops_before_the_evaluation(trained, tmp_path, monkeypatch):
    config, undisturbed = trained
    save = checkpoints.save

    def save_and_signal(manager, step, parts):
        save(manager, step, parts)
        if step == 6:
            raise_signal(SIGTERM)

    monkeypatch.setattr(checkpoints, "save", save_and_signal)
    with pytest.raises(Interrupted, match="goes on from step 6"):
        train.run(config, tmp_path)
    assert [line["step"] for line in run_log.lines(tmp_path) if line["split"] == "validation"] == [
        3
    ]
    train.run(config, tmp_path)
    _assert_same_run(config, tmp_path, undisturbed)


def test_a_run_stopped_in_an_evaluation_evaluates_first(trained, tmp_path, monkeypatch):
    config, undisturbed = trained
    score = evaluate.score
    monkeypatch.setattr(evaluate, "score", lambda *rest: raise_signal(SIGTERM))
    with pytest.raises(Interrupted, match="goes on from step 3"):
        train.run(config, tmp_path)
    monkeypatch.setattr(evaluate, "score", score)
    train.run(config, tmp_path)
    _assert_same_run(config, tmp_path, undisturbed)


def test_a_workdir_deleted_under_a_run_is_noticed_at_the_next_save(trained, tmp_path, monkeypatch):
    take = train.train_step

    def take_and_delete(trainer, state, *rest):
        if int(state.step) == 1:
            shutil.rmtree(tmp_path / "run")
        return take(trainer, state, *rest)

    monkeypatch.setattr(train, "train_step", take_and_delete)
    with pytest.raises(UserError, match=r"run/checkpoints was deleted while the run was writing"):
        train.run(trained[0], tmp_path / "run")


def test_augmentation_changes_what_is_learnt_and_resumes_exactly(trained, tmp_path, monkeypatch):
    config = trained[0].copy_and_resolve_references()
    config.augment.update(augment.EVERYTHING._asdict())
    train.run(config, tmp_path / "undisturbed")
    expected = _params(config, trained[1])
    found = _params(config, tmp_path / "undisturbed")
    assert not np.array_equal(
        found["global"]["head"]["kernel"], expected["global"]["head"]["kernel"]
    )
    take = train.train_step

    def take_and_signal(trainer, state, *rest):
        if int(state.step) == 2:
            raise_signal(SIGTERM)
        return take(trainer, state, *rest)

    monkeypatch.setattr(train, "train_step", take_and_signal)
    with pytest.raises(Interrupted):
        train.run(config, tmp_path / "stopped")
    monkeypatch.setattr(train, "train_step", take)
    train.run(config, tmp_path / "stopped")
    _assert_same_run(config, tmp_path / "stopped", tmp_path / "undisturbed")


def test_checkpoints_come_every_so_many_steps(trained, tmp_path, monkeypatch):
    config = trained[0].copy_and_resolve_references()
    config.train.save_every = 2
    saved, save = [], checkpoints.save

    def note(manager, step, parts):
        saved.append(step)
        save(manager, step, parts)

    monkeypatch.setattr(checkpoints, "save", note)
    train.run(config, tmp_path)
    assert saved == [2, 3, 4, 6]
    _assert_same_run(config, tmp_path, trained[1])


# ---- Numbers that are not finite -----------------------------------------------------------------


def _with_nan(source, index):
    """The examples as floats, one of which has a NaN."""
    examples = [{**source[i], "image": source[i]["image"] / np.float32(255)} for i in range(6)]
    examples[index]["image"][3, 4] = np.nan
    return examples


@pytest.fixture
def planted(monkeypatch):
    """A NaN in one training image."""
    examples = loader.examples

    def plant(sources, split):
        source = examples(sources, split)
        return _with_nan(source, 2) if split == "train" else source

    monkeypatch.setattr(loader, "examples", plant)


def test_a_nan_in_an_image_skips_its_steps_and_is_named(trained, tmp_path, planted, capsys):
    config = trained[0].copy_and_resolve_references()
    result = train.run(config, tmp_path)
    output = capsys.readouterr().out
    skipped = [line for line in run_log.lines(tmp_path) if "skipped" in line]
    assert len(skipped) == 2  # Once an epoch.
    for line in skipped:
        assert "train_00002.png" in line["skipped"]
        assert f"warning: step {line['step']} has loss nan" in output
    assert "train_00002.png (grey 0" in output
    assert "1 pixels not finite" in output
    assert np.isfinite(result["final"]["dice"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(_params(config, tmp_path)))


def test_too_many_skipped_steps_end_with_a_report(trained, tmp_path, planted):
    config = trained[0].copy_and_resolve_references()
    config.train.skip_limit = 1
    with pytest.raises(UserError) as error:
        train.run(config, tmp_path)
    message = str(error.value)
    assert message.startswith("1 steps in a row were not applied: step")
    assert "train_00002.png" in message
    assert "mend these images or lower config.optim.learning_rate" in message
    assert "\n" not in message


def test_a_loss_made_infinite_leaves_the_last_checkpoint(trained, tmp_path, monkeypatch):
    """From step 4 on; the checkpoint of step 3 stays, whole, and a mended run ends as it would."""
    config, undisturbed = trained
    take = train.train_step

    def take_from_infinity(trainer, state, images, *rest):
        if int(state.step) >= 4:
            images = np.full(images.shape, np.inf, np.float32)
        return take(trainer, state, images, *rest)

    monkeypatch.setattr(train, "train_step", take_from_infinity)
    broken = config.copy_and_resolve_references()
    broken.train.skip_limit = 2
    with pytest.raises(UserError, match=r"2 steps in a row .* step 5 has loss nan.*from step 3"):
        train.run(broken, tmp_path)
    monkeypatch.setattr(train, "train_step", take)
    train.run(config, tmp_path)
    _assert_same_run(config, tmp_path, undisturbed)


# ---- Bad values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, r"config\.train\.epochs is 0"),
        ("batch", 0, r"config\.train\.batch is 0"),
        ("batch", 7, r"config\.train\.batch is 7, but there are only 6 training images"),
    ],
)
def test_values_that_cannot_be_used_are_named(trained, tmp_path, field, value, message):
    config = trained[0].copy_and_resolve_references()
    config.train[field] = value
    with pytest.raises(UserError, match=message):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("branches", [("global",), ("global", "local")])
def test_ablations_train_and_evaluate(trained, tmp_path, branches):
    config = trained[0].copy_and_resolve_references()
    config.model.branches, config.train.epochs = branches, 1
    config.train.focal_from_epoch = 0
    result = train.run(config, tmp_path)
    assert result["final"] == result["global" if len(branches) == 1 else "global_local"]
    assert ("global_local" in result) is (len(branches) == 2)


def test_an_epoch_has_as_many_steps_as_asked(trained, tmp_path):
    """A pass through the six images is three steps; two epochs of two end in the second pass."""
    config = trained[0].copy_and_resolve_references()
    config.model.branches = ("global",)
    config.train.epochs, config.train.steps_per_epoch = 2, 2
    train.run(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line["step"] for line in lines if line["split"] == "validation"]
    assert evaluated == [2, 4]


def test_networks_learn(trained, tmp_path):
    """Eight phantoms by heart: well above what a threshold or an untrained network reaches.

    By how much a stage improves on the one before differs from processor to processor; that each
    network learns does not. The losses are cross-entropy less Dice, which begin above zero.
    """
    config = trained[0].copy_and_resolve_references()
    config.data.phantom.train = 8
    config.model.global_channels = config.model.local_channels = (6, 12, 24)
    config.model.focal_channels = (6, 12)
    config.optim.name, config.optim.learning_rate = "adamw", 0.01
    config.train.epochs = config.train.evaluate_every = 30
    config.eval.split = "train"
    result = train.run(config, tmp_path)
    for stage in ("global", "global_local", "final"):
        assert result[stage]["dice"] > 0.8
    last = [line for line in run_log.lines(tmp_path) if line["split"] == "train"][-1]
    for network in ("global", "local", "focal"):
        assert last[f"loss_{network}"] < -0.3


# ---- A hold-out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_training_starts_from_the_weights_of_another(trained, tmp_path, ema, capsys):
    """Without learning, it also ends with them."""
    config, workdir = trained[0].copy_and_resolve_references(), trained[1]
    config.train.start_from, config.optim.learning_rate = str(workdir), 0.0
    config.train.epochs, config.train.ema, config.seed = 1, ema, 5
    config.train.focal_from_epoch = 0
    train.run(config, tmp_path / "run")
    shapes = param_shapes(configuration.cascade(config))
    expected, step = checkpoints.restore_params(workdir, "best", shapes)
    assert f"Starting from the weights of step {step} of {workdir}." in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, _params(config, tmp_path / "run"), expected)


def test_a_start_from_other_networks_is_named(trained, tmp_path):
    config = trained[0].copy_and_resolve_references()
    config.train.start_from, config.model.focal_channels = str(trained[1]), (2, 5)
    with pytest.raises(UserError, match=r"is of another architecture: its params focal/"):
        train.run(config, tmp_path)


@pytest.fixture(scope="module")
def held_out(trained, tmp_path_factory):
    """A complete run that held out two of the six training images, and the splits it looked at."""
    workdir = tmp_path_factory.mktemp("held_out") / "run"
    config = trained[0].copy_and_resolve_references()
    config.data.holdout, config.eval.split = 2, "holdout"
    examples, splits = loader.examples, set()

    def note(sources, split):
        splits.add(split)
        return examples(sources, split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "examples", note)
        train.run(config, workdir)
    return config, workdir, splits


def test_a_holdout_takes_the_place_of_validation(held_out):
    _, workdir, splits = held_out
    assert splits == {"train", "holdout"}
    lines = [line for line in run_log.lines(workdir) if line["split"] != "train"]
    # Two steps to an epoch of the four images that are left.
    assert [(line["step"], line["split"]) for line in lines] == [(2, "holdout"), (4, "holdout")]
    scores = json.loads((workdir / "checkpoints" / "scores.json").read_text())
    assert scores == {str(line["step"]): line["final_dice"] for line in lines}


def test_evaluating_the_holdout_gives_the_dice_that_was_logged(held_out):
    config, workdir, _ = held_out
    result = evaluate.run(config, workdir)
    logged = {x["step"]: x["final_dice"] for x in run_log.lines(workdir) if x["split"] == "holdout"}
    assert (result["split"], result["images"]) == ("holdout", 2)
    assert result["final"]["dice"] == logged[result["step"]] == max(logged.values())
    names = (workdir / "eval" / "holdout" / "per_image.csv").read_text().split()[1:]
    source = loader.examples(loader.prepare(config.data), "holdout")
    assert [name.split(",")[0] for name in names] == [source[i]["name"].decode() for i in (0, 1)]


def test_a_run_with_a_holdout_says_so_resumes_and_reports_on_the_split_asked_for(
    held_out, tmp_path, monkeypatch, capsys
):
    config = held_out[0].copy_and_resolve_references()
    config.eval.split = "validation"
    score = evaluate.score
    monkeypatch.setattr(evaluate, "score", lambda *rest: raise_signal(SIGTERM))
    with pytest.raises(Interrupted, match="goes on from step 2"):
        train.run(config, tmp_path)
    monkeypatch.setattr(evaluate, "score", score)
    result = train.run(config, tmp_path)
    assert (result["split"], result["images"]) == ("validation", 3)
    assert "step 4: hold-out Dice  global " in capsys.readouterr().out
    _assert_same_run(config, tmp_path, held_out[1])


def test_a_holdout_that_was_trained_on_is_refused(held_out, tmp_path):
    config = held_out[0].copy_and_resolve_references()
    workdir = tmp_path / "run"
    shutil.copytree(held_out[1], workdir)
    config.data.holdout = 3  # The two that were held out, and one more.
    before = set(workdir.rglob("*"))
    with pytest.raises(UserError, match=r"1 of the 3 images to evaluate on \(train_0000\d\.png\)"):
        evaluate.run(config, workdir)
    assert set(workdir.rglob("*")) == before
    config.eval.split = "validation"  # Has images of its own, whatever their names.
    assert evaluate.run(config, workdir)["images"] == 3
    config.eval.split = "train"  # Asked for by name.
    assert evaluate.run(config, workdir)["images"] == 3


def test_a_batch_larger_than_what_a_holdout_leaves_is_named(trained, tmp_path):
    config = trained[0].copy_and_resolve_references()
    config.data.holdout = 5
    with pytest.raises(UserError, match=r"batch is 2, but there are only 1 training images"):
        train.run(config, tmp_path / "run")
    config.data.holdout = 6
    with pytest.raises(UserError, match=r"holdout is 6, but of the 6 training images at most 5"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- A workdir that is used again ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("model.refinement", "location_first"),
        ("model.global_channels", (2, 5)),
        ("train.batch", 3),
        ("data.phantom.train", 5),
        ("data.holdout", 2),
        ("data.holdout_seed", 1),
        ("optim.name", "adamw"),
    ],
)
def test_another_configuration_in_a_workdir_is_refused(trained, tmp_path, field, value):
    workdir = tmp_path / "run"
    shutil.copytree(trained[1], workdir)
    before = (workdir / "config.json").read_bytes()
    config = trained[0].copy_and_resolve_references()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(
        UserError, match=rf"config\.{field} is .*, not .* started with; .* --workdir"
    ):
        train.run(config, workdir)
    assert (workdir / "config.json").read_bytes() == before


def test_a_complete_run_trains_on_with_more_epochs(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained[1], workdir)
    config = trained[0].copy_and_resolve_references()
    config.train.epochs = 3
    result = train.run(config, workdir)
    assert [line["step"] for line in run_log.lines(workdir)] == [0, 3, 6, 9]
    assert result["step"] in (3, 6, 9)


def test_a_run_goes_on_with_less_memory(trained, tmp_path):
    """Smaller chunks, and activations that are computed again."""
    workdir = tmp_path / "run"
    shutil.copytree(trained[1], workdir)
    config = trained[0].copy_and_resolve_references()
    config.model.chunk, config.train.remat, config.train.epochs = 1, ("global", "focal"), 3
    train.run(config, workdir)
    assert [line["step"] for line in run_log.lines(workdir)] == [0, 3, 6, 9]


def test_an_evaluation_of_another_refinement_is_not_taken_for_the_runs(trained, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained[1], workdir)
    own = (workdir / "eval" / "validation" / "metrics.json").read_bytes()
    config = trained[0].copy_and_resolve_references()
    config.model.refinement = "location_first"
    other = evaluate.run(config, workdir)
    assert other["changed"] == {"model.refinement": "location_first"}
    path = workdir / "eval" / "validation,model.refinement=location_first" / "metrics.json"
    assert json.loads(path.read_text()) == other
    capsys.readouterr()
    assert train.run(trained[0], workdir)["changed"] == {}
    assert f"{json.loads(own)['final']['asd']:11.2f}" in capsys.readouterr().out
    assert (workdir / "eval" / "validation" / "metrics.json").read_bytes() == own


@pytest.mark.parametrize("held_out", ["validation", "holdout"])
def test_lines_of_steps_taken_again_are_dropped(tmp_path, held_out):
    path = tmp_path / "metrics.jsonl"
    records = [(0, "train"), (3, "train"), (3, held_out), (4, "train"), (6, held_out)]
    whole = [json.dumps({"step": step, "split": split}) + "\n" for step, split in records]
    path.write_text("".join(whole) + '{"step": 6, "spl')
    following = json.dumps({"step": 6, "split": "train"}) + "\n"
    with progress.open_log(path, 6, scored=True) as log:
        log.write(following)
    assert path.read_text() == "".join(whole) + following
    with progress.open_log(path, 3, scored=False):
        pass
    assert path.read_text() == "".join(whole[:1])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_log_that_cannot_be_written_is_said_and_no_other_error(trained, tmp_path):
    def log():
        with progress.Progress(trained[0].train, tmp_path, 3, 0, True) as written:
            written.log.close()
            written.log = open("/dev/full", "w")  # noqa: SIM115, `Progress` closes it.
            written.evaluated(3, "validation", {})

    with pytest.raises(UserError, match=r"/dev/full cannot be written \(No space left .*; free"):
        log()


def test_an_absent_split_is_named_before_training(trained, tmp_path, monkeypatch):
    monkeypatch.delattr(train, "train_step")
    config = trained[0].copy_and_resolve_references()
    config.eval.split = "test"
    with pytest.raises(UserError, match=r"the data set has no split test, only train, validation"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- Real angiograms -----------------------------------------------------------------------------


def _two_of_each_split(source, target):
    """Copies the first two images of train and val, with their annotations."""
    for split in ("train", "val"):
        old, new = (folder / "syntax" / split for folder in (source, target))
        document = json.loads((old / "annotations" / f"{split}.json").read_text())
        document["images"] = document["images"][:2]
        ids = {image["id"] for image in document["images"]}
        document["annotations"] = [a for a in document["annotations"] if a["image_id"] in ids]
        (new / "annotations").mkdir(parents=True)
        (new / "annotations" / f"{split}.json").write_text(json.dumps(document))
        (new / "images").mkdir()
        for image in document["images"]:
            shutil.copy(old / "images" / image["file_name"], new / "images")


@pytest.mark.arcade
def test_real_angiograms_train_and_evaluate(trained, tmp_path):
    _two_of_each_split(Path(os.environ["TPRNET_ARCADE"]), tmp_path / "arcade")
    config = trained[0].copy_and_resolve_references()
    config.data.name, config.data.source = "arcade", str(tmp_path / "arcade")
    config.model.window, config.model.patch = 448, 64
    config.train.epochs, config.train.focal_from_epoch = 1, 0
    result = train.run(config, tmp_path / "run")
    first, validation = run_log.lines(tmp_path / "run")
    assert result["images"] == 2
    assert first["patches"] > 0
    assert validation["final_dice"] == result["final"]["dice"]
