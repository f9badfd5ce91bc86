"""The user's own code, named on the command line as "package.module:name"."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kerasnorm.errors import ConfigError

if TYPE_CHECKING:
    import keras

# Takes the number of channels and the name of the layer.
LayerFactory = Callable[[int, str], "keras.layers.Layer"]


def load(text: str, field: str) -> Any:
    """Returns what "package.module:name" names; the module may lie in the current folder.

    Args:
        text: Module and name.
        field: The option or argument that it was given to, for messages.

    Raises:
        ConfigError: It is not of that form, the module does not import, or lacks the name.
    """
    module, _, name = text.partition(":")
    if not module or not name:
        raise ConfigError(f"{field}: expected package.module:name. Received: {text!r}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # an installed command does not search the current folder
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(
            f"{field}: cannot load {text}: {type(error).__name__}: {error}"
        ) from error


def layer_factory(norm: "str | type[keras.layers.Layer] | LayerFactory") -> LayerFactory:
    """Returns a function (channels, name) -> Layer for a norm of the user's own.

    Args:
        norm: Such a function; a Layer class, which receives the channels if its constructor has a
            parameter of that name; or "package.module:name" of one of the two.

    Raises:
        ConfigError: It is none of these. The function raises it where the user's code fails.
    """
    given: Any = load(norm, "norm") if isinstance(norm, str) else norm
    if not callable(given):
        raise ConfigError(
            "norm: expected a keras.layers.Layer class or a function (channels, name) -> Layer. "
            f"Received: {norm!r}"
        )

    is_class = inspect.isclass(given)

    def make(channels: int, name: str) -> "keras.layers.Layer":
        import keras

        try:
            if not is_class:
                layer = given(channels, name)
            elif "channels" in inspect.signature(given).parameters:
                layer = given(channels=channels, name=name)
            else:
                layer = given(name=name)
        except Exception as error:
            raise ConfigError(
                f"norm: {norm!r} raised {type(error).__name__} for {channels} channels: {error}"
            ) from error
        if not isinstance(layer, keras.layers.Layer) or layer.name != name:
            raise ConfigError(
                f"norm: expected {norm!r} to return a Keras layer named {name!r}. "
                f"Received: {layer!r}"
            )
        return layer

    return make
