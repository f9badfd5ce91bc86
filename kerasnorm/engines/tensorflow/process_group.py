"""Devices of one process, or the workers that TF_CONFIG names, as TensorFlow strategies."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import tensorflow as tf

from kerasnorm.errors import LostProcessError
from kerasnorm.process_group import Launch, ProcessGroup

T = TypeVar("T")


class TensorFlowProcessGroup(ProcessGroup):
    """See `ProcessGroup`; TensorFlow requires its strategy to be made before any tensor.

    `MirroredStrategy` connects the devices of one process, `MultiWorkerMirroredStrategy` several
    processes.
    """

    def __init__(self, launch: Launch) -> None:
        self.rank, self.size = launch.rank, launch.size
        kind = tf.distribute
        several = kind.MultiWorkerMirroredStrategy if launch.size > 1 else kind.MirroredStrategy
        self.strategy = several()

    def sum_(self, tensor: Any) -> Any:
        """Returns the sum of a tensor over all devices of all processes; inside a replica."""
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tensor)

    def on_first(self, work: Callable[[], T]) -> T | None:
        """Does `work` in the first process while the others wait; they get None."""
        result = work() if self.is_first else None
        self.barrier()
        return result

    def barrier(self) -> None:
        """Waits until all processes have called this."""
        if self.size > 1:
            with self.connection():
                tf.function(lambda: self.strategy.run(lambda: self.sum_(tf.ones(()))))()

    @contextmanager
    def connection(self) -> Iterator[None]:
        """Turns a broken collective operation into an error that names the cause.

        Raises:
            LostProcessError: Another process has ended or does not answer.
        """
        kinds = tf.errors
        try:
            yield
        except (kinds.UnavailableError, kinds.AbortedError, kinds.DeadlineExceededError) as error:
            raise LostProcessError(type(error).__name__) from error
