"""The loss around a model: along the gradient while it trains, and over a plane afterwards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.batches import Batches
from kerasnorm.data.dataset import Split
from kerasnorm.explain.probe import Probe, Weights
from kerasnorm.explain.windows import advance

Array = NDArray[np.float64]
Tick = Callable[[], None]
FACTORS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # of the rate; the range of Santurkar et al., 1/2 to 4
SEED = 0x1712  # of the random directions


@dataclass(frozen=True)
class GradientLines:
    """What lies along the gradient at some steps of training; S steps, K points a line.

    Attributes:
        steps: Steps taken before each line, (S,).
        distances: Factors of the gradient, (K,), the first one 0.
        losses: Loss of the batch at w - distance * gradient, in nats, (S, K).
        changes: |gradient there - gradient here|, (S, K).
        norms: |gradient here|, (S,).
    """

    steps: NDArray[np.int64]
    distances: Array
    losses: Array
    changes: Array
    norms: Array

    @property
    def loss_range(self) -> Array:
        """Highest minus lowest loss of each line, the start left out, (S,)."""
        found: Array = np.ptp(self.losses[:, 1:], axis=1)
        return found

    @property
    def change(self) -> Array:
        """Largest change of the gradient on each line, (S,)."""
        found: Array = self.changes[:, 1:].max(axis=1)
        return found

    @property
    def smoothness(self) -> Array:
        """Effective beta-smoothness: largest change of gradient over distance walked, (S,)."""
        walked = self.distances[None, 1:] * self.norms[:, None]
        found: Array = (self.changes[:, 1:] / np.maximum(walked, 1e-30)).max(axis=1)
        return found


def gradient_line(
    probe: Probe, split: Split, distances: Sequence[float]
) -> tuple[Array, Array, float]:
    """Walks from a model's weights w along the gradient g of a batch: w - distance * g.

    Args:
        probe: Of the model, which keeps its weights.
        split: The batch.
        distances: K factors of the gradient.

    Returns:
        Losses (K,), |g(w - distance g) - g(w)| (K,), and |g(w)|.

    Source: Santurkar et al. 2018, arXiv 1805.11604, section 3.1.
    """
    start = probe.weights()
    _, here = probe.gradient(split.images, split.labels)
    losses, changes = [], []
    for distance in distances:
        probe.assign([w - np.float32(distance) * g for w, g in zip(start, here, strict=True)])
        loss, there = probe.gradient(split.images, split.labels)
        losses.append(loss)
        changes.append(_distance(there, here))
    probe.assign(start)
    return np.array(losses), np.array(changes), _distance(here, [np.zeros(1)] * len(here))


def _distance(a: Sequence[NDArray[Any]], b: Sequence[NDArray[Any]]) -> float:
    return float(
        np.sqrt(sum(np.square(x.astype(np.float64) - y).sum() for x, y in zip(a, b, strict=True)))
    )


def gradient_lines(
    engine: Any, batches: Batches, *, steps: int, lines: int, rate: float, tick: Tick
) -> GradientLines:
    """Trains a model, and looks along the gradient every few steps, on the batch to come.

    Args:
        engine: Of a model freshly initialized.
        batches: The run's.
        steps: Steps to train.
        lines: How many times to look, evenly spaced, the first time before the first step.
        rate: Length of a step along the gradient; the line runs from 1/2 to 4 of it.
        tick: Called after each line.

    Raises:
        DivergedError: Training diverges.
    """
    probe = Probe(engine.model)
    distances = np.array([0.0, *FACTORS]) * rate
    stops = np.unique(np.linspace(0, steps, lines, endpoint=False).astype(np.int64))
    found = []
    for stop, following in zip(stops, [*stops[1:], stops[-1]], strict=True):
        epoch, step = divmod(int(stop), batches.steps)
        found.append(gradient_line(probe, Split(*batches.batch(epoch, step)), distances.tolist()))
        tick()
        advance(engine, batches, int(stop), int(following - stop))
    losses, changes, norms = (np.array(part) for part in zip(*found, strict=True))
    return GradientLines(stops, distances, losses, changes, norms)


@dataclass(frozen=True)
class Surface:
    """Inference loss over the plane w + a * first + b * second.

    Attributes:
        axis: Values of a and of b, (P,), 0 in the middle.
        line: Loss along the first direction, b = 0, in nats, (P,).
        plane: Loss at [b, a], (P, P).
        images: Images that it was measured on.
    """

    axis: Array
    line: Array
    plane: Array
    images: int

    @property
    def center(self) -> float:
        """Loss of the model as it is."""
        return float(self.plane[len(self.axis) // 2, len(self.axis) // 2])


def filter_direction(weights: Weights, seed: int) -> Weights:
    """Returns a random direction, each filter of it as long as the model's.

    d = g * |w| / |g| for each output channel of a kernel, g standard normal; 0 for scales and
    shifts. So nets whose weights differ in scale, which a norm makes meaningless, are compared
    alike. Source: Li et al. 2018, arXiv 1712.09913, section 4.

    Args:
        weights: Trainable variables; kernels are (height, width, in, out).
        seed: Of g.

    >>> (direction,) = filter_direction([np.full((1, 1, 4, 2), 3.0, np.float32)], 0)
    >>> np.sqrt(np.square(direction).sum((0, 1, 2))).round(3).tolist()
    [6.0, 6.0]
    """
    rng = np.random.Generator(np.random.PCG64([SEED, seed]))
    direction = []
    for weight in weights:
        if weight.ndim < 2:
            direction.append(np.zeros_like(weight))
            continue
        noise = rng.normal(size=weight.shape)
        axes = tuple(range(weight.ndim - 1))
        ratio = np.sqrt(np.square(weight).sum(axes) / np.square(noise).sum(axes))
        direction.append((noise * ratio).astype(np.float32))
    return direction


def surface(
    model: Any, split: Split, *, points: int, radius: float, tick: Tick, seed: int = 0
) -> Surface:
    """Measures the loss over a plane of two filter-normalized directions.

    Args:
        model: Trained; it is left as it was.
        split: Images to measure on.
        points: P, odd, on each axis.
        radius: The axes run from -radius to radius.
        tick: Called after each row.
        seed: Of the directions.
    """
    probe = Probe(model)
    start = probe.weights()
    first, second = filter_direction(start, 2 * seed), filter_direction(start, 2 * seed + 1)
    axis = np.linspace(-radius, radius, points)
    axis[points // 2] = 0.0
    plane = np.empty((points, points))
    for row, b in enumerate(axis):
        for column, a in enumerate(axis):
            moved = [
                w + np.float32(a) * d + np.float32(b) * e
                for w, d, e in zip(start, first, second, strict=True)
            ]
            probe.assign(moved)
            plane[row, column] = probe.score(split.images, split.labels).loss
        tick()
    probe.assign(start)
    return Surface(axis, plane[points // 2].copy(), plane, len(split))
