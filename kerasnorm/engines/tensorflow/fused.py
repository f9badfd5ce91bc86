"""Training passes of norms that are faster on a CPU than those of Keras.

Keras builds them from general operations, each of which writes its result to memory. `normalize`
computes them together with their neighbours, by the operations of `kerasnorm.engines.fused`;
`training_norm` alone, by TensorFlow's own kernels or in fewer passes.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
from keras import layers

from kerasnorm.engines.fused import ACTIVATIONS, Compiled, compiled
from kerasnorm.runtime import threads

Tensor = Any
SOURCE = Path(__file__).with_name("operations.cpp")
TYPES = ("float32", "bfloat16")
SPINS = "1000"  # how often a thread of OpenMP looks for work before it sleeps


@functools.cache
def library() -> Compiled | None:
    """Returns the operations, opened as a module of TensorFlow; None where they do not compile."""
    flags = tuple(flag for flag in tf.sysconfig.get_compile_flags() if "-std=" not in flag)
    # A new version of TensorFlow is a new source.
    flags += (f'-DTENSORFLOW="{tf.version.VERSION}"',)
    return compiled(_open, SOURCE, flags, (*tf.sysconfig.get_link_flags(), "-fopenmp"))


def _open(path: Path) -> Any:
    """Returns the operations of a library.

    Idle threads of the OpenMP that it loads sleep early, unless the environment says otherwise:
    by default they look for work for milliseconds, in which TensorFlow's own threads need the
    cores. It reads the environment now.
    """
    is_free = not any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))
    if is_free:
        os.environ["GOMP_SPINCOUNT"] = SPINS
    try:
        return tf.load_op_library(str(path))
    except tf.errors.OpError as error:
        raise OSError(error.message) from None
    finally:
        if is_free:
            del os.environ["GOMP_SPINCOUNT"]


def can_compute(layer: Any) -> bool:
    """Says whether `normalize` computes a norm's training pass on images (N, H, W, C)."""
    is_known = is_usual(layer) and layer.compute_dtype in TYPES
    return is_known and layer.variable_dtype == "float32"


