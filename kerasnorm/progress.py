"""Progress of long work: the protocol that receives it, and its view on the console.

Notes go through `logging`, under the logger "kerasnorm". `rich` is imported only when a live bar is
shown.
"""

import dataclasses
import io
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

    from kerasnorm.tables import Table

REFRESH = 0.125  # seconds between two drawings of the live bar
MARGIN = 8  # lines of the terminal that a table's rows leave to its frame, the bar and the prompt
NOTEBOOK = (100, 40)  # columns and lines of the view in a notebook
LONG = 1e5  # from here on a number is shown by its power of ten
LOGGER = "kerasnorm"
MANY = 1000  # parts of a second or more


class Progress(Protocol):
    """Receives the progress of a piece of work."""

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Starts to show work of `total` parts, `done` of which are already done."""

    def advance(self, done: int, status: str = "", seconds_left: float | None = None) -> None:
        """Shows that `done` parts are done, with the status and the time left, where known."""

    def show(self, table: "Table") -> None:
        """Shows a table of the current state in place of the previous one."""

    def finish(self) -> None:
        """Ends the display, whether the work succeeded or not."""


def default_progress() -> Progress:
    """Returns what shows progress by default: a live view in a notebook, nothing elsewhere."""
    return ConsoleProgress(quiet=not is_notebook())


@contextmanager
def bar_of_notes(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar while the block runs, which is given a function that receives the parts done.

    Nothing is shown for less than `MANY` parts, where notes are not (a library, or `--quiet`), or
    while another bar is drawn.
    """
    is_wanted = logging.getLogger(LOGGER).isEnabledFor(logging.INFO) or is_notebook()
    is_busy = hasattr(sys.stderr, "rich_proxied_file")  # what rich puts there while it draws
    quiet = total < MANY or is_busy or not is_wanted
    with ConsoleProgress(quiet=quiet, quarters=True) as progress:
        progress.start(title, total)
        yield progress.advance


def is_notebook() -> bool:
    """Returns whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class ConsoleProgress:
    """A `Progress` that draws a live bar, and a table above it, on a terminal or in a notebook.

    The bar disappears at the end; the table stays. If the stream is not a terminal, nothing is
    shown, or one line per quarter of the work. In a notebook the output of the cell shows both, and
    keeps the bar where there is no table. As a context manager it calls `finish` at the end. With
    `quarters`, a line is written per quarter if the stream, by default stderr, is not a terminal.
    """

    def __init__(
        self, *, quiet: bool = False, quarters: bool = False, stream: TextIO | None = None
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._quiet, self._quarters = quiet, quarters
        self._live: Live | _NotebookView | None = None
        self._table: Table | None = None
        self._title = self._status = ""
        self._total = self._first = self._done = 0
        self._begun = self._drawn = 0.0
        self._seconds_left: float | None = None

    @property
    def is_live(self) -> bool:
        """Whether the progress is redrawn in place."""
        return not self._quiet and (self._stream.isatty() or is_notebook())

    def __enter__(self) -> "ConsoleProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Shows the bar; parts that are already done do not count in the estimate of time left."""
        self.finish()
        self._title, self._status, self._table = title, "", None
        self._total, self._first, self._done = total, done, done
        self._begun = self._drawn = time.monotonic()
        if not self.is_live:
            return
        if not self._stream.isatty():
            self._live = _NotebookView(self._view())
            return
        from rich.console import Console
        from rich.live import Live

        # Other lines on stderr appear above the bar unchanged, without line breaks.
        console = Console(
            file=self._stream, force_terminal=True, soft_wrap=True, highlight=False, emoji=False
        )
        # There is no refresh thread, because it would slow training. Output to stdout is redirected
        # to the bar's console only if stdout is a terminal too.
        redirect = sys.stdout.isatty()
        self._live = Live(
            self._view(), console=console, auto_refresh=False, redirect_stdout=redirect
        )
        self._live.start(refresh=True)

    def advance(self, done: int, status: str = "", seconds_left: float | None = None) -> None:
        """Redraws the bar, at most every `REFRESH` seconds until the work is done."""
        before, self._done, self._status = self._done, done, status
        self._seconds_left = seconds_left
        total = max(self._total, 1)
        if self._live is not None:
            self._draw(is_last=done >= self._total)
        elif self._quarters and not self._quiet and 4 * done // total > 4 * before // total:
            line = f"{self._title}: {done}/{self._total}"
            left = f", {self._left()}" if done < self._total else ""
            print(line + left, file=self._stream, flush=True)

    def show(self, table: "Table") -> None:
        """Redraws the table, cut to the height of the terminal."""
        self._table = table
        self._draw()

    def finish(self) -> None:
        """Removes the bar and leaves the last table."""
        if self._live is None:
            return
        live, self._live = self._live, None
        live.transient = self._table is None
        if self._table is not None:
            live.update(self._view(live, with_bar=False))
        live.stop()

    def _draw(self, *, is_last: bool = False) -> None:
        now = time.monotonic()
        if self._live is not None and (is_last or now - self._drawn >= REFRESH):
            self._drawn = now
            self._live.update(self._view(self._live), refresh=True)

    def _left(self) -> str:
        """Returns the time left at the rate since the start; "" before the first part is done."""
        if self._seconds_left is not None:
            return f"{duration(self._seconds_left)} left"
        new = self._done - self._first
        if new <= 0 or self._done >= self._total:
            return ""
        seconds = (time.monotonic() - self._begun) / new * (self._total - self._done)
        return f"{duration(seconds)} left"

    def _view(
        self, live: "Live | _NotebookView | None" = None, *, with_bar: bool = True
    ) -> "Group":
        """Returns the table and the bar as they are now."""
        from rich.console import Group, RenderableType
        from rich.progress_bar import ProgressBar
        from rich.table import Column
        from rich.table import Table as RichTable
        from rich.text import Text

        parts: list[RenderableType] = []
        if self._table is not None and live is not None:
            from kerasnorm.tables import to_rich

            rows = self._table.rows[: max(1, live.console.height - MARGIN)]
            parts.append(to_rich(dataclasses.replace(self._table, rows=rows), live.console.width))
        if with_bar:
            bar = RichTable.grid(*(Column(no_wrap=True) for _ in range(4)), padding=(0, 1))
            bar.add_row(
                Text(self._title),
                ProgressBar(self._total, self._done, width=30),
                Text(f"{self._done:,}/{self._total:,}"),
                Text("  ".join(filter(None, (self._left(), self._status)))),
            )
            parts.append(bar)
        return Group(*parts)


