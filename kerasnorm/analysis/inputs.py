"""The input of the network: preprocessing and augmentation, and their effect on training."""

import dataclasses
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kerasnorm.analysis.answer import Answer, counter
from kerasnorm.config import AUGMENTATIONS, Config, DataConfig, config_of_call
from kerasnorm.data import prepare
from kerasnorm.data.augment import Augmentation
from kerasnorm.data.dataset import Split, stratified_sample
from kerasnorm.data.preprocessing import (
    Statistics,
    channel_statistics,
    equalize,
    input_statistics,
)
from kerasnorm.data.stored import Images, changed
from kerasnorm.errors import CorruptFileError, DivergedError
from kerasnorm.inspection.evaluation import at_once
from kerasnorm.plots.images import show_image
from kerasnorm.plots.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    TEXT_SIZE,
    VERMILION,
    WIDTH,
    Picture,
    log_ticks,
    new_figure,
    quiet,
)
from kerasnorm.progress import Progress, in_percent, rounded
from kerasnorm.tables import Table
from kerasnorm.training import run_folder
from kerasnorm.training.fit import fit

logger = logging.getLogger(__name__)
TRAINED = 5000  # training images of a short training, by default
SAMPLES = 2000  # images used for histograms
ROWS, EPOCHS = 5, 6  # images and epochs in the figure of an augmentation
IMAGES = 4  # samples shown of each preprocessing
LOG_FROM = 10  # ratio of highest to lowest loss from which the axis is logarithmic
CLIPPED = "A peak at an end is clipped pixels: 0 or 255 in the file."
BINS = 64  # bins of a histogram, at most
MARGIN, HEADINGS = 0.08, 0.55  # inches: around a grid of images, and above it
GAP = 0.05  # between images of a grid, as a share of an image's width
CHANNELS = (  # names and colors of three channels
    ("red", VERMILION),
    ("green", GREEN),
    ("blue", BLUE),
)
PREPROCESSINGS = {  # name → title, color and line style
    "none": ("raw", "black", ":"),
    "scale": ("scaled: x / 255", ORANGE, "--"),
    "standardize": ("standardized: (x - mean) / std", BLUE, "-"),
    "equalize": ("equalized, then standardized", VERMILION, "-."),
}


@dataclass(frozen=True)
class InputPreprocessing:
    """The training images after one input preprocessing.

    Attributes:
        preprocessing: Name, as in a run's config: none, scale, standardize or equalize.
        mean: Mean of each channel of all of them after preprocessing, (C,).
        std: Standard deviation of each channel of all of them after preprocessing, (C,).
        history: Rows of a short training; empty if none was asked for or it diverged at once.
        diverged: Whether that training ended with a loss that is not finite.
    """

    preprocessing: str
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    history: Sequence[run_folder.Row] = ()
    diverged: bool = False


def inputs(
    config: Config | None = None,
    *,
    train: bool = False,
    progress: Progress | None = None,
    **overrides: Any,
) -> Answer[list[InputPreprocessing]]:
    """Preprocesses the training images in each of the four ways, and trains on each if asked.

    standardize maps each channel of all images linearly, (x - mean) / std over the training set.
    equalize first flattens the histogram of each image (Gonzalez & Woods, "Histogram
    equalization"), then standardizes.

    Args:
        config: A full config; None resolves one from the overrides.
        train: Whether to train once on each preprocessing, all else equal; on at most 5,000 images
            if no `train_size` is given.
        progress: Receives the progress; by default shown in notebooks alone.
        **overrides: Any config field, such as data="shapes".

    Returns:
        An `Answer` whose data are a list of `InputPreprocessing`, with the figures
        `preprocessing` and, with `train`, `preprocessing-training`.

    Raises:
        DataError: The data are missing or damaged.
    """
    config = config_of_call(config, overrides)
    split = prepare(config.replace(preprocessing="none").data, config.train.seed).train
    raw, trained = split.images, len(split)
    if train and config.data.train_size == 0 and trained > TRAINED:
        logger.info(
            f"Training on {TRAINED:,} of {trained:,} images. Use --train-size to change this."
        )
        trained = TRAINED  # beside those that are held out of `train_size` for validation
        config = config.replace(train_size=TRAINED + config.data.validation)
    samples = _chosen(split, at_once(raw, SAMPLES))
    found, pixels = [], {}
    measured = channel_statistics(raw)
    for name in PREPROCESSINGS:
        own = channel_statistics(_source(raw, name)) if name == "equalize" else measured
        pixels[name] = preprocess(raw, name, samples, own)
        mean, std = input_statistics(name, raw, own)
        found.append(InputPreprocessing(name, (own[0] - mean) / std, own[1] / std))
    pictures = [preprocessing_figure(pixels)]
    if train:
        tick = counter(progress, "trainings", len(found))
        for place, one in enumerate(found):
            history, diverged = _short_run(config.replace(preprocessing=one.preprocessing))
            found[place] = dataclasses.replace(one, history=history, diverged=diverged)
            tick()
        heading = f"norm {config.model.norm}, {trained:,} training images"
        pictures.append(training_figure(found, heading))
    return Answer(found, pictures)


