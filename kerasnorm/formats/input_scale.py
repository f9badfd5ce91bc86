"""The range of pixels that a Keras model was trained on, where the model itself does not say.

A model of this package, and most of `keras.applications`, rescale raw pixels in their first layer.
A model without such a layer was trained on whatever its author's script computed. `scaled` puts the
missing layer before it, so that evaluation and exports take raw pixels as those of any model do.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kerasnorm.errors import ConfigError
from kerasnorm.formats.archive import SavedModel
from kerasnorm.keras_settings import stock_keras

if TYPE_CHECKING:
    import keras

    from kerasnorm.data.stored import Images

# Ranges of pixels; standardize is mean 0 and std 1 of each channel over the training images.
INPUT_SCALES = ("0-1", "-1-1", "0-255", "standardize")
# What moves or leaves out pixels, and does not change their range at inference.
_PASSING = {
    *("Activation", "Cast", "CenterCrop", "Concatenate", "Cropping2D", "Dropout", "ExpandDims"),
    *("Flatten", "Flip", "GaussianDropout", "GaussianNoise", "GetItem", "Identity", "Moveaxis"),
    *("Pad", "Permute", "RandomCrop", "Reshape", "Resizing", "Roll", "SpatialDropout2D", "Split"),
    *("Squeeze", "Stack", "Swapaxes", "Take", "Transpose", "Unstack", "ZeroPadding2D"),
}
_RESCALING = {
    *("Add", "Divide", "Multiply", "Normalization", "Rescaling", "Subtract", "TrueDivide"),
}


def scaled(saved: SavedModel, scale: str, training_images: "Callable[[], Images]") -> SavedModel:
    """Returns a model that takes raw pixels, made of one that was trained on another range.

    Raises:
        ConfigError: The model has a rescaling already, or its graph cannot be read.
    """
    if scale == "0-255":
        return dataclasses.replace(saved, input_scale=scale)
    own = rescaling_layer(saved.model)
    if own is not None:
        raise ConfigError(
            f"--input-scale: {saved.path} rescales raw pixels itself, in {own!r}. "
            "Leave the option out."
        )
    factor, offset = _factor_and_offset(scale, training_images)
    return dataclasses.replace(
        saved, model=_with_rescaling(saved.model, factor, offset), input_scale=scale
    )


def rescaling_layer(model: "keras.Model") -> str | None:
    """Returns the name of the layer that rescales raw pixels, None where the model has none.

    Raises:
        ConfigError: The model, or one in it, has no graph.
    """
    first = _first_operation(model)
    return str(first.name) if type(first).__name__ in _RESCALING else None


def unscaled_layer(model: "keras.Model") -> str | None:
    """Returns the name of the convolution or dense layer that raw pixels reach unchanged.

    None where the model rescales them, or its graph does not tell.
    """
    from kerasnorm.inspection.output_graph import LINEAR

    try:
        first = _first_operation(model)
    except ConfigError:
        return None
    return str(first.name) if isinstance(first, LINEAR) else None


def _factor_and_offset(scale: str, training_images: "Callable[[], Images]") -> tuple[Any, Any]:
    if scale == "0-1":
        return 1 / 255, 0.0
    if scale == "-1-1":
        return 1 / 127.5, -1.0
    from kerasnorm.data.preprocessing import input_statistics

    mean, std = input_statistics("standardize", training_images())
    # Of shape (1, 1, C): those of shape (C,) would follow Keras's image_data_format.
    return (1 / (255 * std))[None, None].tolist(), (-mean / std)[None, None].tolist()


def _first_operation(model: "keras.Model") -> Any:
    """Returns the first operation of a graph that changes the values of pixels, if one does."""
    import keras

    from kerasnorm.inspection.graph import functional_graph, nodes
    from kerasnorm.layers import is_augmentation

    for node in nodes(functional_graph(model)):
        operation = node.operation
        if isinstance(operation, keras.Model):
            operation = _first_operation(operation)
        elif node.is_input or is_augmentation(operation):
            operation = None
        elif type(operation).__name__ in _PASSING:
            activation = getattr(operation, "activation", keras.activations.linear)
            operation = None if activation is keras.activations.linear else operation
        if operation is not None:
            return operation
    return None


@stock_keras
def _with_rescaling(model: "keras.Model", factor: Any, offset: Any) -> "keras.Model":
    """Returns a model of the same layers, after a Rescaling of its input."""
    import keras

    from kerasnorm.inspection.graph import call_again, functional_graph

    graph = functional_graph(model)
    name = "input_rescaling"
    while name in {layer.name for layer in model.layers}:
        name += "_"
    pixels = keras.Input(model.input_shape[1:], name=graph.inputs[0].name, dtype="float32")
    rescaled = keras.layers.Rescaling(factor, offset, name=name, dtype="float32")(pixels)
    return keras.Model(pixels, call_again(graph, rescaled), name=model.name)
