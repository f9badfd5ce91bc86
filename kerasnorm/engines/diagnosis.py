"""Where a training step went wrong: the first layer with a value that is not finite."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasnorm.errors import DivergedError
from kerasnorm.inspection.graph import call_node, functional_graph, nodes
from kerasnorm.keras_settings import stock_keras


def diverged(engine: Any, what: str, epoch: int, step: int, place: str) -> DivergedError:
    """Returns the error of a step whose loss or gradient is not finite.

    Args:
        engine: A `PortableEngine`.
        what: The value, such as "loss is nan".
        epoch: Counted from 0.
        step: Within the epoch, counted from 0.
        place: The layer that it began in, from `first_nonfinite`.
    """
    rate = engine.rate(epoch, step)
    return DivergedError(
        f"The {what} at epoch {epoch + 1}, step {step + 1}, at a learning rate of {rate:.6g} (peak "
        f"{engine.config.learning_rate:g}). First value that is not finite: {place}. "
        "Try a smaller --learning-rate; the checkpoints before are whole."
    )


@stock_keras
def first_nonfinite(model: Any, images: Any) -> str | None:
    """Returns what is first not finite on the way from images to logits, None if nothing is.

    Args:
        model: A functional Keras model; its moving statistics are changed.
        images: The batch, (N, H, W, C).
    """
    graph = functional_graph(model)
    values = {id(graph.inputs[0]): ops.convert_to_tensor(np.asarray(images), graph.inputs[0].dtype)}
    with keras.StatelessScope(), np.errstate(all="ignore"):  # leaves the variables as they are
        for node in nodes(graph):
            if node.is_input:
                continue
            layer = node.operation
            if bad := _bad_variable(getattr(layer, "variables", ())):
                return f"{bad} of layer {layer.name}"
            outputs = call_node(node, values, training=True)
            values.update((id(t), y) for t, y in zip(node.outputs, outputs, strict=True))
            if not all(_is_finite(output) for output in outputs):
                return f"the output of layer {layer.name}"
    return None


def bad_gradient(variables: Iterable[Any], gradients: Iterable[Any]) -> str | None:
    """Returns the layer nearest to the loss whose gradient is not finite, None if all are."""
    pairs = list(zip(variables, gradients, strict=True))
    for variable, gradient in reversed(pairs):
        if not _is_finite(gradient):
            return gradient_of(variable)
    return None


def gradient_of(variable: Any) -> str:
    """Returns a variable's gradient in words."""
    *layer, name = variable.path.split("/")
    return f"the gradient of {name} of layer {'/'.join(layer)}"


def _bad_variable(variables: Iterable[Any]) -> str | None:
    for variable in variables:
        is_float = "float" in str(variable.dtype)
        if is_float and not _is_finite(variable.value):
            return str(variable.name)
    return None


def _is_finite(tensor: Any) -> bool:
    return bool(np.isfinite(ops.convert_to_numpy(ops.cast(tensor, "float32"))).all())
