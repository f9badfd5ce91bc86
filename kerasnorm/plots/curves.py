"""Curves over the epochs: accuracy, loss and learning rate of one run or of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kerasnorm.engines.schedule import learning_rates
from kerasnorm.norms import NORMS
from kerasnorm.plots.style import FAINT, INK, TEXT_SIZE, WIDTH, new_figure, quiet
from kerasnorm.study.labels import run_labels
from kerasnorm.training.run import Row, Run

PANEL_HEIGHT = 3.3  # inches
LEGEND_ROW = 0.2  # inches
SHADE = 0.16  # opacity of a spread
MARKERS = ("", "o", "s", "^", "D", "v", "P", "X")
MOST_FINAL_VALUES = 14  # more of them would not fit beside the axes
LINE_HEIGHT = 0.052  # of the axes' height, for one of them
# Losses above this many times the median are spikes; they leave the panel, not squeeze the rest.
SPIKE = 4.0


@dataclass(frozen=True)
class _Measure:
    """A column of the history and how it is shown."""

    name: str
    axis: str
    factor: float
    digits: int


_ACCURACY = _Measure("accuracy", "accuracy (%)", 100.0, 1)
_LOSS = _Measure("loss", "cross-entropy (nats)", 1.0, 3)


def accuracy_figure(
    runs: Sequence[Run],
    *,
    labels: Sequence[str] = (),
    spreads: Sequence[Sequence[Row]] = (),
) -> Figure:
    """Returns training and test accuracy side by side, one curve a run.

    Validation accuracy, where a run has it, is dashed beside its test accuracy.

    Args:
        runs: One curve each.
        labels: One a run; by default what tells the runs apart.
        spreads: For each run a history of half-heights, shaded around its curves; or nothing.
    """
    return _pair(runs, _ACCURACY, labels or run_labels(runs), spreads)


def loss_figure(
    runs: Sequence[Run],
    *,
    labels: Sequence[str] = (),
    spreads: Sequence[Sequence[Row]] = (),
) -> Figure:
    """Returns training and test loss side by side, as `accuracy_figure` does accuracy."""
    return _pair(runs, _LOSS, labels or run_labels(runs), spreads)


def column(run: Run, name: str) -> NDArray[np.float64]:
    """Returns a column of the run's history, shape (epochs,), NaN where it has no value."""
    return _values(run.history, name)


def _values(history: Sequence[Row], name: str) -> NDArray[np.float64]:
    values = [row.get(name) for row in history]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _pair(
    runs: Sequence[Run],
    measure: _Measure,
    labels: Sequence[str],
    spreads: Sequence[Sequence[Row]],
) -> Figure:
    styles = _styles(runs)
    has_validation = any(np.isfinite(column(run, f"val_{measure.name}")).any() for run in runs)
    handles = _handles(styles, has_validation)
    labels = [*labels, "validation"] if has_validation else labels
    columns, rows = legend_shape(labels)
    figure = new_figure(PANEL_HEIGHT + LEGEND_ROW * rows)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, part, word in ((left, "train", "TRAINING"), (right, "test", "TEST")):
        quiet(axes, f"{word} {measure.name.upper()}")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(_whole_epochs())
        for run, style in zip(runs, styles, strict=True):
            _draw(axes, run, f"{part}_{measure.name}", measure, style)
        for run, spread_ in zip(runs, spreads, strict=False):
            alpha = SHADE * min(1.0, 4 / len(runs))  # many shades would hide the curves
            _shade(axes, run, spread_, f"{part}_{measure.name}", measure, alpha)
    if has_validation:
        for run, style in zip(runs, styles, strict=True):
            dashed = style | {"linestyle": (0, (3, 2)), "linewidth": 1.1, "marker": ""}
            _draw(right, run, f"val_{measure.name}", measure, dashed)
    left.set_ylabel(measure.axis)
    left.set_xlim(*_epoch_limits(runs))
    left.set_ylim(*_limits(runs, measure, spreads))
    if len(runs) <= MOST_FINAL_VALUES:
        _annotate_ends(left, runs, f"train_{measure.name}", measure)
        _annotate_ends(right, runs, f"test_{measure.name}", measure)
    draw_legend(figure, handles, labels, columns)
    return figure


