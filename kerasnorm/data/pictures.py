"""Reads image files: class folders of them, and single pictures for a model."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kerasnorm.data.arrays import folder_name
from kerasnorm.data.dataset import Dataset, Reader, Split, check, parsing, unexpected
from kerasnorm.errors import ConfigError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by number of channels
# Pillow opens other formats too, some by starting programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
_GRAY_MODES = frozenset({"1", "L", "LA", "La"})
# Where there is no test folder, the images at place 4, 9, 14, … of their sorted class are the
# test set.
_TEST_EVERY = 5


class _File(NamedTuple):
    """An image that is not decoded yet."""

    path: Path
    label: int
    mode: str
    size: tuple[int, int]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Opens an image with 8 bits per channel, with Pillow's warnings of bombs as errors."""
    expected = "an image, PNG, JPEG, BMP, GIF or WebP, of a usual size"
    with parsing(path, expected), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=_FORMATS) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;"):
                received = f"mode {image.mode}"
                raise unexpected(path, "8 bits per channel", received, "Convert it to 8 bits")
            yield image


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    # A palette with transparency can only be converted to RGB by way of RGBA.
    plain = image.convert("RGBA") if image.mode == "P" else image
    return plain.convert(mode)


def read_picture(path: Path, image_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Returns an image file as raw pixels (H, W, C), resized (bilinear) if it has another size.

    Args:
        path: A PNG, JPEG, BMP, GIF or WebP file.
        image_shape: Shape (H, W, C) of the result; C is 1 (gray), 3 (RGB) or 4 (RGBA).

    Raises:
        DataError: The file is missing, damaged, too large, deeper than 8 bits or of another format.
        ConfigError: No picture has that many channels.
    """
    height, width, channels = image_shape
    if channels not in _MODES:
        raise ConfigError(
            f"Pictures have 1, 3 or 4 channels. Received: a model of {channels} channels"
        )
    with _opened(path) as image:
        pixels = _in_mode(image, _MODES[channels])
        if pixels.size != (width, height):
            pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(pixels, np.uint8).reshape(image_shape)


def read_class_folders(folder: Path) -> Dataset:
    """Returns the data set of DIR/train/<class>/* and DIR/test/<class>/*, or of DIR/<class>/*.

    In the second case every fifth image of each class, in the order of the file names, goes to the
    test set. Classes are numbered in the order of their names. Hidden files, and files whose name
    does not end like a PNG, JPEG, BMP, GIF or WebP file, are ignored; of an animation the first
    frame is read. Images stay gray if all of them are gray; else all become RGB, without
    transparency.

    Raises:
        DataError: There are no class folders, a class has no image, sizes differ, or an image is
            damaged, deeper than 8 bits or suspiciously large.
    """
    split_by_folder = (folder / "train").is_dir()
    root = folder / "train" if split_by_folder else folder
    names = tuple(entry.name for entry in _entries(root) if entry.is_dir())
    if not names:
        advice = "Make them, or give an official data folder or archive, or an .npz file"
        raise unexpected(root, "a folder for each class, with images inside", "no folder", advice)
    train = _list_images(root, names)
    source = str(folder)
    if split_by_folder:
        _check_test_classes(folder / "test", names)
        test = _list_images(folder / "test", names)
    else:
        train, test = _every_fifth(train)
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
        expected = f"the classes of the training folder, {', '.join(names)}"
        raise unexpected(folder, expected, ", ".join(unknown), "Rename or remove them")


def _list_images(root: Path, names: tuple[str, ...]) -> list[_File]:
    """Returns the images of all classes, in the order of class and file names."""
    return [
        _inspect(path, label)
        for label, name in enumerate(names)
        if (root / name).is_dir()
        for path in _entries(root / name)
        if path.suffix.lower() in _SUFFIXES
    ]


def _every_fifth(images: list[_File]) -> tuple[list[_File], list[_File]]:
    """Splits images into training and test images by their place in their class."""
    splits: tuple[list[_File], list[_File]] = ([], [])
    places: Counter[int] = Counter()
    for image in images:
        splits[places[image.label] % _TEST_EVERY == _TEST_EVERY - 1].append(image)
        places[image.label] += 1
    return splits


def _inspect(path: Path, label: int) -> _File:
    with _opened(path) as image:
        return _File(path, label, image.mode, image.size)


def _check_sizes(images: list[_File]) -> None:
    for image in images:
        if image.size != images[0].size:
            first, other = ("x".join(map(str, i.size)) for i in (images[0], image))
            received = f"{other} pixels, and {first} in {images[0].path}"
            raise unexpected(image.path, "all images of one size", received, "Resize or crop them")


def _decode(images: list[_File], mode: str) -> Split:
    """Returns the images as pixels of shape (N, H, W, 1) or (N, H, W, 3)."""
    width, height = images[0].size if images else (1, 1)
    pixels = np.empty((len(images), height, width, len(mode)), dtype=np.uint8)
    for index, file in enumerate(images):
        with _opened(file.path) as image:
            pixels[index] = np.asarray(_in_mode(image, mode)).reshape(height, width, len(mode))
    return Split(pixels, np.array([file.label for file in images], dtype=np.int32))


SOURCES = (Reader("a folder of class folders of images", Path.is_dir, read_class_folders),)
