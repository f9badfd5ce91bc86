"""Trains the runs of a study, each in a process of its own, here or on a Dask cluster.

The parent process starts a run process for each run. It trains what the config.toml of the run's
folder says, from its last checkpoint if there is one, and ends with its parent.

The folder of a study must be at the same path for the workers of a Dask cluster as it is here.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnorm import runtime
from kerasnorm.errors import (
    ConfigError,
    CorruptFileError,
    KerasnormError,
    MissingPackageError,
    RunFolderError,
)
from kerasnorm.files import run_lock
from kerasnorm.json_process import JsonProcess, ProcessEndedError, serve
from kerasnorm.progress import (
    Progress,
    console_notes,
    counted,
    default_progress,
    duration,
    in_percent,
)
from kerasnorm.study.estimate import Forecast
from kerasnorm.study.folder import FAILURE, LOG, PlannedRun, State, is_lost, start_over, tidy
from kerasnorm.tables import Table
from kerasnorm.training import run_folder
from kerasnorm.training.fit import fit

if TYPE_CHECKING:
    from distributed import Client

MODULE = "kerasnorm.study.execution"  # in the run process __name__ is __main__
logger = logging.getLogger(MODULE)
# One line per event, for consoles that show no live table.
EVENTS = f"{MODULE}.events"
events = logging.getLogger(EVENTS)

STOP = ".stop"  # in the study's folder while its runs are asked to end
REFRESH = 0.5  # seconds between two readings of the runs' folders
STOP_TIMEOUT = 10.0  # seconds in which runs that were asked to end must end
LOCK_TIMEOUT = 60.0  # seconds to wait for a run that the process of a killed parent still holds
CONNECT_TIMEOUT = "10s"  # of the connection to a Dask scheduler
COLORS = {
    State.FAILED: "red",
    State.RUNNING: "cyan",
    State.DONE: "green",
    State.WAITING: "dim",
    State.KEPT: "dim green",
}

Ending = tuple[int, str]  # exit code and last line of a run process
Submit = Callable[[Path], "Future[Ending]"]  # starts to train the run in a folder


def execute(
    path: Path,
    runs: Sequence[PlannedRun],
    place: AbstractContextManager[Submit],
    resume: str,
    progress: Progress | None = None,
) -> None:
    """Trains the runs that are not finished and records in each how it ended.

    An interruption ends all runs, which can be resumed, and is raised again.
    """
    open_runs = [run for run in runs if run.state != State.KEPT]
    logger.info(
        f"{counted(len(runs), 'run')}, {len(runs) - len(open_runs)} of them finished before"
    )
    if not open_runs:
        return
    progress, begun = progress or default_progress(), time.monotonic()
    total = sum(run.epoch + run.epochs_left for run in runs)
    forecast, places = Forecast(runs), {run.name: n for n, run in enumerate(runs, 1)}

    def show() -> None:
        now = time.monotonic()
        # The remaining epochs of a failed run count as done: nobody will train them.
        done = total - sum(run.epochs_left for run in runs)
        progress.advance(done, seconds_left=forecast.study_left(now))
        left = {run.name: forecast.left(run, now) for run in runs if run.state == State.RUNNING}
        progress.show(runs_table(runs, now - begun, left))

    def announce(run: PlannedRun) -> None:
        now = time.monotonic()
        forecast.note(run, now)
        place = f"run {places[run.name]}/{len(runs)}"
        left = forecast.left(run, now), forecast.study_left(now)
        events.info("  ".join([place, event_line(run, *left)]))

    progress.start("epochs", total, sum(run.epoch for run in runs))
    show()
    try:
        (path / STOP).unlink(missing_ok=True)
        with place as submit:
            _train(path, open_runs, submit, resume, announce, show)
    finally:
        show()
        progress.finish()


def _train(
    path: Path,
    runs: Sequence[PlannedRun],
    submit: Submit,
    resume: str,
    announce: Callable[[PlannedRun], None],
    show: Callable[[], None],
) -> None:
    for run in runs:
        if not run_folder.is_run(run.path):
            run_folder.create_folder(run.path, run.config, run.config.data.data)
        (run.path / LOG).unlink(missing_ok=True)
    futures: dict[Future[Ending], PlannedRun] = {}
    try:
        for run in runs:
            futures[submit(run.path)] = run
        while futures:
            for future, run in list(futures.items()):
                if future.done():
                    _record_ending(run, future)
                    del futures[future]
                    announce(run)
                elif run.refresh():
                    announce(run)
            show()
            time.sleep(REFRESH)
    except BaseException:
        logger.warning(f"Stopping. Resume with: {resume}")
        _stop(path, futures)
        raise


def _stop(path: Path, futures: "dict[Future[Ending], PlannedRun]") -> None:
    """Ends all runs: waiting ones never start, the others find the stop file and end."""
    (path / STOP).touch()
    begun = {future for future, run in futures.items() if (run.path / LOG).exists()}
    for future in futures.keys() - begun:
        future.cancel()
    late = wait(begun, STOP_TIMEOUT).not_done
    for future in late:
        future.cancel()
    if not late:
        (path / STOP).unlink(missing_ok=True)


def _record_ending(run: PlannedRun, future: "Future[Ending]") -> None:
    try:
        exit_code, message = future.result()
    except (Exception, CancelledError) as error:
        exit_code, message = 1, f"{type(error).__name__}: {error}"
    if exit_code < 0:
        message = f"its process was ended by signal {-exit_code}"
    run.refresh()
    if exit_code:
        run.fail(exit_code, message)
    elif damage := run.load():
        run.fail(CorruptFileError.exit_code, damage)
    else:
        run.state = State.DONE


def runs_table(
    runs: Sequence[PlannedRun], seconds: float, left: Mapping[str, float | None]
) -> Table:
    """Returns the table of all runs, failed and running ones first."""
    order = list(State)
    shown = sorted(enumerate(runs, 1), key=lambda item: order.index(item[1].state))
    rows = [
        (
            f"{place}/{len(runs)}",
            run.name,
            run.state + (f": {run.message}" if run.message else ""),
            f"{run.epoch}/{run.config.train.epochs}",
            "" if run.judged is None else in_percent(run.judged.accuracy),
            duration(run.seconds) if run.seconds else "",
            "" if (rest := left.get(run.name)) is None else duration(rest),
        )
        for place, run in shown
    ]
    splits = {run.judged.split for run in runs if run.judged} or {"test"}
    split = splits.pop() if len(splits) == 1 else "accuracy"
    counts = {state: sum(run.state == state for run in runs) for state in order}
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    return Table(
        columns=(">run", "name", "state", ">epoch", f">{split} %", ">trained", ">left"),
        rows=rows,
        notes=(", ".join([*parts, f"{duration(seconds)} elapsed"]),),
        styles=[COLORS[run.state] for _, run in shown],
    )


def event_line(run: PlannedRun, left: float | None = None, study_left: float | None = None) -> str:
    """Returns a run in one line: name, state, epoch, accuracy, time left, and why it failed."""
    parts = [run.name, run.state]
    if run.epoch:
        parts.append(f"epoch {run.epoch}/{run.config.train.epochs}")
    if run.judged is not None:
        parts.append(str(run.judged))
    if run.message:
        parts.append(run.message)
    if left is not None and run.state == State.RUNNING:
        parts.append(f"{duration(left)} left")
    if study_left is not None:
        parts.append(f"study {duration(study_left)} left")
    return "  ".join(parts)


@contextmanager
def local(jobs: int) -> Iterator[Submit]:
    """Yields a function that trains a run on this machine, up to `jobs` at a time."""
    with ThreadPoolExecutor(jobs) as executor:
        threads = max(1, runtime.cores() // jobs)
        yield lambda folder: executor.submit(train_in_process, folder, threads)


@contextmanager
def dask(address: str) -> Iterator[Submit]:
    """Yields a function that trains a run on the workers of a running Dask scheduler.

    Where workers announce the resource GPU, only they receive runs, one per GPU.

    Raises:
        MissingPackageError: dask.distributed is not installed.
        ConfigError: No scheduler answers at `address`.
    """
    with _connected(address) as client:
        slots, has_gpus = _slots(client)
        resources = {"GPU": 1} if has_gpus else {}
        with client.get_executor(pure=False, resources=resources) as executor:
            yield partial(executor.submit, _train_on_worker, slots=slots, home=Path.cwd())


def slots(address: str) -> dict[str, int]:
    """Returns how many runs the workers of a Dask scheduler train at a time, by host.

    Raises:
        MissingPackageError: dask.distributed is not installed.
        ConfigError: No scheduler answers at `address`.
    """
    with _connected(address) as client:
        return _slots(client)[0]


def _connected(address: str) -> "Client":
    try:
        from distributed import Client
    except ImportError:
        raise MissingPackageError(
            "--scheduler needs dask.distributed. Install it with: pip install 'kerasnorm[dask]'"
        ) from None
    try:
        return Client(address, timeout=CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"scheduler: expected the address of a running Dask scheduler such as "
            f"tcp://127.0.0.1:8786. Received: {address!r} ({error or type(error).__name__})"
        ) from None


def _slots(client: "Client") -> tuple[dict[str, int], bool]:
    """Returns how many runs each host trains at a time, and whether that is one per GPU.

    Where no worker announces the resource GPU it is one per thread.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    gpus = [int(worker["resources"].get("GPU", 0)) for worker in workers]
    slots: dict[str, int] = {}
    for worker, count in zip(workers, gpus, strict=True):
        runs = count if any(gpus) else worker["nthreads"]
        slots[worker["host"]] = slots.get(worker["host"], 0) + runs
    return slots, any(gpus)


