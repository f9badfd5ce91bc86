"""A copy of a functional or Sequential model in which some layers are replaced or removed."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras

from kerasnorm.errors import ConfigError, error_text
from kerasnorm.inspection.graph import functional_graph, layers, models, passed_through
from kerasnorm.keras_settings import stock_keras
from kerasnorm.layers import made_anew

# By the `id` of a layer: what takes its place, None where it is removed.
Replacements = Mapping[int, keras.layers.Layer | None]


@stock_keras
def rebuild(model: keras.Model, replaced: Replacements) -> tuple[keras.Model, dict[int, Any]]:
    """Returns an uncompiled copy of a model, and the copy of each operation by its `id`.

    Names, weights, regularizers, dtype policies, `trainable` and which layers are shared stay. A
    layer that is replaced has one input, and its replacement receives it alone; the weights of the
    replacement are the caller's.

    Raises:
        ConfigError: The model, or one in it, has no graph; or a layer cannot be made anew.
    """
    copies: dict[int, Any] = dict(replaced)

    def copy_of(operation: Any) -> Any:
        if id(operation) not in copies:
            if isinstance(operation, keras.Model):
                copies[id(operation)] = copy_of_model(operation)
            elif isinstance(operation, keras.Layer) and not isinstance(
                operation, keras.layers.Lambda
            ):
                copies[id(operation)] = _copy_of_layer(operation)
            else:
                copies[id(operation)] = operation  # such as an addition: it has no state
        return copies[id(operation)]

    def copy_of_model(source: keras.Model) -> keras.Model:
        graph = functional_graph(source)
        starts = keras.tree.map_structure(
            lambda tensor: copy_of(tensor._keras_history.operation).output, graph.input
        )
        if isinstance(source, keras.Sequential):
            kept = [copy for layer in source.layers if (copy := copy_of(layer)) is not None]
            return keras.Sequential([starts, *kept], name=source.name)
        ends = passed_through(graph, keras.tree.flatten(starts), call_copy)
        return keras.Model(
            starts, keras.tree.pack_sequence_as(graph.output, ends), name=source.name
        )

    def call_copy(node: Any, values: dict[int, Any]) -> list[Any]:
        copy = copy_of(node.operation)
        arguments, options = node.arguments.fill_in(values)
        if id(node.operation) in replaced:
            first = values[id(node.input_tensors[0])]
            given = {"mask": options.get("mask")} if isinstance(copy, Tap) else {}
            return keras.tree.flatten(first if copy is None else copy(first, **given))
        return keras.tree.flatten(copy(*arguments, **options))

    made = copy_of(model)
    for inner in models(model):
        if not inner.trainable:
            copies[id(inner)].trainable = False  # also of its layers, whose own follows
    for layer in layers(model):
        copy = copies[id(layer)]
        if copy is None:
            continue
        if id(layer) in replaced:
            copy.trainable = layer.trainable
            continue
        for old, new in zip(_parts(layer), _parts(copy), strict=True):
            new.trainable = old.trainable
        copy.set_weights(layer.get_weights())
        if hasattr(copy, "finalize_state"):
            copy.finalize_state()  # Normalization and others derive what they compute with
    return made, copies


def _copy_of_layer(layer: Any) -> Any:
    try:
        return made_anew(layer, layer.get_config(), layer.dtype_policy)
    except Exception as error:  # of the user's code
        raise ConfigError(
            f"model: its layer {layer.name!r} ({type(layer).__name__}) cannot be made anew from "
            f"its get_config(): {error_text(error)}"
        ) from error


def _parts(layer: Any) -> list[Any]:
    return list(layer._flatten_layers())


class Tap(keras.layers.Layer):
    """Calls a function on real values, and their mask or None, in place of a layer."""

    def __init__(self, layer: keras.layers.Layer, function: Callable[[Any, Any], Any]) -> None:
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.supports_masking = layer.supports_masking
        self.layer_output = layer.compute_output_spec
        self.function = function
        self.built = True

    def call(self, x: Any, mask: Any = None) -> Any:
        """Returns the function's output."""
        return self.function(x, mask)

    def compute_output_spec(self, x: Any, mask: Any = None) -> Any:
        """Returns the shape of the output, without a call of the function on symbols."""
        return keras.KerasTensor(self.layer_output(x).shape, dtype=self.compute_dtype)


def run_tapped(model: keras.Model, taps: Mapping[int, Tap], batches: Any) -> None:
    """Runs a copy of a model, in inference mode and eagerly, with taps in place of layers."""
    tapped, _ = rebuild(model, taps)
    tapped.run_eagerly = True
    for batch in batches:
        tapped.predict_on_batch(batch)


def refuse_hidden(
    model: keras.Model, kinds: tuple[type, ...], verb: str, allowed: Collection[int] = ()
) -> None:
    """Makes sure that no layer of a model hides a layer of these kinds in it.

    `verb` says what cannot be done with a hidden layer, such as "measured". Layers of which the
    `id` is in `allowed` may hold others.

    Raises:
        ConfigError: One does.
    """
    for layer in layers(model):
        if id(layer) in allowed:
            continue
        for part in layer._flatten_layers(include_self=False):
            if isinstance(part, kinds):
                raise ConfigError(
                    f"model: its layer {layer.name!r} ({type(layer).__name__}) holds a "
                    f"{type(part).__name__} inside, which cannot be {verb}. Expected norms in the "
                    "graph of the model, or of models in it."
                )
