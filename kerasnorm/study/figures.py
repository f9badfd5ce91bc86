"""Pictures of a study: means over the seeds with their intervals, and every seed as a dot."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from kerasnorm.data.stored import Images
from kerasnorm.norms import NORMS
from kerasnorm.plots.curves import PANEL_HEIGHT, SHADE, accuracy_figure, loss_figure
from kerasnorm.plots.images import confusion_figure, mistakes_figure
from kerasnorm.plots.labels import shown_fields, value_text, value_texts
from kerasnorm.plots.style import (
    FAINT,
    INK,
    MARKERS,
    TEXT_SIZE,
    Picture,
    band,
    draw_legend,
    first_texts,
    fit,
    legend_height,
    new_figure,
    quiet,
    repeats,
    shade,
)
from kerasnorm.progress import in_percent
from kerasnorm.study.intervals import Interval
from kerasnorm.study.sentences import arms_sentence
from kerasnorm.study.summary import Group, Summary
from kerasnorm.study.tables import (
    change_text,
    first_label,
    group_label,
    measure_text,
    nats,
    percent,
    points,
)
from kerasnorm.training.run import Run
from kerasnorm.training.run_folder import COLUMNS, Row

GROUP_ROW = 0.34  # inches of a group in the figure of final accuracies
EFFECT_ROW = 0.27  # inches of an effect in the figure of ablation effects
PANEL_HEADING = 0.42  # inches of the heading of a norm's panel in that figure
MARGIN = 0.9  # inches of its title and axis
# A difference beyond this many times the median one, and a point, leaves the panel as an arrow:
# one choice that ruins the training must not squeeze the others together.
FAR = 20.0
WIDE = 1.5  # times the range of the seeds; an interval that reaches farther is an arrow
LABEL_WIDTH = 3.0  # inches of the names beside the axes
LOG_FROM = 8  # a field whose values span this factor gets a logarithmic axis
LEAST_VALUES = 3  # of an ablation's field for which a line says more than its effects
# First words of the names of the pictures of a study.
OWN = {"accuracy", "loss", "final", "ablation", "against", "confusion", "misclassified"}
# Fields against which the error is shown, as the papers do.
AS_ERROR = ("batch_size",)
TestImages = Callable[[Run], Images | None]


def draw_study(summary: Summary, folder: Path, test_images: TestImages) -> dict[Path, Picture]:
    """Writes the pictures of a study; returns them by the path of their PNG files.

    Pictures of an earlier plan are removed, but none of misclassified images while images are
    missing, because it could not be drawn again. `test_images` returns the raw test images of a
    run, (N, H, W, C), or None where they are missing.
    """
    pictures = [effects_figure(summary)] if summary.effects else []
    pictures += [curves_figure(summary, measure) for measure in ("accuracy", "loss")]
    pictures.append(final_figure(summary))
    pictures += [against_figure(summary, name) for name in numeric_axes(summary)]
    found = {picture.save(folder): picture for picture in pictures}
    is_complete = True
    for group in summary.shown_groups:
        images = test_images(group.first)
        found |= {picture.save(folder): picture for picture in _mistakes(group, summary, images)}
        if images is None:
            is_complete = False
            kept = _kept_mistakes(group, summary)
            path = folder / f"{kept.name}.png"
            found |= {path: kept} if path.is_file() else {}
    for path in {*folder.glob("*.png")} - {*found}:
        kind = path.stem.partition("-")[0]
        if kind in OWN and (is_complete or kind != "misclassified"):
            path.unlink()
    return found


def file_name(group: Group, summary: Summary) -> str:
    """Returns a group's part of file names: "ln-element" where ln has several groups."""
    fields = shown_fields(group.fields, [other.fields for other in summary.groups])
    values = [value_text(value) for value in fields.values()]
    if summary.one_at_a_time:  # its variants, which change different fields, may have one value
        values = [f"{name}-{value}" for name, value in zip(fields, values, strict=True)]
    parts = [group.norm, *values]
    parts += [group.backend] if len({g.backend for g in summary.groups}) > 1 else []
    return re.sub(r"[^\w.-]+", "-", "-".join(parts))


def _mistakes(group: Group, summary: Summary, images: Images | None) -> list[Picture]:
    """Returns the confusion matrix and, with the test images, the misclassified ones."""
    label = first_label(group, summary)
    found = [confusion_figure(group.first, label)]
    found += [] if images is None else [mistakes_figure(group.first, images, label)]
    name, more = file_name(group, summary), len(summary.bases) - len(summary.shown_groups)
    left_out = f" {more} other variants have no such figure; kerasnorm plot RUN draws it."
    return [
        replace(
            picture,
            name=f"{picture.name}-{name}",
            caption=picture.caption + (left_out if more else ""),
        )
        for picture in found
    ]


