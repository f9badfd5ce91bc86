"""What each Keras layer computes, as calls of plain PyTorch on the layer's own variables.

`RULES` lists the layers that are known, and for each the options that its rule takes into account.
A layer of another type, or with any other option set, is left to Keras.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import torch
from keras import layers
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (its usual name)

from kerasnorm.engines.layer_options import is_elementwise, is_usual
from kerasnorm.engines.torch import kernels
from kerasnorm.engines.torch import sync as torch_sync
from kerasnorm.engines.torch.mode import Mode
from kerasnorm.network import StandardizedConv2D
from kerasnorm.norms import EPSILON


@dataclass(frozen=True)
class Site:
    """Where in the graph a layer is called.

    Attributes:
        number: Of the call in the graph; each dropout draws numbers of its own.
        is_alone: Its input is fresh memory (see `Lowered`) that no other layer reads.
        owns_gradient: The gradient of its output is fresh memory, whichever layer reads it.
        device: Where the variables are.
    """

    device: torch.device
    number: int = 0
    is_alone: bool = False
    owns_gradient: bool = False


@dataclass(frozen=True)
class Lowered:
    """A layer as a function; images are (N, C, H, W) in channels-last memory.

    Attributes:
        call: Takes the mode and the input tensors, returns the output.
        is_fresh: Its output is new memory, in training and in inference, that its own backward
            does not read: the next layer may write into it.
        gives_fresh: The gradient that it hands back is new memory, likewise.
        scaled: Of norms: returns the norm whose output is multiplied by a factor in training.
        dropping: Of elementwise dropout on the CPU: its rate, and the call that drops in place
            without scaling.
        is_foreign: It is the Keras layer's own call.
    """

    call: Callable[..., Tensor]
    is_fresh: bool = False
    gives_fresh: bool = False
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
    if not (has_floats or rule.takes_integers) or not is_usual(
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


def _value(variable: Any) -> Any:
    """Returns the tensor of a Keras variable, and None for None."""
    return None if variable is None else variable.value


def _dtype(layer: Any) -> torch.dtype:
    found: torch.dtype = getattr(torch, layer.compute_dtype)
    return found


def _rescaling(layer: Any, site: Site) -> Lowered | None:
    dtype = _dtype(layer)
    if max(np.ndim(layer.scale), np.ndim(layer.offset)) > 1:
        return None  # one number for each pixel

    def spread(number: Any) -> Tensor:
        return torch.tensor(number, dtype=dtype, device=site.device).reshape(-1, 1, 1)

    scale, offset = spread(layer.scale), spread(layer.offset)
    return Lowered(lambda mode, x: x.to(dtype).mul(scale).add_(offset), is_fresh=True)


def _conv(layer: Any, _: Site) -> Lowered | None:
    reach = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
    is_same = layer.padding == "same"
    if not is_elementwise(layer.activation) or layer.padding not in ("same", "valid"):
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

    return Lowered(call, is_fresh=is_linear, gives_fresh=True)


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
    return Lowered(call, is_fresh, gives_fresh=True, scaled=scaled if has_affine else None)


def _batch_norm(layer: Any, _: Site) -> Lowered | None:
    if layer.axis not in (-1, 3):
        return None
    moving = layer.moving_mean.value, layer.moving_variance.value

    def normalize(mode: Mode, x: Tensor, gamma: Any, beta: Any) -> Tensor:
        if mode.training and layer.trainable and mode.sum_ is not None:
            scales = (gamma, beta, moving, layer.momentum, layer.epsilon)
            return torch_sync.batch_norm(x, *scales, mode.sum_)
        if mode.training and layer.trainable:
            return kernels.batch_norm(x, gamma, beta, moving, layer.momentum, layer.epsilon)
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


def _activation(layer: Any, site: Site) -> Lowered | None:
    if not is_elementwise(layer.activation):
        return None
    if layer.activation is not keras.activations.relu:
        return Lowered(lambda mode, x: layer.activation(x))

    def relu(mode: Mode, x: Tensor) -> Tensor:
        if site.is_alone and site.owns_gradient and mode.training:
            return kernels.relu_(x)
        return F.relu(x, inplace=site.is_alone)

    return Lowered(relu)


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
        return kernels.zero_at_(x, torch.from_numpy(positions), site.owns_gradient)

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
    return Lowered(lambda mode, x: F.max_pool2d(x, size, strides), is_fresh=True, gives_fresh=True)


def _average_all(layer: Any, _: Site) -> Lowered:
    keep = layer.keepdims
    return Lowered(lambda mode, x: x.mean((2, 3), keepdim=keep), gives_fresh=True)


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
