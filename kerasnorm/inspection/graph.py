"""The graph of a functional Keras model."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count
from typing import Any, TypeVar

import keras

from kerasnorm.errors import ConfigError

T = TypeVar("T")
IDENTITIES = (  # SpatialDropout2D extends Dropout
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
)
GLOBAL_AVERAGES = (
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
)


def functional_graph(model: keras.Model) -> Any:
    """Returns the functional graph of a model; a Sequential holds one.

    Raises:
        ConfigError: The model is subclassed, or is a Sequential that has not been built.
    """
    graph = getattr(model, "_functional", None) or model
    if not hasattr(graph, "_nodes_by_depth"):
        raise ConfigError(
            "Expected a functional model, or a Sequential that has been built. Received: "
            f"{type(model).__name__}. Give a Sequential a keras.Input as its first layer; a "
            "subclassed model has no graph to read."
        )
    return graph


def nodes(graph: Any) -> Iterator[Any]:
    """Yields the calls of a functional graph, Keras's `Node`s, in topological order."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from graph._nodes_by_depth[depth]


def models(model: keras.Model) -> Iterator[keras.Model]:
    """Yields a model, and each model in it once, after those that hold it."""
    yield model
    inner = [node.operation for _, node in walk(model)]
    yield from {id(one): one for one in reversed(inner) if isinstance(one, keras.Model)}.values()


def walk(
    model: keras.Model, path: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, Any]]:
    """Yields the calls of a model in topological order, each with the path before its name.

    Those of a model in it, "backbone/" for example, come before its first call, and only once.
    """
    seen = set() if seen is None else seen
    for node in nodes(functional_graph(model)):
        inner = node.operation
        if isinstance(inner, keras.Model) and id(inner) not in seen:
            seen.add(id(inner))
            yield from walk(inner, f"{path}{inner.name}/", seen)
        yield path, node


def layers(model: keras.Model) -> list[Any]:
    """Returns each layer of a model, and of the models in it, once, in topological order."""
    found = {id(node.operation): node.operation for _, node in walk(model)}
    return [
        one
        for one in found.values()
        if isinstance(one, keras.Layer) and not isinstance(one, keras.Model)
    ]


def has_mask(tensor: Any) -> bool:
    """Returns whether a mask belongs to a symbolic tensor, as behind a Masking layer."""
    return keras.src.backend.get_keras_mask(tensor) is not None


def passed_through(
    graph: Any, inputs: Sequence[T], call: Callable[[Any, dict[int, T]], Sequence[T]]
) -> list[T]:
    """Returns what comes out of a functional graph when something else than tensors goes in.

    `inputs` take the place of those of the graph. `call` receives a call, from `nodes`, and what
    takes the place of each tensor computed so far, by its `id`; it returns what takes the place of
    each output.
    """
    values = dict(zip(map(id, graph.inputs), inputs, strict=True))
    for node in nodes(graph):
        if not node.is_input:
            values |= zip(map(id, node.outputs), call(node, values), strict=True)
    return [values[id(tensor)] for tensor in graph.outputs]


def call_outputs(node: Any, inputs: Sequence[Any]) -> list[Any]:
    """Returns the symbolic outputs of one call of a layer in a model, in the sizes of its inputs.

    A model in another may have been built for maps of any size, and be called on maps of one.
    `inputs` take the place of `node.input_tensors`; the call, from `nodes`, is not that of a model.
    """
    if [one.shape for one in inputs] == [tensor.shape for tensor in node.input_tensors]:
        return list(node.outputs)
    values = dict(zip(map(id, node.input_tensors), inputs, strict=True))
    args, kwargs = node.arguments.fill_in(values)
    return keras.tree.flatten(node.operation.compute_output_spec(*args, **kwargs))


