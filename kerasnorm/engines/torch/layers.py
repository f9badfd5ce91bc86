"""Keras layers as calls of plain PyTorch on the layers' own variables.

`RULES` lists the layers that are known, and for each the options that its rule takes into account.
A layer of another type, or with any other option set, is left to Keras.
"""

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import keras
import numpy as np
import torch
from keras import layers
from keras.src.applications.convnext import LayerScale, StochasticDepth
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (its usual name)

from kerasnorm.engines.base import dropout_generator, dropped_positions
from kerasnorm.engines.fused import activation_name
from kerasnorm.engines.torch import fused, kernels
from kerasnorm.layers import StandardizedConv2D
from kerasnorm.norms import EPSILON
from kerasnorm.process_group import Shard


@dataclass(frozen=True)
class Mode:
    """How a model is called."""

    # Whether batches are normalized by their own statistics, and dropout drops.
    training: bool = False
    # (seed, epoch, step), from which dropout is drawn on the CPU.
    key: tuple[int, int, int] = (0, 0, 0)
    # The shard of the batch that the images are; None for the whole batch.
    shard: Shard | None = None
    # Replaces a tensor by its sum over the processes that have the other shards; None where batch
    # norm uses the statistics of its own images.
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
        """Returns random numbers, 0 to 1, of a shape (rows, ...), as drawn for the whole batch.

        The rows of an image, such as its patches, follow each other.
        """
        before = 0 if self.shard is None else self.shard.start * shape[0] // self.shard.count
        return self.random(number).random((before + shape[0], *shape[1:]))[before:]


@dataclass(frozen=True)
class Site:
    """Where in the graph a layer is called."""

    device: torch.device  # device of the variables
    number: int = 0  # number of the call in the graph; each dropout draws numbers of its own
    # Shape (N, ...) of its first input as Keras has it; None where a size is not fixed.
    shape: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Lowered:
    """A layer as a function; images are (N, C, H, W) in channels-last memory."""

    call: Callable[..., Tensor]  # takes the mode and the input tensors, returns the output
    # For a norm: returns the norm whose output is multiplied by a factor in training. It is None
    # unless the output is new memory that the norm's backward pass does not read, so that a dropout
    # may write into it.
    scaled: "Callable[[float], Lowered] | None" = None
    dropping: "Dropping | None" = None  # for elementwise dropout on the CPU: what it drops
    is_foreign: bool = False  # whether the call is that of the Keras layer itself
    # For a norm that can be computed together with its neighbours: what it computes.
    norm: fused.Norm | None = None
    # For an activation that can: its name in `kerasnorm.engines.fused.ACTIVATIONS`.
    activation: str = ""
    is_add: bool = False  # whether it adds its inputs


@dataclass(frozen=True)
class Dropping:
    """What an elementwise dropout does; its number is that of the call in the graph."""

    rate: float
    number: int

    def positions(self, mode: Mode, count: int) -> Tensor | None:
        """Returns which of `count` values are dropped, ascending, int64; None for none."""
        if not mode.training or self.rate == 0:
            return None
        return torch.from_numpy(mode.dropped(self.number, count, self.rate))

    def drop_(self, mode: Mode, x: Tensor) -> Tensor:
        """Drops in place, without scaling."""
        positions = self.positions(mode, x.numel())
        return x if positions is None else kernels.zero_at_(x, positions)


@dataclass(frozen=True)
class Rule:
    """How one type of layer is lowered."""

    # Returns the lowered form, or None for a value of an option that it does not know.
    lower: Callable[[Any, Site], Lowered | None]
    options: str = ""  # names of the constructor's arguments that `lower` reads
    # Ranks that all inputs may have: 4 for images, 2 for features (N, C).
    ranks: tuple[int, ...] = (4,)
    # Whether layers of this type let Keras cast their inputs to the compute type.
    autocast: bool = True
    takes_integers: bool = False  # whether the layer casts inputs of every type itself


