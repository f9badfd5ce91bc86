"""The layers of a Keras model with their shapes, parameters and receptive fields, and their tables.

Everything is computed from the model's own graph. Element-wise layers leave the receptive field as
it is. So do normalization and softmax layers, by convention and as in published tables, although a
layer whose statistics are taken over space strictly sees the whole image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import keras
from keras import layers

from kerasnorm.config import LAYER_LABELS
from kerasnorm.errors import ConfigError
from kerasnorm.inspection.graph import (
    call_outputs,
    functional_graph,
    may_be_own_norm,
    passed_through,
    walk,
)
from kerasnorm.inspection.receptive_field import (
    FeatureMap,
    Field,
    merge,
    same_padding,
    transposed,
    upsampling,
    window,
)
from kerasnorm.layers import custom_layers, is_augmentation
from kerasnorm.tables import Table

T = TypeVar("T")
FIELD_NOTE = (
    "Receptive field r and jump j in input pixels: r += (k_eff - 1) * j, then j *= stride. "
    "Global pooling over n units adds (n - 1) * j and leaves the jump as it was."
)
NORM_NOTE = (
    "Normalization layers leave the receptive field as it is, by convention; a layer whose "
    "statistics are taken over space strictly sees the whole image."
)
BOUND_NOTE = (
    "<= an upper bound: behind an upsampling or a transposed convolution, neighboring units see "
    "windows of different sizes."
)
SHARED_NOTE = (
    "From {} on, maps are merged with the result of a global pooling, as in squeeze-and-excite "
    "blocks: every unit sees all pixels that the pooling sees, and no later layer enlarges the "
    "field."
)
UNKNOWN_NOTE = "Behind {} no field is known. {}"
OWN_NOTE = "Of a class of your own, and taken to leave the field as it is, like a norm: {}."
# The published table of this network, C1 to GAP, for an image of 32x32.
PUBLISHED_FIELDS = dict(
    zip(LAYER_LABELS.values(), (3, 5, 5, 6, 10, 14, 18, 18, 20, 24, 28, 32, 60), strict=False)
)
UNKNOWN = FeatureMap((), ())  # of what lies behind a layer whose field is not known
PUBLISHED_NOTE = (
    "The published table (github.com/darshanvjani/ERA_vision_nlp_ai) adds 4 per convolution in the "
    "third block, where a 3x3 convolution at jump 4 adds 8: an arithmetic error."
)


@dataclass(frozen=True)
class LayerRow:
    """One call of one layer.

    Attributes:
        name: Name of the layer, preceded by those of its submodels: "backbone/conv1".
        type: Name of the layer's class.
        output_shape: Shape with the batch axis, None where it is not fixed: (None, H, W, C).
        parameters: Number of weights; 0 if the layer was called before, so that sums are correct.
        trainable_parameters: Number of weights that training changes.
        before: Receptive fields of the units of the (first) input, `UNKNOWN` behind a layer whose
            field is not known.
        after: Receptive fields of the units of the output, likewise.
        is_spatial: Whether the layer mixes or moves pixels: a convolution (1x1 too), a pooling, a
            padding, a cropping, or a dense layer over a whole map.
        is_own: Whether its class is the user's own, and it is taken for a norm.
        reason: Why the field is not known, of a layer of whose inputs it is; else "".
    """

    name: str
    type: str
    output_shape: tuple[int | None, ...]
    parameters: int
    trainable_parameters: int
    before: FeatureMap
    after: FeatureMap
    is_spatial: bool
    is_own: bool = False
    reason: str = ""

    @property
    def receptive_field(self) -> int | list[int] | None:
        """Pixels: a number if H and W agree, else [h, w]; None without space or if unknown."""
        return self.after.receptive_field

    @property
    def jump(self) -> float | list[float] | None:
        """Pixels between the fields of two neighbors, in the same form."""
        return self.after.jump


def layer_table(model: keras.Model) -> list[LayerRow]:
    """Returns one row per layer call of a model, inputs first, in topological order.

    Behind a layer whose receptive field is not known, such as attention, or a sum of maps that do
    not match, the rows have none; the `reason` of that layer's row says why.

    Args:
        model: Functional model, or built Sequential, with one input (N, H, W, C), (N, C, H, W),
            (N, L, C) and so on. The layers of submodels have rows too.

    Raises:
        ConfigError: The model is subclassed or not built, has several inputs, or mixes data
            formats.
    """
    graph = functional_graph(model)
    if len(graph.inputs) != 1:
        names = ", ".join(tensor.name for tensor in graph.inputs)
        raise ConfigError(f"Expected a model with one input. Received: inputs {names}")
    walked = _Walk(_data_format(model))
    walked.run(graph, [walked.begin(graph.inputs[0])])
    return walked.rows


def receptive_field(model: keras.Model) -> list[LayerRow]:
    """Returns the rows of `layer_table` whose layers mix or move pixels, such as convolutions.

    r += (k_eff - 1) * j with k_eff = d * (k - 1) + 1, then j *= s; see
    `kerasnorm.inspection.receptive_field`.

    Args:
        model: The same models as for `layer_table`.

    Raises:
        ConfigError: The same errors as of `layer_table`; or the field of a layer is not known.
    """
    rows = layer_table(model)
    if reason := next((row.reason for row in rows if row.reason), ""):
        raise ConfigError(reason)
    return [row for row in rows if row.is_spatial]


class _Call(NamedTuple):
    """One call of a layer: maps of its inputs, shape of its output, units along each axis.

    `slices` are those of a subscript such as x[..., ::-1], along the same axes as the units; None
    where it does more than slice.
    """

    layer: Any
    inputs: Sequence[FeatureMap]
    shape: tuple[int | None, ...]
    sizes: tuple[int | None, ...]
    slices: Sequence[slice] | None = None


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


def _transposed(call: _Call) -> FeatureMap:
    layer, (source,) = call.layer, call.inputs
    fields = []
    added = layer.output_padding or (None,) * len(layer.strides)
    for k, s, d, more in zip(
        layer.kernel_size, layer.strides, layer.dilation_rate, added, strict=True
    ):
        padding = 0
        if layer.padding == "same":
            # With an output padding, which is cut off less, Keras does not look at the strides.
            reach = (d * (k - 1) + 1) // 2
            is_free = more is None
            padding = same_padding(None, k, s, d) if is_free else max(reach - (more + 1) // 2, 0)
        fields.append(transposed(k, s, d, padding))
    return source.through(fields, call.sizes)


def _upsampled(call: _Call) -> FeatureMap:
    layer, (source,) = call.layer, call.inputs
    factors = layer.size if isinstance(layer.size, Sequence) else [layer.size]
    taps = TAPS[getattr(layer, "interpolation", "nearest")]
    return source.through([upsampling(factor, taps) for factor in factors], call.sizes)


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
    """Returns the output of a dense layer: it sees a whole flat map, but other maps per unit."""
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


def _sliced(call: _Call) -> FeatureMap:
    """Returns the output of a subscript: slices of channels leave the field as it is."""
    (source,) = call.inputs
    if call.slices == () and {*source.sizes} <= {1}:  # of a vector, which every pixel reaches alike
        return source
    if call.slices is None or len(call.slices) != len(source.sizes):
        raise ConfigError(
            "Expected slices of a map that is not flattened, such as x[..., ::-1]. Received: "
            "another subscript"
        )
    fields = []
    for part, units in zip(call.slices, source.sizes, strict=True):
        step = 1 if part.step is None else part.step
        start = 0 if part.start is None else part.start
        if step < 1 or (start < 0 and units is None):
            raise ConfigError(f"Expected a slice that goes forward. Received: {part}")
        fields.append(Field(jump=step, start=start if units is None else part.indices(units)[0]))
    return source.through(fields, call.sizes)


def _of(names: str, ranks: Sequence[int] = (1, 2, 3)) -> tuple[type, ...]:
    """Returns the Keras layers of these names, in which "#" stands for each of the ranks."""
    spelled = {name.replace("#", str(rank)): None for name in names.split() for rank in ranks}
    return tuple(getattr(layers, name) for name in spelled)


TAPS = {"nearest": 1, "bilinear": 2, "bicubic": 4, "lanczos3": 6, "lanczos5": 10}
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
RULES: tuple[tuple[tuple[type, ...], Rule], ...] = (
    (WINDOWS, _windowed),
    (_of("Conv#DTranspose"), _transposed),
    (_of("UpSampling#D"), _upsampled),
    (_of("ZeroPadding#D Cropping#D"), _shifted),
    (_of("GlobalAveragePooling#D GlobalMaxPooling#D"), _pooled),
    (_of("AdaptiveAveragePooling#D AdaptiveMaxPooling#D"), _adaptive),
    (_of("Dense"), _dense),
    (_of("Flatten Reshape"), _reshaped),
    (_of("Concatenate"), _concatenate),
    (ELEMENTWISE, _elementwise),
)
SPATIAL_RULES = (_windowed, _transposed, _upsampled, _shifted, _pooled, _adaptive)
# Operations without a layer, such as x + y or keras.ops.relu(x), have the name of their class.
ELEMENTWISE_OPERATIONS = {
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Negative", "Maximum", "Minimum"),
    *("Relu", "Relu6", "LeakyRelu", "Elu", "Gelu", "Silu", "HardSilu", "Sigmoid", "HardSigmoid"),
    *("Tanh", "Softplus", "Softmax"),
}
# Layers of keras.applications that Keras does not export.
APPLICATION_LAYERS = {"CustomScaleLayer", "LayerScale", "StochasticDepth"}


def _rule(operation: Any) -> Rule:
    for types, rule in RULES:
        if isinstance(operation, types):
            return rule
    kind = type(operation).__name__
    if is_augmentation(operation):
        return _elementwise  # it does nothing at inference
    if not isinstance(operation, layers.Layer) and kind in ELEMENTWISE_OPERATIONS:
        return _elementwise
    if not isinstance(operation, layers.Layer) and kind == "GetItem":
        return _sliced
    is_application = type(operation).__module__.startswith("keras.src.applications.")
    if is_application and kind in APPLICATION_LAYERS:
        return _elementwise
    if isinstance(operation, tuple(custom_layers().values())):
        return _elementwise  # a norm, whose units keep their field like those of all norms
    raise ConfigError(
        "kerasnorm has no rule for this layer. Expected convolutions, poolings, paddings, dense "
        f"and element-wise layers. Received: {kind}. Ask for a part of the model without it: "
        "keras.Model(inputs, outputs)"
    )


# Of a tensor: its map, and a symbolic tensor in the sizes that it has in the whole model.
Walked = tuple[FeatureMap, Any]


class _Walk:
    """Walks the graph of a model and of its submodels, and collects the rows."""

    def __init__(self, data_format: str) -> None:
        self.data_format = data_format
        self.rows: list[LayerRow] = []
        self.counted: set[int] = set()

    def spatial(self, shape: Sequence[T]) -> tuple[T, ...]:
        """Returns the part of a shape between batch and channels: (H, W) of (N, H, W, C)."""
        return tuple(shape[2:] if self.data_format == "channels_first" else shape[1:-1])

    def begin(self, tensor: Any) -> Walked:
        """Adds the row of the model's input."""
        source = FeatureMap.of_input(self.spatial(tensor.shape))
        layer = tensor._keras_history.operation
        self._add(layer.name, layer, tensor.shape, source, source, False)
        return source, tensor

    def run(self, graph: Any, inputs: Sequence[Walked], prefix: str = "") -> list[Walked]:
        """Walks one model, given its inputs; returns its outputs."""

        def call(node: Any, values: dict[int, Walked]) -> list[Walked]:
            layer, sources = node.operation, [values[id(tensor)] for tensor in node.input_tensors]
            if isinstance(layer, keras.Model):
                return self.run(functional_graph(layer), sources, f"{prefix}{layer.name}/")
            return self._call(prefix + layer.name, node, sources)

        return passed_through(graph, inputs, call)

    def _slices(self, node: Any) -> Sequence[slice] | None:
        """Returns the slices of space that a subscript takes, None where it does more."""
        key, rank = node.arguments.args[-1], len(node.outputs[0].shape)
        parts = list(key) if isinstance(key, (tuple, list)) else [key]
        if len(node.input_tensors[0].shape) != rank:
            return None
        place = parts.index(...) if ... in parts else len(parts)
        parts[place : place + 1] = [slice(None)] * (rank - len(parts) + (... in parts))
        if not all(isinstance(part, slice) for part in parts) or parts[0] != slice(None):
            return None
        return self.spatial(parts)

    def _call(self, name: str, node: Any, inputs: Sequence[Walked]) -> list[Walked]:
        layer, (sources, tensors) = node.operation, zip(*inputs, strict=True)
        outputs = call_outputs(node, tensors)
        shape = outputs[0].shape
        after, is_spatial, is_own, reason = UNKNOWN, False, may_be_own_norm(node), ""
        try:
            if all(source is not UNKNOWN for source in sources):
                rule = _elementwise if is_own else _rule(layer)
                slices = self._slices(node) if rule is _sliced else None
                after = rule(_Call(layer, sources, shape, self.spatial(shape), slices))
                moves = rule in (_dense, _sliced) and after != sources[0]
                is_spatial = rule in SPATIAL_RULES or moves
        except ConfigError as error:
            reason = f"The receptive field of layer {name!r}: {error}"
        self._add(name, layer, shape, sources[0], after, is_spatial, is_own, reason)
        return [(after, tensor) for tensor in outputs]

    def _add(self, name: str, layer: Any, shape: tuple[int | None, ...], *rest: Any) -> None:
        weights = [w for w in getattr(layer, "weights", ()) if id(w) not in self.counted]
        self.counted |= {id(weight) for weight in weights}
        trainable = {id(weight) for weight in getattr(layer, "trainable_weights", ())}
        total = sum(math.prod(weight.shape) for weight in weights)
        learned = sum(math.prod(weight.shape) for weight in weights if id(weight) in trainable)
        kind = type(layer).__name__
        self.rows.append(LayerRow(name, kind, tuple(shape), total, learned, *rest))


