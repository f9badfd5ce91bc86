"""Batch norms folded into the layer before them: the same outputs at inference, less to compute."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasnorm.conversion.rebuild import rebuild, refuse_hidden
from kerasnorm.conversion.result import (
    LINEAR,
    TRANSPOSED,
    Conversion,
    ConvertedLayer,
    compared,
)
from kerasnorm.errors import ConfigError, described, expect_whole
from kerasnorm.inspection.graph import Calls
from kerasnorm.keras_settings import stock_keras
from kerasnorm.layers import StandardizedConv2D, standardize_kernel

Array = NDArray[np.float64]

FOLDED = (StandardizedConv2D, *LINEAR, *TRANSPOSED)  # layers that a batch norm folds into
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


@stock_keras
def fold_norms(model: keras.Model, *, rounds: int = 0) -> Conversion:
    """Returns a copy of a network with its batch norms folded into the layers before them.

    At inference a batch norm multiplies each channel by gamma / sqrt(variance + epsilon) and adds
    a constant. The convolution, depthwise, separable, transposed convolution or dense layer
    directly before it takes both into its kernel and bias, which are computed in float64. Batch
    norms of which that is not exactly the same stay, with the reason. Fold for inference only: the
    copy trains without these norms.

    Args:
        model: A functional or Sequential model.
        rounds: Number of times that the prediction of an image is timed before and after; 0 for
            not at all.

    Raises:
        ConfigError: The model has no batch norms, or no graph.
    """
    expect_whole(rounds, "rounds", 0)
    kinds = (keras.layers.BatchNormalization,)
    refuse_hidden(model, kinds, "folded")
    calls = Calls(model)
    replaced: dict[int, keras.layers.Layer | None] = {}
    rows, weights = [], []
    places = {id(n.operation): n for n in reversed(calls.nodes) if isinstance(n.operation, kinds)}
    if not places:
        raise ConfigError(
            "fold: expected a network with BatchNormalization. Received: none; the statistics of "
            "other norms depend on the image."
        )
    for node in reversed(places.values()):
        norm = node.operation
        source = calls.producers[id(node.input_tensors[0])]
        reason = next(_obstacles(calls, node, source), None)
        after, kept = "kept", norm.count_params()
        if reason is None:
            layer = source.operation
            kind = keras.layers.Conv2D if type(layer) is StandardizedConv2D else type(layer)
            folded = kind.from_config(layer.get_config() | {"use_bias": True})
            replaced |= {id(layer): folded, id(norm): None}
            weights.append((folded, _folded_weights(layer, norm)))
            after, kept = "folded", 0 if layer.use_bias else norm.moving_mean.shape[0]
        rows.append(
            ConvertedLayer(
                name=calls.paths[id(norm)],
                before=type(norm).__name__,
                after=after,
                channels=norm.moving_mean.shape[0],
                parameters=(norm.count_params(), kept),
                preserves=True,
                note=reason or f"into {calls.paths[id(source.operation)]}",
            )
        )
    made, _ = rebuild(model, replaced)
    for layer, values in weights:
        layer.set_weights(values)
    return compared(model, made, rows, rounds=rounds)


def _folded_weights(layer: Any, norm: Any) -> list[Array]:
    """Returns the weights of a layer that computes what it and the batch norm behind it did."""
    variance, mean = (_float64(w) for w in (norm.moving_variance, norm.moving_mean))
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.gamma is not None:
        scale = scale * _float64(norm.gamma)
    shift = _float64(norm.beta) if norm.beta is not None else np.zeros_like(mean)
    *kernels, last = [_float64(w) for w in layer.weights if w.name.endswith("kernel")]
    if type(layer) is StandardizedConv2D:
        last = _float64(standardize_kernel(layer.kernel.value))
    bias = _float64(layer.bias) if layer.use_bias else np.zeros_like(mean)
    by_output = scale  # the last kernel has the shape (…, in, out)
    if type(layer) in TRANSPOSED:  # (…, out, in)
        by_output = scale[:, None]
    elif type(layer) in DEPTHWISE:  # (…, in, multiplier), with the output channels in that order
        by_output = scale.reshape(last.shape[-2:])
    return [*kernels, last * by_output, shift + (bias - mean) * scale]


def _float64(weight: Any) -> Array:
    return keras.ops.convert_to_numpy(weight).astype(np.float64)


def _obstacles(calls: Calls, node: Any, source: Any) -> Iterator[str]:
    """Yields why a batch norm cannot be folded exactly into the call before it."""
    norm, layer = node.operation, source.operation
    name, kind = layer.name, type(layer).__name__
    if type(norm) is not keras.layers.BatchNormalization:
        yield f"{type(norm).__name__} is a class of its own"
    if calls.count[id(norm)] > 1:
        yield f"shared: called {calls.count[id(norm)]} times"
    if node.arguments.kwargs.get("training"):
        yield "always in training mode"
    if source.is_input:
        yield "first layer of its model"
    activation = getattr(layer, "activation", None)
    if type(layer) not in FOLDED:
        is_activation = activation is not None or "ReLU" in kind
        is_activation = is_activation or not isinstance(layer, keras.Layer)
        what = f"behind {'the activation ' if is_activation else ''}{name} ({kind})"
        yield what + _padded_reader(calls, node)
    elif activation is not keras.activations.linear:
        word = getattr(activation, "__name__", None) or described(activation)
        yield f"behind the activation {word} of {name}" + _padded_reader(calls, node)
    if calls.count[id(layer)] > 1:
        yield f"{name} is shared: called {calls.count[id(layer)]} times"
    for reader in calls.readers(source):
        if reader is not node:
            what = "the model's output" if reader is None else reader.operation.name
            yield f"{name} has another consumer: {what}"
    rank = len(node.input_tensors[0].shape)
    is_last = getattr(layer, "data_format", "channels_last") == "channels_last"
    if not is_last or norm.axis % rank != rank - 1:
        yield "its channels are not the last axis"
    if getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False):
        yield f"{name} is quantized or has LoRA weights"


def _padded_reader(calls: Calls, node: Any) -> str:
    """Returns what also prevents that a norm is folded into the convolution behind it."""
    for reader in calls.readers(node):
        if reader is not None and getattr(reader.operation, "padding", None) == "same":
            return f", before the padded {reader.operation.name}"
    return ""
