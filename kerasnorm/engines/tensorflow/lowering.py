"""The training pass of a functional Keras model on TensorFlow.

Every layer is called as the Keras layer that it is, but for dropout of values or channels, which is
drawn by NumPy from (seed, epoch, step), so that several devices drop what one does and random
numbers cost little, and for the norms that `tensorflow_kernels` computes faster.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from kerasnorm.engines.dropout import dropout_generator, dropped_channels, dropped_positions
from kerasnorm.engines.tensorflow.kernels import training_norm
from kerasnorm.inspection.graph import call_node, functional_graph, nodes

Tensor = Any


@dataclass(frozen=True)
class Dropout:
    """A way to drop values: what is drawn by NumPy for a step, and what it does to a tensor.

    Attributes:
        draw: From a generator, the number of values and the rate to an int32 vector.
        drop: From a tensor, the rate, a vector that holds that one, where in it it starts and
            ends, and the number of the tensor's first image, to the tensor with values dropped.
    """

    draw: Callable[[np.random.Generator, int, float], NDArray[np.int32]]
    drop: Callable[[Tensor, float, Tensor, tuple[Tensor, Tensor], Tensor | int], Tensor]


@dataclass(frozen=True)
class _Drop:
    """One dropout of a graph that NumPy draws.

    Attributes:
        layer: A Dropout or SpatialDropout2D.
        shape: Of what is drawn for an image: its own, or (1, 1, channels).
        dropout: How values are dropped.
    """

    layer: Any
    shape: tuple[int, ...]
    dropout: Dropout

    def __call__(
        self, x: Tensor, drawn: Tensor, bounds: tuple[Tensor, Tensor], first: Tensor | int
    ) -> Tensor:
        x = tf.cast(x, self.layer.compute_dtype)
        if self.shape == tuple(x.shape[1:]):
            return self.dropout.drop(x, self.layer.rate, drawn, bounds, first)
        ones = tf.ones_like(x[:, :1, :1])
        return x * self.dropout.drop(ones, self.layer.rate, drawn, bounds, first)


class LoweredModel:
    """The training pass of a model with one input and one output.

    Args:
        model: Functional, or a Sequential that has been built.
        is_compiled: Whether XLA will compile it: then the norms are left to Keras.
        is_hashed: Whether dropout is one that XLA can fuse; by default where XLA compiles.
    """

    def __init__(self, model: Any, *, is_compiled: bool, is_hashed: bool = False) -> None:
        graph = functional_graph(model)
        self.input, self.output = id(graph.inputs[0]), id(graph.outputs[0])
        self.input_dtype = graph.inputs[0].dtype
        self.calls = [node for node in nodes(graph) if not node.is_input]
        drops = {n: _drop(node, is_hashed or is_compiled) for n, node in enumerate(self.calls)}
        self.drops = {number: drop for number, drop in drops.items() if drop is not None}
        self.norms = {} if is_compiled else _training_norms(self.calls)

    def draw(
        self, keys: list[tuple[int, int, int]], images: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Returns what the dropouts of some steps are drawn from.

        Args:
            keys: (seed, epoch, step) of each step.
            images: In each of their batches.

        Returns:
            One vector behind the other, and where each starts and ends, (steps, dropouts + 1).
        """
        parts = [np.zeros(0, np.int32)]
        for key in keys:
            for number, drop in self.drops.items():
                count, random = images * math.prod(drop.shape), dropout_generator(key, number)
                parts.append(drop.dropout.draw(random, count, drop.layer.rate))
        ends = np.cumsum([len(part) for part in parts], dtype=np.int32)
        places = np.arange(len(keys))[:, None] * len(self.drops) + np.arange(len(self.drops) + 1)
        return np.concatenate(parts), ends[places]

    def __call__(self, x: Tensor, drawn: Tensor, ends: Tensor, first: Tensor | int = 0) -> Tensor:
        """Returns the output for a training batch x (N, ...), and updates moving statistics.

        Args:
            x: The batch; it is cast to the type of the model's input, as Keras casts it.
            drawn: From `draw`.
            ends: A row of what `draw` returned.
            first: Number of x's first image in the batch that was drawn for.
        """
        values = {self.input: tf.cast(x, self.input_dtype)}
        bounds = {number: (ends[at], ends[at + 1]) for at, number in enumerate(self.drops)}
        for number, node in enumerate(self.calls):
            if number in self.drops:
                source = values[id(node.input_tensors[0])]
                outputs = [self.drops[number](source, drawn, bounds[number], first)]
            elif number in self.norms:
                outputs = [self.norms[number](values[id(node.input_tensors[0])])]
            else:
                outputs = call_node(node, values, training=True)
            for target, value in zip(node.outputs, outputs, strict=True):
                values[id(target)] = value
        return values[self.output]