def _kept_mistakes(group: Group, summary: Summary) -> Picture:
    """Returns the words for a picture of misclassified images that an earlier report drew."""
    name = file_name(group, summary)
    text = f"Misclassified test images of {first_label(group, summary)}"
    caption = "Drawn by an earlier report; the images are not at hand now."
    return Picture(f"misclassified-{name}", Figure(), text, caption, f"{text}. {caption}")


def curves_figure(summary: Summary, measure: str) -> Picture:
    """Returns training and test accuracy or loss side by side: means over the seeds, std shaded."""
    groups = summary.bases
    means = [replace(group.first, history=_rows(group, np.mean)) for group in groups]
    labels = [f"{group_label(group, summary)} (n {len(group.runs)})" for group in groups]
    stds = [_rows(group, np.std, ddof=1) if len(group.runs) > 1 else () for group in groups]
    draw = accuracy_figure if measure == "accuracy" else loss_figure
    text = f"Training and test {measure} over the epochs, side by side"
    values = _values(summary, groups, f"test_{measure}")
    return replace(
        draw(means, labels=labels, spreads=stds),
        caption=_caption("Means over the seeds, one standard deviation shaded.", summary),
        alt=f"{text}. Test {measure} after the last epoch: {values}.",
    )


def _caption(text: str, summary: Summary) -> str:
    return f"{text} {arms_sentence(summary)}".strip()


def _rows(group: Group, statistic: Any, **options: Any) -> tuple[Row, ...]:
    """Returns a history of a statistic over the seeds, as long as the shortest history."""
    rows: list[Row] = []
    for same in zip(*(run.history for run in group.runs.values()), strict=False):
        row: Row = {"epoch": same[0]["epoch"]}
        for name in COLUMNS[1:]:
            known = [value for entry in same if (value := entry.get(name)) is not None]
            row[name] = float(statistic(known, **options)) if len(known) == len(same) else None
        rows.append(row)
    return tuple(rows)


def _values(summary: Summary, groups: Sequence[Group], measure: str = "test_accuracy") -> str:
    def text(group: Group) -> str:
        found = group.interval(measure)
        value = nats(found) if measure.endswith("loss") else f"{percent(found)} %"
        return f"{group_label(group, summary)} {value}"

    return first_texts([text(group) for group in groups])


def final_figure(summary: Summary) -> Picture:
    """Returns each group's test accuracy after the last epoch: every seed, mean and interval."""
    groups, failures = summary.groups, summary.failures
    rows = len(groups) + len(failures)
    figure = new_figure(1.2 + GROUP_ROW * rows)
    axes = figure.subplots()
    quiet(axes, "TEST ACCURACY AFTER THE LAST EPOCH")
    limits, is_cut, has_interval = _final_limits(summary), False, False
    for place, group in enumerate(groups):
        found = _in_percent(group.interval("test_accuracy"))
        has_interval |= found.low is not None
        is_cut |= _draw_row(axes, place, _percents(group), found, limits, NORMS[group.norm].color)
        words = in_percent(group.mean("test_accuracy"))  # as in the table, to the last digit
        _annotate(axes, place, words, NORMS[group.norm].color)
    published = [(item, groups.index(item.group)) for item in summary.published if item.group]
    for item, place in published:
        value = 100 * item.values["test_accuracy"]
        axes.plot(value, place, marker="D", color="white", markeredgecolor=INK, markersize=6)
    for place, failure in enumerate(failures, len(groups)):
        words = f"{failure.count} of {failure.planned} runs failed"
        axes.annotate(words, (0.5, place), xycoords=("axes fraction", "data"), ha="center",
                      va="center", fontsize=TEXT_SIZE, color=INK)  # fmt: skip
    labels = [group_label(row, summary) for row in summary.shown_rows]
    axes.set_yticks(range(rows), fit(labels, LABEL_WIDTH))
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlim(limits)
    words = "test accuracy (%)\none dot per seed, the bar is their mean"
    words += ", the line its 95 % interval" if has_interval else ""
    words += "; arrow: beyond" if is_cut else ""
    axes.set_xlabel(words + ("; diamond: published" if published else ""))
    text = "Test accuracy after the last epoch"
    return Picture(
        "final",
        figure,
        text,
        _caption("One dot per seed.", summary),
        f"{text}, one dot per seed. Means: {_values(summary, groups)}.",
    )


def _percents(group: Group) -> list[float]:
    return [100 * float(run.metrics["test_accuracy"]) for run in group.runs.values()]


