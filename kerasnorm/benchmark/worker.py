"""One contender in a process of its own: trains or predicts one epoch per request."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kerasnorm import runtime
from kerasnorm.config import Config, resolve
from kerasnorm.data import Dataset
from kerasnorm.data.batches import Batches
from kerasnorm.data.shapes import shapes
from kerasnorm.json_process import serve
from kerasnorm.training.fit import make_batches, make_engine

MEBIBYTE = 2**20
KERAS_BATCH = 32  # images that `model.predict` takes at once where it is not told


@dataclass
class _FirstStep:
    """Records the time of the first step; also serves as an engine's listener."""

    start: float
    seconds: float | None = None

    def __call__(self) -> None:
        if self.seconds is None:
            self.seconds = time.perf_counter() - self.start

    def on_batch_begin(self, step: int) -> None:
        """Records nothing."""

    def on_batch_end(self, step: int, logs: Any) -> None:
        """Records the end of a step."""
        self()


Work = Callable[[int], object]


def contender(name: str, config: Config, images: int, first: _FirstStep) -> tuple[Work, Work]:
    """Returns functions of a round's number: one trains an epoch, one predicts on all images.

    `first` is called after every step.
    """
    data = shapes(images, 10, size=min(config.data.image_size, default=32))
    if name.startswith("loop"):
        return _loop(name, config, data, first), lambda number: None
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
    return lambda number: engine.train_epoch(number, first), lambda number: engine.predict(pixels)


def _loop(name: str, config: Config, data: Dataset, first: _FirstStep) -> Work:
    """Returns a hand-written loop; its process never imports Keras."""
    from kerasnorm.benchmark.plain import make_loop

    config = config.replace(dropout=0.0) if name == "loop-channels-last" else config
    runtime.keep_freed_memory()
    epoch = make_loop(
        config,
        make_batches(config, data),
        runtime.torch_device(config.train.device),
        channels_last=name != "loop",
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
        else:  # arrays are faster
            model.fit(images, labels, batch_size=size, **options)

    together = max(size, KERAS_BATCH)  # the small batch of a training would only slow it down
    return train, lambda number: model.predict(images, batch_size=together, verbose=0)


class _Contender:
    """Answers the requests of a race; the first one must be "prepare"."""

    def __init__(self) -> None:
        self.first = _FirstStep(time.perf_counter())
        self.round = 0

    def answer(self, request: dict[str, Any]) -> dict[str, float | None]:
        """Prepares, trains or predicts; returns the seconds and MiB that it took."""
        begun = time.perf_counter()
        if request["task"] == "prepare":
            config = resolve(request["config"])
            work = contender(request["name"], config, request["images"], self.first)
            self.train, self.predict = work
        else:
            (self.train if request["task"] == "train" else self.predict)(self.round)
            self.round += 1
        seconds = time.perf_counter() - begun
        peak = runtime.peak_memory() / MEBIBYTE
        return {"seconds": seconds, "first_step": self.first.seconds, "peak_mib": peak}


if __name__ == "__main__":
    serve(_Contender().answer)
