"""`fit(config) -> Run`: from a config to a trained, saved and measured model.

Keras is imported only after `runtime.start` has chosen its backend; hence the imports inside.
"""

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kerasnorm import __version__, checkpoints, run, runtime
from kerasnorm.analysis.evaluate import Scores, confusion, score, worst_mistakes
from kerasnorm.config import Config
from kerasnorm.data import Dataset, Split
from kerasnorm.data.augment import Augmentation
from kerasnorm.data.batches import Batches
from kerasnorm.data.prepare import input_statistics, prepare
from kerasnorm.data.treatment import channel_statistics
from kerasnorm.engines.base import Engine
from kerasnorm.engines.schedule import learning_rates
from kerasnorm.errors import ConfigError, DivergedError
from kerasnorm.files import run_lock, write_json
from kerasnorm.recipes import resolve

if TYPE_CHECKING:
    import keras

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
    """Is told how a run goes on; `kerasnorm.console.Progress` shows it to a person."""

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


class Silence:
    """A `Monitor` that shows nothing."""

    def start(self, title: str, epochs: int, steps: int, images: int, first_epoch: int) -> None:
        """Shows nothing."""

    def batch(self, epoch: int, step: int) -> None:
        """Shows nothing."""

    def epoch(self, row: run.Row) -> None:
        """Shows nothing."""

    def note(self, text: str) -> None:
        """Shows nothing."""

    def finish(self) -> None:
        """Shows nothing."""


def fit(
    config: Config | None = None,
    *,
    out: Path | str | None = None,
    resume: Path | str | None = None,
    callbacks: Iterable["keras.callbacks.Callback"] = (),
    monitor: Monitor | None = None,
    **overrides: Any,
) -> run.Run:
    """Trains one model and leaves a run's folder behind.

    Args:
        config: What to train; by default the recipe `best`.
        out: The run's folder, new or empty; by default one under `results/runs`.
        resume: The folder of an unfinished run to go on with, instead of `config` and `out`.
        callbacks: Keras callbacks; their logs hold loss, accuracy, val_*, test_* and
            learning_rate.
        monitor: Is told how the run goes on.
        **overrides: Any field of the config, named without its section.

    Raises:
        ConfigError: A value is unknown or out of range.
        DataError: The data are missing, damaged or unfit.
        DivergedError: The loss or a weight is no longer finite.
        RunFolderError: The folder holds another run, is in use or cannot be written.
        MissingPackageError: The backend is not installed.
    """
    monitor = monitor or Silence()
    path = Path(resume) if resume is not None else None
    if path is not None:
        config = _same_config(run.read_config(path), overrides)
    else:
        config = config.replace(**overrides) if config else resolve(overrides)
    backend, device = runtime.start(config.train.backend, config.train.device)
    dataset = prepare(config.data, config.train.seed, monitor.note)
    resolved = {"backend": backend}
    if config.data.data == "auto":
        resolved["data"] = dataset.name
    config = config.replace(**resolved)
    engine = make_engine(config, dataset)
    if path is None:
        path = run.create_folder(Path(out) if out is not None else None, config, dataset.name)
    with run_lock(path):
        write_json(path / run.ENVIRONMENT, runtime.environment(backend, device))
        title = f"{config.model.norm} on {dataset.name}, {backend}, {device.name}"
        training = _Training(path, config, dataset, engine, monitor, callbacks)
        try:
            training.execute(title, resume is not None)
        except Exception:
            raise
        except BaseException:  # an interruption, not an error
            monitor.note(f"Stopped. Go on with: kerasnorm fit --resume {path}")
            raise
    return run.Run.load(path)


def _same_config(saved: Config, overrides: dict[str, Any]) -> Config:
    """Returns the config of a run to resume; only the device may change."""
    changed = saved.replace(**overrides)
    before, after = saved.to_dict(), changed.to_dict()
    for section in ("model", "data", "train"):
        for name, value in before[section].items():
            if name != "device" and after[section][name] != value:
                raise ConfigError(
                    f"{name}: a resumed run keeps its config, {name}={value!r}. "
                    f"Received: {name}={after[section][name]!r}. Start a new run for it."
                )
    return changed


def make_engine(config: Config, dataset: Dataset) -> Engine:
    """Returns the engine of a resolved config, its model freshly initialized."""
    from kerasnorm.engines.portable import PortableEngine
    from kerasnorm.model import EQUALIZED_PIXELS, PIXELS, build

    seed = config.train.seed
    runtime.seed_everything(seed, 0)
    mean, sd = input_statistics(config.data.treatment, dataset.train.images)
    fill = channel_statistics(dataset.train.images)[0] * 255
    model = build(
        config.model,
        input_shape=dataset.image_shape,
        classes=len(dataset.class_names),
        mean=mean.tolist(),
        sd=sd.tolist(),
        input_name=EQUALIZED_PIXELS if config.data.treatment == "equalize" else PIXELS,
        precision=config.train.precision,
        seed=seed,
    )
    augmentation = Augmentation(config.data, dataset.image_shape, fill, len(dataset.train), seed)
    batches = Batches(dataset.train, config.train.batch_size, seed, augmentation)
    return PortableEngine(model, batches, config.train)


