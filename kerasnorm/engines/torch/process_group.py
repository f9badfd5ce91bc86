"""Processes that `torchrun` started: gloo between CPUs, NCCL between GPUs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from kerasnorm.errors import KerasnormError, LostProcessError
from kerasnorm.process_group import Launch, ProcessGroup

T = TypeVar("T")


class TorchProcessGroup(ProcessGroup):
    """See `ProcessGroup`; the processes find each other by torchrun's environment."""

    def __init__(self, launch: Launch, device: torch.device) -> None:
        self.rank, self.size = launch.rank, launch.size
        self.device = device
        with self.connection():
            store, rank, size = next(rendezvous("env://"))
            # torchrun keeps one store over its restarts, with the addresses of ended processes.
            store = distributed.PrefixStore(f"start-{launch.restarts}", store)
            backend = "nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, store=store, rank=rank, world_size=size)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replaces a tensor by its sum over all processes."""
        distributed.all_reduce(tensor)
        return tensor

    def on_first(self, work: Callable[[], T]) -> T | None:
        """Does `work` in the first process and returns its result in all processes.

        Raises:
            KerasnormError: What `work` raised, in all processes.
        """
        box: list[Any] = [None, None]
        if self.is_first:
            try:
                box = [work(), None]
            except KerasnormError as error:
                box = [None, (type(error), str(error))]
        with self.connection():
            distributed.broadcast_object_list(box, 0, device=self.device)
        result, failure = box
        if failure is not None:
            kind, text = failure
            raise kind(text)
        return result

    def barrier(self) -> None:
        """Waits until all processes have called this."""
        with self.connection():
            self.sum_(torch.zeros(1, device=self.device))

    @contextmanager
    def connection(self) -> Iterator[None]:
        """Turns the end of a connection into an error that names the cause.

        Raises:
            LostProcessError: Another process has ended or does not answer.
        """
        try:
            yield
        except RuntimeError as error:
            words = ("gloo", "connection", "nccl", "peer", "socket", "timed out", "store")
            if not any(word in str(error).lower() for word in words):
                raise
            raise LostProcessError(str(error).splitlines()[0]) from error

    def leave(self) -> None:
        """Ends the connection to the others."""
        distributed.destroy_process_group()
