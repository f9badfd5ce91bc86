"""ResNet-20 for small images, as a user's own network: He et al. 2016, arXiv 1512.03385, section 4.2.

kerasnorm fit --network docs/examples/resnet20.py:build --norm gn --data cifar10
"""

import keras
from keras import layers


def build(input_shape: tuple[int, int, int], classes: int) -> keras.Model:
    """Returns ResNet-20: three stages of three residual blocks, batch normalization throughout.

    Args:
        input_shape: Shape (H, W, C) of an image.
        classes: Number of classes.
    """
    images = keras.Input(input_shape)
    x = unit(images, 16, 1, "stem")
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in (1, 2, 3):
            strides = 2 if stage > 1 and block == 1 else 1
            x = residual(x, filters, strides, f"stage{stage}_block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, layers.Dense(classes, name="logits")(x), name="resnet20")


def unit(x, filters, strides, name, activation="relu"):
    """Applies a 3x3 convolution, batch normalization and an activation."""
    x = layers.Conv2D(
        filters, 3, strides, "same", use_bias=False, kernel_initializer="he_normal", name=name
    )(x)
    x = layers.BatchNormalization(name=f"{name}_norm")(x)
    return layers.Activation(activation, name=f"{name}_out")(x) if activation else x


def residual(x, filters, strides, name):
    """Applies two units and adds the input; its shortcut subsamples and pads with zeros (A)."""
    y = unit(x, filters, strides, f"{name}_conv1")
    y = unit(y, filters, 1, f"{name}_conv2", activation=None)
    if strides > 1:
        x = layers.AveragePooling2D(1, strides, name=f"{name}_subsample")(x)
        x = layers.Concatenate(name=f"{name}_pad")([x, layers.Rescaling(0.0)(x)])
    x = layers.Add(name=f"{name}_add")([x, y])
    return layers.Activation("relu", name=f"{name}_out")(x)
