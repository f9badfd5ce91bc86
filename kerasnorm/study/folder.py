"""A study's folder: which of its runs are there, finished, begun or missing.

study.toml     the grid
runs/*/        a run's folder each, of any name: what it holds is told by its own config.toml
runs.csv       a row a run
summary.csv    a row a group of runs that differ in the seed alone
summary.json   the same, with the differences between norms
figures/*.png
report.html
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kerasnorm.config import Config
from kerasnorm.errors import CorruptFileError, RunFolderError
from kerasnorm.files import run_lock, write_bytes
from kerasnorm.study import plan as grids
from kerasnorm.study.plan import Grid, identity, run_name
from kerasnorm.training import run

logger = logging.getLogger(__name__)
RUNS, FIGURES, REPORT = "runs", "figures", "report.html"
LOG = "log.txt"  # what a run's process said, kept if it failed


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        path: Its folder.
        config: What it trains.
        done: The finished run, None before.
    """

    path: Path
    config: Config
    done: run.Run | None

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.name


def is_study(path: Path) -> bool:
    """Says whether a folder holds a study."""
    return (path / grids.STUDY).is_file()


def read_grid(path: Path) -> Grid:
    """Returns the grid of the study in folder `path`.

    Raises:
        CorruptFileError: The folder is no study's, or its grid is damaged.
    """
    return grids.read(path / grids.STUDY)


@contextmanager
def opened(path: Path, grid: Grid) -> Iterator[None]:
    """Holds a study's folder, made if need be, with `grid` written into it.

    A study may grow: more seeds, norms, backends or values. Its fixed settings stay.

    Raises:
        RunFolderError: It is in use, holds another study, or cannot be written.
    """
    try:
        if not is_study(path) and not (path / RUNS).is_dir() and _is_filled(path):
            raise RunFolderError(f"{path} already holds other files. Choose another --out.")
        (path / RUNS).mkdir(parents=True, exist_ok=True)
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(
            f"Cannot write the study's folder {path}: {error.strerror}. Choose another --out."
        ) from None
    with run_lock(path):
        if is_study(path) and (name := grid.conflict(read_grid(path))):
            raise RunFolderError(
                f"{path} holds another study, whose {name} is not the one given. "
                "Choose another --out, or go on with that study: --resume."
            )
        write_bytes(path / grids.STUDY, grids.to_toml(grid).encode())
        yield


def _is_filled(path: Path) -> bool:
    return path.exists() and any(path.iterdir())


def survey(path: Path, grid: Grid) -> list[Job]:
    """Returns a study's runs in the grid's order: those that are there, and places for the rest.

    A warning is logged for each folder that is passed over.

    Args:
        path: The study's folder; it may be missing yet.
        grid: What belongs to it.
    """
    wanted = grid.configs()
    found: dict[str, Job] = {}
    strangers = 0
    folders = sorted(item for item in (path / RUNS).glob("*") if run.is_run(item))
    for folder in folders:
        try:
            job = Job(folder, run.read_config(folder), _finished(folder))
        except CorruptFileError as error:
            logger.warning(f"{error} It is passed over.")
            continue
        key = identity(job.config)
        if key not in wanted:
            strangers += 1
        elif key not in found or (job.done and not found[key].done):
            found[key] = job
    if strangers:
        logger.warning(
            f"{path}: {strangers} runs are not of this grid; they stay and are left out."
        )
    taken = {folder.name for folder in (path / RUNS).glob("*")}
    jobs = []
    for key, config in wanted.items():
        if key in found:
            jobs.append(found[key])
            continue
        name = _free(run_name(config, grid), taken)
        taken.add(name)
        jobs.append(Job(path / RUNS / name, config, None))
    return jobs


def _free(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def _finished(folder: Path) -> run.Run | None:
    """Returns the run in a folder if it has come to its end and can be read."""
    try:
        done = run.Run.load(folder)
    except CorruptFileError:
        return None
    rows = len(done.history)
    return done if rows and done.metrics.get("epochs", rows) == rows else None


def begin(job: Job) -> None:
    """Makes the folder of a run that is not there yet, so that it can be resumed from nothing."""
    if not run.is_run(job.path):
        run.create_folder(job.path, job.config, job.config.data.data)


def start_over(path: Path) -> None:
    """Removes what a broken run has computed; its config stays."""
    shutil.rmtree(path / run.CHECKPOINTS, ignore_errors=True)
    for name in (run.METRICS, run.HISTORY, run.MODEL):
        (path / name).unlink(missing_ok=True)


def tidy(path: Path) -> None:
    """Removes from a finished run what a study does not need: checkpoints and log."""
    shutil.rmtree(path / run.CHECKPOINTS, ignore_errors=True)
    (path / LOG).unlink(missing_ok=True)


def load(path: Path) -> tuple[Grid, list[run.Run]]:
    """Returns the grid and the finished runs of the study in folder `path`.

    Raises:
        CorruptFileError: The folder is no study's, or none of its runs has finished.
    """
    grid = read_grid(path)
    runs = [job.done for job in survey(path, grid) if job.done]
    if not runs:
        raise CorruptFileError(
            f"No run of the study {path} has finished; go on with it: "
            f"kerasnorm compare --resume {path}"
        )
    return grid, runs
