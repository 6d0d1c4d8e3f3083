"""What the README files promise: links that lead somewhere, and Python that runs."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tprnet_jax import config as configuration
from tprnet_jax import workdir
from tprnet_jax.data import images, scene
from tprnet_jax.method import inference

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "configs/README.md", "configs/results/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_configurations_are_there(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    assert links
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    configurations = set(re.findall(r"--config=(configs/\w+\.py)", text))
    assert [name for name in configurations if not (ROOT / name).is_file()] == []


def test_the_python_of_the_readme_gives_a_probability(trained, tmp_path, monkeypatch):
    image = scene.draw(0, 0, 64)[0]
    images.write_png(tmp_path / "angiogram.png", image)
    shutil.copytree(trained[1], tmp_path / "runs" / "quickstart")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, found := {})
    assert found["mask"].shape == found["probability"].shape == (64, 64)
    settings, run = configuration.get_config("runs/quickstart/config.json"), Path("runs/quickstart")
    cascade = configuration.cascade(settings)
    params, _ = workdir.restore(settings, run, cascade)
    unit = images.read_grey("angiogram.png")[None, ..., None]
    again = inference.predict(cascade, params, unit)["final"][0]
    np.testing.assert_array_equal(again > 0.5, found["mask"])
    np.testing.assert_allclose(again, found["probability"], atol=1e-6)
    assert 0 <= found["probability"].min() < found["probability"].max() <= 1
