"""The benchmark's peer, in a process of its own."""

import dataclasses
import os
import signal

import numpy as np
import pytest

from tprnet_jax.method.cascade import BRANCHES
from tprnet_jax.models.unet import UNet
from tprnet_jax.peer import process as peer
from tprnet_jax.runtime.errors import UserError


@pytest.fixture
def batch():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), np.uint8)
    masks = np.zeros_like(images)
    masks[:, 3:6, 2:14] = 255
    return images, masks


def test_both_tasks_are_timed_in_another_process(tiny, batch):
    pytest.importorskip("torch", reason="the peer is in PyTorch")
    two_stages = {f"{name}_net": UNet((2, 3)) for name in BRANCHES}  # PyTorch's class needs two.
    other = peer.Peer(dataclasses.replace(tiny, **two_stages), compiled=False)
    assert all(other.seconds(task, *batch) > 0 for task in ("inference", "training"))
    assert other.process.submit(os.getpid).result() != os.getpid()
    (process,) = other.process._processes.values()
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="the peer's process was killed, perhaps for want of mem"):
        other.seconds("inference", *batch)


def test_without_pytorch_the_mend_is_named(tiny):
    try:
        import torch  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install torch dynamic-network-architectures"):
            peer.Peer(tiny, compiled=False)
    else:
        pytest.skip("PyTorch is installed")
