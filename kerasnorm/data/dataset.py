"""What every source gives: raw images with their labels, split into training and test."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kerasnorm.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
        images: Raw pixels, uint8, shape (N, H, W, C).
        labels: Class indices, int32, shape (N,).
    """

    images: "NDArray[np.uint8]"
    labels: "NDArray[np.int32]"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: "NDArray[np.int64]") -> "Split":
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
        import numpy as np  # noqa: PLC0415

        total = len(self.train)
        if count >= total:
            raise DataError(
                f"validation: expected fewer images than the {total} of the training set. "
                f"Received: validation={count}"
            )
        held = stratified_sample(self.train.labels, count, seed)
        mask = np.zeros(total, dtype=bool)
        mask[held] = True
        kept = np.flatnonzero(~mask)
        missing = set(np.unique(self.train.labels)) - set(np.unique(self.train.labels[kept]))
        if missing:
            names = ", ".join(self.class_names[label] for label in sorted(missing))
            raise DataError(
                f"validation={count} leaves no training image of: {names}; hold out fewer."
            )
        return dataclasses.replace(
            self, train=self.train.take(kept), validation=self.train.take(np.flatnonzero(mask))
        )


def stratified_sample(labels: "NDArray[np.int32]", count: int, seed: int) -> "NDArray[np.int64]":
    """Returns `count` sorted indices that hold each class in the same share as `labels` does.

    Shares are rounded by largest remainder, so that they sum to `count`.

    Args:
        labels: Class indices, shape (N,).
        count: How many indices, at most N.
        seed: Which indices of each class are chosen.
    """
    import numpy as np  # noqa: PLC0415

    rng = np.random.Generator(np.random.PCG64([seed, 0x57A7]))
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / len(labels))
    quotas = np.floor(exact).astype(np.int64)
    extra = np.argsort(quotas - exact, kind="stable")[: count - quotas.sum()]
    quotas[extra] += 1
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def channels_last(planes: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """Returns images of shape (N, C, H, W) as a new array of shape (N, H, W, C)."""
    import numpy as np
    # Plane by plane: several times as fast as copying the transposed view.
    return np.stack(list(np.moveaxis(planes, 1, 0)), axis=-1)
