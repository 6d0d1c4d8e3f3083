import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from tprnet_jax.method.cascade import Cascade, param_shapes
from tprnet_jax.method.state import State, Trainer, initial_state
from tprnet_jax.models.unet import UNet
from tprnet_jax.runtime import checkpoints
from tprnet_jax.runtime.errors import UserError


def _trainer(channels=(2, 3), ema=0.0):
    net = UNet(channels)
    cascade = Cascade(net, net, net, 8, 4, 4, 4, 2, "topology_first")
    return Trainer(cascade, optax.trace(0.9, nesterov=True), lambda step: 0.1, 1.0, ema)


def _state(step, trainer):
    state = initial_state(trainer, step)._replace(step=np.int32(step))
    if trainer.ema:
        state = state._replace(average=jax.tree.map(lambda x: x + 1, state.params))
    return state


def _save(workdir, trainer, dices):
    with checkpoints.open_manager(workdir) as manager:
        for step, dice in dices.items():
            checkpoints.save(manager, step, _state(step, trainer).parts)
            checkpoints.finish(manager)
            checkpoints.write_score(manager, step, dice)


def _restored(manager, trainer):
    shapes = jax.eval_shape(lambda: initial_state(trainer, 0))
    parts = checkpoints.restore_latest(manager, shapes.parts)
    return None if parts is None else State.of_parts(**parts)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_latest_state_comes_back_bit_for_bit(tmp_path, ema):
    trainer = _trainer(ema=ema)
    _save(tmp_path, trainer, {1: 0.5, 2: 0.4})
    with checkpoints.open_manager(tmp_path) as manager:
        restored = _restored(manager, trainer)
    expected = _state(2, trainer)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_the_average_is_what_evaluation_reads(tmp_path):
    trainer = _trainer(ema=0.9)
    _save(tmp_path, trainer, {1: 0.5})
    params, _ = checkpoints.restore_params(tmp_path, "best", param_shapes(trainer.cascade))
    jax.tree.map(np.testing.assert_array_equal, params, _state(1, trainer).average)


def test_two_newest_and_best_are_kept_and_nothing_else(tmp_path):
    trainer = _trainer()
    _save(tmp_path, trainer, {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6, 5: 0.1})
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert steps == [2, 4, 5]
    for which, step in (("best", 2), ("latest", 5)):
        params, found = checkpoints.restore_params(tmp_path, which, param_shapes(trainer.cascade))
        assert found == step
        jax.tree.map(np.testing.assert_array_equal, params, _state(step, trainer).params)


def test_a_fresh_folder_has_nothing_to_restore(tmp_path):
    trainer = _trainer()
    with checkpoints.open_manager(tmp_path) as manager:
        assert _restored(manager, trainer) is None
    with pytest.raises(UserError, match=r"there is no checkpoint in .*checkpoints; train first"):
        checkpoints.restore_params(tmp_path, "best", param_shapes(trainer.cascade))


def test_evaluating_where_nothing_is_leaves_no_folder_behind(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint"):
        checkpoints.restore_params(tmp_path / "absent", "best", param_shapes(_trainer().cascade))
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("channels", [(2, 4), (2, 3, 3)])
def test_another_architecture_is_named(tmp_path, channels):
    _save(tmp_path, _trainer(), {1: 0.5})
    other = _trainer(channels)
    with pytest.raises(UserError, match="is of another architecture: its params focal/"):
        checkpoints.restore_params(tmp_path, "best", param_shapes(other.cascade))
    with (
        checkpoints.open_manager(tmp_path) as manager,
        pytest.raises(UserError, match="is of another architecture"),
    ):
        _restored(manager, other)


def test_reading_disturbs_nothing(tmp_path):
    trainer = _trainer()
    _save(tmp_path, trainer, {1: 0.5})
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    checkpoints.restore_params(tmp_path, "latest", param_shapes(trainer.cascade))
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
    flags = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    }
    command = [sys.executable, "-c", SAVE_ON_DEVICE_1, tmp_path, os.path.dirname(__file__)]
    subprocess.run(command, env=flags, check=True)
    assert len(jax.devices()) == 1
    trainer = _trainer()
    params, _ = checkpoints.restore_params(tmp_path, "best", param_shapes(trainer.cascade))
    jax.tree.map(np.testing.assert_array_equal, params, _state(1, trainer).params)


# ---- Damage --------------------------------------------------------------------------------------