def _final_limits(summary: Summary) -> tuple[float, float]:
    """Returns a range of percentages that has all seeds, and the intervals unless they are wide."""
    values = [100 * float(run.metrics["test_accuracy"]) for run in summary.runs]
    values += [100 * item.values["test_accuracy"] for item in summary.published if item.group]
    room = max(0.5, WIDE * (max(values) - min(values)))
    low, high = min(values) - room, max(values) + room
    found = [_in_percent(group.interval("test_accuracy")) for group in summary.groups]
    ends = [end for one in found for end in (one.low, one.high) if end is not None]
    inside = [*values, *(end for end in ends if low <= end <= high)]
    small = 0.04 * (max(inside) - min(inside)) or 0.5
    return max(0.0, min(inside) - small), min(100.0, max(inside) + small)


def _draw_row(
    axes: Axes,
    place: int,
    values: Sequence[float],
    found: Interval,
    limits: tuple[float, float],
    color: str,
) -> bool:
    """Draws a row of dots with their mean and interval; returns whether it goes beyond the limits.

    What lies beyond is an arrow at the limit.
    """
    low, high = limits
    if found.low is not None and found.high is not None:
        ends = np.clip([found.low, found.high], low, high)
        axes.plot(ends, [place, place], color=color, linewidth=1.2, alpha=0.6)
    axes.plot([found.mean] * 2, [place - 0.3, place + 0.3], color=color, linewidth=2.2)
    dots = [value for value in values if low <= value <= high]  # whole ones, also at the limits
    axes.plot(dots, [place] * len(dots), "o", color=color, markersize=5, alpha=0.75, clip_on=False)
    known = [*values, *(end for end in (found.low, found.high) if end is not None)]
    inset = 0.008 * (high - low)  # half an arrow
    beyond = [(low + inset, "<")] if min(known) < low else []
    beyond += [(high - inset, ">")] if max(known) > high else []
    for end, marker in beyond:
        axes.plot(end, place, marker, color=color, markersize=7)
    return bool(beyond)


def _in_percent(found: Interval | None) -> Interval:
    """Returns the interval of the table, of shares of 1, in percent or points."""
    assert found is not None
    low, high = (None if end is None else 100 * end for end in (found.low, found.high))
    return Interval(found.n, 100 * found.mean, low=low, high=high)


def _annotate(axes: Axes, place: int, text: str, color: str) -> None:
    axes.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center",
                  fontsize=TEXT_SIZE, color=color, annotation_clip=False)  # fmt: skip


def effects_figure(summary: Summary) -> Picture:
    """Returns the ablation effects: one panel per norm, one row per effect, one dot per seed."""
    effects, measure = summary.effects, measure_text(summary)
    panels = [list(items) for _, items in groupby(effects, lambda i: (i.base.norm, i.base.backend))]
    height = MARGIN + PANEL_HEADING * len(panels) + EFFECT_ROW * len(effects)
    figure = new_figure(height, "ONE CHOICE CHANGED ALONE, AGAINST THE BASE")
    column = figure.subplots(
        len(panels),
        sharex=True,
        squeeze=False,
        gridspec_kw={"height_ratios": [len(items) for items in panels]},
    )[:, 0]
    far = max(1.0, FAR * median(abs(100 * item.interval.mean) for item in effects))
    dots = [100 * value for item in effects for value in item.values]
    near = [0.0, *(dot for dot in dots if abs(dot) <= far)]
    room = max(0.1, 0.06 * (max(near) - min(near)))
    left, right = min(near) - room, max(near) + room
    is_cut = False
    for axes, items in zip(column, panels, strict=True):
        quiet(axes, group_label(items[0].base, summary))
        axes.grid(visible=False, axis="y")
        axes.axvline(0.0, color=FAINT, linewidth=1.2)
        for place, item in enumerate(items):
            values = [100 * value for value in item.values]
            found, color = _in_percent(item.interval), NORMS[item.base.norm].color
            is_cut |= _draw_row(axes, place, values, found, (left, right), color)
            _annotate(axes, place, points(item.interval, summary.margin), INK)
        labels = fit([change_text(item) for item in items], LABEL_WIDTH)
        axes.set_yticks(range(len(items)), labels)
        axes.set_ylim(len(items) - 0.5, -0.5)
        axes.set_xlim(left, right)
    words = f"difference in {measure} (points)\none dot per seed, the bar is their mean"
    if any(item.interval.low is not None for item in effects):
        words += ", the line its corrected interval"
    column[-1].set_xlabel(words + ("; arrow: beyond" if is_cut else ""))
    text = f"What one choice changed alone does to {measure}"
    means = [
        f"{group_label(item.base, summary)} {change_text(item)} "
        f"{points(item.interval, summary.margin)}"
        for item in effects
    ]
    return Picture(
        "ablation",
        figure,
        text,
        "One row per choice, one dot per seed: variant minus base, paired by seed.",
        f"{text}, one row per choice, one dot per seed. Mean differences in points: "
        f"{first_texts(means)}.",
    )


