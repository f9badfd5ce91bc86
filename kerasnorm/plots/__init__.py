"""The pictures: pure functions from runs and arrays to Matplotlib figures, and their PNG files.

Figures are made without pyplot: no window, no global state.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kerasnorm.explain.inputs_plots import (
    augmentation_figure,
    augmented_views,
    draw_inputs,
    histogram_figure,
)
from kerasnorm.plots.curves import accuracy_figure, learning_rate_figure, loss_figure
from kerasnorm.plots.images import confusion_figure, misclassified_figure
from kerasnorm.plots.style import save, save_all
from kerasnorm.study.labels import norm_label, run_labels
from kerasnorm.training.run import PLOTS, Run

__all__ = [
    "accuracy_figure",
    "augmentation_figure",
    "augmented_views",
    "confusion_figure",
    "draw_inputs",
    "draw_run",
    "draw_runs",
    "histogram_figure",
    "learning_rate_figure",
    "loss_figure",
    "misclassified_figure",
    "norm_label",
    "run_labels",
    "save",
    "save_all",
]


def draw_run(
    run: Run, test_images: NDArray[np.uint8] | None = None, folder: Path | None = None
) -> list[Path]:
    """Writes the pictures of one run; returns their paths.

    Args:
        run: The run.
        test_images: The test images, raw, shape (N, H, W, C); without them the misclassified
            ones are not drawn.
        folder: Where to, made if it is missing; by default the run's own `plots`.
    """
    metrics = run.metrics
    figures = _curves([run]) | {"confusion": confusion_figure(run)}
    if test_images is not None:
        norm, accuracy = norm_label(run.config.model.norm), 100 * metrics["test_accuracy"]
        figures["misclassified"] = misclassified_figure(
            test_images,
            metrics["misclassified"],
            metrics["class_names"],
            f"MISCLASSIFIED: {norm}, {accuracy:.2f} % right; the surest mistakes",
        )
    return save_all(figures, run.path / PLOTS if folder is None else folder)


def draw_runs(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Writes the curves of several runs, overlaid, into a folder; returns their paths."""
    return save_all(_curves(runs), folder)


def _curves(runs: Sequence[Run]) -> dict[str, Figure]:
    return {
        "accuracy": accuracy_figure(runs),
        "loss": loss_figure(runs),
        "learning_rate": learning_rate_figure(runs),
    }
