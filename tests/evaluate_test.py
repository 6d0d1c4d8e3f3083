import csv
import io
import json

import cv2
import html_test
import numpy as np
import pytest

from tprnet_jax import config as configuration
from tprnet_jax import evaluate
from tprnet_jax.data import loader
from tprnet_jax.method import inference
from tprnet_jax.method.cascade import param_shapes
from tprnet_jax.report import metrics, tables
from tprnet_jax.runtime import checkpoints


def _stub(monkeypatch, predict):
    """Makes the cascade a function of the images."""
    monkeypatch.setattr(
        evaluate.inference, "segment", lambda cascade, params, batches: map(predict, batches)
    )


class _Stages:
    stages = ("global", "final")


def _example(name, image, mask):
    return {
        "name": name.encode(),
        "image": image.astype(np.uint8)[..., None] * 255,
        "mask": mask.astype(np.uint8)[..., None] * 255,
    }


def _examples():
    """Three images whose bright pixels are the stub's prediction, of two sizes."""
    square = np.zeros((8, 8), bool)
    square[2:6, 2:6] = True
    shifted = np.roll(square, 1, axis=1)
    wide = np.zeros((8, 10), bool)
    wide[0, :5] = True
    return [
        _example("equal.png", square, square),
        _example("shifted.png", shifted, square),
        _example("empty.png", np.zeros((8, 10), bool), wide),
    ]


@pytest.fixture
def scores(monkeypatch):
    def predict(images):
        bright = images[..., 0] > 127
        return {"global": ~bright, "final": bright}

    _stub(monkeypatch, predict)
    return evaluate.score(_Stages, None, _examples(), batch=2)


def test_scores_by_hand(scores):
    assert scores.names == ["equal.png", "shifted.png", "empty.png"]
    dice = [row["dice"] for row in scores.rows["final"]]
    # 16 pixels each, 12 in common.
    assert dice == [1.0, pytest.approx(2 * 12 / 32), 0.0]
    assert scores.rows["final"][2]["asd"] == pytest.approx(np.hypot(8, 10))
    assert scores.cases["final"] == [None, None, "prediction"]
    assert tables.means(scores)["final"]["dice"] == pytest.approx(1.75 / 3)


def test_summary_and_table(scores):
    result = tables.summary(scores)
    assert result["images"] == 3
    assert result["final"]["recall"] == pytest.approx((1 + 0.75 + 0) / 3)
    assert result["empty"]["final"] == {"both": 0, "prediction": 1, "truth": 0}
    # The squares' centrelines are 2 pixels from the wall at most, so is the line's.
    assert result["final"]["recall_thin"] == pytest.approx(2 / 3)
    assert result["final"]["recall_thick"] is None
    assert result["counts"] == {"recall_thin": 3, "recall_middle": 0, "recall_thick": 0}
    table = tables.table(result).splitlines()
    assert table[1].split() == ["Dice", "IoU", "Precision", "Recall", "ASD"]
    assert table[3].split()[:2] == ["Final", "0.5833"]
    assert table[-1].startswith("Final: empty masks (both: 0, prediction: 1, truth: 0)")


def test_under_the_table_stands_where_the_dice_is_lost(scores):
    # Of the final masks the first is right, the second one column off, the third empty.
    lines = tables.table(tables.summary(scores)).splitlines()
    mean = lines.index("Mean over 3 images; ASD in pixels.")
    assert lines[mean + 1] == (
        "Final: branches missed 0.333, extra 0.000 of the true area (over 5 px away); "
        "Dice without these 0.917; area 0.67 of the true."
    )
    # HD95 is 0, 1 and the diagonal; the empty mask lacks one component.
    assert lines[mean + 2] == (
        "Final: HD95 4.60, clDice 0.6667; Betti errors 0.33, 0.00; centreline recall thin 0.667, "
        "middle none, thick none (radius up to 2, up to 4, over 4 px)."
    )


@pytest.mark.parametrize(
    ("names", "lines"), [(tuple(tables.COLUMNS), 0), (metrics.BRIEF, 1), (metrics.NAMES, 2)]
)
def test_table_of_an_earlier_result_with_fewer_metrics(scores, names, lines):
    result = tables.summary(scores)
    full = tables.table(result).splitlines()
    for stage in _Stages.stages:
        result[stage] = {name: result[stage][name] for name in names}
    del result["counts"], result["interval"]
    mean = full.index("Mean over 3 images; ASD in pixels.")
    kept = full[: mean + 1 + lines] + full[mean + 3 :]
    assert tables.table(result).splitlines() == kept


