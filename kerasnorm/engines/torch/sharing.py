"""Lets idle threads of OpenMP sleep early while other processes want the cores.

A thread that waits for the next operation looks for it for some milliseconds before it sleeps.
Alone on a machine that is fastest; beside another training, each of the two takes the cores from
the other for nothing. GNU OpenMP reads how long to look when it is loaded, but looks 3,000 times
less while it has more threads than there are cores: a team of threads that does nothing switches it
over, and the end of the team switches it back. No result changes by a bit.
"""

import ctypes
import os
import sys
import threading
import time
import weakref
from pathlib import Path

PERIOD = 2.0  # seconds between two looks at the machine
BUSY = 0.5  # cores that others must use
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # with which the user decides
IDLE = slice(3, 5)  # columns of /proc/stat: idle, and waiting for a disk
NOTHING = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)  # what the idle team does


class Sharing:
    """Looks from time to time whether other processes use the cores of this one.

    Attributes:
        is_brief: Whether idle threads sleep early now.
    """

    def __init__(self) -> None:
        self.library = openmp()
        self.is_brief = False
        self.looked, self.busy, self.own = time.monotonic(), busy_seconds(), own_seconds()

    def look(self) -> None:
        """Switches over if the machine has become busy or idle; does nothing most of the time."""
        now = time.monotonic()
        if self.library is None or now - self.looked < PERIOD:
            return
        busy, own = busy_seconds(), own_seconds()
        others = (busy - self.busy - (own - self.own)) / (now - self.looked)
        self.looked, self.busy, self.own = now, busy, own
        self.switch(others > BUSY)

    def switch(self, is_brief: bool) -> None:
        """Makes idle threads sleep early, or late."""
        if is_brief == self.is_brief:
            return
        if is_brief:
            release = threading.Event()
            self.end = weakref.finalize(self, release.set)
            args = (self.library, release)
            threading.Thread(target=_hold_a_team, args=args, daemon=True).start()
        else:
            self.end()
        self.is_brief = is_brief


def openmp() -> ctypes.CDLL | None:
    """Returns the GNU OpenMP that PyTorch has loaded; None without one, or if the user decides."""
    if sys.platform != "linux" or any(name in os.environ for name in CHOICES):
        return None
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    paths = (line.split(maxsplit=5)[-1] for line in lines if "/libgomp" in line)
    path = next(paths, None)
    return ctypes.CDLL(path) if path else None


def _hold_a_team(library: ctypes.CDLL, release: threading.Event) -> None:
    """Starts a team of more threads than there are cores, which lasts until `release` is set."""
    library.GOMP_parallel(NOTHING, None, ctypes.c_uint(len(os.sched_getaffinity(0)) + 1), 0)
    release.wait()


def busy_seconds(text: str | None = None, cores: set[int] | None = None) -> float:
    """Returns the processor time that all processes have used on some cores since the start.

    Args:
        text: What /proc/stat holds; read by default.
        cores: Numbers of the cores; by default those of this process.
    """
    if sys.platform != "linux":
        return 0.0
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
