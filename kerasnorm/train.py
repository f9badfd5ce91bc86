"""`fit(config) -> Run`: from a config to a trained, saved and measured model.

Keras is imported only after `runtime.start` has chosen its backend; hence the imports inside.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnorm import run, runtime
from kerasnorm.config import Config, flatten
from kerasnorm.data import Dataset
from kerasnorm.data.augment import Augmentation
from kerasnorm.data.batches import Batches
from kerasnorm.data.prepare import input_statistics, prepare
from kerasnorm.data.treatment import channel_statistics
from kerasnorm.errors import ConfigError, DataError
from kerasnorm.files import run_lock, write_json
from kerasnorm.recipes import resolve

if TYPE_CHECKING:
    import keras

    from kerasnorm.engines.base import Engine
    from kerasnorm.loop import Monitor


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
    monitor: "Monitor | None" = None,
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
    return fit_with_data(config, out, resume, callbacks, monitor, overrides)[0]


def fit_with_data(
    config: Config | None,
    out: Path | str | None,
    resume: Path | str | None,
    callbacks: Iterable["keras.callbacks.Callback"],
    monitor: "Monitor | None",
    overrides: dict[str, Any],
) -> tuple[run.Run, Dataset]:
    """Does what `fit` does, and returns the data set beside the run."""
    monitor = monitor or Silence()
    path = Path(resume) if resume is not None else None
    if path is not None:
        if config is not None or out is not None:
            raise ConfigError("A resumed run has its own config and folder: leave out config, out.")
        config = _same_config(run.read_config(path), overrides)
    else:
        config = config.replace(**overrides) if config else resolve(overrides)
    backend, device = runtime.start(config.train.backend, config.train.device)
    from kerasnorm.loop import Training

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
        training = Training(path, config, dataset, engine, monitor, callbacks)
        try:
            training.execute(title, resume is not None)
        except Exception:
            raise
        except BaseException:  # an interruption, not an error
            monitor.note(f"Stopped. Go on with: kerasnorm fit --resume {path}")
            raise
    return run.Run.load(path), dataset


def _same_config(saved: Config, overrides: dict[str, Any]) -> Config:
    """Returns the config of a run to resume; only the device may change."""
    recipe = overrides.pop("recipe", saved.recipe)
    changed = saved.replace(**overrides)
    before = flatten(saved.to_dict()) | {"recipe": saved.recipe}
    after = flatten(changed.to_dict()) | {"recipe": recipe}
    for name, value in before.items():
        if name != "device" and after[name] != value:
            raise ConfigError(
                f"{name}: a resumed run keeps its config, {name}={value!r}. "
                f"Received: {name}={after[name]!r}. Start a new run for it."
            )
    return changed


def make_engine(config: Config, dataset: Dataset) -> "Engine":
    """Returns the engine of a resolved config, its model freshly initialized."""
    from kerasnorm.engines import choice
    from kerasnorm.model import EQUALIZED_PIXELS, PIXELS, build

    if len(dataset.class_names) < 2:
        raise DataError(f"{dataset.source}: expected at least two classes. Received: one.")
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
    return choice.make(model, batches, config.train)