def numeric_axes(summary: Summary) -> list[str]:
    """Returns the varied fields with two numbers or more; in an ablation with at least three."""
    found = []
    for name in summary.axes:
        values = {g.fields[name] for g in summary.along(name).groups if name in g.fields}
        are_numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        if are_numbers and len(values) >= (LEAST_VALUES if summary.one_at_a_time else 2):
            found.append(name)
    return found


def against_figure(summary: Summary, name: str) -> Picture:
    """Returns accuracy, or error, against a varied field; one dot per seed, std shaded.

    There is one line per norm, backend and value of the other fields. A norm that does not read
    the field is a horizontal line.
    """
    summary = summary.along(name)
    lines = _lines(summary, name)
    labels = [group_label(groups[0], summary, without=name) for groups in lines]
    figure = new_figure(PANEL_HEIGHT + legend_height(labels))
    axes = figure.subplots()
    measure = "error" if name in AS_ERROR else "accuracy"
    words = name.replace("_", " ")
    quiet(axes, f"TEST {measure.upper()} AGAINST {words.upper()}")
    values = sorted({float(g.fields[name]) for g in summary.groups if name in g.fields})
    _scale(axes, values)
    norms = [groups[0].norm for groups in lines]
    handles = [
        _draw_line(axes, groups, name, values, (turn, norms.count(groups[0].norm)))
        for groups, turn in zip(lines, repeats(norms), strict=True)
    ]
    axes.set_xlabel(words)
    axes.set_ylabel(f"test {measure} (%)")
    draw_legend(figure, handles, labels)
    text = f"Test {measure} against {words}"
    return Picture(
        f"against-{name}",
        figure,
        text,
        _caption("One line per norm, one standard deviation shaded.", summary),
        f"{text}, one line per norm. Test accuracy: {_values(summary, summary.groups)}.",
    )


def _lines(summary: Summary, name: str) -> list[list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in summary.groups:
        rest = {k: v for k, v in group.fields.items() if k != name}
        found.setdefault(repr((group.norm, group.backend, rest)), []).append(group)
    return [sorted(gs, key=lambda g: float(g.fields.get(name, 0))) for gs in found.values()]


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Scales the axis of a varied field by its values: logarithmic where they span a wide range."""
    smallest = next((value for value in values if value > 0), math.inf)
    if values[-1] / smallest >= LOG_FROM:
        if values[0] > 0:
            axes.set_xscale("log", base=2)
        else:  # zero stands as far from the smallest value as that from ten times as much
            axes.set_xscale("symlog", linthresh=smallest)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if len(values) <= 12:
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.set_xticks(values, value_texts(values))


def _draw_line(
    axes: Axes,
    groups: Sequence[Group],
    name: str,
    values: Sequence[float],
    turn_of: tuple[int, int],
) -> Line2D:
    """Draws one line of `against_figure`; returns it for the legend.

    `turn_of` says which of the lines of its norm this is, and how many there are.
    """
    turn = turn_of[0]
    color = shade(NORMS[groups[0].norm].color, *turn_of)
    dots = [_percents(group) for group in groups]
    if name in AS_ERROR:
        dots = [[100 - percent for percent in seeds] for seeds in dots]
    is_level = name not in groups[0].fields  # the norm does not read the field
    if is_level:
        places = [values[0], values[-1]]
        found = [Interval.of(dots[0])] * 2
    else:
        places = [float(group.fields[name]) for group in groups]
        found = [Interval.of(seeds) for seeds in dots]
        for place, seeds in zip(places, dots, strict=True):
            axes.plot([place] * len(seeds), seeds, ".", color=color, alpha=0.6, markersize=5)
    means = np.array([one.mean for one in found])
    stds = np.array([one.std or 0.0 for one in found])
    axes.fill_between(places, *band(means, stds), color=color, alpha=SHADE, linewidth=0)
    (line,) = axes.plot(places, means, color=color, linewidth=1.6)
    line.set_linestyle(":" if is_level else "-")
    if not is_level:
        line.set(marker=MARKERS[1 + turn % (len(MARKERS) - 1)], markersize=5.0)
        line.set_markerfacecolor("white")
    return line
