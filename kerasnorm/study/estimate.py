"""How long runs take: estimated before a study is started, and forecast while it is trained."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import fmean
from time import monotonic

from kerasnorm import runtime
from kerasnorm.config import SETTINGS, Config
from kerasnorm.errors import ConfigError, DataError, KerasnormError
from kerasnorm.json_process import JsonProcess
from kerasnorm.study import probe
from kerasnorm.study.folder import PlannedRun, State
from kerasnorm.study.plan import identity
from kerasnorm.training.run_folder import read_content

logger = logging.getLogger(__name__)
START_SECONDS = 10.0  # for a process to import its backend, read its data and build its model
FORWARD_SHARE = 1 / 3  # of the time of training on an image, for evaluating it
# Fields on which the time of a step does not depend.
STEADY = (
    *("seed", "epochs", "learning_rate", "warmup", "schedule"),
    *("momentum", "bn_momentum", "initializer"),
)


@dataclass(frozen=True)
class Cost:
    """Seconds that a run takes."""

    start: float  # once: imports, data, model, compilation
    epoch: float  # for each epoch, with its evaluation
    evaluation: float  # which the end of a run repeats

    def seconds(self, epochs: int) -> float:
        """Returns the seconds that a process takes for some epochs of the run."""
        return self.start + epochs * self.epoch + self.evaluation


@dataclass(frozen=True)
class Estimate:
    """Time that one run is expected to take."""

    run: PlannedRun
    seconds: float | None  # until it is finished; None where they could not be estimated
    source: str  # origin of the rate: "runs", "measured", or "" for a finished run


def estimate(runs: Sequence[PlannedRun], jobs: int) -> list[Estimate]:
    """Returns an estimate for each run, from runs that take as long per epoch or measured here."""
    kinds = {run.name: _kind(run.config) for run in runs}
    known: dict[str, tuple[Cost | None, str]] = {}
    for run in runs:
        if run.epoch:
            epoch = run.seconds / run.epoch
            evaluation = epoch * FORWARD_SHARE * _evaluated(run)
            known[kinds[run.name]] = Cost(START_SECONDS, epoch + evaluation, evaluation), "runs"
    found = []
    with _Probes(max(1, min(jobs, sum(not run.finished for run in runs)))) as probes:
        for run in runs:
            if run.finished:
                found.append(Estimate(run, 0.0, ""))
                continue
            kind = kinds[run.name]
            if kind not in known:
                logger.info(f"measuring {run.name} …")
                known[kind] = _measured(run.config, probes), "measured"
            cost, source = known[kind]
            seconds = None if cost is None else cost.seconds(run.epochs_left)
            found.append(Estimate(run, seconds, source))
    return found


def _kind(config: Config) -> str:
    """Returns an identity that configs share whose epochs take the same time."""
    return identity(config.replace(**{name: SETTINGS[name].field.default for name in STEADY}))


def _evaluated(run: PlannedRun) -> float:
    """Returns how many images a run evaluates per training image, 0 where it is not recorded."""
    content = read_content(run.path)
    if content is None:
        return 0.0
    counts = {split: sum(found) for split, found in content.counts.items()}
    held_out = run.config.data.validation
    evaluated = counts["test"] + counts.get("validation", 0) + held_out
    return evaluated / (counts["train"] - held_out)


class _Probes(ExitStack):
    """Processes that measure one run after the other, `jobs` at a time, as a study trains them."""

    def __init__(self, jobs: int) -> None:
        super().__init__()
        self.jobs = jobs
        self._started: dict[tuple[str, bool], list[tuple[JsonProcess, float]]] = {}

    def cost(self, config: Config) -> list[Cost]:
        """Returns the cost of the run of a config in each of the processes."""
        key = config.train.backend, config.train.deterministic  # set for a process as a whole
        with ThreadPoolExecutor(self.jobs) as executor:
            if key not in self._started:
                self._started[key] = list(executor.map(self._start, [config] * self.jobs))
            started = self._started[key]
            return list(executor.map(_probed, *zip(*started, strict=True), [config] * self.jobs))

    def _start(self, config: Config) -> tuple[JsonProcess, float]:
        """Returns a process that has imported its backend, and the seconds that this took."""
        environment = runtime.subprocess_environment(max(1, runtime.cores() // self.jobs))
        process = self.enter_context(JsonProcess(probe.MODULE, environment=environment))
        begun = monotonic()
        process.ask({"task": "start", "config": config.fields})
        return process, monotonic() - begun


def _measured(config: Config, probes: _Probes) -> Cost | None:
    """Returns the mean cost of runs that are measured at the same time, None where one fails."""
    try:
        costs = probes.cost(config)
    except (ConfigError, DataError):  # no run could start either
        raise
    except KerasnormError as error:
        logger.warning(str(error))
        return None
    names = ("start", "epoch", "evaluation")
    return Cost(**{name: fmean(getattr(cost, name) for cost in costs) for name in names})


def _probed(process: JsonProcess, started: float, config: Config) -> Cost:
    begun = monotonic()
    warm = process.ask({"task": "prepare", "config": config.fields})
    prepared = monotonic() - begun
    found = process.ask({"task": "measure"})
    # The steps of the start are a part of the run's first epoch too.
    start = started + prepared - warm["steps"] * found["step"] - warm["images"] * found["image"]
    evaluation = found["images"] * found["image"]
    return Cost(max(0.0, start), found["steps"] * found["step"] + evaluation, evaluation)


def makespan(estimates: Sequence[Estimate], lanes: int) -> float | None:
    """Returns the seconds until all runs are done, `lanes` at a time in the given order."""
    ends = [0.0] * max(1, lanes)
    for one in estimates:
        if one.seconds is None:
            return None
        ends[ends.index(min(ends))] += one.seconds
    return max(ends)


class Forecast:
    """Forecasts, while a study is trained, when its runs and the study will be done."""

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._runs = runs
        self._kinds = {run.name: _kind(run.config) for run in runs}
        # What was seen of a run: times at which it had trained a number of epochs.
        self._seen: dict[str, list[tuple[int, float]]] = {}
        self._lanes = 1  # most runs that were trained at a time

    def note(self, run: PlannedRun, now: float) -> None:
        """Notes how far a run is, which has begun or trained another epoch."""
        seen = self._seen.setdefault(run.name, [])
        if seen and run.epoch < seen[-1][0]:  # it started over: its checkpoints were damaged
            seen.clear()
        if not seen or seen[-1][0] != run.epoch:
            seen.append((run.epoch, now))

    def left(self, run: PlannedRun, now: float) -> float | None:
        """Returns the seconds until a run is done; None before there is an epoch to judge by."""
        if run.state not in (State.RUNNING, State.WAITING):
            return 0.0
        rate = self._rate(run)
        if rate is None:
            known = [(other, found) for other in self._runs if (found := self._rate(other))]
            kind = self._kinds[run.name]
            alike = [found for other, found in known if self._kinds[other.name] == kind]
            rates = alike or [found for _, found in known]
            if not rates:
                return None
            rate = fmean(rates)
        seen = self._seen.get(run.name)
        start = START_SECONDS if seen is None or len(seen) == 1 else 0.0
        waited = now - seen[-1][1] if seen else 0.0
        return max(0.0, start + rate * run.epochs_left - waited)

    def study_left(self, now: float) -> float | None:
        """Returns the seconds until all runs are done; None where that is not known."""
        running = [run for run in self._runs if run.state == State.RUNNING]
        waiting = [run for run in self._runs if run.state == State.WAITING]
        self._lanes = max(self._lanes, len(running))
        left = [Estimate(run, self.left(run, now), "") for run in (*running, *waiting)]
        return makespan(left, self._lanes) if left else None

    def _rate(self, run: PlannedRun) -> float | None:
        """Returns the seconds per epoch of a run, None before its first epoch."""
        # The first entry is the start, and the second epoch is the first without compilation.
        _, *epochs = self._seen.get(run.name, [(0, 0.0)])
        if len(epochs) > 1:
            (first, begun), (last, now) = epochs[0], epochs[-1]
            return (now - begun) / (last - first)
        return run.seconds / run.epoch if run.epoch else None
