"""One contender in its own process, which trains or predicts on command.

It reads one command per line from stdin, and answers each with a line of JSON on stdout.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from kerasnorm import runtime
from kerasnorm.config import Config, resolve
from kerasnorm.data import Dataset
from kerasnorm.data.batches import Batches
from kerasnorm.training.fit import make_batches, make_engine

MEBIBYTE = 2**20


class _FirstStep:
    """Records the time of the first step; also serves as an engine's listener."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.seconds: float | None = None

    def __call__(self) -> None:
        if self.seconds is None:
            self.seconds = time.perf_counter() - self.start

    def on_batch_begin(self, step: int) -> None:
        """Records nothing."""

    def on_batch_end(self, step: int, logs: Any) -> None:
        """Records the end of a step."""
        self()


Work = Callable[[int], None]


def contender(name: str, config: Config, images: int, first: _FirstStep) -> tuple[Work, Work]:
    """Returns functions of a round's number: one trains an epoch, one predicts on all images.

    Args:
        name: native, stock, loop, loop-channels-last or loop-compiled.
        config: Resolved config of model, augmentation, batches and backend.
        images: Number of images, made by the `shapes` generator.
        first: Is called after every step.
    """
    from kerasnorm.data.shapes import shapes

    data = shapes(images, 10)
    if name.startswith("loop"):
        return _loop(name, config, data, first), _ignore
    choice = config.train
    runtime.start(
        choice.backend,
        choice.device,
        deterministic=choice.deterministic,
        keeps_memory=name == "native",
    )
    engine = make_engine(config.replace(engine="native" if name == "native" else "keras"), data)
    if name == "stock":
        return _stock(engine.model, engine.batches, config, first)
    pixels = data.train.images
    return (
        lambda number: _ignore(engine.train_epoch(number, first)),
        lambda number: _ignore(engine.predict(pixels)),
    )


def _loop(name: str, config: Config, data: Dataset, first: _FirstStep) -> Work:
    """Returns a hand-written loop; its process never imports Keras."""
    import torch

    from kerasnorm.benchmark.plain import make_loop

    is_bare = name == "loop-channels-last"
    config = config.replace(dropout=0.0) if is_bare else config
    has_gpu = config.train.device != "cpu" and torch.cuda.is_available()
    epoch = make_loop(
        config,
        make_batches(config, data),
        "cuda" if has_gpu else "cpu",
        channels_last=is_bare,
        compiled=name == "loop-compiled",
    )
    return lambda number: epoch(number, first)


def _stock(model: Any, batches: Batches, config: Config, first: _FirstStep) -> tuple[Work, Work]:
    """Returns Keras's own loops as in its guide: compile with Adam and accuracy, fit, predict."""
    import keras

    from kerasnorm.engines.keras_engine import EpochData

    model.compile(
        optimizer=keras.optimizers.Adam(config.train.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    listener = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: first())
    images, labels, size = batches.split.images, batches.split.labels, config.train.batch_size
    is_augmented = batches.augmentation is not None and batches.augmentation.is_active
    options = {"shuffle": False, "verbose": 0, "callbacks": [listener]}

    def train(number: int) -> None:
        if is_augmented:
            model.fit(EpochData(batches, number), **options)
        else:  # from arrays, which is faster
            model.fit(images, labels, batch_size=size, **options)

    return train, lambda number: _ignore(model.predict(images, batch_size=size, verbose=0))


def _ignore(_: Any) -> None:
    """Discards a result."""


def serve() -> None:
    """Answers commands until stdin ends."""
    start = time.perf_counter()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # other output is not a reply
    job = json.loads(sys.stdin.readline())
    first = _FirstStep(start)
    train, predict = contender(job["name"], resolve(job["config"]), job["images"], first)
    for number, line in enumerate(sys.stdin):
        begun = time.perf_counter()
        (train if line.strip() == "train" else predict)(number)
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEBIBYTE
        reply = {"seconds": seconds, "first_step": first.seconds, "peak_mib": peak}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    serve()
