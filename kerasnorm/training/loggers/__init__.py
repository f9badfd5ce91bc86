"""The logs of a run, which each logger that `--log` names keeps in a form of its own."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kerasnorm.config import Config
from kerasnorm.formats.format import require
from kerasnorm.training.loggers.mlflow import TrackedRun
from kerasnorm.training.loggers.tensorboard import EventFiles
from kerasnorm.training.run_folder import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kerasnorm.training.run import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochDetails:
    """What the history does not hold of an epoch."""

    weights: "Mapping[str, NDArray[Any]]"  # weights of the model after the epoch, by path
    losses: Sequence[float]  # mean cross-entropy over the images of each step
    rates: Sequence[float]  # learning rate of each step
    steps_before: int  # number of steps in the epochs before it


class RunLog(Protocol):
    """The log of one run. A call writes what the log lacks, so that calls may be repeated."""

    def write(self, rows: Sequence[Row], details: EpochDetails | None = None) -> None:
        """Writes the epochs that the log lacks, so that it holds each of them once.

        The rows are all of the history so far, the details those of the last, which has just been
        trained.
        """

    def stop(self, *, has_failed: bool) -> None:
        """Notes that the run ends before its last epoch: by an error, or else by a signal."""

    def finish(self, run: "Run") -> None:
        """Writes the results and the plots of a finished run."""


# By name, which `--log` takes, and which is that of the package that the logger needs and of the
# extra of `pyproject.toml` that installs it: what opens the log of a run, given its folder and
# config; a new one, or that of the run which is resumed.
LOGGERS: dict[str, Callable[[Path, Config], RunLog]] = {
    "tensorboard": EventFiles,
    "mlflow": TrackedRun,
}


def check_loggers(config: Config) -> None:
    """Makes sure that the packages of a config's loggers are installed."""
    for name in config.train.log:
        require((name,), f"--log {name}")


class RunLogs:
    """All logs of one run. One that fails is left out until the run ends, and does not end it."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self.opened: dict[str, RunLog] = {}
        self.failed: set[str] = set()

    def write(self, rows: Sequence[Row], details: EpochDetails | None = None) -> None:
        """Writes the epochs that a log lacks, see `RunLog.write`."""
        for name in self.config.train.log:
            if name not in self.failed:
                self._try(name, lambda log: log.write(rows, details))

    def stop(self, *, has_failed: bool) -> None:
        """Notes in the logs that the run ends early, see `RunLog.stop`."""
        for name in self.opened.keys() - self.failed:
            self._try(name, lambda log: log.stop(has_failed=has_failed))

    def finish(self, run: "Run") -> None:
        """Writes the results of the finished run, and what a log that had failed lacks."""

        def complete(log: RunLog) -> None:
            log.write(run.history)
            log.finish(run)

        for name in self.config.train.log:
            self._try(name, complete)

    def _try(self, name: str, action: Callable[[RunLog], None]) -> None:
        try:
            if name not in self.opened:
                self.opened[name] = LOGGERS[name](self.path, self.config)
            action(self.opened[name])
        except Exception as error:  # of any package: a full disk, a server that is away
            if name not in self.failed:
                logger.warning(
                    f"--log {name} failed, and the run goes on: {type(error).__name__}: {error}. "
                    "What the log lacks is written when the run ends, if that is possible then."
                )
            self.failed.add(name)