def lower_layer(layer: Any, inputs: Sequence[Any], site: Site) -> Lowered | None:
    """Returns one call of a Keras layer on images in its lowered form, None if no rule knows it."""
    rule = RULES.get(type(layer))
    ranks = {len(tensor.shape) for tensor in inputs}
    if rule is None or len(ranks) != 1 or not ranks <= {*rule.ranks}:
        return None
    has_floats = all(keras.backend.is_float_dtype(tensor.dtype) for tensor in inputs)
    is_usual = _is_usual(layer, {*rule.options.split()}, autocast=rule.autocast)
    if not is_usual or not (has_floats or rule.takes_integers):
        return None
    lowered = rule.lower(layer, replace(site, shape=inputs[0].shape))
    if lowered is None or all(tensor.dtype == layer.compute_dtype for tensor in inputs):
        return lowered
    if rule.autocast and has_floats:
        dtype, call = _dtype(layer), lowered.call
        return Lowered(lambda mode, *inputs: call(mode, *(x.to(dtype) for x in inputs)))
    return replace(lowered, norm=None)  # fused norms keep the type of their input


# Options that every rule accepts: each either does not change what a built layer computes, or is
# handled in the same way for all layers. `seed` is one, because the engine draws its own numbers.
VARIABLES = ("kernel", "bias", "gamma", "beta", "depthwise", "pointwise")
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


# With variables in half precision, Keras computes only some layers in full precision.
FULL_TYPES = ("float32", "float64")


def _is_usual(layer: Any, options: set[str], *, autocast: bool) -> bool:
    """Says whether all options of a layer have their usual values, apart from some.

    `options` may have any value; `autocast` is whether Keras casts the inputs of such layers to the
    compute type.
    """
    activation = getattr(layer, "activation", keras.activations.linear)
    return (
        type(layer.dtype_policy) is keras.DTypePolicy  # else it may be quantized
        and layer.variable_dtype in FULL_TYPES
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "data_format", "channels_last") == "channels_last"
        and layer.autocast is autocast
        and any(activation is known for known in ELEMENTWISE)
        and _has_defaults(layer, options)
    )


def _has_defaults(layer: Any, options: set[str]) -> bool:
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
    return getattr(torch, layer.compute_dtype)


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


def _normalization(layer: Any, _: Site) -> Lowered | None:
    """Keras's `Normalization`, whose mean and variance were given or adapted before."""
    channels = layer.mean.shape[-1]
    if layer.invert or any(n.numel() != channels for n in (layer.mean, layer.variance)):
        return None
    mean, variance = (n.reshape(-1, 1, 1) for n in (layer.mean, layer.variance))
    std = torch.clamp(variance.sqrt(), min=keras.config.epsilon())
    dtype = _dtype(layer)
    return Lowered(lambda mode, x: (x.to(dtype) - mean.to(dtype)) / std.to(dtype))


def channels_first(x: Tensor) -> Tensor:
    """Turns images (N, H, W, C) into (N, C, H, W) in channels-last memory; others stay."""
    return kernels.channels_last(x.permute(0, 3, 1, 2)) if x.dim() == 4 else x


