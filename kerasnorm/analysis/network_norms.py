"""The norms of a Keras model: which axes share a mean and a variance, and how many values do.

Keras's own norms are read from their settings. A norm of another class is called: one value of its
input changes, and the axes are those along which other outputs change with it.
"""

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasnorm.conversion.norms import STOCK
from kerasnorm.conversion.rebuild import refuse_hidden
from kerasnorm.errors import ConfigError, error_text
from kerasnorm.inspection.graph import Calls, may_be_own_norm
from kerasnorm.keras_settings import stock_keras
from kerasnorm.layers import custom_layers
from kerasnorm.norms import FREE_SIZE, moved_outputs, without_zeros
from kerasnorm.tables import Table

logger = logging.getLogger(__name__)
AXES = {2: "NC", 3: "NLC", 4: "NHWC", 5: "NDHWC"}  # names of the axes of an input, by their number
DRAWS = 4  # random inputs; a norm that cuts off its outputs hides what changes in one of them
VALUES_NOTE = (
    "values share one statistic: those of one image, or of all N images of a batch (x N) in "
    "training. sets: statistics of an image, or of a batch."
)
OBSERVED = {"trainable": True, "dtype": "float32"}  # settings of a layer that is called
OF_CHANNELS = (keras.layers.BatchNormalization, keras.layers.GroupNormalization)


@dataclass(frozen=True, kw_only=True)
class NormRow:
    """One call of one norm."""

    name: str  # path of the layer, such as "backbone/conv1_bn"
    type: str  # name of its class
    behind: str  # path of the layer whose output it normalizes
    # Shape of its input without the batch, such as (H, W, C); None where it is not fixed.
    shape: tuple[int | None, ...]
    # Axes that share statistics: "NHW" for a batch norm, "HWC" for a group or layer norm.
    axes: str
    channels: int  # number of channels that share statistics
    # Number of values of one image that share statistics, and number of statistics of one image, or
    # of the batch where `axes` holds N; None where a size is not fixed.
    values: int | None
    sets: int | None
    parameters: int  # number of its weights, moving statistics included
    is_observed: bool  # whether the axes were found by calling the layer

    @property
    def over(self) -> str:
        """What shares statistics, in words: "N, H, W", "H, W, 8 groups of 4 channels"."""
        words = [letter for letter in self.axes if letter != "C"]
        count = (self.shape[-1] or 0) // self.channels
        if "C" in self.axes:
            words.append("C" if count == 1 else f"{count} groups of {self.channels} channels")
        return ", ".join(words) or "nothing: each value alone"


def norm_rows(
    model: keras.Model, kinds: Collection[type[keras.layers.Layer]] = ()
) -> list[NormRow]:
    """Returns one row per call of a norm in a model, and in the models in it, inputs first.

    A norm in a model that is called on maps of several sizes has a row for each.

    Args:
        model: Functional or built Sequential model, channels last.
        kinds: Classes of norms of the user's own. Others are found by "norm" in their name; or, of
            layers without a kernel, because values of their input share something. A warning names
            those that could not be called.

    Raises:
        ConfigError: The model has no graph, a layer hides a norm in it, or the channels are not the
            last axis.
    """
    calls = Calls(model)
    known = (*STOCK, *custom_layers().values(), *kinds)
    rows = []
    named = {n for n in calls.nodes if isinstance(n.operation, known) or _is_named_norm(n)}
    found = [node for node in calls.nodes if node in named or may_be_own_norm(node)]
    # A norm of the user's own may be made of others.
    refuse_hidden(model, known, "listed", {id(node.operation) for node in found})
    for node in calls.nodes if found else ():  # of its maps, which its norms need not tell
        if getattr(node.operation, "data_format", None) == "channels_first":
            raise ConfigError(
                f"model: its layer {node.operation.name!r} has its channels first. Expected "
                "layers with data_format='channels_last'."
            )
    sized = [(node, shape) for node in found for shape in dict.fromkeys(calls.shapes[id(node)])]
    for node, shape in sized:
        layer = node.operation
        is_stock = type(layer) in STOCK
        if isinstance(layer, OF_CHANNELS) and layer.axis % len(shape) != len(shape) - 1:
            raise ConfigError(
                f"model: its norm {layer.name!r} has its channels on axis "
                f"{layer.axis % len(shape)} of {shape}. Expected the last axis (channels_last)."
            )
        try:
            axes, channels = _read(layer, shape) if is_stock else _observed(layer, shape)
        except Exception as error:  # of the user's code
            logger.warning(
                f"{calls.paths[id(layer)]} ({type(layer).__name__}) is not listed, although it may "
                f"be a norm: a call of it alone raised {error_text(error)}"
            )
            continue
        if node not in named and not axes:  # each value alone, as in an activation or a dropout
            continue
        fixed = [size for size in shape[1:] if size is not None]
        values = None
        if len(fixed) == len(shape) - 1:
            sizes = dict(zip(AXES[len(shape)][1:], fixed, strict=True)) | {"C": channels}
            values = math.prod(sizes[axis] for axis in axes if axis != "N")
        source = calls.producers[id(node.input_tensors[0])].operation
        rows.append(
            NormRow(
                name=calls.paths[id(layer)],
                type=type(layer).__name__,
                behind=calls.paths[id(source)],
                shape=tuple(shape[1:]),
                axes=axes,
                channels=channels,
                values=values,
                sets=math.prod(fixed) // values if values else None,
                parameters=layer.count_params(),
                is_observed=not is_stock,
            )
        )
    return rows


