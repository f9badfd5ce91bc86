"""The network: a recipe becomes a functional `keras.Model` of stock layers.

The skeleton is fixed: C1 C2 c3 P1 C3 C4 C5 c6 P2 C7 C8 C9 GAP C10. C is a 3x3 convolution with
padding same and no bias; c is a 1x1 convolution that reduces the channels; P is a 2x2 pooling; GAP
is global average pooling; C10 is a 1x1 convolution to the classes.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import keras
import numpy as np

from kerasnorm import foreign, user_code
from kerasnorm.config import SKELETON, ModelConfig, check_precision, resolve, unknown
from kerasnorm.conversion.norms import effect_note
from kerasnorm.errors import ConfigError, described, expect, expect_whole, is_number
from kerasnorm.keras_settings import stock_keras
from kerasnorm.layers import PIXELS, StandardizedConv2D
from kerasnorm.norms import built, check_groups, normalization

logger = logging.getLogger(__name__)
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
LAYOUT = "channels_last"  # whatever image_data_format the user's keras.json sets


def build_model(  # noqa: PLR0913  (all but two are options by name)
    norm: str | None = None,
    recipe: str | None = None,
    *,
    input_shape: Sequence[int] = (32, 32, 3),
    classes: int = 10,
    outputs: str = "logits",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    precision: str = "float32",
    seed: int = 0,
    **overrides: Any,
) -> keras.Model:
    """Returns the network as an ordinary functional `keras.Model`.

    It maps raw pixels (N, H, W, C), 0 to 255, to logits (N, classes). `kerasnorm.load_model` opens
    the files that it is saved to. With weight standardization, which is the default of some norms,
    those files hold a layer of this package; `kerasnorm.portable(model).save("model.keras")` writes
    one that opens in Keras without it.

    A loss must be told what it receives:

        model = build_model("gn")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"])

    Args:
        norm: Name of a norm, see `kerasnorm.norms.NORMS`; by default "gn", and "keep" for another
            `network` than the built-in one.
        recipe: "best", "era8" or "plain"; by default "best", and "plain" for another `network`.
        input_shape: Shape (H, W, C) of an image, with H and W of at least 4.
        classes: Number of classes.
        outputs: "logits", or "probabilities": a softmax behind them, for losses as they are by
            default ("sparse_categorical_crossentropy").
        mean: Mean of each channel for pixels from 0 to 1; by default CIFAR-10's for three
            channels, otherwise 0.5.
        std: Standard deviation of each channel for pixels from 0 to 1; by default CIFAR-10's for
            three channels, otherwise 0.25.
        precision: "float32" or "mixed_bfloat16".
        seed: Seed of the initial weights.
        **overrides: Any field of `kerasnorm.config.ModelConfig`.

    Raises:
        ConfigError: A name is unknown, a value out of range, or the image too small.
    """
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    for name in overrides:
        if name not in fields:
            raise unknown("field of a model", name, fields)
    named = {"norm": norm, "recipe": recipe}
    given = {name: value for name, value in named.items() if value is not None}
    config = resolve(given | {"precision": precision, "seed": seed} | overrides)
    check_precision(config)
    _check_shape(input_shape, classes)
    is_known = outputs in ("logits", "probabilities")
    expect(is_known, "outputs", "'logits' or 'probabilities'", outputs)
    channels = input_shape[-1]
    is_rgb = channels == 3
    model = build(
        config.model,
        input_shape=tuple(input_shape),
        classes=classes,
        mean=mean if mean is not None else CIFAR10_MEAN if is_rgb else (0.5,) * channels,
        std=std if std is not None else CIFAR10_STD if is_rgb else (0.25,) * channels,
        precision=config.train.precision,
        seed=config.train.seed,
    )
    return model if outputs == "logits" else _with_softmax(model)


@stock_keras
def _with_softmax(model: keras.Model) -> keras.Model:
    probabilities = keras.layers.Softmax(name="probabilities", dtype="float32")(model.output)
    return keras.Model(model.input, probabilities, name=model.name)


@stock_keras
def build(
    config: ModelConfig,
    *,
    input_shape: tuple[int, ...],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    input_name: str = PIXELS,
    precision: str = "float32",
    seed: int = 0,
) -> keras.Model:
    """Returns the network of a resolved config; the other arguments are those of `build_model`.

    The input's name is `PIXELS`, or `EQUALIZED_PIXELS` where images must be histogram-equalized
    first, so that a saved model says so. The logits are always float32.

    Raises:
        ConfigError: A value is out of range, or the config names no network that can be made.
    """
    _check_shape(input_shape, classes)
    _check_statistics(mean, std, input_shape[-1])
    # Of shape (1, 1, C): those of shape (C,) would follow Keras's image_data_format at each call.
    means, stds = (np.asarray(numbers, np.float64)[None, None] for numbers in (mean, std))
    rescaling = keras.layers.Rescaling(
        (1 / (255 * stds)).tolist(),
        (-means / stds).tolist(),
        name=foreign.RESCALING,
        dtype="float32",
    )
    pixels = keras.Input(input_shape, name=input_name, dtype="float32")
    make = _build if config.is_builtin else foreign.build
    model = make(config, pixels, rescaling, classes, precision, seed)
    if note := effect_note(model):
        logger.warning(note)
    return model


def _build(
    config: ModelConfig,
    pixels: keras.KerasTensor,
    rescaling: keras.layers.Rescaling,
    classes: int,
    precision: str,
    seed: int,
) -> keras.Model:
    """Returns the built-in network; the arguments are those of `foreign.build`."""
    check_groups(config)
    x = rescaling(pixels)
    units = _Units(config, precision, seed)
    widths = iter(config.widths)
    for block, count, size in SKELETON:
        is_transition = size == 1
        for index in range(1, count + 1):
            suffix = "" if is_transition else str(index)
            x = units(x, next(widths), size, block, suffix)
        if is_transition:
            x = _pooled(x, config.pooling, name=f"{block}_pool", dtype=precision)
    full = {"data_format": LAYOUT, "dtype": "float32"}
    x = keras.layers.GlobalAveragePooling2D(keepdims=True, name="gap", **full)(x)
    x = keras.layers.Conv2D(classes, 1, name="fc1", **full, **units.kernel_options())(x)
    logits = keras.layers.Flatten(name="logits", **full)(x)
    return keras.Model(pixels, logits, name=f"kerasnorm_{config.title}")


def _pooled(x: Any, kind: str, *, name: str, dtype: str) -> Any:
    """Returns 2x2 poolings of x (N, H, W, C), of shape (N, H // 2, W // 2, C)."""
    options = {"data_format": LAYOUT, "dtype": dtype}
    if kind == "max":
        return keras.layers.MaxPooling2D(2, name=name, **options)(x)
    if kind == "average":
        return keras.layers.AveragePooling2D(2, name=name, **options)(x)
    both = [_pooled(x, one, name=f"{name}_{one[:3]}", dtype=dtype) for one in ("max", "average")]
    return keras.layers.Average(name=name, dtype=dtype)(both)


def _check_shape(input_shape: Sequence[int], classes: int) -> None:
    is_list = isinstance(input_shape, Sequence | np.ndarray)
    is_image = (
        is_list and len(input_shape) == 3 and all(isinstance(n, Integral) for n in input_shape)
    )
    expect(
        is_image and min(input_shape) >= 1 and min(input_shape[:2]) >= 4,
        "input_shape",
        "(H, W, C) with H and W of at least 4, since two 2x2 poolings must leave a pixel",
        tuple(input_shape) if is_list else input_shape,
    )
    expect_whole(classes, "classes", 2)


def _check_statistics(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    both = mean, std
    is_right = all(isinstance(numbers, Sequence | np.ndarray) for numbers in both) and all(
        len(numbers) == channels and all(is_number(n) and math.isfinite(n) for n in numbers)
        for numbers in both
    )
    if not is_right or min(std) <= 0:
        raise ConfigError(
            f"mean and std: expected {channels} finite numbers each, one per channel, std above 0. "
            f"Received: mean={_plain(mean)}, std={_plain(std)}"
        )


def _plain(numbers: Any) -> str:
    is_list = isinstance(numbers, Sequence | np.ndarray) and not isinstance(numbers, str | bytes)
    return described(tuple(numbers) if is_list else numbers)


class _Units:
    """Builds the units of one network: convolution, norm, activation, dropout, identity add."""

    def __init__(self, config: ModelConfig, precision: str, seed: int) -> None:
        self.config = config
        self.precision = precision
        self.seeds = np.random.Generator(np.random.PCG64([seed, 0x1417]))

    def kernel_options(self) -> dict[str, Any]:
        """Returns the options of the next convolution: no bias, its initializer and regularizer."""
        config = self.config
        seed = int(self.seeds.integers(2**31))
        is_regularized = config.l1 > 0 or config.l2 > 0
        regularizer = keras.regularizers.L1L2(config.l1, config.l2) if is_regularized else None
        # Kaiming uniform with a = sqrt 5: uniform on ±1/sqrt(fan-in).
        initializer = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=seed)
        if config.initializer != "torch":
            named = {"class_name": config.initializer, "config": {"seed": seed}}
            initializer = keras.initializers.get(named)
        return {
            "use_bias": False,
            "kernel_initializer": initializer,
            "kernel_regularizer": regularizer,
        }

    def __call__(self, x: Any, filters: int, size: int, block: str, suffix: str) -> Any:
        """Applies one unit to x (N, H, W, C)."""
        config = self.config
        is_transition = size == 1
        if config.weight_standardization and size * size * x.shape[-1] == 1:
            raise ConfigError(
                "widths: expected at least 2 channels before a standardized 1x1 convolution, "
                "whose kernel would be all zero. Received: 1"
            )
        convolution = StandardizedConv2D if config.weight_standardization else keras.layers.Conv2D
        y = convolution(
            filters,
            size,
            padding="same",
            data_format=LAYOUT,
            name=f"{block}_conv{suffix}",
            dtype=self.precision,
            **self.kernel_options(),
        )(x)
        for step in config.order.removeprefix("conv-").split("-"):
            if step == "act":
                y = keras.layers.Activation(
                    config.activation,
                    name=f"{block}_{config.activation}{suffix}",
                    dtype=self.precision,
                )(y)
            elif config.norm_transitions or not is_transition:
                layer = normalization(
                    config, filters, name=f"{block}_norm{suffix}", dtype=self.precision
                )
                if layer and user_code.is_named(config.norm):
                    layer = built(layer, y.shape)
                y = layer(y) if layer else y
        if not is_transition:
            y = self._dropout(y, f"{block}_dropout{suffix}")
            if config.residual and x.shape[-1] == filters:
                y = keras.layers.Add(name=f"{block}_add{suffix}", dtype=self.precision)([x, y])
        return y

    def _dropout(self, y: Any, name: str) -> Any:
        config = self.config
        if config.dropout == 0:
            return y
        common = {"name": name, "dtype": self.precision}
        if config.dropout_kind == "spatial":
            layer = keras.layers.SpatialDropout2D(config.dropout, data_format=LAYOUT, **common)
            return layer(y)
        return keras.layers.Dropout(config.dropout, **common)(y)
