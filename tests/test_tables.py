"""Tables as plain text and on a terminal."""

import io
import re

import pytest
from rich.console import Console

from kerasnorm.tables import Table, to_rich, to_text

GRID = Table(
    columns=("name", ">n"),
    rows=[("a[b]", "1"), ("[red]", "1,000")],
    totals=[("sum", "1,001")],
    notes=["A note."],
    title="A title",
)


def test_plain_text() -> None:
    assert to_text(GRID).splitlines() == [
        "A title",
        "name       n",
        "------------",
        "a[b]       1",
        "[red]  1,000",
        "------------",
        "sum    1,001",
        "",
        "A note.",
    ]
    assert to_text(Table(("name",), [("a",)])) == "name\n----\na\n"


def test_rich_shows_every_cell_and_takes_no_name_for_markup() -> None:
    console = Console(width=60, file=io.StringIO(), color_system=None)
    console.print(to_rich(GRID, 60))
    shown = console.file.getvalue()
    for text in ("A title", "name", "a[b]", "[red]", "1,000", "sum", "1,001", "A note."):
        assert text in shown


def test_rich_takes_no_text_for_an_emoji_or_a_style() -> None:
    texts = (":car:", "[red]x[/]", "[/none]", "[b]")
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(to_rich(Table(texts, [texts], [texts], texts, title=":car:"), 80))
    shown = console.file.getvalue()
    assert [shown.count(text) for text in texts] == [5, 4, 4, 4]


class TestWidth:
    def test_text_is_broken_between_words_and_numbers_where_a_new_one_begins(self):
        table = Table(
            ("norm", ">n", ">test accuracy %"),
            [("GN, batch size 128", "2", "34.88 ± 2.12 [15.82, 53.94] (n 2) *")],
            totals=[("sum", "2", "+0.10 to +0.50")],
        )
        assert to_text(table, 33).splitlines() == [
            "norm            n   test accuracy",
            "                                %",
            "---------------------------------",
            "GN, batch size  2    34.88 ± 2.12",
            "128                [15.82, 53.94]",
            "                          (n 2) *",
            "---------------------------------",
            "sum             2  +0.10 to +0.50",
        ]
        assert to_text(table, 32).splitlines()[3:7] == [
            "GN, batch  2    34.88 ± 2.12",
            "size 128      [15.82, 53.94]",
            "                     (n 2) *",
            "----------------------------",
        ]

    def test_a_word_that_is_too_long_is_broken_anywhere_and_comes_back_whole(self):
        name = "a_class_name_of_120_letters_" + "x" * 92
        lines = to_text(Table(("name", ">n"), [(name, "7")]), 40).splitlines()
        assert max(map(len, lines)) <= 40
        assert "".join(line.split()[0] for line in lines[2:]) == name

    def test_columns_that_do_not_fit_form_parts_with_the_names_of_their_rows(self):
        table = Table(
            ("norm", "field", *(f">{n}" for n in range(6))),
            [("BN", "width", *["1234.5678"] * 6), ("BN", "depth", *["-1234.5678"] * 6)],
            notes=["A note."],
        )
        assert to_text(table, 36).splitlines() == [
            "norm  field           0           1",
            "-----------------------------------",
            "BN    width   1234.5678   1234.5678",
            "BN    depth  -1234.5678  -1234.5678",
            "",
            "norm  field           2           3",
            "-----------------------------------",
            "BN    width   1234.5678   1234.5678",
            "BN    depth  -1234.5678  -1234.5678",
            "",
            "norm  field           4           5",
            "-----------------------------------",
            "BN    width   1234.5678   1234.5678",
            "BN    depth  -1234.5678  -1234.5678",
            "",
            "A note.",
        ]

    @pytest.mark.parametrize("width", [30, 60, 80])
    def test_a_terminal_cuts_no_number(self, width):
        numbers = [f"{n}.{n}{n} ± 0.0{n} [{n}.10, {n}.99]" for n in range(1, 7)]
        table = Table(("norm", *(f">value {n}" for n in range(6))), [("GN, groups 2", *numbers)])
        console = Console(width=width, file=io.StringIO(), color_system=None)
        console.print(to_rich(table, width))
        shown = console.file.getvalue()
        assert "…" not in shown
        for text in (part for number in numbers for part in re.split(" (?=[\\[])", number)):
            assert text in shown
        assert max(map(len, shown.splitlines())) <= width
