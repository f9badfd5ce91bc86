"""Where data comes from: data sets by name, `auto`, or a path."""

import dataclasses
import difflib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kerasnorm.config import DataConfig
from kerasnorm.data import arrays, cifar, pictures, shapes
from kerasnorm.data.dataset import (
    Dataset,
    Fit,
    Generated,
    Reader,
    check,
    parsing,
    unexpected,
)
from kerasnorm.data.download import DownloadError, Official, fetch
from kerasnorm.data.preprocessing import equalized
from kerasnorm.errors import DataError
from kerasnorm.runtime import cache_folder

# One line per module that defines sources. The first reader that matches a path reads it;
# `pictures` matches any folder with folders of images.
SOURCES: tuple[Reader | Official | Generated, ...] = (
    *cifar.SOURCES,
    *arrays.SOURCES,
    *shapes.SOURCES,
    *pictures.SOURCES,
)
READERS = [source for source in SOURCES if isinstance(source, Reader)]
OFFICIAL = {source.name: source for source in SOURCES if isinstance(source, Official)}
GENERATED = {source.name: source for source in SOURCES if isinstance(source, Generated)}
RETRIES = 2
# What to do with files that are often given as data, by suffix.
_ARCHIVE = "Unpack it and give the folder"
_SAVE = "Save the arrays with np.savez(path, x_train=…, y_train=…, x_test=…, y_test=…)"
_PICTURE = "Give the folder that holds the class folders"
_ADVICE = {
    **dict.fromkeys((".npy", ".npys", ".h5", ".hdf5", ".mat", ".parquet", ".tfrecord"), _SAVE),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), f"Such files can run code. {_SAVE}"),
    **dict.fromkeys((".zip", ".7z", ".rar", ".xz", ".bz2"), _ARCHIVE),
    **dict.fromkeys((".csv", ".tsv", ".txt", ".json"), "Sort the images into one folder per class"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif"), _PICTURE),
    ".keras": "This is a model; give the images it was trained on",
}

logger = logging.getLogger(__name__)


def load(
    data: str,
    *,
    train_size: int = 0,
    test_size: int = 0,
    fit: Fit | None = None,
    needs_test: bool = True,
) -> Dataset:
    """Returns a data set, checked.

    Downloads are logged, and so are warnings of what is in the cache and is no data set, and of
    `auto` falling back to `shapes`.

    Args:
        data: The name of a data set, which is downloaded unless it is cached ("cifar10") or
            generated ("shapes"); "auto", which is cifar10 if it is cached or downloads, else
            shapes; or a path to anything that `read` reads.
        train_size: Number of training images; 0 takes all (of `shapes`, 5,000). A smaller
            number keeps the share of each class and always takes the same images.
        test_size: Number of test images; 0 takes all (of `shapes`, 1,000).
        fit: The size that all images are brought to; by default they stay as they are.
        needs_test: Whether there must be a test image.

    Raises:
        DataError: The data does not exist, does not download, is damaged or unsafe, has fewer
            images than asked for, or is not what a classifier can learn from.
    """
    whole = _auto() if data == "auto" else None
    is_replaced = data == "auto" and whole is None
    if made := GENERATED.get("shapes" if is_replaced else data):
        dataset = made.generate(train_size or made.train_size, test_size or made.test_size)
        if is_replaced:
            source = f"{dataset.source} (auto: cifar10 is not cached and does not download)"
            dataset = dataclasses.replace(dataset, source=source)
    else:
        if whole is None:
            is_official = data in OFFICIAL
            whole = _named(OFFICIAL[data], RETRIES) if is_official else read(_existing(data), fit)
        dataset = whole.subset(train_size, test_size)
    if needs_test and len(dataset.test) == 0:
        received = "none: no class has five images, of which the fifth would be a test image"
        advice = "Add images, or a test folder"
        raise unexpected(f"{dataset.source}: test set", "at least one image", received, advice)
    if fit is not None and dataset.image_shape[:2] != fit.size:
        dataset = dataset.map_images(lambda images: pictures.fit_images(images, fit))
    return check(dataset)


def read(path: Path, fit: Fit | None = None) -> Dataset:
    """Returns the data set at a path; what lies there decides, not its name.

    Raises:
        DataError: Nothing is there, or it is damaged, unsafe, or not what a classifier can learn
            from.
    """
    with parsing(path, _kinds()):
        reader = next((reader for reader in READERS if reader.matches(path)), None)
    if reader is None:
        with parsing(path, _kinds()):
            received, advice = _described(path)
        raise unexpected(path, _kinds(), received, advice)
    return reader.read(path, fit) if reader.takes_fit else reader.read(path)


def _described(path: Path) -> tuple[str, str]:
    """Returns what lies at a path that no reader reads, and what to do with it."""
    if path.is_dir():
        return pictures.describe(path)
    advice = _ADVICE.get(path.suffix.lower(), "Convert it to one of them")
    return f"a file of another kind ({path.suffix or 'without suffix'})", advice


