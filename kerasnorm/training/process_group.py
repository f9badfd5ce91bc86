"""The processes, or devices, that train one model together.

Each takes its part of every global batch, so that order, augmentation, dropout and learning rate
are those of one process. Only the first process writes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One member's part of a global batch.

    Attributes:
        start: Its first image in the batch.
        count: How many images it has.
        batch: Images of the batch.
        total: Images of all parts together: `batch`, or a multiple of it where every member
            takes the whole batch because there are fewer images than members.
    """

    start: int
    count: int
    batch: int
    total: int

    @property
    def slice(self) -> slice:
        """Its place in the batch."""
        return slice(self.start, self.start + self.count)


def part_of(batch: int, member: int, size: int) -> Part:
    """Returns which images of a batch a member takes, of members that are nearly equally loaded."""
    if batch < size:
        return Part(0, batch, batch, batch * size)
    start, end = member * batch // size, (member + 1) * batch // size
    return Part(start, end - start, batch, batch)


class Team:
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

    def lead(self, work: Callable[[], T]) -> T | None:
        """Does `work` in the first process only, and returns its result where it can be had."""
        return work()

    def scope(self) -> AbstractContextManager[Any]:
        """Returns the context in which the model must be made."""
        scope: AbstractContextManager[Any] = (
            self.strategy.scope() if self.strategy is not None else nullcontext()
        )
        return scope

    def barrier(self) -> None:
        """Waits until all processes are here."""

    def leave(self) -> None:
        """Ends the connection to the others."""
