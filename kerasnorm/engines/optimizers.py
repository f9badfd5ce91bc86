"""Muon for convolutions, on every backend that Keras has.

Keras's own `Muon` takes only matrices and leaves kernels (height, width, in, out) to AdamW.
"""

import math
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="kerasnorm")
class ConvMuon(keras.optimizers.Muon):
    """Muon whose matrices are the kernels of convolutions, (height * width * in, out).

    The gradient's average is replaced by the nearest matrix with orthonormal columns, found by a
    Newton-Schulz iteration, and scaled to the size of an AdamW step, so that rate and decay mean
    the same for both. Vectors take AdamW. Source: Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon; the scale: Liu et al., arXiv 2502.16982.
    """

    def _should_use_adamw(self, variable: Any) -> bool:
        return not is_kernel(variable)

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        """Returns x (height, width, in, out) with its matrix made orthogonal."""
        matrix = ops.reshape(x, (-1, x.shape[-1]))
        return ops.reshape(super().zeropower_via_newtonschulz5(matrix, steps), x.shape)

    def lr_adjust(self, x: Any) -> Any:
        """Returns the update x (height, width, in, out) in the size of an AdamW step."""
        return x * step_size(tuple(x.shape), self.rms_rate)


def is_kernel(variable: Any) -> bool:
    """Says whether a variable or tensor is the kernel of a convolution."""
    return len(variable.shape) == 4


def step_size(shape: tuple[int, ...], rms: float) -> float:
    """Returns what an orthogonal kernel is multiplied by: rms * sqrt(max(rows, columns))."""
    *rows, columns = shape
    return rms * math.sqrt(max(math.prod(rows), columns))
