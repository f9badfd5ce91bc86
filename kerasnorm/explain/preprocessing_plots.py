"""Each way of input preprocessing: pixels, histograms, and a short training, side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kerasnorm.explain.inputs_measure import Preprocessed
from kerasnorm.explain.inputs_plots import draw_histogram
from kerasnorm.norms import NORMS
from kerasnorm.plots.images import show_image
from kerasnorm.plots.style import INK, TEXT_SIZE, new_figure, quiet, title

IMAGES = 4  # samples of each preprocessing
SPREAD = 10  # of losses; more goes on a logarithmic axis
NAMES = {
    "none": "raw",
    "scale": "scaled: x / 255",
    "standardize": "standardized: (x - mean) / std",
    "equalize": "equalized, then standardized",
}
STYLES = {
    "none": (NORMS["none"].color, ":"),
    "scale": (NORMS["in"].color, "--"),
    "standardize": (NORMS["bn"].color, "-"),
    "equalize": (NORMS["gn"].color, "-."),
}


def preprocessing_figure(preprocessed: Sequence[Preprocessed]) -> Figure:
    """Returns a row for each preprocessing: samples, and the histogram of each channel.

    Samples show each channel from its lowest value (black) to its highest (white), so only what
    changes the order or the spacing of the values shows.
    """
    figure = new_figure(1.75 * len(preprocessed))
    grid = figure.subplots(
        len(preprocessed), IMAGES + 1, squeeze=False, width_ratios=[1] * IMAGES + [3.2]
    )
    title(figure, "INPUT PREPROCESSINGS")
    for row, one in zip(grid, preprocessed, strict=True):
        for axes, image in zip(row, _visible(one.pixels)[:IMAGES], strict=False):
            show_image(axes, image)
        for axes in row[:-1]:
            axes.set_axis_off()
        draw_histogram(row[-1], one.pixels)
        quiet(row[-1], NAMES[one.preprocessing])
        row[-1].set_ylim(0, 2.2 * row[-1].get_ylim()[1])  # room for the legend
        row[-1].legend(frameon=False, fontsize=7, labelcolor=INK, loc="upper left")
        row[-1].set_ylabel("share (%)")
    grid[-1, -1].set_xlabel("value")
    return figure


def _visible(pixels: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    low = pixels.min(axis=(0, 1, 2))
    span = np.maximum(pixels.max(axis=(0, 1, 2)) - low, 1e-9)
    levels: NDArray[np.uint8] = np.round(255 * (pixels - low) / span).astype(np.uint8)
    return levels


def training_figure(found: Sequence[Any], heading: str) -> Figure:
    """Returns loss and accuracy of a training on each preprocessing, side by side.

    Args:
        found: `InputPreprocessing`s, each with its history.
        heading: What was trained.
    """
    figure = new_figure(3.4)
    title(figure, f"TRAINING ON EACH PREPROCESSING: {heading}")
    panels = figure.subplots(1, 2)
    names = (("train_loss", "training loss (nats)"), ("test_accuracy", "test accuracy (%)"))
    for axes, (column, name) in zip(panels, names, strict=True):
        for one in found:
            color, line = STYLES[one.preprocessing]
            factor = 100.0 if column.endswith("accuracy") else 1.0
            values = [factor * row[column] for row in one.history]
            label = NAMES[one.preprocessing] + (", diverged" if one.diverged else "")
            epochs = [row["epoch"] for row in one.history]
            axes.plot(epochs, values, line, color=color, marker="o", markersize=3, label=label)
        losses = [row[column] for one in found for row in one.history]
        if losses and column.endswith("loss") and max(losses) > SPREAD * min(losses):
            axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        quiet(axes)
    panels[0].legend(frameon=False, fontsize=TEXT_SIZE - 1, labelcolor=INK)
    return figure
