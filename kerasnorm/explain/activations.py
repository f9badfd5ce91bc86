"""What goes on inside a network, layer by layer: activations, gradients, weights, updates."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import LAYER_LABELS
from kerasnorm.data.dataset import Split
from kerasnorm.explain.probe import Probe, Weights
from kerasnorm.keras_settings import stock_keras

Array = NDArray[np.float64]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 61  # of a weight histogram
SPARSE = 1e-3  # a weight this many times smaller than its layer's largest counts as 0


@dataclass(frozen=True)
class LayerStatistics:
    """One convolution and what stands behind it, at one moment of training.

    Attributes:
        epoch: Epochs trained; 0 is the initial net.
        layer: The convolution's label: C1, C2, c3 ...
        activation_mean: Mean of what the activation function gets, over images, pixels, channels.
        activation_std: Its standard deviation.
        zero_share: Share of the activation function's outputs that are 0.
        dead_share: Share of its channels whose every output is 0.
        gradient_norm: |dL/dw| of the kernel, on the probed images, in training.
        weight_norm: |w| of the kernel.
        weight_quantiles: 5, 25, 50, 75 and 95 % quantiles of the kernel.
        update_ratio: |w now - w an epoch ago| / |w an epoch ago|; NaN at epoch 0.
    """

    epoch: int
    layer: str
    activation_mean: float
    activation_std: float
    zero_share: float
    dead_share: float
    gradient_norm: float
    weight_norm: float
    weight_quantiles: tuple[float, ...]
    update_ratio: float


class Taps:
    """Looks into the activations of a network that `kerasnorm.network` made.

    Args:
        model: The network, its layers under their names.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.probe = Probe(model)
        self.kernels = {
            label: model.get_layer(name)
            for name, label in LAYER_LABELS.items()
            if label[0] in "Cc" and label != "C10"
        }
        self.activations = [_activation_of(model, layer) for layer in self.kernels.values()]
        outputs = [t for a in self.activations for t in (a.input, a.output)]
        self.tapped = keras.Model(model.inputs, outputs)

    def weights(self) -> Weights:
        """Returns copies of the kernels, in the order of the layers."""
        return [
            keras.ops.convert_to_numpy(layer.kernel.value).copy() for layer in self.kernels.values()
        ]

    @stock_keras
    def measure(
        self, split: Split, epoch: int, before: Weights | None = None
    ) -> list[LayerStatistics]:
        """Returns a row for each of the nine convolutions with a norm and an activation behind.

        Passes are those of training: a norm sees the statistics of these images.

        Args:
            split: Images to look at.
            epoch: Epochs trained.
            before: The kernels an epoch ago.
        """
        moving = [
            keras.ops.convert_to_numpy(v.value).copy() for v in self.model.non_trainable_variables
        ]
        pixels = keras.ops.convert_to_tensor(split.images.astype(np.float32))
        tapped = [_numbers(t) for t in self.tapped(pixels, training=True)]
        for variable, array in zip(self.model.non_trainable_variables, moving, strict=True):
            variable.assign(array)
        _, gradients = self.probe.gradient(split.images, split.labels)
        by_variable = dict(
            zip((v.path for v in self.model.trainable_variables), gradients, strict=True)
        )
        rows = []
        for place, (label, layer) in enumerate(self.kernels.items()):
            inside, outside = tapped[2 * place], tapped[2 * place + 1]
            kernel = _numbers(layer.kernel.value)
            old = before[place] if before is not None else None
            rows.append(
                LayerStatistics(
                    epoch,
                    label,
                    float(inside.mean(dtype=np.float64)),
                    float(inside.std(dtype=np.float64)),
                    float((outside == 0).mean()),
                    float((outside == 0).all(axis=(0, 1, 2)).mean()),
                    float(np.linalg.norm(by_variable[layer.kernel.path])),
                    float(np.linalg.norm(kernel)),
                    tuple(np.quantile(kernel, QUANTILES).tolist()),
                    _ratio(kernel, old),
                )
            )
        return rows


def _numbers(tensor: Any) -> NDArray[np.float32]:
    found: NDArray[np.float32] = keras.ops.convert_to_numpy(keras.ops.stop_gradient(tensor))
    return found


def _ratio(new: NDArray[Any], old: NDArray[Any] | None) -> float:
    if old is None:
        return float("nan")
    return float(np.linalg.norm(new - old) / max(float(np.linalg.norm(old)), 1e-30))


def _activation_of(model: Any, convolution: Any) -> Any:
    """Returns the activation layer of a convolution's unit."""
    block, _, number = convolution.name.partition("_conv")
    for layer in model.layers:
        is_activation = isinstance(layer, keras.layers.Activation)
        if is_activation and layer.name == f"{block}_{layer.activation.__name__}{number}":
            return layer
    raise AssertionError(f"{convolution.name} has no activation behind it.")


@dataclass(frozen=True)
class WeightHistogram:
    """The weights of all kernels of a trained net.

    Attributes:
        edges: (BINS + 1,).
        share: Share of the weights in each bin, (BINS,); those beyond the edges count in the last.
        sparsity: Share of the weights below a thousandth of their layer's largest.
        norm: |w| of all kernels together.
        mean: Mean of the weights.
        std: Their standard deviation.
    """

    edges: Array
    share: Array
    sparsity: float
    norm: float
    mean: float
    std: float


def weight_histogram(kernels: Weights, limit: float) -> WeightHistogram:
    """Returns the distribution of all weights of a net.

    Args:
        kernels: Arrays of any shapes.
        limit: The bins run from -limit to limit.

    >>> weight_histogram([np.array([0.0, 0.5, -0.5, 1e-6])], 1.0).sparsity
    0.5
    """
    flat = np.concatenate([kernel.ravel() for kernel in kernels]).astype(np.float64)
    small = sum(int((np.abs(k) < SPARSE * np.abs(k).max()).sum()) for k in kernels)
    edges = np.linspace(-limit, limit, BINS + 1)
    share = np.histogram(np.clip(flat, -limit, limit), edges)[0] / flat.size
    return WeightHistogram(
        edges,
        share,
        small / flat.size,
        float(np.linalg.norm(flat)),
        float(flat.mean()),
        float(flat.std()),
    )
