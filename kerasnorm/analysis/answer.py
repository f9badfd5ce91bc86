"""`Answer`, the result of every analysis, and functions that the analyses share."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kerasnorm import runtime
from kerasnorm.errors import expect, is_list
from kerasnorm.files import plain
from kerasnorm.plots.style import Picture
from kerasnorm.progress import Progress, default_progress
from kerasnorm.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = TypeVar("Data")


@dataclass(frozen=True)
class Answer(Generic[Data]):
    """The result of an analysis: numbers and pictures.

    Attributes:
        data: The numbers; see the function that returned the answer.
        pictures: Figures of the numbers, each with title, caption and alternative text.
    """

    data: Data
    pictures: Sequence[Picture] = field(repr=False)

    @property
    def figures(self) -> "dict[str, Figure]":
        """The Matplotlib figures of the pictures by name."""
        return {picture.name: picture.figure for picture in self.pictures}

    def save(self, folder: Path | str) -> list[Path]:
        """Writes each picture to `<name>.png` in a folder, made if missing; returns the paths."""
        return [picture.save(Path(folder)) for picture in self.pictures]

    def document(self) -> Any:
        """Returns the numbers as lists and dicts for JSON; NaN and infinity become None."""
        return plain(self.data)


def open_runs(runs: Sequence[Run | Path | str]) -> tuple[list[Run], str]:
    """Loads runs and starts Keras, on the first run's backend unless one is chosen already.

    The runs are returned with the name of the backend.

    Raises:
        ConfigError: There is no run.
        CorruptFileError: A run is damaged or unfinished.
    """
    expect(is_list(runs) and len(runs) > 0, "runs", "a list of at least one finished run", runs)
    loaded = [run if isinstance(run, Run) else Run.load(run) for run in runs]
    return loaded, runtime.start(runtime.preferred(loaded[0].config.train.backend))[0]


def counter(progress: Progress | None, title: str, total: int) -> Callable[[], None]:
    """Reports the start of work of `total` parts; returns a function to call after each part."""
    progress = progress or default_progress()
    progress.start(title, total)
    done = itertools.count(1)
    return lambda: progress.advance(next(done))