def _data_format(model: keras.Model) -> str:
    """Returns the data format that all layers of a model agree on."""
    operations = [node.operation for _, node in walk(model)]
    kept = [one for one in operations if not isinstance(one, layers.Flatten)]
    found = sorted({one.data_format for one in kept if hasattr(one, "data_format")})
    if len(found) > 1:
        raise ConfigError(
            f"Expected one data format in the whole model. Received: {' and '.join(found)}"
        )
    return found[0] if found else "channels_last"


def summary_table(rows: Sequence[LayerRow], title: str = "") -> Table:
    """Returns the table of all layers, with the totals of their parameters."""
    cells = [
        (
            row.name,
            row.type,
            _text(row.output_shape[1:]),
            f"{row.parameters:,}",
            _field_text(row.after),
            _text(row.jump),
        )
        for row in rows
    ]
    total = sum(row.parameters for row in rows)
    trainable = sum(row.trainable_parameters for row in rows)
    sums = {"total": total, "trainable": trainable, "non-trainable": total - trainable}
    return Table(
        columns=("layer", "type", "output", ">parameters", ">field", ">jump"),
        rows=cells,
        totals=[(name, "", "", f"{count:,}", "", "") for name, count in sums.items()],
        notes=_notes(rows),
        title=title,
    )


