"""End to end on a tiny configuration: what a workdir holds, resuming, stopping."""

import json

import jax
import numpy as np
import pytest
from conftest import tiny_config

from tprnet_jax import checkpoints, train
from tprnet_jax import config as configuration
from tprnet_jax.errors import UserError


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _params(config, workdir):
    cascade = configuration.cascade(config)
    return checkpoints.restore_params(workdir, "latest", cascade)[0]


def test_a_run_leaves_what_the_readme_lists(trained):
    _, workdir = trained
    found = {
        str(p.relative_to(workdir)) for p in workdir.rglob("*") if "checkpoints/" not in str(p)
    }
    figures = {name for name in found if name.endswith(".png")}
    assert found - figures == {
        "config.json",
        "checkpoints",
        "metrics.jsonl",
        "eval",
        "eval/validation",
        "eval/validation/metrics.json",
        "eval/validation/per_image.csv",
        "eval/validation/figures",
    }
    assert len(figures) == 2


def test_config_json_has_configuration_and_versions(trained):
    config, workdir = trained
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["config"]["train"] == config.train.to_dict()
    assert stored["versions"]["jax"] == jax.__version__


def test_metrics_have_the_terms_of_each_epoch(trained):
    _, workdir = trained
    # Three steps an epoch: step 0 is logged, and each epoch ends with a validation.
    first, *validations = _lines(workdir)
    assert (first["step"], first["split"], first["patches"]) == (0, "train", 0)
    terms = [first[f"loss_{name}"] for name in ("global", "local", "global_local")]
    assert first["loss"] == pytest.approx(np.mean(terms), rel=1e-6)
    assert "loss_focal" not in first
    assert [(line["step"], line["split"]) for line in validations] == [
        (3, "validation"),
        (6, "validation"),
    ]
    assert 0 <= validations[0]["final_dice"] <= 1


def test_a_complete_run_ends_at_once_and_prints_its_table(trained, monkeypatch, capsys):
    config, workdir = trained
    monkeypatch.delattr(train, "train_step")
    result = train.run(config, workdir)
    assert result == json.loads((workdir / "eval/validation/metrics.json").read_text())
    assert f"{result['final']['dice']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_run_goes_on_as_if_undisturbed(trained, tmp_path, monkeypatch, stop):
    config, undisturbed = trained
    take = train.train_step

    def take_or_stop(trainer, state, *rest):
        if int(state.step) == stop:
            raise KeyboardInterrupt
        return take(trainer, state, *rest)

    monkeypatch.setattr(train, "train_step", take_or_stop)
    with pytest.raises(KeyboardInterrupt):
        train.run(config, tmp_path)
    monkeypatch.setattr(train, "train_step", take)
    train.run(config, tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal, _params(config, tmp_path), _params(config, undisturbed)
    )


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, trained):
    config = trained[0].copy_and_resolve_references()
    config.optim.learning_rate, config.optim.clip_norm = 1e30, 1e30
    with pytest.raises(UserError, match=r"the loss became nan at step \d+; lower"):
        train.run(config, tmp_path)


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


def test_tiny_config_is_what_the_fixture_trained(trained):
    config, workdir = trained
    assert tiny_config(config.data.dir).to_dict() == config.to_dict()
    assert workdir.is_dir()
