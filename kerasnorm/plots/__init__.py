"""The pictures: pure functions from runs and arrays to Matplotlib figures, and their PNG files.

Figures are made without pyplot: no window, no global state.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kerasnorm.plots.curves import accuracy_figure, learning_rate_figure, loss_figure
from kerasnorm.plots.images import confusion_figure, misclassified_figure
from kerasnorm.plots.inputs import (
    augmentation_figure,
    augmented_views,
    draw_inputs,
    histogram_figure,
)
from kerasnorm.plots.labels import norm_label, run_labels
from kerasnorm.plots.style import NORM_COLORS, save
from kerasnorm.run import PLOTS, Run

__all__ = [
    "NORM_COLORS",
    "accuracy_figure",
    "augmentation_figure",
    "augmented_views",
    "confusion_figure",
    "draw_inputs",
    "draw_run",
    "histogram_figure",
    "learning_rate_figure",
    "loss_figure",
    "misclassified_figure",
    "norm_label",
    "run_labels",
    "save",
]


def draw_run(run: Run, test_images: NDArray[np.uint8] | None = None) -> list[Path]:
    """Writes the pictures of one run into its folder; returns their paths.

    Args:
        run: The run.
        test_images: The test images, raw, shape (N, H, W, C); without them the misclassified
            ones are not drawn.
    """
    metrics = run.metrics
    figures = {
        "accuracy": accuracy_figure([run]),
        "loss": loss_figure([run]),
        "confusion": confusion_figure(run),
        "learning_rate": learning_rate_figure([run]),
    }
    if test_images is not None:
        entries = metrics["misclassified"]
        norm, accuracy = norm_label(run.config.model.norm), 100 * metrics["test_accuracy"]
        figures["misclassified"] = misclassified_figure(
            test_images,
            entries,
            metrics["class_names"],
            f"MISCLASSIFIED: {norm}, {accuracy:.2f} % right; the surest mistakes",
        )
    folder = run.path / PLOTS
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        save(figure, path)
    return paths
