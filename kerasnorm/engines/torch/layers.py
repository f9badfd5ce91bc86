"""Keras layers as calls of plain PyTorch on the layers' own variables.

`RULES` lists the layers that are known, and for each the options that its rule takes into account.
A layer of another type, or with any other option set, is left to Keras.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import torch
from keras import layers
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (its usual name)

from kerasnorm.engines.dropout import dropout_generator, dropped_positions
from kerasnorm.engines.torch import kernels
from kerasnorm.network import StandardizedConv2D
from kerasnorm.norms import EPSILON
from kerasnorm.training.process_group import Shard


@dataclass(frozen=True)
class Mode:
    """How a model is called.

    Attributes:
        training: Whether batches are normalized by their own statistics, and dropout drops.
        key: (seed, epoch, step), from which dropout is drawn on the CPU.
        shard: The shard of the batch that the images are; None for the whole batch.
        sum_: Replaces a tensor by its sum over the processes that have the other shards; None
            where batch norm uses the statistics of its own images.
    """

    training: bool = False
    key: tuple[int, int, int] = (0, 0, 0)
    shard: Shard | None = None
    sum_: Callable[[Tensor], Tensor] | None = None

    def random(self, number: int) -> np.random.Generator:
        """Returns the random generator of the dropout layer of that number in this step."""
        return dropout_generator(self.key, number)

    def dropped(self, number: int, count: int, rate: float) -> NDArray[np.int64]:
        """Returns which of `count` values a dropout drops, as drawn for the whole batch."""
        if self.shard is None:
            return dropped_positions(self.random(number), count, rate)
        each = count // self.shard.count  # values per image
        whole = dropped_positions(self.random(number), each * self.shard.batch, rate)
        first = self.shard.start * each
        begin, end = np.searchsorted(whole, [first, first + count])
        return whole[begin:end] - first

    def draw(self, number: int, shape: Sequence[int]) -> NDArray[np.float64]:
        """Returns random numbers, 0 to 1, of a shape (N, ...), as drawn for the whole batch."""
        if self.shard is None:
            return self.random(number).random(shape)
        drawn = self.random(number).random((self.shard.batch, *shape[1:]))
        return drawn[self.shard.slice]


@dataclass(frozen=True)
class Site:
    """Where in the graph a layer is called.

    Attributes:
        device: Device of the variables.
        number: Number of the call in the graph; each dropout draws numbers of its own.
    """

    device: torch.device
    number: int = 0


@dataclass(frozen=True)
class Lowered:
    """A layer as a function; images are (N, C, H, W) in channels-last memory.

    Attributes:
        call: Takes the mode and the input tensors, returns the output.
        scaled: For a norm: returns the norm whose output is multiplied by a factor in training. It
            is None unless the output is new memory that the norm's backward pass does not read, so
            that a dropout may write into it.
        dropping: For elementwise dropout on the CPU: its rate, and the call that drops in place
            without scaling.
        is_foreign: Whether the call is that of the Keras layer itself.
    """

    call: Callable[..., Tensor]
    scaled: "Callable[[float], Lowered] | None" = None
    dropping: tuple[float, Callable[..., Tensor]] | None = None
    is_foreign: bool = False


@dataclass(frozen=True)
class Rule:
    """How one type of layer is lowered.

    Attributes:
        lower: Returns the lowered form, or None for a value of an option that it does not know.
        options: Names of the constructor's arguments that `lower` reads.
        autocast: Whether layers of this type let Keras cast their inputs to the compute type.
        takes_integers: Whether the layer casts inputs of every type itself.
    """

    lower: Callable[[Any, Site], Lowered | None]
    options: frozenset[str] = frozenset()
    autocast: bool = True
    takes_integers: bool = False


def lower_layer(layer: Any, inputs: Sequence[Any], site: Site) -> Lowered | None:
    """Returns one call of a Keras layer on images in its lowered form.

    Args:
        layer: A built layer.
        inputs: The symbolic tensors that it is called on.
        site: Where it is called.

    Returns:
        None if no rule knows the layer with its options and inputs.
    """
    rule = RULES.get(type(layer))
    if rule is None or any(len(tensor.shape) != 4 for tensor in inputs):
        return None
    has_floats = all(keras.backend.is_float_dtype(tensor.dtype) for tensor in inputs)
    if not (has_floats or rule.takes_integers) or not _is_usual(
        layer, rule.options, autocast=rule.autocast
    ):
        return None
    lowered = rule.lower(layer, site)
    is_cast = rule.autocast and any(tensor.dtype != layer.compute_dtype for tensor in inputs)
    return _after_cast(lowered, _dtype(layer)) if lowered and is_cast and has_floats else lowered


def _after_cast(lowered: Lowered, dtype: torch.dtype) -> Lowered:
    """Returns a lowered layer whose inputs are cast first, as Keras casts them."""

    def call(mode: Mode, *inputs: Tensor) -> Tensor:
        return lowered.call(mode, *(x.to(dtype) for x in inputs))

    return replace(lowered, call=call, scaled=None, dropping=None)


# Options that every rule accepts: each either does not change what a built layer computes, or is
# handled in the same way for all layers. `seed` is one, because the engine draws its own numbers.
VARIABLES = ("kernel", "bias", "gamma", "beta")
COMMON_OPTIONS = frozenset(
    {
        *("name", "dtype", "trainable", "seed"),
        *("moving_mean_initializer", "moving_variance_initializer"),
        *(f"{v}_{k}" for v in VARIABLES for k in ("initializer", "regularizer", "constraint")),
    }
)

# Activations that act on each value alone, so that the order of the axes does not matter.
NAMES = """
celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu linear log_sigmoid
mish relu relu6 selu sigmoid silu soft_shrink softplus softsign squareplus tanh tanh_shrink
"""
ELEMENTWISE = [getattr(keras.activations, name) for name in NAMES.split()]


def _is_elementwise(activation: Any) -> bool:
    """Says whether an activation is known to act on each value alone."""
    return any(activation is known for known in ELEMENTWISE)


# With variables in half precision, Keras computes only some layers in full precision.
FULL_TYPES = ("float32", "float64")


def _is_usual(layer: Any, options: frozenset[str], *, autocast: bool) -> bool:
    """Says whether all options of a layer have their usual values, apart from some.

    Args:
        layer: A built layer.
        options: Options that may have any value.
        autocast: Whether Keras casts the inputs of layers of this type to the compute type.
    """
    return (
        type(layer.dtype_policy) is keras.DTypePolicy  # else it may be quantized
        and layer.variable_dtype in FULL_TYPES
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "data_format", "channels_last") == "channels_last"
        and layer.autocast is autocast
        and _has_defaults(layer, options)
    )


def _has_defaults(layer: Any, options: frozenset[str]) -> bool:
    """Says whether every option outside of `options` and `COMMON_OPTIONS` has its default value."""
    try:
        config = layer.get_config()
    except Exception:  # An option may be a user's object, which may raise anything.
        return False
    parameters = inspect.signature(type(layer).__init__).parameters
    # An option outside of the signature is off if its value is None or False.
    return all(
        config[name] == parameters[name].default
        if name in parameters
        else config[name] is None or config[name] is False
        for name in config.keys() - options - COMMON_OPTIONS
    )


def _value(variable: Any) -> Any:
    """Returns the tensor of a Keras variable, and None for None."""
    return None if variable is None else variable.value


def _dtype(layer: Any) -> torch.dtype:
    found: torch.dtype = getattr(torch, layer.compute_dtype)
    return found


def _rescaling(layer: Any, site: Site) -> Lowered | None:
    dtype = _dtype(layer)
    numbers = [np.atleast_1d(number) for number in (layer.scale, layer.offset)]
    if any(number.size != number.shape[-1] for number in numbers):
        return None  # They differ from pixel to pixel.

    scale, offset = (
        torch.tensor(number, dtype=dtype, device=site.device).reshape(-1, 1, 1)
        for number in numbers
    )
    return Lowered(lambda mode, x: x.to(dtype).mul(scale).add_(offset))


def _conv(layer: Any, _: Site) -> Lowered | None:
    reach = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
    is_same = layer.padding == "same"
    if not _is_elementwise(layer.activation) or layer.padding not in ("same", "valid"):
        return None
    if is_same and (max(layer.strides) > 1 or any(n % 2 for n in reach)):
        return None  # Keras pads the two sides differently.
    padding = [n // 2 if is_same else 0 for n in reach]
    kernel, bias, dtype = _value(layer.kernel), _value(layer.bias), _dtype(layer)
    is_standardized = isinstance(layer, StandardizedConv2D)
    is_linear = layer.activation is keras.activations.linear

    def call(mode: Mode, x: Tensor) -> Tensor:
        weight = kernel.permute(3, 2, 0, 1)
        if is_standardized:
            weight = kernels.standardize_kernel(weight, EPSILON)
        y = F.conv2d(
            x,
            weight.to(dtype),
            None if bias is None else bias.to(dtype),
            layer.strides,
            padding,
            layer.dilation_rate,
            layer.groups,
        )
        return y if is_linear else layer.activation(y)

    return Lowered(call)


Normalize = Callable[[Mode, Tensor, Any, Any], Tensor]


def _norm(
    normalize: Normalize, layer: Any, scale: Any, shift: Any, is_fresh: bool, factor: float = 1
) -> Lowered:
    """Returns a norm, computed in its variables' type, its scale and shift times a factor."""
    gamma, beta, dtype = _value(scale), _value(shift), _dtype(layer)
    # Batch norm's own kernels read half precision and compute in full.
    is_mixed = isinstance(layer, layers.BatchNormalization)
    full = dtype if is_mixed else getattr(torch, layer.variable_dtype)

    def call(mode: Mode, x: Tensor) -> Tensor:
        is_scaled = mode.training and factor != 1
        affine = (gamma * factor, beta * factor) if is_scaled else (gamma, beta)
        return normalize(mode, x.to(full), *affine).to(dtype)

    def scaled(by: float) -> Lowered:
        return _norm(normalize, layer, scale, shift, is_fresh, by)

    has_affine = gamma is not None and beta is not None
    return Lowered(call, scaled if is_fresh and has_affine else None)


