"""What the README files promise: links that lead somewhere, and Python that runs."""

import re
from pathlib import Path

import numpy as np
import pytest

from tprnet_jax.data import images, scene

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "configs/README.md", "configs/results/README.md"]


def _anchors(text):
    """What GitHub calls a page's headings in links."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    slugs = [re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in headings]
    before = [slugs[:place].count(slug) for place, slug in enumerate(slugs)]
    return [f"{slug}-{n}" if n else slug for slug, n in zip(slugs, before, strict=True)]


def test_anchors_are_as_github_makes_them():
    page = "# ARCADE, and the paper's table\n```\n# no heading\n```\n## A `b_c`-d\n### A `b_c`-d\n"
    assert _anchors(page) == ["arcade-and-the-papers-table", "a-b_c-d", "a-b_c-d-1"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", (ROOT / page).read_text())
    assert links
    for link, anchor in links:
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target.read_text()), f"{link}#{anchor}"


@pytest.mark.parametrize("page", [*PAGES, "tprnet_jax/shipped/README.md"])
def test_configurations_are_there(page):
    names = set(re.findall(r"--config=(configs/\w+\.py)", (ROOT / page).read_text()))
    assert names
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_the_python_of_the_readme_gives_a_mask_and_its_probability(tmp_path, monkeypatch):
    images.write_png(tmp_path / "angiogram.png", scene.draw(0, 0, 96)[0])
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, found := {})
    assert found["mask"].shape == found["probability"].shape == (96, 96)
    np.testing.assert_array_equal(found["mask"], found["probability"] > 0.5)
    assert 0 < found["mask"].mean() < 0.5