def _chosen(split: Split, count: int) -> NDArray[np.int64]:
    """Returns places of `count` images, or of all: the same share of each class.

    The first images of a class folder are all of one class.
    """
    return stratified_sample(split.labels, min(count, len(split)), seed=0)


def preprocess(
    images: Images,
    preprocessing: str,
    indices: NDArray[np.int64] | None = None,
    measured: Statistics | None = None,
) -> NDArray[np.float64]:
    """Returns raw images preprocessed as a run preprocesses its training set, (N, H, W, C).

    none: x. scale: x / 255. standardize: (x / 255 - mean) / std of each channel over all images.
    equalize: flatten the histogram of each image and channel, then as standardize. The statistics
    are those of all images, `measured` here unless they are given; the images at `indices` are
    returned.

    >>> dark = np.array([0, 0, 0, 255], np.uint8).reshape(1, 2, 2, 1)
    >>> float(preprocess(dark, "scale").mean())
    0.25
    >>> float(preprocess(dark, "standardize").std().round(6))
    1.0
    """
    source = _source(images, preprocessing)
    mean, std = input_statistics(preprocessing, source, measured)
    chosen = source[:] if indices is None else source[indices]
    return (chosen / 255 - mean) / std


def _source(images: Images, preprocessing: str) -> Images:
    """Returns the images that a preprocessing changes linearly."""
    return changed(images, equalize) if preprocessing == "equalize" else images


def _short_run(config: Config) -> tuple[Sequence[run_folder.Row], bool]:
    """Trains once; returns the history, and whether the training diverged."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        try:
            return fit(config, out=path, plots=False).history, False
        except DivergedError:
            try:
                return run_folder.read_history(path / run_folder.HISTORY), True
            except CorruptFileError:  # no epoch was finished
                return (), True


def inputs_table(found: Sequence[InputPreprocessing]) -> Table:
    """Returns mean and std of each channel by preprocessing, and the results of short trainings."""
    has_training = any(one.history or one.diverged for one in found)
    columns = ["preprocessing", ">mean of each channel", ">std of each channel"]
    columns += [">train loss", ">test accuracy (%)"] if has_training else []
    rows = []
    for one in found:
        numbers = (" ".join(f"{value:z.3f}" for value in part) for part in (one.mean, one.std))
        cells = [one.preprocessing, *numbers]
        if has_training and one.history and not one.diverged:
            cells += [rounded(_column(one, "train_loss")[-1], 3), _final_accuracy(one)]
        elif has_training:
            cells += ["diverged", ""]
        rows.append(tuple(cells))
    return Table(tuple(columns), rows)


def _column(one: InputPreprocessing, name: str) -> NDArray[np.float64]:
    """Returns a column of a short training's history, accuracies in percent."""
    factor = 100.0 if name.endswith("accuracy") else 1.0
    return factor * np.array([row[name] for row in one.history], np.float64)


def _final_accuracy(one: InputPreprocessing) -> str:
    """Returns the test accuracy after a short training, in percent."""
    return in_percent(_column(one, "test_accuracy")[-1] / 100)


