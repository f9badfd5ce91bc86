"""The loop over the epochs of one run: train, evaluate, record, save."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from kerasnorm import __version__
from kerasnorm.config import Config
from kerasnorm.data import Dataset, Split
from kerasnorm.engines.base import Engine
from kerasnorm.engines.diagnosis import first_nonfinite
from kerasnorm.engines.schedule import learning_rates
from kerasnorm.errors import CorruptFileError, DivergedError
from kerasnorm.files import write_json, write_manifest
from kerasnorm.formats.archive import save_model
from kerasnorm.inspection.evaluation import Scores, confusion, score, worst_mistakes
from kerasnorm.training import checkpoints, run
from kerasnorm.training.callback_state import CallbackStates
from kerasnorm.training.process_group import ProcessGroup
from kerasnorm.training.signals import INTERRUPTIONS

DEFINITIONS = {
    "test_accuracy": "share of the test images classified rightly after the last epoch",
    "test_loss": "mean cross-entropy over the test images after the last epoch, in nats",
    "train_accuracy": "share of the training images classified rightly during the last epoch, "
    "as the model saw them: augmented, with dropout, while it changed",
    "train_loss": "mean cross-entropy of the same, in nats, regularization terms left out",
    "val_accuracy": "as test_accuracy, over the images held out of the training set",
    "val_loss": "as test_loss, over the images held out of the training set",
    "seconds": "time spent training, evaluation and saving left out",
    "images_per_second": "training images a second, mean over all epochs",
    "confusion": "counts over the test images; a row a true class, a column a predicted one",
    "misclassified": "the wrongly classified test images of highest softmax probability",
}


class Monitor(Protocol):
    """Is told how a run goes on; `kerasnorm.progress.Progress` shows it to a person."""

    def start(self, title: str, epochs: int, steps: int, images: int, first_epoch: int) -> None:
        """A run of `epochs` epochs of `steps` steps begins at `first_epoch`, counted from 0."""

    def batch(self, epoch: int, step: int) -> None:
        """A step is done; both are counted from 0."""

    def epoch(self, row: run.Row) -> None:
        """An epoch is done; its row of the history."""

    def note(self, text: str) -> None:
        """Something that the person should know, in one line."""

    def finish(self) -> None:
        """The run is over, whether it went well or not."""


class Training:
    """The loop over the epochs of one run: train, evaluate, record, save."""

    def __init__(
        self,
        path: Path,
        config: Config,
        dataset: Dataset,
        engine: Engine,
        monitor: Monitor,
        callbacks: Iterable[keras.callbacks.Callback],
        group: ProcessGroup | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.dataset = dataset
        self.engine = engine
        self.monitor = monitor
        self.group = group or ProcessGroup()
        self.steps = -(-len(dataset.train) // config.train.batch_size)
        epochs = config.train.epochs
        self.rates = learning_rates(config.train, epochs * self.steps)
        callbacks = list(callbacks)
        self.states = CallbackStates(callbacks)
        self.saved_states: list[dict[str, Any]] = []
        self.callbacks = keras.callbacks.CallbackList(
            callbacks, model=engine.model, epochs=epochs, steps=self.steps, verbose=0
        )
        self.rows: list[run.Row] = []
        self.best = -1.0
        self.epoch = 0
        self.is_stopped = False

    def execute(self, title: str, is_resumed: bool) -> None:
        """Trains to the last epoch, or until a callback stops it, and writes the results."""
        if is_resumed:
            self._resume()
        epochs = self.config.train.epochs
        self.monitor.start(title, epochs, self.steps, len(self.dataset.train), self.epoch)
        try:
            self.callbacks.on_train_begin()
            self.states.load(self.saved_states, self.monitor.note)
            while self.epoch < epochs and not self.is_stopped:
                self._run_epoch()
            self.callbacks.on_train_end()
            self._finish()
        finally:
            self.monitor.finish()

    def _load(self) -> tuple[checkpoints.State, dict[str, Any]]:
        folder = self.path / run.CHECKPOINTS
        if not checkpoints.checkpoint_folders(folder):
            return {}, {}
        return checkpoints.load_newest(folder, self.monitor.note)

    def _resume(self) -> None:
        state, facts = self.group.on_first(self._load) or self._load()
        if not facts:
            self.monitor.note(f"{self.path} has no checkpoint yet: starting from the beginning.")
            return
        if facts.get("config") != run.lineage(self.config):
            raise CorruptFileError(
                f"{self.path / run.CONFIG} is not the one that this run was trained with: its "
                "checkpoints bear another mark. Put it back, or start a new run."
            )
        self.engine.load_state(state)
        self.epoch = facts["epoch"]
        self.rows = facts["history"]
        self.best = facts["best"]
        self.is_stopped = facts["stopped"]
        self.saved_states = facts["callbacks"]
        if self.group.is_first:  # the file may lack the last epoch
            run.write_history(self.path / run.HISTORY, self.rows)
        self.monitor.note(f"Going on after epoch {self.epoch} of {self.path}.")

    def on_batch_begin(self, step: int) -> None:
        """Hands the event to the Keras callbacks."""
        self.callbacks.on_train_batch_begin(step)

    def on_batch_end(self, step: int, logs: Mapping[str, float]) -> None:
        """Hands the event to the Keras callbacks and the monitor."""
        self.callbacks.on_train_batch_end(step, logs)
        self.monitor.batch(self.epoch, step)
        INTERRUPTIONS.check()

    def _run_epoch(self) -> None:
        self.callbacks.on_epoch_begin(self.epoch)
        start = time.perf_counter()
        with INTERRUPTIONS.held():
            train = self.engine.train_epoch(self.epoch, self)
        seconds = time.perf_counter() - start
        row = self._row(train, seconds)
        if not all(math.isfinite(value) for value in row.values() if value is not None):
            raise self._diverged("loss", self.epoch + 1)
        logs = {
            "loss": train.loss,
            "accuracy": train.accuracy,
            "learning_rate": row["lr"],
            **{k: v for k, v in row.items() if k.startswith(("val_", "test_")) and v is not None},
        }
        # Before saving, so that what a callback changes is in the checkpoint.
        self.callbacks.on_epoch_end(self.epoch, logs)
        self.is_stopped = bool(getattr(self.engine.model, "stop_training", False))
        self.rows.append(row)
        self.epoch += 1
        with INTERRUPTIONS.held():
            self._save()
            self.monitor.epoch(row)

    def _row(self, train: Scores, seconds: float) -> run.Row:
        validation = self._score(self.dataset.validation)
        test = self._score(self.dataset.test)
        return {
            "epoch": self.epoch + 1,
            "train_loss": train.loss,
            "train_accuracy": train.accuracy,
            "val_loss": validation.loss if validation else None,
            "val_accuracy": validation.accuracy if validation else None,
            "test_loss": test.loss if test else None,
            "test_accuracy": test.accuracy if test else None,
            "lr": self._rate(),
            "seconds": seconds,
            "images_per_second": len(self.dataset.train) / seconds,
        }

    def _rate(self) -> float:
        """Learning rate of the epoch's last step."""
        if self.config.train.schedule == "constant":  # a callback may have changed it
            return float(keras.ops.convert_to_numpy(self.engine.model.optimizer.learning_rate))
        return float(self.rates[(self.epoch + 1) * self.steps - 1])

    def _score(self, split: Split | None) -> Scores | None:
        return None if split is None else score(self.engine.predict(split.images), split.labels)

    def _save(self) -> None:
        state = self.engine.state()
        if not all(np.isfinite(array).all() for array in state.values()):
            raise self._diverged("weight", self.epoch)
        score = self.rows[-1]["val_accuracy"]
        is_best = score is not None and score > self.best
        self.best = score if is_best and score is not None else self.best
        facts = {
            "epoch": self.epoch,
            "is_best": is_best,
            "best": self.best,
            "stopped": self.is_stopped,
            "config": run.lineage(self.config),
            "history": self.rows,
            "callbacks": self.states.save(),
        }
        if self.group.is_first:
            checkpoints.save(self.path / run.CHECKPOINTS, state, facts)
            run.write_history(self.path / run.HISTORY, self.rows)

    def _diverged(self, what: str, epoch: int) -> DivergedError:
        """Returns the error of an epoch in which no engine saw the step that went wrong."""
        sample = self.dataset.train.images[: self.config.train.batch_size]
        place = first_nonfinite(self.engine.model, sample) or "none any more"
        return DivergedError(
            f"A {what} is not finite after epoch {epoch}, whose last step, {epoch * self.steps}, "
            f"had a learning rate of {self.rates[epoch * self.steps - 1]:.6g}. First value that is "
            f"not finite now: {place}. Try a smaller --learning-rate; the checkpoints before are "
            "whole."
        )

    def _finish(self) -> None:
        names = list(self.dataset.class_names)
        card = {
            "class_names": names,
            "data": self.dataset.name,
            "kerasnorm": __version__,
            "backend": self.config.train.backend,
            "config": self.config.to_dict(),
        }
        if self.group.is_first:
            save_model(self.engine.model, self.path / run.MODEL, card)
        logits = self.engine.predict(self.dataset.test.images)
        labels = self.dataset.test.labels
        last = self.rows[-1]
        seconds = sum(row["seconds"] or 0.0 for row in self.rows)
        # Measured again, since a callback may have put back other weights at the end.
        scores = {"test": score(logits, labels), "val": self._score(self.dataset.validation)}
        metrics: dict[str, Any] = {name: last[name] for name in ("train_loss", "train_accuracy")}
        for name, found in scores.items():
            if found is not None:
                metrics |= {f"{name}_loss": found.loss, f"{name}_accuracy": found.accuracy}
        metrics |= {
            "epochs": len(self.rows),
            "steps_per_epoch": self.steps,
            "seconds": seconds,
            "images_per_second": len(self.rows) * len(self.dataset.train) / seconds,
            "parameters": self.engine.model.count_params(),
            "images": {
                "train": len(self.dataset.train),
                "validation": len(self.dataset.validation or ()),
                "test": len(self.dataset.test),
            },
            "data": {"name": self.dataset.name, "source": self.dataset.source},
            "class_names": names,
            "confusion": confusion(logits, labels).tolist(),
            "misclassified": [asdict(mistake) for mistake in worst_mistakes(logits, labels)],
        }
        metrics["definitions"] = {k: v for k, v in DEFINITIONS.items() if k in metrics}
        if not self.group.is_first:
            return
        write_json(self.path / run.METRICS, metrics)
        files = (run.CONFIG, run.ENVIRONMENT, run.HISTORY, run.METRICS, run.MODEL)
        write_manifest(self.path, files)
