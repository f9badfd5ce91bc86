"""What all figures share: colors, sizes, quiet axes, and the way into a PNG file."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullFormatter

from kerasnorm.files import atomic_writer

DPI = 150
WIDTH = 8.0  # inches, 1200 pixels: what a README shows without scaling up
TITLE_SIZE = 10.0  # points, as all sizes below
TEXT_SIZE = 8.5
SHORT_RANGE = 30  # of a logarithmic axis, highest over lowest: ticks between powers of ten

INK = "#333333"
FAINT = "#8a8a8a"
GRID = "#e8e8e8"


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
        """Writes the figure to `<name>.png` in a folder, made if it is missing.

        The file is written atomically, and the same figure gives the same bytes.

        Returns:
            The path of the file.

        Raises:
            OSError: The folder cannot be made or written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.png"
        with atomic_writer(path) as file, warnings.catch_warnings():
            # A class may be named in a script that the font lacks; a box stands for it.
            warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
            self.figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
        return path


def new_figure(height: float) -> Figure:
    """Returns an empty figure of the common width that belongs to no window.

    Args:
        height: In inches.
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
    """Writes a logarithmic axis's ticks as plain numbers, also between powers where few fit.

    Args:
        axis: Its data drawn already.
    """
    low, high = sorted(axis.get_view_interval())
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_major_formatter(plain if high < 1e5 * low else LogFormatterSciNotation())
    is_short = high < SHORT_RANGE * low
    axis.set_minor_locator(LogLocator(subs=(2, 5) if is_short else "auto"))
    axis.set_minor_formatter(plain if is_short else NullFormatter())
    axis.set_tick_params(which="both", labelsize=TEXT_SIZE - 1, labelcolor=INK, color=FAINT)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure to a PNG file, atomically; the same figure gives the same bytes.

    Raises:
        OSError: The folder is missing or cannot be written.
    """
    with atomic_writer(path) as file, warnings.catch_warnings():
        # A class may be named in a script that the font lacks; a box stands for it.
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})


def save_all(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Writes figures to `<name>.png` in a folder, made if it is missing; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        save(figure, path)
    return paths
