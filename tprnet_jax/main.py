"""Command line: `python -m tprnet_jax.main --config=FILE [--mode=MODE] [--workdir=FOLDER]`."""

import importlib
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from tprnet_jax.errors import UserError

MODES = {"train": "train", "eval": "evaluate", "predict": "predict"}

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration, such as configs/tprnet.py"
)
_MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; runs/<name of the configuration> unless given."
)


def main(argv: list[str]) -> None:
    """Runs the mode that the flags name; a user's mistake ends with one sentence and status 1."""
    logging.set_verbosity(logging.WARNING)  # Orbax writes pages at INFO.
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; options have the form --name=value")
        mode = importlib.import_module(f"tprnet_jax.{MODES[_MODE.value]}")
        mode.run(_CONFIG.value, _workdir())
    except UserError as error:
        _fail(error)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from the latest checkpoint")


def _workdir() -> Path:
    if _WORKDIR.value:
        return Path(_WORKDIR.value).expanduser()
    given = flags.FLAGS["config"].config_filename
    path, _, argument = given.partition(":")
    return Path("runs") / "_".join([Path(path).stem, *argument.replace(",", " ").split()])


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them, or with the configuration, is one sentence."""
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is None and not flags.FLAGS["help"].value:
            raise UserError("--config is missing; give one such as --config=configs/quickstart.py")
        return rest
    except (flags.Error, UserError) as error:
        _fail(error)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # What ml_collections raises for unknown fields, wrong types and missing files.
        _fail(error)


def _fail(message) -> None:
    logging.flush()
    sys.exit("error: " + " ".join(str(message).split()))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
