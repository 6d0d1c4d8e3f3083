import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tprnet_jax import compare, convert, evaluate
from tprnet_jax import config as configuration
from tprnet_jax.data import loader
from tprnet_jax.data.images import read_stored
from tprnet_jax.method import inference
from tprnet_jax.method.cascade import param_shapes
from tprnet_jax.report import figures
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.segmenter import Trained
from tprnet_jax.workdir import restore, write_config


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory):
    """The run; as if of another seed, 0.02 better; and another method, 0.1 better on paper.

    The weights of the latter are all zero, so that it finds nothing.
    """
    config, workdir = trained
    folder = tmp_path_factory.mktemp("runs")
    for name in ("first", "again"):
        shutil.copytree(workdir, folder / name)
    seed = config.copy_and_resolve_references()
    seed.seed = 1
    write_config(seed, folder / "again")
    other = config.copy_and_resolve_references()
    other.optim.momentum = 0.5
    shapes = param_shapes(configuration.cascade(config))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    convert._make_run(other, Trained(nothing, "nothing", None, set()), folder / "better")
    shutil.copytree(workdir / "eval", folder / "better" / "eval")
    evaluated = folder / "better" / "eval" / "validation" / "metrics.json"
    evaluated.write_text(json.dumps(json.loads(evaluated.read_text()) | {"step": 0}))
    _improve(folder / "again" / "eval" / "validation" / "per_image.csv", 0.02)
    _improve(folder / "better" / "eval" / "validation" / "per_image.csv", 0.1)
    return folder


def _improve(table, by):
    header, *rows = [line.split(",") for line in table.read_text().splitlines()]
    column = header.index("final_dice")
    for row in rows:
        row[column] = f"{float(row[column]) + by:.6f}"
    table.write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")


def _asked(config, runs, *names):
    asked = config.copy_and_resolve_references()
    asked.compare.runs = tuple(str(runs / name) for name in names)
    asked.compare.images = 2
    return asked


def test_seeds_are_one_method(trained, runs, tmp_path, capsys):
    config, _ = trained
    report = compare.run(_asked(config, runs, "first", "again", "better"), tmp_path / "out")
    first, better = report["methods"]
    assert (first["name"], first["runs"]) == ("first", 2)
    assert first["sd"]["dice"] == pytest.approx(0.02 / np.sqrt(2), abs=1e-6)
    assert first["sd"]["iou"] == 0
    assert (better["name"], better["runs"]) == ("better", 1)
    assert better["against_first"]["difference"] == pytest.approx(0.1 - 0.01, abs=1e-6)
    assert first["parameters"] == better["parameters"] > 0
    assert first["gflop"] > 0
    assert first["images_per_second"] > 0
    assert report["images"] == 3
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == report
    for suffix in ("md", "csv", "tex"):
        assert "better" in (tmp_path / "out" / f"table.{suffix}").read_text()
    assert read_stored(tmp_path / "out" / "tradeoff.png").shape == (450, 900, 4)
    assert "| better |" in capsys.readouterr().out


def test_methods_in_folders_of_the_same_name_are_told_apart(trained, runs, tmp_path):
    for method in ("first", "better"):
        shutil.copytree(runs / method, tmp_path / method / "seed_0")
    config = _asked(trained[0], tmp_path, "first/seed_0", "better/seed_0")
    report = compare.run(config, tmp_path / "out")
    assert [method["name"] for method in report["methods"]] == ["first/seed_0", "better/seed_0"]


def test_the_sheet_has_a_row_an_image_and_a_column_a_method(trained, runs, tmp_path):
    config, _ = trained
    compare.run(_asked(config, runs, "first", "better"), tmp_path / "out")
    sheet = read_stored(tmp_path / "out" / "sheet.png")
    tile, strip = 256, 23
    assert sheet.shape == (2 * (tile + 2 * strip), 4 * tile + 3 * 4, 3)
    source = loader.examples(loader.prepare(config.data), "validation")
    dice = evaluate.score(*_model(config, runs / "first"), source, 1).rows["final"]
    best = source[int(np.argmax([row["dice"] for row in dice]))]
    masks = {"first": _found(config, runs / "first", best), "better": np.zeros((64, 64), bool)}
    assert masks["first"].any()
    image = best["image"][..., 0] / np.float32(255)
    row = figures.panel(image, best["mask"][..., 0] > 127, masks, best["name"].decode())
    np.testing.assert_array_equal(sheet[: len(row), :, ::-1], row)  # OpenCV reads BGR.


