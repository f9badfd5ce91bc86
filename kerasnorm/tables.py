"""Tables of text, and their two forms: plain text, and rich for a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from textwrap import fill

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

NOTE_WIDTH = 100


@dataclass(frozen=True)
class Table:
    """A table of strings.

    Attributes:
        columns: Headings; a heading that starts with ">" is aligned to the right, as numbers are.
        rows: Rows of cells, one cell per column.
        totals: Rows of cells below a second rule.
        notes: Sentences below the table.
        title: Heading above the table; empty for none.
        styles: Style of each row on a terminal, such as "red"; none by default.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    totals: Sequence[tuple[str, ...]] = ()
    notes: Sequence[str] = ()
    title: str = ""
    styles: Sequence[str] = ()


def to_text(table: Table) -> str:
    """Returns a table as plain text of fixed width, with a newline at the end of every line."""
    headings = tuple(column.removeprefix(">") for column in table.columns)
    lines = [headings, *table.rows, *table.totals]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        pairs = zip(table.columns, cells, widths, strict=True)
        return "  ".join(
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for column, cell, width in pairs
        ).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    parts = [table.title] if table.title else []
    parts += [line(headings), rule, *map(line, table.rows)]
    parts += [rule, *map(line, table.totals)] if table.totals else []
    parts += ["", *(fill(note, NOTE_WIDTH) for note in table.notes)] if table.notes else []
    return "".join(f"{part}\n" for part in parts)


def to_rich(table: Table) -> RichTable:
    """Returns a table as a rich table for the terminal, its texts taken literally."""
    drawn = RichTable(
        title=Text(table.title, "table.title") if table.title else None,
        caption=Text("\n".join(table.notes), "table.caption") if table.notes else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in table.columns:
        is_number = column.startswith(">")
        drawn.add_column(Text(column.removeprefix(">")), justify="right" if is_number else "left")
    for cells, style in zip_longest(table.rows, table.styles[: len(table.rows)]):
        drawn.add_row(*map(Text, cells), style=style)
    drawn.add_section()
    for cells in table.totals:
        drawn.add_row(*map(Text, cells))
    return drawn
