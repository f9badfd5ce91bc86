"""The walk over a model's graph: against published numbers, its corners and its refusals."""

import json
import re
from collections.abc import Callable
from dataclasses import replace

import keras
import numpy as np
import pytest
from helpers import open_size
from keras import Sequential, layers

from kerasnorm.config import LAYER_LABELS
from kerasnorm.errors import ConfigError
from kerasnorm.inspection.graph import functional_graph, nodes
from kerasnorm.inspection.layers import (
    layer_table,
    layers_to_json,
    receptive_field,
    receptive_field_table,
    summary_table,
)
from kerasnorm.network import build_model
from kerasnorm.norms import NORMS
from kerasnorm.tables import to_text

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


def conv(x: object, kernel: object = 3, **options: object) -> object:
    return layers.Conv2D(2, kernel, **options)(x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("recipe", ["era8", "best"])
def test_our_network(recipe: str, norm: str) -> None:
    rows = receptive_field(build_model(norm, recipe))
    assert [row.name for row in rows] == list(LAYER_LABELS)
    found = [row.receptive_field for row in rows]
    assert found == [3, 5, 5, 6, 10, 14, 18, 18, 20, 28, 36, 44, 72, 72]
    assert [row.jump for row in rows] == [1, 1, 1, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4]
    assert [row.after.size for row in rows] == [32] * 3 + [16] * 5 + [8] * 4 + [1] * 2


@pytest.mark.parametrize(
    ("name", "layer", "size", "jump"),
    [("VGG16", "block5_pool", 212, 32), ("MobileNet", "conv_pw_13", 315, 32)],
)
def test_published_networks(name: str, layer: str, size: int, jump: int) -> None:
    """Araujo et al., Distill 2019, doi 10.23915/distill.00021, table 2."""
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(64, 64, 3), include_top=False
    )
    rows = {row.name: row for row in layer_table(model)}
    assert (rows[layer].receptive_field, rows[layer].jump) == (size, jump)
    assert sum(row.parameters for row in rows.values()) == model.count_params()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ranks(rank: int) -> None:
    names = ("Conv", "ZeroPadding", "MaxPooling", "Cropping", "SpatialDropout", "GlobalMaxPooling")
    kind = {name: getattr(layers, f"{name}{rank}D") for name in names}
    model = Sequential(
        [
            keras.Input((16,) * rank + (2,)),
            kind["Conv"](2, 3, padding="same"),
            kind["ZeroPadding"](1),
            kind["MaxPooling"](3, 1),
            kind["Cropping"](2),
            kind["SpatialDropout"](0.1),
            kind["GlobalMaxPooling"](),
        ]
    )
    rows = receptive_field(model)
    assert [row.receptive_field for row in rows] == [3, 3, 5, 5, 16]
    assert [row.after.fields[0].start for row in rows] == [-1, -2, -2, 0, 0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RandomFlip", {}),
        ("RandomRotation", {"factor": 0.1}),
        ("RandomContrast", {"factor": 0.1}),
        ("RandomErasing", {}),
        ("RandomInvert", {}),
        ("RandomSharpness", {"factor": 0.1}),
        ("RandAugment", {}),
    ],
)
def test_augmentation_leaves_the_field_as_it_is(name: str, options: dict[str, float]) -> None:
    layer = getattr(layers, name)(**options)
    images = np.random.Generator(np.random.PCG64(0)).uniform(0, 255, (2, 8, 8, 3))
    assert np.allclose(layer(images, training=False), images, atol=1e-3)  # nothing at inference
    model = Sequential([keras.Input((8, 8, 3)), layer, layers.Conv2D(1, 3)])
    assert [(row.receptive_field, row.reason) for row in layer_table(model)][1:] == [
        (1, ""),
        (3, ""),
    ]


def test_causal_padding_looks_back_only() -> None:
    model = Sequential(
        [keras.Input((16, 1)), layers.Conv1D(1, 3, padding="causal", dilation_rate=2)]
    )
    (row,) = receptive_field(model)
    assert (row.receptive_field, row.after.fields[0].start) == (5, -4)


def test_channels_first_is_read_as_such() -> None:
    options = {"data_format": "channels_first"}
    model = Sequential(
        [
            keras.Input((2, 16, 12)),
            layers.Conv2D(2, (3, 5), **options),
            layers.MaxPooling2D(2, **options),
            layers.GlobalAveragePooling2D(**options),
        ]
    )
    rows = receptive_field(model)
    assert [row.after.sizes for row in rows] == [(14, 8), (7, 4), (1, 1)]
    assert [row.receptive_field for row in rows] == [[3, 5], [4, 6], [16, 12]]


def test_dense_over_a_flattened_map_sees_all_of_it() -> None:
    model = Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(2, 3),
            layers.Flatten(),
            layers.BatchNormalization(),
            layers.Dense(4),
            layers.Dense(2),
        ]
    )
    rows = layer_table(model)
    assert [row.receptive_field for row in rows] == [1, 3, 3, 3, 8, 8]
    assert [row.is_spatial for row in rows] == [False, True, False, False, True, False]


