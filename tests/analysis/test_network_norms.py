"""The norms of a network and the values that share their statistics, counted by hand."""

import json

import keras
import pytest
from helpers import open_size
from helpers.command import call
from helpers.norm_nets import network
from keras import layers, ops

from kerasnorm.analysis.network_norms import norm_rows, norms_table
from kerasnorm.errors import ConfigError
from kerasnorm.tables import to_text

pytestmark = pytest.mark.backend("any")


class OfHalves(layers.Layer):
    """Subtracts the mean of H, W and half of the channels, and cuts off what is negative."""

    def call(self, x):
        means = [ops.mean(half, axis=(1, 2, 3), keepdims=True) for half in ops.split(x, 2, axis=-1)]
        halves = zip(ops.split(x, 2, axis=-1), means, strict=True)
        return ops.relu(ops.concatenate([half - mean for half, mean in halves], axis=-1))


class MyNorm(layers.Layer):
    """Subtracts the mean of each channel over the batch."""

    def call(self, x):
        return x - ops.mean(x, axis=(0, 1, 2), keepdims=True)


class NormOfMeans(layers.Layer):
    """Divides the means of an image's channels by their norm."""

    def call(self, x):
        means = ops.mean(x, axis=(1, 2))
        return means / (ops.norm(means, axis=-1, keepdims=True) + 1e-6)


# Statistics over, values of one image that share them, statistics, of a map of 6x4 of 8 channels.
CASES = {
    "N, H, W": (layers.BatchNormalization, 24, 8),
    "H, W, 4 groups of 2 channels": (lambda: layers.GroupNormalization(4), 48, 4),
    "H, W, C": (lambda: layers.GroupNormalization(1), 192, 1),
    "H, W": (lambda: layers.GroupNormalization(-1), 24, 8),
    "C": (layers.LayerNormalization, 8, 24),
    "W, C": (lambda: layers.LayerNormalization(axis=(2, 3)), 32, 6),
    "H": (lambda: layers.RMSNormalization(axis=1), 6, 32),
    "H, W, 2 groups of 4 channels": (OfHalves, 96, 2),
}


@pytest.mark.parametrize("over", CASES)
def test_the_axes_and_the_values_that_share_statistics(over):
    make, values, sets = CASES[over]
    pixels = keras.Input((6, 4, 8))
    (row,) = norm_rows(keras.Model(pixels, make()(pixels)), [OfHalves])
    assert (row.over, row.values, row.sets) == (over, values, sets)
    assert row.is_observed == (make is OfHalves)


def test_a_batch_statistic_of_an_own_class_is_found_by_its_name():
    pixels = keras.Input((6, 4, 8))
    (row,) = norm_rows(keras.Model(pixels, MyNorm()(pixels)))
    assert (row.over, row.values, row.sets, row.is_observed) == ("N, H, W", 24, 8, True)
    assert "24 x N" in to_text(norms_table([row]))


class Squared(layers.Layer):
    def call(self, x):
        return ops.square(x)


