"""Ctrl-C and SIGTERM: the first ends the work at a safe place, the second ends the process at once.

Signals belong to the process, and so does the one `INTERRUPTIONS` below.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALLED = 128  # plus the number of the signal, as shells have it


class Terminated(SystemExit):
    """The process was asked to end by SIGTERM; uncaught, it exits with 143."""

    def __init__(self) -> None:
        super().__init__(SIGNALLED + signal.SIGTERM)


class Interruptions:
    """Remembers the first SIGINT or SIGTERM until the work has come to a safe place.

    Attributes:
        number: The signal that came, 0 if none did.
        in_group: Several processes work together: none ends before all have agreed to.
    """

    def __init__(self) -> None:
        self.number = 0
        self.in_group = False
        self._is_agreed = False
        self._holds = 0
        self._installed = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles both signals while the block runs, in the main thread; elsewhere nothing.

        A signal that the process was told to ignore (nohup, a job in the background) stays ignored.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        if self._installed == 0:
            self.number = self._holds = 0
            self.in_group = self._is_agreed = False
        self._installed += 1
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        ours = [n for n, handler in before.items() if handler not in (signal.SIG_IGN, None)]
        try:
            for number in ours:
                signal.signal(number, self._handle)
            yield
        finally:
            for number in ours:
                signal.signal(number, before[number])
            self._installed -= 1

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lets the block finish, or come to a `check`, before a first signal ends it."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        self.check()

    def check(self) -> None:
        """Ends the work here if a signal came.

        Raises:
            KeyboardInterrupt: By Ctrl-C.
            Terminated: By SIGTERM.
        """
        if self.in_group and not self._is_agreed:
            return
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number:
            raise Terminated

    def agree(self) -> None:
        """Says that all processes end at their next `check`, whichever of them got the signal."""
        self._is_agreed = True
        self.number = self.number or signal.SIGTERM

    def _handle(self, number: int, frame: Any) -> None:
        if self.number:
            os._exit(SIGNALLED + number)
        self.number = number
        if not self._holds:
            self.check()


INTERRUPTIONS = Interruptions()
