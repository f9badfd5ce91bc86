"""What pictures of several runs side by side have in common: a style a run, and the legend."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kerasnorm.norms import NORMS
from kerasnorm.plots.curves import MARKERS, draw_legend


def turns(found: Sequence[Any]) -> list[int]:
    """Returns how many runs of the same norm stand before each."""
    norms = [one.norm for one in found]
    return [norms[:number].count(norm) for number, norm in enumerate(norms)]


def styles(found: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns a color a norm, and a marker for each further run of the same norm."""
    return [
        {"color": NORMS[one.norm].color, "marker": MARKERS[turn % len(MARKERS)], "markersize": 3.5}
        for one, turn in zip(found, turns(found), strict=True)
    ]


def legend(
    figure: Figure, found: Sequence[Any], drawn: Sequence[dict[str, Any]], columns: int
) -> None:
    """Draws the runs' labels below a figure, `columns` in a row at most.

    Args:
        figure: Where to.
        found: Have a `label` each.
        drawn: Their styles.
        columns: Of the legend.
    """
    handles = [Line2D([], [], **style) for style in drawn]
    draw_legend(figure, handles, [one.label for one in found], min(columns, len(found)))