# Tasks that Orbax leaves behind when reading fails are no news.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def _files(workdir, step):
    folder = workdir / "checkpoints" / str(step)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _restore(workdir, trainer):
    with checkpoints.open_manager(workdir) as manager:
        return _restored(manager, trainer)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with checkpoints 1 (the best) and 2, not to be changed."""
    workdir = tmp_path_factory.mktemp("saved")
    _save(workdir, _trainer(), {1: 0.5, 2: 0.4})
    return workdir


def test_a_truncated_file_sends_back_to_the_checkpoint_before(saved, tmp_path, caplog):
    trainer = _trainer()
    damaging = 0
    for number, name in enumerate(path.relative_to(saved) for path in _files(saved, 2)):
        workdir = tmp_path / str(number)
        shutil.copytree(saved, workdir)
        _truncate(workdir / name)
        caplog.clear()
        restored = _restore(workdir, trainer)
        jax.tree.map(np.testing.assert_array_equal, restored, _state(int(restored.step), trainer))
        if restored.step == 2:  # Nothing that was needed is missing.
            continue
        damaging += 1
        assert f"the checkpoint {workdir}/checkpoints/2 is damaged (" in caplog.text
        assert "going back to the one before" in caplog.text
        # Set aside, with all that is left of it, so that step 2 can be saved again.
        assert len(_files(workdir, "damaged_2")) == len(_files(saved, 2))
        _save(workdir, trainer, {2: 0.4})
    assert damaging >= 6


def test_changed_values_are_found(saved, tmp_path, monkeypatch):
    """Whatever Orbax itself may miss: other values than were saved are no checkpoint."""
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    digests = workdir / "checkpoints" / "2" / "digests" / "metadata"
    stored = json.loads(digests.read_text())
    stored["params"]["global/head/bias"] += 1
    digests.write_text(json.dumps(stored))
    assert _restore(workdir, _trainer()).step == 1


def test_reading_uses_the_one_before_and_renames_nothing(saved, tmp_path, caplog):
    workdir, trainer = tmp_path / "run", _trainer()
    shutil.copytree(saved, workdir)
    for path in _files(workdir, 2):
        _truncate(path)
    params, step = checkpoints.restore_params(workdir, "latest", param_shapes(trainer.cascade))
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, params, _state(1, trainer).params)
    assert "using the one before" in caplog.text
    assert (workdir / "checkpoints" / "2").is_dir()


def test_a_damaged_best_checkpoint_is_not_replaced_silently(saved, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    for path in _files(workdir, 1):
        _truncate(path)
    with pytest.raises(
        UserError, match=r"checkpoints/1 is damaged .*; --config.eval.checkpoint=latest"
    ):
        checkpoints.restore_params(workdir, "best", param_shapes(_trainer().cascade))


def test_if_none_is_whole_nothing_is_changed(saved, tmp_path):
    workdir, trainer = tmp_path / "run", _trainer()
    shutil.copytree(saved, workdir)
    for step in (1, 2):
        for path in _files(workdir, step):
            _truncate(path)
    before = sorted(workdir.rglob("*"))
    message = r"every checkpoint in .* is damaged \(steps 1, 2\), and nothing was changed"
    with pytest.raises(UserError, match=message):
        _restore(workdir, trainer)
    with pytest.raises(UserError, match=message):
        checkpoints.restore_params(workdir, "latest", param_shapes(trainer.cascade))
    assert sorted(workdir.rglob("*")) == before


SAVE_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from tprnet_jax.runtime import checkpoints
from tprnet_jax.runtime.errors import UserError
part = {"noise": np.random.default_rng(0).random(100_000)}
with checkpoints.open_manager(Path(sys.argv[1])) as manager:
    resource.setrlimit(resource.RLIMIT_FSIZE, [int(sys.argv[2])] * 2)
    try:
        checkpoints.save(manager, 3, {"params": part, "optim": part})
        checkpoints.finish(manager)
    except UserError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("most", "reason"), [(10, r"\[Errno 27\] File too large"), (100_000, ".* Error writing .*")]
)
def test_a_full_disk_is_named_and_leaves_the_last_checkpoint_whole(saved, tmp_path, most, reason):
    """Files that may not grow stand for it: those that Orbax writes itself, or Tensorstore's."""
    workdir, trainer = tmp_path / "run", _trainer()
    shutil.copytree(saved, workdir)
    command = [sys.executable, "-c", SAVE_ON_A_FULL_DISK, workdir, str(most)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.fullmatch(
        rf"a checkpoint cannot be written to {workdir}/checkpoints \({reason}\); .* "
        r"and the same command goes on from step 2, which is whole\n",
        done.stdout,
    )
    restored = _restore(workdir, trainer)
    jax.tree.map(np.testing.assert_array_equal, restored, _state(2, trainer))
    _save(workdir, trainer, {3: 0.4})
    assert _restore(workdir, trainer).step == 3