def sized_calls(
    model: keras.Model, inputs: Sequence[Any] | None = None
) -> Generator[tuple[Any, list[Any], list[Any]], None, list[Any]]:
    """Yields every call of a layer that a model makes, with its symbolic inputs and outputs.

    Those of the layers of a model in it come as often as it is called, each time in the sizes of
    that call. The outputs of the model are the generator's return value.
    """
    graph = functional_graph(model)
    given = graph.inputs if inputs is None else inputs
    values = {id(tensor): value for tensor, value in zip(graph.inputs, given, strict=True)}
    for node in nodes(graph):
        if node.is_input:
            continue
        sources = [values[id(tensor)] for tensor in node.input_tensors]
        if isinstance(node.operation, keras.Model):
            outputs = yield from sized_calls(node.operation, sources)
        else:
            outputs = call_outputs(node, sources)
            yield node, sources, outputs
        values |= {id(t): value for t, value in zip(node.outputs, outputs, strict=True)}
    return [values[id(tensor)] for tensor in graph.outputs]


class Calls:
    """Which layer calls precede and follow each other in a model and in the models in it.

    Attributes:
        paths: Path of each layer, by its `id`: "backbone/conv1".
        nodes: Calls in topological order, those of an inner model before its first.
        count: Number of calls of each operation, by its `id`.
        shapes: Shapes of the first input of a call, by its `id`: one, or one for each time that the
            model that it is in is called.
        producers: Call that computes a tensor, by the tensor's `id`.
        consumers: Calls that read a tensor; None stands for the output of the model.
    """

    def __init__(self, model: keras.Model) -> None:
        self.paths: dict[int, str] = {}
        self.nodes: list[Any] = []
        self.producers: dict[int, Any] = {}
        self.consumers: defaultdict[int, list[Any]] = defaultdict(list)
        for path, node in walk(model):
            self.paths.setdefault(id(node.operation), path + node.operation.name)
            self.nodes.append(node)
            self.producers |= {id(tensor): node for tensor in node.outputs}
            for tensor in node.input_tensors:
                self.consumers[id(tensor)].append(node)
        for inner in models(model):
            for tensor in functional_graph(inner).outputs:
                self.consumers[id(tensor)].append(None)
        self.count = Counter(id(node.operation) for node in self.nodes)
        self.shapes: defaultdict[int, list[tuple[int | None, ...]]] = defaultdict(list)
        for node, inputs, _ in sized_calls(model):
            self.shapes[id(node)].append(inputs[0].shape)

    def readers(self, node: Any) -> list[Any]:
        """Returns the calls that read the outputs of a call; None stands for the model's output."""
        return [reader for tensor in node.outputs for reader in self.consumers[id(tensor)]]

    def is_averaged(self, node: Any) -> bool:
        """Returns whether of the output of a call only the mean of each channel is read.

        That is so where only additions, and what does nothing at inference, are between it and a
        global average pooling of the same model.
        """
        readers = self.readers(node)
        return bool(readers) and all(
            reader is not None
            and (
                isinstance(reader.operation, GLOBAL_AVERAGES)
                or (_keeps_mean(reader.operation) and self.is_averaged(reader))
            )
            for reader in readers
        )


def _keeps_mean(operation: Any) -> bool:
    """Returns whether the mean of an operation's output is the (sum of the) mean of its inputs."""
    name = class_name(operation)  # "Add" is the layer, and the operation x + y
    is_linear = getattr(operation, "activation", None) is keras.activations.linear
    return is_identity(operation) or name == "Add" or (name == "Activation" and is_linear)


def is_identity(operation: Any) -> bool:
    """Returns whether a layer or operation of Keras does nothing at inference, such as Dropout.

    So does a layer that extends one of these, unless it has a `call` of its own.
    """
    owner = next(kind for kind in type(operation).__mro__ if "call" in vars(kind))
    is_listed = issubclass(owner, IDENTITIES) or owner.__name__ == "StopGradient"
    return owner.__module__.startswith("keras.") and is_listed


def class_name(operation: Any) -> str:
    """Returns the name of a layer's or operation's class, without "2D": "AveragePooling"."""
    return re.sub(r"\dD$", "", type(operation).__name__)


def may_be_own_norm(node: Any) -> bool:
    """Returns whether a call is that of a layer of the user's own that may be a norm.

    It keeps the shape of its only input, and has no kernel with which it could mix pixels.
    """
    return keeps_shape(node) and all(len(weight.shape) < 2 for weight in node.operation.weights)


