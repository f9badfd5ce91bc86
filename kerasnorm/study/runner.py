"""Trains the runs of a study that are not finished, and tells how they go on."""

import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Executor, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kerasnorm.errors import CorruptFileError
from kerasnorm.study import folder
from kerasnorm.study.cluster import STOP
from kerasnorm.study.folder import LOG, Job
from kerasnorm.training import run

LOOK = 0.5  # seconds between two looks at the runs
PATIENCE = 10.0  # seconds for runs that were asked to end
KEPT, WAITING, RUNNING, DONE, FAILED = "kept", "waiting", "running", "done", "failed"
Place = AbstractContextManager[tuple[Executor, Any, tuple[Any, ...]]]


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


class Watcher(Protocol):
    """Is told how a study goes on; `kerasnorm.study.board.Board` shows it to a person."""

    def start(self, entries: Sequence[Entry]) -> None:
        """These are the runs, in the study's order; they change as the study goes on."""

    def changed(self, entry: Entry) -> None:
        """A run began, finished an epoch, or ended."""

    def tick(self) -> None:
        """Some time has passed."""

    def note(self, text: str) -> None:
        """Something that the person should know, in one line."""

    def finish(self) -> None:
        """The study is over, or interrupted."""


def execute(path: Path, jobs: Sequence[Job], place: Place, watcher: Watcher) -> list[Entry]:
    """Trains what is not finished; returns how every run stands at the end.

    An interruption ends the runs, which can be resumed, and is raised again.

    Args:
        path: The study's folder, locked by the caller.
        jobs: From `folder.survey`.
        place: From `cluster.local` or `cluster.dask`.
        watcher: Is told how it goes on.
    """
    entries = [Entry(job, KEPT if job.done else WAITING) for job in jobs]
    for entry in entries:
        entry.look()
    watcher.start(entries)
    try:
        open_entries = [entry for entry in entries if entry.state != KEPT]
        if open_entries:
            (path / STOP).unlink(missing_ok=True)
            with place as (executor, work, arguments):
                _train(path, open_entries, executor, work, arguments, watcher)
    finally:
        watcher.finish()
    return entries


def _train(
    path: Path,
    entries: Sequence[Entry],
    executor: Executor,
    work: Any,
    arguments: tuple[Any, ...],
    watcher: Watcher,
) -> None:
    futures: dict[Future[tuple[int, str]], Entry] = {}
    for entry in entries:
        entry.state = WAITING
        folder.begin(entry.job)
        (entry.job.path / LOG).unlink(missing_ok=True)
    try:
        for entry in entries:
            futures[executor.submit(work, entry.job.path, *arguments)] = entry
        while futures:
            for future, entry in list(futures.items()):
                if future.done():
                    _settle(entry, future)
                    del futures[future]
                    watcher.changed(entry)
                elif entry.look():
                    watcher.changed(entry)
            watcher.tick()
            time.sleep(LOOK)
    except BaseException:
        watcher.note(f"Stopping. Go on with: kerasnorm compare --resume {path}")
        _stop(path, futures)
        raise
    finally:
        executor.shutdown(wait=True)


def _stop(path: Path, futures: "dict[Future[tuple[int, str]], Entry]") -> None:
    """Ends all runs: those that wait never start, the others see a file and end by themselves."""
    (path / STOP).touch()
    begun = [future for future, entry in futures.items() if (entry.job.path / LOG).exists()]
    for future in futures:
        if future not in begun:
            future.cancel()
    if wait(begun, PATIENCE).not_done:
        for future in begun:
            future.cancel()
    else:
        (path / STOP).unlink(missing_ok=True)


def _settle(entry: Entry, future: "Future[tuple[int, str]]") -> None:
    """Writes down how a run ended."""
    try:
        entry.code, entry.words = future.result()
    except (Exception, CancelledError) as error:
        entry.code, entry.words = 1, f"{type(error).__name__}: {error}"
    if entry.code < 0:
        entry.words = f"its process was ended by signal {-entry.code}"
    entry.look()
    entry.state = FAILED if entry.code else DONE
    if not entry.code:
        entry.words = ""