def _styles(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns line properties: a color a norm; a marker, then an alpha, a run of that norm."""
    seen: dict[str, int] = {}
    styles: list[dict[str, Any]] = []
    for run in runs:
        norm = run.config.model.norm
        turn = seen[norm] = seen.get(norm, -1) + 1
        is_short = len(run.history) == 1  # a line of one point needs a marker to be seen
        marker = MARKERS[turn % len(MARKERS)] or ("." if is_short else "")
        alpha = max(0.35, 1.0 - 0.3 * (turn // len(MARKERS)))
        styles.append(
            {
                "color": NORMS[norm].color,
                "linewidth": 1.6,
                "alpha": alpha,
                "marker": marker,
                "markersize": 8.0 if marker == "." else 4.0,
                "markerfacecolor": NORMS[norm].color if marker == "." else "white",
                "markevery": max(1, len(run.history) // 20),
            }
        )
    return styles


def _draw(axes: Axes, run: Run, name: str, measure: _Measure, style: dict[str, Any]) -> None:
    axes.plot(column(run, "epoch"), measure.factor * column(run, name), **style)


def _shade(
    axes: Axes, run: Run, half: Sequence[Row], name: str, measure: _Measure, alpha: float
) -> None:
    if half:
        middle, height = measure.factor * column(run, name), measure.factor * _values(half, name)
        color = NORMS[run.config.model.norm].color
        low, high = middle - height, middle + height
        axes.fill_between(column(run, "epoch"), low, high, color=color, alpha=alpha, linewidth=0)


def _whole_epochs() -> MaxNLocator:
    return MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


def _epoch_limits(runs: Sequence[Run]) -> tuple[float, float]:
    last = max((len(run.history) and column(run, "epoch")[-1] for run in runs), default=1)
    return (1.0, float(last)) if last > 1 else (0.5, 1.5)


def _limits(
    runs: Sequence[Run], measure: _Measure, spreads: Sequence[Sequence[Row]]
) -> tuple[float, float]:
    """Returns the range of all curves and shades, with room; multiples of 5 in percent."""
    names = [f"{part}_{measure.name}" for part in ("train", "val", "test")]
    columns = [column(run, name) for run in runs for name in names]
    for run, half in zip(runs, spreads, strict=False):
        for name in names if half else ():
            middle, height = column(run, name), _values(half, name)
            columns += [middle - height, middle + height]
    values = measure.factor * np.concatenate([np.empty(0), *columns])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 100.0 if measure is _ACCURACY else 1.0
    low, high = float(values.min()), float(values.max())
    if measure is _ACCURACY:
        return max(0.0, 5 * np.floor(low / 5 - 0.2)), min(100.0, 5 * np.ceil(high / 5 + 0.2))
    high = min(high, SPIKE * float(np.median(values)))
    room = 0.05 * (high - low) or 0.1 * high or 0.1
    return max(0.0, low - room), high + room


def _annotate_ends(axes: Axes, runs: Sequence[Run], name: str, measure: _Measure) -> None:
    """Writes each curve's last value to the right of the axes, apart from one another."""
    low, high = axes.get_ylim()
    ends: dict[tuple[str, str], float] = {}  # text and color, so that none comes twice
    for run in runs:
        values = measure.factor * column(run, name)
        if values.size and np.isfinite(values[-1]):
            text = f"{values[-1]:.{measure.digits}f}"
            ends[text, NORMS[run.config.model.norm].color] = float(values[-1])
    texts = sorted(ends, key=lambda key: ends[key])
    heights = spread([ends[key] for key in texts], LINE_HEIGHT * (high - low), low, high)
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


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves sorted values to stand at least `gap` apart and, where they fit, in `low` to `high`.

    Values that would touch become a stack centered on their mean; stacks that touch are merged.
    """

    def bottom(stack: Sequence[float]) -> float:
        height = gap * (len(stack) - 1)
        return min(max(sum(stack) / len(stack) - height / 2, low), high - height)

    stacks: list[list[float]] = []
    for value in values:
        stacks.append([value])
        while len(stacks) > 1 and bottom(stacks[-1]) < bottom(stacks[-2]) + gap * len(stacks[-2]):
            last = stacks.pop()
            stacks[-1].extend(last)
    return [bottom(stack) + gap * place for stack in stacks for place in range(len(stack))]


def learning_rate_figure(runs: Sequence[Run]) -> Figure:
    """Returns the learning rate over the epochs, one curve for all runs that share a schedule."""
    groups: dict[tuple[int, bytes], list[int]] = {}
    rates: list[NDArray[np.float64]] = []
    for index, run in enumerate(runs):
        steps = int(run.metrics["steps_per_epoch"])
        rates.append(learning_rates(run.config.train, run.config.train.epochs * steps))
        groups.setdefault((steps, rates[-1].tobytes()), []).append(index)
    labels = _group_labels(run_labels(runs), list(groups.values()))
    columns, rows = legend_shape(labels)
    figure = new_figure(2.8 + LEGEND_ROW * rows)
    axes = figure.subplots()
    quiet(axes, "LEARNING RATE")
    styles = _styles([runs[members[0]] for members in groups.values()])
    for style, (steps, _), members in zip(styles, groups, groups.values(), strict=True):
        if len({runs[index].config.model.norm for index in members}) > 1:
            style |= {"color": INK}
        rate = rates[members[0]]
        style |= {"markevery": max(1, len(rate) // 12), "markersize": 4.0}
        axes.plot((np.arange(len(rate)) + 0.5) / steps, rate, **style)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    axes.xaxis.set_major_locator(_whole_epochs())
    axes.set_xlim(0, max((run.config.train.epochs for run in runs), default=1))
    axes.set_ylim(bottom=0)
    draw_legend(figure, list(axes.lines), labels, columns)
    return figure


def _group_labels(labels: Sequence[str], groups: Sequence[Sequence[int]]) -> list[str]:
    if len(groups) == 1 and len(labels) > 3:
        return ["all runs"]
    texts = (dict.fromkeys(labels[index] for index in members) for members in groups)
    return [" · ".join(list(text)[:3]) + (" · …" if len(text) > 3 else "") for text in texts]


def _handles(styles: Sequence[dict[str, Any]], has_validation: bool) -> list[Line2D]:
    handles = [Line2D([], [], **style) for style in styles]
    if has_validation:
        handles.append(Line2D([], [], color=FAINT, linewidth=1.1, linestyle=(0, (3, 2))))
    return handles


def legend_shape(labels: Sequence[str]) -> tuple[int, int]:
    """Returns the columns and rows of a legend as wide as the figure."""
    if not labels:
        return 1, 0
    inches = 0.55 + 0.075 * max(map(len, labels))  # the sample line, then the letters
    columns = max(1, min(len(labels), int(WIDTH / inches)))
    return columns, -(-len(labels) // columns)


def draw_legend(
    figure: Figure, handles: Sequence[Line2D], labels: Sequence[str], columns: int
) -> None:
    """Puts a legend below the figure."""
    legend = figure.legend(
        list(handles),
        list(labels),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        borderaxespad=0.2,
        fontsize=TEXT_SIZE,
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
