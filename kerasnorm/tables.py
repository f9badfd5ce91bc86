"""Tables for people: rows of data become a grid of text, and a grid becomes plain text or rich.

Nothing is computed here but totals.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from textwrap import fill
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from kerasnorm.benchmark.race import MEANINGS, Result, paired_ratio
from kerasnorm.config import LAYER_LABELS

if TYPE_CHECKING:
    from kerasnorm.inspection.layers import LayerRow

NOTE_WIDTH = 100
FIELD_NOTE = (
    "Receptive field r and jump j in input pixels: r += (k_eff - 1) * j, then j *= stride. "
    "Global pooling over n units adds (n - 1) * j and leaves the jump as it was."
)
NORM_NOTE = (
    "Normalization layers pass the receptive field through, by convention; one whose statistics "
    "are taken over space strictly sees the whole image."
)
# The published table of this network, C1 to GAP, for an image of 32x32.
PUBLISHED_FIELDS = dict(
    zip(LAYER_LABELS.values(), (3, 5, 5, 6, 10, 14, 18, 18, 20, 24, 28, 32, 60), strict=False)
)
PUBLISHED_NOTE = (
    "The published table adds 4 a convolution in the third block, where a 3x3 convolution at "
    "jump 4 adds 8: an arithmetic slip."
)


@dataclass(frozen=True)
class Table:
    """A table whose cells are text already.

    Attributes:
        columns: Headings; one that starts with ">" is of numbers, set flush right.
        rows: Cells, as many a row as there are columns.
        totals: Rows below a rule.
        notes: Sentences at the foot.
        title: What the table shows; empty for none.
        styles: How rich colors each row on a terminal, such as "red"; none by default.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    totals: Sequence[tuple[str, ...]] = ()
    notes: Sequence[str] = ()
    title: str = ""
    styles: Sequence[str] = ()


def summary_table(rows: "Sequence[LayerRow]", title: str = "") -> Table:
    """Returns the table of all layers with the totals of their parameters."""
    cells = [
        (
            row.name,
            row.type,
            _text(row.output_shape[1:]),
            f"{row.parameters:,}",
            _text(row.receptive_field),
            _text(row.jump),
        )
        for row in rows
    ]
    total = sum(row.parameters for row in rows)
    trainable = sum(row.trainable_parameters for row in rows)
    sums = {"total": total, "trainable": trainable, "non-trainable": total - trainable}
    return Table(
        columns=("layer", "type", "output", ">parameters", ">field", ">jump"),
        rows=cells,
        totals=[(name, "", "", f"{count:,}", "", "") for name, count in sums.items()],
        notes=(FIELD_NOTE, NORM_NOTE),
        title=title,
    )


def receptive_field_table(rows: "Sequence[LayerRow]", title: str = "") -> Table:
    """Returns the table of how each layer changes size, receptive field and jump.

    The network of `kerasnorm.network` gets its blocks and short names, and beside its receptive
    field the published one where the image is 32x32; any other model the names of its layers.

    Args:
        rows: From `kerasnorm.inspection.layers.receptive_field`.
        title: What the table shows.
    """
    is_ours = [row.name for row in rows] == list(LAYER_LABELS)
    is_published = is_ours and rows[0].before.sizes == (32, 32)
    columns = ["block", "layer"] if is_ours else ["layer"]
    columns += [">size", ">receptive field", ">jump"]
    columns += [">published field"] if is_published else []
    cells = []
    for row in rows:
        label = LAYER_LABELS.get(row.name, row.name)
        line = [row.name.partition("_")[0], label] if is_ours else [row.name]
        line += [
            f"{_text(row.before.size)} -> {_text(row.after.size)}",
            f"{_text(row.before.receptive_field)} -> {_text(row.after.receptive_field)}",
            f"{_text(row.before.jump)} -> {_text(row.after.jump)}",
        ]
        line += [str(PUBLISHED_FIELDS.get(label, ""))] if is_published else []
        cells.append(tuple(line))
    notes = (FIELD_NOTE, NORM_NOTE, PUBLISHED_NOTE) if is_published else (FIELD_NOTE, NORM_NOTE)
    return Table(tuple(columns), cells, notes=notes, title=title)


def layers_to_json(rows: "Sequence[LayerRow]") -> list[dict[str, Any]]:
    """Returns a dict a layer, ready for JSON.

    Keys: name, type, output_shape (null where a size is not fixed), parameters, receptive_field
    and jump (a number where height and width agree, else [h, w]; null for a model without space).
    """
    return [
        {
            "name": row.name,
            "type": row.type,
            "output_shape": list(row.output_shape),
            "parameters": row.parameters,
            "receptive_field": row.receptive_field,
            "jump": row.jump,
        }
        for row in rows
    ]


def bench_table(results: Sequence[Result]) -> Table:
    """Returns the table of a race: rates, paired ratios, first step and memory of each."""
    native = {(r.norm, r.backend): r for r in results if r.contender == "native"}
    cells = []
    for row in results:
        ours = native.get((row.norm, row.backend), row)
        cells.append(
            (
                row.backend,
                row.norm,
                row.contender,
                _rates(row.train),
                _rates(row.predict),
                f"{row.first_step:.1f}",
                f"{row.peak_mib:,.0f}",
                _ratio(ours.train, row.train),
                _ratio(ours.predict, row.predict),
            )
        )
    names = (
        "backend norm contender >train >predict >first_step_s >peak_MiB >native/this >in_predict"
    )
    return Table(
        columns=tuple(name.replace("_", " ") for name in names.split()),
        rows=cells,
        notes=(
            "Images a second: median over the rounds (slowest-fastest). Contenders take turns.",
            "native/this: median over the rounds of kerasnorm's rate divided by this one's.",
            *(f"{name}: {meaning}." for name, meaning in MEANINGS.items()),
        ),
        title="Speed",
    )


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    return f"{paired_ratio(ours, theirs):.2f}" if ours and theirs else "-"


def _rates(rates: Sequence[float]) -> str:
    if not rates:
        return "-"
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})"


def to_text(grid: Table) -> str:
    """Returns a grid as plain text of fixed width, with a newline at the end of every line."""
    headings = tuple(column.removeprefix(">") for column in grid.columns)
    lines = [headings, *grid.rows, *grid.totals]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        pairs = zip(grid.columns, cells, widths, strict=True)
        return "  ".join(
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for column, cell, width in pairs
        ).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    parts = [grid.title] if grid.title else []
    parts += [line(headings), rule, *map(line, grid.rows)]
    parts += [rule, *map(line, grid.totals)] if grid.totals else []
    parts += ["", *(fill(note, NOTE_WIDTH) for note in grid.notes)] if grid.notes else []
    return "".join(f"{part}\n" for part in parts)


def to_rich(grid: Table) -> RichTable:
    """Returns a grid as a rich table for the terminal."""
    table = RichTable(
        title=escape(grid.title) or None,
        caption="\n".join(grid.notes) or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in grid.columns:
        is_number = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if is_number else "left")
    for cells, style in zip_longest(grid.rows, grid.styles[: len(grid.rows)]):
        table.add_row(*map(escape, cells), style=style)
    table.add_section()
    for cells in grid.totals:
        table.add_row(*map(escape, cells))
    return table


def _text(value: int | Sequence[int | None] | None) -> str:
    """Returns "32" or "32x30"; "?" for a size that is not fixed, "-" for none at all."""
    if isinstance(value, Sequence):
        return "x".join("?" if size is None else str(size) for size in value)
    return "-" if value is None else str(value)
