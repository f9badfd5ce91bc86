"""Ctrl-C and SIGTERM: the first ends the work at a safe place, the second ends the process at once.

Signals belong to the process. Whoever starts work that may be interrupted makes an `Interruptions`
and installs it: the command line for a whole command, and `fit` for one run.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALLED = 128  # plus the number of the signal: the exit code of a shell


class Terminated(SystemExit):
    """The process received SIGTERM; if nothing catches this, it exits with code 143."""

    def __init__(self) -> None:
        super().__init__(SIGNALLED + signal.SIGTERM)


class Interruptions:
    """Remembers the first SIGINT or SIGTERM until the work has come to a safe place.

    If several processes work together, none ends before all have agreed.

    Attributes:
        number: The signal that was received; 0 before there is one.
    """

    def __init__(self, *, needs_agreement: bool = False) -> None:
        self.number = 0
        self._is_agreed = not needs_agreement
        self._holds = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles both signals while the block runs.

        Outside of the main thread, which alone receives signals, nothing is installed. A signal
        that the process ignores (nohup, a background job) stays ignored. Blocks may be nested: what
        the inner one received counts as the first signal of the outer one.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        ours = [n for n, handler in before.items() if handler not in (signal.SIG_IGN, None)]
        try:
            for number in ours:
                signal.signal(number, self._handle)
            yield
        finally:
            for number in ours:
                outer = getattr(before[number], "__self__", None)
                if isinstance(outer, Interruptions):
                    outer.number = outer.number or self.number
                signal.signal(number, before[number])

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lets the block run to its end, or to a `check`, before a first signal ends the work."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        self.check()

    def check(self) -> None:
        """Ends the work here if a signal was received.

        Raises:
            KeyboardInterrupt: The signal was SIGINT, as from Ctrl-C.
            Terminated: It was SIGTERM.
        """
        if not self.number or not self._is_agreed:
            return
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated

    def agree(self) -> None:
        """Makes this process end at its next `check`: a process of the group received a signal."""
        self._is_agreed = True
        self.number = self.number or signal.SIGTERM

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(SIGNALLED + number)
        self.number = number
        if not self._holds:
            self.check()
