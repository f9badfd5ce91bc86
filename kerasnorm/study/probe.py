"""Measures what runs cost, one after the other, in a process that starts as a run's process does.

It reads a run's data and trains its model, with augmentation, for a few seconds.
"""

import time
from collections.abc import Mapping
from typing import Any

from kerasnorm import runtime
from kerasnorm.config import Config, TrainConfig, resolve
from kerasnorm.data import prepare
from kerasnorm.json_process import serve
from kerasnorm.process_group import this_launch
from kerasnorm.training.fit import make_engine

MODULE = "kerasnorm.study.probe"  # in its process __name__ is __main__
WARM_STEPS = 8  # which compile: one call of the TensorFlow engine
SECONDS = 2.0  # of measured training
IMAGES = 2000  # of measured evaluation, at most


class _Stopwatch:
    """Ends an epoch after some steps and seconds; a listener of an engine."""

    def __init__(self, model: Any, steps: int, seconds: float) -> None:
        self._model, self._steps = model, steps
        self._end = time.perf_counter() + seconds
        self.steps = 0

    def on_batch_begin(self, step: int) -> None:
        """Does nothing."""

    def on_batch_end(self, step: int, logs: Mapping[str, float]) -> None:
        """Counts the step, and asks for the end of the epoch once it is time."""
        self.steps = step + 1
        if self.steps >= self._steps and time.perf_counter() >= self._end:
            self._model.stop_training = True


class Probe:
    """Answers requests: "start" and "prepare" do all that a run does once, "measure" the rest.

    "build" only makes the network, which fails where it cannot be made.
    """

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns what the work took: seconds per step and per image, and the number of each.

        `steps` and `images` are those of this answer to "prepare", and those of a whole epoch to
        "measure". The answer to "build" is a `note` on the network, which may be empty.
        """
        if request["task"] == "build":
            return self._build(resolve(request["config"]), **request["sizes"])
        if request["task"] == "start":
            _start(resolve(request["config"]).train)
            return {}
        if request["task"] == "prepare":
            return self._prepare(request["config"])
        begun = time.perf_counter()
        done = self._train(1, 1, SECONDS)
        trained = time.perf_counter()
        self.engine.predict(self.images)
        data, seconds = self.data, time.perf_counter() - trained
        return {
            "step": (trained - begun) / done,
            "image": seconds / len(self.images),
            "steps": self.engine.batches.steps,
            "images": len(data.test) + len(data.validation or ()),
        }

    def _build(self, config: Config, image_shape: list[int], classes: int) -> dict[str, str]:
        runtime.start(config.train.backend, config.train.device)
        from kerasnorm.conversion.norms import effect_note
        from kerasnorm.layers import instance_note
        from kerasnorm.network import build

        channels = image_shape[-1]
        model = build(
            config.model,
            input_shape=tuple(image_shape),
            classes=classes,
            mean=[0.5] * channels,
            std=[0.25] * channels,
            precision=config.train.precision,
        )
        is_told = config.model.norm == "gn" and not config.model.is_builtin
        instances = instance_note(model, config.model.network) if is_told else ""
        return {"note": " ".join(filter(None, [instances, effect_note(model)]))}

    def _prepare(self, values: Mapping[str, Any]) -> dict[str, float]:
        config = resolve(values)
        config = config.replace(epochs=max(2, config.train.epochs))  # two are begun here
        train = config.train
        vars(self).clear()  # the memory of the run before
        _start(train)
        from kerasnorm.engines.choice import join

        self.data = prepare(config.data, train.seed)
        self.engine = make_engine(config, self.data, join(this_launch(), train.devices))
        self.images = self.data.test.take(slice(IMAGES)).images
        steps = self._train(0, WARM_STEPS, 0.0)
        self.engine.predict(self.images)
        return {"steps": steps, "images": len(self.images)}

    def _train(self, epoch: int, steps: int, seconds: float) -> int:
        """Trains for some steps and seconds, an epoch at most; returns the number of steps."""
        stopwatch = _Stopwatch(self.engine.model, steps, seconds)
        self.engine.model.stop_training = False
        self.engine.train_epoch(epoch, stopwatch)
        return stopwatch.steps


def _start(train: TrainConfig) -> None:
    runtime.start(train.backend, train.device, train.devices, deterministic=train.deterministic)
    import kerasnorm.engines.choice  # noqa: F401


if __name__ == "__main__":
    serve(Probe().answer)
