"""The kind of a Keras model's outputs by its graph, as `kerasnorm.inspection.outputs` describes."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from kerasnorm.data.stored import Images
from kerasnorm.errors import ConfigError
from kerasnorm.inspection.graph import class_name, functional_graph, is_identity, passed_through
from kerasnorm.inspection.outputs import (
    Forward,
    Kind,
    Outputs,
    as_logits,
    output_kind,
    probe_images,
)


def model_kind(model: keras.Model, forward: Forward, outputs: Outputs | None = None) -> Kind:
    """Returns the kind of a Keras model's outputs.

    `outputs` are those of the images that are evaluated, if there are any.
    """
    graph = kind_by_graph(model)
    judged = [] if outputs is None else [outputs]
    if graph is None or not judged:
        judged.append(forward(probe_images(model.input_shape[1:])))
    return output_kind(np.concatenate(judged), graph)


def model_logits(model: keras.Model, forward: Forward, images: Images) -> Outputs:
    """Returns the logits (N, classes) of a Keras model whose outputs `forward` computes.

    Raises:
        CorruptFileError: The outputs are neither logits nor probabilities.
    """
    outputs = forward(images)
    return as_logits(outputs, model_kind(model, forward, outputs))


def kind_by_graph(model: keras.Model) -> Kind | None:
    """Returns the kind of a Keras model's outputs by its graph, None if it does not decide."""
    try:
        graph = functional_graph(model)
    except ConfigError:
        return None
    return _kinds(graph, [None] * len(graph.inputs))[0]


# By `class_name`; Keras gives an operation the name of the layer that does the same.
RESHAPES = {"ExpandDims", "Flatten", "Reshape", "Squeeze"}
AVERAGES = {"AveragePooling", "GlobalAveragePooling"}
LINEAR = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv2DTranspose,
    layers.Conv3D,
    layers.Dense,
    layers.DepthwiseConv2D,
    layers.EinsumDense,
    layers.SeparableConv2D,
)
# These layers and operations turn logits into logits.
UNBOUNDED = {
    *("Activation", "Add", "Average", "BatchNormalization", "Concatenate", "GlobalMaxPooling"),
    *("LayerNormalization", "LeakyReLU", "LeakyRelu", "Maximum", "MaxPooling", "Mean", "Minimum"),
    *("Multiply", "PReLU", "ReLU", "Relu", "Rescaling", "Subtract", "TrueDivide"),
    *(AVERAGES | RESHAPES),
}
UNBOUNDED_ACTIVATIONS = {"elu", "gelu", "leaky_relu", "linear", "relu", "selu", "silu", "softplus"}


def _kinds(graph: Any, given: Sequence[Kind | None]) -> list[Kind | None]:
    """Returns the kinds of a graph's outputs, given those of its inputs, along their last axes."""

    def call(node: Any, kinds: dict[int, Kind | None]) -> list[Kind | None]:
        sources = [kinds[id(tensor)] for tensor in node.input_tensors]
        is_model = isinstance(node.operation, keras.Model)
        found = _nested(node.operation, sources) if is_model else [_kind(node, sources)]
        return found if len(found) == len(node.outputs) else [None] * len(node.outputs)

    return passed_through(graph, given, call)


def _nested(model: keras.Model, sources: list[Kind | None]) -> list[Kind | None]:
    try:
        graph = functional_graph(model)
    except ConfigError:
        return []
    return _kinds(graph, sources) if len(graph.inputs) == len(sources) else []


def _kind(node: Any, sources: list[Kind | None]) -> Kind | None:
    """Returns the kind of an operation's output, given the kinds of its inputs."""
    operation, target = node.operation, node.outputs[0]
    activation = getattr(operation, "activation", None)
    if _is_softmax(operation, activation, target):
        return "probabilities"
    activated = getattr(activation, "__name__", "linear")
    kind = sources[0] if len(set(sources)) == 1 else None
    if kind == "probabilities":  # a linear layer may turn them into logits
        is_kept = _keeps_sums(operation, activated, node.input_tensors[0], target)
        return kind if is_kept else None
    if activated not in UNBOUNDED_ACTIVATIONS:
        return None
    if isinstance(operation, LINEAR):
        return "logits"
    return kind if is_identity(operation) or class_name(operation) in UNBOUNDED else None


def _is_softmax(operation: Any, activation: Any, tensor: Any) -> bool:
    """Returns whether an operation ends in a softmax over the last axis."""
    if type(operation).__name__ == "Softmax":
        axes = np.atleast_1d(operation.axis) % len(tensor.shape)
        return bool(axes.tolist() == [len(tensor.shape) - 1])
    return activation is keras.activations.softmax


def _keeps_sums(operation: Any, activated: str, source: Any, target: Any) -> bool:
    """Returns whether an operation keeps the sum of rows, along the last axis, that sum to 1."""
    name, last = class_name(operation), len(source.shape) - 1
    if name == "Activation":
        return activated == "linear"
    if name in RESHAPES:  # in row-major order, rows of the same length stay rows
        return None not in target.shape[1:] and source.shape[last] == target.shape[-1]
    if name in AVERAGES:  # the zeros of a padding would count in the mean
        is_padded = getattr(operation, "padding", "valid") != "valid"
        return operation.data_format == "channels_last" and not is_padded
    if name == "Mean":
        axes = range(last + 1) if operation.axis is None else np.atleast_1d(operation.axis)
        return last not in [axis % (last + 1) for axis in axes]
    return is_identity(operation) or isinstance(operation, layers.Average)