class Mixed(layers.Layer):
    """Convolves: its kernel says that it is no norm."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(3, 3, shape[-1], shape[-1]))

    def call(self, x):
        return ops.conv(x, self.kernel, padding="same")


class NoConfig(layers.Layer):
    """Cannot be made anew, because it has no config that holds its function."""

    def __init__(self, statistic, **options):
        super().__init__(**options)
        self.statistic = statistic

    def call(self, x):
        return x - self.statistic(x, axis=(1, 2), keepdims=True)


def test_layers_of_the_users_own_are_listed_if_their_values_share_something(caplog):
    pixels = keras.Input((6, 4, 8))
    x = Squared()(layers.Activation("relu")(OfHalves(name="mine")(Mixed()(pixels))))
    x = layers.BatchNormalization(name="bn")(layers.Dropout(0.5)(x))
    rows = norm_rows(keras.Model(pixels, x))
    assert [(row.name, row.over, row.is_observed) for row in rows] == [
        ("mine", "H, W, 2 groups of 4 channels", True),
        ("bn", "N, H, W", False),
    ]
    assert not caplog.records
    rows = norm_rows(keras.Model(pixels, NoConfig(ops.mean, name="odd")(x)))
    assert [row.name for row in rows] == ["mine", "bn"]
    assert "odd (NoConfig) is not listed, although it may be a norm: " in caplog.text
    assert "raised NotImplementedError: " in caplog.text


class MyBatchNorm(layers.BatchNormalization):
    pass


class MyGroupNorm(layers.GroupNormalization):
    pass


class ScaledNorm(layers.Layer):
    """Divides an image by its root mean square, with a scale whose first value is 0."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="zeros", name="scale")

    def call(self, x):
        mean = ops.mean(ops.square(x), axis=(1, 2, 3), keepdims=True)
        return x * ops.rsqrt(mean + 1e-5) * self.scale


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize(
    ("make", "over"),
    [
        (lambda **options: MyBatchNorm(gamma_initializer="zeros", **options), "N, H, W"),
        (MyBatchNorm, "N, H, W"),
        (lambda **options: MyGroupNorm(4, **options), "H, W, 4 groups of 2 channels"),
        (
            lambda **options: MyGroupNorm(4, gamma_initializer="zeros", **options),
            "H, W, 4 groups of 2 channels",
        ),
        (ScaledNorm, "H, W, C"),
    ],
)
@pytest.mark.backend("any", long_on="tensorflow")
def test_a_scale_of_0_or_a_frozen_layer_hides_no_statistics(make, over, trainable, dtype):
    pixels = keras.Input((6, 4, 8))
    (row,) = norm_rows(keras.Model(pixels, make(trainable=trainable, dtype=dtype)(pixels)))
    assert (row.over, row.is_observed) == (over, True)


class NormOfState(layers.Layer):
    """Subtracts each image's mean, and a moving mean of all; its scale and a noise are random."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="random_normal", name="scale")
        self.moving = self.add_weight(shape=(), initializer="zeros", trainable=False, name="moving")
        self.noise = layers.GaussianNoise(0.1)

    def call(self, x, training=False):
        y = self.scale * (x - ops.mean(x, axis=(1, 2, 3), keepdims=True)) - self.moving
        if training:
            self.moving.assign(self.moving + ops.mean(x))
        return self.noise(y, training=training)


def test_neither_moving_statistics_nor_random_numbers_look_like_shared_statistics():
    pixels = keras.Input((6, 4, 8))
    (row,) = norm_rows(keras.Model(pixels, NormOfState()(pixels)))
    assert (row.over, row.is_observed) == ("H, W, C", True)


def test_the_layer_that_is_observed_stays_as_it_is():
    pixels = keras.Input((6, 4, 8))
    norm = MyBatchNorm(gamma_initializer="zeros", trainable=False)
    norm_rows(keras.Model(pixels, norm(pixels)))
    assert not norm.trainable
    assert [float(ops.sum(weight)) for weight in norm.weights] == [0, 0, 0, 8]


def test_fewest_values_of_batches_and_of_images_are_told_apart():
    """A batch norm of 8 values of each of 16 images shares more than a layer norm of 10."""
    pixels = keras.Input((2, 4, 10))
    x = layers.LayerNormalization(name="ln")(layers.BatchNormalization(name="bn")(pixels))
    notes = " ".join(norms_table(norm_rows(keras.Model(pixels, x))).notes)
    assert "Fewest values share statistics in bn: 8 of each image, and in ln: 10." in notes


def test_each_call_in_nested_and_shared_models_has_a_row():
    found = [(row.name, row.behind, row.shape) for row in norm_rows(network())]
    assert found == [
        ("stem/bn", "stem/conv", (8, 8, 6)),
        ("block/inner_bn", "block/depthwise", (8, 8, 6)),
        ("shared_bn", "left", (8, 8, 4)),
        ("shared_bn", "right", (8, 8, 4)),
        ("last_bn", "both", (8, 8, 8)),
    ]


def test_the_weights_of_a_norm_that_is_called_twice_count_once():
    rows = norm_rows(network())
    assert [row.parameters for row in rows] == [24, 24, 16, 16, 32]  # four for each channel
    assert norms_table(rows).totals[0][-1] == "96"  # 112 would count the shared norm twice


def test_a_layer_that_changes_the_shape_is_no_norm():
    pixels = keras.Input((6, 4, 8))
    model = keras.Model(pixels, NormOfMeans()(layers.BatchNormalization(name="bn")(pixels)))
    assert [row.name for row in norm_rows(model)] == ["bn"]


def test_a_size_that_is_not_fixed_leaves_the_numbers_open():
    pixels = keras.Input((None, 4, 8))
    (row,) = norm_rows(keras.Model(pixels, layers.GroupNormalization(4)(pixels)))
    assert (row.values, row.sets) == (None, None)
    assert "?x4x8" in to_text(norms_table([row]))
    (row,) = norm_rows(keras.Model(pixels, layers.LayerNormalization()(pixels)))
    assert row.over == "C"


@pytest.mark.parametrize("kind", open_size.KINDS)
def test_a_norm_in_a_model_for_any_size_has_the_sizes_of_its_calls(kind):
    def facts(model):
        return sorted((row.shape, row.values, row.sets, row.over) for row in norm_rows(model))

    nested, flat = open_size.pair(kind)
    assert facts(nested) == facts(flat)


def test_channels_first_are_refused():
    pixels = keras.Input((8, 6, 4))
    with pytest.raises(ConfigError, match="has its channels on axis 1 of"):
        norm_rows(keras.Model(pixels, layers.BatchNormalization(axis=1)(pixels)))
    with pytest.raises(ConfigError, match="has its channels on axis 1 of"):
        norm_rows(keras.Model(pixels, MyGroupNorm(2, axis=1)(pixels)))
    x = layers.ZeroPadding2D(data_format="channels_first")(pixels)
    for norm in (layers.LayerNormalization(axis=1), MyNorm()):
        with pytest.raises(ConfigError, match="has its channels first"):
            norm_rows(keras.Model(pixels, norm(x)))


class NormOfTwo(layers.Layer):
    """Calls two norms."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = layers.BatchNormalization(), layers.LayerNormalization()

    def call(self, x, training=False):
        return self.second(self.first(x, training=training))


