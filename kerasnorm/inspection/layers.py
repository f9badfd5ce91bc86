"""The layers of a Keras model with their shapes, parameters and receptive fields.

All is read from the model's own graph; nothing is typed in. Element-wise layers pass the receptive
field through. So do normalization and softmax layers, by convention and as in published tables,
although one whose statistics are taken over space strictly sees the whole image.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import keras
from keras import layers

from kerasnorm.errors import ConfigError
from kerasnorm.inspection.graph import functional_graph, nodes
from kerasnorm.inspection.receptive_field import FeatureMap, Field, merge, same_padding, window
from kerasnorm.norms import custom_layers


@dataclass(frozen=True)
class LayerRow:
    """One call of one layer.

    Attributes:
        name: The layer's name, behind those of the submodels it lies in: "backbone/conv1".
        type: The layer's class.
        output_shape: With the batch axis, None where not fixed: (None, H, W, C).
        parameters: All weights; 0 where the layer was called before, so that sums come true.
        trainable_parameters: Those that training changes.
        before: What the units of the (first) input see of the image.
        after: What the units of the output see.
        is_spatial: Whether the layer mixes or moves pixels: convolutions (1x1 too), poolings,
            paddings, croppings, and a dense layer over a whole map.
    """

    name: str
    type: str
    output_shape: tuple[int | None, ...]
    parameters: int
    trainable_parameters: int
    before: FeatureMap
    after: FeatureMap
    is_spatial: bool

    @property
    def receptive_field(self) -> int | list[int] | None:
        """Pixels: a number where H and W agree, else [h, w]; None for a model without space."""
        return self.after.receptive_field

    @property
    def jump(self) -> int | list[int] | None:
        """Pixels between the fields of two neighbors, likewise."""
        return self.after.jump


def layer_table(model: keras.Model) -> list[LayerRow]:
    """Returns a row for each layer of a model, inputs first, in topological order.

    Args:
        model: Functional, or Sequential that has been built, with one input (N, H, W, C), or
            (N, C, H, W), (N, L, C) and so on. Submodels are walked too.

    Raises:
        ConfigError: The model is subclassed or not built, has several inputs, holds a layer whose
            receptive field is not known, or merges maps that do not fit.
    """
    graph = functional_graph(model)
    if len(graph.inputs) != 1:
        names = ", ".join(tensor.name for tensor in graph.inputs)
        raise ConfigError(f"Expected a model with one input. Received: inputs {names}")
    walk = _Walk(_data_format(graph))
    walk.run(graph, [FeatureMap.of_input(walk.spatial(graph.inputs[0].shape))])
    return walk.rows


def receptive_field(model: keras.Model) -> list[LayerRow]:
    """Returns the rows of `layer_table` whose layers mix or move pixels: convolutions, poolings.

    r += (k_eff - 1) * j with k_eff = d * (k - 1) + 1, then j *= s; see
    `kerasnorm.inspection.receptive_field`.

    Args:
        model: As for `layer_table`.

    Raises:
        ConfigError: As for `layer_table`.
    """
    return [row for row in layer_table(model) if row.is_spatial]


class _Call(NamedTuple):
    """One call of a layer: its inputs' maps, its output's shape and units along each axis."""

    layer: Any
    inputs: Sequence[FeatureMap]
    shape: tuple[int | None, ...]
    sizes: tuple[int | None, ...]


def _elementwise(call: _Call) -> FeatureMap:
    return merge(call.inputs)


def _concatenate(call: _Call) -> FeatureMap:
    axis = call.layer.axis % len(call.shape)
    merged = merge(call.inputs)
    if len(call.sizes) == len(merged.sizes) and call.sizes != merged.sizes:
        raise ConfigError(f"Expected to concatenate channels. Received: axis={axis}")
    return merged


def _windowed(call: _Call) -> FeatureMap:
    layer, (source,) = call.layer, call.inputs
    kernels = getattr(layer, "kernel_size", None) or layer.pool_size
    dilations = getattr(layer, "dilation_rate", (1,) * len(kernels))
    fields = []
    for units, k, s, d in zip(source.sizes, kernels, layer.strides, dilations, strict=True):
        paddings = {"valid": 0, "causal": d * (k - 1), "same": same_padding(units, k, s, d)}
        fields.append(window(k, s, d, paddings[layer.padding]))
    return source.through(fields, call.sizes)


def _shifted(call: _Call) -> FeatureMap:
    is_crop = hasattr(call.layer, "cropping")
    amounts = call.layer.cropping if is_crop else call.layer.padding
    pairs = amounts if isinstance(amounts[0], Sequence) else [amounts]
    fields = [Field(start=before if is_crop else -before) for before, _ in pairs]
    return call.inputs[0].through(fields, call.sizes)


def _pooled(call: _Call) -> FeatureMap:
    return call.inputs[0].pooled()


def _adaptive(call: _Call) -> FeatureMap:
    if set(call.sizes) != {1}:
        raise ConfigError(
            "The windows of adaptive pooling differ in size; expected an output of size 1. "
            f"Received: {list(call.sizes)}"
        )
    return call.inputs[0].pooled()


def _dense(call: _Call) -> FeatureMap:
    """A vector is seen whole; on a map, dense works unit by unit."""
    source = call.inputs[0]
    return source.pooled() if len(call.shape) == 2 and source.sizes else source


def _reshaped(call: _Call) -> FeatureMap:
    source = call.inputs[0]
    if len(call.shape) > 2 and call.sizes != source.sizes:
        raise ConfigError(
            "Expected a reshape that keeps the map's size or flattens it. "
            f"Received: {list(source.sizes)} to {list(call.sizes)}"
        )
    return source


def _of(names: str, ranks: Sequence[int] = (1, 2, 3)) -> tuple[type, ...]:
    """Returns the Keras layers of these names, "#" standing for each of the ranks."""
    spelled = {name.replace("#", str(rank)): None for name in names.split() for rank in ranks}
    return tuple(getattr(layers, name) for name in spelled)


Rule = Callable[[_Call], FeatureMap]
WINDOWS = _of("Conv#D MaxPooling#D AveragePooling#D") + _of(
    "DepthwiseConv#D SeparableConv#D", ranks=(1, 2)
)
ELEMENTWISE = (
    _of("Identity Activation ReLU LeakyReLU PReLU ELU Softmax")
    + _of("BatchNormalization GroupNormalization LayerNormalization")
    + _of("RMSNormalization UnitNormalization")
    + _of("Dropout SpatialDropout#D AlphaDropout GaussianDropout GaussianNoise")
    + _of("ActivityRegularization Rescaling Normalization")
    + _of("Add Subtract Multiply Average Maximum Minimum")
)
# They do nothing at inference.
AUGMENTATIONS = _of("RandomFlip RandomRotation RandomTranslation RandomZoom") + _of(
    "RandomBrightness RandomContrast"
)
RULES: tuple[tuple[tuple[type, ...], Rule], ...] = (
    (WINDOWS, _windowed),
    (_of("ZeroPadding#D Cropping#D"), _shifted),
    (_of("GlobalAveragePooling#D GlobalMaxPooling#D"), _pooled),
    (_of("AdaptiveAveragePooling#D AdaptiveMaxPooling#D"), _adaptive),
    (_of("Dense"), _dense),
    (_of("Flatten Reshape"), _reshaped),
    (_of("Concatenate"), _concatenate),
    (ELEMENTWISE + AUGMENTATIONS, _elementwise),
)
SPATIAL_RULES = (_windowed, _shifted, _pooled, _adaptive)
# Operations without a layer, such as x + y or keras.ops.relu(x), go by the name of their class.
ELEMENTWISE_OPERATIONS = {
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Negative", "Maximum", "Minimum"),
    *("Relu", "Relu6", "LeakyRelu", "Elu", "Gelu", "Silu", "HardSilu", "Sigmoid", "HardSigmoid"),
    *("Tanh", "Softplus", "Softmax"),
}
REFINEMENTS = _of("Conv#DTranspose UpSampling#D")


def _rule(operation: Any) -> Rule:
    for types, rule in RULES:
        if isinstance(operation, types):
            return rule
    kind = type(operation).__name__
    if not isinstance(operation, layers.Layer) and kind in ELEMENTWISE_OPERATIONS:
        return _elementwise
    if isinstance(operation, tuple(custom_layers().values())):
        return _elementwise  # a norm, whose units keep their field like those of all norms
    reason = "kerasnorm does not know what its units see"
    if isinstance(operation, REFINEMENTS):
        reason = "it makes a map finer, so that neighboring units see windows of different sizes"
    raise ConfigError(
        f"{reason}. Expected convolutions, poolings, paddings, dense and element-wise layers. "
        f"Received: {kind}. Ask for a part of the model without it: keras.Model(inputs, outputs)"
    )


class _Walk:
    """Walks the graph of a model and of its submodels, and gathers the rows."""

    def __init__(self, data_format: str) -> None:
        self.data_format = data_format
        self.rows: list[LayerRow] = []
        self.counted: set[int] = set()

    def spatial(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns the part of a shape between batch and channels: (H, W) of (N, H, W, C)."""
        return tuple(shape[2:] if self.data_format == "channels_first" else shape[1:-1])

    def run(
        self, graph: Any, inputs: Sequence[FeatureMap], prefix: str = ""
    ) -> Sequence[FeatureMap]:
        """Walks one model, given the maps of its inputs; returns those of its outputs."""
        maps = {id(tensor): m for tensor, m in zip(graph.inputs, inputs, strict=True)}
        for node in nodes(graph):
            layer = node.operation
            name = prefix + layer.name
            if node.is_input:
                if not prefix:
                    source = maps[id(node.outputs[0])]
                    self._add(name, layer, node.outputs[0].shape, source, source, False)
                continue
            sources = [maps[id(tensor)] for tensor in node.input_tensors]
            if isinstance(layer, keras.Model):
                inner = self.run(functional_graph(layer), sources, f"{name}/")
                pairs = zip(inner, node.outputs, strict=True)
                outputs = [self._resized(m, tensor.shape) for m, tensor in pairs]
            else:
                outputs = [self._call(name, layer, sources, node.outputs[0].shape)]
            maps |= {id(t): m for t, m in zip(node.outputs, outputs, strict=True)}
        return [maps[id(tensor)] for tensor in graph.outputs]

    def _resized(self, source: FeatureMap, shape: tuple[int | None, ...]) -> FeatureMap:
        """A submodel may have been made for any size; its output here often has one."""
        sizes = self.spatial(shape)
        return replace(source, sizes=sizes) if len(sizes) == len(source.sizes) else source

    def _call(
        self, name: str, layer: Any, sources: Sequence[FeatureMap], shape: tuple[int | None, ...]
    ) -> FeatureMap:
        try:
            rule = _rule(layer)
            after = rule(_Call(layer, sources, shape, self.spatial(shape)))
        except ConfigError as error:
            raise ConfigError(f"The receptive field of layer {name!r}: {error}") from None
        is_spatial = rule in SPATIAL_RULES or (rule is _dense and after != sources[0])
        self._add(name, layer, shape, sources[0], after, is_spatial)
        return after

    def _add(self, name: str, layer: Any, shape: tuple[int | None, ...], *rest: Any) -> None:
        weights = [w for w in getattr(layer, "weights", ()) if id(w) not in self.counted]
        self.counted |= {id(weight) for weight in weights}
        trainable = {id(weight) for weight in getattr(layer, "trainable_weights", ())}
        total = sum(math.prod(weight.shape) for weight in weights)
        learned = sum(math.prod(weight.shape) for weight in weights if id(weight) in trainable)
        kind = type(layer).__name__
        self.rows.append(LayerRow(name, kind, tuple(shape), total, learned, *rest))


def _data_format(graph: Any) -> str:
    """Returns where the channels stand, as the layers of a graph that care about it agree."""
    found = sorted({layer.data_format for layer in _layers(graph)})
    if len(found) > 1:
        raise ConfigError(
            f"Expected one data format in the whole model. Received: {' and '.join(found)}"
        )
    return found[0] if found else "channels_last"


def _layers(graph: Any) -> Iterator[Any]:
    """Yields the calls of layers whose data format says where height and width stand."""
    for node in nodes(graph):
        layer = node.operation
        if isinstance(layer, keras.Model):
            yield from _layers(functional_graph(layer))
        elif hasattr(layer, "data_format") and not isinstance(layer, layers.Flatten):
            yield layer
