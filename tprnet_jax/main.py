"""Command line: `python -m tprnet_jax.main --config=FILE [--mode=MODE] [--workdir=FOLDER]`."""

import importlib
import os
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from tprnet_jax import memory
from tprnet_jax.errors import UserError

MODES = {
    "train": "train",
    "eval": "evaluate",
    "predict": "predict",
    "ablate": "ablate",
    "convert": "convert",
    "check": "check",
    "benchmark": "benchmark",
}

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration, such as configs/tprnet.py"
)
_MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; runs/<name of the configuration> unless given."
)
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "tprnet_jax"),
    "Folder where compiled programs are kept for the next start; empty to keep none. JAX's own "
    "variable JAX_COMPILATION_CACHE_DIR goes before it.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "To train with several processes: address:port of the first one, or 'auto' on a cluster that "
    "JAX knows. All write to the same --workdir.",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.", lower_bound=0)


def main(argv: list[str]) -> None:
    """Runs the mode that the flags name; a user's mistake ends with one sentence and status 1."""
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; options have the form --name=value")
        logging.set_verbosity(logging.ERROR)  # Grain warns of JAX's version when imported.
        _be_quick_on_cpus()
        _keep_compiled()
        if _COORDINATOR.value:
            from tprnet_jax import devices

            devices.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        mode = importlib.import_module(f"tprnet_jax.{MODES[_MODE.value]}")
        logging.set_verbosity(logging.WARNING)  # Orbax writes pages at INFO.
        mode.run(_CONFIG.value, _workdir())
    except UserError as error:
        _fail(error)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; give files and folders that can be used")
    except KeyboardInterrupt as error:
        print(f"error: {error or 'interrupted'}", file=sys.stderr, flush=True)
        # Threads that still compile would crash an orderly exit.
        os._exit(getattr(error, "status", 130))


def _be_quick_on_cpus() -> None:
    import jax

    # A device to a core, so that a batch is divided between them as between GPUs: most operations
    # on a part of a batch are too small for two cores to share.
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", _cores())
    # One program after another, in this thread: two at a time have the same cores, and need the
    # memory of both.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def _cores() -> int:
    """Those that this process may use, or all where the system does not say."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count()


def _keep_compiled() -> None:
    if not _COMPILATION_CACHE.value or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(_COMPILATION_CACHE.value))
    # The cascade has many small programs too; together they take seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _workdir() -> Path:
    if _WORKDIR.value:
        return Path(_WORKDIR.value).expanduser()
    path, _, argument = flags.FLAGS["config"].config_filename.partition(":")
    return Path("runs") / "_".join([Path(path).stem, *filter(None, argument.split(","))])


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them, or with the configuration, is one sentence."""
    try:
        rest = flags.FLAGS(argv)
        _check_config()
        return rest
    except KeyError as error:
        _fail(_unknown_field(error))
    except AttributeError as error:
        # ml_collections wraps the KeyError of a nested field.
        wraps = error.args and isinstance(error.args[0], KeyError)
        _fail(_unknown_field(error.args[0]) if wraps else error)
    except (flags.Error, UserError, TypeError, ValueError, OSError) as error:
        _fail(error)
    except (SyntaxError, ImportError, NameError) as error:
        _fail(f"the configuration file cannot be run ({type(error).__name__}: {error}); mend it")


def _unknown_field(error: KeyError) -> str:
    return f"the configuration has no field {'; '.join(str(error.args[0]).splitlines())}"


def _check_config() -> None:
    if _CONFIG.value is None:
        raise UserError("--config is missing; give one such as --config=configs/quickstart.py")
    if not isinstance(_CONFIG.value, ConfigDict):
        given = flags.FLAGS["config"].config_filename
        raise UserError(
            f"--config={given} cannot be read; give a configuration file such as "
            "configs/quickstart.py"
        )


def _fail(reason) -> None:
    text = str(reason)
    # ml_collections wraps what a configuration file raises in its whole traceback.
    text = text.strip().splitlines()[-1] if "Traceback" in text else " ".join(text.split())
    sys.exit(f"error: {text}")


if __name__ == "__main__":
    memory.restart_to_keep_freed()
    app.run(main, flags_parser=_parse)
