"""The normalization layers, each a stock Keras layer, and weight standardization.

All normalize x (N, H, W, C) as y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, with the
biased variance; they differ in the axes that share a mean and a variance, and in the shape of gamma
and beta. See `NORMS`.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerasnorm.config import ModelConfig
from kerasnorm.skeleton import EPSILON, groups_for


def _batch(config: ModelConfig, channels: int, **common: Any) -> keras.layers.Layer:
    return keras.layers.BatchNormalization(momentum=config.bn_momentum, epsilon=EPSILON, **common)


def _group(config: ModelConfig, channels: int, **common: Any) -> keras.layers.Layer:
    return keras.layers.GroupNormalization(
        groups=groups_for(config, channels), epsilon=EPSILON, **common
    )


def _layer(config: ModelConfig, channels: int, **common: Any) -> keras.layers.Layer:
    if config.ln_affine == "element":
        return keras.layers.LayerNormalization(axis=(1, 2, 3), epsilon=EPSILON, **common)
    return keras.layers.GroupNormalization(groups=1, epsilon=EPSILON, **common)


def _layer_per_pixel(config: ModelConfig, channels: int, **common: Any) -> keras.layers.Layer:
    return keras.layers.LayerNormalization(axis=-1, epsilon=EPSILON, **common)


def _instance(config: ModelConfig, channels: int, **common: Any) -> keras.layers.Layer:
    return keras.layers.GroupNormalization(groups=channels, epsilon=EPSILON, **common)


def _root_mean_square(config: ModelConfig, channels: int, **common: Any) -> keras.layers.Layer:
    return keras.layers.RMSNormalization(axis=-1, epsilon=EPSILON, **common)


Factory = Callable[..., keras.layers.Layer]

NORMS: dict[str, Factory | None] = {
    "bn": _batch,  # statistics over N, H, W; Ioffe & Szegedy, arXiv 1502.03167
    "gn": _group,  # over H, W, C/groups; Wu & He, arXiv 1803.08494
    "ln": _layer,  # over H, W, C; Ba et al., arXiv 1607.06450
    "lnc": _layer_per_pixel,  # over C, at each pixel; as in ConvNeXt, arXiv 2201.03545
    "in": _instance,  # over H, W; Ulyanov et al., arXiv 1607.08022
    "rms": _root_mean_square,  # over C, no mean, no beta; Zhang & Sennrich, arXiv 1910.07467
    "none": None,
}


def normalization(config: ModelConfig, channels: int, **common: Any) -> keras.layers.Layer | None:
    """Returns the Keras layer that normalizes a (N, H, W, C) tensor, or None for norm="none".

    Args:
        config: Which norm, and its settings.
        channels: C.
        **common: `name` and `dtype` of the layer.

    Raises:
        ConfigError: gn's groups do not divide the channels.
    """
    factory = NORMS[config.norm]
    return factory(config, channels, **common) if factory else None


def standardize_kernel(kernel: Any) -> Any:
    """Returns a kernel with mean 0 and variance 1/fan-in for each output channel.

    w' = (w - mean(w)) / sqrt(var(w) * fan_in + epsilon), statistics over (height, width, in).
    Source: Qiao et al., "Weight Standardization", arXiv 1903.10520, with the 1/fan-in of Brock et
    al., arXiv 2101.08692.

    Args:
        kernel: Shape (height, width, in, out).
    """
    height, width, inputs, _ = kernel.shape
    full = ops.cast(kernel, "float32")
    centered = full - ops.mean(full, axis=(0, 1, 2), keepdims=True)
    variance = ops.mean(ops.square(centered), axis=(0, 1, 2), keepdims=True)
    standardized = centered * ops.rsqrt(variance * (height * width * inputs) + EPSILON)
    return ops.cast(standardized, kernel.dtype)


@keras.saving.register_keras_serializable(package="kerasnorm")
class StandardizedConv2D(keras.layers.Conv2D):
    """A Conv2D that convolves with its standardized kernel (see `standardize_kernel`).

    It exists in training only: saving a model folds it into a stock Conv2D.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Convolves `inputs` (N, H, W, C) with the standardized kernel."""
        return super().convolution_op(inputs, standardize_kernel(kernel))
