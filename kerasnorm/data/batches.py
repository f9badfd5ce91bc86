"""The training batches of a run, a function of (seed, epoch, step) alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.augment import ORDER_STREAM, Augmentation, generator
from kerasnorm.data.dataset import Split
from kerasnorm.errors import expect


@dataclass(eq=False)
class Batches:
    """Order, augmentation and batching of a training set, the same on every backend.

    Every image comes once per epoch, in an order that (seed, epoch) decides; the last batch of an
    epoch holds the images that are left over.

    Raises:
        ConfigError: The batch is larger than the training set.
    """

    split: Split
    batch_size: int
    seed: int
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        expected = f"at most the {len(self.split)} training images"
        expect(self.batch_size <= len(self.split), "batch_size", expected, self.batch_size)

    @property
    def steps(self) -> int:
        """Number of batches in an epoch, including the partial one."""
        return -(-len(self.split) // self.batch_size)

    def place(self, epoch: int, step: int) -> tuple[int, int]:
        """Returns the epoch and the step in it, from 0, that a run takes its `batch` in."""
        return epoch, step

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Returns the order of the training images in an epoch (numbered from 0), shape (N,)."""
        return generator(self.seed, ORDER_STREAM, epoch).permutation(len(self.split))

    def batch(
        self,
        epoch: int,
        step: int,
        order: NDArray[np.int64] | None = None,
        part: slice | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Returns the images (B, H, W, C) and labels (B,) of one step.

        `order` is the result of `order(epoch)`, where the caller has it; `part` selects images of
        the batch.
        """
        order = self.order(epoch) if order is None else order
        indices = order[step * self.batch_size : (step + 1) * self.batch_size]
        part = part or slice(None)
        images, labels = self.split.images[indices[part]], self.split.labels[indices[part]]
        if self.augmentation is not None and self.augmentation.is_active:
            draws = self.augmentation.draw(indices, epoch, step)
            images = self.augmentation.apply(images, draws.take(part))
        return images, labels