def as_in_keras(x: Tensor) -> Tensor:
    """Turns images (N, C, H, W) into (N, H, W, C), a view; others stay."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


@dataclass(frozen=True)
class _Window:
    """How a convolution or pooling moves over an image; all pairs are of height and width."""

    size: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    is_same: bool

    @classmethod
    def of(cls, layer: Any, size: tuple[int, int]) -> "_Window":
        dilation = getattr(layer, "dilation_rate", (1, 1))
        return cls(size, layer.strides, dilation, layer.padding == "same")

    def padding(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """Returns the pixels that "same" adds before and after each axis of (height, width)."""
        if not self.is_same:
            return [(0, 0), (0, 0)]
        pairs = []
        for length, size, stride, dilation in zip(
            shape, self.size, self.strides, self.dilation, strict=True
        ):
            reach, outputs = dilation * (size - 1) + 1, -(-length // stride)
            total = max(0, (outputs - 1) * stride + reach - length)
            pairs.append((total // 2, total - total // 2))
        return pairs

    def padded(self, x: Tensor, value: float = 0.0) -> tuple[Tensor, list[int]]:
        """Returns x, padded if the two sides differ, and what to pad on both sides otherwise."""
        (top, bottom), (left, right) = self.padding(x.shape[2:])
        if top == bottom and left == right:
            return x, [top, left]
        return F.pad(x, (left, right, top, bottom), value=value), [0, 0]


def _convolve(x: Tensor, kernel: Tensor, bias: Any, window: _Window, groups: int) -> Tensor:
    """Returns the convolution of x (N, C, H, W) with a kernel (out, in / groups, h, w)."""
    x, padding = window.padded(x)
    bias = None if bias is None else bias.to(kernel.dtype)
    return F.conv2d(x, kernel, bias, window.strides, padding, window.dilation, groups)


def _activated(layer: Any, call: Callable[[Tensor], Tensor]) -> Lowered:
    """Returns a layer that applies its activation to what `call` returns."""
    if layer.activation is keras.activations.linear:
        return Lowered(lambda mode, x: call(x))
    return Lowered(lambda mode, x: layer.activation(call(x)))


def _conv(layer: Any, _: Site) -> Lowered | None:
    if layer.padding not in ("same", "valid"):
        return None
    kernel, bias, dtype = _value(layer.kernel), _value(layer.bias), _dtype(layer)
    window = _Window.of(layer, layer.kernel_size)
    is_standardized = isinstance(layer, StandardizedConv2D)

    def call(x: Tensor) -> Tensor:
        weight = kernel.permute(3, 2, 0, 1)
        if is_standardized:
            weight = kernels.standardize_kernel(weight, EPSILON)
        return _convolve(x, weight.to(dtype), bias, window, layer.groups)

    return _activated(layer, call)


def _depthwise(layer: Any, _: Site) -> Lowered:
    """A convolution of each channel alone; in a separable one, a convolution of 1x1 follows."""
    is_separable = isinstance(layer, layers.SeparableConv2D)
    depthwise = _value(layer.depthwise_kernel if is_separable else layer.kernel)
    pointwise = _value(layer.pointwise_kernel) if is_separable else None
    bias, dtype = _value(layer.bias), _dtype(layer)
    window, channels = _Window.of(layer, layer.kernel_size), depthwise.shape[2]
    point = _Window((1, 1), (1, 1), (1, 1), is_same=False)

    def call(x: Tensor) -> Tensor:
        # From (h, w, in, multiplier) to (in * multiplier, 1, h, w).
        kernel = depthwise.permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1).to(dtype)
        if pointwise is None:
            return _convolve(x, kernel, bias, window, channels)
        x = _convolve(x, kernel, None, window, channels)
        return _convolve(x, pointwise.permute(3, 2, 0, 1).to(dtype), bias, point, 1)

    return _activated(layer, call)


def _transposed(layer: Any, _: Site) -> Lowered | None:
    if layer.output_padding is not None:
        return None
    kernel, bias, dtype = _value(layer.kernel), _value(layer.bias), _dtype(layer)
    window = _Window.of(layer, layer.kernel_size)
    cuts: list[int] = []  # of the left, right, top and bottom, as `F.pad` adds; below 0 it crops
    for size, stride, dilation in zip(window.size, window.strides, window.dilation, strict=True):
        reach = dilation * (size - 1) + 1
        before = 0
        if window.is_same:  # so that the output is `stride` times the input
            padded = reach - 1 if stride > reach - 1 else -(-(reach + stride - 2) // 2)
            before = reach - 1 - padded
        wanted = stride if window.is_same else max(reach, stride)
        cuts = [-before, wanted - reach + before, *cuts]

    def call(x: Tensor) -> Tensor:
        y = F.conv_transpose2d(
            x, kernel.permute(3, 2, 0, 1).to(dtype), None, window.strides, dilation=window.dilation
        )
        y = F.pad(y, cuts) if any(cuts) else y
        return y if bias is None else y + bias.to(dtype)[:, None, None]

    return _activated(layer, call)


def _dense(layer: Any, _: Site) -> Lowered:
    kernel, bias, dtype = _value(layer.kernel), _value(layer.bias), _dtype(layer)

    def call(x: Tensor) -> Tensor:
        shift = None if bias is None else bias.to(dtype)
        return channels_first(F.linear(as_in_keras(x), kernel.T.to(dtype), shift))

    return _activated(layer, call)


Normalize = Callable[[Mode, Tensor, Any, Any], Tensor]


def _norm(
    normalize: Normalize,
    layer: Any,
    scale: Any,
    shift: Any,
    is_fresh: bool,
    norm: fused.Norm | None = None,
    factor: float = 1,
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
        return _norm(normalize, layer, scale, shift, is_fresh, norm, by)

    has_affine = gamma is not None and beta is not None
    return Lowered(call, scaled if is_fresh and has_affine else None, norm=norm)


def _batch_norm(layer: Any, site: Site) -> Lowered | None:
    rank = len(site.shape)
    if layer.axis not in (-1, rank - 1):
        return None
    moving = layer.moving_mean.value, layer.moving_variance.value

    def normalize(mode: Mode, x: Tensor, gamma: Any, beta: Any) -> Tensor:
        if mode.training and layer.trainable:
            options = layer.momentum, layer.epsilon, mode.sum_
            if rank == 4:
                return kernels.batch_norm(x, gamma, beta, moving, *options)
            maps = x[:, :, None, None]
            return kernels.batch_norm(maps, gamma, beta, moving, *options)[:, :, 0, 0]
        return F.batch_norm(x, *moving, gamma, beta, False, 0.0, layer.epsilon)

    norm = fused.Norm(
        0,
        _value(layer.gamma),
        _value(layer.beta),
        layer.epsilon,
        note=lambda *batch: kernels.move_statistics(moving, batch, layer.momentum),
        is_batch=lambda: layer.trainable,
    )
    fusible = norm if rank == 4 else None
    return _norm(normalize, layer, layer.gamma, layer.beta, is_fresh=True, norm=fusible)


def _group_norm(layer: Any, _: Site) -> Lowered | None:
    if layer.axis not in (-1, 3) or layer.gamma is None or layer.beta is None:
        return None

    def normalize(mode: Mode, x: Tensor, gamma: Any, beta: Any) -> Tensor:
        return kernels.group_norm(x, layer.groups, gamma, beta, layer.epsilon)

    norm = fused.Norm(layer.groups, _value(layer.gamma), _value(layer.beta), layer.epsilon)
    return _norm(normalize, layer, layer.gamma, layer.beta, is_fresh=True, norm=norm)


def _layer_norm(layer: Any, site: Site) -> Lowered | None:
    rank = len(site.shape)
    axes = sorted(axis % rank for axis in np.atleast_1d(layer.axis))
    if axes not in ([rank - 1], [*range(1, rank)]):
        return None

    def normalize(mode: Mode, x: Tensor, gamma: Any, beta: Any) -> Tensor:
        x = as_in_keras(x)
        y = F.layer_norm(x, x.shape[axes[0] :], gamma, beta, layer.epsilon)
        return y.permute(0, 3, 1, 2) if rank == 4 else y

    return _norm(normalize, layer, layer.gamma, layer.beta, is_fresh=False)


def _rms_norm(layer: Any, _: Site) -> Lowered | None:
    if list(np.atleast_1d(layer.axis)) not in ([-1], [3]):
        return None

    def normalize(mode: Mode, x: Tensor, gamma: Any, beta: Any) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        return F.rms_norm(pixels, pixels.shape[3:], gamma, layer.epsilon).permute(0, 3, 1, 2)

    return _norm(normalize, layer, layer.scale, None, is_fresh=False)


def _activation(layer: Any, _: Site) -> Lowered:
    activation = F.relu if layer.activation is keras.activations.relu else layer.activation
    return Lowered(lambda mode, x: activation(x), activation=activation_name(layer))


def _relu(layer: Any, _: Site) -> Lowered:
    slope, top, threshold = layer.negative_slope, layer.max_value, layer.threshold
    if (slope, threshold) == (0, 0):
        return Lowered(
            lambda mode, x: F.relu(x) if top is None else F.hardtanh(x, 0.0, top),
            activation=activation_name(layer),
        )
    return Lowered(lambda mode, x: layer.call(x))


def _dropout(layer: Any, site: Site) -> Lowered | None:
    rate, shape = layer.rate, layer.noise_shape
    if shape is not None:
        return _dropout_of_parts(rate, shape, site) if len(shape) == len(site.shape) else None
    if rate >= 1:
        return None  # Keras gives zeros; 1 / (1 - rate) would be infinite.
    if site.device.type != "cpu":
        return Lowered(lambda mode, x: F.dropout(x, rate, mode.training))

    dropping = Dropping(rate, site.number)

    def call(mode: Mode, x: Tensor) -> Tensor:
        return dropping.drop_(mode, x * (1 / (1 - rate))) if mode.training and rate > 0 else x

    return Lowered(call, dropping=dropping if len(site.shape) == 4 else None)


def _dropout_of_parts(rate: float, shape: Sequence[int | None], site: Site) -> Lowered | None:
    """A dropout of which one draw holds along the axes, in Keras's order, of size 1."""
    if rate >= 1:
        return None

    def drop(mode: Mode, x: Tensor) -> Tensor:
        if not mode.training or rate == 0:
            return x
        sizes = as_in_keras(x).shape
        drawn = [n if n is not None else size for n, size in zip(shape, sizes, strict=True)]
        is_shared = shape[0] == 1  # by all images of the batch
        if not is_shared:
            drawn[0] = sizes[0]  # of which a shard has fewer than a shape that names them
        draw = mode.random(site.number).random if is_shared else partial(mode.draw, site.number)
        kept = (draw(drawn) >= rate) / (1 - rate)
        return x * channels_first(torch.from_numpy(kept).to(x))

    return Lowered(drop)


