"""The confusion matrix of a run, and the images that a model misclassified."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from numpy.typing import NDArray

from kerasnorm.norms import NORMS
from kerasnorm.plots.style import (
    FAINT,
    INK,
    TEXT_SIZE,
    Picture,
    new_figure,
    quiet,
    small_text,
    title,
)
from kerasnorm.training.run import Run

MOST_NAMED_CLASSES = 20
LONGEST_NAME = 16  # letters that fit beside the matrix and above an image
COLUMNS = 5  # images in a row
NO_MISTAKE = "No test image was misclassified."


def confusion_figure(run: Run) -> Picture:
    """Returns the confusion matrix over the test set, colored by the share of the true class.

    With up to 20 classes, the classes are named and every cell holds its count.
    """
    counts = np.asarray(run.metrics["confusion"], np.int64)
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    percent = 100.0 * counts / totals
    figure = new_figure(6.4)
    axes = figure.subplots()
    name = NORMS[run.config.model.norm].label
    right = f"{100 * run.metrics['test_accuracy']:.2f} % right"
    quiet(axes, f"CONFUSION ON THE TEST SET: {name}, {right}")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    # The square root of the share keeps the mistakes, a few percent each, visible.
    picture = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if len(counts) <= MOST_NAMED_CLASSES:
        _name_classes(axes, run.metrics["class_names"])
        _write_counts(axes, counts, percent)
    bar = figure.colorbar(
        picture, cax=axes.inset_axes((1.04, 0, 0.03, 1)), ticks=[0, 1, 5, 10, 25, 50, 75, 100]
    )
    bar.set_label("share of the true class (%)")
    bar.outline.set_visible(False)
    small_text(bar.ax)
    text = f"Confusion matrix of {name} on the test set"
    return Picture(
        "confusion",
        figure,
        text,
        f"{text}: the color is the share of the true class.",
        f"{text}, {right}: rows are true classes, columns predicted ones.",
    )


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    names = [shorten(name) for name in class_names]
    places = range(len(names))
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, names)


def _write_counts(axes: Axes, counts: NDArray[np.int64], percent: NDArray[np.float64]) -> None:
    size = TEXT_SIZE if len(counts) <= 12 else 6.0
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if percent[row, column] > 40 else INK if count else FAINT
        axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=color)


def misclassified_figure(
    images: NDArray[np.uint8],
    entries: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    heading: str = "",
) -> Picture:
    """Returns misclassified images in rows of five, each with its true and predicted class.

    Args:
        images: The test images, raw, uint8, shape (N, H, W, C).
        entries: One mapping per image to show: `index` into `images`, `true` and `predicted`
            class index, `confidence` from 0 to 1.
        class_names: One name per class.
        heading: Heading inside the figure.

    Raises:
        IndexError: An entry points outside `images`.
    """
    rows = max(1, -(-len(entries) // COLUMNS))
    figure = new_figure((0.4 if heading else 0.1) + 1.9 * rows if entries else 1.2)
    title(figure, heading)
    text = f"{len(entries)} misclassified test images" if entries else NO_MISTAKE
    picture = Picture(
        "misclassified",
        figure,
        "Misclassified test images",
        f"{text}: the mistakes of highest confidence." if entries else text,
        f"{text} in rows of five, each with its true and its predicted class." if entries else text,
    )
    if not entries:
        figure.text(0.5, 0.4, NO_MISTAKE, ha="center", color=INK, fontsize=TEXT_SIZE)
        return picture
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, entry in zip(grid, entries, strict=False):
        true, predicted = (shorten(class_names[int(entry[key])]) for key in ("true", "predicted"))
        caption = f"true {true}\n→ {predicted} {100 * entry['confidence']:.0f} %"
        axes.set_title(caption, fontsize=TEXT_SIZE, color=INK, pad=4)
        show_image(axes, images[int(entry["index"])])
    return picture


def show_image(axes: Axes, image: NDArray[np.uint8]) -> None:
    """Shows one image (H, W, C) pixel by pixel; of one or two channels the first, in gray."""
    pixels = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def shorten(name: str) -> str:
    """Returns a class name, shortened if it is too long for a figure."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
