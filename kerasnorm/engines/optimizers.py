"""The Keras optimizers of a run, and Muon for convolutions, on every backend of Keras."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from kerasnorm.config import TrainConfig
from kerasnorm.keras_settings import stock_keras

EPSILON = 1e-8  # of Adam; PyTorch's default
DECAYED = "kernel"  # end of the names of the kernels, which alone weight decay changes
# Names of the others. Keras matches a variable's name, but on TensorFlow its path.
NOT_DECAYED = rf"^(?!.*{DECAYED}(:0)?$)"


@keras.saving.register_keras_serializable(package="kerasnorm")
class RateTable(keras.optimizers.schedules.LearningRateSchedule):
    """A table of the learning rate at each step; beyond its end the last one is used."""

    def __init__(self, rates: Sequence[float] | NDArray[np.float64]) -> None:
        self.rates = np.asarray(rates, np.float32)

    def __call__(self, step: Any) -> Any:
        """Returns the rate of optimizer step `step`, a scalar tensor."""
        index = ops.minimum(ops.cast(step, "int32"), len(self.rates) - 1)
        return ops.take(ops.convert_to_tensor(self.rates), index)

    def get_config(self) -> dict[str, Any]:
        """Returns the rates; callbacks that save the compiled model need it."""
        return {"rates": self.rates.tolist()}


@stock_keras
def make_optimizer(config: TrainConfig, rates: NDArray[np.float64]) -> keras.Optimizer:
    """Returns the Keras optimizer with its schedule; only kernels are decayed.

    A constant rate is a plain number, so that callbacks such as ReduceLROnPlateau can change it.
    """
    rate = config.learning_rate if config.schedule == "constant" else RateTable(rates)
    decay = config.weight_decay or None
    if config.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(
            rate, momentum=config.momentum, nesterov=config.momentum > 0, weight_decay=decay
        )
    elif config.optimizer == "muon":
        optimizer = ConvMuon(
            rate,
            weight_decay=decay,
            adam_weight_decay=decay,
            epsilon=EPSILON,
            momentum=config.momentum,
        )
    elif config.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(rate, weight_decay=decay or 0.0, epsilon=EPSILON)
    else:
        optimizer = keras.optimizers.Adam(rate, epsilon=EPSILON)
    if decay:
        optimizer.exclude_from_weight_decay(var_names=[NOT_DECAYED])
    return optimizer


@keras.saving.register_keras_serializable(package="kerasnorm")
class ConvMuon(keras.optimizers.Muon):
    """Muon whose matrices are the kernels of convolutions, (height * width * in, out).

    Keras's own `Muon` takes only matrices and leaves kernels (height, width, in, out) to AdamW.
    The gradient's average is replaced by the nearest matrix with orthonormal columns, found by a
    Newton-Schulz iteration, and scaled to the size of an AdamW step, so that rate and decay mean
    the same for both. AdamW updates vectors. Source: Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon; the scale: Liu et al., arXiv 2502.16982.
    """

    def _should_use_adamw(self, variable: Any) -> bool:
        return not is_kernel(variable)

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        """Returns x (height, width, in, out) with its matrix made orthogonal."""
        matrix = ops.reshape(x, (-1, x.shape[-1]))
        return ops.reshape(super().zeropower_via_newtonschulz5(matrix, steps), x.shape)

    def lr_adjust(self, x: Any) -> Any:
        """Returns the update x (height, width, in, out), scaled to the size of an AdamW step."""
        return x * step_size(tuple(x.shape), self.rms_rate)


def is_kernel(variable: Any) -> bool:
    """Says whether a variable is the kernel of a convolution; a norm may have four axes too."""
    return len(variable.shape) == 4 and variable.name.endswith(DECAYED)


def step_size(shape: tuple[int, ...], rms: float) -> float:
    """Returns the factor of an orthogonal kernel: rms * sqrt(max(rows, columns))."""
    *rows, columns = shape
    return rms * math.sqrt(max(math.prod(rows), columns))
