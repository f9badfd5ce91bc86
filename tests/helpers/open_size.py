"""A model in a model that was built for maps of any size, and the same layers without the models.

`keras.applications` builds such a model with `include_top=False`.
"""

import keras
from keras import layers


def stack(stage):
    """New layers, among them every kind whose output has another size than its input."""
    return [
        layers.Conv2D(6, 3, strides=2, padding="same", name=f"conv{stage}"),
        layers.BatchNormalization(name=f"bn{stage}"),
        layers.ReLU(name=f"relu{stage}"),
        layers.SeparableConv2D(3, 2, name=f"separable{stage}"),
        layers.MaxPooling2D(2, padding="same", name=f"pool{stage}"),
        layers.Conv2DTranspose(3, 3, strides=2, name=f"transpose{stage}"),
        layers.LayerNormalization(name=f"ln{stage}"),
        layers.ZeroPadding2D(1, name=f"padding{stage}"),
    ]


def applied(found, x):
    """Layers, applied one after the other."""
    for layer in found:
        x = layer(x)
    return x


def functional(found):
    """A functional model of layers, for maps of any size."""
    pixels = keras.Input((None, None, 3))
    return keras.Model(pixels, applied(found, pixels), name="backbone")


def sequential(found):
    """A Sequential of layers, for maps of any size."""
    return keras.Sequential([keras.Input((None, None, 3)), *found], name="backbone")


def in_another(found):
    """A model that holds a model of layers, both for maps of any size."""
    pixels = keras.Input((None, None, 3))
    return keras.Model(pixels, functional(found)(pixels), name="outer")


KINDS = (functional, sequential, in_another)


def pair(kind, size=(21, 18)):
    """A model with a model in it that is called at two sizes, and one of the same layers alone."""
    models = []
    for is_nested in (True, False):
        pixels = keras.Input((*size, 3), name="pixels")
        if is_nested:
            inner = kind(stack(1))
            x = inner(inner(pixels))
        else:
            found = stack(1)
            x = applied(found, applied(found, pixels))
        x = layers.Dense(5, name="head")(layers.GlobalAveragePooling2D(name="gap")(x))
        models.append(keras.Model(pixels, x))
    return models