def _batch_norm(layer: Any, _: Site) -> Lowered | None:
    if layer.axis not in (-1, 3):
        return None
    moving = layer.moving_mean.value, layer.moving_variance.value

    def normalize(mode: Mode, x: Tensor, gamma: Any, beta: Any) -> Tensor:
        if mode.training and layer.trainable:
            options = layer.momentum, layer.epsilon, mode.sum_
            return kernels.batch_norm(x, gamma, beta, moving, *options)
        return F.batch_norm(x, *moving, gamma, beta, False, 0.0, layer.epsilon)

    return _norm(normalize, layer, layer.gamma, layer.beta, is_fresh=True)


def _group_norm(layer: Any, _: Site) -> Lowered | None:
    if layer.axis not in (-1, 3) or layer.gamma is None or layer.beta is None:
        return None

    def normalize(mode: Mode, x: Tensor, gamma: Any, beta: Any) -> Tensor:
        return kernels.group_norm(x, layer.groups, gamma, beta, layer.epsilon)

    return _norm(normalize, layer, layer.gamma, layer.beta, is_fresh=True)


def _layer_norm(layer: Any, _: Site) -> Lowered | None:
    axes = sorted(axis % 4 for axis in np.atleast_1d(layer.axis))
    if axes not in ([3], [1, 2, 3]):
        return None

    def normalize(mode: Mode, x: Tensor, gamma: Any, beta: Any) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        y = F.layer_norm(pixels, pixels.shape[axes[0] :], gamma, beta, layer.epsilon)
        return y.permute(0, 3, 1, 2)

    return _norm(normalize, layer, layer.gamma, layer.beta, is_fresh=False)