def _model(config, workdir):
    cascade = configuration.cascade(config)
    return cascade, restore(config, workdir, cascade)[0]


def _found(config, workdir, example):
    return inference.predict(*_model(config, workdir), example["image"][None])["final"][0] > 0.5


def test_one_run_is_too_few(trained, runs, tmp_path):
    with pytest.raises(UserError, match=r"names 1; give the workdirs of two or more"):
        compare.run(_asked(trained[0], runs, "first"), tmp_path)


def test_a_run_without_evaluation(trained, runs, tmp_path):
    config = _asked(trained[0], runs, "first", "better")
    config.eval.split = "train"
    with pytest.raises(UserError, match=r"first has not been evaluated on train .*--mode=eval"):
        compare.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_are_those_of_the_evaluated_checkpoint(trained, runs, tmp_path):
    shutil.copytree(runs / "first", tmp_path / "first")
    evaluated = tmp_path / "first" / "eval" / "validation" / "metrics.json"
    changed = json.loads(evaluated.read_text()) | {"checkpoint": "latest", "step": 5}
    evaluated.write_text(json.dumps(changed))
    config = _asked(trained[0], runs, "better")
    config.compare.runs = (str(tmp_path / "first"), *config.compare.runs)
    with pytest.raises(UserError, match=r"was evaluated at step 5, and its latest .* step 6; eval"):
        compare.run(config, tmp_path / "out")


def test_a_sheet_has_images(trained, runs, tmp_path):
    config = _asked(trained[0], runs, "first", "better")
    config.compare.images = 0
    with pytest.raises(UserError, match=r"config\.compare\.images is 0"):
        compare.run(config, tmp_path / "out")


def test_runs_on_other_images(trained, runs, tmp_path):
    shutil.copytree(runs / "better", tmp_path / "other")
    table = tmp_path / "other" / "eval" / "validation" / "per_image.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    config = _asked(trained[0], runs, "first")
    config.compare.runs = (*config.compare.runs, str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"on 2 images and that in .* on 3, of which 2 are the"):
        compare.run(config, tmp_path / "out")


def _edit(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_runs_on_other_images_of_the_same_names(trained, runs, tmp_path):
    shutil.copytree(runs / "better", tmp_path / "other")
    _edit(tmp_path / "other" / "eval" / "validation" / "metrics.json", digest="0123456789abcdef")
    config = _asked(trained[0], runs, "first")
    config.compare.runs = (*config.compare.runs, str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"other was .* the names .*first, but not their digest"):
        compare.run(config, tmp_path / "out")


def test_runs_trained_on_other_images_are_two_methods(trained, runs, tmp_path):
    shutil.copytree(runs / "first", tmp_path / "first")
    shutil.copytree(runs / "again", tmp_path / "elsewhere")
    _edit(tmp_path / "elsewhere" / "training_images.json", images={"1.png": "0123456789abcdef"})
    report = compare.run(_asked(trained[0], tmp_path, "first", "elsewhere"), tmp_path / "out")
    assert [(each["name"], each["runs"]) for each in report["methods"]] == [
        ("first", 1),
        ("elsewhere", 1),
    ]
    assert report["methods"][1]["against_first"]["difference"] == pytest.approx(0.02, abs=1e-6)


def test_one_seed_twice(trained, runs, tmp_path):
    config = _asked(trained[0], runs, "first", "better", "first")
    with pytest.raises(UserError, match=r"first and .*first are of one method and one seed \(0\)"):
        compare.run(config, tmp_path / "out")


def test_images_in_another_order_are_paired_by_name(trained, runs, tmp_path):
    shutil.copytree(runs / "better", tmp_path / "better")
    table = tmp_path / "better" / "eval" / "validation" / "per_image.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *rows[::-1]]) + "\n")
    config = _asked(trained[0], runs, "first")
    config.compare.runs = (*config.compare.runs, str(tmp_path / "better"))
    _, better = compare.run(config, tmp_path / "out")["methods"]
    assert better["against_first"]["interval"] == pytest.approx([0.1, 0.1], abs=1e-6)


def test_images_that_are_no_longer_those_of_the_evaluation(trained, runs, tmp_path):
    for name in ("first", "better"):
        shutil.copytree(runs / name, tmp_path / name)
        table = tmp_path / name / "eval" / "validation" / "per_image.csv"
        table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match=r"^the images of validation are others than when the run"):
        compare.run(_asked(trained[0], tmp_path, "first", "better"), tmp_path / "out")
