import os
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from tprnet_jax import checkpoints
from tprnet_jax.cascade import Cascade
from tprnet_jax.errors import UserError
from tprnet_jax.models.unet import UNet
from tprnet_jax.step import Trainer, initial_state


def _trainer(channels=(2, 3)):
    net = UNet(channels)
    cascade = Cascade(net, net, net, 8, 4, 4, 4, 2, "topology_first")
    return Trainer(cascade, optax.trace(0.9, nesterov=True), lambda step: 0.1, 1.0)


def _state(step, trainer):
    return initial_state(trainer, step)._replace(step=np.int32(step))


def _save(workdir, trainer, dices):
    with checkpoints.open_manager(workdir) as manager:
        for step, dice in dices.items():
            checkpoints.save(manager, _state(step, trainer))
            checkpoints.write_score(manager, step, dice)


def test_latest_state_comes_back_bit_for_bit(tmp_path):
    trainer = _trainer()
    _save(tmp_path, trainer, {1: 0.5, 2: 0.4})
    with checkpoints.open_manager(tmp_path) as manager:
        restored = checkpoints.restore_latest(manager, lambda: initial_state(trainer, 0))
    expected = _state(2, trainer)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_two_newest_and_best_are_kept_and_nothing_else(tmp_path):
    trainer = _trainer()
    _save(tmp_path, trainer, {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6, 5: 0.1})
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert steps == [2, 4, 5]
    for which, step in (("best", 2), ("latest", 5)):
        params, found = checkpoints.restore_params(tmp_path, which, trainer.cascade)
        assert found == step
        jax.tree.map(np.testing.assert_array_equal, params, _state(step, trainer).params)


def test_a_fresh_folder_has_nothing_to_restore(tmp_path):
    trainer = _trainer()
    with checkpoints.open_manager(tmp_path) as manager:
        assert checkpoints.restore_latest(manager, lambda: initial_state(trainer, 0)) is None
    with pytest.raises(UserError, match=r"there is no checkpoint in .*checkpoints; train first"):
        checkpoints.restore_params(tmp_path, "best", trainer.cascade)


def test_evaluating_where_nothing_is_leaves_no_folder_behind(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint"):
        checkpoints.restore_params(tmp_path / "absent", "best", _trainer().cascade)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("channels", [(2, 4), (2, 3, 3)])
def test_another_architecture_is_named(tmp_path, channels):
    _save(tmp_path, _trainer(), {1: 0.5})
    other = _trainer(channels)
    with pytest.raises(UserError, match="is of another architecture: its params focal/"):
        checkpoints.restore_params(tmp_path, "best", other.cascade)
    with (
        checkpoints.open_manager(tmp_path) as manager,
        pytest.raises(UserError, match="is of another architecture"),
    ):
        checkpoints.restore_latest(manager, lambda: initial_state(other, 0))


def test_reading_disturbs_nothing(tmp_path):
    trainer = _trainer()
    _save(tmp_path, trainer, {1: 0.5})
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    checkpoints.restore_params(tmp_path, "latest", trainer.cascade)
    assert unfinished.is_dir()


SAVE_ON_DEVICE_1 = """
import sys
from pathlib import Path
import jax
sys.path.insert(0, sys.argv[2])
import checkpoints_test
with jax.default_device(jax.devices()[1]):
    checkpoints_test._save(Path(sys.argv[1]), checkpoints_test._trainer(), {1: 0.5})
"""


def test_a_checkpoint_opens_on_another_device(tmp_path):
    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", SAVE_ON_DEVICE_1, tmp_path, os.path.dirname(__file__)]
    subprocess.run(command, env=flags, check=True)
    assert len(jax.devices()) == 1
    trainer = _trainer()
    params, _ = checkpoints.restore_params(tmp_path, "best", trainer.cascade)
    jax.tree.map(np.testing.assert_array_equal, params, _state(1, trainer).params)
