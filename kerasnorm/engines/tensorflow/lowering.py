"""The training pass of a functional Keras model on TensorFlow.

Every layer is called as a Keras layer, with two exceptions. NumPy draws the dropout of values or
channels from (seed, epoch, step), so that several devices drop the same values as one and random
numbers cost little. Norms have faster kernels, see `kerasnorm.engines.tensorflow.fused`.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from keras import KerasTensor, layers
from numpy.typing import NDArray

from kerasnorm.engines.base import dropout_generator, dropped_positions
from kerasnorm.engines.fused import Call, Chain, activation_name, chains
from kerasnorm.engines.tensorflow import fused
from kerasnorm.inspection.graph import call_node, functional_graph, nodes, sized_calls

Tensor = Any


@dataclass(frozen=True)
class Dropout:
    """A dropout layer of a graph, drawn by NumPy.

    The values that are drawn per image have a shape: the image's, or (1, 1, channels).
    """

    layer: Any
    shape: tuple[int, ...]
    # Whether NumPy draws the key of a hash, so that shapes are fixed, as XLA requires; otherwise it
    # draws which values to set to zero: little work at small rates.
    is_hashed: bool

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int32]:
        """Returns the random numbers of a step in which `count` values may be dropped."""
        if self.is_hashed:
            return rng.integers(0, 2**31, 2).astype(np.int32)
        if isinstance(self.layer, layers.SpatialDropout2D):
            return np.flatnonzero(rng.random(count) < self.layer.rate).astype(np.int32)
        return dropped_positions(rng, count, self.layer.rate).astype(np.int32)

    def __call__(
        self, x: Tensor, drawn: Tensor, bounds: tuple[Tensor, Tensor], first: Tensor | int
    ) -> Tensor:
        """Returns x with values dropped.

        `drawn` holds random numbers, those of this dropout between the `bounds`; `first` is the
        number of x's first row in the batch.
        """
        x, drop = tf.cast(x, self.layer.compute_dtype), _hash if self.is_hashed else _clear
        if self.shape == tuple(x.shape[1:]):
            return drop(x, self.layer.rate, drawn, bounds, first)
        return x * drop(tf.ones_like(x[:, :1, :1]), self.layer.rate, drawn, bounds, first)


class LoweredModel:
    """The training pass of a model with one input and one output.

    Attributes:
        fused_kernels: Digest of the compiled operations that norms are computed with; None for
            none.

    Args:
        model: Functional, or a Sequential that has been built.
        is_compiled: Whether XLA will compile it; the norms are then left to Keras.
        is_hashed: Whether dropout takes the form that XLA can fuse, as it does if XLA compiles.
        is_fused: Whether norms are computed together with their neighbours on a CPU, where they
            can be.
    """

    def __init__(
        self,
        model: Any,
        *,
        is_compiled: bool,
        is_hashed: bool = False,
        is_fused: bool = False,
    ) -> None:
        graph = functional_graph(model)
        self.input, self.output = id(graph.inputs[0]), id(graph.outputs[0])
        self.input_dtype = graph.inputs[0].dtype
        self.calls = [node for node in nodes(graph) if not node.is_input]
        is_hashed = is_hashed or is_compiled
        per_image = _calls_per_image(model)
        self.drops = {
            number: drop
            for number, node in enumerate(self.calls)
            if (drop := _drop(node, is_hashed or id(node) not in per_image))
        }
        self.norms = {
            number: norm
            for number, node in enumerate(() if is_compiled else self.calls)
            if len(node.input_tensors) == 1
            and _takes_images(node)
            and (norm := fused.training_norm(node.operation))
        }
        found = fused.library() if is_fused and not is_compiled else None
        self.fused_kernels = found.digest if found else None
        self.chains = _chains(graph, self.calls, self.drops) if found else {}
        self.joined = {at for chain in self.chains.values() for at in chain.calls[:-1]}

    def draw(
        self, keys: list[tuple[int, int, int]], images: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Returns the random numbers of the dropouts in some steps.

        The keys are (seed, epoch, step).

        Returns:
            One vector with the numbers of all steps and dropouts, and where those of each start
            and end, (steps, dropouts + 1).
        """
        parts = [np.zeros(0, np.int32)]
        for key in keys:
            for number, drop in self.drops.items():
                count = images * math.prod(drop.shape)
                parts.append(drop.draw(dropout_generator(key, number), count))
        ends = np.cumsum([len(part) for part in parts], dtype=np.int32)
        places = np.arange(len(keys))[:, None] * len(self.drops) + np.arange(len(self.drops) + 1)
        return np.concatenate(parts), ends[places]

    def __call__(self, x: Tensor, drawn: Tensor, ends: Tensor, first: Tensor | int = 0) -> Tensor:
        """Returns the output for a training batch x (N, ...), and updates the moving statistics.

        Args:
            x: The batch; it is cast to the type of the model's input, as Keras casts it.
            drawn: Random numbers from `draw`.
            ends: Where those of this step start and end, a row from `draw`.
            first: Position of x's first image in the batch for which the numbers were drawn.
        """
        values = {self.input: tf.cast(x, self.input_dtype)}
        bounds = {number: (ends[at], ends[at + 1]) for at, number in enumerate(self.drops)}
        for number, node in enumerate(self.calls):
            if number in self.joined:  # computed with the last call of its chain
                continue
            if number in self.chains:
                outputs = [self._fused(self.chains[number], values, drawn, bounds, first)]
            elif number in self.drops:
                source = values[id(node.input_tensors[0])]
                row = first  # of an image there may be several rows
                if isinstance(first, tf.Tensor):
                    row = first * tf.shape(source)[0] // tf.shape(x)[0]
                outputs = [self.drops[number](source, drawn, bounds[number], row)]
            elif number in self.norms:
                outputs = [self.norms[number](values[id(node.input_tensors[0])])]
            else:
                outputs = call_node(node, values, training=True)
            for target, value in zip(node.outputs, outputs, strict=True):
                values[id(target)] = value
        return values[self.output]

    def _fused(
        self,
        chain: Chain[int],
        values: dict[int, Tensor],
        drawn: Tensor,
        bounds: dict[int, tuple[Tensor, Tensor]],
        first: Tensor | int,
    ) -> Tensor:
        """Returns the output of calls that are computed together; see `__call__`."""
        layer = self.calls[chain.norm].operation
        x, *others = (tf.cast(values[name], layer.compute_dtype) for name in chain.sources)
        options: dict[str, Any] = {"before": chain.before, "after": chain.after}
        if chain.dropout is not None:
            options["rate"] = self.drops[chain.dropout].layer.rate
            options["dropped"] = _positions(x, drawn, bounds[chain.dropout], first)
        return fused.normalize(layer, x, *others, **options)


