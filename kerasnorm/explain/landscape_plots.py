"""The loss around runs, side by side on common scales: lines, contours, surfaces."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from kerasnorm.plots.side_by_side import legend, styles
from kerasnorm.plots.style import (
    INK,
    TEXT_SIZE,
    WIDTH,
    log_ticks,
    new_figure,
    quiet,
    title,
)

COLUMNS = 3  # panels in a row, at most
LEVELS = 16  # of a contour plot
CEILING = 1e4  # nats: higher losses are drawn there
FLOOR = 1e-6  # of a quantity on a logarithmic axis


def landscape_figures(found: Sequence[Any]) -> dict[str, Figure]:
    """Returns the four pictures of the landscapes of some runs.

    Args:
        found: `kerasnorm.explain.landscape.Landscape`s.
    """
    return {
        "gradient": gradient_figure(found),
        "line": line_figure(found),
        "contours": contour_figure(found),
        "surface": surface_figure(found),
    }


def gradient_figure(found: Sequence[Any]) -> Figure:
    """Returns, over the steps of training: range of loss, change of gradient, smoothness."""
    figure = new_figure(3.6)
    title(figure, "ALONG THE GRADIENT DURING TRAINING")
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
    for one, style in zip(found, styles(found), strict=True):
        lines = one.lines
        low, high = (_shown(part(lines.losses[:, 1:], axis=1)) for part in (np.min, np.max))
        panels[0].fill_between(lines.steps, low, high, color=style["color"], alpha=0.3, linewidth=0)
        panels[0].plot(lines.steps, high, **style, linewidth=1)
        panels[0].plot(lines.steps, low, **style, linewidth=1)
        panels[1].plot(lines.steps, _shown(lines.change), **style)
        panels[2].plot(lines.steps, _shown(lines.smoothness), **style)
    for axes in panels:
        log_ticks(axes.yaxis)
    legend(figure, found, styles(found), 4)
    return figure


def _shown(values: Any) -> Any:
    return np.clip(np.nan_to_num(values, nan=CEILING**2, posinf=CEILING**2), FLOOR, None)


def line_figure(found: Sequence[Any]) -> Figure:
    """Returns the loss along one filter-normalized direction, one curve a run."""
    figure = new_figure(3.4)
    axes = figure.subplots()
    quiet(axes, "LOSS ALONG ONE FILTER-NORMALIZED DIRECTION")
    for one, style in zip(found, styles(found), strict=True):
        around = one.surface
        axes.plot(
            around.axis, np.minimum(np.nan_to_num(around.line, nan=CEILING), CEILING), **style
        )
    axes.set_yscale("log")
    log_ticks(axes.yaxis)
    axes.set_xlabel("distance, in lengths of each filter")
    axes.set_ylabel("test loss (nats)")
    legend(figure, found, styles(found), 4)
    return figure


def _planes(found: Sequence[Any]) -> tuple[list[Any], float, float]:
    """Returns the planes as they are drawn, and the lowest and highest loss of all."""
    planes = [np.minimum(np.nan_to_num(one.surface.plane, nan=CEILING), CEILING) for one in found]
    low = max(min(float(plane.min()) for plane in planes), 1e-4)
    high = max(float(plane.max()) for plane in planes)
    return [np.maximum(plane, low) for plane in planes], low, max(high, 1.01 * low)


def _columns(count: int) -> int:
    """Returns how many panels stand in a row; four make a square."""
    return 2 if count == 4 else min(COLUMNS, count)


def _grid(figure: Figure, count: int, **options: Any) -> list[Any]:
    columns = _columns(count)
    rows = -(-count // columns)
    grid = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for axes in grid[count:]:
        axes.remove()
    return list(grid[:count])


def _height(count: int) -> float:
    columns = _columns(count)
    return 0.7 + -(-count // columns) * (WIDTH / columns if columns > 1 else 5.0)


def contour_figure(found: Sequence[Any]) -> Figure:
    """Returns contours of the loss over two directions, a panel a run, colors and levels alike."""
    figure = new_figure(_height(len(found)))
    title(figure, "LOSS AROUND THE TRAINED MODEL")
    planes, low, high = _planes(found)
    levels = np.geomspace(low, high, LEVELS)
    panels = _grid(figure, len(found), sharex=True, sharey=True)
    for axes, one, plane in zip(panels, found, planes, strict=True):
        axis = one.surface.axis
        scale = LogNorm(low, high)
        picture = axes.contourf(axis, axis, plane, levels, cmap="viridis", norm=scale)
        axes.contour(axis, axis, plane, levels, colors="white", linewidths=0.5, norm=scale)
        axes.plot(0, 0, "+", color="white", markersize=8)
        quiet(axes, f"{one.label}: {one.surface.center:.3f} at +")
        axes.grid(visible=False)
        axes.set_aspect("equal")
    rows = -(-len(found) // COLUMNS)
    bar = figure.colorbar(picture, ax=panels, shrink=0.8, aspect=20 * rows, format="%.3g")
    bar.outline.set_visible(False)
    bar.set_label("test loss (nats)", fontsize=TEXT_SIZE, color=INK)
    bar.ax.tick_params(labelsize=TEXT_SIZE, labelcolor=INK)
    return figure


def surface_figure(found: Sequence[Any]) -> Figure:
    """Returns the same as surfaces in three dimensions; height is the logarithm of the loss."""
    figure = new_figure(_height(len(found)))
    title(figure, "LOSS AROUND THE TRAINED MODEL")
    planes, low, high = _planes(found)
    panels = _grid(figure, len(found), subplot_kw={"projection": "3d"})
    ticks = [t for t in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 1000, 1e4) if low <= t <= high]
    for axes, one, plane in zip(panels, found, planes, strict=True):
        a, b = np.meshgrid(one.surface.axis, one.surface.axis)
        axes.plot_surface(
            a,
            b,
            np.log10(plane),
            cmap="viridis",
            vmin=np.log10(low),
            vmax=np.log10(high),
            rstride=1,
            cstride=1,
            linewidth=0.2,
            edgecolor="white",
        )
        axes.set_zlim(np.log10(low), np.log10(high))
        axes.set_zticks(np.log10(ticks), [f"{tick:g}" for tick in ticks])
        axes.set_title(one.label, fontsize=TEXT_SIZE, color=INK, parse_math=False)
        ends = (one.surface.axis[0], 0.0, one.surface.axis[-1])
        axes.set_xticks(ends)
        axes.set_yticks(ends)
        axes.tick_params(labelsize=TEXT_SIZE - 2, labelcolor=INK, pad=-2)
        axes.set_box_aspect((1, 1, 0.8), zoom=0.9)
    return figure
