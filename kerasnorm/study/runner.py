"""Trains the runs of a study that are not finished, and reports how they go on."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kerasnorm.progress import NullProgress, Progress
from kerasnorm.study import board, folder
from kerasnorm.study.board import DONE, FAILED, KEPT, WAITING, Entry
from kerasnorm.study.cluster import STOP
from kerasnorm.study.folder import LOG, Job

logger = logging.getLogger(__name__)
# One line per event, for those to whom no live table shows it.
EVENTS = f"{__name__}.events"
events = logging.getLogger(EVENTS)

LOOK = 0.5  # seconds between two looks at the runs
PATIENCE = 10.0  # seconds for runs that were asked to end
Place = AbstractContextManager[tuple[Executor, Any, tuple[Any, ...]]]


def execute(
    path: Path, jobs: Sequence[Job], place: Place, progress: Progress | None = None
) -> list[Entry]:
    """Trains what is not finished; returns how every run stands at the end.

    An interruption ends the runs, which can be resumed, and is raised again.

    Args:
        path: The study's folder, locked by the caller.
        jobs: From `folder.survey`.
        place: From `cluster.local` or `cluster.dask`.
        progress: Receives how far the study is, counted in epochs, and the table of its runs.
    """
    entries = [Entry(job, KEPT if job.done else WAITING) for job in jobs]
    for entry in entries:
        entry.look()
    open_entries = [entry for entry in entries if entry.state != KEPT]
    kept = len(entries) - len(open_entries)
    logger.info(f"{len(entries)} runs, {kept} of them finished before")
    if not open_entries:
        return entries
    progress, begun = progress or NullProgress(), time.monotonic()
    total = sum(entry.epoch + entry.epochs_left for entry in entries)

    def show() -> None:
        # The epochs of a failed run are no longer to be done.
        progress.advance(total - sum(entry.epochs_left for entry in entries))
        progress.show(board.runs_table(entries, time.monotonic() - begun))

    progress.start("epochs", total, sum(entry.epoch for entry in entries))
    show()
    try:
        (path / STOP).unlink(missing_ok=True)
        with place as (executor, work, arguments):
            _train(path, open_entries, executor, work, arguments, show)
    finally:
        show()
        progress.finish()
    return entries


def _train(
    path: Path,
    entries: Sequence[Entry],
    executor: Executor,
    work: Any,
    arguments: tuple[Any, ...],
    show: Callable[[], None],
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
                    events.info(board.line(entry))
                elif entry.look():
                    events.info(board.line(entry))
            show()
            time.sleep(LOOK)
    except BaseException:
        logger.warning(f"Stopping. Go on with: kerasnorm compare --resume {path}")
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