def _chains(graph: Any, calls: list[Any], drops: dict[int, Dropout]) -> dict[int, Chain[int]]:
    """Returns what is computed together, by the number of its last call."""
    parts, called = [], Counter(id(node.operation) for node in calls)
    for number, node in enumerate(calls):
        layer, inputs = node.operation, node.input_tensors
        is_one_type = {x.dtype for x in inputs} == {getattr(layer, "compute_dtype", None)}
        is_plain = is_one_type and _takes_images(node)
        parts.append(
            Call(
                [id(x) for x in inputs],
                [id(x) for x in node.outputs],
                # Several calls of a norm must update its statistics in their order.
                is_norm=is_plain and called[id(layer)] == 1 and fused.can_compute(layer),
                activation=activation_name(layer) if is_plain else "",
                is_dropout=type(layer) is layers.Dropout
                and number in drops
                and not drops[number].is_hashed
                and is_one_type,
                is_add=type(layer) is layers.Add
                and is_plain
                and len({x.shape for x in inputs}) == 1,
            )
        )
    readers = Counter(source for part in parts for source in part.sources)
    readers[id(graph.outputs[0])] += 1
    return {chain.calls[-1]: chain for chain in chains(parts, readers)}


def _takes_images(node: Any) -> bool:
    """Says whether all inputs of a call are images (N, H, W, C) of fixed size."""
    return all(len(x.shape) == 4 and None not in x.shape[1:] for x in node.input_tensors)