def _rms_norm(layer: Any, _: Site) -> Lowered | None:
    if list(np.atleast_1d(layer.axis)) not in ([-1], [3]):
        return None

    def normalize(mode: Mode, x: Tensor, gamma: Any, beta: Any) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        return F.rms_norm(pixels, pixels.shape[3:], gamma, layer.epsilon).permute(0, 3, 1, 2)

    return _norm(normalize, layer, layer.scale, None, is_fresh=False)


def _activation(layer: Any, _: Site) -> Lowered | None:
    activation = layer.activation
    if not _is_elementwise(activation):
        return None
    activation = F.relu if activation is keras.activations.relu else activation
    return Lowered(lambda mode, x: activation(x))


def _dropout(layer: Any, site: Site) -> Lowered | None:
    rate = layer.rate
    if rate >= 1:
        return None  # Keras gives zeros; 1 / (1 - rate) would be infinite.
    if site.device.type != "cpu":
        return Lowered(lambda mode, x: F.dropout(x, rate, mode.training))

    def drop(mode: Mode, x: Tensor) -> Tensor:
        if not mode.training or rate == 0:
            return x
        positions = mode.dropped(site.number, x.numel(), rate)
        return kernels.zero_at_(x, torch.from_numpy(positions))

    def scale_and_drop(mode: Mode, x: Tensor) -> Tensor:
        return drop(mode, x * (1 / (1 - rate))) if mode.training and rate > 0 else x

    return Lowered(scale_and_drop, dropping=(rate, drop))