def test_a_norm_inside_another_layer_is_not_passed_over():
    pixels = keras.Input((6, 4, 8))
    (row,) = norm_rows(keras.Model(pixels, NormOfTwo()(pixels)))
    assert (row.over, row.parameters) == ("N, H, W, C", 48)
    inside = layers.TimeDistributed(layers.BatchNormalization())
    x = layers.BatchNormalization()(inside(pixels))
    with pytest.raises(ConfigError, match="holds a BatchNormalization inside, which cannot be lis"):
        norm_rows(keras.Model(pixels, x))


NORM = """
import keras
from kerasnorm.norms import Norm

class Centered(keras.layers.Layer):
    def call(self, x):
        return x - keras.ops.mean(x, axis=(1, 2), keepdims=True)

RECORD = Norm(
    name="mine", layer=lambda config, channels, **common: Centered(**common), color="#000000"
)
"""


def test_the_command_explains_a_network(tmp_path):
    path = tmp_path / "net.keras"
    network().save(path)
    text, _ = call("explain", "--network", path, "--no-cost")
    assert "last_bn" in text
    assert "N, H, W" in text
    rows = json.loads(call("explain", "gn", "--groups", 3, "--network", path, "--json")[0])
    assert [row["over"] for row in rows] == [
        *["H, W, 3 groups of 2 channels"] * 2,
        *["H, W, 2 groups of 2 channels"] * 2,
        "H, W, 2 groups of 4 channels",
    ]
    own = tmp_path / "own.py"
    own.write_text(NORM)
    words = ["--network", "builtin", "--image-shape", "8,8,3", "--json"]
    rows = json.loads(call("explain", f"{own}:RECORD", *words)[0])
    assert [(row["type"], row["over"]) for row in rows] == [("Centered", "H, W")] * 10
    assert [row["values"] for row in rows] == [64] * 3 + [16] * 4 + [4] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a norm, or give --network"),
        (["gn", "--groups", 2], "--groups: add --network"),
        (["--network", "keras:MobileNetV2", "--rounds", 2], "--rounds: leave out --network"),
        (["--network", "keras:MobilNetV2"], "Did you mean keras:MobileNetV2"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(words, message):
    _, text = call("explain", *words, code=2)
    assert message in text
    assert len(text.splitlines()) == 1
