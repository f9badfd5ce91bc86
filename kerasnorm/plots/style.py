"""Colors, sizes, axes, legends and PNG files that all figures share.

Figures are made without pyplot: no window, no global state.
"""

import functools
import io
import logging
import math
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from kerasnorm.files import encoded, write_bytes
from kerasnorm.norms import NORMS

DPI = 150
WIDTH = 8.0  # inches, 1200 pixels: what a README shows without scaling up
TITLE_SIZE = 10.0  # points, as all sizes below
TEXT_SIZE = 8.5
POINTS = 72.0  # in an inch
LEGEND_ROW = 0.2  # inches
MOST_LETTERS = 200  # of a text in a figure, whose width holds about half of them
LEGEND_LINE = 0.55  # inches of a legend's sample line and of the gap behind a label
# A logarithmic axis whose highest value is below this many times its lowest one gets ticks between
# the powers of ten.
SHORT_RANGE = 30
MOST_TEXTS = 8  # texts that an alternative text lists
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DARKEST = 0.5  # share of a color that the last of its shades lacks
MARKERS = ("", "o", "s", "^", "D", "v", "P", "X")

INK = "#333333"
FAINT = "#8a8a8a"
GRID = "#e8e8e8"

# Okabe & Ito's palette, which color-blind people can tell apart; its yellow is too faint on white.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"

logger = logging.getLogger(__name__)


@functools.cache
def fallback_fonts(letters: frozenset[str]) -> tuple[str, ...]:
    """Returns families of installed fonts that have letters which the default font lacks.

    The first has most of them. One warning says that no installed font has some letters.
    """
    missing = {letter for letter in letters if letter.isprintable() and not letter.isspace()}
    missing -= _letters_in(findfont(FontProperties()), missing)
    families: list[str] = []
    while missing:
        has = {
            entry.name: _letters_in(entry.fname, missing)
            for entry in fontManager.ttflist
            if entry.style == "normal" and not entry.name.startswith(("Last Resort", ".Last"))
        }
        best = max(sorted(has), key=lambda name: len(has[name]), default="")
        if not has.get(best):
            _warn_of_missing_letters()
            break
        families.append(best)
        missing -= has[best]
    return tuple(families)


@functools.cache
def _warn_of_missing_letters() -> None:
    logger.warning(
        "Figures show boxes for letters that no installed font has. Install a font that has them, "
        "such as Noto Sans CJK."
    )


def _letters_in(path: str, letters: set[str]) -> set[str]:
    """Returns those letters that a font's file draws; none where it cannot be read or scaled."""
    with suppress(OSError, RuntimeError):
        font = FT2Font(path)
        if font.scalable:
            return {letter for letter in letters if font.get_char_index(ord(letter))}
    return set()


class _LiteralFigure(Figure):
    """A figure that draws each text as it is written, in fonts that have its letters.

    Names of classes, folders and values may hold "$", which matplotlib takes for mathematics.
    """

    def draw(self, renderer: RendererBase) -> None:
        """Draws the figure."""
        texts = [text for text in self.findobj(Text) if isinstance(text, Text)]
        letters = frozenset("".join(text.get_text() for text in texts))
        family = [*rcParams["font.family"], *fallback_fonts(letters)]
        for text in texts:
            # A path that the locale could not decode has surrogates, which no font has.
            text.set_text(encoded(text.get_text()).decode(errors="replace"))
            text.set_parse_math(False)
            text.set_usetex(False)
            text.set_fontfamily(family)
        # Labels of ticks are made while they are drawn.
        with rc_context({"text.parse_math": False, "text.usetex": False, "font.family": family}):
            super().draw(renderer)


def text_width(text: str, size: float = TEXT_SIZE) -> float:
    """Returns the width of a line of text in inches; letters that the font lacks count in full."""
    return sum(map(_advance, text)) * size / POINTS


@functools.cache
def _advance(letter: str) -> float:
    """Returns the width of a letter as a share of the font's size."""
    font = FT2Font(findfont(FontProperties()))
    if not font.get_char_index(ord(letter)):
        return 1.0
    font.set_size(100.0, POINTS)
    return float(font.load_char(ord(letter)).linearHoriAdvance) / 65536 / 100


def fit(texts: Sequence[str], inches: float, size: float = TEXT_SIZE) -> list[str]:
    """Returns texts no wider than some inches: their middle is left out if need be.

    Different texts that would look the same end with their number, counted from 0.
    """
    short = [_cut(text, inches, size) for text in texts]
    owners: dict[str, set[str]] = {}
    for text, cut in zip(texts, short, strict=True):
        owners.setdefault(cut, set()).add(text)
    return [
        cut if len(owners[cut]) == 1 else _cut(text, inches, size, f" #{texts.index(text)}")
        for text, cut in zip(texts, short, strict=True)
    ]


def _cut(text: str, inches: float, size: float, end: str = "") -> str:
    """Returns a text, with an end, without as much of its middle as does not fit."""

    def width(kept: int) -> float:
        return text_width(_without_middle(text, kept) + end, size)

    longest = min(len(text), MOST_LETTERS)
    kept = longest
    if width(longest) > inches:
        kept = max(2, bisect_right(range(longest), inches, key=width) - 1)
    return _without_middle(text, kept) + end


def _without_middle(text: str, kept: int) -> str:
    """Returns a text with that many of its letters, more of them from its beginning."""
    head, tail = kept - kept // 2, kept // 2
    return text if kept >= len(text) else f"{text[:head]}…{text[len(text) - tail :]}"