def _spatial_dropout(layer: Any, site: Site) -> Lowered | None:
    rate = layer.rate
    if site.device.type == "cpu" or not 0 < rate < 1:
        return _dropout_of_parts(rate, (None, 1, 1, None), site)
    return Lowered(lambda mode, x: F.dropout2d(x, rate, mode.training))


def _max_pooling(layer: Any, _: Site) -> Lowered:
    window = _Window.of(layer, layer.pool_size)

    def call(mode: Mode, x: Tensor) -> Tensor:
        x, padding = window.padded(x, value=-math.inf)
        return F.max_pool2d(x, window.size, window.strides, padding)

    return Lowered(call)


def _average_pooling(layer: Any, site: Site) -> Lowered | None:
    window = _Window.of(layer, layer.pool_size)
    if window.is_same:
        size = [n for n in site.shape[1:3] if n is not None]
        if len(size) < 2 or any(before != after for before, after in window.padding(size)):
            return None  # Keras on torch counts repeated edges, on TensorFlow the image alone.

    def call(mode: Mode, x: Tensor) -> Tensor:
        x, padding = window.padded(x)
        return F.avg_pool2d(x, window.size, window.strides, padding, count_include_pad=False)

    return Lowered(call)


def _padding(layer: Any, _: Site) -> Lowered:
    """Padding by zeros; or cropping, which is one by numbers below 0."""
    is_crop = isinstance(layer, layers.Cropping2D)
    (top, bottom), (left, right) = layer.cropping if is_crop else layer.padding
    pixels = [-n if is_crop else n for n in (left, right, top, bottom)]
    return Lowered(lambda mode, x: F.pad(x, pixels))


