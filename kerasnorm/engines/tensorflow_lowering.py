"""The training pass of a functional Keras model on TensorFlow, with a dropout that XLA can fuse."""

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from kerasnorm.analysis.graph import functional_graph, nodes
from kerasnorm.data.augment import DROPOUT_STREAM, generator

Tensor = Any


class LoweredModel:
    """The training pass of a model with one input and one output.

    Every layer is called as the Keras layer that it is, but for elementwise dropout, whose random
    numbers cost more than the rest of the network; see `dropped`.

    Args:
        model: Functional, or a Sequential that has been built.
    """

    def __init__(self, model: Any) -> None:
        graph = functional_graph(model)
        self.input, self.output = id(graph.inputs[0]), id(graph.outputs[0])
        self.calls = [node for node in nodes(graph) if not node.is_input]
        self.dropouts = [node for node in self.calls if _is_dropout(node.operation)]

    def keys(self, seed: int, epoch: int, step: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Returns the keys that a step's dropouts are drawn from, int32 (dropouts, 2)."""
        rng = generator(seed, DROPOUT_STREAM, epoch, step)
        return rng.integers(0, 2**31, (len(self.dropouts), 2), np.int64).astype(np.int32)

    def __call__(self, x: Tensor, keys: Tensor, start: Tensor | int = 0) -> Tensor:
        """Returns the output for a training batch x (N, ...), and updates moving statistics.

        Args:
            x: The batch, or a part of it.
            keys: What `keys` returned for the step.
            start: Number of the part's first image in the batch.
        """
        values, drawn = {self.input: x}, 0
        for node in self.calls:
            args, kwargs = node.arguments.fill_in(values)
            layer = node.operation
            if _is_dropout(layer):
                output = args[0]
                if layer.rate:
                    output = dropped(output, layer.rate, keys[drawn], start)
                drawn += 1
            else:
                if "training" in inspect.signature(layer.call).parameters:
                    kwargs = kwargs | {"training": True}
                output = layer(*args, **kwargs)
            for target, value in zip(node.outputs, keras.tree.flatten(output), strict=True):
                values[id(target)] = value
        return values[self.output]


def _is_dropout(layer: Any) -> bool:
    return type(layer) is layers.Dropout and layer.noise_shape is None


def dropped(x: Tensor, rate: float, key: Tensor, start: Tensor | int = 0) -> Tensor:
    """Returns x with each value set to 0 with probability `rate`, the others divided by 1 - rate.

    A hash of each value's place decides: a few integer operations, which XLA fuses into the loops
    around them, where a random generator writes and reads a tensor of its own. The mixing steps
    are those of 32-bit integer hashes (C. Wellons, github.com/skeeto/hash-prospector).

    Args:
        x: Shape (N, ...).
        rate: Above 0, below 1.
        key: int32, shape (2,); the same key drops the same places.
        start: Number of the first image of x in the batch, whose places count from its first.
    """
    first, second = tf.unstack(tf.bitcast(key, tf.uint32), 2)
    before = start * tf.reduce_prod(tf.shape(x)[1:])
    place = tf.bitcast(tf.range(tf.size(x), dtype=tf.int32) + before, tf.uint32)
    mixed = _mix(place * tf.constant(0x9E3779B1, tf.uint32) + first, 15, 0x2C1B3C6D) + second
    mixed = _mix(_mix(mixed, 12, 0x297A2D39), 15, 0x85EBCA6B)
    mixed = tf.bitwise.bitwise_xor(mixed, tf.bitwise.right_shift(mixed, tf.constant(16, tf.uint32)))
    kept = tf.reshape(mixed >= tf.constant(round(rate * 2**32), tf.uint32), tf.shape(x))
    return tf.where(kept, x * (1 / (1 - rate)), tf.zeros([], x.dtype))


def _mix(x: Tensor, shift: int, factor: int) -> Tensor:
    folded = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32)))
    return folded * tf.constant(factor, tf.uint32)
