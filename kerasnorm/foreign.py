"""Networks other than the built-in one: applications of Keras, `.keras` files, users' functions.

Each becomes a functional model of the same layers that takes raw pixels and gives logits: weights
are drawn anew from the run's seed, a first layer rescales the pixels where the network has none
that does, a softmax at the end is left out, and the norms are replaced where the config says so.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasnorm import user_code
from kerasnorm.config import ModelConfig, unknown
from kerasnorm.conversion.norms import DEFAULT_GROUPS, replace_norms
from kerasnorm.errors import ConfigError, about, error_text
from kerasnorm.formats.archive import load_model
from kerasnorm.formats.input_scale import rescaling_layer
from kerasnorm.formats.safety.checks import REFUSED
from kerasnorm.inspection.graph import (
    call_again,
    class_name,
    functional_graph,
    is_identity,
    nodes,
)
from kerasnorm.inspection.output_graph import AVERAGES, LINEAR, RESHAPES
from kerasnorm.layers import (
    ONE_OF_EACH,
    OTHER_NETWORKS,
    instance_note,
    leaves,
    made_anew,
    with_precision,
)
from kerasnorm.norms import KEEP, layer_factory
from kerasnorm.progress import counted

logger = logging.getLogger(__name__)
RESCALING = "input_rescaling"  # the first layer of a network that had none
APPLICATION = "keras:"  # before the name of a function of keras.applications


def applications() -> list[str]:
    """Returns the names of the classifiers in `keras.applications`."""
    return [
        name
        for name, found in vars(keras.applications).items()
        if inspect.isfunction(found)
        and "classifier_activation" in inspect.signature(found).parameters
    ]


def build(
    config: ModelConfig,
    pixels: keras.KerasTensor,
    rescaling: keras.layers.Rescaling,
    classes: int,
    precision: str,
    seed: int,
) -> keras.Model:
    """Returns the network that a config names, from raw pixels (N, H, W, C) to logits (N, classes).

    Raises:
        ConfigError: There is no such network, or it does not fit the images or the classes.
    """
    name = config.network
    shape = tuple(pixels.shape[1:])
    source = _source(config, shape, classes)
    _check_input(name, source, shape)
    _refuse_code(name, source)
    tail = list(_tail(source))
    head = _head(name, tail)
    source, note = _on_raw_pixels(name, source, pixels, rescaling)
    seeds = np.random.Generator(np.random.PCG64([seed, 0x1417]))
    last = tail[: tail.index(head) + 1]
    width = "units" if isinstance(head, keras.layers.Dense) else "filters"
    linear = []  # layers in the place of a Softmax, whose call may be given a mask

    def is_softmax(layer: Any) -> bool:
        return any(layer is other for other in last) and _activation(layer) is not None

    def fresh(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an operation: it has no weights
        is_last = any(layer is other for other in last)
        if is_softmax(layer) and not hasattr(layer, "activation"):
            linear.append(keras.layers.Activation("linear", name=layer.name, dtype="float32"))
            return linear[-1]
        policy = "float32" if is_last or layer.name == RESCALING else precision
        options = with_precision(layer.get_config(), policy)
        if "trainable" in options:
            options["trainable"] = True  # until `_carry_over`
        _seed(options, seeds)
        if is_softmax(layer):
            options["activation"] = "linear"
        if is_last and config.new_head:
            if layer is head:
                options[width] = classes
            elif "target_shape" in options:
                old = getattr(head, width)
                options["target_shape"] = [classes if n == old else n for n in layer.target_shape]
        return made_anew(layer, options, policy)

    def call(layer: Any, *inputs: Any, **options: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer) and is_softmax(layer):
            return inputs[0]
        if any(layer is other for other in linear):
            options.pop("mask", None)
        return layer(*inputs, **options)

    try:
        model = keras.models.clone_model(
            source, clone_function=fresh, call_function=call, recursive=True
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"network: the layers of {name} cannot be made anew from their get_config(): "
            f"{error_text(error)}"
        ) from error
    _carry_over(source, model, head if config.new_head else None, config)
    if model.output_shape != (None, classes):
        raise ConfigError(
            f"network: expected logits of shape (N, {classes}), for the {classes} classes of the "
            f"data. Received: {name} with an output of shape {model.output_shape}. "
            + _advice(config)
        )
    model = _with_norms(model, config)
    if not model.trainable_variables:
        raise ConfigError(
            f"network: expected weights to train. Received: {name}, whose layers are all frozen. "
            "Leave out --pretrained, or set trainable = True for some of them."
        )
    logger.info(note)
    return model


def _with_norms(model: keras.Model, config: ModelConfig) -> keras.Model:
    """Returns the model with the norms that the config asks for."""
    if config.norm == KEEP and not config.weight_standardization:
        return model
    wanted: Any = config.norm
    if user_code.is_named(config.norm):
        wanted = layer_factory(config.norm, config)
    groups = {}
    if config.norm == "gn":
        is_default = config.groups == DEFAULT_GROUPS  # which need not divide any width
        groups = {
            "groups": None if is_default else config.groups or None,
            "group_size": None if config.groups else config.group_size,
        }
    with about(config.network):
        done = replace_norms(
            model, wanted, weight_standardization=config.weight_standardization, **groups
        )
    for note in done.notes:
        logger.info(note)
    if config.norm == "gn" and (note := instance_note(done.model, config.network)):
        logger.warning(note)
    return done.model


def _source(config: ModelConfig, input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Returns the functional model that `config.network` names."""
    name = config.network
    if name.startswith(APPLICATION):
        known = applications()
        if name.removeprefix(APPLICATION) not in known:
            raise unknown("network", name, [APPLICATION + one for one in known])
        make = getattr(keras.applications, name.removeprefix(APPLICATION))
        options = {"weights": None, "input_shape": input_shape, "classes": classes}
        model = _made(name, make, **options, classifier_activation=None)
    elif name.endswith(".keras"):
        model = load_model(name)
    elif user_code.is_named(name):
        model = _made(name, user_code.load(name, "network"), input_shape, classes)
    else:
        file = Path(name) / "model.keras"
        advice = f". Name the file of that run: {file}" if file.is_file() else ""
        raise ConfigError(
            "network: expected builtin, keras:NAME, a .keras file, package.module:function or "
            f"file.py:function. Received: network={name!r}{advice}"
        )
    with about(f"network: {name}"):
        graph = functional_graph(model)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ConfigError(
            f"network: expected a model with one input and one output. Received: {name} with "
            f"{len(graph.inputs)} and {len(graph.outputs)}. {ONE_OF_EACH}"
        )
    return keras.Model(graph.inputs[0], graph.outputs[0], name=model.name)


