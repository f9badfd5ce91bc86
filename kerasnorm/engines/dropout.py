"""Draws of dropout on a CPU, the same in every native engine."""

import math

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.augment import DROPOUT_STREAM, generator


def dropout_generator(key: tuple[int, int, int], number: int) -> np.random.Generator:
    """Returns the random generator of one dropout in one step.

    The key is (seed, epoch, step), the number that of the dropout's call in the model's graph.
    """
    seed, *when = key
    return generator(seed, DROPOUT_STREAM, *when, number)


def dropped_positions(rng: np.random.Generator, count: int, rate: float) -> NDArray[np.int64]:
    """Returns which of `count` values a dropout of probability `rate` drops, ascending.

    Each value is dropped independently. The gaps between dropped values are geometrically
    distributed, and drawing the gaps takes count * rate random numbers instead of count.
    """
    scale = -1 / math.log1p(-rate)
    expected = count * rate
    size = int(expected + 6 * math.sqrt(expected) + 10)  # too few once in 1e9 draws
    parts, end = [], -1.0
    while end < count:
        gaps = np.floor(rng.standard_exponential(size) * scale) + 1
        parts.append(np.cumsum(gaps) + end)
        end = parts[-1][-1]
    positions = np.concatenate(parts)
    return positions[: np.searchsorted(positions, count)].astype(np.int64)


def dropped_channels(rng: np.random.Generator, count: int, rate: float) -> NDArray[np.int64]:
    """Returns which of `count` channels a spatial dropout of probability `rate` drops, ascending.

    `count` is images times channels, with the channels of an image side by side.
    """
    return np.flatnonzero(rng.random(count) < rate)
