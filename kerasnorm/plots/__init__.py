"""Pictures of runs: functions from runs and arrays to a `Picture`, and what writes the files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kerasnorm.data.stored import Images
from kerasnorm.plots.curves import accuracy_figure, learning_rate_figure, loss_figure
from kerasnorm.plots.images import confusion_figure, misclassified_figure, mistakes_figure

if TYPE_CHECKING:
    from kerasnorm.training.run import Run

__all__ = [
    "accuracy_figure",
    "confusion_figure",
    "draw_run",
    "draw_runs",
    "learning_rate_figure",
    "loss_figure",
    "misclassified_figure",
]


def draw_run(
    run: "Run", test_images: Images | None = None, folder: Path | None = None
) -> list[Path]:
    """Writes the pictures of one run; returns their paths.

    Without test images, raw (N, H, W, C), the misclassified ones are not drawn. By default `folder`
    is the run's own `plots`.
    """
    folder = run.plots_folder if folder is None else folder
    pictures = [confusion_figure(run)]
    if test_images is not None:
        pictures.append(mistakes_figure(run, test_images))
    return [*draw_runs([run], folder), *(picture.save(folder) for picture in pictures)]


def draw_runs(runs: "Sequence[Run]", folder: Path) -> list[Path]:
    """Writes the curves of several runs, overlaid, into a folder; returns their paths."""
    draws = (accuracy_figure, loss_figure, learning_rate_figure)
    return [draw(runs).save(folder) for draw in draws]
