"""The folder of a study: which of its runs are finished, which have begun, which are missing.

study.toml     the plan
runs/*/        one folder per run, of any name; its config.toml says which run of the plan it is
runs.csv       one row per run
summary.csv    one row per group of runs that differ in the seed alone
summary.json   the same, with the differences between groups
figures/*.png
report.html
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from pathlib import Path

from kerasnorm.config import Config
from kerasnorm.data import prepare
from kerasnorm.data.sources import loading
from kerasnorm.errors import CorruptFileError, RunFolderError
from kerasnorm.files import (
    digest,
    encoded,
    in_command,
    is_empty,
    numbered,
    read_text,
    run_lock,
    short_name,
    write_bytes,
    write_json,
)
from kerasnorm.study import plan as plans
from kerasnorm.study.plan import StudyPlan, identity, run_name
from kerasnorm.training import checkpoints, run, run_folder

logger = logging.getLogger(__name__)
RUNS, FIGURES, REPORT = "runs", "figures", "report.html"
LOG = "log.txt"  # output of a run's process, kept if it failed
FAILURE = "failure.json"  # exit code and message of a run that failed, until it is tried again


class State(StrEnum):
    """State of a run; those that need attention come first."""

    FAILED = "failed"
    RUNNING = "running"
    WAITING = "waiting"
    DONE = "done"
    KEPT = "kept"


@dataclass
class PlannedRun:
    """One run of a study: what it trains and how far it is."""

    path: Path  # folder of the run
    config: Config  # that it trains
    finished: run.Run | None = None  # as read from its folder once it has finished
    state: State = State.WAITING  # in the present call; KEPT if it had finished before
    epoch: int = 0  # number of epochs that are trained
    judged: run_folder.Judged | None = None  # accuracy after the last of them
    seconds: float = 0.0  # of training so far, that before an interruption included
    exit_code: int = 0  # of its process; 0 for a run that has not failed
    message: str = ""  # why it failed

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.path.name

    @property
    def epochs_left(self) -> int:
        """Number of epochs still to train; 0 for a run that has ended."""
        is_open = self.state in (State.RUNNING, State.WAITING)
        return max(0, self.config.train.epochs - self.epoch) if is_open else 0

    def refresh(self) -> bool:
        """Reads from the folder how far the run is; returns whether anything is new."""
        before = (self.state, self.epoch)
        if self.state == State.WAITING and (self.path / LOG).exists():
            self.state = State.RUNNING
        try:
            rows = run_folder.read_history(self.path / run_folder.HISTORY)
        except CorruptFileError:  # not there yet
            rows = []
        if rows:
            self.epoch = len(rows)
            self.judged = run_folder.judged(rows[-1])
            self.seconds = sum(row["seconds"] or 0.0 for row in rows)
        return before != (self.state, self.epoch)

    def load(self) -> str:
        """Sets `finished` if the run has trained all epochs and its files are whole.

        Returns what is wrong with the results of a run that has some; else "".
        """
        try:
            found = run.Run.load(self.path)
        except CorruptFileError as error:
            return str(error) if (self.path / run_folder.METRICS).is_file() else ""
        trained, epochs = len(found.history), found.metrics.get("epochs")
        if not trained or epochs not in (None, trained):
            return f"{self.path}: expected a history of all epochs. Received: {trained} epochs."
        self.finished = found
        return ""

    def fail(self, exit_code: int, message: str) -> None:
        """Records that the run failed, in its folder too, so that later reports know of it."""
        self.state, self.exit_code, self.message = State.FAILED, exit_code, message
        with suppress(RunFolderError):  # a full disk may be why it failed
            write_json(self.path / FAILURE, {"exit_code": exit_code, "message": message})

    def recall(self) -> None:
        """Reads from the folder of an unfinished run whether, and why, its last try failed."""
        try:
            found = json.loads(read_text(self.path / FAILURE))
            exit_code, message = int(found["exit_code"]), str(found["message"])
        except (OSError, ValueError, KeyError, TypeError):  # it did not fail
            return
        if exit_code and not self.finished:
            self.state, self.exit_code, self.message = State.FAILED, exit_code, message


def default(plan: StudyPlan) -> Path:
    """Returns the default folder of a study, named after all but its seeds and margin.

    More seeds of a study so use the same folder.
    """
    plain = replace(plan, seeds=(), margin=0.0).to_dict()
    suffix = digest(json.dumps(plain, sort_keys=True).encode())[:6]
    data = Path(str(plan.fixed.get("data", "data"))).name
    varied = ["one-at-a-time"] if plan.one_at_a_time else [*plan.vary]  # all names: too long
    name = short_name("-".join([data, *plan.norms, *varied]))
    return Path("results/studies") / f"{name}-{suffix}"


def is_study(path: Path) -> bool:
    """Returns whether a folder holds a study."""
    return (path / plans.STUDY).is_file()


@contextmanager
def opened(path: Path, plan: StudyPlan) -> Iterator[None]:
    """Holds the lock of a study's folder, made if it is missing, and writes `plan` into it.

    A study may be extended by seeds, norms, backends and values. Its fixed settings stay; its data
    may have been moved.

    Raises:
        DataError: The plan names another place of the data, which are missing there or differ from
            those that a run of the study was trained on.
        RunFolderError: The folder is in use, holds another study, or cannot be written.
    """
    try:
        is_known = is_study(path) or (path / RUNS).is_dir()
        is_free = is_known or not path.exists() or is_empty(path)
        if is_free:
            (path / RUNS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"Cannot write the study's folder {path}: {error.strerror}. Choose another --out."
        ) from None
    if not is_free:
        raise RunFolderError(f"{path} already holds other files. Choose another --out.")
    with run_lock(path):
        name = plan.conflict(plans.read(path)) if is_study(path) else ""
        if name and not (name == "data" and _knows_data(path)):
            raise RunFolderError(
                f"{path} holds another study, whose {name} differs from the one given. "
                "Choose another --out, or resume that study with --resume."
            )
        _relocate(path, plan)
        write_bytes(path / plans.STUDY, encoded(plans.to_toml(plan)))
        yield


def _runs(path: Path) -> list[Path]:
    return sorted(folder for folder in (path / RUNS).glob("*") if run_folder.is_run(folder))


def _knows_data(path: Path) -> bool:
    return any(run_folder.read_content(folder) is not None for folder in _runs(path))


def _relocate(path: Path, plan: StudyPlan) -> None:
    """Writes the plan's place of the data into each run that was trained on the same data."""
    wanted, load = plan.configs(), cache(prepare)
    places = plan.vary.get("data") or (plan.fixed.get("data", "auto"),)
    for folder in _runs(path):
        try:
            config = run_folder.read_config(folder)
        except CorruptFileError:
            continue  # `survey` warns of it
        is_known = run_folder.read_content(folder) is not None
        moved = [new for place in places if identity(new := config.replace(data=place)) in wanted]
        if identity(config) in wanted:
            moved = [new for new in moved if identity(new) == identity(config)]
            # Checkpoints of earlier versions hold a hash of the place as it was spelled.
            moved = moved if is_known or (folder / run_folder.METRICS).is_file() else []
        elif is_known and len(moved) == 1:
            run_folder.check_data(folder, load(loading(moved[0].data), 0))
        else:
            continue
        if moved and moved[0] != config:
            with run_lock(folder):
                run_folder.relocate(folder, moved[0])


