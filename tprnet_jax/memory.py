"""Memory of the process, where JAX computes on the CPU."""

import ctypes

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed() -> None:
    """Lets glibc keep what is freed for the next use, rather than give it back to the kernel.

    An array of an image's activations is larger than glibc keeps by itself. It would come back one
    fresh page at a time, each cleared by the kernel, which takes longer than many of the
    computations on it. Holds for what the main thread asks for, because the heaps of others are too
    small; to share one heap makes them wait for each other. Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