def preprocessing_figure(pixels: Mapping[str, NDArray[np.float64]]) -> Picture:
    """Returns one row per preprocessing: samples, and the histogram of each channel.

    Each channel is drawn from its lowest value (black) to its highest (white), so that a linear
    change is invisible. `pixels` are the images (N, H, W, C) after each preprocessing, by its name.
    """
    figure = new_figure(1.75 * len(pixels), "INPUT PREPROCESSINGS")
    ratios = [1] * IMAGES + [3.2]
    grid = figure.subplots(len(pixels), IMAGES + 1, squeeze=False, width_ratios=ratios)
    for row, (name, images) in zip(grid, pixels.items(), strict=True):
        # Evenly spaced: the first ones of ordered data are all of one class.
        shown = np.linspace(0, len(images), min(IMAGES, len(images)), endpoint=False).astype(int)
        for axes, image in zip(row, _visible(images)[shown], strict=False):
            show_image(axes, image)
        for axes in row[:-1]:
            axes.set_axis_off()
        _draw_histogram(row[-1], images)
        quiet(row[-1], PREPROCESSINGS[name][0])
        row[-1].set_ylim(0, 2.2 * row[-1].get_ylim()[1])  # room for the legend
        row[-1].legend(frameon=False, fontsize=7, labelcolor=INK, loc="upper left")
        row[-1].set_ylabel("share (%)")
    grid[-1, -1].set_xlabel("value")
    text = "Training images after each preprocessing, beside the histogram of each channel"
    caption = f"{text}. Every channel is drawn from its lowest value to its highest. {CLIPPED}"
    alt = f"{text}: {', '.join(PREPROCESSINGS[name][0] for name in pixels)}."
    return Picture("preprocessing", figure, "Input preprocessing", caption, alt)


