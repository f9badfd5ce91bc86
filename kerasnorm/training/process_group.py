"""The processes, or devices, that train one model together.

Each takes its shard of every global batch, so that order, augmentation, dropout and learning rate
are those of one process. Only the first process writes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """One rank's shard of a global batch.

    Attributes:
        start: Its first image in the batch.
        count: How many images it has.
        batch: Images of the batch.
        total: Images of all shards together: `batch`, or a multiple of it where every rank
            takes the whole batch because there are fewer images than processes.
    """

    start: int
    count: int
    batch: int
    total: int

    @property
    def slice(self) -> slice:
        """Its place in the batch."""
        return slice(self.start, self.start + self.count)


def shard_of(batch: int, rank: int, size: int) -> Shard:
    """Returns which images of a batch a rank takes, of processes that are nearly equally loaded."""
    if batch < size:
        return Shard(0, batch, batch, batch * size)
    start, end = rank * batch // size, (rank + 1) * batch // size
    return Shard(start, end - start, batch, batch)


class ProcessGroup:
    """The processes that train together; this class is the one process that trains alone.

    Attributes:
        rank: This process, counted from 0.
        size: How many there are.
        strategy: TensorFlow's distribution strategy, None without one.
    """

    rank = 0
    size = 1
    strategy: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def on_first(self, work: Callable[[], T]) -> T | None:
        """Does `work` in the first process only, and returns its result where it can be had."""
        return work()

    def scope(self) -> AbstractContextManager[Any]:
        """Returns the context in which the model must be made."""
        scope: AbstractContextManager[Any] = (
            self.strategy.scope() if self.strategy is not None else nullcontext()
        )
        return scope

    def sum_(self, tensor: T) -> T:
        """Returns the sum of a tensor over all processes; it may be written into the tensor."""
        return tensor

    def connection(self) -> AbstractContextManager[None]:
        """Returns the context in which a lost process raises `LostProcessError`."""
        return nullcontext()

    def barrier(self) -> None:
        """Waits until all processes are here."""

    def leave(self) -> None:
        """Ends the connection to the others."""
