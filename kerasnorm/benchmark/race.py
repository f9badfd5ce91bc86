"""Lets contenders take turns, each in a process of its own, and sums up their rates."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from kerasnorm.config import Config, flatten
from kerasnorm.errors import KerasnormError
from kerasnorm.json_process import JsonProcess, ProcessEndedError

logger = logging.getLogger(__name__)
CONTENDERS = {
    "torch": ("stock", "loop", "loop-compiled", "loop-channels-last", "native"),
    "tensorflow": ("stock", "native"),
    "jax": ("stock", "native"),
}
MEANINGS = {
    "stock": "keras model.fit and model.predict",
    "loop": "hand-written PyTorch loop, NCHW, eager",
    "loop-compiled": "the same under torch.compile",
    "loop-channels-last": "the same, eager, channels-last, its dropout removed",
    "native": "kerasnorm",
}


@dataclass
class Result:
    """What one contender did on one network.

    Attributes:
        norm: Of the network.
        backend: Of Keras.
        contender: A key of `MEANINGS`.
        train: Training images a second, one number a round.
        predict: Images a second, likewise; empty for the hand-written loops.
        first_step: Seconds from the start of its process to the end of its first step.
        peak_mib: Largest resident memory of its process, in MiB.
    """

    norm: str
    backend: str
    contender: str
    train: list[float] = field(default_factory=list)
    predict: list[float] = field(default_factory=list)
    first_step: float = 0.0
    peak_mib: float = 0.0


def race(
    config: Config,
    contenders: Sequence[str],
    images: int,
    rounds: int,
    environment: Mapping[str, str] | None = None,
) -> list[Result]:
    """Returns a result for each contender on one network.

    All are started and warmed up first; then each takes one turn a round. One that fails is left
    out, and the reason is logged.

    Args:
        config: Resolved, its backend named.
        contenders: Keys of `MEANINGS` that the backend has.
        images: An epoch's images; a round is one epoch.
        rounds: How many are timed.
        environment: Of their processes; by default this one's.
    """
    values = {"recipe": config.recipe} | flatten(config.to_dict())
    workers: list[tuple[JsonProcess, Result]] = []
    with ExitStack() as stack:
        for name in contenders:
            worker = stack.enter_context(
                JsonProcess("kerasnorm.benchmark.worker", environment=environment)
            )
            result = Result(config.model.norm, config.train.backend, name)
            try:
                _ask(worker, name, "prepare", name=name, images=images, config=values)
                result.first_step = _ask(worker, name, "train")["first_step"]
                _ask(worker, name, "predict")
            except KerasnormError as error:
                logger.warning(str(error))
                worker.close()
                continue
            workers.append((worker, result))
        for _ in range(rounds):
            for worker, result in workers:
                reply = _ask(worker, result.contender, "train")
                result.train.append(images / reply["seconds"])
                result.peak_mib = reply["peak_mib"]
        for _ in range(rounds):
            for worker, result in workers:
                if result.contender in ("stock", "native"):
                    reply = _ask(worker, result.contender, "predict")
                    result.predict.append(images / reply["seconds"])
    return [result for _, result in workers]


def _ask(worker: JsonProcess, contender: str, task: str, **facts: Any) -> dict[str, float]:
    """Returns the seconds and MiB that a contender took for a task.

    Raises:
        KerasnormError: The contender failed.
    """
    try:
        reply: dict[str, float] = worker.ask({"task": task} | facts)
    except KerasnormError as error:
        words = error.last_words if isinstance(error, ProcessEndedError) else str(error)
        message = f"The contender {contender} failed: {words or 'no message'}"
        raise KerasnormError(message) from None
    return reply


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Returns the median over the rounds of one rate divided by the other."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
