"""All runs of a study while they train: one live table on a terminal, a line an event elsewhere."""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from kerasnorm.progress import duration
from kerasnorm.study.runner import DONE, FAILED, KEPT, RUNNING, WAITING, Entry

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

ORDER = (FAILED, RUNNING, WAITING, DONE, KEPT)  # what a person looks for stands on top
COLORS = {FAILED: "red", RUNNING: "cyan", DONE: "green", WAITING: "dim", KEPT: "dim green"}
MARGIN = 8  # lines of the terminal that the table leaves


class Board:
    """Shows how a study goes on; see `kerasnorm.study.runner.Watcher`.

    Args:
        quiet: Show nothing at all.
        stream: Where to write; stderr by default.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream if stream is not None else sys.stderr
        self._live: Live | None = None
        self._entries: Sequence[Entry] = ()
        self._begun = 0.0
        self._first: dict[str, int] = {}

    def start(self, entries: Sequence[Entry]) -> None:
        """These are the runs of the study."""
        self._entries, self._begun = entries, time.monotonic()
        self._first = {entry.job.name: entry.epoch for entry in entries}
        kept = sum(entry.state == KEPT for entry in entries)
        self.note(f"{len(entries)} runs, {kept} of them finished before")
        if not self._quiet and self._stream.isatty() and kept < len(entries):
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream, markup=False, highlight=False, emoji=False)
            self._live = Live(self.table(), console=console, auto_refresh=False)
            self._live.start()

    def changed(self, entry: Entry) -> None:
        """A run began, finished an epoch, or ended."""
        if self._live is None:
            self.note(line(entry))

    def tick(self) -> None:
        """Draws the table anew."""
        if self._live is not None:
            self._live.update(self.table(), refresh=True)

    def note(self, text: str) -> None:
        """Says something in a line of its own."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.console.print(text, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def finish(self) -> None:
        """The study is over; the table stays as it is."""
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
            self._live.stop()
            self._live = None

    def table(self) -> "Table":
        """Returns all runs as a table, those that matter now on top, cut to the terminal."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, caption=self.foot(), caption_justify="left")
        for name in ("run", "state"):
            table.add_column(name, overflow="fold")
        for name in ("epoch", "test %", "trained"):
            table.add_column(name, justify="right", no_wrap=True)
        shown = sorted(self._entries, key=lambda entry: ORDER.index(entry.state))
        room = len(shown) if self._live is None else self._live.console.height - MARGIN
        for entry in shown[: max(1, room)]:
            state = entry.state + (f": {entry.words}" if entry.words else "")
            table.add_row(
                Text(entry.job.name),
                Text(state, style=COLORS[entry.state]),
                f"{entry.epoch}/{entry.job.config.train.epochs}",
                "" if entry.test_accuracy is None else f"{100 * entry.test_accuracy:.2f}",
                duration(entry.seconds) if entry.seconds else "",
            )
        return table

    def foot(self) -> str:
        """Returns how many runs are in which state, the time gone by and the time left."""
        counts = {state: sum(e.state == state for e in self._entries) for state in ORDER}
        parts = [f"{count} {state}" for state, count in counts.items() if count]
        gone = time.monotonic() - self._begun
        parts.append(f"{duration(gone)} gone")
        done = sum(e.epoch - self._first.get(e.job.name, 0) for e in self._entries)
        left = sum(
            e.job.config.train.epochs - e.epoch
            for e in self._entries
            if e.state in (RUNNING, WAITING)
        )
        if done and left:
            parts.append(f"about {duration(gone / done * left)} left")
        return ", ".join(parts)


def line(entry: Entry) -> str:
    """Returns a run in one line: name, state, epoch and accuracy, or why it failed."""
    parts = [entry.job.name, entry.state]
    if entry.epoch:
        parts.append(f"epoch {entry.epoch}/{entry.job.config.train.epochs}")
    if entry.test_accuracy is not None:
        parts.append(f"test {100 * entry.test_accuracy:.2f} %")
    if entry.words:
        parts.append(entry.words)
    return "  ".join(parts)
