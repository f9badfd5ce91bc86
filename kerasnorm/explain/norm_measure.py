"""What a norm computes, shown on the real Keras layer: who shares statistics, and each step.

A layer is explained by what it does. The definition, `normalize`, is a few lines of NumPy; the
functions below move the inputs of the layer, or feed it a small tensor, and compare.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import ModelConfig, unknown
from kerasnorm.errors import ConfigError
from kerasnorm.explain.norm_facts import STATISTICS_AXES
from kerasnorm.norms import normalization
from kerasnorm.skeleton import EPSILON

Array = NDArray[Any]

CUBE = (3, 2, 3, 8)  # (N, H, W, C) of the perturbed tensor
GROUPS = 2  # of gn, in the small tensors
SMALL = (2, 1, 2, 4)  # (N, H, W, C) of the worked example
MOVED = 1e-6  # smallest change of an output that counts; float32 noise is 1e-7
BATCHES = 3  # whose moving average is shown
TOLERANCE = 1e-4  # of the layer's float32 against the definition's float64


def check_norm(norm: str) -> str:
    """Returns the name of a norm that can be explained.

    Raises:
        ConfigError: It is none of bn, gn, ln, lnc, in, rms.
    """
    if norm not in STATISTICS_AXES:
        raise unknown("norm to explain", norm, STATISTICS_AXES)
    return norm


def statistics(x: Array, norm: str, groups: int = 1) -> tuple[Array, Array]:
    """Returns the mean and the variance that normalize each value of x.

    The variance is the biased one, E[(x - mean)²]; for rms the mean is 0, the variance E[x²].

    Args:
        x: Shape (N, H, W, C).
        norm: One of bn, gn, ln, lnc, in, rms.
        groups: Of gn; the others have none.

    Returns:
        Two arrays of x's shape, (N, H, W, C).

    >>> mean, variance = statistics(np.arange(4.0).reshape(1, 1, 2, 2), "bn")
    >>> mean[0, 0, 0].tolist(), variance[0, 0, 0].tolist()
    ([1.0, 2.0], [1.0, 1.0])
    """
    axes = STATISTICS_AXES[check_norm(norm)]
    groups = groups if norm == "gn" else 1
    if x.shape[-1] % groups:
        raise ConfigError(
            f"groups: expected a divisor of {x.shape[-1]} channels. Received: groups={groups}"
        )
    split = x.astype(np.float64).reshape(*x.shape[:3], groups, -1)
    mean = np.zeros(()) if norm == "rms" else split.mean(axis=axes, keepdims=True)
    variance = np.square(split - mean).mean(axis=axes, keepdims=True)
    full = [np.broadcast_to(part, split.shape).reshape(x.shape) for part in (mean, variance)]
    return full[0], full[1]


def normalize(x: Array, norm: str, groups: int = 1, epsilon: float = EPSILON) -> Array:
    """Returns x normalized by definition, before scale and shift, in float64.

    y = (x - mean) / sqrt(variance + epsilon), mean and variance as in `statistics`.

    Args:
        x: Shape (N, H, W, C).
        norm: One of bn, gn, ln, lnc, in, rms.
        groups: Of gn.
        epsilon: Added to the variance.

    Raises:
        ConfigError: The norm is unknown, or the groups do not divide C.

    >>> y = normalize(np.array([1.0, 3.0, 10.0, 30.0]).reshape(1, 1, 2, 2), "lnc")
    >>> y.round(3).ravel().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """
    mean, variance = statistics(x, norm, groups)
    result: Array = (x - mean) / np.sqrt(variance + epsilon)
    return result


def shared_by_definition(
    norm: str, shape: tuple[int, int, int, int], index: tuple[int, ...], groups: int = GROUPS
) -> NDArray[np.bool_]:
    """Returns which values share their statistics with the one at `index`, by the norm's axes.

    Args:
        norm: One of bn, gn, ln, lnc, in, rms.
        shape: (N, H, W, C).
        index: (n, h, w, c).
        groups: Of gn.

    Returns:
        Shape (N, H, W, C).

    >>> shared_by_definition("in", (2, 1, 2, 3), (0, 0, 1, 2)).sum()
    np.int64(2)
    """
    axes = STATISTICS_AXES[check_norm(norm)]
    groups = groups if norm == "gn" else 1
    split = (*shape[:3], groups, shape[3] // groups)
    places = np.indices(split)
    here = np.unravel_index(np.ravel_multi_index(index, shape), split)
    apart = [axis for axis in range(5) if axis not in axes]
    same: NDArray[np.bool_] = np.all([places[a] == here[a] for a in apart], axis=0)
    return same.reshape(shape)


def shared_by_perturbation(
    norm: str, shape: tuple[int, int, int, int], index: tuple[int, ...], groups: int = GROUPS
) -> NDArray[np.bool_]:
    """Returns which outputs of the real layer move when its input at `index` does.

    The layer is the stock Keras one that the network has, in training. Arguments and shape of
    what is returned are those of `shared_by_definition`, with which it must agree.
    """
    x = np.random.Generator(np.random.PCG64(0)).normal(size=shape).astype(np.float32)
    moved = x.copy()
    moved[index] += 1.0
    layer = make_layer(norm, shape[-1], groups)
    change = np.abs(_call(layer, moved, True) - _call(layer, x, True))
    moved_too: NDArray[np.bool_] = change > MOVED
    return moved_too


def make_layer(norm: str, channels: int, groups: int = GROUPS) -> Any:
    """Returns the network's stock Keras layer of a norm, for `channels` channels.

    Raises:
        ConfigError: The norm is unknown, or gn's groups do not divide the channels.
    """
    config = ModelConfig(norm=check_norm(norm), groups=groups if norm == "gn" else 0)
    return normalization(config, channels)


def _call(layer: Any, x: Array, training: bool) -> Array:
    takes = {"training": training} if "batch" in type(layer).__name__.lower() else {}
    result: Array = keras.ops.convert_to_numpy(layer(keras.ops.convert_to_tensor(x), **takes))
    return result


@dataclass(frozen=True)
class Step:
    """One line of a worked example.

    Attributes:
        name: What is done.
        values: The outcome, broadcast to (N, H, W, C).
    """

    name: str
    values: Array


@dataclass(frozen=True)
class Worked:
    """A small tensor taken through a norm.

    Attributes:
        training: Input, mean and variance (rms: mean square), normalized, scaled and shifted.
        inference: The same at inference; for all but bn the same numbers.
        layer_training: The real layer's output in training, which the last line equals.
        layer_inference: Its output at inference, likewise.
        gamma: Scale, (C,).
        beta: Shift, (C,); zeros for rms, which has none.
        moving: bn's moving mean and variance, (2, C), at the start and after each batch.
        momentum: Share of the old value in a moving statistic.
    """

    training: tuple[Step, ...]
    inference: tuple[Step, ...]
    layer_training: Array
    layer_inference: Array
    gamma: Array
    beta: Array
    moving: tuple[Array, ...]
    momentum: float


def worked_example(norm: str, x: Array | None = None, groups: int = GROUPS) -> Worked:
    """Takes a small tensor through a norm step by step, and holds it against the real layer.

    Args:
        norm: One of bn, gn, ln, lnc, in, rms.
        x: Shape (N, H, W, C); by default 16 whole numbers.
        groups: Of gn.

    Raises:
        AssertionError: The last step is not what the layer gives: the definition is wrong.
        ConfigError: The norm is unknown, or the groups do not divide C.
    """
    if x is None:
        rng = np.random.Generator(np.random.PCG64(7))
        x = rng.integers(0, 10, SMALL).astype(np.float32)
    channels = x.shape[-1]
    layer = make_layer(norm, channels, groups)
    layer.build(x.shape)
    gamma = 1 + 0.5 * np.arange(channels)
    beta = np.zeros(channels) if norm == "rms" else np.arange(channels) - 1.0
    variables = [gamma] if norm == "rms" else [gamma, beta]
    start = [np.zeros(channels), np.ones(channels)] if norm == "bn" else []
    layer.set_weights([array.astype(np.float32) for array in variables + start])
    training = _steps(norm, x, statistics(x, norm, groups), gamma, beta)
    moving = [np.stack(start)] if start else []
    momentum = float(getattr(layer, "momentum", 0.0))
    from_layer = _call(layer, x, True)
    for number in range(BATCHES if start else 0):
        batch = x + number  # each batch one brighter than the one before
        if number:
            _call(layer, batch, True)
        mean, variance = (part[0, 0, 0] for part in statistics(batch, norm))
        moving.append(momentum * moving[-1] + (1 - momentum) * np.stack([mean, variance]))
        measured = np.stack([np.asarray(w) for w in layer.get_weights()[2:]])
        _agree(moving[-1], measured)
    inference = _steps(norm, x, tuple(moving[-1]), gamma, beta) if moving else training
    at_inference = _call(layer, x, False)
    _agree(training[-1].values, from_layer)
    _agree(inference[-1].values, at_inference)
    return Worked(
        training, inference, from_layer, at_inference, gamma, beta, tuple(moving), momentum
    )


def _steps(
    norm: str, x: Array, found: tuple[Array, ...], gamma: Array, beta: Array
) -> tuple[Step, ...]:
    mean, variance = (np.broadcast_to(part, x.shape) for part in found)
    normalized = (x - mean) / np.sqrt(variance + EPSILON)
    scaled = gamma * normalized + beta
    if norm == "rms":  # takes no mean off and has no shift
        steps = {"mean square": variance, "normalized": normalized, "scaled": scaled}
    else:
        steps = {"mean": mean, "variance": variance, "normalized": normalized}
        steps["scaled and shifted"] = scaled
    return tuple(Step(name, values) for name, values in ({"input": x} | steps).items())


def _agree(ours: Array, layers: Array) -> None:
    assert np.allclose(ours, layers, rtol=TOLERANCE, atol=TOLERANCE), (
        f"The definition gives {ours.ravel()[:4]}, the Keras layer {layers.ravel()[:4]}."
    )


@dataclass(frozen=True)
class BatchOfOne:
    """What becomes of an image that is alone in its batch, measured on the real layer.

    Attributes:
        training_change: Largest change of an image's outputs, in training, when the other images
            of its batch go; 0 where a norm never looks at them. Outputs have std 1.
        inference_change: The same at inference.
        survives_one_pixel: Whether the output still depends on the input when the batch is one
            image of one pixel, in training.
    """

    training_change: float
    inference_change: float
    survives_one_pixel: bool


def batch_of_one(norm: str, groups: int = GROUPS) -> BatchOfOne:
    """Feeds the real layer an image in a batch of eight, alone, and shrunk to one pixel."""
    rng = np.random.Generator(np.random.PCG64(1))
    batch = rng.normal(size=(8, 4, 4, 8)).astype(np.float32)
    changes = []
    for is_training in (True, False):
        together, alone = (
            _call(make_layer(norm, 8, groups), images, is_training)[0]
            for images in (batch, batch[:1])
        )
        changes.append(float(np.abs(together - alone).max()))
    layer = make_layer(norm, 8, groups)
    pixels = [_call(layer, batch[i : i + 1, :1, :1], True) for i in (0, 1)]
    survives = bool(np.abs(pixels[0] - pixels[1]).max() > MOVED)
    training, inference = (change if change > MOVED else 0.0 for change in changes)
    return BatchOfOne(training, inference, survives)