def _train_on_worker(folder: Path, slots: dict[str, int], home: Path) -> Ending:
    """Trains a run in a process beside this Dask worker, with its share of the host's cores."""
    from distributed import get_worker

    worker = get_worker()
    share = slots.get(worker.ip, worker.state.nthreads)
    return train_in_process(folder, runtime.cores() // max(1, share), home)


def train_in_process(folder: Path, threads: int, home: Path | None = None) -> Ending:
    """Trains the run in `folder` in a process of its own; returns its exit code and last line.

    The user's networks and norms are named from `home`, where it is there, by default the current
    folder.
    """
    (folder / FAILURE).unlink(missing_ok=True)  # that of an earlier try
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        code, message = _train_once(folder, threads, home)
        # The run process of a killed Dask worker ends, and drops its lock, a moment later.
        is_locked = code == RunFolderError.exit_code
        if not is_locked or _is_stopped(folder) or time.monotonic() > deadline:
            return code, message
        time.sleep(1.0)


def _train_once(folder: Path, threads: int, home: Path | None) -> Ending:
    environment = runtime.subprocess_environment(threads)
    with JsonProcess(MODULE, environment=environment, log=folder / LOG) as process:
        try:
            request = {"folder": folder, "home": home}
            process.ask(request, is_stopped=lambda: _is_stopped(folder))
        except ProcessEndedError as error:
            return error.code, error.last_words or "it left no message"
        except KerasnormError as error:
            return error.exit_code, str(error)
    return 0, ""


def _is_stopped(folder: Path) -> bool:
    """Returns whether the study of the run in `folder` was interrupted."""
    return (folder.parent.parent / STOP).exists()


def train_run(request: Mapping[str, Any]) -> None:
    """Trains the run in the folder that the request names, in this run process."""
    folder = Path(request["folder"])
    if (home := request.get("home")) and Path(home).is_dir():
        os.chdir(home)
    # The run records this command line: what a person would type for the same.
    sys.argv = ["kerasnorm", "fit", "--resume", str(folder)]
    with console_notes():
        try:
            with run_lock(folder):
                if is_lost(folder):
                    logger.warning(f"{folder}: no checkpoint of this run is whole. Starting over.")
                    start_over(folder)
            fit(resume=folder, plots=False)
        except KerasnormError as error:
            logger.error(f"kerasnorm: {error}")
            raise
    tidy(folder)


if __name__ == "__main__":
    serve(train_run)
