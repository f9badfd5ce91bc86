"""The loss around a run: along the gradient while it trains, and over a plane afterwards.

Keras is imported inside the functions, because the runs determine the backend.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kerasnorm.analysis.answer import Answer, counter, open_runs
from kerasnorm.data.batches import Batches
from kerasnorm.data.dataset import Split
from kerasnorm.errors import about, expect, expect_whole, is_number
from kerasnorm.norms import EPSILON
from kerasnorm.plots.labels import run_labels
from kerasnorm.plots.style import (
    INK,
    TEXT_SIZE,
    TITLE_SIZE,
    WIDTH,
    Picture,
    draw_legend,
    first_texts,
    fit,
    log_ticks,
    marked_styles,
    new_figure,
    quiet,
)
from kerasnorm.progress import Progress, rounded
from kerasnorm.tables import Table
from kerasnorm.training.fit import make_engine
from kerasnorm.training.run import Run

if TYPE_CHECKING:
    import keras

    from kerasnorm.analysis.probe import Probe, Weights

Array = NDArray[np.float64]
FACTORS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # of the rate; the range of Santurkar et al., 1/2 to 4
SEED = 0x1712  # of the random directions
ROUNDING = 1e-7  # of a sum of squares near 1, in float32
COLOR_BAR = 2.0  # inches beside the panels, and between them
COLUMNS = 3  # panels in a row, at most
LEVELS = 16  # levels of a contour plot
CEILING = 1e4  # nats: higher losses are drawn there
FLOOR = 1e-6  # lowest value drawn on a logarithmic axis
TICKS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 1000, 1e4)  # nats, of a surface's axis
MEASURED_NOTE = (
    "Range, change and smoothness are medians over the lines along the gradient; the last two "
    "columns are losses of test images."
)


@dataclass(frozen=True)
class GradientLines:
    """Losses and gradients along the gradient at some steps of training: S lines of K points.

    Attributes:
        steps: Number of steps taken before each line, (S,).
        distances: Factors of the gradient, (K,), the first one 0.
        losses: Loss of the batch at w - distance * gradient, in nats, (S, K).
        changes: |gradient at that point - gradient at w|, (S, K).
        norms: |gradient at w|, (S,).
    """

    steps: NDArray[np.int64]
    distances: Array
    losses: Array
    changes: Array
    norms: Array

    @property
    def loss_range(self) -> Array:
        """Highest minus lowest loss of each line without its first point, (S,).

        Infinity where a loss is not finite, as for `change` and `smoothness`.
        """
        with np.errstate(invalid="ignore"):
            return _overflown(np.ptp(self.losses[:, 1:], axis=1))

    @property
    def change(self) -> Array:
        """Largest change of the gradient on each line, (S,)."""
        return _overflown(self.changes[:, 1:].max(axis=1))

    @property
    def smoothness(self) -> Array:
        """Effective beta-smoothness: largest change of gradient over distance walked, (S,).

        NaN where the gradient is 0, along which nothing is walked.
        """
        walked = self.distances[None, 1:] * self.norms[:, None]
        unknown = np.full(walked.shape, np.nan)
        ratios = np.divide(_overflown(self.changes[:, 1:]), walked, out=unknown, where=walked != 0)
        return ratios.max(axis=1)


def _overflown(values: Array) -> Array:
    """Returns values with infinity where they are not a number, since what it came from is not."""
    return np.where(np.isnan(values), np.inf, values)


@dataclass(frozen=True)
class Surface:
    """Inference loss over the plane w + a * first + b * second.

    Attributes:
        axis: Values of a and of b, (P,), 0 in the middle.
        line: Loss along the first direction, b = 0, in nats, (P,).
        plane: Loss at [b, a], in nats, (P, P); infinity where it is not finite.
        images: Number of images that the loss was measured on.
    """

    axis: Array
    line: Array
    plane: Array
    images: int

    @property
    def center(self) -> float:
        """Loss of the trained model itself, in nats."""
        return float(self.plane[len(self.axis) // 2, len(self.axis) // 2])


@dataclass(frozen=True, eq=False)
class Landscape:
    """The loss around one run.

    Attributes:
        run: Folder of the run.
        label: Short text that tells the run from the others.
        norm: Name of the run's norm.
        lines: Losses along the gradient while the run trains.
        surface: Losses around the trained model.
    """

    run: Path
    label: str
    norm: str
    lines: GradientLines
    surface: Surface


def landscape(
    runs: Sequence[Run | Path | str],
    *,
    steps: int = 100,
    lines: int = 10,
    rate: float = 0.1,
    points: int = 13,
    radius: float = 1.0,
    images: int = 300,
    progress: Progress | None = None,
) -> Answer[list[Landscape]]:
    """Measures the loss along the gradient while a run trains, and around its trained model.

    The first steps of each run are trained again, from its config. Every few steps, at weights
    w with gradient g, the loss of the batch and the change of its gradient are measured at
    w - t * g, t from rate / 2 to 4 * rate (Santurkar et al. 2018, arXiv 1805.11604). Then the loss
    of test images is measured at w + a * d + b * e, where d and e are random directions in which
    each filter has the norm of the model's filter (Li et al. 2018, arXiv 1712.09913). Kernels
    that were standardized in training are standardized at each of these points too.

    Args:
        runs: Finished runs, or their folders.
        steps: Training steps to repeat, at most those of the run.
        lines: Number of lines along the gradient.
        rate: Factor of the gradient in a step along it, the same for all runs.
        points: Number of points on each axis of the surface; odd.
        radius: The surface reaches from -radius to radius, in norms of each filter.
        images: Number of test images that the surface is measured on.
        progress: Receives the progress; by default shown in notebooks alone.

    Returns:
        An `Answer` whose data are a list of `Landscape`, with the figures `gradient`, `line`,
        `contours` and `surface`.

    Raises:
        ConfigError: No run is given, or an argument is out of range.
        CorruptFileError: A run is damaged.
        DivergedError: The repeated training diverges.
    """
    expect_whole(points, "points", 3)
    expect(points % 2 == 1, "points", "an odd number of at least 3", points)
    for name, value in (("steps", steps), ("lines", lines), ("images", images)):
        expect_whole(value, name, 1)
    for name, number in (("rate", rate), ("radius", radius)):
        is_right = is_number(number) and 0 < number < math.inf
        expect(is_right, name, "a number above 0", number)
    loaded, backend = open_runs(runs)
    tick = counter(progress, "landscape", len(loaded) * (lines + points))
    found = []
    for run, label in zip(loaded, run_labels(loaded), strict=True):
        config = run.config.replace(backend=backend)
        dataset = run.dataset()
        engine = make_engine(config, dataset)
        batches = engine.batches
        taken = min(steps, config.train.epochs * batches.steps)
        with about(run.path):
            walked = gradient_lines(engine, batches, steps=taken, lines=lines, rate=rate, tick=tick)
        for _ in range(lines - len(walked.steps)):  # a short run has fewer lines
            tick()
        test = dataset.test.sample(images)
        trained = trained_network(run.model(), engine.model)
        around = surface(trained, test, points=points, radius=radius, tick=tick)
        found.append(Landscape(run.path, label, config.model.norm, walked, around))
    pictures = [draw(found) for draw in (gradient_figure, line_figure, contours_figure)]
    return Answer(found, [*pictures, surface_figure(found)])


def gradient_lines(
    engine: Any,
    batches: Batches,
    *,
    steps: int,
    lines: int,
    rate: float,
    tick: Callable[[], None],
) -> GradientLines:
    """Trains a model, and every few steps measures a line along the gradient of the next batch.

    The lines are evenly spaced, at most one per step, the first one before the first step. Each
    runs from 1/2 to 4 times `rate`, a factor of the gradient.

    Raises:
        DivergedError: Training diverges.
    """
    from kerasnorm.analysis.probe import Probe

    probe = Probe(engine.model)
    distances = np.array([0.0, *FACTORS]) * rate
    stops = np.unique(np.linspace(0, steps, lines, endpoint=False).astype(np.int64))
    found = []
    for stop, following in zip(stops, [*stops[1:], stops[-1]], strict=True):
        epoch, step = divmod(int(stop), batches.steps)
        found.append(gradient_line(probe, Split(*batches.batch(epoch, step)), distances.tolist()))
        tick()
        advance(engine, batches, int(stop), int(following - stop))
    losses, changes, norms = (np.array(part) for part in zip(*found, strict=True))
    return GradientLines(stops, distances, losses, changes, norms)


def gradient_line(
    probe: "Probe", split: Split, distances: Sequence[float]
) -> tuple[Array, Array, float]:
    """Walks from a model's weights w along the gradient g of a batch: w - distance * g.

    The weights are the same afterwards.

    Returns:
        Losses (K,), |g(w - distance g) - g(w)| (K,), and |g(w)|.

    Source: Santurkar et al. 2018, arXiv 1805.11604, section 3.1.
    """
    start = probe.weights()
    _, here = probe.gradient(split.images, split.labels)
    losses, changes = [], []
    for distance in distances:
        probe.assign([w - np.float32(distance) * g for w, g in zip(start, here, strict=True)])
        loss, there = probe.gradient(split.images, split.labels)
        losses.append(loss)
        changes.append(_distance(there, here))
    probe.assign(start)
    return np.array(losses), np.array(changes), _distance(here, [np.zeros(1)] * len(here))


def _distance(a: Sequence[NDArray[Any]], b: Sequence[NDArray[Any]]) -> float:
    return float(
        np.sqrt(sum(np.square(x.astype(np.float64) - y).sum() for x, y in zip(a, b, strict=True)))
    )


class Window(Batches):
    """Consecutive steps of one epoch of `Batches`, presented as a whole epoch."""

    def __init__(self, batches: Batches, epoch: int, first: int, count: int) -> None:
        self.whole = batches
        self.epoch = epoch
        self.first = first
        start = first * batches.batch_size
        images = min(count * batches.batch_size, len(batches.split) - start)
        # Engines read only the number and the shape of the images.
        super().__init__(
            batches.split.take(slice(images)), min(batches.batch_size, images), batches.seed
        )

    def place(self, epoch: int, step: int) -> tuple[int, int]:
        """Returns the epoch of the window, and the step in it."""
        return self.epoch, self.first + step

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Returns the order of the whole epoch that contains the window."""
        return self.whole.order(self.epoch)

    def batch(
        self,
        epoch: int,
        step: int,
        order: NDArray[np.int64] | None = None,
        part: slice | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Returns the images and labels of one step of the window."""
        return self.whole.batch(self.epoch, self.first + step, order, part)


def advance(engine: Any, batches: Batches, start: int, count: int) -> None:
    """Trains steps `start` to `start + count` of a run, counted over all its epochs.

    Raises:
        DivergedError: The loss is no longer finite.
    """
    end = start + count
    while start < end:
        epoch, first = divmod(start, batches.steps)
        taken = min(end - start, batches.steps - first)
        engine.batches = Window(batches, epoch, first, taken)
        # The argument seeds dropout, so every window draws different masks.
        engine.train_epoch(start)
        start += taken
    engine.batches = batches


def trained_network(saved: "keras.Model", network: "keras.Model") -> "keras.Model":
    """Returns a run's saved model as the network that was trained, its kernels standardized anew.

    A saved model holds standardized kernels k in plain convolutions, which is another network
    wherever the weights are others. Here each filter is k * sqrt(eps / (1 - |k|^2)) in a
    `StandardizedConv2D`, which standardizes it to k. This is the filter that was trained, without
    its mean, which standardizing takes away. Rounding blurs the length of a long one, which does
    not change the surface: directions are as long as their filters, and the length is taken away. A
    model in which no kernel was standardized is returned as it is.
    """
    from kerasnorm.conversion.rebuild import rebuild
    from kerasnorm.inspection.graph import Calls, layers
    from kerasnorm.layers import StandardizedConv2D, leaves

    if not any(isinstance(layer, StandardizedConv2D) for layer in leaves(network)):
        return saved
    trained, known = Calls(network).paths, Calls(saved).paths
    standardized = {
        trained[id(layer)] for layer in layers(network) if isinstance(layer, StandardizedConv2D)
    }
    chosen = [layer for layer in layers(saved) if known[id(layer)] in standardized]
    replaced = {id(one): StandardizedConv2D.from_config(one.get_config()) for one in chosen}
    made, _ = rebuild(saved, replaced)
    for layer in chosen:
        kernel, *bias = layer.get_weights()
        replaced[id(layer)].set_weights([raw_kernel(kernel), *bias])
    return made


def raw_kernel(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the kernel of filters of mean 0 that a standardized kernel was made of.

    The latter, (height, width, in, out), is what `kerasnorm.layers.standardize_kernel` returned.
    """
    squares = np.square(kernel, dtype=np.float64).sum((0, 1, 2))
    # |k|^2 = |w|^2 / (|w|^2 + eps), which rounding may bring to 1.
    scale = np.sqrt(EPSILON / np.maximum(1 - squares, ROUNDING))
    return (kernel * scale).astype(np.float32)


def filter_axes(model: "keras.Model") -> list[tuple[int, ...] | None]:
    """Returns the axes that a filter spans in each trainable variable, None if it is no kernel.

    A filter is what makes one channel, or one neuron, of a layer's output. That of a convolution
    (height, width, in, out) spans the first three axes; that of a depthwise one (height, width, in,
    multiplier) the first two; that of a transposed one (height, width, out, in) all but `out`.
    """
    from kerasnorm.inspection.graph import kernels

    axes = {id(kernel): _filter_axes(layer, kernel) for layer, kernel in kernels(model)}
    return [axes.get(id(variable)) for variable in model.trainable_variables]


def _filter_axes(layer: Any, kernel: Any) -> tuple[int, ...]:
    from keras import layers

    transposed = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
    rank = len(kernel.shape)
    kept = {rank - 1}
    if isinstance(layer, transposed):
        kept = {rank - 2}
    elif isinstance(layer, (layers.DepthwiseConv1D, layers.DepthwiseConv2D)) or (
        kernel.name == "depthwise_kernel"
    ):
        kept = {rank - 2, rank - 1}
    elif isinstance(layer, layers.EinsumDense):
        _, letters, output = layer.equation.replace("->", ",").split(",")
        kept = {axis for axis, letter in enumerate(letters.strip()) if letter in output}
    return tuple(axis for axis in range(rank) if axis not in kept)


def filter_direction(
    weights: "Weights", axes: Sequence[tuple[int, ...] | None], seed: int
) -> "Weights":
    """Returns a random direction in which each filter has the norm of the model's filter.

    d = g * |w| / |g| for each filter of a kernel, g standard normal; 0 for all else, such as
    scales and shifts. This makes networks comparable whose weights differ only by a scale that a
    norm removes. Source: Li et al. 2018, arXiv 1712.09913, section 4.

    >>> (direction,) = filter_direction([np.full((1, 1, 4, 2), 3.0, np.float32)], [(0, 1, 2)], 0)
    >>> np.sqrt(np.square(direction).sum((0, 1, 2))).round(3).tolist()
    [6.0, 6.0]
    """
    rng = np.random.Generator(np.random.PCG64([SEED, seed]))
    direction = []
    for weight, spanned in zip(weights, axes, strict=True):
        if spanned is None:
            direction.append(np.zeros_like(weight))
            continue
        noise = rng.normal(size=weight.shape)
        wanted, drawn = (np.square(a).sum(spanned, keepdims=True) for a in (weight, noise))
        direction.append((noise * np.sqrt(wanted / drawn)).astype(np.float32))
    return direction


def surface(
    model: "keras.Model", split: Split, *, points: int, radius: float, tick: Callable[[], None]
) -> Surface:
    """Measures the loss over a plane of two filter-normalized directions.

    The model's weights are the same afterwards. `points` is odd.
    """
    from kerasnorm.analysis.probe import Probe

    probe = Probe(model)
    start = probe.weights()
    axes = filter_axes(model)
    first, second = (filter_direction(start, axes, seed) for seed in (0, 1))
    axis = np.linspace(-radius, radius, points)
    axis[points // 2] = 0.0
    plane = np.empty((points, points))
    for row, b in enumerate(axis):
        for column, a in enumerate(axis):
            moved = [
                w + np.float32(a) * d + np.float32(b) * e
                for w, d, e in zip(start, first, second, strict=True)
            ]
            probe.assign(moved)
            with np.errstate(invalid="ignore"):  # of infinite logits
                plane[row, column] = probe.score(split.images, split.labels).loss
        tick()
    probe.assign(start)
    plane = _overflown(plane)
    return Surface(axis, plane[points // 2].copy(), plane, len(split))


def landscape_table(found: Sequence[Landscape]) -> Table:
    """Returns the table of each run's smoothness and losses."""
    columns = (
        "run",
        ">range of loss",
        ">change of gradient",
        ">effective smoothness",
        ">loss at the model",
        ">highest on the surface",
    )
    rows = []
    for one in found:
        lines, around = one.lines, one.surface
        smoothness = lines.smoothness[lines.norms != 0]
        measured = (lines.loss_range, lines.change, smoothness)
        medians = [np.median(values) if len(values) else None for values in measured]
        numbers = [*medians, around.center, around.plane.max()]
        rows.append((one.label, *("-" if n is None else f"{n:.4g}" for n in numbers)))
    return Table(columns, rows, notes=[MEASURED_NOTE])


def _legend(figure: Figure, found: Sequence[Landscape]) -> None:
    draw_legend(figure, _styles(found), [one.label for one in found], 4)


def _styles(found: Sequence[Landscape]) -> list[dict[str, Any]]:
    return marked_styles([one.norm for one in found])


def gradient_figure(found: Sequence[Landscape]) -> Picture:
    """Returns the loss range, the gradient change and the smoothness over the training steps."""
    figure = new_figure(3.6, "ALONG THE GRADIENT DURING TRAINING")
    panels = figure.subplots(1, 3)
    headings = (
        "range of the loss (nats)",
        "largest change of the gradient",
        "effective smoothness",
    )
    for axes, heading in zip(panels, headings, strict=True):
        axes.set_yscale("log")
        axes.set_xlabel("training step")
        quiet(axes, heading)
    for one, style in zip(found, _styles(found), strict=True):
        lines = one.lines
        low, high = (_shown(part(lines.losses[:, 1:], axis=1)) for part in (np.min, np.max))
        panels[0].fill_between(lines.steps, low, high, color=style["color"], alpha=0.3, linewidth=0)
        panels[0].plot(lines.steps, high, **style, linewidth=1)
        panels[0].plot(lines.steps, low, **style, linewidth=1)
        panels[1].plot(lines.steps, _shown(lines.change), **style)
        walked = lines.norms != 0
        panels[2].plot(lines.steps[walked], _shown(lines.smoothness[walked]), **style)
    for axes in panels:
        log_ticks(axes.yaxis)
    _legend(figure, found)
    text = "Loss and gradient along the gradient at some steps of training"
    caption = (
        f"{text}: the range of the loss, the largest change of the gradient and the effective "
        "smoothness. Lower is smoother."
    )
    texts = [f"{one.label} {np.median(one.lines.loss_range):.3g}" for one in found]
    alt = f"{text}. Median range of the loss in nats: {first_texts(texts)}."
    return Picture("gradient", figure, "Loss along the gradient", caption, alt)


def _shown(values: Array) -> Array:
    return np.clip(np.nan_to_num(values, nan=CEILING**2, posinf=CEILING**2), FLOOR, None)


def _capped(losses: Array) -> Array:
    return np.minimum(np.nan_to_num(losses, nan=CEILING), CEILING)


def line_figure(found: Sequence[Landscape]) -> Picture:
    """Returns the loss along one filter-normalized direction, one curve per run."""
    figure = new_figure(3.4)
    axes = figure.subplots()
    quiet(axes, "LOSS ALONG ONE FILTER-NORMALIZED DIRECTION")
    for one, style in zip(found, _styles(found), strict=True):
        axes.plot(one.surface.axis, _capped(one.surface.line), **style)
    axes.set_yscale("log")
    log_ticks(axes.yaxis)
    axes.set_xlabel("distance, in norms of each filter")
    axes.set_ylabel("test loss (nats)")
    _legend(figure, found)
    text = "Test loss of the trained models along one random, filter-normalized direction"
    texts = [f"{one.label} {one.surface.line.max():.3g}" for one in found]
    alt = f"{text}. Highest loss in nats: {first_texts(texts)}."
    return Picture("line", figure, "Loss along one direction", f"{text}, one curve per run.", alt)


def contours_figure(found: Sequence[Landscape]) -> Picture:
    """Returns contours of the loss over two directions, one panel per run, with common levels."""
    figure, panels, (low, high) = _panels(found, sharex=True, sharey=True)
    levels = np.geomspace(low, high, LEVELS)
    scale = LogNorm(low, high)
    for axes, one, plane, label in panels:
        axis = one.surface.axis
        drawn = axes.contourf(axis, axis, plane, levels, cmap="viridis", norm=scale)
        axes.contour(axis, axis, plane, levels, colors="white", linewidths=0.5, norm=scale)
        axes.plot(0, 0, "+", color="white", markersize=8)
        quiet(axes, f"{label}\n{rounded(one.surface.center, 3)} at +")
        axes.grid(visible=False)
        ends = (axis[0], 0.0, axis[-1])
        axes.set(aspect="equal", xticks=ends, yticks=ends)
        if numbers := axes.get_xticklabels():  # panels above others have none
            numbers[0].set_horizontalalignment("left")  # clear of those of the next panel
            numbers[-1].set_horizontalalignment("right")
    rows = -(-len(found) // COLUMNS)
    drawn_on = [axes for axes, *_ in panels]
    bar = figure.colorbar(drawn, ax=drawn_on, shrink=0.8, aspect=20 * rows, format="%.3g")
    bar.outline.set_visible(False)
    bar.set_label("test loss (nats)", fontsize=TEXT_SIZE, color=INK)
    bar.ax.tick_params(labelsize=TEXT_SIZE, labelcolor=INK)
    text = "Contours of the test loss around each trained model over two random directions"
    texts = [f"{one.label} {rounded(one.surface.center, 3)}" for one in found]
    caption = f"{text}; the cross is the model, and all panels share their levels."
    alt = f"{text}. Loss of the model in nats: {first_texts(texts)}."
    return Picture("contours", figure, "Contours of the loss", caption, alt)


def surface_figure(found: Sequence[Landscape]) -> Picture:
    """Returns the planes as surfaces in three dimensions; the height is the logarithmic loss."""
    figure, panels, (low, high) = _panels(found, subplot_kw={"projection": "3d"})
    ticks = [tick for tick in TICKS if low <= tick <= high]
    limits = np.log10([low, high])
    for axes, one, plane, label in panels:
        axes.plot_surface(
            *np.meshgrid(one.surface.axis, one.surface.axis),
            np.log10(plane),
            cmap="viridis",
            vmin=limits[0],
            vmax=limits[1],
            rstride=1,
            cstride=1,
            linewidth=0.2,
            edgecolor="white",
        )
        axes.set_zlim(*limits)
        axes.set_zticks(np.log10(ticks), [f"{tick:g}" for tick in ticks])
        axes.set_title(label, fontsize=TEXT_SIZE, color=INK)
        ends = (one.surface.axis[0], 0.0, one.surface.axis[-1])
        axes.set_xticks(ends)
        axes.set_yticks(ends)
        axes.tick_params(labelsize=TEXT_SIZE - 2, labelcolor=INK, pad=-2)
        axes.set_box_aspect((1, 1, 0.8), zoom=0.9)
    text = "Test loss around each trained model over two random directions, as a surface"
    texts = [f"{one.label} {one.surface.plane.max():.3g}" for one in found]
    alt = f"{text}. Highest loss in nats: {first_texts(texts)}."
    caption = f"{text}; the height is logarithmic."
    return Picture("surface", figure, "Surface of the loss", caption, alt)


# Axes, and what is drawn on them: a landscape, its plane, and its label.
Panel = tuple[Any, Landscape, Array, str]


def _panels(
    found: Sequence[Landscape], **options: Any
) -> tuple[Figure, list[Panel], tuple[float, float]]:
    """Returns a figure with one panel per run, and the lowest and highest loss that they show."""
    count = len(found)
    columns = 2 if count == 4 else min(COLUMNS, count)  # four make a square
    rows = -(-count // columns)
    height = 0.7 + rows * (WIDTH / columns if columns > 1 else 5.0)
    figure = new_figure(height, "LOSS AROUND THE TRAINED MODEL")
    grid = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for axes in grid[count:]:
        axes.remove()
    capped = [_capped(one.surface.plane) for one in found]
    low = max(min(float(plane.min()) for plane in capped), 1e-4)
    high = max(float(plane.max()) for plane in capped)
    planes = [np.maximum(plane, low) for plane in capped]
    labels = fit([one.label for one in found], (WIDTH - COLOR_BAR) / columns, TITLE_SIZE)
    panels = list(zip(grid[:count], found, planes, labels, strict=True))
    return figure, panels, (low, max(high, 1.01 * low))
