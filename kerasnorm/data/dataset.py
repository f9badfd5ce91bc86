"""What every source gives: raw images with their labels, split into training and test."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerasnorm.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
        images: Raw pixels, uint8, shape (N, H, W, C).
        labels: Class indices, int32, shape (N,).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> "Split":
        """Returns the images and labels at `indices`, in their order."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification data set in memory.

    Attributes:
        name: Short name, fit for a folder's name: "cifar10", "shapes", the folder's or file's stem.
        source: Where it came from, for people: a path, an address, or how it was made.
        class_names: One name a class, in label order.
        train: The training images.
        test: The test images, looked at only to report.
        validation: Images held out of the training set for choices, or None.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    validation: Split | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of one image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name: "train", "validation" if held out, "test"."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}

    @property
    def class_counts(self) -> dict[str, tuple[int, ...]]:
        """Images a class, in label order, of every split."""
        classes = len(self.class_names)
        return {
            name: tuple(np.bincount(split.labels, minlength=classes).tolist())
            for name, split in self.splits.items()
        }

    def subset(self, train_size: int, test_size: int) -> "Dataset":
        """Returns the data set with fewer images, the same share of each class.

        Args:
            train_size: Training images to keep; 0 keeps all.
            test_size: Test images to keep; 0 keeps all.

        Raises:
            DataError: There are not so many, or a class would have no training image.
        """
        train = self._fewer(self.train, "train_size", train_size)
        test = self._fewer(self.test, "test_size", test_size)
        self._refuse_empty(train.labels, f"train_size={train_size}", "ask for more")
        return dataclasses.replace(self, train=train, test=test)

    def hold_out(self, count: int, seed: int) -> "Dataset":
        """Returns the data set with `count` training images moved to `validation`.

        The split is stratified: each class gives the same share, to the nearest image, chosen
        by `seed`. The order of the images that stay is kept.

        Args:
            count: Images to hold out; 0 leaves the data set as it is.
            seed: Which images are chosen.

        Raises:
            DataError: A class would be left without a training image.
        """
        if count == 0:
            return self
        total = len(self.train)
        if count >= total:
            raise DataError(
                f"validation: expected fewer images than the {total} of the training set. "
                f"Received: validation={count}. Hold out fewer."
            )
        held = stratified_sample(self.train.labels, count, seed)
        kept = np.setdiff1d(np.arange(total), held, assume_unique=True)
        self._refuse_empty(self.train.labels[kept], f"validation={count}", "hold out fewer")
        return dataclasses.replace(
            self, train=self.train.take(kept), validation=self.train.take(held)
        )

    def _fewer(self, split: Split, option: str, count: int) -> Split:
        if count in (0, len(split)):
            return split
        if count > len(split):
            raise DataError(
                f"{option}: expected at most the {len(split)} images of {self.source}. "
                f"Received: {option}={count}. Ask for fewer, or 0 for all."
            )
        return split.take(stratified_sample(split.labels, count, seed=0))

    def _refuse_empty(self, labels: NDArray[np.int32], cause: str, advice: str) -> None:
        """Raises if a class has no training image among `labels`."""
        counts = np.bincount(labels, minlength=len(self.class_names))
        if missing := [self.class_names[label] for label in np.flatnonzero(counts == 0)]:
            raise DataError(
                f"{self.source}: expected at least one training image of every class. "
                f"Received: {cause}, which leaves none of {', '.join(missing)}; {advice}."
            )


def stratified_sample(labels: NDArray[np.int32], count: int, seed: int) -> NDArray[np.int64]:
    """Returns `count` sorted indices that hold each class in the same share as `labels` does.

    Shares are rounded by largest remainder (Hamilton's method), so that they sum to `count`.

    Args:
        labels: Class indices, shape (N,).
        count: How many indices, at most N.
        seed: Which indices of each class are chosen.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 0x57A7]))
    classes, sizes = np.unique(labels, return_counts=True)
    # Whole numbers: a rounded quotient could give a class more images than it has.
    quotas, remainders = np.divmod(sizes.astype(np.int64) * count, len(labels))
    extra = np.argsort(-remainders, kind="stable")[: count - quotas.sum()]
    quotas[extra] += 1
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def channels_last(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns images of shape (N, C, H, W) as a new array of shape (N, H, W, C)."""
    # Plane by plane: several times as fast as copying the transposed view.
    return np.stack(list(np.moveaxis(planes, 1, 0)), axis=-1)
