"""Curves over the epochs: accuracy, loss and learning rate of one run or of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kerasnorm.engines.schedule import has_open_end, learning_rates
from kerasnorm.plots.labels import run_labels
from kerasnorm.plots.style import (
    FAINT,
    INK,
    TEXT_SIZE,
    Picture,
    band,
    draw_legend,
    first_texts,
    legend_height,
    marked_styles,
    new_figure,
    quiet,
)
from kerasnorm.progress import rounded

if TYPE_CHECKING:
    from kerasnorm.training.run import Run
    from kerasnorm.training.run_folder import Row

PANEL_HEIGHT = 3.3  # inches
SHADE = 0.16  # opacity of the band around a curve
MOST_FINAL_VALUES = 14  # more of them would not fit beside the axes
LINE_HEIGHT = 0.052  # height of one final value, as a share of the axes' height
# Losses above this many times the median leave the panel, so that they do not squeeze the rest.
SPIKE = 4.0
DASHES = (0, (3, 2))  # line style of validation curves


@dataclass(frozen=True)
class _Measure:
    """A column of the history and how it is shown."""

    name: str
    unit: str
    axis: str
    factor: float
    digits: int


_ACCURACY = _Measure("accuracy", "%", "accuracy (%)", 100.0, 1)
_LOSS = _Measure("loss", "nats", "cross-entropy (nats)", 1.0, 3)


def _values(history: "Sequence[Row]", name: str) -> NDArray[np.float64]:
    """Returns a column of a history, shape (epochs,), NaN where it has no value."""
    values = [row.get(name) for row in history]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _measure_figure(
    measure: _Measure,
    runs: "Sequence[Run]",
    *,
    labels: Sequence[str] = (),
    spreads: "Sequence[Sequence[Row]]" = (),
) -> Picture:
    """Returns a measure of training and test images side by side, one curve per run.

    That of the validation images of a run that has some is dashed beside that of the test images.
    `spreads` are half-heights that are shaded around the curves, a history for each run.
    """
    name, factor, labels = measure.name, measure.factor, labels or run_labels(runs)
    styles = _styles(runs)
    has_validation = any(np.isfinite(_values(run.history, f"val_{name}")).any() for run in runs)
    handles, shown = list(styles), list(labels)
    if has_validation:
        handles.append({"color": FAINT, "linewidth": 1.1, "linestyle": DASHES})
        shown.append("validation")
    figure = new_figure(PANEL_HEIGHT + legend_height(shown))
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    alpha = SHADE * min(1.0, 4 / max(len(runs), 1))  # many shades would hide the curves
    for axes, part, word in ((left, "train", "TRAINING"), (right, "test", "TEST")):
        quiet(axes, f"{word} {name.upper()}")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(_whole_epochs())
        for run, style in zip(runs, styles, strict=True):
            epochs = _drawn_epochs(run)
            axes.plot(epochs, factor * _drawn(_values(run.history, f"{part}_{name}")), **style)
            if has_validation and part == "test":
                dashed = style | {"linestyle": DASHES, "linewidth": 1.1, "marker": ""}
                axes.plot(epochs, factor * _drawn(_values(run.history, f"val_{name}")), **dashed)
        for run, half, style in zip(runs, spreads, styles, strict=False):
            if half:
                low, high = (factor * _drawn(end) for end in _band(run, half, f"{part}_{name}"))
                color, epochs = style["color"], _drawn_epochs(run)
                axes.fill_between(epochs, low, high, color=color, alpha=alpha, linewidth=0)
    left.set_ylabel(measure.axis)
    last = max((run.history[-1]["epoch"] or 1 for run in runs if run.history), default=1)
    left.set_xlim(*((1.0, last) if last > 1 else (0.5, 1.5)))
    left.set_ylim(*_limits(runs, measure, spreads))
    if len(runs) <= MOST_FINAL_VALUES:
        for axes, part in ((left, "train"), (right, "test")):
            ends = [factor * _values(run.history[-1:], f"{part}_{name}") for run in runs]
            _annotate_ends(axes, ends, [style["color"] for style in styles], measure.digits)
    draw_legend(figure, handles, shown)
    ends = [_values(run.history[-1:], f"test_{name}") for run in runs]
    texts = [
        f"{label} {rounded(factor * end[0], measure.digits)} {measure.unit}"
        for label, end in zip(labels, ends, strict=True)
        if end.size
    ]
    text = f"Training and test {name} over the epochs, side by side"
    return Picture(
        name,
        figure,
        f"Training and test {name}",
        f"{text}, one curve per run{'; validation is dashed' if has_validation else ''}.",
        f"{text}. Test {name} after the last epoch: {first_texts(texts) or 'none'}.",
    )


accuracy_figure = partial(_measure_figure, _ACCURACY)
loss_figure = partial(_measure_figure, _LOSS)


def _drawn(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the values of a curve; twice that of an epoch alone, which is drawn as a level."""
    return values.repeat(2) if len(values) == 1 else values


def _drawn_epochs(run: "Run") -> NDArray[np.float64]:
    """Returns where `_drawn` values are drawn: an epoch alone is half an epoch wide."""
    epochs = _drawn(_values(run.history, "epoch"))
    return epochs + np.array([-0.25, 0.25]) if len(run.history) == 1 else epochs


def _band(run: "Run", half: "Sequence[Row]", name: str) -> tuple[NDArray[np.float64], ...]:
    """Returns the lower and the upper edge of the band around a curve."""
    most = 1.0 if name.endswith("accuracy") else np.inf
    return band(_values(run.history, name), _values(half, name), most)


