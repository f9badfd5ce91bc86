"""Folded batch norms: the formula in float64, and every reason for which one stays."""

import keras
import numpy as np
import pytest
from helpers import open_size
from helpers.norm_nets import drawn, images, network
from keras import layers

from kerasnorm import convert_norm, fold_norms
from kerasnorm.conversion.result import multiply_adds
from kerasnorm.errors import ConfigError
from kerasnorm.layers import StandardizedConv2D

pytestmark = pytest.mark.backend("any")
WIDE = {"dtype": "float64"}
ROWS = (8, 3)  # of a sequence
MAPS = (8, 8, 3)
LAYERS = {
    "conv": (MAPS, lambda: layers.Conv2D(4, 3, strides=2, padding="same", **WIDE)),
    "conv without bias": (MAPS, lambda: layers.Conv2D(4, 3, use_bias=False, **WIDE)),
    "grouped conv": (MAPS, lambda: layers.Conv2D(6, 3, groups=3, **WIDE)),
    "conv 1d": (ROWS, lambda: layers.Conv1D(4, 3, **WIDE)),
    "depthwise": (MAPS, lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, **WIDE)),
    "depthwise 1d": (ROWS, lambda: layers.DepthwiseConv1D(3, **WIDE)),
    "separable": (MAPS, lambda: layers.SeparableConv2D(4, 3, depth_multiplier=2, **WIDE)),
    "separable 1d": (ROWS, lambda: layers.SeparableConv1D(4, 3, **WIDE)),
    "transposed": (MAPS, lambda: layers.Conv2DTranspose(4, 3, strides=2, **WIDE)),
    "transposed 1d": (ROWS, lambda: layers.Conv1DTranspose(4, 3, strides=2, **WIDE)),
    "dense": ((5,), lambda: layers.Dense(4, **WIDE)),
    "dense of maps": (MAPS, lambda: layers.Dense(4, use_bias=False, **WIDE)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_folded_layer_computes_the_formula_of_batch_norm(name):
    shape, make = LAYERS[name]
    pixels = keras.Input(shape, dtype="float64")
    layer, norm = make(), layers.BatchNormalization(epsilon=0.01, **WIDE)
    model = drawn(keras.Model(pixels, norm(layer(pixels))))
    x = np.random.default_rng(3).normal(size=(2, *shape))

    folded = fold_norms(model)

    gamma, beta, mean, variance = (np.asarray(w.numpy()) for w in norm.weights)
    y = keras.ops.convert_to_numpy(layer(x))
    expected = gamma * (y - mean) / np.sqrt(variance + 0.01) + beta
    # Keras multiplies matrices of float64 in float32 on torch.
    tolerance = 1e-6 if "dense" in name else 1e-10
    outputs = keras.ops.convert_to_numpy(folded.model(x))
    assert np.allclose(outputs, expected, rtol=tolerance, atol=tolerance)
    assert [type(one) for one in folded.model.layers[1:]] == [type(layer)]
    assert folded.layers[0].after == "folded"


def test_standardized_kernels_are_folded_into_a_stock_convolution():
    model = keras.Sequential(
        [keras.Input(MAPS), StandardizedConv2D(4, 3), layers.BatchNormalization()]
    )
    x = images(2)
    expected = drawn(model).predict_on_batch(x)
    folded = fold_norms(model).model
    assert [type(one) for one in folded.layers] == [layers.Conv2D]
    assert np.allclose(folded.predict_on_batch(x), expected, rtol=1e-5, atol=1e-5)


def test_what_is_folded_in_nested_and_shared_models():
    model, x = network("float64"), images().astype("float64")
    before = keras.ops.convert_to_numpy(model(x))
    folded = fold_norms(model)
    assert {row.name: (row.after, row.note) for row in folded.layers} == {
        "stem/bn": ("folded", "into stem/conv"),
        "block/inner_bn": ("folded", "into block/depthwise"),
        "shared_bn": ("kept", "shared: called 2 times"),
        "last_bn": ("kept", "behind both (Concatenate)"),
    }
    after = keras.ops.convert_to_numpy(folded.model(x))
    assert np.allclose(after, before, rtol=1e-6, atol=1e-6)
    assert folded.preserves
    # Four weights per channel before, a bias per channel after that was there already.
    assert folded.parameters[0] - folded.parameters[1] == 4 * 6 + 4 * 6
    assert np.array_equal(keras.ops.convert_to_numpy(model(x)), before)


def made(build):
    pixels = keras.Input(MAPS)
    return drawn(keras.Model(pixels, build(pixels)))


def norm(**options):
    return layers.BatchNormalization(name="bn", **options)


def conv(**options):
    return layers.Conv2D(4, 3, name="conv", padding="same", **options)


def twice(x):
    layer = conv()
    return layers.Add()([norm()(layer(x)), layer(x)])


def with_consumer(x):
    y = conv()(x)
    return layers.Add(name="sum")([norm()(y), y])


def as_output(x):
    y = conv()(x)
    return [y, norm()(y)]


class Scaled(layers.BatchNormalization):
    """A batch norm whose inference is another."""


@keras.saving.register_keras_serializable()
class Halved:
    """An activation that is an object."""

    def __call__(self, x):
        return x / 2

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()


OBSTACLES = {
    f"behind the activation <{__name__}.Halved object> of conv": lambda x: norm()(
        conv(activation=Halved())(x)
    ),
    "behind the activation relu of conv": lambda x: norm()(conv(activation="relu")(x)),
    "behind the activation relu (ReLU), before the padded after": lambda x: layers.Conv2D(
        2, 3, padding="same", name="after"
    )(norm()(layers.ReLU(name="relu")(conv()(x)))),
    "behind pool (MaxPooling2D)": lambda x: norm()(layers.MaxPooling2D(name="pool")(conv()(x))),
    "first layer of its model": norm(),
    "conv is shared: called 2 times": twice,
    "conv has another consumer: sum": with_consumer,
    "conv has another consumer: the model's output": as_output,
    "always in training mode": lambda x: norm()(conv()(x), training=True),
    "its channels are not the last axis": lambda x: norm(axis=1)(conv()(x)),
    "Scaled is a class of its own": lambda x: Scaled(name="bn")(conv()(x)),
}


@pytest.mark.parametrize("reason", OBSTACLES)
def test_a_norm_that_cannot_be_folded_exactly_stays(reason):
    model = made(OBSTACLES[reason])
    folded = fold_norms(model)
    assert [(row.after, row.note) for row in folded.layers] == [("kept", reason)]
    assert folded.difference <= 1e-6
    assert folded.parameters[0] == folded.parameters[1]


def test_a_network_without_batch_norms_is_refused():
    with pytest.raises(ConfigError, match="expected a network with BatchNormalization"):
        fold_norms(convert_norm(network(), "lnc").model)


def test_multiply_adds_and_time():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.SeparableConv2D(5, 3, strides=2, padding="same"),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    folded = fold_norms(model, rounds=1)
    kernels = 64 * 27 * 4 + 16 * (9 * 4 + 4 * 5) + 80 * 2
    assert folded.multiply_adds == (kernels + 64 * 4, kernels)
    assert min(folded.milliseconds) > 0


def test_multiply_adds_count_once_per_call_and_parameters_once():
    """A block of a convolution and a norm on 8x8 pixels, and a norm, called twice each."""
    start = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(start)
    block = keras.Model(start, layers.LayerNormalization()(x))
    shared, image = layers.BatchNormalization(), keras.Input((8, 8, 4))
    model = keras.Model(image, shared(shared(block(block(image)))))
    assert multiply_adds(model) == 2 * 64 * (9 * 4 * 4 + 3 * 4) + 2 * 64 * 4
    assert model.count_params() == 9 * 4 * 4 + 2 * 4 + 4 * 4


@pytest.mark.parametrize("kind", open_size.KINDS)
def test_multiply_adds_of_a_model_for_any_size_are_those_of_its_layers(kind):
    nested, flat = open_size.pair(kind)
    assert multiply_adds(nested) == multiply_adds(flat)


L = layers
ALONE = {
    "dense": (L.Dense(5, use_bias=False), (7,)),
    "dense on a map": (L.Dense(5, use_bias=False), (3, 4, 7)),
    "convolution": (L.Conv2D(5, 3, use_bias=False), (6, 7, 4)),
    "strides": (L.Conv2D(5, 3, strides=2, use_bias=False), (9, 7, 4)),
    "groups": (L.Conv2D(6, 3, groups=2, use_bias=False), (6, 7, 4)),
    "dilation": (L.Conv1D(5, 3, dilation_rate=2, use_bias=False), (9, 4)),
    "3D": (L.Conv3D(2, (1, 2, 3), use_bias=False), (4, 4, 4, 3)),
    "depthwise": (L.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False), (6, 7, 4)),
    "depthwise 1D": (L.DepthwiseConv1D(3, depth_multiplier=3, use_bias=False), (6, 4)),
    "transposed": (L.Conv2DTranspose(5, 3, strides=2, use_bias=False), (4, 3, 6)),
    "transposed 1D": (L.Conv1DTranspose(5, 4, strides=3, use_bias=False), (4, 6)),
    "one output axis": (L.EinsumDense("abc,cd->abd", (None, 5)), (4, 7)),
    "two output axes": (L.EinsumDense("abc,cde->abde", (None, 2, 5)), (4, 7)),
    "two summed axes": (L.EinsumDense("abcd,cde->abe", (None, 5)), (4, 2, 7)),
    "of another place": (L.EinsumDense("abc,bd->adc", (5, 7)), (4, 7)),
    "ellipsis": (L.EinsumDense("...x,xyz->...yz", (2, 5)), (3, 4, 7)),
    "ellipsis on the right": (L.EinsumDense("ab...,bc->ac...", (5, 3, 4)), (7, 3, 4)),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "shape"), ALONE.values(), ids=ALONE)
