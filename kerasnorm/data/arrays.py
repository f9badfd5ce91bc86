"""Reads arrays: `.npz` files, and the IDX files of MNIST and data sets like it."""

import dataclasses
import gzip
import hashlib
import io
import logging
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import DATA_FORMS
from kerasnorm.data.dataset import (
    LARGEST_ARRAY,
    Dataset,
    Reader,
    Split,
    check,
    check_scale,
    check_size,
    folder_name,
    numbered_classes,
    parsing,
    to_labels,
    to_pixels,
    unexpected,
)
from kerasnorm.data.download import Official, RemoteFile
from kerasnorm.errors import described, listed
from kerasnorm.files import write_bytes
from kerasnorm.runtime import cache_folder

logger = logging.getLogger(__name__)

_HALVES = ("train", "test", "val")

# Official names of the files of images and labels, of the training and the test set.
IDX_FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


def _is_npz(path: Path) -> bool:
    if not path.is_file() or path.suffix == ".npz" or not zipfile.is_zipfile(path):
        return path.is_file() and path.suffix == ".npz"
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def read_npz(path: Path) -> Dataset:
    """Returns the data set of an `.npz` file that holds x_train, y_train, x_test and y_test.

    x_val and y_val are the validation split, or the test set where there is no x_test. Images have
    the shape (N, H, W, C) or (N, H, W), labels (N,) or (N, 1). Classes are named by their numbers.
    Pickled objects inside the file are refused.

    Raises:
        DataError: The file is damaged, an array is missing, or not what a classifier can learn
            from.
    """
    expected = "an .npz file with the arrays x_train, y_train, x_test, y_test"
    with parsing(path, expected):
        with zipfile.ZipFile(path) as archive:
            sizes = {
                item.filename.removesuffix(".npy"): item.file_size for item in archive.filelist
            }
        found = [half for half in _HALVES if {f"x_{half}", f"y_{half}"} & {*sizes}]
        if found == ["train", "val"]:
            logger.info(f"{path}: x_val and y_val are the test set, since there is no x_test.")
        else:
            found = list(dict.fromkeys(["train", "test", *found]))
        keys = [f"{kind}_{half}" for half in found for kind in "xy"]
        if missing := [key for key in keys if key not in sizes]:
            received = f"the arrays {listed(sizes)}"
            raise unexpected(path, expected, received, f"Save {', '.join(missing)} too")
        if others := [name for name in sizes if name not in keys]:
            logger.warning(f"{path}: passed over other arrays: {listed(others)}.")
        for key in keys:
            check_size(f"{path}: {key}", sizes[key], LARGEST_ARRAY)
        with np.load(path, allow_pickle=False) as arrays:
            splits = [_npz_split(arrays, half, path) for half in found]
    return dataclasses.replace(_numbered(path, *splits), has_own_test="test" in found)


def save_arrays(arrays: Sequence[Any]) -> Path:
    """Writes arrays into the cache, once, so that a run on them can be resumed; returns the file.

    They are x_train, y_train, x_test, y_test and, if there is a validation split, x_val, y_val.

    Raises:
        DataError: There are fewer or more of them, or one is no array of numbers.
    """
    is_list = isinstance(arrays, Sequence) and not isinstance(arrays, bytes)
    if not is_list or len(arrays) not in (4, 6):
        expected = "4 or 6 arrays: x_train, y_train, x_test, y_test (x_val, y_val)"
        received = f"{len(arrays)} items" if is_list else described(arrays)
        advice = "Pass a tuple of them in this order, or the name or path of data"
        raise unexpected("data", expected, received, advice)
    names = [f"{kind}_{half}" for half in _HALVES for kind in "xy"][: len(arrays)]
    checksum = hashlib.sha256()
    found: dict[str, Any] = {}
    for name, given in zip(names, arrays, strict=True):
        with parsing(f"data: {name}", "an array of numbers"):
            array = found[name] = np.ascontiguousarray(given)
        if array.dtype.hasobject:
            received, advice = "objects", "Stack images of one shape: np.stack(list(x))"
            raise unexpected(f"data: {name}", "an array of numbers", received, advice)
        checksum.update(f"{name} {array.dtype.str} {array.shape}".encode())
        checksum.update(array.tobytes())
    path = cache_folder() / "arrays" / f"arrays-{checksum.hexdigest()[:12]}.npz"
    if not path.is_file():
        content = io.BytesIO()
        np.savez(content, **found)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content.getvalue())
    return path


