"""Small networks with norms in every place, and statistics that are not those of a new layer."""

import re

import keras
import numpy as np
from keras import layers

# A norm with gamma 1, beta 0, mean 0 and variance 1 would hide every mistake.
RANGES = {
    "gamma": (0.5, 1.5),
    "scale": (0.5, 1.5),
    "beta": (-0.5, 0.5),
    "moving_mean": (-0.5, 0.5),
    "moving_variance": (0.5, 2.0),
}


def drawn(model, seed=0):
    """Draws the weights of the norms of a model at random, and its biases; returns the model."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        low, high = RANGES.get(weight.name, (-0.5, 0.5))
        if weight.name in RANGES or weight.name == "bias":
            weight.assign(rng.uniform(low, high, weight.shape))
    return model


def images(count=4, size=8, seed=1):
    return np.random.default_rng(seed).normal(size=(count, size, size, 3)).astype("float32")


def single(norm, shape=(6, 6, 8)):
    """A model of one norm."""
    pixels = keras.Input(shape)
    return drawn(keras.Model(pixels, norm(pixels)))


def network(dtype="float32", norm=layers.BatchNormalization):
    """A functional model with a Sequential, a model that is called twice, and a shared norm."""
    pixels = keras.Input((8, 8, 3), dtype=dtype, name="pixels")
    stem = keras.Sequential(
        [
            keras.Input((8, 8, 3), dtype=dtype),
            layers.Conv2D(6, 3, padding="same", name="conv", dtype=dtype),
            norm(name="bn", dtype=dtype),
        ],
        name="stem",
    )
    x = layers.ReLU(dtype=dtype, name="relu")(stem(pixels))
    start = keras.Input((8, 8, 6), dtype=dtype)
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise", dtype=dtype)(start)
    y = norm(name="inner_bn", dtype=dtype)(y)
    block = keras.Model(start, layers.Add(dtype=dtype)([start, y]), name="block")
    x = block(block(x))
    shared = norm(name="shared_bn", dtype=dtype)
    one = shared(layers.Conv2D(4, 1, name="left", dtype=dtype)(x))
    two = shared(layers.Conv2D(4, 1, name="right", dtype=dtype)(x))
    x = layers.Concatenate(dtype=dtype, name="both")([one, two])
    x = norm(name="last_bn", dtype=dtype)(x)
    x = layers.GlobalAveragePooling2D(dtype=dtype)(x)
    return drawn(keras.Model(pixels, layers.Dense(5, name="logits", dtype=dtype)(x)))


def weights_by_path(model):
    """Values of the weights by the layers' names, of all models in the model."""
    found = {}
    for layer in model._flatten_layers():
        if not isinstance(layer, keras.Model):
            for weight in layer.weights:  # one without a name is numbered by Keras
                name = re.sub(r"variable_\d+", "variable", weight.name)
                found[f"{layer.name}/{name}"] = np.asarray(weight.numpy())
    return found