def _spatial_dropout(layer: Any, site: Site) -> Lowered | None:
    rate = layer.rate
    if rate >= 1:
        return None

    def drop(mode: Mode, x: Tensor) -> Tensor:
        if not mode.training or rate == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout2d(x, rate)
        kept = (mode.draw(site.number, x.shape[:2]) >= rate) / (1 - rate)
        return x * torch.from_numpy(kept).to(x.dtype)[:, :, None, None]

    return Lowered(drop)


def _max_pooling(layer: Any, _: Site) -> Lowered | None:
    if layer.padding != "valid":
        return None
    size, strides = layer.pool_size, layer.strides
    return Lowered(lambda mode, x: F.max_pool2d(x, size, strides))


def _average_all(layer: Any, _: Site) -> Lowered:
    keep = layer.keepdims
    return Lowered(lambda mode, x: x.mean((2, 3), keepdim=keep))


def _add(layer: Any, _: Site) -> Lowered:
    def call(mode: Mode, x: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            x = x + other
        return x

    return Lowered(call)


def _flatten(layer: Any, _: Site) -> Lowered:
    return Lowered(lambda mode, x: x.permute(0, 2, 3, 1).flatten(1))


WINDOW = frozenset({"strides", "padding", "data_format"})
CONV_OPTIONS = {"filters", "kernel_size", "dilation_rate", "groups", "activation", "use_bias"}
CONV = Rule(_conv, WINDOW | CONV_OPTIONS)
AFFINE = frozenset({"axis", "epsilon", "center", "scale"})
RULES: dict[type, Rule] = {
    layers.Rescaling: Rule(_rescaling, frozenset({"scale", "offset"}), takes_integers=True),
    layers.Conv2D: CONV,
    StandardizedConv2D: CONV,
    layers.BatchNormalization: Rule(_batch_norm, AFFINE | {"momentum"}),
    layers.GroupNormalization: Rule(_group_norm, AFFINE | {"groups"}, autocast=False),
    layers.LayerNormalization: Rule(_layer_norm, AFFINE, autocast=False),
    layers.RMSNormalization: Rule(_rms_norm, frozenset({"axis", "epsilon"})),
    layers.Activation: Rule(_activation, frozenset({"activation"})),
    layers.Dropout: Rule(_dropout, frozenset({"rate"})),
    layers.SpatialDropout2D: Rule(_spatial_dropout, frozenset({"rate", "data_format"})),
    layers.MaxPooling2D: Rule(_max_pooling, WINDOW | {"pool_size"}),
    layers.GlobalAveragePooling2D: Rule(_average_all, frozenset({"data_format", "keepdims"})),
    layers.Add: Rule(_add),
    layers.Flatten: Rule(_flatten, frozenset({"data_format"})),
}
