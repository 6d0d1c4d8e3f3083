import json
import shutil

import pytest

from tprnet_jax import calibrate


@pytest.fixture(scope="module")
def calibrated(trained, tmp_path_factory):
    """The report of a run, and where it is written."""
    config, run = trained
    workdir = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(run, workdir)
    config = config.copy_and_resolve_references()
    config.model.temperature = 2.0
    return calibrate.run(config, workdir), workdir / "eval" / "validation"


def test_what_is_written(calibrated):
    report, folder = calibrated
    assert json.loads((folder / "calibration.json").read_text()) == report
    assert (folder / "calibration.png").stat().st_size > 1000
    assert (report["split"], report["images"]) == ("validation", 3)
    assert report["step"] == json.loads((folder / "metrics.json").read_text())["step"]


def test_without_another_threshold_dice_is_that_of_the_evaluation(calibrated):
    report, folder = calibrated
    evaluated = json.loads((folder / "metrics.json").read_text())["final"]["dice"]
    half = next(each for each in report["thresholds"] if each["threshold"] == 0.5)
    assert half["dice"] == pytest.approx(evaluated, abs=1e-9)
    assert half["difference"] == {"mean": 0, "low": 0, "high": 0}


def test_the_fitted_temperature_has_the_smallest_loss(calibrated):
    report, _ = calibrated
    none, given, fitted = report["calibration"]
    assert (none["temperature"], given["temperature"]) == (1, 2)
    assert fitted["temperature"] == report["temperature"]
    assert fitted["log_loss"] <= min(none["log_loss"], given["log_loss"])
    for each in report["calibration"]:
        assert sum(of_bin["pixels"] for of_bin in each["bins"]) == 3 * 64 * 64
