"""The printed tables, against golden files and the sums that they state."""

import io
import json
from collections.abc import Callable

import keras
import pytest
from keras import layers
from rich.console import Console

from kerasnorm.inspection.layers import layer_table, receptive_field
from kerasnorm.network import build_model
from kerasnorm.tables import (
    Table,
    layers_to_json,
    receptive_field_table,
    summary_table,
    to_rich,
    to_text,
)

Golden = Callable[[str, str], None]
MODELS = {
    "era8-bn": {"norm": "bn", "recipe": "era8"},
    "era8-gn": {"norm": "gn", "recipe": "era8"},
    "era8-ln": {"norm": "ln", "recipe": "era8"},
    "era8-ln-element": {"norm": "ln", "recipe": "era8", "ln_affine": "element"},
    "best-bn": {"norm": "bn", "recipe": "best"},
    "best-gn": {"norm": "gn", "recipe": "best"},
    "best-ln": {"norm": "ln", "recipe": "best"},
}


@pytest.mark.parametrize("name", MODELS)
def test_summary(name: str, golden: Golden) -> None:
    model = build_model(**MODELS[name])
    grid = summary_table(layer_table(model), name)
    golden(f"summary-{name}.txt", to_text(grid))
    column = [heading.removeprefix(">") for heading in grid.columns].index("parameters")
    shown = sum(int(row[column].replace(",", "")) for row in grid.rows)
    totals = {row[0]: int(row[column].replace(",", "")) for row in grid.totals}
    assert shown == totals["total"] == model.count_params()
    assert totals["total"] == totals["trainable"] + totals["non-trainable"]


@pytest.mark.parametrize(
    ("name", "trainable", "total"),
    [
        ("era8-bn", 49_808, 50_256),
        ("era8-gn", 49_808, 49_808),
        ("era8-ln", 49_808, 49_808),
        ("era8-ln-element", 176_336, 176_336),
    ],
)
def test_parameters_of_the_published_solution(name: str, trainable: int, total: int) -> None:
    rows = layer_table(build_model(**MODELS[name]))
    assert sum(row.trainable_parameters for row in rows) == trainable
    assert sum(row.parameters for row in rows) == total


def test_receptive_field_of_our_network(golden: Golden) -> None:
    golden("receptive-field.txt", to_text(receptive_field_table(receptive_field(build_model()))))


def test_published_column_is_for_images_of_32_pixels_only() -> None:
    rows = receptive_field(build_model(input_shape=(64, 48, 3)))
    grid = receptive_field_table(rows)
    assert grid.columns == ("block", "layer", ">size", ">receptive field", ">jump")
    assert grid.rows[0] == ("convblock1", "C1", "64x48 -> 64x48", "1 -> 3", "1 -> 1")
    assert grid.rows[-1] == ("fc1", "C10", "1 -> 1", "104x88 -> 104x88", "4 -> 4")


def test_receptive_field_of_another_model() -> None:
    pixels = keras.Input((None, None, 3))
    x = layers.Conv2D(4, (3, 1), strides=(2, 1), padding="same", name="conv")(pixels)
    model = keras.Model(pixels, layers.ReLU()(x))
    grid = receptive_field_table(receptive_field(model), title="other")
    assert grid.columns == ("layer", ">size", ">receptive field", ">jump")
    assert grid.rows == [("conv", "- -> -", "1 -> 3x1", "1 -> 2x1")]
    assert summary_table(layer_table(model)).rows[1][2] == "?x?x4"


def test_json_is_a_list_of_layers() -> None:
    layer = layers_to_json(layer_table(build_model("bn", "era8")))[2]
    assert json.loads(json.dumps(layer)) == {
        "name": "convblock1_conv1",
        "type": "Conv2D",
        "output_shape": [None, 32, 32, 16],
        "parameters": 432,
        "receptive_field": 3,
        "jump": 1,
    }


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
