"""A run's folder: what it holds, how it is made, and how it is read."""

import csv
import io
import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnorm.config import Config, resolve, to_toml
from kerasnorm.errors import CorruptFileError, RunFolderError
from kerasnorm.files import (
    MANIFEST,
    check_file,
    encoded,
    is_empty,
    make_folder,
    read_text,
    run_lock,
    write_bytes,
    write_manifest,
)

if TYPE_CHECKING:
    import keras

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


@dataclass(frozen=True)
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
                f"The run {path} has not finished; resume it: kerasnorm fit --resume {path}"
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise CorruptFileError(f"{path / METRICS} is damaged: {error}") from None
        return cls(path, config, history, metrics)

    def model(self) -> "keras.Model":
        """Returns the trained model, in float32 and of stock Keras layers."""
        from kerasnorm.formats.archive import load_model

        check_file(self.path / MODEL)
        return load_model(self.path / MODEL)


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
        raise CorruptFileError(f"{path} is no run's folder: it has no {CONFIG}.") from None
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{path / CONFIG} is damaged: {error}") from None


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
    name = f"{data_name}-{config.model.norm}-{train.backend}-s{train.seed}"
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


def lineage(config: Config) -> str:
    """Returns the hash of a config that its checkpoints hold, and that a resumed run must share.

    The number of epochs counts only where the schedule depends on it.
    """
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
