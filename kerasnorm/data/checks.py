"""What every source must satisfy before a classifier may learn from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.dataset import Dataset, Split
from kerasnorm.errors import DataError

Where = str | Path

_CHUNK = 1000


@contextmanager
def parsing(where: Where, expected: str) -> Iterator[None]:
    """Turns whatever a parser raises on a damaged file into a DataError that names the file.

    Args:
        where: The file.
        expected: What it should have been.

    Raises:
        DataError: The block raised anything.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"{where}: expected {expected}. Received: no such file. Restore it, or get the data "
            "set anew."
        ) from error
    except Exception as error:  # damaged bytes can make a parser raise anything at all
        detail = f"{type(error).__name__}: {error}".removesuffix(".")
        raise DataError(
            f"{where}: expected {expected}. Received: a file that is damaged, truncated or of "
            f"another kind ({detail}). Restore it, or get it anew."
        ) from error


def to_pixels(values: NDArray[np.generic], where: Where) -> NDArray[np.uint8]:
    """Returns images as uint8 of shape (N, H, W, C).

    Args:
        values: Numbers from 0 to 255, whole or floating (rounded to the nearest), of shape
            (N, H, W, C), or (N, H, W) for gray images.
        where: The array, for messages.

    Raises:
        DataError: The shape or type is another, or a value is not finite or out of range; floats
            that all lie in 0 to 1 are taken for scaled pixels and refused too.
    """
    shape = values.shape
    if len(shape) == 3:
        values = values[..., None]
    if values.ndim != 4 or 0 in values.shape:
        raise DataError(
            f"{where}: expected images of shape (N, H, W, C) or (N, H, W), none of them 0. "
            f"Received: shape {shape}. Reshape the array."
        )
    if values.shape[1] in (1, 3) and values.shape[3] > 4:
        raise DataError(
            f"{where}: expected channels last, (N, H, W, C). Received: shape {shape}, which looks "
            "like channels first. Save x.transpose(0, 2, 3, 1)."
        )
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values, dtype=np.uint8)
    if values.dtype.kind not in "iuf":
        raise DataError(
            f"{where}: expected pixels as numbers from 0 to 255. Received: type {values.dtype}. "
            "Save them as uint8."
        )
    return _rounded(values, where)


def _rounded(values: NDArray[np.generic], where: Where) -> NDArray[np.uint8]:
    low, high = float(np.min(values)), float(np.max(values))  # NaN if any value is
    if not (low >= 0 and high <= 255):
        raise DataError(
            f"{where}: expected finite pixels from 0 to 255. Received: values from {low:g} to "
            f"{high:g}. Undo the normalization before saving."
        )
    if values.dtype.kind == "f" and high <= 1:
        raise DataError(
            f"{where}: expected pixels from 0 to 255. Received: floats from {low:g} to {high:g}. "
            "Multiply them by 255."
        )
    pixels = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        pixels[chunk] = np.rint(values[chunk])
    return pixels


def to_labels(values: NDArray[np.generic], where: Where) -> NDArray[np.int32]:
    """Returns labels as int32 of shape (N,).

    Args:
        values: Class indices from 0 on, whole numbers of shape (N,) or (N, 1).
        where: The array, for messages.

    Raises:
        DataError: The shape or type is another, or a label is negative or beyond int32.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise DataError(
            f"{where}: expected labels as whole numbers of shape (N,) or (N, 1). Received: shape "
            f"{values.shape}, type {values.dtype}. One-hot labels: save y.argmax(axis=1)."
        )
    if len(values) and not (int(np.min(values)) >= 0 and int(np.max(values)) < 2**31):
        raise DataError(
            f"{where}: expected labels from 0 on. Received: labels from {np.min(values)} to "
            f"{np.max(values)}. Number the classes from 0."
        )
    return values.astype(np.int32)


def numbered_classes(labels: NDArray[np.int32]) -> tuple[str, ...]:
    """Returns the names "0", "1", … up to the highest label, for data that carries no names.

    Every class needs a training image, so that there are never more names than labels plus one,
    however high a wrong label is: `check` then refuses the set.
    """
    highest = int(labels.max(initial=0))
    return tuple(str(number) for number in range(min(highest, len(labels)) + 1))


def check(dataset: Dataset) -> Dataset:
    """Returns the data set, if a classifier can learn from it.

    Raises:
        DataError: A split is empty, images and labels differ in number, the splits' images differ
            in shape, a label has no class, or a class has no training image.
    """
    for name, split in dataset.splits.items():
        _check_split(f"{dataset.source}: {name} set", split, dataset)
    counts = np.array(dataset.class_counts["train"])
    if empty := [dataset.class_names[label] for label in np.flatnonzero(counts == 0)]:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise DataError(
            f"{dataset.source}: expected at least one training image of every class. Received: "
            f"empty class {shown}. Remove the class, or number the classes without gaps."
        )
    return dataset


def _check_split(where: str, split: Split, dataset: Dataset) -> None:
    shape, classes = split.images.shape, len(dataset.class_names)
    if split.images.dtype != np.uint8 or len(shape) != 4 or 0 in shape[1:]:
        raise DataError(
            f"{where}: expected uint8 images of shape (N, H, W, C), of at least 1x1 pixel. "
            f"Received: {split.images.dtype}, shape {shape}."
        )
    if len(split) == 0:
        raise DataError(f"{where}: expected at least one image. Received: none. Add some.")
    if len(split.images) != len(split):
        raise DataError(
            f"{where}: expected one label an image. Received: {len(split.images)} images and "
            f"{len(split)} labels. Save both anew."
        )
    if shape[1:] != dataset.image_shape:
        raise DataError(
            f"{where}: expected images of the training set's shape {dataset.image_shape}. "
            f"Received: {shape[1:]}. Resize or convert them."
        )
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{where}: expected labels from 0 to {classes - 1}. Received: labels from {low} to "
            f"{high}. Number the classes from 0, without gaps."
        )
