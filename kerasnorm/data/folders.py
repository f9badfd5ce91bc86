"""Reads class folders of images: one folder a class, its files the images."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kerasnorm.data.arrays import folder_name
from kerasnorm.data.checks import check, parsing
from kerasnorm.data.dataset import Dataset, Split
from kerasnorm.data.pictures import in_mode, opened
from kerasnorm.errors import DataError

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
_GRAY_MODES = frozenset({"1", "L", "LA", "La"})
# Where there is no test folder, every image whose place in its sorted class is 4, 9, 14, … .
_TEST_EVERY = 5


class _File(NamedTuple):
    """An image that is not decoded yet."""

    path: Path
    label: int
    mode: str
    size: tuple[int, int]


def read_class_folders(folder: Path) -> Dataset:
    """Returns the data set of DIR/train/<class>/* and DIR/test/<class>/*, or of DIR/<class>/*.

    In the second case every fifth image of each class, in the order of the file names, is held as
    the test set. Classes are numbered in the order of their names. Hidden files and files that are
    no PNG, JPEG, BMP, GIF or WebP by name are passed over; of a moving image the first frame is
    read. Images stay gray if all of them are gray; else all become RGB, without transparency.

    Raises:
        DataError: There are no class folders, a class has no image, sizes differ, or an image is
            damaged, deeper than 8 bits or suspiciously large.
    """
    split_by_folder = (folder / "train").is_dir()
    root = folder / "train" if split_by_folder else folder
    names = tuple(entry.name for entry in _entries(root) if entry.is_dir())
    if not names:
        raise DataError(
            f"{root}: expected a folder for each class, with images inside. Received: no folder. "
            "Make them, or give an official data folder or archive, or an .npz file."
        )
    train = _list_images(root, names)
    source = str(folder)
    if split_by_folder:
        _check_test_classes(folder / "test", names)
        test = _list_images(folder / "test", names)
    else:
        test = [image for place, image in _places(train) if place == _TEST_EVERY - 1]
        train = [image for place, image in _places(train) if place != _TEST_EVERY - 1]
        source += " (every fifth image of a class held as the test set)"
    _check_sizes([*train, *test])
    mode = "L" if all(image.mode in _GRAY_MODES for image in [*train, *test]) else "RGB"
    return check(
        Dataset(folder_name(folder), source, names, _decode(train, mode), _decode(test, mode))
    )


def _entries(folder: Path) -> list[Path]:
    """Returns what lies in a folder and is not hidden, in the order of the names."""
    with parsing(folder, "a folder that can be read"):
        found = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return sorted(found, key=lambda entry: entry.name)


def _check_test_classes(folder: Path, names: tuple[str, ...]) -> None:
    unknown = [e.name for e in _entries(folder) if e.is_dir() and e.name not in names]
    if unknown:
        raise DataError(
            f"{folder}: expected the classes of the training folder, {', '.join(names)}. "
            f"Received: {', '.join(unknown)}. Rename or remove them."
        )


def _list_images(root: Path, names: tuple[str, ...]) -> list[_File]:
    """Returns the images of all classes, in the order of class and file names."""
    return [
        _inspect(path, label)
        for label, name in enumerate(names)
        if (root / name).is_dir()
        for path in _entries(root / name)
        if path.suffix.lower() in _SUFFIXES
    ]


def _places(images: list[_File]) -> Iterator[tuple[int, _File]]:
    """Yields each image after its place in its class, modulo `_TEST_EVERY`."""
    counts: dict[int, int] = {}
    for image in images:
        place = counts.get(image.label, 0)
        counts[image.label] = place + 1
        yield place % _TEST_EVERY, image


def _inspect(path: Path, label: int) -> _File:
    with opened(path) as image:
        return _File(path, label, image.mode, image.size)


def _check_sizes(images: list[_File]) -> None:
    for image in images:
        if image.size != images[0].size:
            first, other = ("x".join(map(str, i.size)) for i in (images[0], image))
            raise DataError(
                f"{image.path}: expected all images of one size. Received: {other} pixels, and "
                f"{first} in {images[0].path}. Resize or crop them."
            )


def _decode(images: list[_File], mode: str) -> Split:
    """Returns the images as pixels of shape (N, H, W, 1) or (N, H, W, 3)."""
    width, height = images[0].size if images else (1, 1)
    pixels = np.empty((len(images), height, width, len(mode)), dtype=np.uint8)
    for index, file in enumerate(images):
        with opened(file.path) as image:
            pixels[index] = np.asarray(in_mode(image, mode)).reshape(height, width, len(mode))
    return Split(pixels, np.array([file.label for file in images], dtype=np.int32))
