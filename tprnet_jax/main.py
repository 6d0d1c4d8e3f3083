"""Command line: `python -m tprnet_jax.main --config=FILE [--mode=MODE] [--workdir=FOLDER]`."""

import importlib
import os

from absl import app, flags, logging
from ml_collections import config_flags

from tprnet_jax.runtime import memory
from tprnet_jax.runtime.errors import UserError

MODES = (
    *("train", "check", "eval", "predict", "serve", "convert", "export"),
    *("calibrate", "ablate", "compare", "benchmark"),
)

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration, such as configs/tprnet.py")
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; else runs/<configuration>.")
CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "tprnet_jax"),
    "Where compiled programs are kept; empty for nowhere. JAX_COMPILATION_CACHE_DIR goes first.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "Of several processes: address:port of the first, or 'auto' on a cluster."
)
PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes.", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.", lower_bound=0)


def main(_) -> None:
    """Runs the mode that the flags name; a user's mistake ends with one sentence and status 1."""
    from tprnet_jax.runtime import cli, devices, signals  # See `start`.

    try:
        logging.set_verbosity(logging.ERROR)  # JAX tells of absent TPUs, Grain of JAX's version.
        cli.be_quick_on_cpus()
        cli.keep_compiled(CACHE.value)
        devices.join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        cli.check_devices()
        mode = importlib.import_module(f"tprnet_jax.{MODE.value.replace('eval', 'evaluate')}")
        logging.set_verbosity(logging.WARNING)  # Orbax writes pages at INFO.
        with signals.noted():  # SIGTERM, too, leaves nothing half-made.
            mode.run(CONFIG.value, cli.workdir(WORKDIR.value))
    except (UserError, OSError) as error:
        cli.fail(error)
    except KeyboardInterrupt as interrupt:
        cli.leave(interrupt)


def start() -> None:
    """The console script `tprnet`."""
    memory.restart_to_keep_freed()
    from tprnet_jax.runtime import cli  # Not twice: JAX takes a second to import.

    app.run(main, flags_parser=cli.parse)


if __name__ == "__main__":
    start()
