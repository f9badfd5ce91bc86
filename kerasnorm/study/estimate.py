"""How long a study will take: from runs of it that are finished, else from a short race here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kerasnorm import runtime
from kerasnorm.bench.race import race
from kerasnorm.config import Config
from kerasnorm.data import Dataset
from kerasnorm.study.folder import Job
from kerasnorm.study.grid import identity

PROBE_IMAGES, PROBE_STEPS = 256, 4  # a probe trains so many images, and at least so many steps
START = 15.0  # seconds for a process to import its backend and build its model


@dataclass(frozen=True)
class Estimate:
    """What one run is expected to take.

    Attributes:
        job: The run.
        seconds: What is left of it; None where no estimate could be made.
        source: Where the rate comes from: "finished", "measured", or "" for a finished run.
    """

    job: Job
    seconds: float | None
    source: str


def estimate(
    jobs: Sequence[Job], data: Dataset, threads: int, note: Callable[[str], None]
) -> list[Estimate]:
    """Returns an estimate for each run; one seed stands for all.

    Args:
        jobs: From `folder.survey`.
        data: The data set, as the runs get it.
        threads: That each run may keep busy.
        note: Is told what is measured.
    """
    known: dict[str, tuple[float | None, str]] = {}
    for job in jobs:
        if job.done:
            known[_kind(job.config)] = (_epoch_of(job), "finished")
    found = []
    for job in jobs:
        if job.done:
            found.append(Estimate(job, 0.0, ""))
            continue
        kind = _kind(job.config)
        if kind not in known:
            note(f"measuring {job.name} …")
            known[kind] = (_measured(job.config, data, threads, note), "measured")
        epoch, source = known[kind]
        left = None if epoch is None else START + epoch * job.config.train.epochs
        found.append(Estimate(job, left, source))
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


def _epoch_of(job: Job) -> float:
    """Seconds an epoch of a finished run, evaluation guessed at a third of training an image."""
    assert job.done is not None
    images = job.done.metrics["images"]
    train = float(job.done.metrics["seconds"]) / max(1, int(job.done.metrics["epochs"]))
    judged = int(images["test"]) + int(images["validation"])
    return train * (1 + judged / 3 / max(1, int(images["train"])))


def _measured(
    config: Config, data: Dataset, threads: int, note: Callable[[str], None]
) -> float | None:
    contender = "native" if config.train.engine == "native" else "stock"
    images = max(PROBE_IMAGES, PROBE_STEPS * config.train.batch_size)
    environment = runtime.child_environment(threads)
    results = race(config, [contender], images, 1, note, environment)
    if not results or not results[0].train or not results[0].predict:
        return None
    judged = len(data.test) + len(data.validation or ())
    return len(data.train) / results[0].train[0] + judged / results[0].predict[0]
