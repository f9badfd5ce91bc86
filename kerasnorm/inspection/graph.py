"""The graph of a functional Keras model."""

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from kerasnorm.errors import ConfigError


def functional_graph(model: keras.Model) -> Any:
    """Returns the functional graph of a model; a Sequential holds one.

    Raises:
        ConfigError: The model is subclassed, or is a Sequential that has not been built.
    """
    graph = getattr(model, "_functional", None) or model
    if not hasattr(graph, "_nodes_by_depth"):
        raise ConfigError(
            "Expected a functional model, or a Sequential that has been built. Received: "
            f"{type(model).__name__} {getattr(model, 'name', '')!r}. Give a Sequential a "
            "keras.Input as its first layer; a subclassed model has no graph to read."
        )
    return graph


def nodes(graph: Any) -> Iterator[Any]:
    """Yields the calls of a functional graph, Keras's `Node`s, in topological order."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from graph._nodes_by_depth[depth]


def call_node(node: Any, values: Mapping[int, Any], training: bool) -> list[Any]:
    """Returns the outputs of one call of a graph, one for each of `node.outputs`.

    As in Keras's own pass through a graph, `training` overrides what the call recorded when the
    graph was built: Keras records `training=False` for every layer whose `call` has that default,
    such as SpatialDropout2D. A layer whose `call` does not take the argument receives it too,
    because Keras passes it on to the layers inside.

    Args:
        node: A call, from `nodes`.
        values: The tensors computed so far, by the `id` of their symbolic tensor.
        training: Whether the graph is in training.
    """
    args, kwargs = node.arguments.fill_in(values)
    if isinstance(node.operation, keras.Layer):
        kwargs = kwargs | {"training": training}
    outputs: list[Any] = keras.tree.flatten(node.operation(*args, **kwargs))
    return outputs


def call_again(graph: Any, tensor: Any) -> Any:
    """Returns the output of a graph of one input for another input, a symbolic tensor.

    The layers are the graph's own: each has one call more afterwards.
    """
    values = {id(graph.inputs[0]): tensor}
    for node in nodes(graph):
        if not node.is_input:
            arguments, options = node.arguments.fill_in(values)
            outputs = keras.tree.flatten(node.operation(*arguments, **options))
            values |= {id(t): v for t, v in zip(node.outputs, outputs, strict=True)}
    return values[id(graph.outputs[0])]