def _npz_split(arrays: "np.lib.npyio.NpzFile", half: str, path: Path) -> Split:
    x, y = f"x_{half}", f"y_{half}"
    images, labels = (_array(arrays, name, f"{path}: {name}") for name in (x, y))
    return Split(to_pixels(images, f"{path}: {x}"), to_labels(labels, f"{path}: {y}"))


def _array(arrays: "np.lib.npyio.NpzFile", name: str, where: str) -> NDArray[np.generic]:
    with parsing(where, "an array of numbers"):
        try:
            return np.asarray(arrays[name])
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise
            received = "objects of Python, which are not opened: they can run code"
            advice = "Images: save np.stack(list(x)), all of one shape. Labels: save whole numbers"
            raise unexpected(where, "an array of numbers", received, advice) from None


def _numbered(path: Path, train: Split, test: Split, validation: Split | None = None) -> Dataset:
    names = numbered_classes(train.labels)
    dataset = check(Dataset(folder_name(path), str(path), names, train, test, validation))
    for split in dataset.splits:  # each is an array of its own, which may have a scale of its own
        check_scale(dataset, split)
    return dataset


def is_idx_folder(folder: Path) -> bool:
    """Returns whether a folder has at least one of the IDX files, zipped or not."""
    return any(_idx_path(folder, name).is_file() for pair in IDX_FILES for name in pair)


def read_idx_folder(folder: Path) -> Dataset:
    """Returns the data set of the four IDX files of MNIST, Fashion-MNIST and data sets like them.

    Raises:
        DataError: A file is missing, damaged, or too large.
    """
    train, test = (_idx_split(folder, images, labels) for images, labels in IDX_FILES)
    return _numbered(folder, train, test)


def _idx_path(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def _idx_split(folder: Path, images: str, labels: str) -> Split:
    x, y = _idx_path(folder, images), _idx_path(folder, labels)
    return Split(to_pixels(read_idx(x, 3), x), to_labels(read_idx(y, 1), y))


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Returns the bytes of an IDX file, as an array of its shape.

    The format (http://yann.lecun.com/exdb/mnist): two zero bytes, 8 for unsigned bytes, the number
    of dimensions, each dimension as a big-endian 32-bit number, the data. It may be gzipped. Images
    have three dimensions (N, H, W), labels one.

    Raises:
        DataError: The file is missing, damaged, of another kind or too large.
    """
    expected = f"an IDX file of bytes in {dimensions} dimension{'s' if dimensions > 1 else ''}"
    with parsing(path, expected), path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: IO[bytes] = gzip.GzipFile(fileobj=raw) if zipped else raw  # type: ignore[assignment]
        magic = file.read(4)
        if magic != bytes((0, 0, 8, dimensions)):
            raise ValueError(f"it starts with {magic.hex(' ') or 'nothing'}")
        shape = np.frombuffer(file.read(4 * dimensions), ">u4", dimensions).tolist()
        size = math.prod(shape)
        check_size(path, size, LARGEST_ARRAY)
        content = file.read(size + 1)
        if len(content) != size:
            more = "more" if len(content) > size else f"{len(content)} bytes"
            raise ValueError(f"shape {shape} needs {size} bytes, it has {more}")
        return np.frombuffer(content, np.uint8).reshape(shape)


_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_KERAS = "https://storage.googleapis.com/tensorflow/tf-keras-datasets"
_ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"


def _fashion(name: str, md5: str, size: int) -> RemoteFile:
    urls = (f"{_KERAS}/{name}", f"{_ZALANDO}/{name}")
    return RemoteFile(f"fashion-mnist/{name}", urls, f"md5:{md5}", size)


# The checksum of MNIST is that of `keras.datasets`; those of Fashion-MNIST are from the README of
# https://github.com/zalandoresearch/fashion-mnist.
SOURCES = (
    Reader(DATA_FORMS["npz"], _is_npz, read_npz),
    Reader(DATA_FORMS["idx"], is_idx_folder, read_idx_folder),
    Official(
        name="fashion_mnist",
        files=(
            _fashion("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
            _fashion("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe", 29_515),
            _fashion("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
            _fashion("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
        ),
        places=("fashion-mnist",),
        class_names=_FASHION_CLASSES,
    ),
    Official(
        name="mnist",
        files=(
            RemoteFile(
                "mnist.npz",
                (f"{_KERAS}/mnist.npz",),
                "sha256:731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
                11_490_434,
            ),
        ),
        places=("mnist.npz", "mnist"),
    ),
)
