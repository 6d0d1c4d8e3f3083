"""What the README files promise: links that lead somewhere, and Python that runs."""

import re
from pathlib import Path

import numpy as np
import pytest

from tprnet_jax.data import images, scene

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


def test_the_python_of_the_readme_gives_a_mask_and_its_probability(tmp_path, monkeypatch):
    images.write_png(tmp_path / "angiogram.png", scene.draw(0, 0, 96)[0])
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, found := {})
    assert found["mask"].shape == found["probability"].shape == (96, 96)
    np.testing.assert_array_equal(found["mask"], found["probability"] > 0.5)
    assert 0 < found["mask"].mean() < 0.5
