"""Memory that a training step frees and takes again."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """Asks glibc's malloc to keep what is freed; does nothing where there is no glibc.

    A step frees and takes the same hundred megabytes again; given back to the system in between,
    each page costs a fault when it is next touched.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT)