def _over_space(function: Callable[..., Tensor], layer: Any, _: Site) -> Lowered:
    return Lowered(lambda mode, x: function(x, (2, 3), keepdim=layer.keepdims))


def _merge(function: Callable[[Tensor, Tensor], Tensor], layer: Any, _: Site) -> Lowered:
    is_add = function is operator.add
    return Lowered(lambda mode, *several: reduce(function, several), is_add=is_add)


def _average(layer: Any, _: Site) -> Lowered:
    return Lowered(lambda mode, *several: reduce(operator.add, several) / len(several))


def _concatenate(layer: Any, site: Site) -> Lowered | None:
    rank = len(site.shape)
    if layer.axis % rank != rank - 1:
        return None
    return Lowered(lambda mode, *several: torch.cat(several, dim=1))


def _layer_scale(layer: Any, _: Site) -> Lowered:
    gamma, dtype = _value(layer.gamma), _dtype(layer)
    return Lowered(lambda mode, x: x * gamma.to(dtype)[:, None, None])


def _flatten(layer: Any, _: Site) -> Lowered:
    return Lowered(lambda mode, x: as_in_keras(x).flatten(1))


def _reshape(layer: Any, _: Site) -> Lowered | None:
    shape = layer.target_shape
    if len(shape) not in (1, 3):
        return None
    return Lowered(lambda mode, x: channels_first(as_in_keras(x).reshape(len(x), *shape)))