def test_multiply_adds_are_the_products_that_a_layer_sums(layer, shape):
    """Where inputs and weights are 1, the sum of the outputs counts them."""
    image = keras.Input(shape)
    model = keras.Model(image, layer(image))
    for weight in model.weights:
        weight.assign(np.ones(weight.shape))
    outputs = model.predict_on_batch(np.ones((1, *shape), "float32"))
    assert multiply_adds(model) == round(outputs.sum())


def attended(image):
    return L.MultiHeadAttention(2, 3)(image, image)


UNKNOWN = {
    "LSTM": L.LSTM(3),
    "GRU": L.GRU(3, return_sequences=True),
    "SimpleRNN": L.SimpleRNN(3),
    "Bidirectional": L.Bidirectional(L.LSTM(3)),
    "TimeDistributed": L.TimeDistributed(L.Dense(3)),
    "MultiHeadAttention": attended,
    "Attention": lambda image: L.Attention()([image, image]),
    "Dot": lambda image: L.Dot(axes=2)([image, image]),
    "Matmul": lambda image: image @ keras.ops.transpose(image, (0, 2, 1)),
    "SpectralNormalization": L.SpectralNormalization(L.Dense(3)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_multiply_adds_that_are_not_known_say_of_what(name):
    image = keras.Input((8, 4))
    x = UNKNOWN[name](L.BatchNormalization()(L.Conv1D(4, 1)(image)))
    model = keras.Model(image, x)
    assert multiply_adds(model) is None
    done = fold_norms(model)
    assert done.multiply_adds is None
    assert f"Multiply-adds are not known, because of: {name}." in done.notes


def test_multiply_adds_do_not_depend_on_where_the_channels_are():
    """A 3x3 convolution from 3 to 8 channels on 16x16 pixels, and a batch norm, by hand."""
    for data_format, shape in (("channels_last", (16, 16, 3)), ("channels_first", (3, 16, 16))):
        axis = 1 if data_format == "channels_first" else -1
        image = keras.Input(shape)
        x = layers.Conv2D(8, 3, padding="same", data_format=data_format)(image)
        model = keras.Model(image, layers.BatchNormalization(axis=axis)(x))
        assert multiply_adds(model) == 256 * 27 * 8 + 256 * 8
