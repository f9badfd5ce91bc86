"""What a conversion did to a network: its layers, its cost, and how far the outputs moved."""

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasnorm.files import plain
from kerasnorm.inspection.graph import functional_graph, may_be_own_norm, sized_calls
from kerasnorm.inspection.outputs import probe_images
from kerasnorm.tables import Table

EXACT = 1e-5  # relative difference up to which two layers count as the same
FREE_SIZE = 64  # of an axis whose size a model leaves open, where it is probed
# Multiply-adds per value of a norm: at inference a batch norm is one scale and shift; the others
# also measure a mean and a mean square.
NORM_COST = {
    keras.layers.BatchNormalization: 1,
    keras.layers.GroupNormalization: 3,
    keras.layers.LayerNormalization: 3,
    keras.layers.RMSNormalization: 2,
}
# Layers of which every position of the output, and of the transposed ones the input, uses each
# value of the kernels once.
LINEAR = (
    keras.layers.Dense,
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    *(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
    *(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D),
)
TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
# Classes of layers and operations that multiply tensors without a kernel.
PRODUCTS = {
    *("Attention", "AdditiveAttention", "Dot", "DotProductAttention", "Einsum", "Inner", "Matmul"),
    *("Outer", "Tensordot", "Vdot"),
}
COST_NOTE = (
    "Multiply-adds of one image: convolutions and dense layers; a batch norm counts 1 per value, "
    "RMS 2, group and layer norm 3, other layers none. Changes are relative to the largest output, "
    "on noise images. Scale and shift are kept where the note says nothing else."
)


@dataclass(frozen=True, kw_only=True)
class ConvertedLayer:
    """One layer of a conversion.

    Attributes:
        name: Path of the layer, such as "backbone/conv1_bn".
        before: Class of the layer.
        after: What became of it: the class of the new layer, "removed", "kept" or "folded".
        groups: Number of groups of a group norm, None for any other layer.
        channels: Number of its channels.
        parameters: Number of its weights before and after, moving statistics included.
        preserves: Whether it computes the same function as before, at inference.
        difference: Largest difference of its outputs on the same inputs, relative to the largest
            output; None where it was not measured.
        note: What was carried over, or why the layer stayed.
    """

    name: str
    before: str
    after: str
    groups: int | None = None
    channels: int
    parameters: tuple[int, int]
    preserves: bool
    difference: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A converted network.

    Attributes:
        model: The new network, uncompiled; the given one stays as it is.
        layers: Its layers that are norms, or that were changed.
        difference: Largest difference of the network's outputs on noise images, relative to the
            largest output.
        parameters: Number of weights before and after.
        multiply_adds: Multiply-adds of one image before and after, None where they are not known.
        milliseconds: Measured time of a prediction of one image before and after, None where it
            was not measured.
        notes: Sentences about what was left as it was.
    """

    model: keras.Model
    layers: tuple[ConvertedLayer, ...]
    difference: float
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int] | None
    milliseconds: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def preserves(self) -> bool:
        """Whether every layer computes the same function as before, at inference.

        The outputs may differ by more than `EXACT` nevertheless: a deep network in float32
        amplifies the rounding of its layers.
        """
        return all(layer.preserves for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the model, ready for JSON."""
        document: dict[str, Any] = plain({k: v for k, v in vars(self).items() if k != "model"})
        return document | {"preserves": self.preserves}

    def table(self, title: str = "") -> Table:
        """Returns the table of the layers, with the totals of the network."""
        rows = [
            (
                row.name,
                _what(row),
                f"{row.groups} of {row.channels // row.groups}" if row.groups else "",
                _arrow(row.parameters),
                "yes" if row.preserves else "no",
                "" if row.difference is None else f"{row.difference:.1e}",
                row.note,
            )
            for row in self.layers
        ]
        total = "yes" if self.preserves else "no"
        totals = [("outputs", "", "", _arrow(self.parameters), total, f"{self.difference:.1e}", "")]
        notes = [*self.notes, COST_NOTE]
        if self.multiply_adds:
            notes.insert(0, f"Multiply-adds {_arrow(self.multiply_adds)}.")
        if self.milliseconds:
            before, after = self.milliseconds
            notes.insert(0, f"One image takes {before:.2f} ms -> {after:.2f} ms.")
        if any(row.groups == row.channels > 1 for row in self.layers):
            notes.insert(0, "Groups of one channel each are instance normalization.")
        columns = ("layer", "norm", "groups", ">parameters", "same", ">change", "note")
        return Table(columns, rows, totals, notes, title)


def _what(row: ConvertedLayer) -> str:
    """Returns what became of a layer, in short: "Batch -> Group", "Batch folded"."""
    before, after = (name.removesuffix("Normalization") for name in (row.before, row.after))
    return f"{before} {after}" if after.islower() else f"{before} -> {after}"


def _arrow(pair: tuple[int, int]) -> str:
    before, after = pair
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def compared(
    before: keras.Model,
    after: keras.Model,
    layers: Sequence[ConvertedLayer],
    *,
    rounds: int = 0,
    notes: Sequence[str] = (),
) -> Conversion:
    """Returns a conversion, with the costs and outputs of both networks.

    Each network is timed `rounds` times.
    """
    probe = probe_inputs(before)
    one, other = (keras.tree.flatten(model.predict_on_batch(probe)) for model in (before, after))
    costs = multiply_adds(before), multiply_adds(after)
    if None not in costs and (own := _uncounted(before, after)):
        notes = [*notes, f"Multiply-adds of layers of your own are not counted: {', '.join(own)}."]
    if others := sorted({type(node.operation).__name__ for node, *_ in sized_calls(before)
                         if not _is_countable(node.operation)}):  # fmt: skip
        notes = [*notes, f"Multiply-adds are not known, because of: {', '.join(others)}."]
    return Conversion(
        model=after,
        layers=tuple(layers),
        difference=max(difference(a, b) for a, b in zip(one, other, strict=True)),
        parameters=(before.count_params(), after.count_params()),
        multiply_adds=None if costs[0] is None or costs[1] is None else (costs[0], costs[1]),
        milliseconds=_milliseconds(before, after, rounds) if rounds else None,
        notes=tuple(notes),
    )


def difference(one: Any, other: Any) -> float:
    """Returns the largest difference of two arrays, relative to the largest value of the first.

    Infinity where one of them is not finite.
    """
    # Arrays of a narrower type than float32, or of a GPU, become NumPy's through Keras.
    one, other = (keras.ops.convert_to_numpy(array).astype(np.float64) for array in (one, other))
    gap, largest = float(np.abs(one - other).max()), float(np.abs(one).max())
    return gap / (largest or 1.0) if math.isfinite(gap) else math.inf


def probe_inputs(model: keras.Model, count: int = 4) -> Any:
    """Returns inputs of noise for a model, in the structure of its own: pixels for images.

    Several inputs differ: a network that compares its inputs gives the same for all equal ones.
    """
    rng, seeds = np.random.Generator(np.random.PCG64(11)), itertools.count(7)

    def noise(tensor: Any) -> Any:
        shape = tuple(size or FREE_SIZE for size in tensor.shape[1:])
        is_float, is_image = keras.backend.is_float_dtype(tensor.dtype), len(shape) == 3
        if not is_float and not is_image:  # indices, for example, of which the least is 0
            return np.zeros((count, *shape), tensor.dtype)
        values: Any = rng.normal(size=(count, *shape))
        if is_image:
            values = probe_images(shape, count, next(seeds))
        keeps_type = not is_float or tensor.dtype == "float64"
        return values.astype(tensor.dtype if keeps_type else "float32")

    return keras.tree.map_structure(noise, functional_graph(model).input)


def multiply_adds(model: keras.Model) -> int | None:
    """Returns the multiply-adds of a network for one image, None where they are not known.

    Those of convolutions, dense layers and norms (`NORM_COST`), once per call of a layer or of a
    model in the network; activations, additions, poolings and norms of the user's own count as
    none. They are not known where a size is not fixed, and of other layers with kernels, such as
    LSTM, and products of tensors, such as attention.
    """
    found = [_of_call(node.operation, *tensors) for node, *tensors in sized_calls(model)]
    known = [count for count in found if count is not None]
    return sum(known) if len(known) == len(found) else None


def _of_call(layer: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> int | None:
    """Returns the multiply-adds of one call of a layer, None where they are not known."""
    if not _is_countable(layer):
        return None
    if isinstance(layer, keras.layers.EinsumDense):
        return _of_einsum(layer, inputs[0].shape)
    shape = (inputs if isinstance(layer, TRANSPOSED) else outputs)[0].shape[1:]
    kernels = _kernels(layer)
    per_value = next((n for kind, n in NORM_COST.items() if isinstance(layer, kind)), 0)
    if not kernels and not per_value:
        return 0
    if None in shape:
        return None
    is_first = getattr(layer, "data_format", None) == "channels_first"
    positions = math.prod(shape[1:] if is_first else shape[:-1])
    total: int = positions * sum(math.prod(w.shape) for w in kernels)
    total += math.prod(shape) * per_value
    return total


def _is_countable(layer: Any) -> bool:
    """Returns whether there is a rule for the multiply-adds of a layer or of an operation."""
    is_known = isinstance(layer, (*LINEAR, *TRANSPOSED, keras.layers.EinsumDense))
    return type(layer).__name__ not in PRODUCTS and (is_known or not _kernels(layer))


def _kernels(layer: Any) -> list[Any]:
    weights = layer.weights if isinstance(layer, keras.Layer) else ()
    return [weight for weight in weights if weight.name.endswith("kernel")]


def _of_einsum(layer: Any, shape: Sequence[int | None]) -> int | None:
    """Returns the multiply-adds of an EinsumDense: the product of the sizes of all its axes.

    The first axis of its input, whose shape is given, is that of the images and counts as 1.
    """
    source, kernel = layer.equation.partition("->")[0].split(",")
    before, _, after = source.partition("...")
    sizes = [1, *shape[1:]]
    axes = list(before) + ["..."] * (len(sizes) - len(before) - len(after)) + list(after)
    rest = [size for axis, size in zip(axes, sizes, strict=True) if axis not in kernel]
    known = [size for size in rest if size is not None]
    total = math.prod(known) * math.prod(layer.kernel.shape)
    return total if len(known) == len(rest) else None


def _uncounted(*models: keras.Model) -> list[str]:
    """Returns the classes of layers that may be norms of the user's own, and count as none."""
    calls = [call for model in models for call in sized_calls(model)]
    return sorted(
        {
            type(node.operation).__name__
            for node, *tensors in calls
            if may_be_own_norm(node) and _of_call(node.operation, *tensors) == 0
        }
    )


def _milliseconds(before: keras.Model, after: keras.Model, rounds: int) -> tuple[float, float]:
    """Returns the median time of a prediction of one image by each of two models, in turns."""
    probe = probe_inputs(before, 1)
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for model, times in zip((before, after), taken, strict=True):
            start = time.perf_counter()
            model.predict_on_batch(probe)
            if turn:  # the first compiles
                times.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken[0]), statistics.median(taken[1])