def unfinished(path: Path, plan: StudyPlan) -> list[Config]:
    """Returns the configs of a plan that no finished run of the folder has; nothing is written."""
    configs = plan.configs()
    for folder in _runs(path):
        with suppress(CorruptFileError):
            planned = PlannedRun(folder, run_folder.read_config(folder))
            planned.load()
            if planned.finished:
                configs.pop(identity(planned.config), None)
    return [*configs.values()]


def results(path: Path, plan: StudyPlan) -> list[PlannedRun]:
    """Returns the runs of a study as `survey` does, but those whose last try failed as failed."""
    runs = survey(path, plan)
    for planned in runs:
        planned.recall()
    return runs


def survey(path: Path, plan: StudyPlan) -> list[PlannedRun]:
    """Returns the runs of a study in the plan's order, missing ones with the folder they will get.

    All that are not finished are waiting: those that failed are to be tried again. A warning is
    logged for each folder that is ignored.
    """
    wanted, changes = plan.configs(), plan.changes()
    found: dict[str, PlannedRun] = {}
    others = 0
    for folder in _runs(path):
        try:
            planned = PlannedRun(folder, run_folder.read_config(folder))
        except CorruptFileError as error:
            logger.warning(f"{error} It is ignored.")
            continue
        key = identity(planned.config)
        if key not in wanted:
            others += 1
            continue
        if damage := planned.load():
            logger.warning(f"{damage} The run is left out; a resumed study trains it again.")
        known = found.setdefault(key, planned)
        if planned.finished and not known.finished:
            found[key] = planned
        elif known is not planned and planned.finished:
            logger.warning(f"{folder} is left out: {known.path} is the same run.")
    if others:
        logger.warning(f"{path}: {others} runs are not part of this plan; they are left alone.")
    taken = {folder.name for folder in (path / RUNS).glob("*")}
    for key, config in wanted.items():
        if key not in found:
            names = numbered(run_name(config, changes[key]))
            name = next(name for name in names if name not in taken)
            taken.add(name)
            found[key] = PlannedRun(path / RUNS / name, config)
    runs = [found[key] for key in wanted]
    for planned in runs:
        planned.refresh()
        planned.state = State.KEPT if planned.finished else State.WAITING
    return runs


def is_lost(path: Path) -> bool:
    """Returns whether a run has checkpoints, none of which is whole: it can only start over.

    Only its own files say so. An error while it is resumed does not, since it may as well lie in
    the network or in other files that the run needs.
    """
    found = checkpoints.checkpoint_folders(path / run_folder.CHECKPOINTS)
    for checkpoint in reversed(found):
        with suppress(CorruptFileError):
            checkpoints.load(checkpoint)
            return False
    return bool(found)


def start_over(path: Path) -> None:
    """Removes the results of a damaged run and keeps its config."""
    shutil.rmtree(path / run_folder.CHECKPOINTS, ignore_errors=True)
    for name in (run_folder.METRICS, run_folder.HISTORY, run_folder.MODEL):
        (path / name).unlink(missing_ok=True)


def tidy(path: Path) -> None:
    """Removes checkpoints and log from a finished run: a study does not need them."""
    shutil.rmtree(path / run_folder.CHECKPOINTS, ignore_errors=True)
    for name in (LOG, FAILURE):
        (path / name).unlink(missing_ok=True)


def finished(runs: Iterable[PlannedRun]) -> list[run.Run]:
    """Returns those of some runs that have finished, as read from their folders."""
    return [planned.finished for planned in runs if planned.finished]


def load(path: Path) -> tuple[StudyPlan, list[PlannedRun]]:
    """Returns the plan of the study in folder `path`, and its runs as `results` does.

    Raises:
        CorruptFileError: The folder holds no study, or none of its runs has finished.
    """
    plan = plans.read(path)
    runs = results(path, plan)
    if not finished(runs):
        raise CorruptFileError(
            f"No run of the study {path} has finished; resume it with: "
            f"kerasnorm compare --resume {in_command(path)}"
        )
    return plan, runs