def test_intervals_hold_the_means_and_are_none_where_these_are(scores):
    result = tables.summary(scores)
    assert tuple(result["interval"]) == _Stages.stages
    for stage, intervals in result["interval"].items():
        assert tuple(intervals) == metrics.NAMES
        for name, interval in intervals.items():
            mean = result[stage][name]
            assert (interval is None) == (mean is None)
            assert mean is None or interval[0] <= mean <= interval[1]
    # Of three images, a resample has the one with Dice 0 three times in one of 27.
    assert result["interval"]["final"]["dice"] == [0.0, 1.0]


def test_an_undefined_metric_is_an_empty_cell(scores):
    rows = list(csv.DictReader(io.StringIO(tables.per_image(scores))))
    assert [row["final_recall_thin"] for row in rows] == ["1.000000", "1.000000", "0.000000"]
    assert [row["final_recall_thick"] for row in rows] == ["", "", ""]


def test_batches_are_filled_and_split_by_size(monkeypatch):
    shapes = []

    def predict(images):
        shapes.append(images.shape)
        mask = images[..., 0] > 127
        return {"global": mask, "final": mask}

    _stub(monkeypatch, predict)
    examples = _examples()
    found = list(inference.segment_examples(_Stages, None, iter(examples), batch=3))
    assert shapes == [(3, 8, 8, 1), (3, 8, 10, 1)]
    for expected, (example, mask) in zip(examples, found, strict=True):
        assert example is expected
        assert list(mask) == ["global", "final"]
        np.testing.assert_array_equal(mask["final"], example["image"][..., 0] > 127)


def test_the_digest_is_of_names_images_and_masks_in_any_order():
    examples = _examples()
    digest = evaluate._digest(examples)
    assert evaluate._digest(examples[::-1]) == digest
    for field, other in (
        ("name", b"another.png"),
        ("image", 255 - examples[1]["image"]),
        ("mask", 255 - examples[1]["mask"]),
    ):
        changed = [examples[0], examples[1] | {field: other}, examples[2]]
        assert evaluate._digest(changed) != digest


def test_files_agree_with_each_other_and_with_a_rerun(trained):
    config, workdir = trained
    folder = workdir / "eval/validation"
    result = json.loads((folder / "metrics.json").read_text())
    rows = list(csv.DictReader((folder / "per_image.csv").open()))
    assert result["images"] == len(rows) == 3
    stages = ("global", "global_local", "final")
    assert list(rows[0]) == ["name", *(f"{s}_{n}" for s in stages for n in metrics.NAMES)]
    for stage in stages:
        assert tuple(result[stage]) == metrics.NAMES
        for name in metrics.NAMES:
            values = [float(row[f"{stage}_{name}"]) for row in rows if row[f"{stage}_{name}"]]
            if values:
                assert result[stage][name] == pytest.approx(np.mean(values), abs=1e-6)
            else:
                assert result[stage][name] is None
            assert result["counts"].get(name, 3) == len(values)
    cascade = configuration.cascade(config)
    params, step = checkpoints.restore_params(workdir, "best", param_shapes(cascade))
    source = loader.examples(loader.prepare(config.data), "validation")
    again = tables.summary(evaluate.score(cascade, params, source, batch=3))
    assert step == result["step"]
    assert again["final"]["dice"] == pytest.approx(result["final"]["dice"], abs=1e-6)


def test_figures_are_the_best_and_the_worst(trained):
    _, workdir = trained
    folder = workdir / "eval/validation"
    rows = list(csv.DictReader((folder / "per_image.csv").open()))
    dice = sorted((float(row["final_dice"]) for row in rows), reverse=True)
    names = sorted(p.stem for p in (folder / "figures").iterdir())
    assert [name.rsplit("_", 1)[1] for name in names] == [f"{dice[0]:.3f}", f"{dice[-1]:.3f}"]
    panel = cv2.imread(str(folder / "figures" / f"{names[0]}.png"))
    # Angiogram, truth and three stages side by side.
    assert panel.shape[1] > 5 * 256


def test_the_report_has_every_image_and_the_training(trained):
    config, workdir = trained
    page = html_test.data_of((workdir / "eval/validation/report.html").read_text())
    rows = list(csv.DictReader((workdir / "eval/validation/per_image.csv").open()))
    assert page["names"] == [row["name"] for row in rows]
    source = loader.examples(loader.prepare(config.data), "validation")
    for index in range(len(source)):
        masks = page["pictures"][str(index)]["masks"]
        assert masks.keys() == {"truth", "global", "global_local", "final"}
        truth = source[index]["mask"][..., 0] > 127
        np.testing.assert_array_equal(html_test.mask_of(masks["truth"]), truth)
    assert [plot["title"] for plot in page["plots"]] == [
        "Loss",
        "Learning rate",
        "Dice (validation)",
    ]
    assert page["details"]["Configuration"]["config.train.epochs"] == "2"
