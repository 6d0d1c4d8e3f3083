"""One training on one device, on eight, and on two processes of four."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import html_test
import jax
import numpy as np
import optax
import pytest
import step_test

from tprnet_jax import config as configuration
from tprnet_jax import train
from tprnet_jax.method import step
from tprnet_jax.method.cascade import Cascade, param_shapes
from tprnet_jax.method.state import Trainer, initial_state
from tprnet_jax.runtime import checkpoints, devices
from tprnet_jax.runtime.errors import UserError

TRAIN = """
import json, sys
from pathlib import Path
from tprnet_jax import config as configuration, train
from tprnet_jax.runtime import devices, progress
devices.join(sys.argv[3], *map(int, sys.argv[4:]))
config = configuration.default()
config.update(json.loads(sys.argv[1]))
progress.LOG_EVERY = 1
train.run(config, Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """20 steps of 16 images, two to each of eight devices."""
    config = configuration.default()
    config.data.name, config.data.dir = "phantom", str(tmp_path_factory.mktemp("data"))
    config.data.phantom.size, config.data.phantom.train = 64, 32
    config.data.phantom.validation, config.augment.p_mirror = 2, 0.5
    config.augment.p_rotation = config.augment.p_gamma = 0.5
    config.model.global_channels = config.model.local_channels = (2, 4)
    config.model.focal_channels = (2, 4)
    config.model.window, config.model.patch, config.model.chunk = 48, 16, 12
    config.train.batch, config.train.epochs, config.train.evaluate_every = 16, 10, 10
    config.train.focal_from_epoch, config.eval.figures = 0, 0
    config.train.refinement = "location_first"
    config.optim.momentum = 0.9
    return config


def _environment(count, **more):
    """That of a process with so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    return os.environ | {"XLA_FLAGS": flags, **more}


def _start(config, workdir, count, *joined):
    coordinator, *numbers = joined or ("",)
    command = [sys.executable, "-c", TRAIN, config.to_json(), str(workdir), coordinator]
    return subprocess.Popen(
        [*command, *map(str, numbers)],
        env=_environment(count, JAX_DISABLE_MOST_OPTIMIZATIONS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _train(workdir, *processes):
    outputs = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (validated,) = (line for line in lines if line["split"] == "validation")
    return workdir, [line for line in lines if line["split"] == "train"], validated


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    return _train(workdir, _start(config, workdir, 1))


@pytest.fixture(scope="module")
def eight(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("eight")
    return _train(workdir, _start(config, workdir, 8))


@pytest.fixture(scope="module")
def two_of_four(config, tmp_path_factory, free_port):
    workdir = tmp_path_factory.mktemp("two_of_four")
    coordinator = f"localhost:{free_port()}"
    return _train(workdir, *(_start(config, workdir, 4, coordinator, 2, n) for n in (0, 1)))


@pytest.mark.parametrize("shared", ["eight", "two_of_four"])
def test_the_losses_are_those_of_one_device(alone, shared, request):
    expected, (workdir, found, _) = alone[1], request.getfixturevalue(shared)
    assert len(expected) == len(found) == 20
    assert len({line["patches"] for line in expected}) > 5
    for one, many in zip(expected, found, strict=True):
        assert many["patches"] == one["patches"]
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-5)
    report = html_test.data_of((workdir / "eval/validation/report.html").read_text())
    assert len(report["pictures"]) == len(report["names"]) > 1  # Of all processes.


def test_a_checkpoint_is_chosen_by_what_is_reported(alone):
    """The training merges the branches in another way than the model."""
    workdir, _, validated = alone
    reported = json.loads((workdir / "eval/validation/metrics.json").read_text())
    assert validated["final_dice"] == reported["final"]["dice"]


def test_a_checkpoint_of_eight_devices_opens_on_one(config, alone, eight):
    assert jax.device_count() == 1
    cascade = configuration.cascade(config)
    (expected, _), (found, step) = (
        checkpoints.restore_params(workdir, "latest", param_shapes(cascade))
        for workdir, *_ in (alone, eight)
    )
    assert step == 20
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def supervised_loss():
    """That of the coarser outputs, of an image without vessels and one of them, on all devices."""
    cascade = Cascade(step_test.Coarser(), None, None, 16, 8, 8, 20, 4, "topology_first")
    mesh = devices.mesh(2)
    trainer = Trainer(cascade, optax.identity(), lambda step: 0.0, clip_norm=1.0, mesh=mesh)
    state = devices.replicate(mesh, initial_state(trainer, 0))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), np.uint8)
    masks = np.stack([np.zeros_like(images[0]), np.full_like(images[1], 255)])
    return float(step.train_step(trainer, state, images, masks, False)[1]["loss_auxiliary"])


def test_deep_supervision_pools_the_images_of_all_devices():
    command = "import sys, devices_test; sys.stdout.write(str(devices_test.supervised_loss()))"
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=Path(__file__).parent,
        env=_environment(2),
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) == pytest.approx(supervised_loss(), rel=1e-5)


def _trainer(network, mesh):
    config = configuration.default()
    config.model.branches, config.model.global_net = ("global",), network
    config.model.global_channels = (2, 4)
    return config, train.make_trainer(config, 1, mesh)


@pytest.mark.parametrize(
    ("network", "backend", "is_shared"),
    [("resunet", "cpu", False), ("resunet", "gpu", True), ("nnunet", "cpu", True)],
)
def test_what_batch_normalisation_learns_is_that_of_any_cpu(
    monkeypatch, network, backend, is_shared
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    mesh = jax.make_mesh((1,), (devices.AXIS,))
    _, trainer = _trainer(network, mesh)
    assert trainer.mesh == (mesh if is_shared else None)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ("resunet", "batch normalisation needs the whole batch"),
        ("nnunet", "no more divide config.train.batch=1"),
    ],
)
def test_why_devices_are_idle_is_said(monkeypatch, capsys, network, reason):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    config, trainer = _trainer(network, None)
    train._say_how_it_starts(types.SimpleNamespace(config=config, trainer=trainer), 0)
    assert capsys.readouterr().out == f"1 of 2 devices train; {reason}.\n"


SHARES = """
from tprnet_jax.runtime import devices
meshes = [devices.mesh(batch) for batch in (1, 2, 3, 4, 6, 7, 8, 12, 16)]
print([mesh and [d.id for d in mesh.devices.ravel()] for mesh in meshes])
"""


def test_as_many_devices_as_divide_the_batch_share_it():
    command = [sys.executable, "-c", SHARES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment(8))
    sizes = [None, 2, 3, 4, 6, 7, 8, 6, 8]
    assert json.loads(done.stdout.replace("None", "null")) == [n and list(range(n)) for n in sizes]


def test_one_device_needs_no_mesh():
    assert devices.mesh(3) is None
    rows = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(devices.local_rows(devices.shard(None, rows)), rows)


def test_a_batch_that_processes_cannot_share_is_a_users_mistake(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match=r"config\.train\.batch is 6, but there are 4 processes"):
        devices.mesh(6)


@pytest.mark.parametrize(
    ("flags", "mend"),
    [
        (("", 2, 0), "give the first process's ADDRESS:PORT as --coordinator"),
        (("auto", 2, 0), "give the first process's ADDRESS:PORT as --coordinator"),
        (("localhost:1", None, None), "give all three"),
        (("localhost:1", 2, None), "give all three"),
        (("localhost", 2, 0), "give all three"),
        (("localhost:1", 2, 2), "give a --process from 0 to 1"),
        (
            ("auto", None, None),
            r"^JAX cannot join the other processes \(.*\); correct",
        ),
    ],
)
def test_flags_of_several_processes_that_do_not_go_together(monkeypatch, flags, mend):
    def fail():
        raise ValueError("no cluster")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match=mend):
        devices.join(*flags)


class _Pending:
    """What a device still computes."""

    is_there = False

    def block_until_ready(self):
        self.is_there = True
        return self


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_on_cpus_a_program_of_all_devices_runs_beside_no_other(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    seen = []

    def program(argument):
        seen.append(argument.is_there)
        return _Pending()

    result = devices.alone(program)(_Pending())
    assert [*seen, result.is_there] == [backend == "cpu"] * 2
