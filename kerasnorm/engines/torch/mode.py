"""How a lowered model is called: in training or inference, and what its dropouts draw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kerasnorm.engines.dropout import dropout_generator, dropped_positions
from kerasnorm.training.process_group import Shard


@dataclass(frozen=True)
class Mode:
    """How a model is called.

    Attributes:
        training: Whether batches are normalized by their own statistics, and dropout drops.
        key: (seed, epoch, step), from which dropout is drawn on the CPU.
        shard: Which images of the batch these are, None for all.
        sum_: Sums a tensor over the processes that have the others, None where bn does not ask.
    """

    training: bool = False
    key: tuple[int, int, int] = (0, 0, 0)
    shard: Shard | None = None
    sum_: Callable[[Tensor], Tensor] | None = None

    def random(self, number: int) -> np.random.Generator:
        """Returns the random generator of the dropout layer of that number in this step."""
        return dropout_generator(self.key, number)

    def dropped(self, number: int, count: int, rate: float) -> NDArray[np.int64]:
        """Returns which of `count` values a dropout takes, as it does from the whole batch."""
        if self.shard is None:
            return dropped_positions(self.random(number), count, rate)
        each = count // self.shard.count  # values per image
        whole = dropped_positions(self.random(number), each * self.shard.batch, rate)
        first = self.shard.start * each
        begin, end = np.searchsorted(whole, [first, first + count])
        return whole[begin:end] - first

    def draw(self, number: int, shape: Sequence[int]) -> NDArray[np.float64]:
        """Returns random numbers, 0 to 1, of a shape (N, ...), as drawn for the whole batch."""
        if self.shard is None:
            return self.random(number).random(shape)
        drawn = self.random(number).random((self.shard.batch, *shape[1:]))
        return drawn[self.shard.slice]
