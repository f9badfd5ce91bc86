"""Colors, sizes, axes, legends and PNG files that all figures share.

Figures are made without pyplot: no window, no global state.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullFormatter

from kerasnorm.files import atomic_writer
from kerasnorm.norms import NORMS

DPI = 150
WIDTH = 8.0  # inches, 1200 pixels: what a README shows without scaling up
TITLE_SIZE = 10.0  # points, as all sizes below
TEXT_SIZE = 8.5
LEGEND_ROW = 0.2  # inches
# A logarithmic axis whose highest value is below this many times its lowest one gets ticks between
# the powers of ten.
SHORT_RANGE = 30
MOST_TEXTS = 8  # texts that an alternative text lists
MARKERS = ("", "o", "s", "^", "D", "v", "P", "X")

INK = "#333333"
FAINT = "#8a8a8a"
GRID = "#e8e8e8"

# Okabe & Ito's palette, which color-blind people can tell apart; its yellow is too faint on white.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"


@dataclass(frozen=True)
class Picture:
    """A figure and the words that go with it.

    Attributes:
        name: Name of its PNG file, without the ending.
        figure: The figure itself.
        title: Heading for the place where it is shown, such as "Test accuracy".
        caption: One or two full sentences that say how to read it.
        alt: Alternative text, for those who cannot see it.
    """

    name: str
    figure: Figure
    title: str
    caption: str
    alt: str

    def save(self, folder: Path) -> Path:
        """Writes the figure to `<name>.png` in a folder, made if it is missing; returns the path.

        Raises:
            OSError: The folder cannot be made or written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.png"
        save(self.figure, path)
        return path


def save(figure: Figure, path: Path) -> None:
    """Writes a figure to a PNG file, atomically; the same figure gives the same bytes.

    Raises:
        OSError: The folder is missing or cannot be written.
    """
    with atomic_writer(path) as file, warnings.catch_warnings():
        # A class name may be in a script that the font lacks; a box stands for each letter.
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})


def first_texts(texts: Sequence[str]) -> str:
    """Returns texts joined for a `Picture.alt`, which counts the texts beyond the first few."""
    more = len(texts) - MOST_TEXTS
    return "; ".join(texts[:MOST_TEXTS]) + (f"; and {more} more" if more > 0 else "")


def new_figure(height: float) -> Figure:
    """Returns an empty figure of the common width that belongs to no window.

    Args:
        height: Height in inches.
    """
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr,call-arg]
    return figure


def title(figure: Figure, text: str) -> None:
    """Puts a title, taken literally, above the whole figure."""
    figure.suptitle(text, fontsize=TITLE_SIZE, color=INK, parse_math=False)


def quiet(axes: Axes, heading: str = "") -> None:
    """Gives axes a heading, a faint grid and no box."""
    axes.set_title(heading, fontsize=TITLE_SIZE, color=INK, pad=8, parse_math=False)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    small_text(axes)


def small_text(axes: Axes) -> None:
    """Sets the size and color of the ticks and axis labels."""
    axes.tick_params(labelsize=TEXT_SIZE, labelcolor=INK, color=FAINT, length=3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(TEXT_SIZE)
        axis.label.set_color(INK)


def log_ticks(axis: Axis) -> None:
    """Labels a logarithmic axis with plain numbers, between the powers of ten too on a short range.

    Args:
        axis: The axis, after its data were drawn.
    """
    low, high = sorted(axis.get_view_interval())
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_major_formatter(plain if high < 1e5 * low else LogFormatterSciNotation())
    is_short = high < SHORT_RANGE * low
    axis.set_minor_locator(LogLocator(subs=(2, 5) if is_short else "auto"))
    axis.set_minor_formatter(plain if is_short else NullFormatter())
    axis.set_tick_params(which="both", labelsize=TEXT_SIZE - 1, labelcolor=INK, color=FAINT)


def repeats(norms: Sequence[str]) -> list[int]:
    """Returns, for each run's norm, how many runs before it have the same norm."""
    return [norms[:place].count(norm) for place, norm in enumerate(norms)]


def marked_styles(norms: Sequence[str]) -> list[dict[str, Any]]:
    """Returns line properties: one color per norm, one marker per further run of that norm."""
    return [
        {"color": NORMS[norm].color, "marker": MARKERS[repeat % len(MARKERS)], "markersize": 3.5}
        for norm, repeat in zip(norms, repeats(norms), strict=True)
    ]


def legend_shape(labels: Sequence[str]) -> tuple[int, int]:
    """Returns the columns and rows of a legend as wide as the figure."""
    if not labels:
        return 1, 0
    inches = 0.55 + 0.075 * max(map(len, labels))  # the sample line, then the letters
    columns = max(1, min(len(labels), int(WIDTH / inches)))
    return columns, -(-len(labels) // columns)


def draw_legend(
    figure: Figure,
    handles: Sequence[Line2D | dict[str, Any]],
    labels: Sequence[str],
    columns: int,
) -> None:
    """Puts a legend below the figure.

    Args:
        figure: The figure that gets the legend.
        handles: One line, or the properties of one, per label.
        labels: Texts, taken literally.
        columns: Number of labels in a row, at most.
    """
    legend = figure.legend(
        [Line2D([], [], **handle) if isinstance(handle, dict) else handle for handle in handles],
        list(labels),
        loc="outside lower center",
        ncols=min(columns, max(1, len(labels))),
        frameon=False,
        borderaxespad=0.2,
        fontsize=TEXT_SIZE,
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
