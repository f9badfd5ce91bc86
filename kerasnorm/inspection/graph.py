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


def may_be_own_norm(node: Any) -> bool:
    """Returns whether a call is that of a layer of the user's own that may be a norm.

    It keeps the shape of its only input, and has no kernel with which it could mix pixels.
    """
    layer, shapes = node.operation, [tensor.shape for tensor in node.input_tensors]
    is_own = type(layer).__module__.partition(".")[0] not in ("keras", "kerasnorm")
    return (
        is_own
        and isinstance(layer, keras.Layer)
        and not isinstance(layer, keras.Model)
        and shapes == [tensor.shape for tensor in node.outputs]
        and all(len(weight.shape) < 2 for weight in layer.weights)
    )


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


def call_again(graph: Any, tensor: Any, *, opens_models: bool = False) -> Any:
    """Returns the output of a graph of one input for another input, a symbolic tensor.

    The layers are the graph's own: each has one call more afterwards.

    Args:
        graph: The graph.
        tensor: Its input.
        opens_models: Whether, of models of one input and output in it, the layers are called.
    """
    values = {id(graph.inputs[0]): tensor}
    for node in nodes(graph):
        if not node.is_input:
            arguments, options = node.arguments.fill_in(values)
            call = node.operation
            if opens_models and isinstance(call, keras.Model) and _is_single(call):
                outputs = [call_again(functional_graph(call), arguments[0], opens_models=True)]
            else:
                outputs = keras.tree.flatten(call(*arguments, **options))
            values |= {id(t): v for t, v in zip(node.outputs, outputs, strict=True)}
    return values[id(graph.outputs[0])]


def _is_single(model: keras.Model) -> bool:
    return len(model.inputs) == len(model.outputs) == 1


def flattened(model: keras.Model) -> keras.Model:
    """Returns a model of one input whose graph holds the layers of the models in it, its own."""
    graph = functional_graph(model)
    if not any(isinstance(node.operation, keras.Model) for node in nodes(graph)):
        return model
    outputs = call_again(graph, graph.inputs[0], opens_models=True)
    return keras.Model(graph.inputs[0], outputs, name=model.name)