def prepare(config: DataConfig, seed: int, *, needs_test: bool = True) -> Dataset:
    """Returns the data set of a config: loaded, resized, split and equalized as the config says.

    Raises:
        DataError: The data are missing, damaged, or not what a classifier can learn from.
    """
    dataset = load(
        config.data,
        train_size=config.train_size,
        test_size=config.test_size,
        fit=fit_of(config),
        needs_test=needs_test,
    )
    # Of all images: which of them are held out depends on the seed.
    dataset = dataclasses.replace(dataset, loaded=dataset.content)
    dataset = dataset.hold_out(config.validation, seed)
    return equalized(dataset) if config.preprocessing == "equalize" else dataset


def fit_of(config: DataConfig) -> Fit | None:
    """Returns the size that a config brings images to, None where they stay as they are."""
    if not config.image_size:
        return None
    height, width = config.image_size
    return Fit((height, width), config.resize)


def locate(data: str) -> str:
    """Returns the name of a data set as it is, and any other path in full, links followed."""
    if data in ("", "auto") or data in GENERATED or data in OFFICIAL:
        return data
    try:
        return str(Path(data).expanduser().resolve())
    except (OSError, RuntimeError, ValueError):  # reading it says what is wrong with it
        return data


def with_place(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns config fields with text for `data`, which may also be a path or a tuple of arrays.

    Arrays are those of `arrays.save_arrays`.

    Raises:
        DataError: The arrays are not those of a data set.
    """
    data = fields.get("data", "")
    if isinstance(data, str):
        return dict(fields)
    place = data if isinstance(data, Path) else arrays.save_arrays(data)
    return {**fields, "data": str(place)}


def loading(config: DataConfig) -> DataConfig:
    """Returns the fields of a config that decide what is loaded, the others at their defaults."""
    read = {
        name: getattr(config, name) for name in ("train_size", "test_size", "image_size", "resize")
    }
    return DataConfig(data=locate(config.data), **read)


def describe_cache() -> list[dict[str, Any]]:
    """Returns what the cache holds of each official data set, in values that JSON can hold.

    Returns:
        One entry per data set: `name`; `path` of its file or folder, None where it is not cached;
        `bytes` on disk; and `state`, both in words.
    """
    found = []
    for official in OFFICIAL.values():
        entry = {"name": official.name, "path": None, "bytes": 0, "state": "not cached"}
        for path in _cached_paths(official):
            files = [path, *path.rglob("*")]
            if size := sum(file.stat().st_size for file in files if file.is_file()):
                state = f"{size / 1e6:.1f} MB in {path}"
                whole = {file.path: file.size for file in official.files}.get(path.name, size)
                state += f", of {whole / 1e6:.1f} MB: it is incomplete" if size < whole else ""
                entry |= {"path": str(path), "bytes": size, "state": state}
                break
        found.append(entry)
    return found


def _kinds() -> str:
    *first, last = (reader.description for reader in READERS)
    return f"{'; '.join(first)}; or {last}"


def _auto() -> Dataset | None:
    """Returns cifar10 if it is cached or downloads; else warns, and returns None for shapes."""
    try:
        return _named(OFFICIAL["cifar10"], retries=0)
    except DownloadError as error:
        logger.warning(
            f"auto: taking the generated data set shapes, because cifar10 is not in "
            f"{cache_folder()} and does not download ({error.reason})."
        )
        return None


def _existing(data: str) -> Path:
    try:
        path = Path(data).expanduser()
        found = bool(data) and path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, or of a user who does not exist
        found = False
    if not found:
        names = ["auto", *GENERATED, *OFFICIAL]
        near = difflib.get_close_matches(data, names, n=1)
        advice = f"Did you mean {near[0]}?" if near else "Check the path"
        expected = f"one of {', '.join(names)}, or a path to {_kinds()}"
        raise unexpected("data", expected, f"data={data!r}, and no such file", advice)
    return path


def _named(official: Official, retries: int) -> Dataset:
    """Returns an official data set from the cache, downloaded first if none there can be read."""
    cache = cache_folder()
    for path in _cached_paths(official):
        try:
            return _renamed(read(path), official)
        except DataError as error:  # such as an interrupted download
            logger.warning(f"{error} It is passed over.")
    for file in official.files:
        fetch(file, cache, retries=retries)
    return _renamed(read(cache / Path(official.files[0].path).parts[0]), official)


def _renamed(dataset: Dataset, official: Official) -> Dataset:
    names = official.class_names or dataset.class_names
    return check(dataclasses.replace(dataset, name=official.name, class_names=names))


def _cached_paths(official: Official) -> list[Path]:
    """Returns the places in the cache where a data set may be whole."""
    cache, found = cache_folder(), []
    for place in official.places:
        # A folder that is downloaded file by file counts when it is complete.
        parts = [file.path for file in official.files if file.path.startswith(f"{place}/")]
        if all(os.path.exists(cache / part) for part in [place, *parts]):
            found.append(cache / place)
    return found
