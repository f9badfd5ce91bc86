"""Tables of text, and their two forms: plain text, and rich for a terminal.

A table that is too wide is wrapped: cells of text between words, or inside a word that is too long,
and numbers only where a new number begins. Where that is not enough, its columns are shown in
several parts, each with the columns of text that name the rows.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile, zip_longest
from textwrap import wrap

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

TEXT_WIDTH = 80  # letters of a line of plain text
GAP = 2  # letters between two columns
MARGINS = 2  # letters left and right of a table on a terminal
# Spaces at which a cell of numbers is broken: not those in "± 0.2", "[1, 2]", "(n 3)" and "1.2 *".
BREAKS = re.compile(r"(?<![±,n]) (?!\*)")
LEAST_WIDTH = 16  # letters of a column of text to which a word that is too long is broken


@dataclass(frozen=True)
class Table:
    """A table of strings."""

    # Headings; a heading that starts with ">" is aligned to the right, as numbers are.
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]  # rows of cells, one cell per column
    totals: Sequence[tuple[str, ...]] = ()  # rows of cells below a second rule
    notes: Sequence[str] = ()  # sentences below the table
    title: str = ""  # heading above the table; empty for none
    styles: Sequence[str] = ()  # style of each row on a terminal, such as "red"; none by default


def to_text(table: Table, width: int = TEXT_WIDTH) -> str:
    """Returns a table as plain text, with a newline at the end of every line."""
    lines = [table.title] if table.title else []
    for place, part in enumerate(_fitted(table, width)):
        lines += [""] if place else []
        lines += _plain(part)
    if table.notes:
        lines += ["", *(line for note in table.notes for line in wrap(note, width))]
    return "".join(f"{line}\n" for line in lines)


def _plain(table: Table) -> list[str]:
    """Returns the lines of a table whose cells may have several lines."""
    headings = tuple(column.removeprefix(">") for column in table.columns)
    columns = zip(headings, *table.rows, *table.totals, strict=True)
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    rule = "-" * (sum(widths) + GAP * (len(widths) - 1))

    def lines(row: Sequence[str]) -> Iterator[str]:
        for parts in zip_longest(*(cell.split("\n") for cell in row), fillvalue=""):
            triples = zip(table.columns, parts, widths, strict=True)
            yield (
                (" " * GAP)
                .join(
                    part.rjust(width) if column.startswith(">") else part.ljust(width)
                    for column, part, width in triples
                )
                .rstrip()
            )

    found = [*lines(headings), rule, *(line for row in table.rows for line in lines(row))]
    totals = [line for row in table.totals for line in lines(row)]
    return [*found, rule, *totals] if totals else found


def to_rich(table: Table, width: int) -> Group:
    """Returns a table for the terminal, its texts taken literally."""
    parts = [_rich(part) for part in _fitted(table, width - MARGINS)]
    parts[0].title = Text(table.title, "table.title") if table.title else None
    return Group(*parts, *(Padding(Text(note, "table.caption"), (0, 1)) for note in table.notes))


def _rich(table: Table) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for column in table.columns:
        is_number = column.startswith(">")
        drawn.add_column(Text(column.removeprefix(">")), justify="right" if is_number else "left")
    for cells, style in zip_longest(table.rows, table.styles[: len(table.rows)]):
        drawn.add_row(*map(Text, cells), style=style)
    drawn.add_section()
    for cells in table.totals:
        drawn.add_row(*map(Text, cells))
    return drawn


def _fitted(table: Table, width: int) -> list[Table]:
    """Returns a table, or several parts of its columns, with cells wrapped to fit a width."""
    columns = list(zip(table.columns, *table.rows, *table.totals, strict=True))
    texts = len(list(takewhile(lambda column: not column.startswith(">"), table.columns)))
    names = texts if 0 < texts < len(columns) else 1
    parts: list[Table] = []
    rest = columns[names:]
    while rest or not parts:
        part = columns[:names]
        while rest and (
            len(part) == names
            or sum(_width(one, 1) + GAP for one in (*part, rest[0])) <= width + GAP
        ):
            part.append(rest.pop(0))
        cells = [_narrowed(one, room) for one, room in zip(part, _rooms(part, width), strict=True)]
        headings, *lines = zip(*cells, strict=True)
        cut = len(table.rows)
        parts.append(replace(table, columns=headings, rows=lines[:cut], totals=lines[cut:]))
    return parts


def _rooms(columns: Sequence[tuple[str, ...]], width: int) -> list[int]:
    """Returns a width for each column; the widest is narrowed until all fit, or none can be."""
    rooms = [_width(one, width) for one in columns]
    while sum(rooms) + GAP * (len(rooms) - 1) > width:
        narrower = [_width(one, room - 1) for one, room in zip(columns, rooms, strict=True)]
        able = [place for place, room in enumerate(rooms) if narrower[place] < room]
        if not able:
            break
        widest = max(able, key=rooms.__getitem__)
        rooms[widest] = narrower[widest]
    return rooms


def _narrowed(column: tuple[str, ...], room: int) -> tuple[str, ...]:
    """Returns a heading and its cells with line breaks, no wider than `room` where they can be."""
    heading, *cells = column
    mark = ">" if heading.startswith(">") else ""
    heading = mark + _wrapped(heading.removeprefix(">"), room, is_number=False)
    return heading, *(_wrapped(cell, room, is_number=bool(mark)) for cell in cells)


def _width(column: tuple[str, ...], room: int) -> int:
    """Returns the width of a heading and its cells when they are narrowed to `room`."""
    lines = (line for cell in _narrowed(column, room) for line in cell.split("\n"))
    return max(len(line.removeprefix(">")) for line in lines)


@functools.cache
def _wrapped(cell: str, room: int, *, is_number: bool) -> str:
    """Returns a cell with line breaks."""
    if is_number:
        lines: list[str] = []
        for number in BREAKS.split(cell):
            if lines and len(lines[-1]) + 1 + len(number) <= room:
                lines[-1] += f" {number}"
            else:
                lines.append(number)
        return "\n".join(lines)
    room = max(room, min(LEAST_WIDTH, max(map(len, cell.split()), default=1)))
    return "\n".join("\n".join(wrap(line, room)) for line in cell.split("\n"))