def _calls_per_image(model: Any) -> set[int]:
    """Returns the `id` of each call whose input has one row for every image of a batch.

    Patches of images, for example, may be rows of their own.
    """
    images = 5040  # which operations that join images can divide by 2 to 10
    batch = KerasTensor((images, *model.inputs[0].shape[1:]), model.inputs[0].dtype)
    calls = sized_calls(model, [batch])
    return {id(node) for node, inputs, _ in calls if inputs[0].shape[0] == images}


def _drop(node: Any, is_hashed: bool) -> Dropout | None:
    """Returns the dropout of a call, or None if it is no dropout or is left to Keras."""
    layer = node.operation
    if type(layer) is layers.Dropout and layer.noise_shape is None:
        shape = tuple(node.input_tensors[0].shape[1:])
    elif type(layer) is layers.SpatialDropout2D and layer.data_format == "channels_last":
        shape = (1, 1, node.input_tensors[0].shape[-1])
    else:
        return None
    if not 0 < layer.rate < 1 or None in shape:
        return None
    return Dropout(layer, shape, is_hashed)


def _positions(
    x: Tensor, drawn: Tensor, bounds: tuple[Tensor, Tensor], first: Tensor | int
) -> Tensor:
    """Returns the positions in x of what dropout drops, ascending, int32."""
    places = drawn[bounds[0] : bounds[1]]
    if isinstance(first, tf.Tensor):  # x is a shard of the batch
        places -= first * tf.reduce_prod(tf.shape(x)[1:])
        places = tf.boolean_mask(places, (places >= 0) & (places < tf.size(x)))
    return places


def _clear(
    x: Tensor, rate: float, drawn: Tensor, bounds: tuple[Tensor, Tensor], first: Tensor | int
) -> Tensor:
    places = _positions(x, drawn, bounds, first)[:, None]

    def at_places(x: Tensor) -> Tensor:
        flat = tf.reshape(x * (1 / (1 - rate)), [-1])
        zeros = tf.zeros(tf.shape(places)[:1], x.dtype)
        return tf.reshape(tf.tensor_scatter_nd_update(flat, places, zeros), tf.shape(x))

    # The function is linear and its own transpose.
    return tf.custom_gradient(lambda x: (at_places(x), at_places))(x)


def _hash(
    x: Tensor, rate: float, drawn: Tensor, bounds: tuple[Tensor, Tensor], first: Tensor | int
) -> Tensor:
    """Drops the values whose position has a hash below the rate.

    XLA fuses these integer operations into the loops around them, while a random generator would
    write and read a tensor of its own. The mixing steps are those of 32-bit integer hashes (C.
    Wellons, github.com/skeeto/hash-prospector).
    """
    low, high = tf.unstack(tf.bitcast(tf.slice(drawn, bounds[:1], [2]), tf.uint32), 2)
    before = first * tf.reduce_prod(tf.shape(x)[1:])
    place = tf.bitcast(tf.range(tf.size(x), dtype=tf.int32) + before, tf.uint32)
    mixed = _mix(place * tf.constant(0x9E3779B1, tf.uint32) + low, 15, 0x2C1B3C6D) + high
    mixed = _mix(_mix(mixed, 12, 0x297A2D39), 15, 0x85EBCA6B)
    mixed = tf.bitwise.bitwise_xor(mixed, tf.bitwise.right_shift(mixed, tf.constant(16, tf.uint32)))
    kept = tf.reshape(mixed >= tf.constant(round(rate * 2**32), tf.uint32), tf.shape(x))
    return tf.where(kept, x * (1 / (1 - rate)), tf.zeros([], x.dtype))


def _mix(x: Tensor, shift: int, factor: int) -> Tensor:
    folded = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32)))
    return folded * tf.constant(factor, tf.uint32)
