"""The command line, as a user meets it: one sentence and a status, never a traceback."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import tprnet_jax
from tprnet_jax import main
from tprnet_jax.runtime import cli, model_file
from tprnet_jax.runtime.errors import UserError


def _run(*arguments, **variables):
    command = [sys.executable, "-m", "tprnet_jax.main", *map(str, arguments)]
    env = os.environ | variables
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "holds no run (no config.json); give one such as --config=configs/quickstart.py"),
        (("--mode=eval", "--config.eval.split=test"), "--config is missing, and --workdir="),
        (("--config=configs/absent.py",), "--config=configs/absent.py cannot be read"),
        (("--config=configs/tprnet.py:tiny",), "configs/tprnet.py has no argument 'tiny'"),
        (
            ("--config", "configs/quickstart.py:small"),
            "this configuration file takes no argument; leave out the colon",
        ),
        (
            ("--config", "configs/results/tprnet_small.json"),
            "--config=configs/results/tprnet_small.json is not the config.json of a run",
        ),
        (
            ("--config=configs/quickstart.py", "--mode=fly"),
            "one of <train|check|eval|predict|serve|convert|export|calibrate|ablate|compare|"
            "benchmark>",
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
        (
            (
                "--config=configs/quickstart.py",
                "--config.model.branches=global,local",
                "--config.model.branches=local,focal",
            ),
            "config.model.branches is ('local', 'focal'); choose",
        ),
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


def test_help_says_what_each_mode_does_and_where_the_fields_are():
    done = _run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == _run("-h").stdout
    for mode in main.MODES:
        assert re.search(rf"^  {mode} +[a-z]", done.stdout, re.MULTILINE)
    examples = re.findall(r"^ {13}(--.*)$", done.stdout, re.MULTILINE)
    assert len(examples) == len(main.MODES)
    named = re.findall(r"--config=(configs/\S+)", done.stdout)
    assert all((Path(__file__).parents[1] / example).is_file() for example in named)
    assert "tprnet_jax/fields.py" in done.stdout
    assert "--coordinator" in done.stdout


def test_version():
    done = _run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"tprnet-jax {tprnet_jax.__version__}, JAX {jax.__version__}\n"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("global,local", ("global", "local")),
        ("(global, local)", ("global", "local")),
        ("('global', \"local\",)", ("global", "local")),
        ("global", ("global",)),
        ("1,2", (1, 2)),
        ("[0.7, 1.4]", (0.7, 1.4)),
        ("2024_05_01,2024_05_02", ("2024_05_01", "2024_05_02")),
        ("", ()),
    ],
)
def test_values_stand_between_commas(text, values):
    assert cli.TupleParser().parse(text) == values


def test_jax_is_not_imported_before_python_starts_anew():
    code = "import sys, tprnet_jax.main; print('absl' in sys.modules, 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def test_an_unknown_platform_is_one_sentence():
    done = _run("--config=configs/quickstart.py", JAX_PLATFORMS="abacus")
    assert done.returncode == 1
    assert done.stderr.startswith("error: JAX cannot use JAX_PLATFORMS=abacus (")
    assert done.stderr.count("\n") == 1


def test_what_was_printed_is_not_lost_when_a_run_is_interrupted():
    code = "from tprnet_jax.runtime import cli; print('kept'); cli.leave(KeyboardInterrupt())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("kept\n", "error: interrupted\n", 130)


def test_the_configuration_of_a_run_starts_another(trained, tmp_path):
    first, second = trained[1], tmp_path / "again"
    done = _run(f"--config={first / 'config.json'}", f"--workdir={second}")
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^[IWE]\d{4} ", done.stderr, re.MULTILINE)  # No line of a log.
    stored = [json.loads((run / "config.json").read_text())["config"] for run in (first, second)]
    assert stored[0] == stored[1]


def test_a_workdir_knows_its_configuration(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained[1], workdir)
    done = _run("--mode=eval", "--config.eval.masks=True", "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    assert len(list((workdir / "eval/validation/masks").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("given", "with_config"),
    [
        (["--config=a.py", "--workdir=RUN"], ["--config=a.py", "--workdir=RUN"]),
        (
            ["--mode=eval", "--workdir=RUN"],
            ["--config=RUN/config.json", "--mode=eval", "--workdir=RUN"],
        ),
        (["-workdir", "RUN"], ["--config=RUN/config.json", "-workdir", "RUN"]),
        (["--workdir=absent"], ["--workdir=absent"]),
        (["--workdir=RUN/model.npz"], ["--config=RUN/model.npz", "--workdir=RUN/model.npz"]),
        (["--mode=train"], ["--mode=train"]),
        (["--mode=predict"], ["--config=SHIPPED", "--workdir=SHIPPED", "--mode=predict"]),
        (["--mode=serve"], ["--config=SHIPPED", "--workdir=SHIPPED", "--mode=serve"]),
        (["--mode=export"], ["--config=SHIPPED", "--workdir=SHIPPED", "--mode=export"]),
        (
            ["--mode=convert", "--config.convert.input=shipped", "--workdir=NEW"],
            [
                "--config=SHIPPED",
                "--mode=convert",
                "--config.convert.input=shipped",
                "--workdir=NEW",
            ],
        ),
        (
            ["--mode=convert", "--config.convert.input=RUN/model.npz"],
            ["--config=RUN/model.npz", "--mode=convert", "--config.convert.input=RUN/model.npz"],
        ),
        (
            ["--mode=convert", "--workdir=RUN", "--config.convert.output=a.npz"],
            [
                "--config=RUN/config.json",
                "--mode=convert",
                "--workdir=RUN",
                "--config.convert.output=a.npz",
            ],
        ),
        *(
            (
                ["--mode=compare", f"--config.compare.runs={runs}"],
                [
                    "--config=RUN/config.json",
                    "--workdir=runs/compare",
                    "--mode=compare",
                    f"--config.compare.runs={runs}",
                ],
            )
            for runs in ("RUN,x", "('RUN', 'x')")
        ),
    ],
)
def test_which_configuration_is_meant_without_one(tmp_path, given, with_config):
    for name in ("config.json", "model.npz"):
        (tmp_path / name).write_text("")

    def filled(arguments):
        shipped = str(model_file.SHIPPED)
        return [a.replace("SHIPPED", shipped).replace("RUN", str(tmp_path)) for a in arguments]

    assert cli._with_config(["main", *filled(given)]) == ["main", *filled(with_config)]


def test_a_model_file_to_import_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"^--config\.convert\.input=absent\.npz is not a file"):
        cli._with_config(["main", "--mode=convert", "--config.convert.input=absent.npz"])


def test_a_run_to_compare_that_is_not_there_is_named():
    missing = r"^--config\.compare\.runs=absent is no run \(no absent/config\.json\); give the"
    with pytest.raises(UserError, match=missing):
        cli._with_config(["main", "--mode=compare", "--config.compare.runs=absent,x"])


def test_nothing_given_is_said():
    with pytest.raises(SystemExit, match="error: --config is missing; give one such as"):
        cli.parse(["main"])


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--mode=fly", "--mode=fly: value should be one of <train|"),
        ("--mdoe=predict", "Unknown command line flag 'mdoe'. Did you mean: mode"),
    ],
)
def test_a_misspelt_flag_is_named_before_a_config_that_is_missing(argument, sentence):
    with pytest.raises(SystemExit, match=re.escape(sentence)):
        cli.parse(["main", argument, "--config.predict.input=x"])


@pytest.mark.parametrize("name", ["quickstart", "quickstart.py", "configs/quickstart.py"])
def test_configurations_that_come_along_are_known_by_name_from_anywhere(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    own = Path(__file__).parents[1] / "configs" / "quickstart.py"
    assert cli._found("", f"--config={name}:a,b") == f"--config={own}:a,b"
    assert cli._found("--config", name) == str(own)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.py").write_text("")
    mine = "configs/quickstart.py"
    assert cli._found("", f"--config={mine}") == f"--config={mine}"


@pytest.mark.parametrize("flag", ["--config=", "-config="])
def test_a_runs_json_is_a_configuration_however_it_is_given(flag):
    assert cli._found("", f"{flag}runs/a/config.json") == f"{flag}{cli.SAVED}:runs/a/config.json"
    assert cli._found("-config", "a/config.json") == f"{cli.SAVED}:a/config.json"


@pytest.mark.parametrize(
    "argument", ["--config=absent.py", "--config.predict.input=quickstart.py", "--mode=predict"]
)
def test_other_arguments_are_left_alone(argument):
    assert cli._found("", argument) == argument


def test_the_workdir_is_named_after_the_configuration():
    name = cli.named_after
    assert name("configs/tprnet.py:global,augmented") == Path("runs/tprnet_global_augmented")
    assert name(f"{cli.SAVED}:runs/first/config.json") == Path("runs/first_again")
    assert name(f"{cli.SAVED}:models/mine.npz") == Path("runs/mine")


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
