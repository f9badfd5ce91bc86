"""Where runs are trained: in processes of this machine, or on the workers of a Dask cluster.

Both are executors of `concurrent.futures`. The folder of a study must be at the same path for the
workers of a cluster as it is here.
"""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kerasnorm import runtime
from kerasnorm.errors import ConfigError, MissingPackageError
from kerasnorm.study import child

STOP = ".stop"  # in the study's folder while its runs are asked to end
CONNECT = "10s"


def is_stopped(folder: Path) -> bool:
    """Says whether the study of the run in `folder` was interrupted."""
    return (folder.parent.parent / STOP).exists()


def train_here(folder: Path, threads: int) -> tuple[int, str]:
    """Trains a run in a process of this machine; returns its exit code and last words."""
    return child.train_there(folder, threads, lambda: is_stopped(folder))


def train_on_worker(folder: Path, slots: dict[str, int]) -> tuple[int, str]:
    """Trains a run in a process beside a Dask worker.

    Args:
        folder: The run's folder.
        slots: Host → runs that it trains at a time, which share its cores.
    """
    from distributed import get_worker

    worker = get_worker()
    own = worker.state.nthreads
    share = slots.get(_host(worker.address), own)
    return train_here(folder, runtime.cores() // max(1, share))


def _host(address: str) -> str:
    return address.rpartition("://")[2].rpartition(":")[0]


@contextmanager
def local(jobs: int) -> Iterator[tuple[Executor, Any, tuple[Any, ...]]]:
    """Yields an executor of `jobs` processes, the function to submit and what it is told."""
    with ThreadPoolExecutor(jobs) as executor:
        yield executor, train_here, (max(1, runtime.cores() // jobs),)


@contextmanager
def dask(address: str) -> Iterator[tuple[Executor, Any, tuple[Any, ...]]]:
    """Yields the same for the workers of a running Dask scheduler.

    Where workers announce the resource GPU, only they get runs, one for each GPU.

    Raises:
        MissingPackageError: dask.distributed is not installed.
        ConfigError: No scheduler answers at `address`.
    """
    with _connected(address) as client:
        slots = _slots(client)
        has_gpus = _has_gpus(client)
        executor = client.get_executor(pure=False, resources={"GPU": 1} if has_gpus else {})
        yield executor, train_on_worker, (slots,)


def lanes(address: str) -> int:
    """Returns how many runs the workers of a Dask scheduler train at a time.

    Raises:
        MissingPackageError: dask.distributed is not installed.
        ConfigError: No scheduler answers at `address`.
    """
    with _connected(address) as client:
        return max(1, sum(_slots(client).values()))


def _connected(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise MissingPackageError(
            "--scheduler needs dask.distributed. Install it with: pip install 'kerasnorm[dask]'"
        ) from None
    try:
        return Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"scheduler: expected the address of a running Dask scheduler such as "
            f"tcp://127.0.0.1:8786. Received: {address!r} ({error or type(error).__name__})"
        ) from None


def _workers(client: Any) -> list[dict[str, Any]]:
    return list(client.scheduler_info(n_workers=-1)["workers"].values())


def _has_gpus(client: Any) -> bool:
    return any(worker["resources"].get("GPU") for worker in _workers(client))


def _slots(client: Any) -> dict[str, int]:
    """Returns how many runs each host trains at a time: one a GPU, else one a worker's thread."""
    has_gpus = _has_gpus(client)
    slots: dict[str, int] = {}
    for worker in _workers(client):
        runs = int(worker["resources"].get("GPU", 0)) if has_gpus else worker["nthreads"]
        slots[worker["host"]] = slots.get(worker["host"], 0) + runs
    return slots
