import numpy as np
import pytest

from tprnet_jax.runtime import model_file
from tprnet_jax.runtime.errors import UserError

PARAMS = {"net": {"kernel": np.array([[1.0, -0.1], [2.0, 1e-3]], np.float32), "bias": np.zeros(2)}}


@pytest.fixture
def path(tmp_path):
    model_file.write(tmp_path / "a.npz", PARAMS, {"name": "a", "side": 64})
    return tmp_path / "a.npz"


def test_parameters_come_back_as_float16_rounds_them(path):
    params, about = model_file.read(path, PARAMS)
    kernel = params["net"]["kernel"]
    assert kernel.dtype == np.float32
    # The nearest numbers of 11 bits: -0.1 is 1638.4 / 2**14, and 0.001 is 1048.576 / 2**20.
    np.testing.assert_array_equal(kernel, [[1, -1638 / 2**14], [2, 1049 / 2**20]])
    assert (about["name"], about["side"]) == ("a", 64)
    assert model_file.read_about(path) == about


def test_a_number_takes_two_bytes(tmp_path):
    model_file.write(tmp_path / "b.npz", {"w": np.ones((1000, 1000), np.float32)}, {})
    assert 2_000_000 < (tmp_path / "b.npz").stat().st_size < 2_002_000


def test_a_changed_number_is_found(path, tmp_path):
    with np.load(path) as file:
        arrays = dict(file)
    arrays["net/bias"] = arrays["net/bias"] + 1
    np.savez(tmp_path / "changed.npz", **arrays)
    with pytest.raises(UserError, match=r"changed\.npz is damaged: .* SHA-256 .*; copy it again"):
        model_file.read(tmp_path / "changed.npz", PARAMS)


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_what_is_no_model_is_named(tmp_path, content):
    path = tmp_path / "x.npz"
    if content is None:
        np.savez(path, a=np.zeros(2))
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.npz is no model of this project, or damaged"):
        model_file.read(path, PARAMS)


def test_a_cut_off_file_is_named(path):
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"a\.npz is no model of this project, or damaged"):
        model_file.read(path, PARAMS)


def test_other_networks_are_named(path):
    wider = {"net": {"kernel": np.zeros((2, 3)), "bias": np.zeros(2)}}
    with pytest.raises(UserError, match=r"its net/kernel is \(2, 2\), but .* makes it \(2, 3\)"):
        model_file.read(path, wider)
    with pytest.raises(UserError, match=r"its net/bias is \(2,\), but .* makes it absent"):
        model_file.read(path, {"net": {"kernel": np.zeros((2, 2))}})
