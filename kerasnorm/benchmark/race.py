"""Lets contenders take turns, each in a process of its own, and sums up their rates."""

import json
import logging
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kerasnorm.config import Config, flatten
from kerasnorm.errors import KerasnormError

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


class _Worker:
    """A contender's process."""

    def __init__(
        self, name: str, config: Config, images: int, environment: Mapping[str, str] | None
    ) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kerasnorm.benchmark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        values = {"recipe": config.recipe} | flatten(config.to_dict())
        job = {"name": name, "images": images, "config": values}
        self._write(json.dumps(job))

    def _write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> dict[str, Any]:
        """Has a command done and returns the reply.

        Raises:
            KerasnormError: The process died; the message ends with its last words.
        """
        assert self.process.stdout is not None
        try:
            self._write(command)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            _, words = self.process.communicate()
            last = (words.strip().splitlines() or ["no message"])[-1]
            raise KerasnormError(f"The contender {self.name} failed: {last}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()


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
    workers: list[tuple[_Worker, Result]] = []
    try:
        for name in contenders:
            worker = _Worker(name, config, images, environment)
            result = Result(config.model.norm, config.train.backend, name)
            try:
                result.first_step = worker.ask("train")["first_step"]
                worker.ask("predict")
            except KerasnormError as error:
                logger.warning(str(error))
                worker.close()
                continue
            workers.append((worker, result))
        for _ in range(rounds):
            for worker, result in workers:
                reply = worker.ask("train")
                result.train.append(images / reply["seconds"])
                result.peak_mib = reply["peak_mib"]
        for _ in range(rounds):
            for worker, result in workers:
                if result.contender in ("stock", "native"):
                    result.predict.append(images / worker.ask("predict")["seconds"])
    finally:
        for worker, _ in workers:
            worker.close()
    return [result for _, result in workers]


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Returns the median over the rounds of one rate divided by the other."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
