import json
import re
import tomllib
from pathlib import Path

import cv2
import nbclient
import nbformat
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "colab" / "tprnet.ipynb"

OVERRIDES = [
    "--config.train.epochs=1",
    "--config.train.focal_from_epoch=0",
    "--config.data.phantom.size=64",
    "--config.data.phantom.train=4",
    "--config.data.phantom.validation=3",
    "--config.model.global_channels=(4, 8)",
    "--config.model.local_channels=(4, 8)",
    "--config.model.focal_channels=(4, 8)",
]


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def cell(notebook, name):
    return next(each for each in notebook.cells if each["id"] == name)


def text(notebook, name):
    """What a cell printed."""
    return "".join(each["text"] for each in cell(notebook, name).outputs if "text" in each)


def pictures(notebook, name):
    """The pictures that a cell displayed."""
    return [each for each in cell(notebook, name).outputs if "image/png" in each.get("data", {})]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Keeps what a kernel writes in a temporary folder, and finds the kernel of this Python."""
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "TFDS_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    return tmp_path


def test_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    codes = [each for each in notebook.cells if each.cell_type == "code"]
    assert [each["id"] for each in codes if each.outputs or each.execution_count] == []


def test_opens_with_a_badge_that_leads_to_itself(notebook):
    link = re.search(
        r'href="https://colab\.research\.google\.com/github/([^"]+)"',
        cell(notebook, "intro").source,
    )
    assert notebook.cells[0]["id"] == "intro"
    home = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
    assert home == f"https://github.com/{link[1].removesuffix('/blob/main/colab/tprnet.ipynb')}"
    assert f'SOURCE = "git+{home}"' in cell(notebook, "install").source


def test_runs_from_top_to_bottom(notebook, elsewhere):
    workdir = elsewhere / "run"
    cell(notebook, "parameters").source = f"WORKDIR, OVERRIDES = {str(workdir)!r}, {OVERRIDES!r}"
    nbclient.execute(notebook, cwd=elsewhere, timeout=300)

    assert "CPU" in text(notebook, "device")
    report = json.loads((workdir / "eval/validation/metrics.json").read_text())
    table = text(notebook, "table")
    assert "Mean over 3 images" in table
    for title, stage in (
        ("Global ", "global"),
        ("Global + Local", "global_local"),
        ("Final", "final"),
    ):
        row = next(line for line in table.splitlines() if line.startswith(title))
        expected = [
            f"{report[stage][name]:.4f}" for name in ("dice", "iou", "precision", "recall", "asd")
        ]
        assert row.split()[-5:] == expected
    assert len(pictures(notebook, "figures")) == 3
    assert len(pictures(notebook, "predict")) == 3
    paths = sorted((workdir / "predictions").glob("*_mask.png"))
    assert [path.name for path in paths] == [f"phantom_{index}_mask.png" for index in range(3)]
    masks = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths]
    assert [mask.shape for mask in masks] == [(512, 512)] * 3
    share = np.mean(masks[0] > 0)
    assert 0.005 < share < 0.3
    assert f": {share:.1%} of 512 x 512 pixels are vessel" in text(notebook, "python")
