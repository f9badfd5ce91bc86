"""How the runs of a study stand while they train: the state of each, as a table and as lines."""

from collections.abc import Sequence
from dataclasses import dataclass

from kerasnorm.errors import CorruptFileError
from kerasnorm.progress import duration
from kerasnorm.study.folder import LOG, Job
from kerasnorm.tables import Table
from kerasnorm.training import run

KEPT, WAITING, RUNNING, DONE, FAILED = "kept", "waiting", "running", "done", "failed"
ORDER = (FAILED, RUNNING, WAITING, DONE, KEPT)  # what a person looks for stands on top
COLORS = {FAILED: "red", RUNNING: "cyan", DONE: "green", WAITING: "dim", KEPT: "dim green"}


@dataclass
class Entry:
    """How one run of a study stands.

    Attributes:
        job: The run.
        state: kept (finished before), waiting, running, done or failed.
        epoch: Epochs done.
        test_accuracy: After the last of them, None before the first.
        seconds: Spent training so far, the run's earlier lives included.
        code: Exit code of its process.
        words: Last words of a failed run.
    """

    job: Job
    state: str = WAITING
    epoch: int = 0
    test_accuracy: float | None = None
    seconds: float = 0.0
    code: int = 0
    words: str = ""

    @property
    def epochs_left(self) -> int:
        """Epochs that are still to be trained; 0 for a run that has ended."""
        is_open = self.state in (RUNNING, WAITING)
        return max(0, self.job.config.train.epochs - self.epoch) if is_open else 0

    def look(self) -> bool:
        """Reads how far the run has come; says whether anything is new."""
        before = (self.state, self.epoch)
        if self.state == WAITING and (self.job.path / LOG).exists():
            self.state = RUNNING
        try:
            rows = run.read_history(self.job.path / run.HISTORY)
        except CorruptFileError:  # not there yet
            rows = []
        if rows:
            self.epoch = len(rows)
            self.test_accuracy = rows[-1]["test_accuracy"]
            self.seconds = sum(row["seconds"] or 0.0 for row in rows)
        return before != (self.state, self.epoch)


def runs_table(entries: Sequence[Entry], seconds: float) -> Table:
    """Returns all runs as a table, failed and running ones on top.

    Args:
        entries: The runs, in the study's order.
        seconds: Since the study was started.
    """
    shown = sorted(entries, key=lambda entry: ORDER.index(entry.state))
    rows = [
        (
            entry.job.name,
            entry.state + (f": {entry.words}" if entry.words else ""),
            f"{entry.epoch}/{entry.job.config.train.epochs}",
            "" if entry.test_accuracy is None else f"{100 * entry.test_accuracy:.2f}",
            duration(entry.seconds) if entry.seconds else "",
        )
        for entry in shown
    ]
    return Table(
        columns=("run", "state", ">epoch", ">test %", ">trained"),
        rows=rows,
        notes=(foot(entries, seconds),),
        styles=[COLORS[entry.state] for entry in shown],
    )


def foot(entries: Sequence[Entry], seconds: float) -> str:
    """Returns how many runs are in which state, and the time since the study was started."""
    counts = {state: sum(entry.state == state for entry in entries) for state in ORDER}
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    return ", ".join([*parts, f"{duration(seconds)} gone"])


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
