"""Tables as plain text and on a terminal."""

import io

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
    console.print(to_rich(GRID))
    shown = console.file.getvalue()
    for text in ("A title", "name", "a[b]", "[red]", "1,000", "sum", "1,001", "A note."):
        assert text in shown


def test_rich_takes_no_text_for_an_emoji_or_a_style() -> None:
    texts = (":car:", "[red]x[/]", "[/none]", "[b]")
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(to_rich(Table(texts, [texts], [texts], texts, title=":car:")))
    shown = console.file.getvalue()
    assert [shown.count(text) for text in texts] == [5, 4, 4, 4]
