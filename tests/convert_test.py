"""Import and export of PyTorch checkpoints; the file's own format needs PyTorch."""

import dataclasses
import io
import json
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tprnet_jax import config as configuration
from tprnet_jax import convert, evaluate, train
from tprnet_jax.method.cascade import param_shapes
from tprnet_jax.models.coanet import CoANet
from tprnet_jax.models.resnet import ResNet
from tprnet_jax.models.weights import to_torch
from tprnet_jax.runtime import checkpoints
from tprnet_jax.runtime.errors import UserError


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[convert]"')


@pytest.fixture
def config(trained):
    return trained[0].copy_and_resolve_references()


def _params(config, workdir):
    return checkpoints.restore_params(workdir, "best", param_shapes(configuration.cascade(config)))[
        0
    ]


def _export(config, workdir, file):
    config.convert.output = str(file)
    convert.run(config, workdir)
    config.convert.output = ""


def _import(config, file, workdir):
    config.convert.input = str(file)
    convert.run(config, workdir)
    config.convert.input = ""


@pytest.fixture
def exported(torch, trained, config, tmp_path):
    _export(config, trained[1], tmp_path / "model_best.pth.tar")
    return tmp_path / "model_best.pth.tar"


def _assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_export_has_the_released_format(torch, trained, config, exported):
    checkpoint = torch.load(exported, weights_only=True)
    assert checkpoint.keys() == {"epoch", "network_weights", "optimizer_state", "best_pred"}
    expected = to_torch(
        configuration.cascade(config).networks, jax.device_get(_params(config, trained[1]))
    )
    found = {name: value.numpy() for name, value in checkpoint["network_weights"].items()}
    _assert_same(found, expected)


def test_import_export_import_is_bitwise_the_same(trained, config, exported, tmp_path):
    _import(config, exported, tmp_path / "first")
    _export(config, tmp_path / "first", tmp_path / "again.pth")
    _import(config, tmp_path / "again.pth", tmp_path / "second")
    _assert_same(_params(config, tmp_path / "first"), _params(config, trained[1]))
    _assert_same(_params(config, tmp_path / "second"), _params(config, trained[1]))


def test_an_import_is_evaluated_as_its_source(trained, config, exported, tmp_path):
    _import(config, exported, tmp_path / "imported")
    expected = json.loads((trained[1] / "eval" / "validation" / "metrics.json").read_text())
    found = evaluate.run(config, tmp_path / "imported")
    assert [found[stage] for stage in ("global", "global_local", "final")] == [
        expected[stage] for stage in ("global", "global_local", "final")
    ]
    assert found["step"] == 0


def test_training_goes_on_from_an_import(config, exported, tmp_path, monkeypatch):
    _import(config, exported, tmp_path / "imported")
    imported = _params(config, tmp_path / "imported")
    started = []

    def stop(trainer, state, *rest):
        started.append(state)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train.run(config, tmp_path / "imported")
    _assert_same(jax.device_get(started[0].params), jax.device_get(imported))
    assert started[0].step == 0


def _save_global(torch, trained, folder):
    """GlobalNet alone, wrapped by PyTorch and beside NumPy numbers, as nnU-Net saves it."""
    config, workdir = trained
    networks = {"global": configuration.cascade(config).global_net}
    state = to_torch(networks, jax.device_get(_params(config, workdir)))
    weights = {f"_orig_mod.module.{n}": torch.from_numpy(np.array(v)) for n, v in state.items()}
    logging = {"ema_fg_dice": [np.float64(0.8), np.float32(0.7), np.int64(3)]}
    file = {"network_weights": weights, "_best_ema": np.float64(0.8), "logging": logging}
    torch.save(file, folder / "checkpoint_final.pth")
    return folder / "checkpoint_final.pth"


def test_nnu_nets_checkpoint_is_imported(torch, trained, config, tmp_path):
    config.model.branches = ("global",)
    _import(config, _save_global(torch, trained, tmp_path), tmp_path / "imported")
    expected = {"global": _params(*trained)["global"]}
    _assert_same(_params(config, tmp_path / "imported"), expected)


