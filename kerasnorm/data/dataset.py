"""What every source returns and satisfies: a data set of images and labels, and its checks."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.content import PARTS, Content, checksum, digests
from kerasnorm.data.stored import Images, changed, chunks, concatenated, select
from kerasnorm.errors import DataError, listed, shortened
from kerasnorm.files import encoded

Where = str | Path  # the file or array that an error message names

LARGEST_ARRAY = 4 * 2**30  # bytes of one array of a data set, unpacked

SCALED = 10  # largest value up to which pixels that are fractions look scaled

_CHUNK = 1000
_ONE_PER_CLASS = "at least one training image of every class"
_LONGEST = 200  # letters of a message's part


def unexpected(where: Where, expected: str, received: str, advice: str) -> DataError:
    """Returns the error for data that is not what was expected, in one sentence each."""
    where, received = (shortened(str(text), _LONGEST) for text in (where, received))
    return DataError(f"{where}: expected {expected}. Received: {received}. {advice}.")


class Fit(NamedTuple):
    """How images are brought to one size."""

    size: tuple[int, int]  # height and width in pixels
    resize: str  # one of the data config's choices of resize


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
        images: Raw pixels, uint8, shape (N, H, W, C), in memory or stored in a file.
        labels: Class indices, int32, shape (N,).
        files: Path of each image within the folder, shape (N,); None where images are not files.
    """

    images: Images
    labels: NDArray[np.int32]
    files: NDArray[np.object_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: slice | NDArray[np.int64]) -> "Split":
        """Returns the images and labels at `indices`, in their order; stored ones stay unread."""
        files = None if self.files is None else self.files[indices]
        return Split(select(self.images, indices), self.labels[indices], files)

    def sample(self, count: int, seed: int = 0) -> "Split":
        """Returns `count` images, the same share of each class; all where there are no more."""
        if count >= len(self):
            return self
        return self.take(stratified_sample(self.labels, count, seed))


