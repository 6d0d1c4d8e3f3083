"""The command line: how flags become a configuration, and a user's mistake one sentence."""

import ast
import itertools
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

import tprnet_jax
from tprnet_jax.runtime import model_file
from tprnet_jax.runtime.errors import UserError

PACKAGE = Path(tprnet_jax.__file__).parent
# Gives a configuration of the fields in a run's config.json, as configuration files do.
SAVED = str(PACKAGE / "config.py")
CONFIGS = (PACKAGE / "configs", PACKAGE.with_name("configs"))  # Of a wheel, of the repository.
# Of modes that need none, the workdir unless one is given.
WORKDIRS = {
    **dict.fromkeys(("predict", "serve", "export"), str(model_file.SHIPPED)),
    "compare": os.path.join("runs", "compare"),
}
USAGE = """tprnet --config=FILE [--mode=MODE] [--workdir=FOLDER] [--config.FIELD=VALUE ...]
(the same as python -m tprnet_jax.main)

FILE is a configuration, such as quickstart.py or your own. A --workdir that has a run knows its own.
Modes, each with an example:

  train      train, or go on where it was stopped, then evaluate (the mode unless another is given)
             --config=configs/quickstart.py
  check      read a data set once and list what is wrong with it
             --config=configs/folder.py --mode=check --config.data.source=FOLDER
  eval       evaluate the best checkpoint
             --workdir=runs/tprnet --mode=eval --config.eval.split=test
  predict    segment your own images, with the model that comes along or that of a --workdir
             --mode=predict --config.predict.input=IMAGES --config.predict.output=MASKS
  serve      open a page to try a model on one image or run, with the same models as predict
             --mode=serve
  convert    import PyTorch weights or a model file, or export a run to either
             --config=configs/tprnet_released.py --mode=convert --config.convert.input=model_best.pth.tar
  export     write the model that comes along, or that of a --workdir, as a program of JAX alone
             --mode=export --config.export.output=tprnet.stablehlo
  calibrate  fit the temperature of a run's probabilities, and see what another threshold is worth
             --workdir=runs/tprnet_compact --mode=calibrate --config.eval.split=holdout
  ablate     train the ablations of the paper's Table II
             --config=configs/tprnet.py --mode=ablate --config.ablate.seeds=0,1,2
  compare    the paper's Table I and Fig. 2 over evaluated runs
             --mode=compare --config.compare.runs=runs/a,runs/b
  benchmark  time inference and training on this machine
             --config=configs/tprnet.py --mode=benchmark

Every FIELD is in tprnet_jax/fields.py, with its default and its meaning. Several values stand between
commas: --config.train.remat=global,local. The config.json of a run is a configuration file too.
"""  # noqa: E501


class TupleParser(flags.ArgumentParser):
    """Values between commas; brackets, and quotes around names, may be left out."""

    def parse(self, argument: str | Iterable) -> tuple:
        """The values, numbers where they read as such."""
        if not isinstance(argument, str):
            return tuple(argument)
        values = [value.strip(" '\"") for value in argument.strip(" ()[]").split(",")]
        return tuple(_number_or_name(value) for value in values if value)

    def flag_type(self) -> str:
        """What `--help` calls it."""
        return "values between commas"


def _number_or_name(text: str):
    try:
        return text if "_" in text else ast.literal_eval(text)  # Of 2024_05_01, Python makes one.
    except (ValueError, SyntaxError):
        return text