def _visible(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    low = pixels.min(axis=(0, 1, 2))
    span = np.maximum(pixels.max(axis=(0, 1, 2)) - low, 1e-9)
    return np.round(255 * (pixels - low) / span).astype(np.uint8)


def training_figure(found: Sequence[InputPreprocessing], heading: str) -> Picture:
    """Returns loss and accuracy of a training on each preprocessing, side by side."""
    figure = new_figure(3.4, f"TRAINING ON EACH PREPROCESSING: {heading}")
    panels = figure.subplots(1, 2)
    names = (("train_loss", "training loss (nats)"), ("test_accuracy", "test accuracy (%)"))
    for axes, (column, name) in zip(panels, names, strict=True):
        for one in found:
            label, color, line = PREPROCESSINGS[one.preprocessing]
            label += ", diverged" if one.diverged else ""
            epochs = [row["epoch"] for row in one.history]
            style = {"color": color, "linestyle": line, "marker": "o", "markersize": 3}
            axes.plot(epochs, _column(one, column), **style, label=label)
        values = np.concatenate([_column(one, column) for one in found])
        if column == "train_loss" and values.size and values.max() > LOG_FROM * values.min():
            axes.set_yscale("log")
            log_ticks(axes.yaxis)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        quiet(axes)
    panels[0].legend(frameon=False, fontsize=TEXT_SIZE - 1, labelcolor=INK)
    ends = [
        f"{one.preprocessing} " + ("diverged" if one.diverged else f"{_final_accuracy(one)} %")
        for one in found
    ]
    text = f"Training loss and test accuracy on each input preprocessing, {heading}"
    alt = f"{text}. Test accuracy after the last epoch: {'; '.join(ends)}."
    heading = "Training on each preprocessing"
    return Picture("preprocessing-training", figure, heading, f"{text}.", alt)


def input_figures(config: Config) -> list[Picture]:
    """Returns figures of a network's input: each augmentation, and histograms of the pixels.

    Raises:
        DataError: The data are missing or damaged.
    """
    seed, name = config.train.seed, config.data.preprocessing
    split = prepare(config.replace(preprocessing="none").data, seed).train
    rows, chosen = (_chosen(split, n) for n in (ROWS, at_once(split.images, SAMPLES)))
    views = augmented_views(split, config.data, rows, EPOCHS, seed)
    shown, raw = split.images[rows], split.images[chosen]
    pictures = [augmentation_figure(shown, images, key) for key, images in views.items()]
    return [*pictures, histogram_figure(raw, preprocess(split.images, name, chosen), name)]


def augmented_views(
    split: Split, config: DataConfig, indices: NDArray[np.int64], epochs: int, seed: int
) -> dict[str, NDArray[np.uint8]]:
    """Returns some training images as augmentation changes them, epoch by epoch.

    Returns:
        The images of each epoch, (E, N, H, W, C): under the name and value of each augmentation
        that is on, and under "recipe" for all of them together.
    """
    plans = {}
    for name in AUGMENTATIONS:
        if value := getattr(config, name):
            key = name.replace("_", " ") + ("" if value is True else f" {value:g}")
            plans[key] = DataConfig(**{"cutout_size": config.cutout_size, name: value})
    height, width, channels = split.images.shape[1:]
    fill = 255 * channel_statistics(split.images)[0]
    images = split.images[indices]
    views: dict[str, NDArray[np.uint8]] = {}
    for key, plan in (plans | {"recipe": config}).items():
        augmentation = Augmentation(plan, (height, width, channels), fill, len(split), seed)
        draws = [augmentation.draw(indices, epoch, 0) for epoch in range(epochs)]
        views[key] = np.stack([augmentation.apply(images, draw) for draw in draws])
    return views


def augmentation_figure(raw: NDArray[np.uint8], augmented: NDArray[np.uint8], name: str) -> Picture:
    """Returns a grid with one row per image: first raw, then augmented in each epoch.

    `raw` are (N, H, W, C), `augmented` (E, N, H, W, C); `name` is such as "translate 2".
    """
    count, height, width = raw.shape[:3]
    columns = [raw, *augmented]
    side = (WIDTH - 2 * MARGIN) / len(columns)
    total = HEADINGS + MARGIN + count * side * height / width
    figure = new_figure(total, f"AUGMENTATION: {name}")
    figure.set_layout_engine("none")  # placed by hand: equal gaps between rows and columns
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
        heading = f"epoch {place}" if place else "raw"
        grid[0, place].set_title(heading, fontsize=TEXT_SIZE, color=INK, pad=4)
        for axes, image in zip(grid[:, place], images, strict=True):
            axes.set_axis_off()
            show_image(axes, image)
    text = f"{count} training images without augmentation and with it ({name})"
    caption = f"{text} in {len(augmented)} epochs."
    alt = f"{text}, one row per image and one column per epoch."
    file = f"augmentation-{name.replace(' ', '-')}"
    return Picture(file, figure, f"Augmentation: {name}", caption, alt)


def histogram_figure(
    raw: NDArray[np.uint8], preprocessed: NDArray[np.floating], preprocessing: str
) -> Picture:
    """Returns the histograms of each channel's pixels before and after the input preprocessing.

    Both are (N, H, W, C): `raw` from 0 to 255, the others as the first convolution receives them.
    """
    figure = new_figure(3.2)
    left, right = figure.subplots(1, 2)
    for axes, images, heading in (
        (left, raw, "RAW PIXELS"),
        (right, preprocessed, f"PREPROCESSED: {preprocessing.upper()}"),
    ):
        _draw_histogram(axes, images)
        quiet(axes, heading)
        axes.set_xlabel("value")
        axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # room for the legend
        axes.legend(frameon=False, fontsize=TEXT_SIZE, labelcolor=INK, loc="upper left")
    left.set_ylabel("share of the pixels (%)")
    text = f"Histograms of each channel's pixels, raw and after preprocessing ({preprocessing})"
    caption = f"{text}. {CLIPPED}"
    return Picture("histograms", figure, "Histograms of the pixels", caption, f"{text}.")


def _draw_histogram(axes: Axes, images: NDArray[Any]) -> None:
    """Draws the histogram of each channel of images (N, H, W, C), labeled with mean and std."""
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

    Other widths would put different numbers of levels into the bins, which shows as spikes.
    """
    levels = np.unique(values).astype(np.float64)
    step = float(np.diff(levels).min()) if len(levels) > 1 else 1.0
    count = round((levels[-1] - levels[0]) / step) + 1
    a_bin = -(-count // BINS)  # levels
    edges = a_bin * np.arange(-(-count // a_bin) + 1) - 0.5
    return np.asarray(levels[0] + step * edges, np.float64)
