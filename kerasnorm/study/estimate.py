"""How long a study will take: from its own runs, else from a short race here."""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from kerasnorm import runtime
from kerasnorm.benchmark.race import race
from kerasnorm.config import Config
from kerasnorm.data import Dataset
from kerasnorm.errors import CorruptFileError
from kerasnorm.study.folder import Job
from kerasnorm.study.plan import identity
from kerasnorm.training.run import HISTORY, Row, read_history

logger = logging.getLogger(__name__)
PROBE_IMAGES, PROBE_STEPS = 512, 4  # a probe trains so many images, and at least so many steps
PROBE_ROUNDS = 2  # the faster one counts
START = 15.0  # seconds for a process to import its backend and build its model


@dataclass(frozen=True)
class Estimate:
    """What one run is expected to take.

    Attributes:
        job: The run.
        seconds: What is left of it; None where no estimate could be made.
        source: Where the rate comes from: "runs", "measured", or "" for a finished run.
    """

    job: Job
    seconds: float | None
    source: str


def estimate(jobs: Sequence[Job], data: Dataset, threads: int) -> list[Estimate]:
    """Returns an estimate for each run; one seed stands for all.

    Args:
        jobs: From `folder.survey`.
        data: The data set, as the runs get it.
        threads: That each run may keep busy.
    """
    rows = {job.path: _rows(job) for job in jobs}
    known: dict[str, tuple[float | None, str]] = {}
    for job in jobs:
        if rows[job.path]:
            known[_kind(job.config)] = (_epoch_of(rows[job.path], data), "runs")
    found = []
    for job in jobs:
        if job.done:
            found.append(Estimate(job, 0.0, ""))
            continue
        kind = _kind(job.config)
        if kind not in known:
            logger.info(f"measuring {job.name} …")
            known[kind] = (_measured(job.config, data, threads), "measured")
        epoch, source = known[kind]
        epochs = max(0, job.config.train.epochs - len(rows[job.path]))
        found.append(Estimate(job, None if epoch is None else START + epoch * epochs, source))
    return found


def makespan(estimates: Sequence[Estimate], lanes: int) -> float | None:
    """Returns the seconds until all runs are done, `lanes` at a time in the given order."""
    ends = [0.0] * max(1, lanes)
    for one in estimates:
        if one.seconds is None:
            return None
        ends[ends.index(min(ends))] += one.seconds
    return max(ends)


def _kind(config: Config) -> str:
    return identity(config.replace(seed=0))


def _rows(job: Job) -> Sequence[Row]:
    """Returns the history of a run, empty if it has not begun."""
    try:
        return read_history(job.path / HISTORY)
    except CorruptFileError:
        return ()


def _epoch_of(rows: Sequence[Row], data: Dataset) -> float:
    """Returns seconds an epoch, evaluation guessed at a third of training an image."""
    train = statistics.fmean(row["seconds"] or 0.0 for row in rows)
    return train * (1 + _judged(data) / 3 / len(data.train))


def _judged(data: Dataset) -> int:
    return len(data.test) + len(data.validation or ())


def _measured(config: Config, data: Dataset, threads: int) -> float | None:
    contender = "native" if config.train.engine == "native" else "stock"
    images = max(PROBE_IMAGES, PROBE_STEPS * config.train.batch_size)
    environment = runtime.child_environment(threads)
    results = race(config, [contender], images, PROBE_ROUNDS, environment)
    if not results or not results[0].train or not results[0].predict:
        return None
    return len(data.train) / max(results[0].train) + _judged(data) / max(results[0].predict)