def _training_norms(calls: list[Any]) -> dict[int, Callable[[Tensor], Tensor]]:
    """Returns the norms that are computed by other means than Keras's, by number of their call."""
    found = {}
    for number, node in enumerate(calls):
        shapes = [tensor.shape for tensor in node.input_tensors]
        is_image = len(shapes) == 1 and len(shapes[0]) == 4 and None not in shapes[0][1:]
        norm = training_norm(node.operation) if is_image else None
        if norm is not None:
            found[number] = norm
    return found


def _drop(node: Any, is_hashed: bool) -> _Drop | None:
    """Returns the dropout that a call is, or None where it is none or is left to Keras."""
    layer = node.operation
    if type(layer) is layers.Dropout and layer.noise_shape is None:
        shape, cleared = tuple(node.input_tensors[0].shape[1:]), CLEARED
    elif type(layer) is layers.SpatialDropout2D and layer.data_format == "channels_last":
        shape, cleared = (1, 1, node.input_tensors[0].shape[-1]), CLEARED_CHANNELS
    else:
        return None
    if not 0 < layer.rate < 1 or None in shape:
        return None
    return _Drop(layer, shape, HASHED if is_hashed else cleared)


def _draw_places(rng: np.random.Generator, count: int, rate: float) -> NDArray[np.int32]:
    return dropped_positions(rng, count, rate).astype(np.int32)


def _draw_channels(rng: np.random.Generator, count: int, rate: float) -> NDArray[np.int32]:
    return dropped_channels(rng, count, rate).astype(np.int32)


def _clear(
    x: Tensor, rate: float, drawn: Tensor, bounds: tuple[Tensor, Tensor], first: Tensor | int
) -> Tensor:
    places = drawn[bounds[0] : bounds[1]]
    if isinstance(first, tf.Tensor):  # x is a part of the batch
        places -= first * tf.reduce_prod(tf.shape(x)[1:])
        places = tf.boolean_mask(places, (places >= 0) & (places < tf.size(x)))
    places = places[:, None]

    def at_places(x: Tensor) -> Tensor:
        flat = tf.reshape(x * (1 / (1 - rate)), [-1])
        zeros = tf.zeros(tf.shape(places)[:1], x.dtype)
        return tf.reshape(tf.tensor_scatter_nd_update(flat, places, zeros), tf.shape(x))

    # It is linear and its own transpose.
    return tf.custom_gradient(lambda x: (at_places(x), at_places))(x)


def _draw_key(rng: np.random.Generator, count: int, rate: float) -> NDArray[np.int32]:
    return rng.integers(0, 2**31, 2, np.int64).astype(np.int32)


def _hash(
    x: Tensor, rate: float, drawn: Tensor, bounds: tuple[Tensor, Tensor], first: Tensor | int
) -> Tensor:
    """Drops where a hash of a value's place says so.

    A few integer operations, which XLA fuses into the loops around them, where a random generator
    writes and reads a tensor of its own. The mixing steps are those of 32-bit integer hashes (C.
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


CLEARED = Dropout(_draw_places, _clear)  # the places are drawn: little work at small rates
CLEARED_CHANNELS = Dropout(_draw_channels, _clear)
HASHED = Dropout(_draw_key, _hash)  # for XLA, which wants fixed shapes
