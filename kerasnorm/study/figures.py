"""Pictures of a study: means over seeds with their spread, and every seed as a dot."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from kerasnorm.norms import NORMS
from kerasnorm.plots.curves import PANEL_HEIGHT, SHADE, accuracy_figure, loss_figure
from kerasnorm.plots.images import confusion_figure, misclassified_figure
from kerasnorm.plots.style import (
    INK,
    LEGEND_ROW,
    MARKERS,
    TEXT_SIZE,
    draw_legend,
    legend_shape,
    new_figure,
    quiet,
    save,
)
from kerasnorm.study.ablation_figures import levers_figure
from kerasnorm.study.groups import Group
from kerasnorm.study.labels import field_texts, group_label, norm_label
from kerasnorm.study.summary import Summary
from kerasnorm.training.run import COLUMNS, Row, Run

ROW = 0.34  # inches of a group in the figure of final accuracies
MOST_ARMS = 8  # norms of which mistakes and confusion are drawn
LOG_FROM = 8  # a field whose values span this factor gets a logarithmic axis
STAR_VALUES = 3  # of a field of a star from which a line says more than its levers
# Fields against which the error is shown, as the papers do.
AS_ERROR = ("batch_size",)


def draw_study(
    summary: Summary, folder: Path, test_images: Callable[[Run], NDArray[np.uint8] | None]
) -> list[Path]:
    """Writes the pictures of a study; returns their paths.

    Args:
        summary: Of its runs.
        folder: Where to, made if it is missing.
        test_images: Returns a run's test images, raw, shape (N, H, W, C); where it returns None
            the misclassified ones are not drawn.
    """
    figures = {"levers": levers_figure(summary)} if summary.levers else {}
    figures |= {
        "accuracy": curves_figure(summary.bases, "accuracy"),
        "loss": curves_figure(summary.bases, "loss"),
        "final": final_figure(summary),
    }
    for name in numeric_axes(summary):
        figures[f"against-{name}"] = against_figure(summary, name)
    for group in summary.arms[:MOST_ARMS]:
        name = file_name(group, summary)
        figures[f"confusion-{name}"] = confusion_figure(group.first).figure
        if (images := test_images(group.first)) is not None:
            figures[f"misclassified-{name}"] = _mistakes_figure(group, images)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def file_name(group: Group, summary: Summary) -> str:
    """Returns what a norm's pictures are called: "ln-element" where ln has several groups."""
    values = [str(value) for name, value in group.own.items() if name in summary.axes]
    return "-".join([group.norm, *values])


def _mistakes_figure(group: Group, images: NDArray[np.uint8]) -> Figure:
    run = group.first
    label = ", ".join([norm_label(group.norm), *field_texts(group.own)])
    right = 100 * run.metrics["test_accuracy"]
    heading = f"MISCLASSIFIED: {label}, seed {run.config.train.seed}, {right:.2f} % right"
    return misclassified_figure(
        images, run.metrics["misclassified"], run.metrics["class_names"], heading
    ).figure


def curves_figure(groups: Sequence[Group], measure: str) -> Figure:
    """Returns training and test accuracy or loss side by side: means, std over the seeds shaded.

    Args:
        groups: Of a study; one curve each.
        measure: "accuracy" or "loss".
    """
    means = [_mean_run(group) for group in groups]
    labels = [f"{group_label(group, groups)} (n {len(group.runs)})" for group in groups]
    spreads = [_rows(group, np.std, ddof=1) if len(group.runs) > 1 else () for group in groups]
    draw = accuracy_figure if measure == "accuracy" else loss_figure
    return draw(means, labels=labels, spreads=spreads).figure


def _mean_run(group: Group) -> Run:
    first = group.first
    return Run(first.path, first.config, _rows(group, np.mean), first.metrics)


def _rows(group: Group, statistic: Any, **options: Any) -> tuple[Row, ...]:
    """Returns a history of a statistic over the seeds, as long as the shortest history."""
    histories = [run.history for run in group.runs.values()]
    rows: list[Row] = []
    for same in zip(*histories, strict=False):
        row: Row = {"epoch": same[0]["epoch"]}
        for name in COLUMNS[1:]:
            values = [entry.get(name) for entry in same]
            known = [value for value in values if value is not None]
            row[name] = float(statistic(known, **options)) if len(known) == len(same) else None
        rows.append(row)
    return tuple(rows)