def _styles(runs: "Sequence[Run]") -> list[dict[str, Any]]:
    """Returns the properties of `marked_styles`, with markers at some of the epochs."""
    common = {"linewidth": 1.6, "markersize": 4.0, "markerfacecolor": "white"}
    return [
        style | common | {"markevery": max(1, len(run.history) // 20)}
        for run, style in zip(runs, marked_styles([r.config.model.norm for r in runs]), strict=True)
    ]


def _whole_epochs() -> MaxNLocator:
    return MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


def _limits(
    runs: "Sequence[Run]", measure: _Measure, spreads: "Sequence[Sequence[Row]]"
) -> tuple[float, float]:
    """Returns the range of all curves and bands, with room; multiples of 5 in percent."""
    names = [f"{part}_{measure.name}" for part in ("train", "val", "test")]
    shown = [_values(run.history, name) for run in runs for name in names]
    for run, half in zip(runs, spreads, strict=False):
        for name in names if half else ():
            shown += _band(run, half, name)
    values = measure.factor * np.concatenate([np.empty(0), *shown])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 100.0 if measure is _ACCURACY else 1.0
    low, high = float(values.min()), float(values.max())
    if measure is _ACCURACY:
        return max(0.0, 5 * np.floor(low / 5 - 0.2)), min(100.0, 5 * np.ceil(high / 5 + 0.2))
    high = min(high, SPIKE * float(np.median(values)))
    room = 0.05 * (high - low) or 0.1 * high or 0.1
    return max(0.0, low - room), high + room


def _annotate_ends(
    axes: Axes, values: Sequence[NDArray[np.float64]], colors: Sequence[str], digits: int
) -> None:
    """Writes each curve's last value, if it has one, right of the axes, apart from one another."""
    low, high = axes.get_ylim()
    ends: dict[tuple[str, str], float] = {}  # text and color → height, so that none comes twice
    for value, color in zip(values, colors, strict=True):
        if value.size and np.isfinite(value[0]):
            ends[rounded(value[0], digits), color] = float(value[0])
    texts = sorted(ends, key=lambda key: ends[key])
    heights = [min(max(ends[key], low), high) for key in texts]
    heights = spread_labels(heights, LINE_HEIGHT * (high - low), low, high)
    for (text, color), height in zip(texts, heights, strict=True):
        axes.annotate(
            text,
            (axes.get_xlim()[1], height),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=TEXT_SIZE,
            color=color,
            annotation_clip=False,
        )


def spread_labels(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves sorted values to stand at least `gap` apart and, where they fit, in `low` to `high`.

    They move as little as they can, in least squares: those that would touch become a stack around
    their mean.
    """
    from scipy.optimize import isotonic_regression  # takes a part of a second to import

    stack = gap * np.arange(len(values))  # places of values that all touch, above the lowest
    moved = isotonic_regression(values - stack).x if values else stack
    return list(np.clip(moved, low, high - gap * (len(values) - 1)) + stack)


def learning_rate_figure(runs: "Sequence[Run]") -> Picture:
    """Returns the learning rate over the epochs, one curve for all runs with the same rates."""
    groups: dict[tuple[int, bytes], list[int]] = {}
    rates: list[NDArray[np.float64]] = []
    for index, run in enumerate(runs):
        steps, train = int(run.metrics["steps_per_epoch"]), run.config.train
        taken = _values(run.history, "lr").repeat(steps)
        planned = learning_rates(train, train.epochs * steps)[: len(taken)]
        # A callback may change a constant rate, and the history holds that of every epoch.
        is_planned = not has_open_end(train) or np.allclose(taken, planned, rtol=1e-6)
        rates.append(planned if is_planned else taken)
        groups.setdefault((steps, rates[-1].tobytes()), []).append(index)
    labels = _group_labels(run_labels(runs), list(groups.values()))
    figure = new_figure(2.8 + legend_height(labels))
    axes = figure.subplots()
    quiet(axes, "LEARNING RATE")
    styles = _styles([runs[members[0]] for members in groups.values()])
    for style, (steps, _), members in zip(styles, groups, groups.values(), strict=True):
        if len({runs[index].config.model.norm for index in members}) > 1:
            style |= {"color": INK}
        rate = rates[members[0]]
        style |= {"markevery": max(1, len(rate) // 12)}
        if len(rate) == 1:  # a line of one point needs a marker to be seen
            style["marker"] = style["marker"] or "."
        axes.plot((np.arange(len(rate)) + 0.5) / steps, rate, **style)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    axes.xaxis.set_major_locator(_whole_epochs())
    axes.set_xlim(0, max((len(run.history) for run in runs), default=1) or 1)
    axes.set_ylim(bottom=0)
    draw_legend(figure, list(axes.lines), labels)
    highest = [
        f"{label} {rates[members[0]].max(initial=0):g}"
        for label, members in zip(labels, groups.values(), strict=True)
    ]
    text = "Learning rate over the epochs, one curve per schedule"
    alt = f"{text}. Highest rate: {first_texts(highest) or 'none'}."
    return Picture("learning_rate", figure, "Learning rate", f"{text}.", alt)


def _group_labels(labels: Sequence[str], groups: Sequence[Sequence[int]]) -> list[str]:
    if len(groups) == 1 and len(labels) > 3:
        return ["all runs"]
    texts = (dict.fromkeys(labels[index] for index in members) for members in groups)
    return [" · ".join(list(text)[:3]) + (" · …" if len(text) > 3 else "") for text in texts]
