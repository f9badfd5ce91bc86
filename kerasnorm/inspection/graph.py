"""The graph of a functional Keras model."""

from collections.abc import Iterator
from typing import Any

from kerasnorm.errors import ConfigError


def functional_graph(model: Any) -> Any:
    """Returns the functional graph of a model; Keras keeps that of a Sequential inside of it.

    Raises:
        ConfigError: The model is subclassed, or a Sequential that has not been built.
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