def joined(splits: Iterable[Split]) -> Split:
    """Returns the images and labels of all splits, in their order."""
    parts = list(splits)
    images = concatenated([part.images for part in parts])
    known = [part.files for part in parts if part.files is not None]
    files = np.concatenate(known) if len(known) == len(parts) else None
    return Split(images, np.concatenate([part.labels for part in parts]), files)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification data set, its labels in memory, its images there or in a file.

    Attributes:
        name: Short name, usable as the name of a folder: "cifar10", "shapes", or the stem of the
            folder or file.
        source: Where it came from, for people: a path, an address, or how it was made.
        class_names: One name per class, in label order.
        train: The training images.
        test: The test images, used only to report.
        validation: Images for choices, held out of the training set or the data's own, or None.
        has_own_test: Whether the test set came as one; False where it was set aside here.
        loaded: Content before images were held out or equalized; None where it is not known.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    validation: Split | None = None
    has_own_test: bool = True
    loaded: Content | None = None

    @property
    def content(self) -> Content:
        """What the data held when they were loaded, by which a run knows its data."""
        return self.loaded or self.read_content()

    def read_content(self, known: Mapping[str, str] | None = None) -> Content:
        """Returns what the data hold; the checksums take a second for 500 MB.

        `known` are those that need no reading, by the keys of `Content.sha256`.
        """
        known = known or {}
        arrays = {
            f"{name} {part}": getattr(split, part)
            for name, split in self.splits.items()
            for part in PARTS
        }
        checksums = {name: known.get(name) or checksum(array) for name, array in arrays.items()}
        return Content(self.class_names, self.image_shape, self.class_counts, checksums)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of one image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name: "train", "validation" where images are held out, and "test"."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}

    @cached_property
    def leaked(self) -> dict[str, int] | None:
        """How many images of each other split have the same pixels as a training image.

        Splits without any are left out. None where images are stored in a file, because all would
        have to be read.
        """
        images = {name: split.images for name, split in self.splits.items()}
        in_memory = {name: found for name, found in images.items() if isinstance(found, np.ndarray)}
        if len(in_memory) < len(images):
            return None
        known = set(digests(in_memory.pop("train")))
        counts = {n: sum(one in known for one in digests(x)) for n, x in in_memory.items()}
        return {name: count for name, count in counts.items() if count}

    def map_images(self, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> "Dataset":
        """Returns the data set with the images of every split changed.

        `change` acts on each image alone, on stored ones when they are read, and keeps their shape.
        """
        return self._with_images(lambda images: changed(images, change))

    def without_images(self) -> "Dataset":
        """Returns the data set with its labels and what it held, and no image in memory."""
        emptied = self._with_images(lambda images: np.empty((0, *images.shape[1:]), np.uint8))
        return dataclasses.replace(emptied, loaded=self.content)

    def _with_images(self, change: Callable[[Images], Images]) -> "Dataset":
        splits: dict[str, Any] = {
            name: dataclasses.replace(split, images=change(split.images))
            for name, split in self.splits.items()
        }
        return dataclasses.replace(self, **splits)

    @property
    def class_counts(self) -> dict[str, tuple[int, ...]]:
        """Number of images per class, in label order, of every split."""
        classes = len(self.class_names)
        return {
            name: tuple(np.bincount(split.labels, minlength=classes).tolist())
            for name, split in self.splits.items()
        }

    def subset(self, train_size: int, test_size: int) -> "Dataset":
        """Returns the data set with fewer images, and the same share of each class.

        A size of 0 keeps all.

        Raises:
            DataError: There are fewer images, or a class would have no training image.
        """
        train = self._fewer(self.train, "train_size", train_size)
        test = self._fewer(self.test, "test_size", test_size)
        self._refuse_empty(train.labels, f"train_size={train_size}", "Ask for more")
        is_whole = train is self.train and test is self.test
        loaded = self.loaded if is_whole else None
        return dataclasses.replace(self, train=train, test=test, loaded=loaded)

    def hold_out(self, count: int, seed: int) -> "Dataset":
        """Returns the data set with `count` training images moved to `validation`.

        The split is stratified: each class gives the same share, rounded to whole images. The order
        of the images that stay is kept. With a count of 0 the data set is returned as it is.

        Raises:
            DataError: A class would be left without a training image, or the data have a
                validation split of their own.
        """
        if count == 0:
            return self
        if self.validation is not None:
            expected = f"0, because {self.source} has a validation split of its own"
            raise unexpected("validation", expected, f"validation={count}", "Leave it out")
        total = len(self.train)
        if count >= total:
            expected = f"fewer images than the {total} of the training set"
            raise unexpected("validation", expected, f"validation={count}", "Hold out fewer")
        held = stratified_sample(self.train.labels, count, seed)
        kept = np.setdiff1d(np.arange(total), held, assume_unique=True)
        self._refuse_empty(self.train.labels[kept], f"validation={count}", "Hold out fewer")
        return dataclasses.replace(
            self, train=self.train.take(kept), validation=self.train.take(held)
        )

    def _fewer(self, split: Split, option: str, count: int) -> Split:
        if count > len(split):
            expected = f"at most the {len(split)} images of {self.source}"
            raise unexpected(option, expected, f"{option}={count}", "Ask for fewer, or 0 for all")
        return split.sample(count or len(split))

    def _refuse_empty(self, labels: NDArray[np.int32], cause: str, advice: str) -> None:
        counts = np.bincount(labels, minlength=len(self.class_names))
        if missing := [self.class_names[label] for label in np.flatnonzero(counts == 0)]:
            received = f"{cause}, which leaves none of {listed(missing)}"
            raise unexpected(self.source, _ONE_PER_CLASS, received, advice)


@dataclass(frozen=True)
class Reader:
    """A kind of file or folder that `--data PATH` reads.

    Attributes:
        description: What it is, with its article, for messages: "an .npz file".
        matches: Returns whether a path holds any file of this kind, judged by what lies there, so
            that `read`, and no other reader, says which of the other files are missing.
        read: Returns the data set at such a path, checked by `check`. It reads untrusted files:
            sizes pass `check_size` first, and `np.load` gets `allow_pickle=False`.
        takes_fit: Whether `read` takes a `Fit` (or None) too, because images may differ in size.
    """

    description: str
    matches: Callable[[Path], bool]
    read: Callable[..., Dataset]
    takes_fit: bool = False


@dataclass(frozen=True)
class Generated:
    """A data set that `--data NAME` computes."""

    name: str
    # Returns the data set, given the numbers of training and test images.
    generate: Callable[[int, int], Dataset]
    train_size: int  # number of training images where none is asked for
    test_size: int  # number of test images where none is asked for


def stratified_sample(labels: NDArray[np.int32], count: int, seed: int) -> NDArray[np.int64]:
    """Returns `count` sorted indices that hold each class in the same share as `labels` does.

    Shares are rounded by largest remainder (Hamilton's method), so that they sum to `count`. Of
    fewer images than classes, the seed decides between classes of the same size.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 0x57A7]))
    classes, sizes = np.unique(labels, return_counts=True)
    # Whole numbers: a rounded quotient could give a class more images than it has.
    quotas, remainders = np.divmod(sizes.astype(np.int64) * count, len(labels))
    # Of fewer images than classes, equal remainders would leave out the last classes, which in
    # ordered data differ from the first: all animals of ImageNet come before all else.
    ties = np.arange(len(classes))
    if count < len(classes):
        ties = np.random.Generator(np.random.PCG64([seed, 0x71E5])).permutation(len(classes))
    extra = np.lexsort((ties, -remainders))[: count - quotas.sum()]
    quotas[extra] += 1
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def channels_last(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns images of shape (N, C, H, W) as a new array of shape (N, H, W, C)."""
    # Plane by plane is several times as fast as copying the transposed view.
    return np.stack(list(np.moveaxis(planes, 1, 0)), axis=-1)


@contextmanager
def parsing(where: Where, expected: str) -> Iterator[None]:
    """Turns whatever a parser raises on a damaged file into a DataError that names the file.

    `expected` says what it should have been, with its article.

    Raises:
        DataError: The block raised an exception.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        advice = "Restore it, or download the data set again"
        raise unexpected(where, expected, "no such file", advice) from error
    except PermissionError as error:
        received = "no permission to read it"
        raise unexpected(error.filename or where, expected, received, "Allow it") from error
    except Exception as error:  # damaged bytes can make a parser raise anything
        detail = f"{type(error).__name__}: {error}".removesuffix(".")
        received = f"a file that is damaged, truncated or of another kind ({detail})"
        advice = "Restore it, or download it again"
        raise unexpected(where, expected, received, advice) from error


def folder_name(path: Path) -> str:
    """Returns the stem of a path, without characters that a folder's name should not have."""
    return re.sub(r"[^\w.-]+", "-", path.resolve().stem).strip("-.") or "data"


def check_size(where: Where, size: int, limit: int) -> None:
    """Raises a DataError for more than `limit` bytes, such as `LARGEST_ARRAY`, before reading."""
    if size > limit:
        expected, received = f"at most {limit >> 20} MiB, unpacked", f"{size >> 20} MiB or more"
        advice = "It was not read; use the official file, or save pixels as uint8"
        raise unexpected(where, expected, received, advice)


def to_pixels(values: NDArray[np.generic], where: Where) -> NDArray[np.uint8]:
    """Returns images as uint8 of shape (N, H, W, C).

    Args:
        values: Numbers from 0 to 255, whole or floating (rounded to the nearest), of shape
            (N, H, W, C), or (N, H, W) for gray images.
        where: The array, for messages.

    Raises:
        DataError: The shape or type is another, or a value is not finite or out of range. Floats
            up to 1, and fractions up to `SCALED`, are refused too: they look like scaled pixels, of
            which rounding would leave a few gray levels.
    """
    shape = values.shape
    if len(shape) == 3:
        values = values[..., None]
    if values.ndim != 4 or 0 in values.shape:
        expected = "images of shape (N, H, W, C) or (N, H, W), none of them 0"
        raise unexpected(where, expected, f"shape {shape}", "Reshape the array")
    if values.shape[3] > 4 and (order := _misplaced_channels(values.shape)):
        received = f"shape {shape}, which looks like {order[0]}"
        raise unexpected(where, "channels last, (N, H, W, C)", received, order[1])
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values, dtype=np.uint8)
    if values.dtype.kind not in "iuf":
        expected = "pixels as numbers from 0 to 255"
        raise unexpected(where, expected, f"type {values.dtype}", "Save them as uint8")
    low, high = float(np.min(values)), float(np.max(values))  # NaN if any value is
    if not (low >= 0 and high <= 255):
        received = f"values from {low:g} to {high:g}"
        advice = "Undo the normalization before saving"
        raise unexpected(where, "finite pixels from 0 to 255", received, advice)
    if values.dtype.kind == "f" and high <= SCALED and (high <= 1 or _has_fractions(values)):
        received = f"floats from {low:g} to {high:g}, which look scaled"
        advice = "Multiply pixels from 0 to 1 by 255, or undo another scaling, before saving"
        raise unexpected(where, "pixels from 0 to 255", received, advice)
    pixels = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        pixels[chunk] = np.rint(values[chunk])
    return pixels


