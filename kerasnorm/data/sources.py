"""Where data comes from: the known data sets by name, `auto`, or a path."""

import dataclasses
import difflib
import logging
from pathlib import Path
from typing import Any, NamedTuple

from kerasnorm.data.checks import check, parsing
from kerasnorm.data.dataset import Dataset
from kerasnorm.data.download import FILES, DownloadError, fetch
from kerasnorm.data.readers import LAYOUTS, read
from kerasnorm.data.shapes import shapes
from kerasnorm.errors import DataError
from kerasnorm.runtime import cache_folder

SHAPES_TRAIN, SHAPES_TEST = 10_000, 2_000

logger = logging.getLogger(__name__)


class _Known(NamedTuple):
    """A data set that has a name.

    Attributes:
        places: Where it may lie in the cache, looked at in order: unpacked or packed.
        class_names: Its classes, where its files do not name them.
    """

    places: tuple[str, ...]
    class_names: tuple[str, ...] = ()


_KNOWN = {
    "cifar10": _Known(
        (
            "cifar-10-batches-py",
            "cifar-10-batches-bin",
            "cifar-10-python.tar.gz",
            "cifar-10-binary.tar.gz",
        )
    ),
    "cifar100": _Known(("cifar-100-python", "cifar-100-python.tar.gz")),
    "fashion_mnist": _Known(
        ("fashion-mnist",),
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "mnist": _Known(("mnist.npz", "mnist")),
}


def load(data: str, *, train_size: int = 0, test_size: int = 0) -> Dataset:
    """Returns a data set, checked.

    Each download is logged, and so is a warning when auto falls back to shapes.

    Args:
        data: "cifar10", "cifar100", "fashion_mnist" or "mnist", downloaded unless it is cached;
            "shapes", generated; "auto", cifar10 if it is cached or downloads, else shapes; or a
            path to anything that `readers.read` reads.
        train_size: Training images; 0 takes all (shapes: 10,000). Fewer than there are come with
            the same share of each class, always the same ones.
        test_size: Test images; 0 takes all (shapes: 2,000).

    Raises:
        DataError: The data is not there, does not download, is damaged or hostile, has fewer
            images than wanted, or is not what a classifier can learn from.
    """
    if data == "auto":
        return _auto(train_size, test_size)
    if data == "shapes":
        return check(shapes(train_size or SHAPES_TRAIN, test_size or SHAPES_TEST))
    dataset = _named(data) if data in _KNOWN else read(_existing(data))
    return dataset.subset(train_size, test_size)


def _auto(train_size: int, test_size: int) -> Dataset:
    # Only a failing download leads to shapes: damaged data in the cache is an error.
    try:
        _path_of("cifar10")
    except DownloadError as error:
        logger.warning(
            f"auto: taking the generated data set shapes, for cifar10 is not in {cache_folder()} "
            f"and does not download ({error.reason})."
        )
        dataset = load("shapes", train_size=train_size, test_size=test_size)
        source = f"{dataset.source} (auto: cifar10 is not cached and does not download)"
        return dataclasses.replace(dataset, source=source)
    return load("cifar10", train_size=train_size, test_size=test_size)


def _existing(data: str) -> Path:
    with parsing(data, LAYOUTS):
        path = Path(data).expanduser()
        found = bool(data) and path.exists()
    if not found:
        names = ["auto", "shapes", *_KNOWN]
        near = difflib.get_close_matches(data, names, n=1)
        advice = f"Did you mean {near[0]}?" if near else "Check the path."
        raise DataError(
            f"data: expected one of {', '.join(names)}, or a path to {LAYOUTS}. "
            f"Received: data={data!r}, and no such file. {advice}"
        )
    return path


def _named(name: str) -> Dataset:
    dataset = read(_path_of(name))
    names = _KNOWN[name].class_names or dataset.class_names
    return check(dataclasses.replace(dataset, name=name, class_names=names))


def _path_of(name: str) -> Path:
    """Returns where a known data set lies in the cache, downloaded if need be."""
    if path := _cached_path(name):
        return path
    for file in FILES[name]:
        fetch(file, cache_folder())
    path = _cached_path(name)
    assert path is not None
    return path


def _cached_path(name: str) -> Path | None:
    cache = cache_folder()
    for place in _KNOWN[name].places:
        # A folder that is downloaded file by file counts when it is complete.
        parts = [file.path for file in FILES[name] if file.path.startswith(f"{place}/")]
        if all((cache / part).exists() for part in [place, *parts]):
            return cache / place
    return None


def describe_cache() -> list[dict[str, Any]]:
    """Returns what the cache holds of each known data set, in values fit for JSON.

    Returns:
        An entry a data set: `name`; `path` of its file or folder, None where it is not cached;
        `bytes` on disk; and `state`, both in words.
    """
    found = []
    for name in _KNOWN:
        path = _cached_path(name)
        files = [path, *path.rglob("*")] if path else []
        size = sum(file.stat().st_size for file in files if file.is_file())
        state = f"{size / 1e6:.1f} MB in {path}" if path else "not cached"
        found.append(
            {"name": name, "path": str(path) if path else None, "bytes": size, "state": state}
        )
    return found
