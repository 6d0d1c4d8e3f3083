"""One training on one device, on eight, and on two processes of four."""

import json
import os
import socket
import subprocess
import sys

import html_test
import jax
import numpy as np
import pytest

from tprnet_jax import config as configuration
from tprnet_jax.method.cascade import param_shapes
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
    config.optim.momentum = 0.9
    return config


def _start(config, workdir, count, *joined):
    flags = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    coordinator, *numbers = joined or ("",)
    command = [sys.executable, "-c", TRAIN, config.to_json(), str(workdir), coordinator]
    return subprocess.Popen(
        [*command, *map(str, numbers)],
        env=flags,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _train(workdir, *processes):
    outputs = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return workdir, [line for line in lines if line["split"] == "train"]


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    return _train(workdir, _start(config, workdir, 1))


@pytest.fixture(scope="module")
def eight(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("eight")
    return _train(workdir, _start(config, workdir, 8))


@pytest.fixture(scope="module")
def two_of_four(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two_of_four")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    return _train(workdir, *(_start(config, workdir, 4, coordinator, 2, n) for n in (0, 1)))


@pytest.mark.parametrize("shared", ["eight", "two_of_four"])
def test_the_losses_are_those_of_one_device(alone, shared, request):
    expected, (workdir, found) = alone[1], request.getfixturevalue(shared)
    assert len(expected) == len(found) == 20
    assert len({line["patches"] for line in expected}) > 5
    for one, many in zip(expected, found, strict=True):
        assert many["patches"] == one["patches"]
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-5)
    report = html_test.data_of((workdir / "eval/validation/report.html").read_text())
    assert len(report["pictures"]) == len(report["names"]) > 1  # Of all processes.


def test_a_checkpoint_of_eight_devices_opens_on_one(config, alone, eight):
    assert jax.device_count() == 1
    cascade = configuration.cascade(config)
    (expected, _), (found, step) = (
        checkpoints.restore_params(workdir, "latest", param_shapes(cascade))
        for workdir, _ in (alone, eight)
    )
    assert step == 20
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


SHARES = """
from tprnet_jax.runtime import devices
meshes = [devices.mesh(batch) for batch in (1, 2, 3, 4, 6, 7, 8, 12, 16)]
print([mesh and [d.id for d in mesh.devices.ravel()] for mesh in meshes])
"""


def test_as_many_devices_as_divide_the_batch_share_it():
    flags = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    }
    command = [sys.executable, "-c", SHARES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=flags)
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
