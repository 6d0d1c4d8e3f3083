"""Real processes that predict: killed and started again, and two that share the work."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import html_test
import numpy as np
import pytest

from tprnet_jax.data import scene

COUNT = 40


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of images of one size, so that little is compiled."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "deep").mkdir()
    for index in range(COUNT):
        name = f"{'deep/' * (index % 2)}{index:02d}.png"
        cv2.imwrite(str(folder / name), scene.draw(0, index, 64)[0])
    return folder


def _start(trained, source, target, *arguments):
    command = [
        sys.executable,
        "-m",
        "tprnet_jax.main",
        "--mode=predict",
        f"--workdir={trained[1]}",
        f"--config.predict.input={source}",
        f"--config.predict.output={target}",
        *arguments,
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def _files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def _finished(target):
    """Images that have all their outputs, and when each of these was written."""
    ends = ("_mask.png", "_overlay.png")
    pairs = [
        (mask, mask.with_name(mask.name.replace(*ends))) for mask in target.rglob(f"*{ends[0]}")
    ]
    return {
        path: path.stat().st_mtime_ns
        for pair in pairs
        if all(path.is_file() for path in pair)
        for path in pair
    }


def _kill_on_the_way(trained, source, target):
    """Kills a process that has finished some images; which, as `_finished`, and its number.

    Where it was over before it was killed, it is tried again.
    """
    for _ in range(3):
        process = _start(trained, source, target)
        while len(_finished(target)) < 2 * 3 and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), error
        if len(before := _finished(target)) < 2 * COUNT:
            return before, process.pid
        shutil.rmtree(target)
    pytest.fail("it was over before it was killed, three times")


def test_killed_and_started_again_it_completes_and_redoes_nothing(trained, source, tmp_path):
    target = tmp_path / "out"
    before, process = _kill_on_the_way(trained, source, target)
    # As if it had been killed within a file, which is seldom caught.
    for folder in (target, target / "deep"):
        folder.mkdir(exist_ok=True)
        (folder / f".0123abcd.{process}.partial").write_bytes(b"half")
    again = _start(trained, source, target)
    output, error = again.communicate()
    assert again.returncode == 0, error
    assert f"{COUNT} of {COUNT} files segmented" in output
    after = _finished(target)
    assert {path: after[path] for path in before} == before
    assert len(after) == 2 * COUNT
    assert _files(target) == {*after, target / "manifest.json", target / "report.html"}
    assert all(cv2.imread(str(path)) is not None for path in after)
    manifest = json.loads((target / "manifest.json").read_text())
    noted = ["all outputs were there already" in file["notes"] for file in manifest["files"]]
    assert noted.count(True) == len(before) / 2
    report = html_test.data_of((target / "report.html").read_text())
    assert len(report["names"]) == len(report["pictures"]) == COUNT


def test_two_processes_share_the_files_and_their_failures(trained, source, tmp_path, free_port):
    """The one that has no failure of its own fails too, and both are in one manifest."""
    target = tmp_path / "out"
    some = tmp_path / "in"
    some.mkdir()
    for path in sorted(source.glob("*.png"))[:4]:
        (some / path.name).symlink_to(path)
    (some / "bad.png").write_bytes(b"no image")
    together = f"--coordinator=localhost:{free_port()}", "--processes=2"
    processes = [
        _start(trained, some, target, *together, f"--process={number}") for number in (0, 1)
    ]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [1, 1], said
    assert sum("bad.png (8 bytes) is damaged" in error for _, error in said) == 1
    for _, error in said:
        assert error.endswith("error: 1 of 5 files could not be segmented; each is named above\n")
    assert sum("4 of 5 files segmented" in output for output, _ in said) == 1
    manifest = json.loads((target / "manifest.json").read_text())
    assert [file["input"] for file in manifest["files"]] == sorted(map(str, some.iterdir()))
    assert ["error" in file for file in manifest["files"]] == [False] * 4 + [True]
    report = html_test.data_of((target / "report.html").read_text())
    assert report["names"] == sorted(path.name for path in some.iterdir())
    assert list(report["pictures"]) == ["0", "1", "2", "3"]
    both = target / "manifest.json", target / "report.html"
    assert _files(target) == {*_finished(target), *both}
    masks = [cv2.imread(str(path), -1) for path in sorted(target.glob("*_mask.png"))]
    assert len(masks) == 4
    assert np.stack(masks).shape == (4, 64, 64)