def _made(name: str, make: Any, *args: Any, **options: Any) -> keras.Model:
    """Returns what a function makes."""
    try:
        model = make(*args, **options)
    except (Exception, SystemExit) as error:  # it may be the user's code, which may raise anything
        raise ConfigError(f"network: {name} raised {error_text(error)}") from error
    if not isinstance(model, keras.Model):
        raise ConfigError(
            f"network: expected {name} to return a keras.Model. Received: {type(model).__name__}"
        )
    return model


def _refuse_code(name: str, model: keras.Model) -> None:
    """Refuses layers with which the trained model could not be opened."""
    for layer in leaves(model):
        user_code.check_class(layer, "network")
        if type(layer).__name__ in REFUSED:
            raise ConfigError(
                f"network: the layer {layer.name!r} of {name} is a {type(layer).__name__}. It "
                "holds code, which is not read from a model file. Write the operation itself, such "
                "as x / 255 or keras.ops.abs(x), or a layer class of your own with a get_config()."
            )


def _check_input(name: str, model: keras.Model, shape: tuple[int, ...]) -> None:
    """Refuses a network that does not take images of a shape (H, W, C)."""
    wanted = model.input_shape[1:]
    if len(wanted) != 3:
        raise ConfigError(
            f"network: expected a network of images (N, H, W, C). Received: {name} with inputs of "
            f"shape {model.input_shape}. {OTHER_NETWORKS}"
        )
    if any(w not in (None, n) for w, n in zip(wanted, shape, strict=True)):
        size = ",".join(map(str, wanted[:2]))
        advice = f" Resize them with --image-size {size}." if wanted[2:] == shape[2:] else ""
        raise ConfigError(
            f"network: {name} takes images of shape {wanted}. Received: images of shape "
            f"{shape}.{advice}"
        )


