"""How the C library hands out memory: the tensors of a training step on a CPU are its largest customers."""

import ctypes
from functools import cache

# Parameters of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
MIB = 2**20


def keep_freed_memory() -> None:
    """Have freed memory kept for the next tensor instead of returned to the system.

    By default glibc returns blocks above 32 MiB at once, and the system zeroes every page of the next one: of a MAML
    step on 84 x 84 images that was a third of the time. The peak of memory stays, and gaps between blocks add to it:
    making and freeing one tensor of 64 MiB over and over takes 256 MiB. It is given back when the process ends. Without
    effect where the C library is not glibc.
    """
    _set({MMAP_MAX: 0, TRIM_THRESHOLD: -1})


def return_freed_memory() -> None:
    """glibc's own behaviour, as it is once a program has freed blocks of 32 MiB."""
    _set({MMAP_MAX: 65536, MMAP_THRESHOLD: 32 * MIB, TRIM_THRESHOLD: 64 * MIB})


def trim() -> None:
    """Return what is free now."""
    if malloc_trim := getattr(_c_library(), "malloc_trim", None):
        malloc_trim(0)


def _set(parameters: dict[int, int]) -> None:
    if mallopt := getattr(_c_library(), "mallopt", None):
        for name, value in parameters.items():
            mallopt(name, value)


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
