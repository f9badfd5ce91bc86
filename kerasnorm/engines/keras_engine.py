"""Keras's own engine: plain `model.fit`, on any backend of Keras.

It is the reference that the native engines are tested and timed against.
"""

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from kerasnorm.data.batches import Batches
from kerasnorm.data.stored import Images
from kerasnorm.engines.base import BatchListener, Engine
from kerasnorm.inspection import evaluation
from kerasnorm.inspection.evaluation import Scores
from kerasnorm.keras_settings import stock_keras


class KerasEngine(Engine):
    """Trains with `model.fit`, which is itself a loop over steps; see `Engine`."""

    def __init__(self, model: keras.Model, *args: Any) -> None:
        super().__init__(model, *args)
        # A layer in half precision adds its loss in half precision; Keras on TensorFlow refuses the
        # sum of that and the model's loss.
        summed = model._aggregate_additional_loss
        model._aggregate_additional_loss = lambda loss: summed(ops.cast(loss, "float32"))

    def plan(self) -> None:
        """Makes Keras's step anew, which on TensorFlow holds the model as it was traced."""
        self.model.make_train_function(force=True)

    @stock_keras
    def train_epoch(self, epoch: int, listener: BatchListener | None = None) -> Scores:
        """Trains on every batch of an epoch; see `Engine.train_epoch`."""
        self.follow_callbacks()
        bridge = _Bridge(self, epoch, listener)
        has_history = hasattr(self.model, "history")  # that of the run, which its callbacks know
        self.model.fit(
            EpochData(self.batches, epoch),
            epochs=epoch + 1,
            initial_epoch=epoch,
            shuffle=False,
            verbose=0,
            callbacks=keras.callbacks.CallbackList(
                [bridge], add_history=not has_history, model=self.model
            ),
        )
        return Scores(bridge.logs["entropy"], bridge.logs["accuracy"])

    @stock_keras
    def predict(self, images: Images) -> NDArray[np.float32]:
        """Returns the logits (N, classes) of raw images (N, H, W, C)."""
        return evaluation.predict(self.model, images)


class EpochData(keras.utils.PyDataset):
    """One epoch of `Batches`, in the form that `model.fit` takes."""

    def __init__(self, batches: Batches, epoch: int) -> None:
        super().__init__()
        self.batches = batches
        self.epoch = epoch
        self.order = batches.order(epoch)

    def __len__(self) -> int:
        return self.batches.steps

    def __getitem__(self, step: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        return self.batches.batch(self.epoch, step, self.order)


class _Bridge(keras.callbacks.Callback):
    """Passes Keras's batch events to the listener, and ends a run that has diverged."""

    def __init__(self, engine: KerasEngine, epoch: int, listener: BatchListener | None) -> None:
        super().__init__()
        self.engine = engine
        self.epoch = epoch
        self.listener = listener
        self.is_stopping = engine.model.stop_training
        self.logs: dict[str, float] = {}  # of the epoch

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        if self.is_stopping:  # `fit` has just forgotten it
            self.model.stop_training = True

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if batch == 0:  # not earlier: the first `fit` of a model draws random numbers to build it
            self.engine.seed(self.epoch)
        if self.listener is not None:
            self.listener.on_batch_begin(batch)
        self.engine.keep_rate()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        logs = logs or {}
        loss = logs.get("loss", 0.0)
        if not np.isfinite(loss):
            raise self.engine.diverged(self.epoch, batch, loss)
        if self.listener is not None:
            self.listener.on_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.logs = logs or {}
