"""Graphs of models in models, whose layers may have one name."""

import keras
import numpy as np
import pytest
from keras import layers

from kerasnorm.inspection.graph import flattened, is_identity, kernels, weights_by_name

pytestmark = pytest.mark.backend("any")
PIXELS = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)


def block(shape, name):
    start = keras.Input(shape)
    x = layers.ReLU(name="relu")(layers.Conv2D(3, 3, padding="same", name="conv")(start))
    return keras.Model(start, x, name=name)


class Own(layers.Layer):
    """Two layers of one name, in a layer."""

    def __init__(self, **options):
        super().__init__(**options)
        self.one, self.two = layers.Dense(3, name="same"), layers.Dense(3, name="same")

    def build(self, shape):
        self.one.build(shape)
        self.two.build(shape)

    def call(self, x):
        return self.one(x) + self.two(x)


class Subclassed(keras.Model):
    """A model that has no graph."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.conv = layers.Conv2D(3, 1, name="conv")

    def build(self, shape):
        self.conv.build(shape)

    def call(self, x):
        return self.conv(x)


def of_blocks(*others):
    """A model of blocks, one in another, one that is called twice, and other layers behind."""
    pixels = keras.Input((6, 6, 3))
    twice, start = block((6, 6, 3), "twice"), keras.Input((6, 6, 3))
    outer = keras.Model(start, block((6, 6, 3), "inner")(twice(twice(start))), name="outer")
    stem = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(3, 1, name="conv")], name="stem")
    x = layers.Conv2D(3, 1, name="conv")(outer(stem(pixels)))
    for other in others:
        x = other(x)
    return keras.Model(pixels, layers.Dense(2, name="head")(x))


BLOCKS = ["stem/conv", "outer/twice/conv", "outer/inner/conv", "conv"]


def test_models_whose_layers_have_one_name_become_one_graph():
    model = of_blocks()
    before = [layer.name for layer in model._flatten_layers()]
    flat = flattened(model)
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    assert [layer.name for layer in model._flatten_layers()] == before
    assert {layer.name for layer in flat.layers} >= {"conv", "relu", "head"}
    one, other = (keras.ops.stop_gradient(net(PIXELS)) for net in (flat, model))
    assert np.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_others", [False, True])
def test_each_weight_has_a_name_of_its_own(with_others):
    others = [Subclassed(), Own(name="own")] if with_others else []
    model = of_blocks(*others)
    owners = BLOCKS + ["subclassed/conv", "own/same"] * with_others + ["head"]
    names = {f"{owner}/{kind}" for owner in owners for kind in ("kernel", "bias")}
    names |= {"own/same/kernel_2", "own/same/bias_2"} if with_others else set()
    found = weights_by_name(model)
    assert {*found} == names
    assert {*map(id, found.values())} == {*map(id, model.weights)}
    outer = model.get_layer("outer")
    assert found["outer/twice/conv/kernel"] is outer.get_layer("twice").get_layer("conv").kernel
    assert found["conv/kernel"] is model.get_layer("conv").kernel


def test_kernels_are_those_of_all_layers_and_of_the_layers_in_them():
    pixels = keras.Input((6, 6, 3))
    inner = keras.Input((6, 6, 4))
    y = layers.SeparableConv2D(4, 3, padding="same", depth_multiplier=2, name="separable")(inner)
    y = layers.PReLU(name="prelu")(layers.LayerNormalization(axis=(1, 2, 3), name="norm")(y))
    x = layers.TimeDistributed(layers.Dense(4, name="dense"), name="wrapper")(pixels)
    x = keras.Model(inner, y, name="inner")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    frozen = layers.DepthwiseConv2D(3, name="depthwise", trainable=False)
    found = kernels(keras.Model(pixels, frozen(x)))
    assert {(layer.name, *kernel.shape) for layer, kernel in found} == {
        ("dense", 3, 4),
        ("separable", 3, 3, 4, 2),
        ("separable", 1, 1, 8, 4),
        *((name, 4, 2, 3) for name in ("query", "key", "value")),
        ("attention_output", 2, 3, 4),
        ("depthwise", 3, 3, 4, 1),
    }
    assert len(found) == 8


class Extended(layers.SpatialDropout2D):
    """A dropout under another name."""


class DropoutAlways(layers.Dropout):
    """A dropout at inference too (Gal & Ghahramani, arXiv 1506.02142)."""

    def call(self, x):
        return super().call(x, training=True)


class Dropout(layers.Layer):
    """A layer that has the name of one of Keras's, and does something else."""

    def call(self, x):
        return 2.0 * x


LAYERS = [
    *(layers.ActivityRegularization(0.1), layers.AlphaDropout(0.5), layers.Dropout(0.5)),
    *(layers.GaussianDropout(0.5), layers.GaussianNoise(0.5), layers.Identity()),
    *(layers.SpatialDropout2D(0.5), Extended(0.5), DropoutAlways(0.5), Dropout()),
    *(layers.ReLU(), layers.Rescaling(2.0), layers.MaxPooling2D(2), layers.BatchNormalization()),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_what_does_nothing_at_inference_is_known(layer):
    outputs = keras.ops.convert_to_numpy(layer(PIXELS, training=False))
    assert is_identity(layer) == np.array_equal(outputs, PIXELS)