class _Training:
    """The loop over the epochs of one run: train, evaluate, record, save."""

    def __init__(
        self,
        path: Path,
        config: Config,
        dataset: Dataset,
        engine: Engine,
        monitor: Monitor,
        callbacks: Iterable["keras.callbacks.Callback"],
    ) -> None:
        import keras

        self.path = path
        self.config = config
        self.dataset = dataset
        self.engine = engine
        self.monitor = monitor
        self.steps = -(-len(dataset.train) // config.train.batch_size)
        epochs = config.train.epochs
        self.rates = learning_rates(config.train, epochs * self.steps)
        self.callbacks = keras.callbacks.CallbackList(
            list(callbacks), model=engine.model, epochs=epochs, steps=self.steps, verbose=0
        )
        self.rows: list[run.Row] = []
        self.best = -1.0
        self.epoch = 0

    def execute(self, title: str, is_resumed: bool) -> None:
        if is_resumed:
            self._resume()
        epochs = self.config.train.epochs
        self.monitor.start(title, epochs, self.steps, len(self.dataset.train), self.epoch)
        try:
            self.callbacks.on_train_begin()
            while self.epoch < epochs and not getattr(self.engine.model, "stop_training", False):
                self._run_epoch()
            self.callbacks.on_train_end()
            self._finish()
        finally:
            self.monitor.finish()

    def _resume(self) -> None:
        folder = self.path / run.CHECKPOINTS
        if not checkpoints.checkpoint_folders(folder):
            self.monitor.note(f"{self.path} has no checkpoint yet: starting from the beginning.")
            return
        state, facts = checkpoints.load_newest(folder, self.monitor.note)
        self.engine.load_state(state)
        self.epoch = facts["epoch"]
        self.rows = facts["history"]
        self.best = facts["best"]
        self.monitor.note(f"Going on after epoch {self.epoch} of {self.path}.")

    def on_batch_begin(self, step: int) -> None:
        self.callbacks.on_train_batch_begin(step)

    def on_batch_end(self, step: int, logs: dict[str, float]) -> None:
        self.callbacks.on_train_batch_end(step, logs)
        self.monitor.batch(self.epoch, step)

    def _run_epoch(self) -> None:
        self.callbacks.on_epoch_begin(self.epoch)
        start = time.perf_counter()
        train = self.engine.train_epoch(self.epoch, self)
        seconds = time.perf_counter() - start
        row = self._row(train, seconds)
        logs = {
            "loss": train.loss,
            "accuracy": train.accuracy,
            "learning_rate": row["lr"],
            **{k: v for k, v in row.items() if k.startswith(("val_", "test_")) and v is not None},
        }
        self.rows.append(row)
        self.epoch += 1
        self._save()
        self.monitor.epoch(row)
        self.callbacks.on_epoch_end(self.epoch - 1, logs)

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
            "lr": float(self.rates[(self.epoch + 1) * self.steps - 1]),
            "seconds": seconds,
            "images_per_second": len(self.dataset.train) / seconds,
        }

    def _score(self, split: Split | None) -> Scores | None:
        return None if split is None else score(self.engine.predict(split.images), split.labels)

    def _save(self) -> None:
        state = self.engine.state()
        if not all(np.isfinite(array).all() for array in state.values()):
            raise DivergedError(
                f"A weight is not finite after epoch {self.epoch}; try a smaller --learning-rate."
            )
        score = self.rows[-1]["val_accuracy"]
        is_best = score is not None and score > self.best
        self.best = score if is_best and score is not None else self.best
        facts = {
            "epoch": self.epoch,
            "is_best": is_best,
            "best": self.best,
            "config": self.config.hash(),
            "history": self.rows,
        }
        checkpoints.save(self.path / run.CHECKPOINTS, state, facts)
        run.write_history(self.path / run.HISTORY, self.rows)

    def _finish(self) -> None:
        from kerasnorm.exchange.archive import save_model

        names = list(self.dataset.class_names)
        card = {
            "class_names": names,
            "data": self.dataset.name,
            "kerasnorm": __version__,
            "backend": self.config.train.backend,
            "config": self.config.to_dict(),
        }
        save_model(self.engine.model, self.path / run.MODEL, card)
        logits = self.engine.predict(self.dataset.test.images)
        labels = self.dataset.test.labels
        last = self.rows[-1]
        seconds = sum(row["seconds"] or 0.0 for row in self.rows)
        scores = {k: v for k, v in last.items() if k.endswith(("_loss", "_accuracy"))}
        metrics = {k: v for k, v in scores.items() if v is not None} | {
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
        write_json(self.path / run.METRICS, metrics)
