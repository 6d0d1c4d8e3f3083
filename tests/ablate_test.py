"""Table II on tiny phantoms: what its runs are, its figures, stopping and going on."""

import json
import math
from pathlib import Path
from signal import SIGINT, raise_signal
from typing import NamedTuple

import jax
import pytest

from tprnet_jax import ablate, train
from tprnet_jax import config as configuration
from tprnet_jax.runtime.errors import UserError

BRANCHES = {
    "global": ["global"],
    "global_local": ["global", "local"],
    "global_local_focal": ["global", "local", "focal"],
}
METRICS = ["dice", "iou", "precision", "recall", "asd"]


@pytest.fixture(scope="module", autouse=True)
def _quickly_compiled():
    """Compiling is nearly all that these runs do; the networks are no other test's."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Six runs of two steps, not to be changed."""
    config = configuration.default()
    config.data.name, config.data.dir = "phantom", str(tmp_path_factory.mktemp("data"))
    config.data.phantom.size = 64
    config.data.phantom.train = config.data.phantom.validation = 2
    config.model.global_channels = config.model.local_channels = (3,)
    config.model.focal_channels = (3,)
    config.model.window, config.model.patch, config.model.chunk = 48, 16, 4
    config.optim.learning_rate, config.optim.momentum = 0.1, 0.9
    config.train.epochs = config.train.batch = config.eval.batch = 2
    config.train.focal_from_epoch, config.eval.figures = 0, 1
    config.ablate.seeds = (3, 0)
    return config


class Ablated(NamedTuple):
    """A complete ablation that was once stopped on the way; the workdir is not to be written to."""

    report: dict
    workdir: Path
    message: str  # Of the interrupt.
    steps: list[tuple[int, int]]  # Number of networks and step, for each step begun.


@pytest.fixture(scope="module")
def ablated(config, tmp_path_factory):
    workdir, take, steps = tmp_path_factory.mktemp("ablated"), train.train_step, []

    def take_and_stop(trainer, state, *rest):
        steps.append((len(trainer.cascade.networks), int(state.step)))
        if steps == [(1, 0), (1, 1), (2, 0)]:
            raise_signal(SIGINT)
        return take(trainer, state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_step", take_and_stop)
        with pytest.raises(KeyboardInterrupt) as interrupt:
            ablate.run(config, workdir)
        assert not (workdir / "ablation.json").exists()
        report = ablate.run(config, workdir)
    return Ablated(report, workdir, str(interrupt.value), steps)


def _final(workdir, name, seed):
    path = workdir / name / f"seed_{seed}" / "eval" / "validation" / "metrics.json"
    return json.loads(path.read_text())["final"]


# ---- The runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [3, 0])
@pytest.mark.parametrize("name", BRANCHES)
def test_each_run_has_its_branches_and_its_seed(ablated, name, seed):
    path = ablated.workdir / name / f"seed_{seed}" / "config.json"
    config = json.loads(path.read_text())["config"]
    assert (config["model"]["branches"], config["seed"]) == (BRANCHES[name], seed)


def test_the_configuration_is_left_as_it_was(ablated, config):
    assert config.is_locked
    assert (config.seed, config.model.branches) == (0, ("global", "local", "focal"))


def test_ablation_json_has_the_final_metrics_of_each_run(ablated):
    report, workdir = ablated[:2]
    assert report == json.loads((workdir / "ablation.json").read_text())
    assert list(report["ablations"]) == list(BRANCHES)
    for name in BRANCHES:
        expected = [{"seed": seed, **_final(workdir, name, seed)} for seed in (3, 0)]
        assert report["ablations"][name]["runs"] == expected
    assert {key: report[key] for key in report if key != "ablations"} == {
        "images": 2,
        "split": "validation",
        "source": "",
        "checkpoint": "best",
        "seeds": [3, 0],
    }


@pytest.mark.parametrize("name", BRANCHES)
def test_mean_and_deviation_are_those_of_the_two_seeds(ablated, name):
    report, workdir = ablated[:2]
    one, other = _final(workdir, name, 3), _final(workdir, name, 0)
    assert one["asd"] != other["asd"]
    mean = {key: (one[key] + other[key]) / 2 for key in METRICS}
    # The sample standard deviation of two values is their distance over the root of 2.
    deviation = {key: abs(one[key] - other[key]) / math.sqrt(2) for key in METRICS}
    assert report["ablations"][name]["mean"] == pytest.approx(mean)
    assert report["ablations"][name]["sd"] == pytest.approx(deviation)


def test_a_complete_ablation_only_reports(ablated, config, monkeypatch, capsys):
    report, workdir = ablated[:2]
    monkeypatch.delattr(train, "_train")
    monkeypatch.delattr(train.evaluate, "run")
    assert ablate.run(config, workdir) == report
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("---")] == [
        "--- global, seed 3 (1 of 6) ---",
        "--- global_local, seed 3 (2 of 6) ---",
        "--- global_local_focal, seed 3 (3 of 6) ---",
        "--- global, seed 0 (4 of 6) ---",
        "--- global_local, seed 0 (5 of 6) ---",
        "--- global_local_focal, seed 0 (6 of 6) ---",
    ]
    first_table = lines.index("Seed 3 alone: one seed has no error bar.")
    assert first_table < lines.index("--- global, seed 0 (4 of 6) ---")
    assert lines[-6:] == ablate.table(report).splitlines()[-6:]