def keeps_shape(node: Any) -> bool:
    """Returns whether a call is that of a layer of the user's own that keeps its input's shape."""
    layer, shapes = node.operation, [tensor.shape for tensor in node.input_tensors]
    is_own = type(layer).__module__.partition(".")[0] not in ("keras", "kerasnorm")
    return (
        is_own
        and isinstance(layer, keras.Layer)
        and not isinstance(layer, keras.Model)
        and shapes == [tensor.shape for tensor in node.outputs]
    )


def call_node(node: Any, values: Mapping[int, Any], training: bool) -> list[Any]:
    """Returns the outputs of one call of a graph, one for each of `node.outputs`.

    As in Keras's own pass through a graph, `training` overrides what the call recorded when the
    graph was built: Keras records `training=False` for every layer whose `call` has that default,
    such as SpatialDropout2D. A layer whose `call` does not take the argument receives it too,
    because Keras passes it on to the layers inside.
    """
    args, kwargs = node.arguments.fill_in(values)
    if isinstance(node.operation, keras.Layer):
        kwargs = kwargs | {"training": training}
    return keras.tree.flatten(node.operation(*args, **kwargs))


def call_again(graph: Any, tensor: Any, *, opens_models: bool = False) -> Any:
    """Returns the output of a graph of one input for another input, a symbolic tensor.

    The layers are the graph's own: each has one call more afterwards. With `opens_models`,
    models of one input and output in it are opened: their layers are called.
    """

    def call(node: Any, values: dict[int, Any]) -> list[Any]:
        layer = node.operation
        arguments, options = node.arguments.fill_in(values)
        is_model = isinstance(layer, keras.Model)
        if opens_models and is_model and len(layer.inputs) == len(layer.outputs) == 1:
            return [call_again(functional_graph(layer), arguments[0], opens_models=True)]
        return keras.tree.flatten(layer(*arguments, **options))

    return passed_through(graph, [tensor], call)[0]


@contextmanager
def named_by_path(model: keras.Model) -> Iterator[None]:
    """Lets the layers of the models in a model have paths as names, such as block1/conv, meanwhile.

    Keras makes a model of layers only if their names differ, and two models in the model may each
    have a layer of one name.
    """
    found = {id(node.operation): (path, node.operation) for path, node in walk(model)}
    for path, operation in found.values():
        operation.name = path + operation.name
    try:
        yield
    finally:
        for path, operation in found.values():
            operation.name = operation.name.removeprefix(path)


def flattened(model: keras.Model) -> keras.Model:
    """Returns a model of one input whose graph holds the layers of the models in it, its own."""
    graph = functional_graph(model)
    if not any(isinstance(node.operation, keras.Model) for node in nodes(graph)):
        return model
    outputs = call_again(graph, graph.inputs[0], opens_models=True)
    with named_by_path(model):
        return keras.Model(graph.inputs[0], outputs, name=model.name)


def kernels(model: keras.Model) -> list[tuple[keras.Layer, keras.Variable]]:
    """Returns each kernel of a model once, with the layer whose own it is.

    Those of layers in models and in other layers are among them. A kernel is a weight whose name
    ends with that word, as the names of Keras's kernels do.
    """
    found = {
        id(weight): (layer, weight)
        for layer in model._flatten_layers()  # a layer comes before those in it
        for weight in layer.weights
        if weight.name.endswith("kernel")
    }
    return list(found.values())


def weights_by_name(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the weights of a model under names that differ, such as block1/conv/kernel.

    The `path` of a weight need not name the models that its layer is in, so that it may repeat.
    """
    prefixes: dict[int, str] = {}
    for prefix, weight in _weights(model):
        prefixes.setdefault(id(weight), prefix)
    found: dict[str, keras.Variable] = {}
    for weight in model.weights:
        prefix = prefixes.get(id(weight), "")
        name = prefix + weight.path.removeprefix(prefix)
        # A layer of the user's own may hold two layers of one name.
        others = (f"{name}_{number}" for number in count(2))
        found[next(one for one in chain([name], others) if one not in found)] = weight
    return found


def _weights(model: keras.Model, path: str = "") -> Iterator[tuple[str, keras.Variable]]:
    """Yields the weights of the layers in a model, each with the models in it that hold it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _weights(layer, f"{path}{layer.name}/")
        else:
            yield from ((path, weight) for weight in layer.weights)
