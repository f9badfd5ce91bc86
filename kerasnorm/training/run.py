"""A run's folder: what it holds, how it is made, and how it is read."""

import csv
import io
import itertools
import json
import logging
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kerasnorm import runtime
from kerasnorm.config import Config, DataConfig, resolve, to_toml
from kerasnorm.data import Dataset, prepare
from kerasnorm.data.content import Content
from kerasnorm.data.sources import locate
from kerasnorm.data.stored import Images
from kerasnorm.errors import ConfigError, CorruptFileError, DataError, RunFolderError
from kerasnorm.files import (
    MANIFEST,
    check_file,
    digest,
    encoded,
    in_command,
    is_empty,
    make_folder,
    read_manifest,
    read_text,
    run_lock,
    short_name,
    write_bytes,
    write_json,
    write_manifest,
)

if TYPE_CHECKING:
    import keras

    from kerasnorm.formats.archive import SavedModel
    from kerasnorm.formats.export import Export
    from kerasnorm.inspection.evaluation import Scores

logger = logging.getLogger(__name__)
CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
HISTORY = "history.csv"
METRICS = "metrics.json"
MODEL = "model.keras"
CHECKPOINTS = "checkpoints"
PLOTS = "plots"

COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "test_loss",
    "test_accuracy",
    "lr",
    "seconds",
    "images_per_second",
)
Row = dict[str, float | None]


class Judged(NamedTuple):
    """What a run in training is to be judged by.

    Attributes:
        split: "validation" where the run has such a split, since what is chosen on test images
            cannot be tested on them; otherwise "test".
        accuracy: Share of its images classified correctly after an epoch.
    """

    split: str
    accuracy: float

    def __str__(self) -> str:
        return f"{self.split} {100 * self.accuracy:.1f} %"


