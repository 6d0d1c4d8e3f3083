"""In processes of their own, because glibc reads its tunables when a process starts."""

import os
import platform
import subprocess
import sys

import pytest

from tprnet_jax.runtime import memory

PAGES = """
import resource
import numpy as np

def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fresh_pages()
print(fresh_pages())
"""
RESTART = """
import os, sys
from tprnet_jax.runtime import memory

print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], flush=True)
memory.restart_to_keep_freed()
"""


def _run(program: str, *arguments: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=clean | environment,
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc keeps the memory")
def test_what_is_freed_comes_back_without_a_fresh_page():
    """Or with few; how many come otherwise depends on the size of a page."""
    (usual,), (kept,) = _run(PAGES), _run(PAGES, GLIBC_TUNABLES=memory.TUNABLES)
    assert int(kept) < int(usual) / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc keeps the memory")
def test_the_program_starts_again_once_with_its_arguments_in_the_same_process():
    first, second = _run(RESTART, "a b", "--c")
    process = first.split()[0]
    assert first == f"{process} None ['a b', '--c']"
    assert second == f"{process} {memory.TUNABLES} ['a b', '--c']"


def test_tunables_of_the_user_stay():
    (line,) = _run(RESTART, GLIBC_TUNABLES="glibc.malloc.check=0")
    assert line.endswith("glibc.malloc.check=0 []")


def test_what_is_started_untuned_has_none_of_ours(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", memory.TUNABLES)
    with memory.untuned():
        assert "GLIBC_TUNABLES" not in os.environ
    assert os.environ["GLIBC_TUNABLES"] == memory.TUNABLES
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    with memory.untuned():
        assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=0"