config_flags.register_flag_parser_for_type(tuple, TupleParser())


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them, or with the configuration, ends the program.

    Args:
        argv: The program's arguments, its name first.

    Returns:
        What is left: the program's name.
    """
    if {"-h", "--help", "-help"} & set(argv[1:]):
        print(USAGE + flags.FLAGS.main_module_help())
        sys.exit(0)
    if "--version" in argv[1:]:
        print(f"tprnet-jax {tprnet_jax.__version__}, JAX {jax.__version__}")
        sys.exit(0)
    try:
        argv = _with_config(argv)
        if _given(argv, "config") is None:  # Flags of its fields would be unknown.
            # A misspelt mode or flag may be why: that is said first.
            flags.FLAGS([each for each in argv if not each.lstrip("-").startswith("config.")])
            raise UserError(_what_is_missing(_given(argv, "workdir")))
        rest = flags.FLAGS([*map(_found, ["", *argv], argv)])
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}; options have the form --name=value")
        _check_config()
        return rest
    except KeyError as error:
        fail(_unknown_field(error))
    except AttributeError as error:
        # ml_collections wraps the KeyError of a nested field.
        wraps = error.args and isinstance(error.args[0], KeyError)
        fail(_unknown_field(error.args[0]) if wraps else error)
    except (flags.Error, UserError, TypeError, ValueError, OSError) as error:
        fail(str(error))
    except (SyntaxError, ImportError, NameError) as error:
        fail(f"the configuration file cannot be run ({type(error).__name__}: {error}); mend it")


def _with_config(argv: list[str]) -> list[str]:
    """The arguments, with the `--config` that a run or a model file has if none is given.

    To predict, serve or export, the model that comes along does where there is neither; to compare
    runs, the first one's configuration; to make a run of a model file, that file's.
    """
    if _given(argv, "config") is not None:
        return argv
    mode, workdir = _given(argv, "mode"), _given(argv, "workdir")
    if workdir is None and mode in WORKDIRS:
        workdir = WORKDIRS[mode]
        argv = [argv[0], f"--workdir={workdir}", *argv[1:]]
    known = _known(argv, mode, workdir)
    # Flags of its fields are known only after it.
    return [argv[0], f"--config={known}", *argv[1:]] if known else argv


def _known(argv: list[str], mode: str | None, workdir: str | None) -> Path | None:
    """The file that has the configuration of what a command is about, if there is one."""
    if mode == "compare":
        runs = TupleParser().parse(_given(argv, "config.compare.runs") or "")
        first = str(runs[0]) if runs else ""
        known = Path(first).expanduser() / "config.json"
        if not known.is_file():
            raise UserError(
                f"--config.compare.runs={first} is no run (no {known}); give the workdirs of "
                "evaluated runs, such as --config.compare.runs=runs/a,runs/b"
            )
        return known
    imported = _given(argv, "config.convert.input") if mode == "convert" else None
    if imported and (model := model_file.located(imported)).suffix == model_file.SUFFIX:
        if not model.is_file():
            raise UserError(
                f"--config.convert.input={imported} is not a file; give a model file, or shipped "
                "for the model that comes along"
            )
        return model
    path = Path(workdir or "").expanduser()
    known = path if path.suffix == model_file.SUFFIX else path / "config.json"
    return known if workdir and known.is_file() else None


def _what_is_missing(workdir: str | None) -> str:
    if workdir is None or Path(workdir).expanduser() == model_file.SHIPPED:
        found = "--config is missing"
    else:
        found = f"--config is missing, and --workdir={workdir} holds no run (no config.json)"
    return (
        f"{found}; give one such as --config=configs/quickstart.py, or the --workdir of a run; "
        "--help says what else there is"
    )


def _given(argv: list[str], name: str) -> str | None:
    """The value of a flag, the last one counting; None where it is not given."""
    value = None
    for argument, after in itertools.pairwise([*argv[1:], ""]):
        flag, equals, text = argument.lstrip("-").partition("=")
        if flag == name and argument.startswith("-"):
            value = text if equals else after
    return value


def _found(before: str, argument: str) -> str:
    """The argument; where it names a configuration, so that `config_flags` finds it.

    The config.json of a run and a model file are configurations as well; and those that come along
    are known by name, from any folder.
    """
    if before in ("-config", "--config"):
        name = ""
    elif flag := re.match("--?config=", argument):
        name = flag[0]
    else:
        return argument
    path = argument.removeprefix(name)
    if path.endswith((".json", model_file.SUFFIX)):
        return f"{name}{SAVED}:{path}"
    file, colon, rest = path.partition(":")
    if not Path(file).exists():
        for folder in CONFIGS:
            if (own := folder / Path(file).with_suffix(".py").name).is_file():
                return f"{name}{own}{colon}{rest}"
    return argument


def _unknown_field(error: KeyError) -> str:
    return f"the configuration has no field {'; '.join(str(error.args[0]).splitlines())}"


def _check_config() -> None:
    config = flags.FLAGS.config
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config={flags.FLAGS['config'].config_filename} cannot be read; give a "
            "configuration file such as configs/quickstart.py"
        )


def workdir(given: str | None) -> Path:
    """The folder of the run: the one given, or one named after the configuration."""
    return Path(given).expanduser() if given else named_after(flags.FLAGS["config"].config_filename)


def named_after(config: str) -> Path:
    """The folder of a run with this value of `--config`, if no other is given."""
    path, _, argument = config.partition(":")
    if path == SAVED and argument.endswith(model_file.SUFFIX):
        return Path("runs") / Path(argument).stem
    if path == SAVED:
        return Path("runs") / f"{Path(argument).resolve().parent.name}_again"
    return Path("runs") / "_".join([Path(path).stem, *filter(None, argument.split(","))])


def keep_compiled(folder: str) -> None:
    """Keeps compiled programs in this folder for the next start; empty keeps none."""
    if not folder or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
    # The cascade has many small programs too; together they take seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def be_quick_on_cpus() -> None:
    """Sets what JAX wants to know of CPUs before it first uses one."""
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


def check_devices() -> None:
    """Checks that JAX finds the devices it was told to use.

    Raises:
        UserError: It does not.
    """
    try:
        jax.devices()
    except RuntimeError as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        if not platforms:
            raise
        raise UserError(
            f"JAX cannot use JAX_PLATFORMS={platforms} ({' '.join(str(error).split())}); unset it, "
            "or install JAX for it"
        ) from error


def fail(reason) -> None:
    """Ends the program with one sentence and status 1."""
    if isinstance(reason, OSError):
        if reason.filename is None:
            raise reason
        reason = f"{reason.filename}: {reason.strerror}; give files and folders that can be used"
    text = str(reason)
    # ml_collections wraps what a configuration file raises in its whole traceback.
    text = text.strip().splitlines()[-1] if "Traceback" in text else " ".join(text.split())
    if "get_config() takes 0 positional arguments" in text:
        text = "this configuration file takes no argument; leave out the colon and what follows it"
    sys.exit(f"error: {text}")


def leave(interrupt: KeyboardInterrupt) -> None:
    """Ends the program at once, with what the interruption has to say."""
    print(f"error: {str(interrupt) or 'interrupted'}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that still compile would crash an orderly exit.
    os._exit(getattr(interrupt, "status", 130))
