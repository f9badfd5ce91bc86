"""Moving statistics of batch norms measured exactly: precise batch normalization."""

import math
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasnorm.conversion.rebuild import Tap, rebuild, refuse_hidden, run_tapped
from kerasnorm.data.stored import StoredImages
from kerasnorm.errors import ConfigError, expect, expect_whole
from kerasnorm.inspection.graph import has_mask, layers, walk
from kerasnorm.keras_settings import stock_keras

BATCH = 64


@stock_keras
def recalibrate(
    model: keras.Model,
    images: NDArray[Any] | StoredImages,
    *,
    batch_size: int = BATCH,
    seed: int = 0,
) -> keras.Model:
    """Returns a copy of a network with the moving statistics of its batch norms measured anew.

    This is PreciseBN of Wu & Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576, section
    3. Every batch passes through the network once. Each batch norm normalizes it with the mean and
    the variance of that batch, as in training, so that each layer sees what the layers before it
    give in training; all other layers, such as dropout, are in inference mode. Over batches b of
    n_b values (images times positions), and per channel,

        mean = sum(n_b * mean_b) / sum(n_b)
        variance = sum(n_b * (variance_b + mean_b^2)) / sum(n_b) - mean^2,

    of moments in float32, summed in float64: mean and population variance (biased, as in training)
    of all values that the layer normalized, each counted once, where moving averages forget.
    As in training, the batches are drawn from all images at random: data often come class by class,
    and batches of one class have other statistics. Their sizes differ by at most one. A batch norm
    that is called several times measures the values of all calls. Frozen batch norms, and those
    that are called in inference mode, are measured too, although in training they do not normalize
    with the statistics of the batch.

    Args:
        model: A functional or Sequential model with one input.
        images: Images as the model takes them, (N, H, W, C).
        batch_size: Largest number of images in a batch; that of training is the best choice. An odd
            number of images in batches of 2 makes one batch of 3.
        seed: Decides which images share a batch.

    Raises:
        ConfigError: The model has no batch norms, masks their inputs, or has several inputs; or the
            images are fewer than two, or of another shape than it takes.
    """
    meters = [_Meter(norm) for norm in norms_to_measure(model)]
    wanted, *others = (tensor.shape[1:] for tensor in model.inputs)
    if others:
        raise ConfigError(f"model: expected one input. Received: {1 + len(others)} inputs")
    shape = getattr(images, "shape", ())
    is_right = len(shape) == len(wanted) + 1 and all(
        size in (None, found) for size, found in zip(wanted, shape[1:], strict=True)
    )
    text = ", ".join("?" if size is None else str(size) for size in wanted)
    expect(is_right, "images", f"an array of images of shape (N, {text})", images)
    expect_whole(batch_size, "batch_size", 2)
    if len(images) < 2:
        raise ConfigError(
            f"recalibrate: expected at least 2 images. Received: {len(images)} images"
        )
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(images))
    # A single image has no statistics of a batch, and a dense layer's values no spread.
    count = min(math.ceil(len(images) / batch_size), len(images) // 2)
    parts = np.array_split(order, count)
    taps = {id(meter.norm): Tap(meter.norm, meter) for meter in meters}
    run_tapped(model, taps, (images[part].astype("float32") for part in parts))
    made, copies = rebuild(model, {})
    for meter in meters:
        mean, variance = meter.total()
        copies[id(meter.norm)].moving_mean.assign(mean)
        copies[id(meter.norm)].moving_variance.assign(variance)
    return made


def norms_to_measure(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Returns the batch norms of a network, which `recalibrate` measures.

    Raises:
        ConfigError: There is none, one is hidden in a layer that hides its graph, or one is called
            with a mask.
    """
    kinds = (keras.layers.BatchNormalization,)
    refuse_hidden(model, kinds, "measured")
    norms = [layer for layer in layers(model) if isinstance(layer, kinds)]
    for _, node in walk(model):
        if isinstance(node.operation, kinds) and has_mask(node.input_tensors[0]):
            raise ConfigError(
                f"model: its norm {node.operation.name!r} receives a mask, whose values training "
                "leaves out. Expected batch norms without masks."
            )
    if not norms:
        raise ConfigError(
            "recalibrate: expected a network with BatchNormalization. Received: none; the "
            "statistics of other norms are not measured."
        )
    return norms


class _Meter:
    """Normalizes with the statistics of the batch, and adds them up."""

    def __init__(self, norm: Any) -> None:
        self.norm = norm
        self.count = 0
        self.sums = np.zeros((2, *norm.moving_mean.shape))  # of the values and of their squares

    def __call__(self, x: Any) -> Any:
        norm, rank = self.norm, len(x.shape)
        x = keras.ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        axes = [axis for axis in range(rank) if axis != norm.axis % rank]
        # Not by `moments`, which on torch takes the mean's square from the mean square.
        mean, variance = keras.ops.mean(x, axes), keras.ops.var(x, axes)
        first, second = (
            keras.ops.convert_to_numpy(moment).astype(np.float64) for moment in (mean, variance)
        )
        count = math.prod(x.shape[axis] for axis in axes)
        self.count += count
        self.sums += count * np.stack([first, second + first**2])
        y = keras.ops.batch_normalization(
            x, mean, variance, norm.axis, norm.beta, norm.gamma, norm.epsilon
        )
        return keras.ops.cast(y, norm.compute_dtype)

    def total(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the mean and the population variance of all values, per channel."""
        mean, square = self.sums / self.count
        return mean, np.maximum(square - mean**2, 0.0)
