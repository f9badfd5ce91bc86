"""A run's folder: what it holds, how it is made, and how it is read."""

import csv
import io
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from kerasnorm.config import Config, DataConfig, resolve, to_toml
from kerasnorm.data import Dataset
from kerasnorm.data.content import Content
from kerasnorm.data.sources import locate
from kerasnorm.engines.schedule import has_open_end
from kerasnorm.errors import ConfigError, CorruptFileError, DataError, RunFolderError
from kerasnorm.files import (
    MANIFEST,
    check_file,
    digest,
    encoded,
    is_empty,
    make_folder,
    numbered,
    read_manifest,
    read_text,
    run_lock,
    short_name,
    write_bytes,
    write_json,
)
from kerasnorm.progress import in_percent

CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
HISTORY = "history.csv"
METRICS = "metrics.json"
MODEL = "model.keras"
CHECKPOINTS = "checkpoints"
PLOTS = "plots"
CHECKED = (CONFIG, ENVIRONMENT, HISTORY, METRICS, MODEL)  # by a finished run's manifest

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
    """What a run in training is to be judged by."""

    # "validation" where the run has such a split, since what is chosen on test images cannot be
    # tested on them; otherwise "test".
    split: str
    accuracy: float  # share of its images classified correctly after an epoch

    def __str__(self) -> str:
        return f"{self.split} {in_percent(self.accuracy, 1)} %"


def judged(row: Row) -> Judged | None:
    """Returns what a row of the history says of the run; None if neither split was predicted."""
    for split, column in (("validation", "val_accuracy"), ("test", "test_accuracy")):
        if (accuracy := row[column]) is not None:
            return Judged(split, accuracy)
    return None


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
    """Raises a DataError if the data of a config are no longer where they were."""
    place = Path(locate(config.data))
    if place.is_absolute() and not place.exists():
        raise DataError(
            f"{path}: expected the data that it was trained on in {place}. Received: no such file "
            "or folder. Restore the data, or, if they were moved, name their place: --data."
        )


def check_data(path: Path, dataset: Dataset) -> None:
    """Raises a DataError if data differ from those that the run in `path` was trained on."""
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


def check_there(path: Path) -> None:
    """Makes sure that the folder of a run in training is where it was when the run started.

    Raises:
        RunFolderError: It was moved or removed; what would be written there could not be resumed.
    """
    if not is_run(path):
        raise RunFolderError(
            f"{path} was moved or removed while the run trained: it has no {CONFIG} now. If it was "
            "moved, resume the run there: kerasnorm fit --resume PLACE. Else start a new run."
        )


@contextmanager
def new_folder(out: Path | None, config: Config, data_name: str) -> Iterator[Path]:
    """Makes the folder of a new run, writes its config, and holds its lock while the block runs.

    `out` must be new or empty. None takes the first that is free of
    `results/runs/<data>-<norm>-<backend>-s<seed>` and the same with -2, -3 and so on.

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


def lineage(config: Config, *, with_path: bool = False) -> str:
    """Returns the hash of a config that its checkpoints hold, and that a resumed run must share.

    The number of epochs counts only where the schedule depends on it. `with_path` counts the place
    of the data too, as in checkpoints of earlier versions.
    """
    config = config if with_path else config.replace(data="auto")
    return (config.replace(epochs=1) if has_open_end(config.train) else config).hash()


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


def write_config(path: Path, config: Config, others: Mapping[str, str] | None = None) -> None:
    """Writes `config.toml` and its checksum, beside those of other files."""
    content = encoded(to_toml(config))
    (path / MANIFEST).unlink(missing_ok=True)  # neither the old nor the new one fits meanwhile
    write_bytes(path / CONFIG, content)
    write_json(path / MANIFEST, {"sha256": {**(others or {}), CONFIG: digest(content)}})


def relocate(path: Path, config: Config) -> None:
    """Writes a config that says where a run's data lie now; the run's lock must be held."""
    write_config(path, config, read_manifest(path))


def _first_free(parent: Path, name: str) -> Path:
    """Makes the first folder of those `numbered` that is not there yet."""
    for path in map(parent.joinpath, numbered(name)):
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