def final_figure(summary: Summary) -> Figure:
    """Returns the last epoch's test accuracy of each group: every seed a dot, mean, interval."""
    groups = summary.groups
    figure = new_figure(1.2 + ROW * len(groups))
    axes = figure.subplots()
    quiet(axes, "TEST ACCURACY AFTER THE LAST EPOCH")
    for place, group in enumerate(groups):
        _draw_final(axes, group, place)
    theirs = [(item, groups.index(item.group)) for item in summary.published if item.group]
    for item, place in theirs:
        value = 100 * item.values["test_accuracy"]
        axes.plot(value, place, marker="D", color="white", markeredgecolor=INK, markersize=6)
    axes.set_yticks(range(len(groups)), [group_label(group, groups) for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(*_dot_limits(summary))
    words = "test accuracy (%): a dot a seed, the bar their mean, the line its 95 % interval"
    axes.set_xlabel(words + ("; diamond: published" if theirs else ""))
    return figure


def _dot_limits(summary: Summary) -> tuple[float, float]:
    """Returns the range of all seeds with room; an interval of two seeds may leave it."""
    values = [100 * float(run.metrics["test_accuracy"]) for run in summary.runs]
    values += [100 * item.values["test_accuracy"] for item in summary.published if item.group]
    room = max(0.5, 0.35 * (max(values) - min(values)))
    return max(0.0, min(values) - room), min(100.0, max(values) + room)


def _draw_final(axes: Axes, group: Group, place: int) -> None:
    color = NORMS[group.norm].color
    values = [100 * float(run.metrics["test_accuracy"]) for run in group.runs.values()]
    found = group.spread("test_accuracy")
    assert found is not None  # every run has a test accuracy
    if found.low is not None and found.high is not None:
        ends = [100 * found.low, 100 * found.high]
        axes.plot(ends, [place, place], color=color, linewidth=1.2, alpha=0.6)
    axes.plot([100 * found.mean] * 2, [place - 0.3, place + 0.3], color=color, linewidth=2.2)
    axes.plot(values, [place] * len(values), "o", color=color, markersize=5, alpha=0.75)
    text = f"{100 * found.mean:.2f}"
    axes.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center",
                  fontsize=TEXT_SIZE, color=color, annotation_clip=False)  # fmt: skip


def numeric_axes(summary: Summary) -> list[str]:
    """Returns the varied fields whose values are numbers; of a star those of three at least."""
    found = []
    for name in summary.axes:
        values = {g.fields[name] for g in summary.along(name).groups if name in g.fields}
        are_numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        if are_numbers and len(values) >= (STAR_VALUES if summary.is_star else 1):
            found.append(name)
    return found


def against_figure(summary: Summary, name: str) -> Figure:
    """Returns accuracy, or for the batch size error, against a varied field.

    One line a norm, backend and value of the other fields; every seed a dot; std shaded. A norm
    that does not read the field is a level line.
    """
    summary = summary.along(name)
    lines = _lines(summary, name)
    labels = [group_label(groups[0], summary.groups, without=name) for groups in lines]
    columns, rows = legend_shape(labels)
    figure = new_figure(PANEL_HEIGHT + LEGEND_ROW * rows)
    axes = figure.subplots()
    is_error = name in AS_ERROR
    words = name.replace("_", " ")
    quiet(axes, f"TEST {'ERROR' if is_error else 'ACCURACY'} AGAINST {words.upper()}")
    values = sorted({float(g.fields[name]) for g in summary.groups if name in g.fields})
    _scale(axes, values)
    turns: dict[str, int] = {}
    handles = []
    for groups in lines:
        turn = turns[groups[0].norm] = turns.get(groups[0].norm, -1) + 1
        handles.append(_draw_line(axes, groups, name, is_error, turn, values))
    axes.set_xlabel(words)
    axes.set_ylabel(f"test {'error' if is_error else 'accuracy'} (%)")
    draw_legend(figure, handles, labels, columns)
    return figure


def _lines(summary: Summary, name: str) -> list[list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in summary.groups:
        rest = {k: v for k, v in group.fields.items() if k != name}
        found.setdefault(repr((group.norm, group.backend, rest)), []).append(group)
    return [sorted(gs, key=lambda g: float(g.fields.get(name, 0))) for gs in found.values()]


def _scale(axes: Axes, values: Sequence[float]) -> None:
    if values[0] > 0 and values[-1] / values[0] >= LOG_FROM:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    if len(values) <= 12:
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.set_xticks(values, [f"{value:g}" for value in values])


def _draw_line(
    axes: Axes,
    groups: Sequence[Group],
    name: str,
    is_error: bool,
    turn: int,
    values: Sequence[float],
) -> Any:
    def shown(share: float) -> float:
        return 100 * (1 - share if is_error else share)

    color = NORMS[groups[0].norm].color
    marker = MARKERS[1:][turn % (len(MARKERS) - 1)]
    style: Mapping[str, Any] = {
        "color": color,
        "linewidth": 1.6,
        "linestyle": "--" if turn else "-",
    }
    finals = [group.spread("test_accuracy") for group in groups]
    means = np.array([shown(found.mean) for found in finals if found])
    stds = np.array([100 * (found.std or 0.0) for found in finals if found])
    if name not in groups[0].fields:
        ends = [values[0], values[-1]]
        axes.fill_between(ends, means[0] - stds[0], means[0] + stds[0], color=color, alpha=SHADE,
                          linewidth=0)  # fmt: skip
        level: Mapping[str, Any] = {**style, "linestyle": ":"}
        return axes.plot(ends, [means[0]] * 2, **level)[0]
    places = [float(group.fields[name]) for group in groups]
    for place, group in zip(places, groups, strict=True):
        dots = [shown(float(run.metrics["test_accuracy"])) for run in group.runs.values()]
        axes.plot([place] * len(dots), dots, ".", color=color, alpha=0.6, markersize=5)
    axes.fill_between(places, means - stds, means + stds, color=color, alpha=SHADE, linewidth=0)
    face: Mapping[str, Any] = {"marker": marker, "markersize": 5.0, "markerfacecolor": "white"}
    return axes.plot(places, means, **style, **face)[0]