def receptive_field_table(
    rows: Sequence[LayerRow], title: str = "", *, with_published: bool = True
) -> Table:
    """Returns the table of the changes in size, receptive field and jump from layer to layer.

    For the network of `kerasnorm.network` it gives blocks and short names and, for images of 32x32,
    the published receptive fields; for any other model it gives the names of the layers.
    """
    is_ours = [row.name for row in rows] == list(LAYER_LABELS)
    is_published = with_published and is_ours and rows[0].before.sizes == (32, 32)
    columns = ["block", "layer"] if is_ours else ["layer"]
    columns += [">size", ">receptive field", ">jump"]
    columns += [">published field"] if is_published else []
    cells = []
    for row in rows:
        label = LAYER_LABELS.get(row.name, row.name)
        line = [row.name.partition("_")[0], label] if is_ours else [row.name]
        line += [
            f"{_text(row.before.size)} -> {_text(row.after.size)}",
            f"{_field_text(row.before)} -> {_field_text(row.after)}",
            f"{_text(row.before.jump)} -> {_text(row.after.jump)}",
        ]
        line += [str(PUBLISHED_FIELDS.get(label, ""))] if is_published else []
        cells.append(tuple(line))
    notes = [*_notes(rows), PUBLISHED_NOTE] if is_published else _notes(rows)
    return Table(tuple(columns), cells, notes=notes, title=title)


