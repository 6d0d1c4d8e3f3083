"""A real training process, killed and started again, against one that nobody disturbed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import run_log

from tprnet_jax import config as configuration
from tprnet_jax.method.cascade import param_shapes
from tprnet_jax.runtime import checkpoints

ROOT = Path(__file__).parents[1]
STEPS = 40
# Two steps well apart, and one more for a kill while a checkpoint is written.
KILLED, TERMINATED, TORN = 7, 15, 24


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """40 steps with a checkpoint every third one and two evaluations."""
    config = configuration.default()
    config.data.name, config.data.dir = "phantom", str(tmp_path_factory.mktemp("data"))
    config.data.phantom.size, config.data.phantom.train = 64, 8
    config.data.phantom.validation, config.augment.p_mirror = 2, 0.5
    config.model.global_channels = config.model.local_channels = (2, 4)
    config.model.focal_channels = (2, 4)
    config.model.window, config.model.patch, config.model.chunk = 48, 16, 4
    config.train.batch, config.train.epochs, config.train.ema = 2, 10, 0.9
    config.train.evaluate_every, config.train.save_every = 5, 3
    config.eval.figures = 0
    return config


class Run:
    """Starts of one training."""

    def __init__(self, config, workdir):
        self.config, self.workdir = config, workdir

    def start(self):
        """A process that trains."""
        script = self.workdir.with_suffix(".py")
        script.write_text(
            "import json, sys\nfrom ml_collections import ConfigDict\n"
            "def get_config():\n"
            "    from tprnet_jax.config import default\n"
            "    config = default()\n"
            f"    config.update(json.loads({self.config.to_json()!r}))\n"
            "    return config\n"
        )
        command = [sys.executable, "-m", "tprnet_jax.main", f"--config={script}"]
        return subprocess.Popen(
            [*command, f"--workdir={self.workdir}"],
            cwd=ROOT,
            env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self):
        """Trains to the end."""
        process = self.start()
        output = process.communicate()[0]
        assert process.returncode == 0, output
        return output

    def stop(self, number, when):
        """Trains until `when()`, then sends a signal; what was printed, and the status.

        If the training ends before, there is no signal, and the status is 0.
        """
        process = self.start()
        while not when() and process.poll() is None:
            time.sleep(0.0005)
        process.send_signal(number)
        output = process.communicate()[0]
        assert process.returncode in (0, -number, 128 + number), output
        return output, process.returncode

    def stop_in_a_save(self, moment):
        """Kills it while it saves a step after `moment`; whether that came out so.

        Where a save was over too soon to be seen, or to be cut off, it begins anew from what was
        there before.
        """
        before = self.workdir.with_name("before")
        shutil.copytree(self.workdir, before)
        for _ in range(5):
            self.stop(signal.SIGKILL, lambda: max(self.steps()) >= moment and self.is_saving())
            if self.is_saving():
                return True
            shutil.rmtree(self.workdir)
            shutil.copytree(before, self.workdir)
        return False

    def names(self):
        folder = self.workdir / "checkpoints"
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []

    def steps(self):
        """Steps of the checkpoints that are complete."""
        return [int(name) for name in self.names() if name.isdigit()]

    def reaches(self, moment):
        """Tells when a start from here on has saved step `moment` or a later one."""
        before = max(self.steps(), default=0)
        return lambda: max(self.steps(), default=0) >= max(moment, before + 1)

    def is_saving(self):
        return any("tmp" in name for name in self.names())

    def result(self):
        """All that a run leaves of itself: parameters, log and scores."""
        cascade = configuration.cascade(self.config)
        params, step = checkpoints.restore_params(self.workdir, "latest", param_shapes(cascade))
        assert step == STEPS
        log = run_log.lines(self.workdir)
        scores = json.loads((self.workdir / "checkpoints" / "scores.json").read_text())
        return jax.tree.map(np.asarray, params), log, scores


@pytest.fixture(scope="module")
def undisturbed(settings, tmp_path_factory):
    run = Run(settings, tmp_path_factory.mktemp("undisturbed") / "run")
    run.finish()
    return run.result()


def _assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
    assert found[1:] == expected[1:]


def test_killed_and_terminated_it_ends_bit_for_bit_alike(settings, undisturbed, tmp_path):
    run = Run(settings, tmp_path / "run")
    assert run.stop(signal.SIGKILL, run.reaches(KILLED))[1] == -signal.SIGKILL
    output, status = run.stop(signal.SIGTERM, run.reaches(TERMINATED))
    assert status == 128 + signal.SIGTERM
    step = int(re.search(r"error: interrupted; .* goes on from step (\d+)$", output.strip())[1])
    assert step == max(run.steps()) >= TERMINATED
    assert run.stop_in_a_save(TORN), "no save was caught in the middle"
    assert "Going on from step" in run.finish()
    _assert_same(run.result(), undisturbed)
    assert not run.is_saving()
