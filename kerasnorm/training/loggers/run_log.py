"""The log of one run, which each logger keeps in its own form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kerasnorm.training.run import Run
    from kerasnorm.training.run_folder import Row


@dataclass(frozen=True)
class EpochDetails:
    """What the history does not hold of an epoch."""

    weights: "Mapping[str, NDArray[Any]]"  # weights of the model after the epoch, by path
    losses: Sequence[float]  # mean cross-entropy over the images of each step
    rates: Sequence[float]  # learning rate of each step
    steps_before: int  # number of steps in the epochs before it


class RunLog(Protocol):
    """The log of one run. A call writes what the log lacks, so that calls may be repeated."""

    def write(self, rows: "Sequence[Row]", details: EpochDetails | None = None) -> None:
        """Writes the epochs that the log lacks, so that it holds each of them once.

        The rows are all of the history so far, the details those of the last, which has just been
        trained.
        """

    def stop(self, *, has_failed: bool) -> None:
        """Notes that the run ends before its last epoch: by an error, or else by a signal."""

    def finish(self, run: "Run") -> None:
        """Writes the results and the plots of a finished run."""
