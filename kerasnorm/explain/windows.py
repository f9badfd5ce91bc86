"""A few steps of a run's training, by whichever engine trains it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.batches import Batches
from kerasnorm.data.dataset import Split
from kerasnorm.engines.base import NullListener


class Window(Batches):
    """Some steps in a row out of one epoch of `Batches`, in the form of an epoch of its own.

    Args:
        batches: The whole.
        epoch: Which epoch, counted from 0.
        first: First step, within the epoch.
        count: How many steps; the epoch's end is the end.
    """

    def __init__(self, batches: Batches, epoch: int, first: int, count: int) -> None:
        self.whole = batches
        self.epoch = epoch
        self.first = first
        start = first * batches.batch_size
        images = min(count * batches.batch_size, len(batches.split) - start)
        # Engines ask for the number and the shape of the images only.
        split = Split(batches.split.images[:images], batches.split.labels[:images])
        super().__init__(split, min(batches.batch_size, images), batches.seed)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Returns the whole epoch's order, whichever epoch is asked for."""
        return self.whole.order(self.epoch)

    def batch(
        self,
        epoch: int,
        step: int,
        order: NDArray[np.int64] | None = None,
        part: slice | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Returns the images and labels of one step of the window."""
        return self.whole.batch(self.epoch, self.first + step, order, part)


def advance(engine: Any, batches: Batches, start: int, count: int) -> None:
    """Trains steps `start` to `start + count` of a run, counted over all its epochs.

    Args:
        engine: Any engine of this package, its state that before step `start`.
        batches: The run's batches.
        start: First step, counted from 0 at the beginning of the run.
        count: How many steps.

    Raises:
        DivergedError: The loss is no longer finite.
    """
    end = start + count
    while start < end:
        epoch, first = divmod(start, batches.steps)
        taken = min(end - start, batches.steps - first)
        engine.batches = Window(batches, epoch, first, taken)
        engine.train_epoch(start, NullListener())  # the start keys dropout: each window draws anew
        start += taken
    engine.batches = batches