WINDOW = "strides padding data_format"
ACTIVATED = f"{WINDOW} kernel_size dilation_rate activation use_bias"
CONV = Rule(_conv, f"{ACTIVATED} filters groups")
POOL = f"{WINDOW} pool_size"
GLOBAL = "data_format keepdims"
AFFINE = "axis epsilon center scale"
BOTH = (2, 4)
RULES: dict[type, Rule] = {
    layers.Rescaling: Rule(_rescaling, "scale offset", takes_integers=True),
    layers.Normalization: Rule(_normalization, "axis mean variance invert", takes_integers=True),
    layers.Conv2D: CONV,
    StandardizedConv2D: CONV,
    layers.DepthwiseConv2D: Rule(_depthwise, f"{ACTIVATED} depth_multiplier"),
    layers.SeparableConv2D: Rule(_depthwise, f"{ACTIVATED} filters depth_multiplier"),
    layers.Conv2DTranspose: Rule(_transposed, f"{ACTIVATED} filters output_padding"),
    layers.Dense: Rule(_dense, "units activation use_bias", BOTH),
    layers.BatchNormalization: Rule(_batch_norm, f"{AFFINE} momentum", BOTH),
    layers.GroupNormalization: Rule(_group_norm, f"{AFFINE} groups", autocast=False),
    layers.LayerNormalization: Rule(_layer_norm, AFFINE, BOTH, autocast=False),
    layers.RMSNormalization: Rule(_rms_norm, "axis epsilon"),
    layers.Activation: Rule(_activation, "activation", BOTH),
    layers.ReLU: Rule(_relu, "max_value negative_slope threshold", BOTH),
    layers.Dropout: Rule(_dropout, "rate noise_shape", BOTH),
    layers.SpatialDropout2D: Rule(_spatial_dropout, "rate data_format"),
    StochasticDepth: Rule(
        lambda layer, site: _dropout_of_parts(layer.drop_path_rate, (None, 1, 1, 1), site),
        "drop_path_rate",
    ),
    layers.MaxPooling2D: Rule(_max_pooling, POOL),
    layers.AveragePooling2D: Rule(_average_pooling, POOL),
    layers.GlobalAveragePooling2D: Rule(partial(_over_space, torch.mean), GLOBAL),
    layers.GlobalMaxPooling2D: Rule(partial(_over_space, torch.amax), GLOBAL),
    layers.ZeroPadding2D: Rule(_padding, "padding data_format"),
    layers.Cropping2D: Rule(_padding, "cropping data_format"),
    layers.Add: Rule(partial(_merge, operator.add), ranks=BOTH),
    layers.Multiply: Rule(partial(_merge, operator.mul), ranks=BOTH),
    layers.Average: Rule(_average, ranks=BOTH),
    layers.Concatenate: Rule(_concatenate, "axis", BOTH),
    LayerScale: Rule(_layer_scale, "init_values projection_dim"),
    layers.Flatten: Rule(_flatten, "data_format", BOTH),
    layers.Reshape: Rule(_reshape, "target_shape", BOTH),
}

ARITHMETIC: dict[type, Callable[[Any, Any], Tensor]] = {
    keras.src.ops.numpy.Add: operator.add,
    keras.src.ops.numpy.Subtract: operator.sub,
    keras.src.ops.numpy.Multiply: operator.mul,
}


def lower_arithmetic(node: Any) -> Lowered | None:
    """Returns a call of an operation such as `x + 3` or `x * y` in its lowered form.

    It is None for other operations, and operands other than images of one type and numbers.
    """
    operation = ARITHMETIC.get(type(node.operation))
    operands, tensors = node.arguments.args, node.input_tensors
    is_alike = len({tensor.dtype for tensor in tensors}) == 1 and all(
        len(tensor.shape) == 4 and keras.backend.is_float_dtype(tensor.dtype) for tensor in tensors
    )
    numbers = [one for one in operands if not isinstance(one, keras.KerasTensor)]
    if operation is None or node.arguments.kwargs or not is_alike or len(operands) != 2:
        return None
    if any(type(number) not in (int, float) for number in numbers):
        return None

    if len(tensors) == 2:
        return Lowered(lambda mode, x, y: operation(x, y))
    number = numbers[0]
    if operands[0] is number:
        return Lowered(lambda mode, x: operation(number, x))
    return Lowered(lambda mode, x: operation(x, number))