def _is_named_norm(node: Any) -> bool:
    """Returns whether a call is that of a class that is not Keras's and calls itself a norm.

    It has one input, and an output of the same shape.
    """
    kind, shapes = type(node.operation), [tensor.shape for tensor in node.input_tensors]
    is_own = kind.__module__.partition(".")[0] != "keras"
    is_named = issubclass(kind, keras.Layer) and "norm" in kind.__name__.lower()
    return is_own and is_named and shapes == [tensor.shape for tensor in node.outputs]


def _read(layer: Any, shape: Sequence[int | None]) -> tuple[str, int]:
    """Returns the axes over which a norm of Keras takes statistics, and how many channels share."""
    letters, width = AXES[len(shape)], shape[-1] or 0
    if isinstance(layer, keras.layers.BatchNormalization):
        return letters[:-1], 1
    if isinstance(layer, keras.layers.GroupNormalization):
        channels = 1 if layer.groups == -1 else width // layer.groups
        return letters[1:] if channels > 1 else letters[1:-1], channels
    axes = [axis % len(shape) for axis in keras.tree.flatten(layer.axis)]
    shared = "".join(letters[axis] for axis in sorted(axes))
    return shared, width if "C" in shared else 1


@stock_keras
def _observed(layer: Any, shape: Sequence[int | None]) -> tuple[str, int]:
    """Returns the axes along which outputs change with one input, and in how many channels.

    The layer that is called is trainable, in float32, and has no scale of 0: a frozen one uses its
    moving statistics, half precision may overflow, and a scale of 0 hides the statistics.
    """
    config = layer.get_config()
    config |= {key: value for key, value in OBSERVED.items() if key in config}
    size = (2, *(n or FREE_SIZE for n in shape[1:]))
    fresh = type(layer).from_config(config)
    fresh(keras.ops.zeros(size), training=False)  # builds it
    without_zeros(fresh)
    places = np.nonzero(moved_outputs(fresh, size, (0,) * len(size), DRAWS))
    counts = [len({0, *along.tolist()}) for along in places]
    axes = "".join(a for a, count in zip(AXES[len(size)], counts, strict=True) if count > 1)
    return axes, counts[-1]


def norms_table(rows: Sequence[NormRow], title: str = "") -> Table:
    """Returns the table of the norms of a model, with the sum of their weights."""
    cells = [
        (
            row.name,
            row.type.removesuffix("Normalization") + (" *" if row.is_observed else ""),
            "x".join("?" if size is None else str(size) for size in row.shape),
            row.over,
            ("?" if row.values is None else f"{row.values:,}") + " x N" * ("N" in row.axes),
            "?" if row.sets is None else f"{row.sets:,}",
            f"{row.parameters:,}",
        )
        for row in rows
    ]
    notes = [VALUES_NOTE]
    of_batches = [row for row in rows if row.values and "N" in row.axes]
    of_images = [row for row in rows if row.values and "N" not in row.axes]
    # Which of the two kinds shares fewer depends on the number of images.
    fewest = [
        f"in {row.name}: {row.values:,}{images}"
        for sized, images in ((of_batches, " of each image"), (of_images, ""))
        if (row := min(sized, key=lambda row: row.values or 0, default=None)) is not None
    ]
    if fewest:
        notes.append(f"Fewest values share statistics {', and '.join(fewest)}.")
    if any(row.is_observed for row in rows):
        notes.append("* found by changing one input of the layer.")
    parameters = {row.name: row.parameters for row in rows}  # a norm may be called twice
    totals = [("total", "", "", "", "", "", f"{sum(parameters.values()):,}")]
    columns = ("layer", "norm", "map", "statistics over", ">values", ">sets")
    return Table((*columns, ">parameters"), cells, totals, notes, title)