def _random(rng, shapes):
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def test_torchvisions_resnet_becomes_coanets_backbone(torch, tiny, tmp_path, monkeypatch):
    """All else of CoANet is as it starts without the file."""
    net, rng = CoANet((4, 4, 8, 4), (1, 1, 1, 1)), np.random.default_rng(0)
    backbone = ResNet(net.channels, net.blocks)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    params = _random(rng, shapes)
    state = to_torch({"global": backbone}, {"global": params}, channels=3)
    state |= {"fc.weight": np.zeros((1000, 16)), "fc.bias": np.zeros(1000)}
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    torch.save(tensors, tmp_path / "resnet.pth")
    cascade = dataclasses.replace(tiny, global_net=net, local_net=None, focal_net=None)
    start, started = (cascade, jax.random.key(3)), _random(rng, param_shapes(cascade))
    monkeypatch.setattr(convert, "init", lambda *given: started if given == start else None)
    found = convert.read(tmp_path / "resnet.pth", cascade, seed=3)["global"]
    grey = {"kernel": params["conv1"]["kernel"].sum(axis=2, keepdims=True)}
    _assert_same(found, started["global"] | {"backbone": params | {"conv1": grey}})
    kernel = tensors["layer1.0.conv2.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found["backbone"]["layer1_0"]["conv2"]["kernel"], kernel)


def _refusal(config, file, workdir):
    with pytest.raises(UserError) as error:
        _import(config, file, workdir)
    assert not workdir.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_refused(config, exported, tmp_path, share):
    content = exported.read_bytes()
    file = tmp_path / "cut.pth"
    file.write_bytes(content[: int(share * len(content))])
    message = _refusal(config, file, tmp_path / "run")
    assert message.startswith(f"{file} ({file.stat().st_size} bytes) is cut off")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n", b"weights", pickle.dumps([1, 2], protocol=2)])
def test_another_file_is_refused(torch, config, tmp_path, content):
    file = tmp_path / "other.pth"
    file.write_bytes(content)
    assert _refusal(config, file, tmp_path / "run").startswith(str(file))


def test_another_network_is_refused(config, exported, tmp_path):
    config.model.local_channels = (2, 5)
    message = _refusal(config, exported, tmp_path / "run")
    assert "its tensor local_net.decoder.stages.0.convs.0.conv.bias is" not in message
    assert message.startswith(
        f"{exported} is of other networks than --config describes: its tensor"
    )
    assert "(4," in message
    assert "(5," in message


def test_a_single_network_is_not_taken_for_the_cascade(torch, trained, config, tmp_path):
    file = _save_global(torch, trained, tmp_path)
    message = _refusal(config, file, tmp_path / "run")
    assert "it lacks the tensor global_net." in message
    assert message.endswith("is imported with --config=configs/tprnet.py:global")


class Foreign:
    """Whoever unpickles it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_foreign_code_is_refused_and_not_run(torch, config, tmp_path):
    file, evidence = tmp_path / "evil.pth", tmp_path / "was_run"
    torch.save({"network_weights": {}, "more": Foreign(evidence)}, file)
    message = _refusal(config, file, tmp_path / "run")
    assert message.startswith(f"{file} holds ")
    assert "nothing of it was run" in message
    assert not evidence.exists()
    plain = io.BytesIO()
    pickle.dump(Foreign(evidence), plain, protocol=2)
    file.write_bytes(plain.getvalue())
    assert "nothing of it was run" in _refusal(config, file, tmp_path / "run")
    assert not evidence.exists()


def test_a_run_is_not_overwritten(config, exported, trained):
    before = sorted(path.name for path in (trained[1] / "checkpoints").iterdir())
    with pytest.raises(UserError, match="already has a run; give another --workdir"):
        _import(config, exported, trained[1])
    assert sorted(path.name for path in (trained[1] / "checkpoints").iterdir()) == before


@pytest.mark.parametrize(("given", "wanted"), [("", ""), ("a.pth", "b.pth")])
def test_one_direction_at_a_time(config, tmp_path, given, wanted):
    config.convert.input, config.convert.output = given, wanted
    with pytest.raises(UserError, match="give one of them"):
        convert.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_file_is_named(torch, config, tmp_path):
    assert "missing.pth is not a file" in _refusal(config, tmp_path / "missing.pth", tmp_path / "r")


def test_without_pytorch_the_extra_is_named(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install -e" in _refusal(config, tmp_path / "any.pth", tmp_path / "run")


@pytest.mark.parametrize(("field", "value"), [("local_fold", 2), ("guided", True)])
def test_networks_that_were_never_published_are_refused(config, tmp_path, field, value):
    config.model[field] = value
    config.convert.output = str(tmp_path / "model.pth.tar")
    with pytest.raises(UserError, match=rf"config\.model\.{field} is {value}, which no published"):
        convert.run(config, tmp_path)