def test_a_stopped_ablation_goes_on_within_the_run(ablated):
    assert ablated.message == "interrupted; the same command goes on from step 1"
    one_seed = [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert ablated.steps == 2 * one_seed  # None is taken twice.


def test_each_ablation_recomputes_the_branches_that_it_has(config):
    config = config.copy_and_resolve_references()
    config.train.remat = ("global", "focal")
    plan = ablate._plan(config)[3].values()
    assert [each.train.remat for each in plan] == [("global",), ("global",), ("global", "focal")]


# ---- The table -----------------------------------------------------------------------------------


def _result(dice, asd):
    final = {"dice": dice, "iou": 0.5, "precision": 0.25, "recall": 1.0, "asd": asd}
    shared = {"images": 200, "split": "test", "source": "", "checkpoint": "latest", "step": 9}
    return {**shared, "global": dict.fromkeys(METRICS, 0.0), "final": final}


def test_table_of_several_seeds():
    # 0.7, 0.8 and 0.9 deviate by 0.1 from 0.8; 4, 4 and 10 by sqrt((4 + 4 + 16) / 2) from 6.
    runs = {0: _result(0.7, 4.0), 1: _result(0.8, 4.0), 5: _result(0.9, 10.0)}
    report = ablate.summary(dict.fromkeys(BRANCHES, runs))
    head, *rows, images, seeds = ablate.table(report).splitlines()[1:]
    cells = "0.8000 ± 0.1000  0.5000 ± 0.0000  0.2500 ± 0.0000  1.0000 ± 0.0000      6.00 ± 3.46"
    assert head.split() == ["Dice", "IoU", "Precision", "Recall", "ASD"]
    assert rows == [
        f"Global                  {cells}",
        f"Global + Local          {cells}",
        f"Global + Local + Focal  {cells}",
    ]
    assert images == "Final output on the 200 images of test, latest checkpoint; ASD in pixels."
    assert seeds == "Mean ± sample standard deviation over the seeds 0, 1, 5."


def test_table_of_one_seed_has_no_deviation():
    results = [_result(0.1, 9.0), _result(0.2, 8.0), _result(0.3, 7.0)]
    report = ablate.summary({name: {4: r} for name, r in zip(BRANCHES, results, strict=True)})
    assert all("sd" not in ablation for ablation in report["ablations"].values())
    assert ablate.table(report).splitlines()[1:] == [
        "                             Dice        IoU  Precision     Recall        ASD",
        "Global                     0.1000     0.5000     0.2500     1.0000       9.00",
        "Global + Local             0.2000     0.5000     0.2500     1.0000       8.00",
        "Global + Local + Focal     0.3000     0.5000     0.2500     1.0000       7.00",
        "Final output on the 200 images of test, latest checkpoint; ASD in pixels.",
        "Seed 4 alone: one seed has no error bar.",
    ]


# ---- Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.branches", ("global", "local"), r"is \('global', 'local'\), but --mode=ablate"),
        ("ablate.seeds", (), r"is \(\); give one or more"),
        ("ablate.seeds", (0, 1, 0), r"is \(0, 1, 0\); give .* different"),
        ("ablate.seeds", (0, -1), r"is \(0, -1\); give .* from 0 to 2147483647"),
        ("ablate.seeds", (2**31,), r"is \(2147483648,\); give .* from 0 to 2147483647"),
        ("ablate.seeds", (0, 1.0), r"is \(0, 1\.0\); give .* whole numbers"),
        ("ablate.seeds", (True,), r"is \(True,\); give .* whole numbers"),
        ("model.patch", 0, r"is 0; it must be at least 1"),
        # Only the last of the three ablations has this mistake.
        ("train.focal_from_epoch", 2, r"is 2, but there are only 2 epochs"),
    ],
)
def test_mistakes_are_named_before_training(config, tmp_path, monkeypatch, field, value, message):
    monkeypatch.delattr(train, "run")
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=rf"^config\.{field} {message}"):
        ablate.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