def _has_fractions(values: NDArray[Any]) -> bool:
    """Returns whether any of some numbers is not whole."""
    parts = (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))
    return any(bool((part != np.rint(part)).any()) for part in parts)


def _misplaced_channels(shape: tuple[int, ...]) -> tuple[str, str] | None:
    """Returns what an array's shape looks like and the advice, None where C may be the last."""
    if shape[1] in (1, 3, 4):
        return "channels first, (N, C, H, W)", "Save x.transpose(0, 2, 3, 1)"
    if shape[2] in (1, 3, 4) and shape[0] == shape[1]:
        return "images last, (H, W, C, N)", "Save x.transpose(3, 0, 1, 2)"
    return None


def to_labels(values: NDArray[np.generic], where: Where) -> NDArray[np.int32]:
    """Returns labels as int32 of shape (N,).

    Args:
        values: Class indices from 0 on, whole numbers of shape (N,) or (N, 1).
        where: The array, for messages.

    Raises:
        DataError: The shape or type is another, or a label is negative or does not fit in int32.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "iu":
        expected = "labels as whole numbers of shape (N,) or (N, 1)"
        received = f"shape {values.shape}, type {values.dtype}"
        raise unexpected(where, expected, received, _label_advice(values))
    if len(values) and not (int(np.min(values)) >= 0 and int(np.max(values)) < 2**31):
        received = f"labels from {np.min(values)} to {np.max(values)}"
        raise unexpected(where, "labels from 0 on", received, "Number the classes from 0")
    return values.astype(np.int32)


def _label_advice(values: NDArray[np.generic]) -> str:
    if values.ndim == 2 and values.dtype.kind in "iufb":
        return "One-hot labels: save y.argmax(axis=1)"
    if values.ndim != 1:
        return "Save one class number per image"
    if values.dtype.kind == "b" or (values.dtype.kind == "f" and np.all(values == np.rint(values))):
        return 'Save y.astype("int64")'
    if values.dtype.kind == "f":
        return "Class numbers are whole; measured values cannot be learned as classes"
    return "Save np.unique(y, return_inverse=True)[1], which numbers the classes in their order"


def numbered_classes(labels: NDArray[np.int32]) -> tuple[str, ...]:
    """Returns the names "0", "1", … up to the highest label, for data without class names.

    Every class needs a training image, so at most one more name than there are labels is made,
    however high a wrong label is; `check` then refuses the data set.
    """
    highest = int(labels.max(initial=0))
    return tuple(str(number) for number in range(min(highest, len(labels)) + 1))


def check(dataset: Dataset) -> Dataset:
    """Returns the data set, its names as valid text, if a classifier can learn from it.

    Only the test set may be empty; `kerasnorm.data.load` refuses that unless it is not needed.

    Raises:
        DataError: Another split is empty, images and labels differ in number, the splits' images
            differ in shape, no training pixel is above 1, a label has no class, a class has no
            training image, or a class's name is not UTF-8: no model file could hold it.
    """
    dataset = dataclasses.replace(
        dataset,
        source=encoded(dataset.source).decode(errors="replace"),
        class_names=tuple(_text(name, dataset.source) for name in dataset.class_names),
    )
    for name, split in dataset.splits.items():
        _check_split(f"{dataset.source}: {name} set", split, dataset)
    counts = np.array(dataset.class_counts["train"])
    if empty := [dataset.class_names[label] for label in np.flatnonzero(counts == 0)]:
        advice = "Remove the class, or number the classes from 0 without gaps"
        raise unexpected(dataset.source, _ONE_PER_CLASS, f"empty class {listed(empty)}", advice)
    check_scale(dataset, "train")
    return dataset


def check_scale(dataset: Dataset, split: str) -> None:
    """Raises a DataError if the images of a split hold 0 and 1 only, unless all are black."""
    images = dataset.splits[split].images
    if all(images[chunk].max() <= 1 for chunk in chunks(images)) and any(
        images[chunk].any() for chunk in chunks(images)
    ):
        received = f"0 and 1 only in the {split} set"
        advice = "Multiply them by 255"
        raise unexpected(dataset.source, "pixels from 0 to 255", received, advice)


def _text(name: str, source: str) -> str:
    """Returns a class's name, decoded if the locale could not decode it."""
    try:
        return encoded(name).decode()
    except UnicodeError:
        advice = "Rename the class's folder"
        raise unexpected(source, "class names in UTF-8", repr(name), advice) from None


def _check_split(where: str, split: Split, dataset: Dataset) -> None:
    shape, classes = split.images.shape, len(dataset.class_names)
    if split.images.dtype != np.uint8 or len(shape) != 4 or 0 in shape[1:]:
        expected = "uint8 images of shape (N, H, W, C), of at least 1x1 pixel"
        received = f"{split.images.dtype}, shape {shape}"
        raise unexpected(where, expected, received, "Convert them")
    if len(split.images) != len(split):
        received = f"{len(split.images)} images and {len(split)} labels"
        raise unexpected(where, "one label per image", received, "Save both again")
    if len(split) == 0:
        if split is dataset.test:
            return
        raise unexpected(where, "at least one image", "none", "Add some")
    if shape[1:] != dataset.image_shape:
        expected = f"images of the training set's shape {dataset.image_shape}"
        raise unexpected(where, expected, f"{shape[1:]}", "Resize or convert them")
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= classes:
        expected, received = f"labels from 0 to {classes - 1}", f"labels from {low} to {high}"
        raise unexpected(where, expected, received, "Number the classes from 0, without gaps")
