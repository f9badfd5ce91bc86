"""The confusion matrix of a run, and the images that a model misclassified."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kerasnorm.data.stored import Images
from kerasnorm.inspection.evaluation import MOST_NAMED_CLASSES
from kerasnorm.norms import NORMS
from kerasnorm.plots.style import (
    FAINT,
    INK,
    TEXT_SIZE,
    WIDTH,
    Picture,
    fit,
    new_figure,
    quiet,
    small_text,
    text_width,
)
from kerasnorm.progress import in_percent

if TYPE_CHECKING:
    from kerasnorm.training.run import Run

MOST_ROWS = 100  # of a confusion matrix; with more classes, each row counts several
NAME_WIDTH = 1.3  # inches of a class name beside the matrix
COLUMNS = 5  # images in a row
GAP = 0.12  # inches between the captions of two images
NO_MISTAKE = "No test image was misclassified."


def confusion_figure(run: "Run", label: str = "") -> Picture:
    """Returns the confusion matrix over the test set, colored by the share of the true class.

    With up to 20 classes, the classes are named and every cell holds its count. With more they are
    numbered from 0, and with more than 100 each cell counts several neighboring classes.
    """
    counts = np.asarray(run.metrics["confusion"], np.int64)
    classes = len(counts)
    each = -(-classes // MOST_ROWS)  # classes in a row
    starts = np.arange(0, classes, each)
    blocks = np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)
    percent = 100.0 * blocks / np.maximum(blocks.sum(axis=1, keepdims=True), 1)
    label, right = label or run_label(run), f"{in_percent(run.metrics['test_accuracy'])} % right"
    figure = new_figure(6.6, f"CONFUSION ON THE TEST SET, {right}\n{label}")
    axes = figure.subplots()
    quiet(axes)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    # The square root of the share keeps the mistakes, a few percent each, visible.
    end = each * len(starts) - 0.5
    picture = axes.imshow(
        percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100), extent=(-0.5, end, end, -0.5)
    )
    several = f", {each} in each cell" if each > 1 else ""
    axes.set_xlabel("predicted class" + several)
    axes.set_ylabel("true class" + several)
    if classes <= MOST_NAMED_CLASSES:
        names, places = fit(run.metrics["class_names"], NAME_WIDTH), range(classes)
        axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, names)
        size = TEXT_SIZE if classes <= 12 else 6.0
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if percent[row, column] > 40 else INK if count else FAINT
            axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=color)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
    bar = figure.colorbar(
        picture, cax=axes.inset_axes((1.04, 0, 0.03, 1)), ticks=[0, 1, 5, 10, 25, 50, 75, 100]
    )
    bar.set_label(f"share of the true class{'es' if each > 1 else ''} (%)")
    bar.outline.set_visible(False)
    small_text(bar.ax)
    text = f"Confusion matrix of {label} on the test set"
    numbered = "; classes are numbered from 0" if classes > MOST_NAMED_CLASSES else ""
    return Picture(
        "confusion",
        figure,
        text,
        f"The color is the share of the true class{numbered}{several}.",
        f"{text}, {right}: rows are true classes, columns predicted ones.",
    )


def run_label(run: "Run") -> str:
    """Returns the norm and the seed of a run."""
    return f"{NORMS[run.config.model.norm].label}, seed {run.config.train.seed}"


def mistakes_figure(run: "Run", images: Images, label: str = "") -> Picture:
    """Returns the misclassified test images of a run, those of highest confidence."""
    metrics, label = run.metrics, label or run_label(run)
    right = f"{in_percent(metrics['test_accuracy'])} % right"
    heading = f"MISCLASSIFIED, {right}; highest confidence first\n{label}"
    entries, names = metrics["misclassified"], metrics["class_names"]
    return replace(
        misclassified_figure(images, entries, names, heading),
        title=f"Misclassified test images of {label}",
    )


def misclassified_figure(
    images: Images,
    entries: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    heading: str = "",
) -> Picture:
    """Returns misclassified images in rows of five, each with its true and predicted class.

    The images are raw, uint8, (N, H, W, C). Each entry holds the `index` of one, its `true` and
    `predicted` class index, and `confidence` from 0 to 1.

    Raises:
        IndexError: An entry points outside `images`.
    """
    rows = max(1, -(-len(entries) // COLUMNS))
    height = 0.1 + 0.25 * len(heading.splitlines()) + 1.9 * rows if entries else 1.2
    figure = new_figure(height, heading)
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
    room = WIDTH / COLUMNS - GAP - text_width("→  100 %")
    names = fit(class_names, room)
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, entry in zip(grid, entries, strict=False):
        true, predicted = (names[int(entry[key])] for key in ("true", "predicted"))
        caption = f"true {true}\n→ {predicted} {in_percent(entry['confidence'], 0)} %"
        axes.set_title(caption, fontsize=TEXT_SIZE, color=INK, pad=4)
        show_image(axes, images[int(entry["index"])])
    return picture


def show_image(axes: Axes, image: NDArray[np.uint8]) -> None:
    """Shows one image (H, W, C) pixel by pixel; of one or two channels the first, in gray."""
    pixels = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