def test_a_model_of_vectors_has_no_receptive_field() -> None:
    rows = layer_table(Sequential([keras.Input((8,)), layers.Dense(4), layers.ReLU()]))
    assert [(row.receptive_field, row.jump, row.is_spatial) for row in rows] == [
        (None, None, False)
    ] * 3


def test_a_slice_of_a_vector_sees_what_the_vector_does() -> None:
    pixels = keras.Input((8, 6, 4))
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(pixels))
    rows = layer_table(keras.Model(pixels, pooled[:, 1:]))
    assert [row.receptive_field for row in rows[-2:]] == [[8, 6]] * 2


def test_sizes_that_are_not_fixed() -> None:
    x = pixels = keras.Input((None, None, 3))
    rows = layer_table(keras.Model(pixels, conv(conv(x), strides=2, padding="same")))
    assert [row.output_shape for row in rows][1:] == [(None, None, None, 2)] * 2
    assert [row.receptive_field for row in rows] == [1, 3, 5]


@keras.saving.register_keras_serializable(package="tests")
class OwnConv2D(layers.Conv2D):
    pass


def test_subclass_of_a_known_layer() -> None:
    rows = layer_table(Sequential([keras.Input((8, 8, 1)), OwnConv2D(2, 3)]))
    assert (rows[-1].type, rows[-1].receptive_field) == ("OwnConv2D", 3)


def test_names_in_submodels_and_shared_layers_counted_once() -> None:
    inner = keras.Input((None, None, 2))
    submodel = keras.Model(inner, layers.Conv2D(2, 3, name="conv")(inner), name="inner")
    pixels = keras.Input((16, 16, 2), name="pixels")
    model = keras.Model(pixels, layers.GlobalMaxPooling2D(name="max")(submodel(submodel(pixels))))
    rows = layer_table(model)
    assert [(row.name, row.parameters, row.receptive_field) for row in rows] == [
        ("pixels", 0, 1),
        ("inner/conv", 38, 3),
        ("inner/conv", 0, 5),
        ("max", 0, 16),
    ]
    assert model.count_params() == 38


@pytest.mark.parametrize("kind", open_size.KINDS)
def test_a_submodel_for_any_size_has_the_sizes_of_its_calls(kind: Callable[..., object]) -> None:
    nested, flat = (layer_table(model) for model in open_size.pair(kind))
    named = [replace(row, name=row.name.rpartition("/")[2]) for row in nested]
    assert named == flat
    assert not any(None in row.output_shape[1:] for row in nested)


def test_frozen_and_non_trainable_parameters() -> None:
    model = build_model("bn", "era8")
    model.get_layer("fc1").trainable = False
    rows = {row.name: row for row in layer_table(model)}
    assert (rows["fc1"].parameters, rows["fc1"].trainable_parameters) == (320, 0)
    norm = rows["convblock1_norm1"]
    assert (norm.parameters, norm.trainable_parameters) == (64, 32)


class Unknown(layers.Layer):
    """A layer that could mix pixels."""

    def build(self, shape: object) -> None:
        self.kernel = self.add_weight(shape=(3, 3), name="kernel")

    def call(self, x: object) -> object:
        return x


class Halved(layers.Layer):
    """A user's norm, as far as shapes and weights show."""

    def call(self, x: object) -> object:
        return x / 2


class Subclassed(keras.Model):
    def call(self, x: object) -> object:
        return x


def refused(make: Callable[[object], object], size: int | None = 8) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        pixels = keras.Input((size, size, 2))
        return keras.Model(pixels, make(pixels))

    return build


def attention(pixels: object) -> object:
    x = layers.Reshape((64, 2), name="flat")(conv(pixels, padding="same"))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)])
    return conv(layers.Reshape((8, 8, 2))(x))


def two_inputs() -> keras.Model:
    a, b = keras.Input((8, 8, 2), name="a"), keras.Input((8, 8, 2), name="b")
    return keras.Model([a, b], layers.Add()([a, b]))


def test_the_order_of_channels_does_not_change_the_field() -> None:
    pixels = keras.Input((8, 8, 3))
    flipped = keras.Model(pixels, conv(conv(pixels)[..., ::-1], strides=2))
    rows = layer_table(flipped)
    assert [row.receptive_field for row in rows] == [1, 3, 3, 5]
    assert [row.name for row in receptive_field(flipped)] == [rows[1].name, rows[3].name]


def test_a_norm_of_the_users_own_leaves_the_field_and_is_named_below_the_table() -> None:
    pixels = keras.Input((8, 8, 3))
    rows = layer_table(keras.Model(pixels, conv(Halved()(conv(pixels)))))
    assert [row.receptive_field for row in rows] == [1, 3, 3, 5]
    assert "like a norm: Halved" in to_text(summary_table(rows)).replace("\n", " ")


