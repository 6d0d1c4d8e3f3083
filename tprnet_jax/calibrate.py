"""Whether a run's probabilities of vessel are what they say, and which threshold serves it best."""

import functools
import json
from pathlib import Path

import numpy as np
import tqdm
from ml_collections import ConfigDict

from tprnet_jax import config as configuration
from tprnet_jax.data import loader
from tprnet_jax.evaluate import check_unseen, result_folder
from tprnet_jax.method import inference
from tprnet_jax.method.cascade import Cascade
from tprnet_jax.report import calibration
from tprnet_jax.report.calibration import Reliability, Threshold
from tprnet_jax.runtime.files import write_whole
from tprnet_jax.workdir import images_seen, restore


def run(config: ConfigDict, workdir: Path) -> dict:
    """Calibrates the final probability of a run's checkpoint on `config.eval.split`.

    Fits the temperature that the logits are best divided by, and measures the calibration error
    without any, with that of the configuration, and with the fitted one. Writes `calibration.json`
    and the reliability diagram `calibration.png` beside the split's evaluation, and prints them.

    Returns:
        What `calibration.json` has.

    Raises:
        UserError: As `evaluate.run`.
    """
    configuration.check(config)
    cascade = configuration.cascade(config)
    params, step = restore(config, workdir, cascade)
    source = loader.examples(loader.prepare(config.data), config.eval.split)
    check_unseen(config, workdir, source, images_seen(workdir))
    counts = _count(cascade, params, source, config.eval.batch)
    report, diagram = _report(counts, config.model.temperature)
    report = {"split": config.eval.split, "step": step, "images": len(source), **report}
    folder = result_folder(config, workdir)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "calibration.json", json.dumps(report, indent=2) + "\n")
    write_whole(folder / "calibration.png", diagram)
    print(_text(report))
    print(f"Reliability diagram: {folder / 'calibration.png'}")
    return report


def _count(cascade: Cascade, params: dict, source, batch: int) -> np.ndarray:
    """`calibration.count` of each image, stacked."""
    margins = functools.partial(inference.margins, cascade, params)
    examples = (source[index] for index in range(len(source)))
    found = inference.of_examples(margins, examples, batch)
    bar = tqdm.tqdm(found, "calibrate", len(source), leave=False, unit="image")
    return np.stack(
        [calibration.count(margin, example["mask"][..., 0] > 127) for example, margin in bar]
    )


def _report(counts: np.ndarray, temperature: float) -> tuple[dict, bytes]:
    """What the pixels of all images say, and its picture."""
    total = counts.sum(axis=0)
    fitted = calibration.fit_temperature(total)
    found = {value: calibration.reliability(total, value) for value in (1.0, temperature, fitted)}
    report = {
        "temperature": fitted,
        "calibration": [
            _calibration(value, each, calibration.log_loss(total, value))
            for value, each in found.items()
        ],
        "thresholds": [_threshold(each) for each in calibration.thresholds(counts, temperature)],
    }
    named = {f"temperature {value:.2f}": each for value, each in found.items()}
    return report, calibration.draw(named)


def _calibration(temperature: float, found: Reliability, log_loss: float) -> dict:
    bins = [
        {"probability": probability, "vessel": vessel, "pixels": pixels}
        for probability, vessel, pixels in zip(*(part.tolist() for part in found[:3]), strict=True)
        if pixels
    ]
    error = {"expected_calibration_error": found.error, "log_loss": log_loss}
    return {"temperature": temperature, **error, "bins": bins}


def _threshold(each: Threshold) -> dict:
    mean, low, high = each.difference
    difference = {"mean": mean, "low": low, "high": high}
    return {"threshold": each.threshold, "dice": each.dice, "difference": difference}


def _text(report: dict) -> str:
    lines = ["Temperature  Calibration error  Log loss"]
    for each in report["calibration"]:
        lines.append(
            f"{each['temperature']:11.3f}  {each['expected_calibration_error']:17.4f}  "
            f"{each['log_loss']:8.4f}"
        )
    lines += [f"The best is {report['temperature']:.3f}: config.model.temperature.", ""]
    lines.append("Threshold    Dice  to 0.5 (95 % interval)")
    for each in report["thresholds"]:
        mean, low, high = each["difference"].values()
        lines.append(
            f"{each['threshold']:9.2f}  {each['dice']:.4f}  {mean:+.4f} ({low:+.4f} to {high:+.4f})"
        )
    return "\n".join(lines)
