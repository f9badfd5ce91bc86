"""What every question about normalization gives back, and what the questions share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnorm import runtime
from kerasnorm.data import Split
from kerasnorm.data.dataset import stratified_sample
from kerasnorm.errors import ConfigError
from kerasnorm.files import plain
from kerasnorm.plots.style import save_all
from kerasnorm.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Answer:
    """What a question about normalization gives.

    Attributes:
        data: The numbers; see the function that returned it.
        figures: Matplotlib figures by name.
    """

    data: Any
    figures: "dict[str, Figure]" = field(repr=False)

    def save(self, folder: Path | str) -> list[Path]:
        """Writes the figures to `<name>.png` in a folder, made if missing; returns their paths."""
        return save_all(self.figures, Path(folder))

    def document(self) -> Any:
        """Returns the numbers as JSON-able lists and dicts; what is not finite becomes None."""
        return plain(self.data)


def open_runs(runs: Sequence[Run | Path | str]) -> tuple[list[Run], str]:
    """Loads runs and starts Keras, on the first run's backend where nothing else is decided.

    Returns:
        The runs, and the backend.

    Raises:
        ConfigError: There is no run.
        CorruptFileError: A run is damaged or unfinished.
    """
    if not runs:
        raise ConfigError("runs: expected at least one finished run. Received: none")
    loaded = [run if isinstance(run, Run) else Run.load(run) for run in runs]
    return loaded, runtime.start(runtime.preferred(loaded[0].config.train.backend))[0]


def some(split: Split, count: int) -> Split:
    """Returns `count` images with their labels, each class in its share, or all there are."""
    if count >= len(split):
        return split
    return split.take(stratified_sample(split.labels, count, seed=0))


def expect(is_right: bool, name: str, expected: str, received: Any) -> None:
    """Refuses an argument that is out of range.

    Raises:
        ConfigError: `is_right` is false.
    """
    if not is_right:
        raise ConfigError(f"{name}: expected {expected}. Received: {name}={received}")
