"""Networks from inside: layers and epochs as heat maps, weights as histograms."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kerasnorm.plots.side_by_side import legend, styles, turns
from kerasnorm.plots.style import (
    GRID,
    INK,
    TEXT_SIZE,
    WIDTH,
    log_ticks,
    new_figure,
    quiet,
    small_text,
    title,
)

LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
LAYER_PANELS = (  # attribute, heading, scale
    ("activation_mean", "activation input: mean", "linear"),
    ("activation_std", "activation input: std", "log"),
    ("zero_share", "share of zeros", "share"),
    ("dead_share", "share of dead channels", "share"),
    ("gradient_norm", "gradient norm of the kernel", "log"),
    ("update_ratio", "update / weight, an epoch", "log"),
)
MAPS = (
    ("activation_std", "std of activation input"),
    ("gradient_norm", "gradient norm"),
    ("update_ratio", "update / weight"),
)


def statistics_figures(found: Sequence[Any]) -> dict[str, Figure]:
    """Returns the pictures of the insides of some runs.

    Args:
        found: `kerasnorm.explain.statistics.NetworkStatistics`s.
    """
    return {
        "layers": layers_figure(found),
        "epochs": epochs_figure(found),
        "weights": weights_figure(found),
    }


def _styles(found: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns the runs' styles, and a kind of line for each further run of the same norm."""
    places = turns(found)
    return [
        style | {"linestyle": LINES[place % len(LINES)]}
        for style, place in zip(styles(found), places, strict=True)
    ]


def layers_figure(found: Sequence[Any]) -> Figure:
    """Returns each measure over the layers after the last epoch, one curve a run."""
    figure = new_figure(5.2)
    title(figure, "LAYER BY LAYER, AFTER THE LAST EPOCH OF THE REPETITION")
    panels = figure.subplots(2, 3).ravel()
    for axes, (name, heading, scale) in zip(panels, LAYER_PANELS, strict=True):
        for one, style in zip(found, _styles(found), strict=True):
            rows = [row for row in one.layers if row.epoch == one.repeated_epochs]
            values = np.array([getattr(row, name) for row in rows])
            values = np.where(values > 0, values, np.nan) if scale == "log" else values
            axes.plot([row.layer for row in rows], values, **style)
        quiet(axes, heading)
        if scale == "log":
            axes.set_yscale("log")
            log_ticks(axes.yaxis)
        elif scale == "share":
            axes.set_ylim(0, max(0.1, axes.get_ylim()[1]))
        axes.tick_params(axis="x", labelsize=TEXT_SIZE - 2)
    legend(figure, found, _styles(found), 3)
    return figure


def epochs_figure(found: Sequence[Any]) -> Figure:
    """Returns heat maps, a row a measure and a column a run: layers down, epochs to the right.

    All runs share a measure's colors.
    """
    count = len(found)
    figure = new_figure(1.0 + 1.9 * len(MAPS))
    title(figure, "LAYER BY LAYER, EPOCH BY EPOCH")
    grid = figure.subplots(len(MAPS), count, squeeze=False, sharey=True)
    for row, (name, heading) in zip(grid, MAPS, strict=True):
        maps = [_matrix(one, name) for one in found]
        scale = _scale(maps)
        for axes, one, values in zip(row, found, maps, strict=True):
            first = 1 if np.isnan(values[:, 0]).all() else 0
            limits = (first - 0.5, values.shape[1] - 0.5, len(values) - 0.5, -0.5)
            picture = axes.imshow(
                values[:, first:], cmap="viridis", norm=scale, aspect="auto", extent=limits
            )
            axes.set_facecolor(GRID)
            axes.set_title(one.label, fontsize=TEXT_SIZE, color=INK, parse_math=False)
            labels = [r.layer for r in one.layers if r.epoch == 0]
            axes.set_yticks(range(len(labels)), labels)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            small_text(axes)
            axes.tick_params(axis="y", labelsize=TEXT_SIZE - 2)
        bar = figure.colorbar(picture, ax=list(row), fraction=0.05 if count > 1 else 0.1)
        bar.set_label(heading, fontsize=TEXT_SIZE - 1, color=INK)
        log_ticks(bar.ax.yaxis)
        bar.outline.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("epochs trained", fontsize=TEXT_SIZE, color=INK)
    return figure


def _matrix(one: Any, name: str) -> Any:
    """Returns a measure as (layers, epochs + 1)."""
    layers = [row.layer for row in one.layers if row.epoch == 0]
    values = np.full((len(layers), one.repeated_epochs + 1), np.nan)
    for row in one.layers:
        values[layers.index(row.layer), row.epoch] = getattr(row, name)
    return np.where(values > 0, values, np.nan)


def _scale(maps: Sequence[Any]) -> Any:
    values = np.concatenate([one.ravel() for one in maps])
    values = values[np.isfinite(values)]
    if not values.size:
        return Normalize(0, 1)
    low, high = float(values.min()), float(values.max())
    return LogNorm(max(low, high * 1e-6), max(high, 1.01 * low))


def weights_figure(found: Sequence[Any]) -> Figure:
    """Returns the weights' histograms, overlaid, above sparsity and the gap of train and test."""
    figure = new_figure(3.2 + 0.26 * len(found) + 0.6)
    title(figure, "WEIGHTS OF THE TRAINED MODELS")
    upper, lower = figure.subplots(2, 1, height_ratios=(3.0, 0.26 * len(found) + 0.3))
    for one, style in zip(found, _styles(found), strict=True):
        weights = one.weights
        style.pop("marker"), style.pop("markersize")
        share = np.where(weights.share > 0, 100 * weights.share, np.nan)
        upper.stairs(share, weights.edges, label=one.label, **style, linewidth=1.3)
    upper.set_yscale("log")
    upper.set_xlabel("weight")
    upper.set_ylabel("share of the weights (%)")
    quiet(upper)
    upper.legend(frameon=False, fontsize=TEXT_SIZE - 1, labelcolor=INK, loc="upper right")
    lower.set_axis_off()
    header = ["", "|w|", "near 0 (%)", "train (%)", "test (%)", "gap (points)"]
    cells = [
        [
            one.label,
            f"{one.weights.norm:.1f}",
            f"{100 * one.weights.sparsity:.1f}",
            f"{100 * one.train_accuracy:.1f}",
            f"{100 * one.test_accuracy:.1f}",
            f"{100 * (one.train_accuracy - one.test_accuracy):+.1f}",
        ]
        for one in found
    ]
    width = min(0.5, 0.08 * max(len(one.label) for one in found) / WIDTH + 0.06)
    widths = [width, *[(1 - width) / 5] * 5]
    table = lower.table(cells, colLabels=header, colWidths=widths, loc="center", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(TEXT_SIZE)
    for cell in table.get_celld().values():
        cell.set_edgecolor(GRID)
        cell.get_text().set_color(INK)
        cell.get_text().set_parse_math(False)
    return figure