def normalize(
    layer: Any,
    x: Tensor,
    residual: Tensor | None = None,
    *,
    before: str = "",
    after: str = "",
    dropped: Tensor | None = None,
    rate: float = 0.0,
) -> Tensor:
    """Returns residual + dropout(after(layer(before(x)))), and updates moving statistics.

    Statistics are float32, from sums in float64; the mean is subtracted before anything is squared.
    `x` (N, H, W, C) is float32 or bfloat16, and so is `residual`, if there is one. `before` or
    `after` must be "" or "linear", and the other is one of `ACTIVATIONS`. `dropped` holds the
    positions in x, ascending, of what a dropout of this rate drops.
    """
    found = library()
    if found is None:
        raise NotImplementedError(f"{SOURCE.name} is not compiled")
    operations = found.opened
    channels = x.shape[-1]
    options = {
        "groups": getattr(layer, "groups", 0),
        "before": ACTIVATIONS.index(before or "linear"),
        "after": ACTIVATIONS.index(after or "linear"),
        "threads": threads("tensorflow"),
        "epsilon": layer.epsilon,
        "scale": 1 / (1 - rate),
    }
    places = tf.cast([] if dropped is None else dropped, tf.int64)

    def compute(x: Tensor, gamma: Tensor, beta: Tensor, *residuals: Tensor) -> Any:
        y, mean, inverse, rest, variance = operations.kerasnorm_normalize(
            x, gamma, beta, places, residuals, **options
        )

        def gradient(upstream: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
            parts = operations.kerasnorm_differentiate(
                upstream, x, gamma, beta, places, mean, inverse, rest, **options
            )
            return (*parts, *(upstream for _ in residuals))

        return (y, mean, variance), gradient

    gamma = tf.ones(channels) if layer.gamma is None else layer.gamma.value
    beta = tf.zeros(channels) if layer.beta is None else layer.beta.value
    residuals = () if residual is None else (tf.cast(residual, x.dtype),)
    y, mean, variance = tf.custom_gradient(compute)(x, gamma, beta, *residuals)
    if not options["groups"]:
        move_statistics(layer, mean, variance)
    return y


def is_usual(layer: Any) -> bool:
    """Says whether a layer is a batch or group norm of channels by the statistics of its batch."""
    return (
        type(layer) in (layers.BatchNormalization, layers.GroupNormalization)
        and layer.axis in (-1, 3)
        and layer.trainable
        and not getattr(layer, "renorm", False)
        and not getattr(layer, "synchronized", False)
    )


def training_norm(layer: Any) -> Callable[[Tensor], Tensor] | None:
    """Returns the training pass of a norm as a function of x (N, H, W, C), or None.

    The layer is built. Only usual batch and group norms have one.
    """
    has_affine = is_usual(layer) and layer.gamma is not None and layer.beta is not None
    # With one group, Keras's own layer is as fast.
    if not has_affine or layer.compute_dtype != "float32" or getattr(layer, "groups", 0) == 1:
        return None
    is_group = isinstance(layer, layers.GroupNormalization)
    normalize = _group_norm if is_group else _batch_norm
    return lambda x: normalize(tf.cast(x, tf.float32), layer)


def _batch_norm(x: Tensor, layer: Any) -> Tensor:
    """Normalizes and updates the moving statistics; Ioffe & Szegedy, arXiv 1502.03167."""
    y, mean, unbiased = tf.compat.v1.nn.fused_batch_norm(
        x, layer.gamma.value, layer.beta.value, epsilon=layer.epsilon, is_training=True
    )
    count = tf.cast(tf.size(x) // tf.shape(x)[-1], x.dtype)
    biased = unbiased * ((count - 1) / count)  # as Keras keeps it
    move_statistics(layer, mean, biased)
    return y


def move_statistics(layer: Any, mean: Tensor, variance: Tensor) -> None:
    """Moves the mean and variance (C,) of a batch norm towards those of a batch."""
    share = 1 - layer.momentum
    for moving, batch in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        change = share * (tf.stop_gradient(batch) - moving.value)
        moving.assign(tf.ensure_shape(moving.value + change, moving.shape))


def _group_norm(x: Tensor, layer: Any) -> Tensor:
    """Normalizes over (H, W, C / groups); Wu & He, arXiv 1803.08494.

    The gradient is that of `kerasnorm.engines.torch.kernels`: with y = gamma * d * r + beta,
    d = x - mean(x), r = 1 / sqrt(mean(d²) + epsilon),
    dx = r * (gamma * g - mean(gamma * g) - d * r² * mean(gamma * g * d)).
    """
    groups, (_, height, width, channels) = layer.groups, x.shape
    pixels = height * width

    def means(sums: Tensor) -> Tensor:
        """Means over each group of channels (N, 1, C) of sums over pixels (N, C)."""
        size = channels // groups
        grouped = tf.reduce_mean(tf.reshape(sums, (-1, groups, size)), 2) / pixels
        return tf.repeat(grouped, size, axis=1)[:, None]

    def normalize(x: Tensor, gamma: Tensor, beta: Tensor) -> Any:
        rows = tf.reshape(x, (-1, pixels, channels))
        centered = rows - means(_sums(rows))
        inverse_std = tf.math.rsqrt(means(_sums(centered * centered)) + layer.epsilon)
        y = centered * (inverse_std * gamma) + beta

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            g = tf.reshape(upstream, (-1, pixels, channels))
            sums, dots = _sums(g), _sums(g * centered)
            dx = g * (inverse_std * gamma) - centered * (inverse_std**3 * means(dots * gamma))
            dx -= inverse_std * means(sums * gamma)
            slope = tf.reduce_sum(dots * inverse_std[:, 0], 0)
            return tf.reshape(dx, tf.shape(x)), slope, tf.reduce_sum(sums, 0)

        return tf.reshape(y, tf.shape(x)), gradient

    return tf.custom_gradient(normalize)(x, layer.gamma.value, layer.beta.value)


def _sums(rows: Tensor) -> Tensor:
    """Sums rows (N, pixels, C) over the pixels, (N, C); 64 pixels at once, as C is a short row."""
    _, pixels, channels = rows.shape
    folded = 64 if pixels % 64 == 0 else 1
    sums = tf.reduce_sum(tf.reshape(rows, (-1, pixels // folded, folded * channels)), 1)
    return tf.reduce_sum(tf.reshape(sums, (-1, folded, channels)), 1)
