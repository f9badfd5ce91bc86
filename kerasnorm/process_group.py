"""The processes, or devices, that train one model together.

Each rank takes its shard of every global batch, so that the order of the images, augmentation,
dropout and learning rate are those of one process. Only the first process writes files.
"""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from kerasnorm.errors import ConfigError
from kerasnorm.signals import Interruptions

T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """What a launcher of several processes says about this one."""

    launcher: str = ""  # "torchrun", "TF_CONFIG", or "" for a single process
    rank: int = 0  # number of this process, counted from 0
    size: int = 1  # number of processes
    local_rank: int = 0  # number of this process on its machine, counted from 0
    restarts: int = 0  # how often torchrun has restarted the processes


def this_launch() -> Launch:
    """Returns what the environment says: torchrun's variables, or TF_CONFIG.

    Raises:
        ConfigError: TF_CONFIG is damaged.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
        rank, size, local, restarts = (int(os.environ.get(name, "0")) for name in names)
        return Launch("torchrun", rank, size, local, restarts)
    text = os.environ.get("TF_CONFIG")
    if not text:
        return Launch()
    try:
        document = json.loads(text)
        workers, index = document["cluster"]["worker"], int(document["task"]["index"])
        return Launch("TF_CONFIG", index, len(workers))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            'TF_CONFIG: expected {"cluster": {"worker": ["host:port", …]}, "task": {"type": '
            f'"worker", "index": 0}}}}. Received: {text[:80]!r} ({error!r}). Fix it, or unset it.'
        ) from None


@dataclass(frozen=True)
class Shard:
    """One rank's shard of a global batch."""

    start: int  # position of the shard's first image in the batch
    count: int  # number of images in the shard
    batch: int  # number of images in the batch
    # Number of images in all shards together: `batch`, or a multiple of it where every rank takes
    # the whole batch because there are fewer images than processes.
    total: int

    @property
    def slice(self) -> slice:
        """The images of the batch that are in the shard."""
        return slice(self.start, self.start + self.count)


def shard_of(batch: int, rank: int, size: int) -> Shard:
    """Returns the shard of a rank; the shards of all ranks are of nearly equal size."""
    if batch < size:
        return Shard(0, batch, batch, batch * size)
    start, end = rank * batch // size, (rank + 1) * batch // size
    return Shard(start, end - start, batch, batch)


class ProcessGroup:
    """The processes that train one model together; this class is the group of a single process.

    Attributes:
        rank: Number of this process, counted from 0.
        size: Number of processes.
        strategy: TensorFlow's distribution strategy; None without one.
    """

    rank = 0
    size = 1
    strategy: Any = None

    @cached_property
    def interruptions(self) -> Interruptions:
        """The requests to stop that this process receives; a group stops when all have agreed."""
        return Interruptions(needs_agreement=self.size > 1)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def on_first(self, work: Callable[[], T]) -> T | None:
        """Calls `work` in the first process only, and returns its result where it is available."""
        return work()

    def scope(self) -> AbstractContextManager[Any]:
        """Returns the context in which the model must be built."""
        if self.strategy is None:
            return nullcontext()
        return self.strategy.scope()

    def sum_(self, tensor: T) -> T:
        """Returns the sum of a tensor over all processes; it may be written into the tensor."""
        return tensor

    def connection(self) -> AbstractContextManager[None]:
        """Returns the context in which a lost process raises `LostProcessError`."""
        return nullcontext()

    def barrier(self) -> None:
        """Waits until all processes have reached this call."""

    def leave(self) -> None:
        """Closes the connection to the other processes."""
