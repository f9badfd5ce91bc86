"""The console: progress and notes on stderr, results on stdout.

`rich` is imported only where a live bar is shown, so that this module costs nothing.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Row = Mapping[str, float | None]
REFRESH = 0.125  # seconds between two drawings of the live bar


class Progress:
    """Shows how a run goes on: a live bar on a terminal, a line an epoch elsewhere.

    Args:
        quiet: Show nothing at all.
        stream: Where to write; stderr by default.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream if stream is not None else sys.stderr
        self._bar: Bar | None = None
        self._epochs = self._steps = self._images = self._first = 0
        self._begun = self._epoch_begun = self._drawn = 0.0
        self._test = ""

    def start(self, title: str, epochs: int, steps: int, images: int, first_epoch: int) -> None:
        """A run of `epochs` epochs of `steps` steps and `images` images begins.

        Args:
            title: What is being trained, in one line.
            epochs: Epochs of the whole run.
            steps: Steps an epoch.
            images: Training images an epoch.
            first_epoch: The epoch to begin with, counted from 0; above 0 in a resumed run.
        """
        self._epochs, self._steps, self._images = epochs, steps, images
        self._first, self._test, self._drawn = first_epoch, "", 0.0
        self._begun = self._epoch_begun = time.monotonic()
        self.note(title)
        if not self._quiet and self._stream.isatty():
            self._bar = _live_bar(self._stream)
            self._bar.add_task("", total=steps, status="")
            self._draw(first_epoch, 0, self._begun)
            self._bar.start()

    def batch(self, epoch: int, step: int) -> None:
        """Step `step` of epoch `epoch`, both counted from 0, is done."""
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._drawn >= REFRESH or step == self._steps - 1:
            self._draw(epoch, step + 1, now)

    def epoch(self, row: Row) -> None:
        """An epoch is done; `row` is its row of the history."""
        self.note(epoch_line(row, self._epochs))
        accuracy = row.get("test_accuracy")
        self._test = "" if accuracy is None else f"test {100 * accuracy:.1f} %"
        self._epoch_begun = time.monotonic()
        done = int(row["epoch"] or 0)
        if self._bar is not None and done < self._epochs:
            self._draw(done, 0, self._epoch_begun)

    def note(self, text: str) -> None:
        """Says something in a line of its own."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def finish(self) -> None:
        """The run is over, well or not; the bar goes, the lines stay."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, epoch: int, done: int, now: float) -> None:
        """Redraws the bar, with `done` steps of `epoch` behind it."""
        assert self._bar is not None
        self._drawn = now
        parts = []
        if done and now > self._epoch_begun:
            rate = done / self._steps * self._images / (now - self._epoch_begun)
            parts.append(f"{rate:.0f} images/s")
        run_steps = (epoch - self._first) * self._steps + done
        if run_steps:
            left = self._epochs * self._steps - epoch * self._steps - done
            parts.append(f"{duration((now - self._begun) / run_steps * left)} left")
        parts += [self._test] if self._test else []
        task = self._bar.task_ids[0]
        name = f"epoch {epoch + 1}/{self._epochs}"
        self._bar.update(task, description=name, completed=done, status="  ".join(parts))
        self._bar.refresh()


def _live_bar(stream: TextIO) -> "Bar":
    """Returns a bar that is drawn when told to, without a thread that would slow training."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(file=stream, force_terminal=True, markup=False, highlight=False, emoji=False)
    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.completed}/{task.total}", markup=False),
        TextColumn("{task.fields[status]}", markup=False),
        console=console,
        auto_refresh=False,
        transient=True,
    )


class Counter:
    """Shows how far a piece of work is: a live bar on a terminal, a line each quarter elsewhere.

    Args:
        title: What is being done, in a word or two.
        quiet: Show nothing at all.
        stream: Where to write; stderr by default.
    """

    def __init__(self, title: str, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._title, self._quiet = title, quiet
        self._stream = stream if stream is not None else sys.stderr
        self._bar: Bar | None = None
        self._begun, self._told = time.monotonic(), 0

    def __enter__(self) -> "Counter":
        if not self._quiet and self._stream.isatty():
            self._bar = _live_bar(self._stream)
            self._bar.add_task(self._title, total=None, status="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def note(self, text: str) -> None:
        """Says something in a line of its own."""
        if self._bar is not None:
            self._bar.console.print(text, soft_wrap=True)
        elif not self._quiet:
            print(text, file=self._stream, flush=True)

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` parts of the work are behind us."""
        passed = time.monotonic() - self._begun
        status = f"{duration(passed / max(done, 1) * (total - done))} left" if done else ""
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=done, total=total, status=status)
            self._bar.refresh()
            return
        quarter = 4 * done // max(total, 1)
        if quarter > self._told:
            self._told = quarter
            self.note(f"{self._title}: {done}/{total}" + (f", {status}" if done < total else ""))


def epoch_line(row: Row, epochs: int) -> str:
    """Returns one epoch in a line; what has no value is left out.

    Args:
        row: A row of the history.
        epochs: Epochs of the whole run.
    """
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}.0f}/{epochs}"]
    for name in ("train", "val", "test"):
        loss, accuracy = row.get(f"{name}_loss"), row.get(f"{name}_accuracy")
        if loss is not None and accuracy is not None:
            parts.append(f"{name} {loss:.3f} {100 * accuracy:4.1f} %")
    forms = (
        ("lr", "lr {:#.2g}"),
        ("seconds", "{:.1f} s"),
        ("images_per_second", "{:.0f} images/s"),
    )
    for name, form in forms:
        value = row.get(name)
        if value is not None:
            parts.append(form.format(value))
    return "  ".join(parts)


def results(history: Sequence[Row], folder: Path) -> str:
    """Returns the end of a run in a few lines: last epoch's scores, time, folder.

    Args:
        history: A row an epoch.
        folder: The run's folder.
    """
    lines = []
    last: Row = history[-1] if history else {}
    for name, word in (("train", "train"), ("val", "validation"), ("test", "test")):
        loss, accuracy = last.get(f"{name}_loss"), last.get(f"{name}_accuracy")
        if loss is not None and accuracy is not None:
            lines.append(f"{word:<11}accuracy {100 * accuracy:6.2f} %   loss {loss:.4f}")
    seconds = sum(row.get("seconds") or 0.0 for row in history)
    lines.append(f"{'trained':<11}{len(history)} epochs in {duration(seconds)}")
    lines.append(f"{'folder':<11}{folder}")
    return "\n".join(lines)


def print_results(history: Sequence[Row], folder: Path) -> None:
    """Prints `results` to stdout."""
    print(results(history, folder))


def note(text: str) -> None:
    """Prints a note to stderr, in a line of its own."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Returns a time in seconds as m:ss or h:mm:ss, to the nearest second."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