def judged(row: Row) -> Judged | None:
    """Returns what a row of the history says of the run; None if neither split was predicted."""
    for split, column in (("validation", "val_accuracy"), ("test", "test_accuracy")):
        if (accuracy := row[column]) is not None:
            return Judged(split, accuracy)
    return None


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run, read from its folder.

    Attributes:
        path: The run's folder.
        config: The config that the run was trained with.
        history: One row per epoch; its columns are `COLUMNS`.
        metrics: The final numbers, as in `metrics.json`.
    """

    path: Path
    config: Config
    history: tuple[Row, ...]
    metrics: dict[str, Any]

    @classmethod
    def load(cls, path: Path | str) -> "Run":
        """Reads a run's folder.

        Raises:
            CorruptFileError: A file is missing or damaged, or the run has not finished.
        """
        path = Path(path)
        config = read_config(path)
        for name in (ENVIRONMENT, HISTORY, METRICS):
            if (path / METRICS).is_file():
                check_file(path / name)
        history = tuple(read_history(path / HISTORY))
        try:
            metrics = json.loads(read_text(path / METRICS))
            missing = {"class_names", "confusion", "misclassified", "test_accuracy"} - {*metrics}
            if missing:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        except FileNotFoundError:
            raise CorruptFileError(
                f"The run {path} has not finished; resume it: "
                f"kerasnorm fit --resume {in_command(path)}"
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise CorruptFileError(f"{path / METRICS} is damaged: {error}") from None
        return cls(path, config, history, metrics)

    def model(self) -> "keras.Model":
        """Returns the trained model, in float32 and of stock Keras layers."""
        from kerasnorm.formats.archive import load_model

        check_file(self.path / MODEL)
        return load_model(self.path / MODEL)

    def __repr__(self) -> str:
        config, accuracy = self.config, 100 * float(self.metrics["test_accuracy"])
        what = f"{config.model.title} on {config.data.data}, {config.train.backend}"
        return f"Run({str(self.path)!r}: {what}, test accuracy {accuracy:.2f} %)"

    def saved_model(self) -> "SavedModel":
        """Returns the trained model with its metadata.

        Raises:
            CorruptFileError: Its file is missing or damaged.
            MissingPackageError: No backend is installed.
        """
        runtime.import_keras(runtime.preferred(self.config.train.backend))
        from kerasnorm.formats.archive import open_model

        return open_model(self.path)

    def evaluate(self, data: str | None = None, split: str = "test") -> "Scores":
        """Returns the accuracy and the loss of the trained model.

        Args:
            data: Name or path of the data; by default those that the run was trained on.
            split: "test", "validation", "train", or "all".

        Raises:
            DataError: The images do not fit the model, its classes have other names, or there is
                no such split.
        """
        from kerasnorm.inspection.evaluation import score
        from kerasnorm.inspection.images import images_of

        saved = self.saved_model()
        images = images_of(saved, data, split)
        return score(saved.predict(images.images), images.labels)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the probability of each class, shape (N, classes), for raw images.

        Args:
            images: Raw pixels, shape (N, H, W, C), of the size that the model was trained on.
        """
        from kerasnorm.data.preprocessing import equalize
        from kerasnorm.inspection.evaluation import log_softmax

        saved = self.saved_model()
        pixels = equalize(images) if saved.wants_equalized else images
        chances: NDArray[np.float32] = np.exp(log_softmax(saved.predict(pixels)))
        return chances

    def export(self, *formats: str, out: Path | str | None = None) -> "list[Export]":
        """Writes the model in other formats, each checked in its own runtime.

        Args:
            *formats: Names of formats, such as "onnx" and "litert".
            out: Folder for the files; by default `exports` in the run's folder.

        Raises:
            ConfigError: A format is unknown.
            KerasnormError: An export differs from the Keras model, or cannot be written.
            MissingPackageError: A package is missing; the message names those of all formats.
        """
        from kerasnorm.formats import check_formats

        check_formats(formats)
        saved = self.saved_model()
        from kerasnorm.formats.export import Exporter

        folder = self.path / "exports" if out is None else Path(out)
        is_exact = self.config.train.precision == "float32"  # and so is that of the exports
        accuracy = float(self.metrics["test_accuracy"]) if is_exact else None
        with Exporter(saved, folder, accuracy) as exporter:
            return [exporter.export(name) for name in formats]

    def plot(self, out: Path | str | None = None) -> list[Path]:
        """Draws the run's figures; returns their paths.

        Args:
            out: Folder for the figures; by default `plots` in the run's folder.
        """
        from kerasnorm.plots import draw_run

        return draw_run(self, self.test_images(), None if out is None else Path(out))

    @cached_property
    def content(self) -> Content | None:
        """What its data held; None for a run of an earlier version, which did not record it."""
        return read_content(self.path)

    def dataset(self, load: Callable[[DataConfig, int], Dataset] = prepare) -> Dataset:
        """Returns the data that the run was trained and tested on.

        Args:
            load: Loads data, given a config and a seed.

        Raises:
            DataError: The data are missing or damaged, or are not those that the run saw.
        """
        dataset = load(self.config.data, self.config.train.seed)
        if differences := self._differences(dataset):
            raise other_data(self.path, dataset, differences)
        return dataset

    def test_images(self, load: Callable[[DataConfig, int], Dataset] = prepare) -> Images | None:
        """Returns the images of `dataset`'s test set; None, after a warning, without the data."""
        try:
            return self.dataset(load).test.images
        except DataError as error:
            logger.warning(f"{error} The figure of misclassified images is left as it is.")
            return None

    def _differences(self, dataset: Dataset) -> list[str]:
        if self.content is not None:
            return self.content.differences(dataset.content)
        # An earlier version recorded what can be told from the results.
        metrics, labels = self.metrics, dataset.test.labels
        if metrics["class_names"] != list(dataset.class_names):
            return ["other classes"]
        if [sum(row) for row in metrics["confusion"]] != [*dataset.class_counts["test"]]:
            return ["other numbers of test images"]
        same = all(
            labels[mistake["index"]] == mistake["true"] for mistake in metrics["misclassified"]
        )
        return [] if same else ["test images in another order"]


def read_config(path: Path) -> Config:
    """Returns the config of the run in folder `path`.

    Raises:
        CorruptFileError: It is not the folder of a run, or its config is damaged.
    """
    try:
        text = read_text(path / CONFIG)
        check_file(path / CONFIG)
        return resolve(document=tomllib.loads(text))
    except CorruptFileError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        if not path.exists():
            raise ConfigError(f"{path} does not exist: expected the folder of a run.") from None
        raise CorruptFileError(f"{path} is no run's folder: it has no {CONFIG}.") from None
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{path / CONFIG} is damaged: {error}") from None


def read_content(path: Path) -> Content | None:
    """Returns what the data of the run in folder `path` held, None where it is not recorded."""
    return Content.read(read_environment(path).get("data"))


def read_environment(path: Path) -> dict[str, Any]:
    """Returns what the run in folder `path` was last computed with, {} where it was lost."""
    try:
        document = json.loads(read_text(path / ENVIRONMENT))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def check_place(path: Path, config: DataConfig) -> None:
    """Makes sure that the data of a config are still where they were.

    Args:
        path: The run or model, for the message.
        config: The data that it was trained on.

    Raises:
        DataError: Nothing is there.
    """
    place = Path(locate(config.data))
    if place.is_absolute() and not place.exists():
        raise DataError(
            f"{path}: expected the data that it was trained on in {place}. Received: no such file "
            "or folder. Restore the data, or, if they were moved, name their place: --data."
        )


