import atexit
import contextlib
import fcntl
import gc
import itertools
import os
import shutil
import socket
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tprnet_jax import config as configuration
from tprnet_jax import train
from tprnet_jax.data import arcade
from tprnet_jax.method.cascade import Cascade
from tprnet_jax.models.unet import UNet

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one test has compiled, no other need: pytest's workers inherit this.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="tprnet_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Compiling takes more of the tests' time than what is compiled; so it is done less thoroughly, and
# fusions by XLA's older emitters, which take half the time.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
SETTINGS = {
    "jax_platforms": "cpu",
    "jax_compilation_cache_dir": os.environ["JAX_COMPILATION_CACHE_DIR"],
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in SETTINGS.items():
    os.environ[name.upper()] = str(value)  # For the processes that tests start.
    jax.config.update(name, value)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Looking for garbage among the many objects of tracing as often as usual takes a tenth of the time.
gc.set_threshold(100_000, 50, 100)


def pytest_collection_modifyitems(items):
    if not os.environ.get("TPRNET_ARCADE"):
        skip = pytest.mark.skip(reason="TPRNET_ARCADE names no ARCADE folder")
        for item in items:
            if item.get_closest_marker("arcade"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def tiny():
    """A cascade that compiles in seconds."""
    return Cascade(
        global_net=UNet((2, 3)),
        local_net=UNet((3,)),
        focal_net=UNet((2,)),
        window=16,
        patch=8,
        pixels_per_patch=8,
        max_patches=20,
        chunk=5,
        refinement="topology_first",
    )


@pytest.fixture(scope="session")
def tiny_params(tiny):
    """Its parameters, all of them random, so that none can be left out unnoticed.

    From NumPy, because random numbers of many shapes take JAX long to compile.
    """
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        mean = 1 if path[-1].key == "scale" else 0
        return rng.normal(mean, 0.3, leaf.shape).astype(np.float32)

    params = {}
    for name, net in tiny.networks.items():
        shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
        params[name] = jax.tree_util.tree_map_with_path(fill, shapes)
    return params


@pytest.fixture(scope="session")
def tiny_images():
    """Two images of noise, `(2, 25, 22, 1)` uint8."""
    return np.random.default_rng(0).integers(0, 256, (2, 25, 22, 1), np.uint8)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A complete run: its configuration and its workdir, not to be written to.

    Two epochs of three steps; FocalNet joins in the second.
    """
    folder = tmp_path_factory.mktemp("trained")
    config = configuration.default()
    config.data.name, config.data.dir = "phantom", str(folder / "data")
    config.data.phantom.size = 64
    config.data.phantom.train, config.data.phantom.validation = 6, 3
    config.model.global_channels = config.model.local_channels = (2, 4)
    config.model.focal_channels = (2, 4)
    config.model.window, config.model.patch, config.model.chunk = 48, 16, 4
    config.optim.learning_rate, config.optim.momentum = 0.1, 0.9
    config.train.epochs, config.train.batch = 2, 2
    config.eval.batch, config.eval.figures = 2, 2
    train.run(config, folder / "run")
    return config, folder / "run"


@pytest.fixture(scope="session")
def free_port():
    """Finds a port that nobody else is likely to take before the test does.

    It is below those that systems give away themselves, and each process begins at another one.
    """

    def find():
        for port in itertools.count(20_000 + os.getpid() % 10_000):
            with contextlib.suppress(OSError), socket.socket() as one:
                one.bind(("", port))
                return port

    return find


@pytest.fixture(scope="session")
def real_arcade(tmp_path_factory):
    """The folder where the data of TPRNET_ARCADE lie prepared, once for all of pytest's workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with open(folder / "arcade.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        arcade.prepare(os.environ["TPRNET_ARCADE"], str(folder / "arcade"))
    return folder / "arcade"