def _notes(rows: Sequence[LayerRow]) -> list[str]:
    """Returns how the numbers of these rows are meant."""
    notes = [FIELD_NOTE, NORM_NOTE]
    if any(row.after.is_bound for row in rows):
        notes.append(BOUND_NOTE)
    if merged := next((row.name for row in rows if row.after.is_shared), None):
        notes.append(SHARED_NOTE.format(merged))
    notes += [UNKNOWN_NOTE.format(row.name, row.reason) for row in rows if row.reason]
    if own := sorted({row.type for row in rows if row.is_own}):
        notes.append(OWN_NOTE.format(", ".join(own)))
    return notes


def layers_to_json(rows: Sequence[LayerRow]) -> list[dict[str, Any]]:
    """Returns one dict per layer, ready for JSON.

    Keys: name, type, output_shape (null where a size is not fixed), parameters, receptive_field
    and jump (a number if height and width agree, else [h, w]; null for a model without space, and
    from a layer on whose field is not known), is_bound (whether units may see less than
    receptive_field), and is_shared (whether every unit sees the same pixels, because the map was
    merged with the result of a global pooling: no later layer enlarges the receptive field).
    """
    keys = ("name", "type", "output_shape", "parameters", "receptive_field", "jump")
    return [
        {key: getattr(row, key) for key in keys}
        | {"is_bound": row.after.is_bound, "is_shared": row.after.is_shared}
        for row in rows
    ]


def _field_text(units: FeatureMap) -> str:
    return "<=" * units.is_bound + _text(units.receptive_field)


def _text(value: float | Sequence[float | None] | None) -> str:
    """Returns "32" or "32x30", with "?" for a size that is not fixed; "-" for None."""
    if isinstance(value, Sequence):
        return "x".join("?" if size is None else f"{size:.6g}" for size in value)
    return "-" if value is None else f"{value:.6g}"
