"""Lets idle threads of OpenMP sleep early while other processes want the cores.

A thread that waits for the next operation looks for it for some milliseconds before it sleeps.
Alone on a machine that is fastest; beside another training, each of the two takes the cores from
the other for nothing. GNU OpenMP reads how long to look when it is loaded, but looks 3,000 times
less while it has more threads than there are cores: extra threads that do nothing switch it over,
and their end switches it back. No result changes by a bit.
"""

import ctypes
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

PERIOD = 1.0  # seconds between two looks at the machine
BUSY = 0.5  # cores that others must use
MOST_CORES = 32  # with more, that many extra threads are no small thing
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # with which the user decides
IDLE = slice(3, 5)  # columns of /proc/stat: idle, and waiting for a disk


class Sharing:
    """Looks from time to time, within its context, whether others use the cores of this process.

    Attributes:
        is_brief: Whether idle threads sleep early now.
    """

    def __init__(self) -> None:
        self.library = openmp()
        self.is_brief = False
        if self.library is not None:
            self.looked, self.busy, self.own = time.monotonic(), busy_seconds(), own_seconds()

    def __enter__(self) -> "Sharing":
        return self

    def __exit__(self, *_: object) -> None:
        self.switch(False)

    def look(self) -> None:
        """Switches over if the machine has become busy or idle; does nothing most of the time."""
        if self.library is None or (now := time.monotonic()) - self.looked < PERIOD:
            return
        busy, own = busy_seconds(), own_seconds()
        others = (busy - self.busy - (own - self.own)) / (now - self.looked)
        self.looked, self.busy, self.own = now, busy, own
        self.switch(others > BUSY)

    def switch(self, is_brief: bool) -> None:
        """Makes idle threads sleep early, or late."""
        if is_brief and not self.is_brief:
            self.release = threading.Event()
            args = (self.library, self.release)
            threading.Thread(target=_hold_threads, args=args, name=__name__, daemon=True).start()
        elif self.is_brief and not is_brief:
            self.release.set()
        self.is_brief = is_brief


def openmp() -> Any:
    """Returns a library that has the functions of PyTorch's GNU OpenMP.

    None where there is nothing to switch: without GNU OpenMP or /proc, with one thread or very many
    cores, or if the user's environment decides.
    """
    if sys.platform != "linux" or any(name in os.environ for name in CHOICES):
        return None
    if torch.get_num_threads() < 2 or len(os.sched_getaffinity(0)) > MOST_CORES:
        return None
    try:
        busy_seconds()
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        return library if library.GOMP_parallel and library.omp_get_level else None
    except (OSError, AttributeError):
        return None


def _hold_threads(library: Any, release: threading.Event) -> None:
    """Keeps more threads than there are cores, which do nothing, until `release` is set."""
    nothing = ctypes.cast(library.omp_get_level, ctypes.c_void_p)  # for each thread to call
    library.GOMP_parallel(nothing, None, ctypes.c_uint(len(os.sched_getaffinity(0)) + 1), 0)
    release.wait()


def busy_seconds(text: str | None = None, cores: set[int] | None = None) -> float:
    """Returns the processor time that all processes have used on some cores since the start.

    Raises:
        OSError: It cannot be read.
    """
    text = Path("/proc/stat").read_text(encoding="utf-8") if text is None else text
    wanted = {f"cpu{number}" for number in cores or os.sched_getaffinity(0)}
    ticks = 0
    for line in text.splitlines():
        name, *columns = line.split()
        if name in wanted:
            counts = [int(column) for column in columns[:7]]  # from user to softirq
            ticks += sum(counts) - sum(counts[IDLE])
    return ticks / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Returns the processor time that this process has used."""
    used = os.times()
    return used.user + used.system
