"""The command line, as a user meets it: one sentence and a status, never a traceback."""

import subprocess
import sys

import pytest


def _run(*arguments):
    command = [sys.executable, "-m", "tprnet_jax.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "--config is missing; give one such as --config=configs/quickstart.py"),
        (("--config=configs/absent.py",), "--config=configs/absent.py cannot be read"),
        (("--config=configs/tprnet.py:tiny",), "configs/tprnet.py has no argument 'tiny'"),
        (
            ("--config=configs/quickstart.py", "--mode=fly"),
            "one of <train|eval|predict|ablate|convert|check|benchmark>",
        ),
        (
            ("--config=configs/quickstart.py", "--config.trian.epochs=3"),
            "the configuration has no field 'trian'; Did you mean \"train\"",
        ),
        (
            ("--config=configs/quickstart.py", "--config.train.epoch=3"),
            "the configuration has no field 'epoch'; Did you mean \"epochs\"",
        ),
        (("--config=configs/quickstart.py", "--config.train.epochs=x"), "config.train.epochs=x"),
        (("--config=configs/quickstart.py", "eval"), "unexpected argument 'eval'"),
        (
            ("--config=configs/quickstart.py", "--config.data.name=mnist"),
            "config.data.name is 'mnist'; choose one of arcade, phantom",
        ),
        (
            ("--config=configs/tprnet.py", "--config.data.source=configs"),
            "config.data.source=configs has no folder syntax/",
        ),
        (("--config=configs/quickstart.py", "--mode=eval"), "there is no checkpoint in"),
    ],
)
def test_mistakes_end_with_one_sentence(tmp_path, arguments, sentence):
    done = _run(*arguments, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_eval_of_another_architecture_names_the_difference(trained):
    config, workdir = trained
    done = _run(
        "--config=configs/quickstart.py",
        "--mode=eval",
        f"--workdir={workdir}",
        f"--config.data.dir={config.data.dir}",
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the checkpoint")
    assert "is of another architecture" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_workdir_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = _run(
        "--config=configs/quickstart.py",
        f"--workdir={tmp_path / 'file' / 'run'}",
        f"--config.data.dir={tmp_path / 'data'}",
        "--config.data.phantom.train=4",
        "--config.data.phantom.validation=1",
    )
    assert done.returncode == 1
    assert f"error: {tmp_path / 'file'}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["config = (", "import nothing_of_this_name", "get_config = 3"])
def test_a_configuration_file_that_cannot_run_is_one_sentence(tmp_path, text):
    path = tmp_path / "config.py"
    path.write_text(text)
    done = _run(f"--config={path}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
