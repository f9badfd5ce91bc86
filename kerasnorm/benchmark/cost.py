"""The cost of a norm in this network: parameters, and its share of a training step."""

import statistics
import time
from dataclasses import dataclass

from kerasnorm.config import resolve
from kerasnorm.data.shapes import shapes
from kerasnorm.training.fit import make_engine

STEPS = 2  # per turn


@dataclass(frozen=True)
class NormCost:
    """The cost of a norm, measured on this machine.

    Attributes:
        norm_parameters: Number of parameters of all norm layers, moving statistics included.
        parameters: Number of parameters of the whole network.
        milliseconds: Median time of a training step with the norm.
        milliseconds_without: Median time of a step of the same network without it.
        share: Share of a step that the norm takes, median over the turns; it may be slightly
            negative for a norm that costs nothing.
        least: Smallest share of a turn.
        largest: Largest share of a turn.
        batch_size: Number of images in a step.
        backend: Keras backend that computed.
        rounds: Number of turns that were timed.
    """

    norm_parameters: int
    parameters: int
    milliseconds: float
    milliseconds_without: float
    share: float
    least: float
    largest: float
    batch_size: int
    backend: str
    rounds: int


def norm_cost(norm: str, backend: str, batch_size: int = 64, rounds: int = 7) -> NormCost:
    """Trains the network with and without a norm in turns, and compares their times.

    Weight standardization, dropout and augmentation are off in both. Before the `rounds`
    turns that are timed comes one that is not.
    """
    fields = {
        "data": "shapes",
        "backend": backend,
        "batch_size": batch_size,
        "weight_standardization": False,
        "dropout": 0.0,
        "alternating_flip": False,
        "translate": 0,
    }
    data = shapes(STEPS * batch_size, 10)
    engines = [make_engine(resolve(fields | {"norm": name}), data) for name in (norm, "none")]
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for engine, taken in zip(engines, seconds, strict=True):
            start = time.perf_counter()
            engine.train_epoch(turn)
            if turn:
                taken.append((time.perf_counter() - start) / STEPS)
    total, plain = (int(engine.model.count_params()) for engine in engines)
    with_norm, without = (1000 * statistics.median(taken) for taken in seconds)
    shares = [1 - b / a for a, b in zip(*seconds, strict=True)]
    return NormCost(
        total - plain,
        total,
        with_norm,
        without,
        statistics.median(shares),
        min(shares),
        max(shares),
        batch_size,
        backend,
        rounds,
    )
