"""The loop over the epochs of one run: train, evaluate, record, save."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import InitVar, asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import Config
from kerasnorm.data import Dataset, Split
from kerasnorm.data.stored import Images
from kerasnorm.engines.base import Engine, first_nonfinite
from kerasnorm.errors import CorruptFileError, DivergedError
from kerasnorm.files import write_json, write_manifest
from kerasnorm.formats.archive import save_model
from kerasnorm.inspection.evaluation import (
    Scores,
    confusion,
    predict,
    score,
    worst_mistakes,
)
from kerasnorm.inspection.graph import sized_calls, weights_by_name
from kerasnorm.layers import instance_norms, leaves, portable
from kerasnorm.progress import Progress, duration, in_percent, rounded
from kerasnorm.training import checkpoints, run_folder
from kerasnorm.training.callback_state import CallbackStates
from kerasnorm.training.loggers import EpochDetails, RunLogs
from kerasnorm.version import __version__

logger = logging.getLogger(__name__)
MOST_INITIAL = 0.1  # share of a moving statistic that may be its initial value without a warning
DEFINITIONS = {
    "test_accuracy": "share of the test images classified correctly by the saved model: after the "
    "last epoch, unless a callback then restored the weights of another; in float32, also if it "
    "was trained, and its epochs evaluated, in mixed precision",
    "test_loss": "mean cross-entropy over the test images of the same model, in nats",
    "train_accuracy": "share of the training images classified correctly during the last epoch, "
    "as the model saw them: augmented, with dropout, while it changed",
    "train_loss": "mean cross-entropy of the same, in nats, regularization terms left out",
    "val_accuracy": "as test_accuracy, over the images of the validation split",
    "val_loss": "as test_loss, over the images of the validation split",
    "seconds": "time spent training, evaluation and saving left out",
    "images_per_second": "training images per second, mean over all epochs",
    "initial_statistics": "share of the moving statistics of batch norms that is still their "
    f"initial value, momentum ** steps; recorded above {MOST_INITIAL:g}",
    "leaked_images": "number of test and validation images with the same pixels as a training "
    "image, by split; recorded where there are any",
    "instance_norms": "number of group norms whose groups are one channel each, and of all",
    "confusion": "counts over the test images: one row per true, one column per predicted class",
    "misclassified": "the wrongly classified test images with the highest softmax probability",
}


def epoch_line(row: run_folder.Row, epochs: int, seconds_left: float | None = None) -> str:
    """Returns one epoch in one line; measures without a value are left out."""
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}.0f}/{epochs}"]
    for name in ("train", "val", "test"):
        loss, accuracy = row.get(f"{name}_loss"), row.get(f"{name}_accuracy")
        if loss is not None and accuracy is not None:
            parts.append(f"{name} {rounded(loss, 3)} {in_percent(accuracy, 1):>4} %")
    forms = {"lr": "lr {:#.2g}", "seconds": "{:.1f} s", "images_per_second": "{:.0f} images/s"}
    values = {name: row.get(name) for name in forms}
    parts += [forms[name].format(value) for name, value in values.items() if value is not None]
    parts += [f"{duration(seconds_left)} left"] if seconds_left else []
    return "  ".join(parts)


def untrained_momenta(model: keras.Model) -> list[float]:
    """Returns the momentum of each batch norm to train that has its initial moving statistics.

    With pretrained weights these are the new ones. It is that of a whole step: a norm that is
    called several times moves its statistics as often.
    """
    calls = Counter(id(node.operation) for node, *_ in sized_calls(model))

    def is_initial(layer: keras.layers.BatchNormalization) -> bool:
        mean, variance = (
            keras.ops.convert_to_numpy(weight)
            for weight in (layer.moving_mean, layer.moving_variance)
        )
        return bool((mean == 0).all() and (variance == 1).all())

    return [
        layer.momentum ** max(1, calls[id(layer)])
        for layer in leaves(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
        and is_initial(layer)
    ]


def initial_statistics(momenta: Sequence[float], steps: int) -> float | None:
    """Returns how much of moving statistics is their initial value after some steps.

    It is the share of the slowest batch norm, momentum ** steps; None up to `MOST_INITIAL`, and
    where there is no batch norm.
    """
    share = max(momenta, default=0.0) ** steps
    return share if share > MOST_INITIAL else None


def _has_batch_hooks(callback: keras.callbacks.Callback) -> bool:
    """Returns whether a callback does something before or after each training step."""
    stock = keras.callbacks.Callback
    hooks = ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end")
    own = {name: getattr(callback, name) for name in hooks}  # LambdaCallback holds functions
    return any(getattr(own[name], "__func__", None) is not getattr(stock, name) for name in hooks)


def _named(**scores: Scores | None) -> run_folder.Row:
    """Returns loss and accuracy under names such as val_loss; None where there is no split."""
    row: run_folder.Row = {}
    for name, found in scores.items():
        row[f"{name}_loss"] = found.loss if found else None
        row[f"{name}_accuracy"] = found.accuracy if found else None
    return row


@dataclass(eq=False)
class Training:
    """The loop over the epochs of one run: train, evaluate, record, save.

    It listens to its engine, see `kerasnorm.engines.base.BatchListener`.
    """

    path: Path
    config: Config
    dataset: Dataset
    engine: Engine
    given: InitVar[Iterable[keras.callbacks.Callback]]  # of the caller
    progress: Progress
    logs: RunLogs | None = None

    def __post_init__(self, given: Iterable[keras.callbacks.Callback]) -> None:
        engine = self.engine
        self.group = engine.group
        self.means: list[Mapping[str, float]] = []
        self.rates: list[float] = []
        self.steps = engine.batches.steps
        callbacks = list(given)
        self.states = CallbackStates(callbacks)
        self.has_callbacks = bool(callbacks)
        engine.waits_for_callbacks = any(map(_has_batch_hooks, callbacks))
        self.saved_states: list[dict[str, Any]] = []
        self.callbacks = keras.callbacks.CallbackList(
            callbacks,
            add_history=True,
            model=engine.model,
            epochs=self.config.train.epochs,
            steps=self.steps,
            verbose=0,
        )
        self.rows: list[run_folder.Row] = []
        self.best = -1.0
        self.epoch = 0
        self.epoch_begun = 0.0
        self.steps_taken = 0  # in the epoch
        self.momenta = untrained_momenta(engine.model)
        self.is_stopped = False

    def execute(self, *, is_resumed: bool) -> None:
        """Trains to the last epoch, or until a callback stops it, and writes the results."""
        if is_resumed:
            self._resume()
        epochs = self.config.train.epochs
        self.progress.start("training", epochs * self.steps, self.epoch * self.steps)
        try:
            self.engine.model.stop_training = False
            self.callbacks.on_train_begin()
            self.states.load(self.saved_states)
            if self.logs:
                self.logs.write(self.rows)
            logs: dict[str, float | None] = {}
            while self.epoch < epochs and not self.is_stopped:
                logs = self._run_epoch()
            taken = int(keras.ops.convert_to_numpy(self.engine.model.optimizer.iterations))
            self.callbacks.on_train_end(logs)
            self._finish(taken)
        except BaseException as error:
            if self.logs:
                self.logs.stop(has_failed=isinstance(error, Exception))
            raise
        finally:
            self.progress.finish()

    def _load(self) -> tuple[checkpoints.State, dict[str, Any]]:
        folder = self.path / run_folder.CHECKPOINTS
        if not checkpoints.checkpoint_folders(folder):
            return {}, {}
        return checkpoints.load_newest(folder)

    def _resume(self) -> None:
        state, facts = self.group.on_first(self._load) or self._load()
        if not facts:
            logger.info(f"{self.path} has no checkpoint yet: starting from the beginning.")
            return
        known = (run_folder.lineage(self.config), run_folder.lineage(self.config, with_path=True))
        if facts.get("config") not in known:
            raise CorruptFileError(
                f"{self.path / run_folder.CONFIG} differs from the config that the checkpoints of "
                "this run were trained with. Restore the file, or start a new run."
            )
        self.engine.keep_to(facts.get("fused_kernels"))
        self.engine.load_state(state)
        if "switches" in facts:
            self.engine.load_switches(facts["switches"])
        self.epoch = facts["epoch"]
        self.rows = facts["history"]
        self.best = facts["best"]
        # A callback ended a run of fewer epochs, which is now asked for more.
        is_longer = self.config.train.epochs > facts.get("epochs", self.config.train.epochs)
        self.is_stopped = facts["stopped"] and not is_longer
        self.saved_states = facts["callbacks"]
        if self.group.is_first:  # the file may lack the last epoch
            run_folder.write_history(self.path / run_folder.HISTORY, self.rows)
            environment = run_folder.read_environment(self.path)
            environment["fused_kernels"] = self.engine.fused_kernels
            write_json(self.path / run_folder.ENVIRONMENT, environment)
        logger.info(f"Resuming {self.path} after epoch {self.epoch}.")

    def on_batch_begin(self, step: int) -> None:
        """Hands the event to the Keras callbacks."""
        self.callbacks.on_train_batch_begin(step)
        self._check_callbacks()

    def _check_callbacks(self) -> None:
        if self.has_callbacks:  # of the caller: the check takes time in each step
            self.engine.check_compiled()

    def on_batch_end(self, step: int, logs: Mapping[str, float]) -> None:
        """Hands the event to the Keras callbacks and the progress; ends an interrupted run."""
        self.steps_taken = step + 1
        if self.logs:
            self.means.append(logs)
            self.rates.append(self.engine.rate(self.epoch, step))
        self.callbacks.on_train_batch_end(step, logs)
        self._check_callbacks()
        done = self.epoch * self.steps + step + 1
        seconds = time.perf_counter() - self.epoch_begun
        rate = self.images_taken / (seconds or math.inf)
        self.progress.advance(done, self._status(self.epoch + 1, rate))
        self.group.interruptions.check()

    @property
    def images_taken(self) -> int:
        """Number of training images in the epoch so far; a callback may end it early."""
        return min(self.steps_taken * self.config.train.batch_size, len(self.dataset.train))

    def _status(self, epoch: int, rate: float) -> str:
        """Returns an epoch, its images per second, and the accuracy after the last that ended."""
        judged = run_folder.judged(self.rows[-1]) if self.rows else None
        parts = [f"epoch {epoch}/{self.config.train.epochs}", f"{rate:,.0f} images/s"]
        return "  ".join([*parts, *([str(judged)] if judged else [])])

    def _run_epoch(self) -> dict[str, float | None]:
        """Trains, evaluates and saves one epoch; returns the logs of the callbacks."""
        self.callbacks.on_epoch_begin(self.epoch)
        self.epoch_begun = time.perf_counter()
        self.means.clear()
        self.rates.clear()
        with self.group.interruptions.held():
            train = self.engine.train_epoch(self.epoch, self)
        seconds = time.perf_counter() - self.epoch_begun
        row = self._row(train, seconds)
        if not all(math.isfinite(value) for value in row.values() if value is not None):
            raise self._diverged("loss", self.epoch + 1)
        logs = {
            "loss": train.loss,
            "accuracy": train.accuracy,
            "learning_rate": row["lr"],
            **{k: v for k, v in row.items() if k.startswith(("val_", "test_")) and v is not None},
        }
        # Callbacks come before saving, so that the checkpoint holds what they change.
        self.callbacks.on_epoch_end(self.epoch, logs)
        self._check_callbacks()
        self.is_stopped = bool(getattr(self.engine.model, "stop_training", False))
        self.rows.append(row)
        self.epoch += 1
        rate = row["images_per_second"] or 0.0
        self.progress.advance(self.epoch * self.steps, self._status(self.epoch, rate))
        with self.group.interruptions.held():
            self._save()
            epochs = self.config.train.epochs
            took = time.perf_counter() - self.epoch_begun  # evaluation and saving included
            left = 0 if self.is_stopped else epochs - self.epoch
            logger.info(epoch_line(row, epochs, left * took))
            if self.logs:  # after the checkpoint: a log never holds an epoch that the run has lost
                self.logs.write(self.rows, self._details())
        return logs

    def _details(self) -> EpochDetails:
        """Returns what the loggers write of the last epoch beside its row."""
        steps, batch = len(self.means), self.config.train.batch_size
        images = np.minimum(batch * np.arange(1, steps + 1), len(self.dataset.train))
        sums = images * np.array([means["entropy"] for means in self.means])
        return EpochDetails(
            weights={
                name: keras.ops.convert_to_numpy(variable.value)
                for name, variable in weights_by_name(self.engine.model).items()
            },
            losses=(np.diff(sums, prepend=0) / np.diff(images, prepend=0)).tolist(),
            rates=[*self.rates],
            steps_before=(self.epoch - 1) * self.steps,
        )

    def _row(self, train: Scores, seconds: float) -> run_folder.Row:
        validation, test = map(self._evaluate, (self.dataset.validation, self.dataset.test))
        return {
            "epoch": self.epoch + 1,
            **_named(train=train, val=validation, test=test),
            "lr": self.engine.rate(self.epoch, self.steps_taken - 1),
            "seconds": seconds,
            "images_per_second": self.images_taken / seconds,
        }

    def _evaluate(self, split: Split | None) -> Scores | None:
        """Scores a split, and hands it to the Keras callbacks as an evaluation of one batch."""
        if split is None:
            return None
        self.callbacks.on_test_begin()
        self.callbacks.on_test_batch_begin(0)
        scores = score(self.engine.predict(split.images), split.labels)
        logs = {"loss": scores.loss, "accuracy": scores.accuracy}
        self.callbacks.on_test_batch_end(0, logs)
        self.callbacks.on_test_end(logs)
        return scores

    def _save(self) -> None:
        state = self.engine.state()
        if not all(np.isfinite(array).all() for array in state.values()):
            raise self._diverged("weight", self.epoch)
        accuracy = self.rows[-1]["val_accuracy"]
        before, self.best = self.best, max(self.best, -1.0 if accuracy is None else accuracy)
        facts = {
            "epoch": self.epoch,
            "is_best": self.best > before,
            "best": self.best,
            "stopped": self.is_stopped,
            "epochs": self.config.train.epochs,
            "config": run_folder.lineage(self.config),
            "fused_kernels": self.engine.fused_kernels,
            "switches": self.engine.switches(),
            "history": self.rows,
            "callbacks": self.states.save(),
        }
        if self.group.is_first:
            run_folder.check_there(self.path)
            checkpoints.save(self.path / run_folder.CHECKPOINTS, state, facts)
            run_folder.write_history(self.path / run_folder.HISTORY, self.rows)

    def _diverged(self, what: str, epoch: int) -> DivergedError:
        """Returns the error of an epoch whose engine did not see the step that went wrong."""
        sample = self.dataset.train.images[: self.config.train.batch_size]
        place = first_nonfinite(self.engine.model, sample) or "none any more"
        rate = self.engine.rate(epoch - 1, self.steps - 1)
        return DivergedError(
            f"A {what} is not finite after epoch {epoch}, whose last step, {epoch * self.steps}, "
            f"had a learning rate of {rate:.6g}. First value that is not finite now: {place}. Try "
            "a smaller --learning-rate; the earlier checkpoints are whole."
        )

    def _finish(self, taken: int) -> None:
        """Saves the model and writes its measures."""
        names = list(self.dataset.class_names)
        metadata = {
            "class_names": names,
            "data": self.dataset.name,
            "kerasnorm": __version__,
            "backend": self.config.train.backend,
            "config": self.config.to_dict(),
        }
        if self.group.is_first:
            save_model(self.engine.model, self.path / run_folder.MODEL, metadata)
        saved_predict: Callable[[Images], NDArray[np.float32]] = self.engine.predict
        if self.config.train.precision != "float32":  # the saved model computes in it
            saved_predict = partial(predict, portable(self.engine.model))
        logits = saved_predict(self.dataset.test.images)
        labels = self.dataset.test.labels
        last = self.rows[-1]
        times = [(row["seconds"] or 0.0, row["images_per_second"] or 0.0) for row in self.rows]
        seconds = sum(took for took, _ in times)
        # Measured again, since a callback may have restored other weights at the end.
        val = None
        if (validation := self.dataset.validation) is not None:
            val = score(saved_predict(validation.images), validation.labels)
        scores = _named(test=score(logits, labels), val=val)
        metrics: dict[str, Any] = {
            "train_loss": last["train_loss"],
            "train_accuracy": last["train_accuracy"],
            **{name: value for name, value in scores.items() if value is not None},
            "epochs": len(self.rows),
            "steps_per_epoch": self.steps,
            "seconds": seconds,
            "images_per_second": sum(took * rate for took, rate in times) / seconds,
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
        if not self.group.is_first:
            return
        initial = initial_statistics(self.momenta, taken)
        metrics |= {"initial_statistics": initial} if initial is not None else {}
        if self.config.model.norm == "gn":
            metrics["instance_norms"] = list(instance_norms(self.engine.model))
        if leaked := self.dataset.leaked:
            metrics["leaked_images"] = leaked
        metrics["definitions"] = {k: v for k, v in DEFINITIONS.items() if k in metrics}
        write_json(self.path / run_folder.METRICS, metrics)
        write_manifest(self.path, run_folder.CHECKED)
