"""The picture of a study one at a time: what each choice alone does to the base."""

from collections.abc import Sequence
from itertools import groupby
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kerasnorm.norms import NORMS
from kerasnorm.plots.style import FAINT, INK, TEXT_SIZE, new_figure, quiet, title
from kerasnorm.study.ablation import Lever
from kerasnorm.study.labels import change_text, group_label, measure_text
from kerasnorm.study.summary import Summary

ROW = 0.27  # inches of a lever
PANEL = 0.42  # inches of a norm's heading
MARGIN = 0.9  # inches of title and axis
# A difference beyond this many times the median one, and a point, leaves the panel as an arrow:
# one choice that ruins the training must not squeeze the others together.
FAR = 20.0


def levers_figure(summary: Summary) -> Figure:
    """Returns the difference that each lever makes: a row a lever, a dot a seed, a panel a norm.

    Args:
        summary: Of a study one at a time, with one lever at least.
    """
    panels = [list(items) for _, items in groupby(summary.levers, lambda i: (i.norm, i.backend))]
    figure = new_figure(MARGIN + PANEL * len(panels) + ROW * len(summary.levers))
    title(figure, "ONE CHOICE CHANGED ALONE, AGAINST THE BASE")
    column = figure.subplots(
        len(panels),
        sharex=True,
        squeeze=False,
        gridspec_kw={"height_ratios": [len(items) for items in panels]},
    )[:, 0]
    limits = _limits(summary.levers)
    for axes, items in zip(column, panels, strict=True):
        quiet(axes, group_label(items[0].base, summary.groups))
        axes.grid(visible=False, axis="y")
        axes.axvline(0.0, color=FAINT, linewidth=1.2)
        for place, item in enumerate(items):
            _draw(axes, item, place, limits)
        axes.set_yticks(range(len(items)), [change_text(item) for item in items])
        axes.set_ylim(len(items) - 0.5, -0.5)
        axes.set_xlim(*limits)
    column[-1].set_xlabel(_axis_text(summary.levers, limits))
    return figure


def _axis_text(levers: Sequence[Lever], limits: tuple[float, float]) -> str:
    text = f"difference in {measure_text(levers)} (points)\na dot a seed, the bar their mean"
    if any(item.spread.low is not None for item in levers):
        text += ", the line its 95 % interval"
    points = [point for item in levers for point in _points(item)]
    is_cut = min(points) < limits[0] or max(points) > limits[1]
    return text + ("; arrow: beyond" if is_cut else "")


def _points(lever: Lever) -> list[float]:
    return [100 * value for value in lever.differences]


def _limits(levers: Sequence[Lever]) -> tuple[float, float]:
    """Returns the range of all seeds and zero with room; an interval may leave it."""
    far = max(1.0, FAR * median(abs(100 * item.spread.mean) for item in levers))
    points = [point for item in levers for point in _points(item) if abs(point) <= far]
    low, high = min([0.0, *points]), max([0.0, *points])
    room = max(0.1, 0.06 * (high - low))
    return low - room, high + room


def _draw(axes: Axes, lever: Lever, place: int, limits: tuple[float, float]) -> None:
    color = NORMS[lever.norm].color
    found = lever.spread
    if found.low is not None and found.high is not None:
        ends = [100 * found.low, 100 * found.high]
        axes.plot(ends, [place, place], color=color, linewidth=1.2, alpha=0.6)
    mean = 100 * found.mean
    axes.plot([mean, mean], [place - 0.3, place + 0.3], color=color, linewidth=2.2)
    points = _points(lever)
    axes.plot(points, [place] * len(points), "o", color=color, markersize=5, alpha=0.75)
    for end, marker, is_beyond in (
        (limits[0], "<", min(points) < limits[0]),
        (limits[1], ">", max(points) > limits[1]),
    ):
        if is_beyond:
            axes.plot(end, place, marker, color=color, markersize=7, clip_on=False)
    axes.annotate(f"{mean:+.2f}", (1.01, place), xycoords=("axes fraction", "data"), va="center",
                  fontsize=TEXT_SIZE, color=INK, annotation_clip=False)  # fmt: skip