class _NotebookView:
    """What rich's `Live` is on a terminal, in the output of a notebook's cell."""

    def __init__(self, view: "Group") -> None:
        from IPython.display import display
        from rich.console import Console

        width, height = NOTEBOOK
        # In a notebook a console would display what it is to record.
        self.console = Console(
            file=io.StringIO(), record=True, force_jupyter=False, width=width, height=height
        )
        self.transient = False
        self._view = view
        self._handle = display(self._bundle(), raw=True, display_id=True)

    def update(self, view: "Group", *, refresh: bool = False) -> None:
        """Takes a view, and shows it if `refresh` says so."""
        self._view = view
        if refresh:
            self._handle.update(self._bundle(), raw=True)

    def stop(self) -> None:
        """Shows the last view."""
        self.update(self._view, refresh=True)

    def _bundle(self) -> dict[str, str]:
        self.console.print(self._view)
        text = self.console.export_text(clear=False)
        html = self.console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
        return {"text/plain": text, "text/html": html}


class _NoteHandler(logging.Handler):
    """Prints each record's message to the current `sys.stderr`, which a live bar replaces.

    Each warning is printed once: several parts of one command may read the same damaged file.
    """

    def __init__(self) -> None:
        super().__init__()
        self._warnings: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record; a stderr that is closed raises, as with `print`."""
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            if text in self._warnings:
                return
            self._warnings.add(text)
        print(text, file=sys.stderr, flush=True)


@contextmanager
def console_notes(level: int = logging.INFO) -> Iterator[None]:
    """Prints what the package logs to stderr, one line per record, while the block runs."""
    logger, handler = logging.getLogger(LOGGER), _NoteHandler()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False  # a handler of the root logger would print each line again
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, in the plural but for one: "1 epoch", "2,000 epochs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rounded(value: float, digits: int) -> str:
    """Returns a number with some decimals, one of more than five digits before them in short.

    >>> rounded(2.0496, 3), rounded(1.23e21, 3), rounded(float("inf"), 3), rounded(-1e-9, 3)
    ('2.050', '1.2e+21', 'inf', '0.000')
    """
    return f"{value:.1e}" if abs(value) >= LONG else f"{value:z.{digits}f}"


def in_percent(share: float, digits: int = 2) -> str:
    """Returns a share of 1 in percent, rounded, but to 0 or 100 only where it is exactly that.

    >>> in_percent(0.8192), in_percent(1.0), in_percent(0.99996), in_percent(1e-6, digits=0)
    ('81.92', '100.00', '>99.99', '<1')
    >>> in_percent(-0.001, digits=0)
    '0'
    """
    text, unit = f"{100 * share:z.{digits}f}", 10.0**-digits
    if share < 1 and float(text) == 100:
        return f">{100 - unit:.{digits}f}"
    if share > 0 and float(text) == 0:
        return f"<{unit:.{digits}f}"
    return text


def duration(seconds: float) -> str:
    """Returns a time in seconds as m:ss or h:mm:ss, to the nearest second."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
