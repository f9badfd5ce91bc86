"""Memory that a training step frees and takes again."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """Asks glibc's malloc to keep what is freed from now on; does nothing where there is no glibc.

    A step frees and takes the same hundred megabytes again; given back to the system in between,
    each page costs a fault when it is next touched. What was freed before, while the data were
    read, is given back.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT)