def _tail(model: keras.Model) -> Iterator[Any]:
    """Yields the operations of a graph from its output backwards, up to one of several inputs."""
    graph = functional_graph(model)
    producers = {id(tensor): node for node in nodes(graph) for tensor in node.outputs}
    tensors = graph.outputs
    while len(tensors) == 1 and not producers[id(tensors[0])].is_input:
        node = producers[id(tensors[0])]
        if isinstance(node.operation, keras.Model):
            yield from _tail(node.operation)
        else:
            yield node.operation
        tensors = node.input_tensors


def _activation(layer: Any) -> Any:
    """Returns what a layer or an operation applies to its outputs: an activation, or None."""
    if type(layer).__name__ == "Softmax":  # the layer, and the operation keras.ops.softmax
        return keras.activations.softmax
    found = getattr(layer, "activation", None)
    return None if found is keras.activations.linear else found


def _kind(layer: Any) -> str:
    """Returns the class of a layer and what it ends in: "Dense (sigmoid)"."""
    name, activation = type(layer).__name__, getattr(layer, "activation", None)
    is_linear = activation in (None, keras.activations.linear)
    return name if is_linear else f"{name} ({getattr(activation, '__name__', 'activation')})"


def _head(name: str, tail: Sequence[Any]) -> Any:
    """Returns the layer that gives a network's logits, or raises a ConfigError."""
    for layer in tail:
        if _activation(layer) not in (None, keras.activations.softmax):
            break
        if isinstance(layer, LINEAR):
            return layer
        is_passed = class_name(layer) in {"Activation", "Softmax"} | RESHAPES | AVERAGES
        if not (is_passed or is_identity(layer)):
            break
    raise ConfigError(
        f"network: expected the outputs of a Dense layer or a convolution, or a softmax of them. "
        f"Received: {name}, which ends in " + ", ".join(map(_kind, reversed(tail[:3])))
    )


def _on_raw_pixels(
    name: str,
    model: keras.Model,
    pixels: keras.KerasTensor,
    rescaling: keras.layers.Rescaling,
) -> tuple[keras.Model, str]:
    """Returns the network on an input of raw pixels, and a sentence about what rescales them.

    It shares its layers with the given one.
    """
    own = rescaling_layer(model)
    x = rescaling(pixels) if own is None else pixels
    note = f"{name} rescales pixels itself, in {own!r}; the preprocessing is its own."
    if own is None:
        note = f"{name} does not rescale pixels: a first layer, {RESCALING}, does."
    return keras.Model(pixels, call_again(functional_graph(model), x), name=model.name), note


def _seed(options: Any, seeds: np.random.Generator) -> None:
    """Gives every initializer and random layer in a layer's config a seed of its own."""
    if isinstance(options, dict):
        for key, value in options.items():
            if key == "seed":
                options[key] = int(seeds.integers(2**31))
            else:
                _seed(value, seeds)
    elif isinstance(options, (list, tuple)):
        for value in options:
            _seed(value, seeds)


def _carry_over(source: keras.Model, target: keras.Model, new: Any, config: ModelConfig) -> None:
    """Copies the weights that are not drawn anew, and freezes layers that were frozen with them.

    The weights of `new`, a layer of `source`, stay new and must be trained. The config says whether
    all others are copied, or only those that normalize the input.
    """
    trained = {id(weight) for weight in source.trainable_variables}
    target.trainable = True
    thawed = 0
    for old, layer in zip(leaves(source), leaves(target), strict=True):
        if old is new:
            continue
        is_input = isinstance(old, keras.layers.Normalization)
        if config.pretrained or is_input:
            layer.set_weights(old.get_weights())
        if is_input:
            layer.finalize_state()
        if old.trainable and all(id(weight) in trained for weight in old.trainable_variables):
            continue
        if config.pretrained:
            layer.trainable = False
        thawed += bool(old.weights)
    if thawed and not config.pretrained:
        logger.warning(
            f"{counted(thawed, 'frozen layer')} of {config.network} get new weights, and are "
            "trained: only --pretrained, for a .keras file, keeps weights."
        )


def _advice(config: ModelConfig) -> str:
    if config.network.endswith(".keras") and not config.new_head:
        return "Give it a new last layer with --new-head."
    return "Make its last layer as wide as the number of classes that it is given."
