"""Which options of a Keras layer are set, and which activations act on each value alone.

A native engine computes a layer itself only where it takes every option into account.
"""

import inspect
from typing import Any

import keras

# Options that every rule may meet: each either does not change what a built layer computes, or is
# taken into account for all layers alike. `seed` is here because the engine draws its own numbers.
COMMON_OPTIONS = frozenset(
    {
        "name",
        "dtype",
        "trainable",
        "seed",
        *(f"{v}_initializer" for v in ("kernel", "bias", "gamma", "beta")),
        *(f"moving_{v}_initializer" for v in ("mean", "variance")),
        *(
            f"{variable}_{kind}"
            for variable in ("kernel", "bias", "gamma", "beta")
            for kind in ("regularizer", "constraint")
        ),
    }
)

# Activations that act on each value alone, so that the order of the axes does not matter.
ELEMENTWISE = (
    keras.activations.celu,
    keras.activations.elu,
    keras.activations.exponential,
    keras.activations.gelu,
    keras.activations.hard_shrink,
    keras.activations.hard_sigmoid,
    keras.activations.hard_silu,
    keras.activations.hard_tanh,
    keras.activations.leaky_relu,
    keras.activations.linear,
    keras.activations.log_sigmoid,
    keras.activations.mish,
    keras.activations.relu,
    keras.activations.relu6,
    keras.activations.selu,
    keras.activations.sigmoid,
    keras.activations.silu,
    keras.activations.soft_shrink,
    keras.activations.softplus,
    keras.activations.softsign,
    keras.activations.squareplus,
    keras.activations.tanh,
    keras.activations.tanh_shrink,
)


def is_elementwise(activation: Any) -> bool:
    """Says whether an activation is known to act on each value alone."""
    return any(activation is known for known in ELEMENTWISE)


# Where variables are in half precision, Keras computes some layers in full and others not.
FULL_TYPES = ("float32", "float64")


def is_usual(layer: Any, options: frozenset[str], *, autocast: bool) -> bool:
    """Says whether a layer is the usual one of its type, but for some options.

    Args:
        layer: A built layer.
        options: Those that may have any value.
        autocast: Whether Keras casts the inputs of layers of this type to the compute type.
    """
    return (
        type(layer.dtype_policy) is keras.DTypePolicy  # else it may be quantized
        and layer.variable_dtype in FULL_TYPES
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "data_format", "channels_last") == "channels_last"
        and layer.autocast is autocast
        and not _unread_options(layer, options)
    )


def _unread_options(layer: Any, options: frozenset[str]) -> list[str]:
    """Returns which options have a value other than the default, some options left out."""
    try:
        config = layer.get_config()
    except Exception:  # An option may be the user's own object, which may raise anything.
        return ["get_config"]
    parameters = inspect.signature(type(layer).__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}

    def is_set(name: str) -> bool:
        value = config[name]
        if name in defaults:
            return bool(value != defaults[name])
        # An option that the signature does not show is off where its value is None or False.
        return not (value is None or value is False)

    return [name for name in config.keys() - options - COMMON_OPTIONS if is_set(name)]
