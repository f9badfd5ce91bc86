"""What reaches the network: augmented images epoch by epoch, and histograms of the pixels."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kerasnorm.config import DataConfig
from kerasnorm.data.augment import Augmentation
from kerasnorm.data.dataset import Split
from kerasnorm.norms import NORMS
from kerasnorm.plots.images import show_image
from kerasnorm.plots.style import (
    FAINT,
    INK,
    TEXT_SIZE,
    WIDTH,
    new_figure,
    quiet,
    save_all,
    title,
)

AUGMENTATIONS = ("flip", "alternating_flip", "translate", "shift_scale_rotate", "cutout", "gray")
CHANNELS = (  # names and colors of three channels
    ("red", NORMS["gn"].color),
    ("green", NORMS["ln"].color),
    ("blue", NORMS["bn"].color),
)
BINS = 64  # at most
MARGIN, HEADINGS = 0.08, 0.55  # inches: around a grid of images, and above it
GAP = 0.05  # of an image's width


def augmented_views(
    split: Split, config: DataConfig, indices: NDArray[np.int64], epochs: int, seed: int
) -> dict[str, NDArray[np.uint8]]:
    """Returns some training images as augmentation changes them, epoch by epoch.

    Args:
        split: The training images.
        config: The augmentation; one that is off is left out.
        indices: Which images, shape (N,).
        epochs: E, how many epochs.
        seed: Seed of the draws.

    Returns:
        For each augmentation that is on, by its name and value, and for all of them together,
        as "recipe", the images of each epoch, (E, N, H, W, C).
    """
    off = DataConfig(cutout_size=config.cutout_size)
    plans = {
        f"{name.replace('_', ' ')} {_value(config, name)}".strip(): dataclasses.replace(
            off, **{name: getattr(config, name)}
        )
        for name in AUGMENTATIONS
        if getattr(config, name)
    }
    height, width, channels = split.images.shape[1:]
    fill = split.images.mean(axis=(0, 1, 2), dtype=np.float64)
    views: dict[str, NDArray[np.uint8]] = {}
    for name, plan in (plans | {"recipe": config}).items():
        augmentation = Augmentation(plan, (height, width, channels), fill, len(split), seed)
        draws = [augmentation.draw(indices, epoch, 0) for epoch in range(epochs)]
        images = split.images[indices]
        views[name] = np.stack([augmentation.apply(images, draw) for draw in draws])
    return views


def _value(config: DataConfig, name: str) -> str:
    value: Any = getattr(config, name)
    return "" if value is True else f"{value:g}"


def augmentation_figure(
    raw: NDArray[np.uint8], augmented: NDArray[np.uint8], heading: str
) -> Figure:
    """Returns a grid: a row an image, first as it is, then as it is in each epoch.

    Args:
        raw: Shape (N, H, W, C).
        augmented: Shape (E, N, H, W, C).
        heading: Title of the figure.
    """
    count, height, width = raw.shape[:3]
    columns = [raw, *augmented]
    side = (WIDTH - 2 * MARGIN) / len(columns)
    total = HEADINGS + MARGIN + count * side * height / width
    figure = new_figure(total)
    figure.set_layout_engine("none")  # placed by hand: equal gaps between rows and columns
    title(figure, heading)
    places = {
        "left": MARGIN / WIDTH,
        "right": 1 - MARGIN / WIDTH,
        "bottom": MARGIN / total,
        "top": 1 - HEADINGS / total,
        "wspace": GAP,
        "hspace": GAP * width / height,
    }
    grid = figure.subplots(count, len(columns), squeeze=False, gridspec_kw=places)
    for place, images in enumerate(columns):
        grid[0, place].set_title(
            f"epoch {place}" if place else "raw", fontsize=TEXT_SIZE, color=INK, pad=4
        )
        for axes, image in zip(grid[:, place], images, strict=True):
            axes.set_axis_off()
            show_image(axes, image)
    return figure


def histogram_figure(
    raw: NDArray[np.uint8], preprocessed: NDArray[np.floating], preprocessing: str
) -> Figure:
    """Returns the histograms of each channel's pixels before and after the input preprocessing.

    Args:
        raw: Shape (N, H, W, C), 0 to 255.
        preprocessed: What the first convolution gets of them, shape (N, H, W, C).
        preprocessing: Its name.
    """
    figure = new_figure(3.2)
    left, right = figure.subplots(1, 2)
    draw_histogram(left, raw)
    draw_histogram(right, preprocessed)
    quiet(left, "RAW PIXELS")
    quiet(right, f"PREPROCESSED: {preprocessing.upper()}")
    left.set_ylabel("share of the pixels (%)")
    for axes in (left, right):
        axes.set_xlabel("value")
        axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # room for the legend
        axes.legend(frameon=False, fontsize=TEXT_SIZE, labelcolor=INK, loc="upper left")
    return figure


def draw_histogram(axes: Axes, images: NDArray[Any]) -> None:
    """Draws the histogram of each channel of images (N, H, W, C), its mean and std in its label."""
    channels = images.shape[-1]
    for channel in range(channels):
        values = images[..., channel].ravel()
        gray = (f"channel {channel + 1}" if channels > 1 else "gray", FAINT)
        name, color = CHANNELS[channel] if channels == 3 else gray
        edges = level_edges(values)
        share = 100.0 * np.histogram(values, edges)[0] / values.size
        mean, std = values.mean(dtype=np.float64), values.std(dtype=np.float64)
        label = f"{name}: mean {mean:z.2f}, std {std:.2f}"
        axes.stairs(share, edges, color=color, linewidth=1.3, label=label)


def level_edges(values: NDArray[Any]) -> NDArray[np.float64]:
    """Returns edges of at most 64 equal bins, each as wide as a whole number of gray levels.

    Other widths would beat against the levels and show teeth that the pixels do not have.
    """
    levels = np.unique(values).astype(np.float64)
    step = float(np.diff(levels).min()) if len(levels) > 1 else 1.0
    count = round((levels[-1] - levels[0]) / step) + 1
    a_bin = -(-count // BINS)  # levels
    edges = a_bin * np.arange(-(-count // a_bin) + 1) - 0.5
    return np.asarray(levels[0] + step * edges, np.float64)


def draw_inputs(
    folder: Path,
    raw: NDArray[np.uint8],
    augmented: Mapping[str, NDArray[np.uint8]],
    preprocessed: NDArray[np.floating],
    preprocessing: str,
) -> list[Path]:
    """Writes a picture an augmentation and the histograms; returns their paths.

    Args:
        folder: Made if it is missing.
        raw: N images, shape (N, H, W, C), the first ones those of `augmented`.
        augmented: Name → images of each epoch, (E, M, H, W, C) with M ≤ N; see
            `augmented_views`.
        preprocessed: The N images as the first convolution gets them, (N, H, W, C).
        preprocessing: Name of the input preprocessing.
    """
    figures = {
        f"augmentation-{name.replace(' ', '-')}": augmentation_figure(
            raw[: images.shape[1]], images, f"AUGMENTATION: {name}"
        )
        for name, images in augmented.items()
    }
    figures["histograms"] = histogram_figure(raw, preprocessed, preprocessing)
    return save_all(figures, folder)
