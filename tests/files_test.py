import os
import subprocess
import sys

import pytest

from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import for_opencv, partial_of, sweep, write_or_tell, write_whole


def test_text_and_bytes_replace_what_is_there(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    write_whole(path, "für")
    assert path.read_text(encoding="utf-8") == "für"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_is_interrupted_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "file"
    path.write_text("old")

    def replace(source, target):
        raise error

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(error):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_name_of_any_length_that_the_system_has_can_be_written(tmp_path):
    path = tmp_path / ("x" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    write_whole(path, "text")
    assert path.read_text() == "text"


def test_what_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for path, why in ((tmp_path / "file" / "a", "Not a directory"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=rf"cannot write {path} \({why}\); choose a folder"):
            write_or_tell(path, "text")
    assert os.listdir(tmp_path) == ["file"]


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path):
    """A process of another number that still runs may yet end its file."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    name = partial_of(tmp_path / "a.png").name
    own = str(os.getpid())
    assert own in name
    left = {
        tmp_path / name,
        tmp_path / name.replace(own, str(ended.pid)),
        tmp_path / f"{name.replace(own, str(ended.pid))}.mp4",
    }
    others = {
        tmp_path / name.replace(own, str(os.getppid())),
        tmp_path / name.replace(own, "9" * 30),
        tmp_path / ".mine.partial",
        tmp_path / "a.partial",
    }
    for path in left | others:
        path.write_text("")
    sweep(tmp_path)
    assert set(tmp_path.iterdir()) == others
    sweep(tmp_path / "absent")


def test_a_path_for_opencv_is_whole_and_utf8(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert for_opencv("a:é.mp4") == f"{tmp_path}/a:é.mp4"
    with pytest.raises(UserError, match=r"the name of a.*\.mp4 is not UTF-8; rename it"):
        for_opencv(os.fsdecode(b"a\xff.mp4"))
