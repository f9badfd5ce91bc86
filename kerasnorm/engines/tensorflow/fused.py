"""The fused norms of `kerasnorm.engines.fused` as operations of TensorFlow."""

import functools
import os
from pathlib import Path
from typing import Any

import tensorflow as tf

from kerasnorm.engines.fused import ACTIVATIONS, Compiled, compiled
from kerasnorm.engines.tensorflow.kernels import is_usual, move_statistics
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
