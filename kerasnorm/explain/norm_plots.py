"""A norm in one picture: who shares statistics, and a small tensor worked through."""

from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kerasnorm.explain.norm_facts import NormFacts
from kerasnorm.explain.norm_measure import Worked
from kerasnorm.plots.style import (
    FAINT,
    INK,
    NORM_COLORS,
    TEXT_SIZE,
    new_figure,
    small_text,
    title,
)
from kerasnorm.study.labels import norm_label

REST = "#f2f2f2"  # values that do not move
PERTURBED = "#333333"
LINE = 52  # letters beside the cube


def explain_figure(
    norm: str,
    facts: NormFacts,
    shared: NDArray[np.bool_],
    index: tuple[int, ...],
    worked: Worked,
) -> Figure:
    """Returns the cube of values that share statistics, over a worked example.

    Args:
        norm: Its short name.
        facts: Its formula and axes.
        shared: Which outputs moved when the input at `index` did, (N, H, W, C).
        index: (n, h, w, c).
        worked: A small tensor taken through it.
    """
    figure = new_figure(6.4)
    figure.set_layout_engine("none")  # a 3-D view leaves room of its own; placed by hand
    title(figure, f"{norm_label(norm)}: {facts.name}")
    cube = figure.add_axes((0.5, 0.4, 0.48, 0.56), projection="3d")
    _draw_cube(cube, shared, index, NORM_COLORS[norm])
    others = f"Color: the other outputs that moved, {shared.sum() - 1} of {shared.size - 1}."
    texts = (
        facts.formula,
        fill(f"Statistics over {facts.over}.", LINE),
        f"Dark: the input of the real layer that was moved.\n{others}",
        "Below: a small tensor step by step; the last step\nequals the layer's output.",
    )
    height = 0.9
    for text in texts:
        figure.text(0.03, height, text, fontsize=TEXT_SIZE, color=INK, va="top", parse_math=False)
        height -= 0.05 + 0.032 * (text.count("\n") + 1)
    for place, step in enumerate(worked.training):
        left = 0.085 + 0.182 * place
        axes = figure.add_axes((left, 0.085, 0.17, 0.25))
        _heatmap(axes, step.values, step.name)
        if place == 0:
            axes.set_ylabel("image, pixel", fontsize=TEXT_SIZE, color=INK)
        axes.set_xlabel("channel", fontsize=TEXT_SIZE, color=INK)
    return figure


def _draw_cube(axes: Any, shared: NDArray[np.bool_], index: tuple[int, ...], color: str) -> None:
    count, height, width, channels = shared.shape
    # Voxels are (H·W, N, C): pixels to the right, images into depth, channels upwards.
    pixels = shared.reshape(count, height * width, channels).transpose(1, 0, 2)
    colors = np.where(pixels, color, REST)
    colors[index[1] * width + index[2], index[0], index[3]] = PERTURBED
    axes.voxels(
        np.ones_like(pixels), facecolors=colors, edgecolor="#bbbbbb", linewidth=0.5, shade=False
    )
    axes.set_box_aspect((height * width, 1.6 * count, channels), zoom=0.95)
    axes.view_init(elev=22, azim=-58)
    for axis, size, name in (
        (axes.xaxis, height * width, "H·W (pixel)"),
        (axes.yaxis, count, "N (image)"),
        (axes.zaxis, channels, "C (channel)"),
    ):
        axis.set_ticks(np.arange(size) + 0.5, [str(number) for number in range(size)])
        axis.set_label_text(name)
        axis.labelpad = -2
        axis.pane.set_visible(False)
        axis.line.set_color(FAINT)
        axis.label.set_fontsize(TEXT_SIZE)
        axis.label.set_color(INK)
    axes.tick_params(labelsize=TEXT_SIZE - 1.5, labelcolor=INK, pad=-2)
    axes.grid(visible=False)


def _heatmap(axes: Axes, values: NDArray[Any], name: str) -> None:
    count, height, width, channels = values.shape
    rows = np.asarray(values, np.float64).reshape(-1, channels)
    limit = max(float(np.abs(rows).max()), 1e-9)
    axes.imshow(rows, cmap="RdBu_r", vmin=-1.6 * limit, vmax=1.6 * limit, aspect="auto")
    for (row, column), value in np.ndenumerate(rows):
        text = f"{value:.0f}" if name == "input" else f"{value:z.2f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=6.8, color=INK)
    axes.axhline(height * width - 0.5, color="white", linewidth=2.5)
    axes.set_title(name, fontsize=TEXT_SIZE, color=INK)
    places = [f"{n}, {p}" for n in range(count) for p in range(height * width)]
    axes.set_yticks(range(len(places)), places if name == "input" else [""] * len(places))
    axes.set_xticks(range(channels))
    axes.spines[:].set_visible(False)
    small_text(axes)
