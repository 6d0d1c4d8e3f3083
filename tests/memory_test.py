"""In a process of its own, because there is no way back."""

import platform
import subprocess
import sys

import pytest

PAGES = """
import resource
import numpy as np
from tprnet_jax import memory

def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fresh_pages()
print(fresh_pages())
memory.keep_freed()
fresh_pages()
print(fresh_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc keeps the memory")
def test_what_is_freed_comes_back_without_a_fresh_page():
    """64 MiB are 32 pages of 2 MiB at the least."""
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    usual, kept = map(int, done.stdout.split())
    assert usual >= 32
    assert kept < 8