@dataclass(frozen=True)
class Picture:
    """A figure and the words that go with it."""

    name: str  # of its PNG file, without the ending
    figure: Figure
    title: str  # heading for the place where it is shown, such as "Test accuracy"
    caption: str  # one or two full sentences that say how to read it
    alt: str  # alternative text, for those who cannot see it

    def save(self, folder: Path) -> Path:
        """Writes the figure to `<name>.png` in a folder, made if it is missing; returns the path.

        It is written atomically, and the same figure gives the same bytes.

        Raises:
            OSError: The folder cannot be made.
            RunFolderError: The file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path, content = folder / f"{self.name}.png", io.BytesIO()
        with warnings.catch_warnings():
            # A class name may be in a script that the font lacks; a box stands for each letter.
            warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
            self.figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
        write_bytes(path, content.getvalue())
        return path


def first_texts(texts: Sequence[str]) -> str:
    """Returns texts joined for a `Picture.alt`, which counts the texts beyond the first few."""
    more = len(texts) - MOST_TEXTS
    return "; ".join(texts[:MOST_TEXTS]) + (f"; and {more} more" if more > 0 else "")


def new_figure(height: float, title: str | None = None) -> Figure:
    """Returns an empty figure of the common width that belongs to no window.

    The height is in inches. The lines of the title above it are cut to the figure's width.
    """
    figure = _LiteralFigure(
        figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr,call-arg]
    if title is not None:
        lines = (fit([line], WIDTH - 0.2, TITLE_SIZE)[0] for line in title.split("\n"))
        figure.suptitle("\n".join(lines), fontsize=TITLE_SIZE, color=INK)
    return figure


def quiet(axes: Axes, heading: str = "") -> None:
    """Gives axes a heading, a faint grid and no box."""
    axes.set_title(heading, fontsize=TITLE_SIZE, color=INK, pad=8)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    small_text(axes)


def small_text(axes: Axes) -> None:
    """Sets the size and color of the ticks and axis labels."""
    axes.tick_params(labelsize=TEXT_SIZE, labelcolor=INK, color=FAINT, length=3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(TEXT_SIZE)
        axis.label.set_color(INK)


def log_ticks(axis: Axis) -> None:
    """Labels a logarithmic axis with plain numbers, between the powers of ten too on a short range.

    Its data must have been drawn before.
    """
    low, high = sorted(axis.get_view_interval())
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    power = FuncFormatter(
        lambda value, _: "10" + f"{math.log10(value):.0f}".translate(SUPERSCRIPTS)
    )
    axis.set_major_formatter(plain if high < 1e5 * low else power)
    is_short = high < SHORT_RANGE * low
    axis.set_minor_locator(LogLocator(subs=(2, 5) if is_short else "auto"))
    axis.set_minor_formatter(plain if is_short else NullFormatter())
    axis.set_tick_params(which="both", labelsize=TEXT_SIZE - 1, labelcolor=INK, color=FAINT)


def repeats(norms: Sequence[str]) -> list[int]:
    """Returns, for each run's norm, how many runs before it have the same norm."""
    return [norms[:place].count(norm) for place, norm in enumerate(norms)]


def shade(color: str, place: int, count: int) -> str:
    """Returns a color for one of several lines of a norm: from the norm's own to a dark one."""
    if not place:
        return color
    light = 1.0 - DARKEST * place / (count - 1)
    red, green, blue = to_rgb(color)
    return to_hex((light * red, light * green, light * blue))


def band(
    means: NDArray[np.float64], stds: NDArray[np.float64], most: float = 100.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the edges of a band of one std around means, of the same shape.

    They are cut off at 0 and at `most`, beyond which no value can be.
    """
    return np.clip(means - stds, 0, most), np.clip(means + stds, 0, most)


def marked_styles(norms: Sequence[str]) -> list[dict[str, Any]]:
    """Returns line properties: a color per norm; per run of a color a shade and a marker."""
    colors = [NORMS[norm].color for norm in norms]  # norms of the user may share one
    return [
        {
            "color": shade(color, repeat, colors.count(color)),
            "marker": MARKERS[repeat % len(MARKERS)],
            "markersize": 3.5,
        }
        for color, repeat in zip(colors, repeats(colors), strict=True)
    ]


def _legend_columns(labels: Sequence[str]) -> int:
    """Returns the columns of a legend as wide as the figure."""
    inches = LEGEND_LINE + max(map(text_width, labels), default=0.0)
    return max(1, min(len(labels), int(WIDTH / inches)))


def legend_height(labels: Sequence[str]) -> float:
    """Returns the height in inches of a legend as wide as the figure."""
    return LEGEND_ROW * -(-len(labels) // _legend_columns(labels))


def draw_legend(
    figure: Figure,
    handles: Sequence[Line2D | dict[str, Any]],
    labels: Sequence[str],
    columns: int | None = None,
) -> None:
    """Puts a legend below the figure, of at most some columns or as many as fit."""
    fitting = _legend_columns(labels)
    figure.legend(
        [Line2D([], [], **handle) if isinstance(handle, dict) else handle for handle in handles],
        fit(labels, WIDTH - LEGEND_LINE - 0.2),
        loc="outside lower center",
        ncols=min(columns or fitting, fitting),
        frameon=False,
        borderaxespad=0.2,
        fontsize=TEXT_SIZE,
        labelcolor=INK,
    )
