"""What a wheel has: every package, and every file that is not Python."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def _package(folder):
    return ".".join(folder.relative_to(ROOT).parts)


def test_all_packages_are_listed():
    """Two have no `__init__.py`: one has configurations alone, the other no Python at all."""
    found = {_package(path.parent) for path in ROOT.glob("tprnet_jax/**/__init__.py")}
    assert set(SETUPTOOLS["packages"]) == found | {"tprnet_jax.configs", "tprnet_jax.shipped"}
    assert SETUPTOOLS["package-dir"] == {"tprnet_jax.configs": "configs"}
    assert list(ROOT.glob("configs/*.py"))


@pytest.mark.parametrize("folder", ["report/page", "shipped"])
def test_files_that_are_not_python_are_packaged(folder):
    files = set(ROOT.joinpath("tprnet_jax", folder).iterdir())
    packaged = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    assert files
    assert files <= packaged