def test_behind_squeeze_and_excite_the_field_stays_and_that_is_said() -> None:
    """A pooling over 8x8 units of field 3 and jump 1 sees 10 pixels."""
    pixels = keras.Input((8, 8, 3))
    x = conv(pixels, padding="same", name="first")
    gate = conv(layers.GlobalAveragePooling2D(keepdims=True, name="pooling")(x), 1, name="gate")
    x = conv(layers.Multiply(name="scaled")([x, gate]), padding="same", name="last")
    rows = layer_table(keras.Model(pixels, x))
    assert [(row.name, row.receptive_field) for row in rows[1:]] == [
        *(("first", 3), ("pooling", 10), ("gate", 10), ("scaled", 10), ("last", 10))
    ]
    shared = {layer["name"]: layer["is_shared"] for layer in layers_to_json(rows)[1:]}
    assert [name for name, is_shared in shared.items() if is_shared] == ["scaled", "last"]
    for table, first in (
        (summary_table(rows), "scaled"),
        (receptive_field_table([row for row in rows if row.is_spatial]), "last"),
    ):
        assert f"From {first} on, maps are merged with the result" in " ".join(table.notes)
    plain = layer_table(keras.Model(pixels, conv(pixels)))
    assert not any("merged" in note for note in summary_table(plain).notes)


def test_behind_an_enlargement_fields_are_bounds_and_jumps_may_be_fractions() -> None:
    pixels = keras.Input((8, 8, 3))
    x = conv(layers.UpSampling2D(2, name="larger")(pixels))
    rows = layer_table(keras.Model(pixels, layers.MaxPooling2D(2)(x)))
    # Three of the enlarged units are two pixels, or one and a half and thus two; four are three.
    assert [row.receptive_field for row in rows] == [1, 1, 2, 3]
    assert [row.jump for row in rows] == [1, 0.5, 0.5, 1]
    assert [row.after.is_bound for row in rows] == [False, True, True, True]
    text = to_text(summary_table(rows))
    assert "<=2" in text
    assert "0.5" in text
    assert "an upper bound" in text


UNKNOWN = [
    (refused(Unknown(name="odd")), "layer 'odd'.*Received: Unknown.*a part of"),
    (refused(layers.Permute((2, 1, 3))), "Received: Permute"),
    (refused(lambda x: keras.ops.transpose(x, (0, 2, 1, 3))), "Received: Transpose"),
    (refused(layers.Reshape((16, 4, 2))), r"\[8, 8\] to \[16, 4\]"),
    (refused(lambda x: layers.Concatenate(1)([x, x])), "concatenate channels.*axis=1"),
    (refused(layers.AdaptiveMaxPooling2D(2)), r"Received: \[2, 2\]"),
    (refused(lambda x: x[:, ::-1]), r"goes forward.*Received: slice\(None, None, -1\)"),
    (refused(lambda x: x[:, 4]), "Expected slices.*another subscript"),
    (refused(lambda x: x[0:1, :]), "Expected slices.*another subscript"),
    (refused(lambda x: layers.Flatten()(x)[:, :9]), "not flattened.*another subscript"),
    (
        refused(
            lambda x: layers.Add(name="sum")(
                [conv(x, 2, strides=2), conv(conv(x), 3)]  # both 4x4, of jumps 2 and 1
            )
        ),
        r"layer 'sum'.*one jump.*\[1, 2\]",
    ),
    (refused(layers.GlobalMaxPooling2D(), None), "fixed input shape"),
    (refused(attention), r"layer 'flat'.*\[8, 8\] to \[64\]"),
]
REFUSED = [
    (
        refused(lambda x: layers.MaxPooling2D(data_format="channels_first")(conv(x))),
        "channels_first and channels_last",
    ),
    (two_inputs, "one input.*inputs a, b"),
    (lambda: Sequential([layers.Conv2D(2, 3)]), "has been built.*Received: Sequential"),
    (Subclassed, "Received: Subclassed"),
    (refused(Subclassed()), "Received: Subclassed"),
]


@pytest.mark.parametrize(("build", "message"), [*UNKNOWN, *REFUSED])
def test_refusals_name_the_layer_and_the_reason(
    build: Callable[[], keras.Model], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        receptive_field(build())


@pytest.mark.parametrize("build", [build for build, _ in REFUSED])
def test_models_without_one_graph_of_images_have_no_table(build: Callable[[], keras.Model]) -> None:
    with pytest.raises(ConfigError):
        layer_table(build())


@pytest.mark.parametrize(("build", "message"), UNKNOWN)
def test_behind_a_layer_of_unknown_field_the_summary_has_all_but_fields(
    build: Callable[[], keras.Model], message: str
) -> None:
    model = build()
    rows = layer_table(model)
    assert [row.output_shape for row in rows] == [
        node.outputs[0].shape for node in nodes(functional_graph(model))
    ]
    assert sum(row.parameters for row in rows) == model.count_params()
    (first,) = (number for number, row in enumerate(rows) if row.reason)
    assert [row.receptive_field is None for row in rows] == [
        number >= first for number in range(len(rows))
    ]
    table = summary_table(rows)
    assert {line[-2:] for line in table.rows[first:]} == {("-", "-")}
    (note,) = (note for note in table.notes if note.startswith(f"Behind {rows[first].name} no "))
    assert re.search(message, note)
    assert {layer["jump"] for layer in layers_to_json(rows)[first:]} == {None}


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
        "is_bound": False,
        "is_shared": False,
    }
