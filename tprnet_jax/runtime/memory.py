"""Memory of the process, where JAX computes on the CPU."""

import contextlib
import os
import sys
from collections.abc import Iterator

# An array of an image's activations is larger than glibc keeps by itself. It would come back one
# fresh page at a time, each cleared by the kernel, which takes longer than many of the computations
# on it. So what is freed is kept, and pages are of 2 MiB where the kernel has them.
TUNABLES = ":".join(
    (
        "glibc.malloc.mmap_max=0",
        f"glibc.malloc.trim_threshold={2**63}",
        "glibc.malloc.hugetlb=1",
    )
)


def restart_to_keep_freed() -> None:
    """Starts this program again, in this process, with `TUNABLES`; glibc reads them at start only.

    Does nothing without glibc, and where the environment has tunables: the second time, or the
    user's own.
    """
    if "GLIBC_TUNABLES" in os.environ or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return
    os.environ["GLIBC_TUNABLES"] = TUNABLES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@contextlib.contextmanager
def untuned() -> Iterator[None]:
    """Processes that are started meanwhile have glibc's usual memory."""
    if os.environ.get("GLIBC_TUNABLES") != TUNABLES:
        yield
        return
    del os.environ["GLIBC_TUNABLES"]
    try:
        yield
    finally:
        os.environ["GLIBC_TUNABLES"] = TUNABLES