def check_data(path: Path, dataset: Dataset) -> None:
    """Compares data with those that the run in folder `path` has been trained on, if it has been.

    Raises:
        DataError: They differ.
    """
    has_begun = (path / METRICS).is_file() or any((path / CHECKPOINTS).glob("epoch-*"))
    known = read_content(path) if has_begun else None
    if known is not None and (differences := known.differences(dataset.content)):
        raise other_data(path, dataset, differences)


def other_data(path: Path, dataset: Dataset, differences: Sequence[str]) -> DataError:
    """Returns the error for data that are not those of the run in folder `path`."""
    return DataError(
        f"{path}: expected the data that it was trained on. Received: {dataset.source} with "
        f"{'; '.join(differences)}. Restore the data; if they were moved, resume with --data "
        "PLACE; else start a new run."
    )


def is_run(path: Path) -> bool:
    """Returns whether a folder holds a run."""
    return (path / CONFIG).is_file()


@contextmanager
def new_folder(out: Path | None, config: Config, data_name: str) -> Iterator[Path]:
    """Makes the folder of a new run, writes its config, and holds its lock while the block runs.

    Args:
        out: The folder, which must be new or empty. None takes the first that is free of
            `results/runs/<data>-<norm>-<backend>-s<seed>` and the same with -2, -3 and so on.
        config: The resolved config.
        data_name: Name of the data set.

    Raises:
        RunFolderError: The folder holds something already, is in use, or cannot be written.
    """
    train = config.train
    name = f"{short_name(data_name)}-{config.model.title}-{train.backend}-s{train.seed}"
    try:
        path = out if out is not None else _first_free(Path("results/runs"), name)
        make_folder(path)
        _check_free(path)
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(
            f"Cannot write the run's folder {out or 'results/runs'}: {error.strerror}. "
            "Choose another --out."
        ) from None
    with run_lock(path):
        _check_free(path)  # again: another process may have been faster
        write_config(path, config)
        yield path


def has_open_end(config: Config) -> bool:
    """Returns whether more epochs change nothing in the epochs before them."""
    return config.train.schedule == "constant"


def lineage(config: Config, *, with_path: bool = False) -> str:
    """Returns the hash of a config that its checkpoints hold, and that a resumed run must share.

    The number of epochs counts only where the schedule depends on it.

    Args:
        config: The resolved config.
        with_path: Whether the place of the data counts, as in checkpoints of earlier versions.
    """
    config = config if with_path else config.replace(data="auto")
    return (config.replace(epochs=1) if has_open_end(config) else config).hash()


def create_folder(out: Path | None, config: Config, data_name: str) -> Path:
    """Makes the folder of a new run, as `new_folder` does, and releases its lock."""
    with new_folder(out, config, data_name) as path:
        return path


def _check_free(path: Path) -> None:
    """Raises RunFolderError if a folder holds anything of its user."""
    if is_empty(path):
        return
    if is_run(path):
        what, advice = "another run", ", or resume that run: --resume."
    else:
        what, advice = "other files", "."
    raise RunFolderError(f"{path} already holds {what}. Choose another --out{advice}")


def write_config(path: Path, config: Config) -> None:
    """Writes `config.toml` and its checksum."""
    (path / MANIFEST).unlink(missing_ok=True)  # that of an earlier config
    write_bytes(path / CONFIG, encoded(to_toml(config)))
    write_manifest(path, (CONFIG,))


def relocate(path: Path, config: Config) -> None:
    """Writes a config that says where a run's data lie now; the run's lock must be held."""
    content = encoded(to_toml(config))
    checksums = read_manifest(path) | {CONFIG: digest(content)}
    (path / MANIFEST).unlink(missing_ok=True)  # neither the old nor the new one fits meanwhile
    write_bytes(path / CONFIG, content)
    write_json(path / MANIFEST, {"sha256": checksums})


def _first_free(parent: Path, name: str) -> Path:
    """Makes the first folder that is not there yet of name, name-2, name-3 and so on."""
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path


def write_history(path: Path, rows: Sequence[Row]) -> None:
    """Writes the rows of `history.csv`; a missing value is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([{name: _field(name, row) for name in COLUMNS} for row in rows])
    write_bytes(path, text.getvalue().encode())


def _field(name: str, row: Mapping[str, float | None]) -> str:
    value = row[name]
    if value is None:
        return ""
    return str(int(value)) if name == "epoch" else repr(float(value))


def read_history(path: Path) -> list[Row]:
    """Reads the rows of a `history.csv`.

    Raises:
        CorruptFileError: The file is missing or damaged.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            return [{k: float(row[k]) if row[k] else None for k in COLUMNS} for row in reader]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise CorruptFileError(f"{path} is missing or damaged: {error}") from None
