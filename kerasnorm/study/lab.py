"""A study from the grid to the report: runs trained, tables and figures written."""

import logging
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm import runtime
from kerasnorm.data.prepare import prepare
from kerasnorm.errors import ConfigError, CorruptFileError, DataError, KerasnormError
from kerasnorm.norms import BUILT_IN, NORMS
from kerasnorm.progress import Progress
from kerasnorm.study import cluster, folder, report, runner, sheets
from kerasnorm.study import plan as grid
from kerasnorm.study.board import FAILED, Entry
from kerasnorm.study.figures import draw_study
from kerasnorm.study.plan import Grid
from kerasnorm.study.summary import Summary, summarize
from kerasnorm.tables import Table
from kerasnorm.training.run import MODEL, Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What came of a study.

    Attributes:
        path: Its folder.
        entries: How every run stands.
        summary: Of the finished runs; None if there is none.
    """

    path: Path
    entries: Sequence[Entry]
    summary: Summary | None

    def failure(self) -> KerasnormError | None:
        """Returns the error that tells of the runs that failed, None if all went well.

        Its exit code is theirs where they agree.
        """
        failed = [entry for entry in self.entries if entry.state == FAILED]
        if not failed:
            return None
        codes = {entry.code for entry in failed}
        words = "\n".join(f"  {entry.job.name}: {entry.words}" for entry in failed)
        error = KerasnormError(
            f"{len(failed)} of {len(self.entries)} runs failed:\n{words}\n"
            f"What they said stands in {self.path}/{folder.RUNS}/*/{folder.LOG}. "
            "The same command tries them again."
        )
        error.exit_code = codes.pop() if len(codes) == 1 and min(codes) > 0 else 1
        return error


def conduct(
    study: Grid,
    out: Path,
    progress: Progress | None = None,
    *,
    jobs: int = 1,
    scheduler: str | None = None,
) -> Outcome:
    """Trains what a study still lacks and writes its tables, figures and report.

    Args:
        study: The grid.
        out: The study's folder; one that holds a part of the study is gone on with.
        progress: Receives how far the study is, counted in epochs, and the table of its runs.
        jobs: Runs at a time on this machine.
        scheduler: Address of a Dask scheduler whose workers train instead.

    Raises:
        ConfigError: A value does not fit, or the scheduler does not answer.
        DataError: The data are missing, damaged or unfit.
        MissingPackageError: A backend, or dask.distributed, is not installed.
        RunFolderError: The folder holds something else, is in use or cannot be written.
    """
    check(study)
    if scheduler:
        out = out.resolve()  # workers may stand elsewhere
    with folder.opened(out, study):
        place = cluster.dask(scheduler) if scheduler else cluster.local(jobs)
        found = folder.survey(out, study)
        entries = runner.execute(out, found, place, progress)
        summary = _write(out, study, entries)
    return Outcome(out, entries, summary)


def renew(path: Path) -> Path:
    """Writes the tables, figures and report of a study anew; returns the report's path.

    Raises:
        CorruptFileError: The folder is no study's, or none of its runs has finished.
        RunFolderError: It is in use.
    """
    study, _ = folder.load(path)
    with folder.opened(path, study):
        entries = [Entry(job) for job in folder.survey(path, study)]
        for entry in entries:
            entry.look()
        _write(path, study, entries)
    return path / folder.REPORT


def _write(path: Path, study: Grid, entries: Sequence[Entry]) -> Summary | None:
    """Writes everything about a study's finished runs; returns what they amount to."""
    again = {job.path: job for job in folder.survey(path, study)}
    for entry in entries:
        entry.job = again.get(entry.job.path, entry.job)
    done = [entry.job.done for entry in entries if entry.job.done]
    if not done:
        return None
    summary = _summary(done, study)
    sheets.write(path, entries, summary.axes, summary)
    write_report(path, study, summary)
    return summary


def _summary(runs: Sequence[Run], study: Grid) -> Summary:
    return summarize(runs, tuple(study.vary), study if study.one_at_a_time else None)


def check(study: Grid) -> None:
    """Makes sure that a study's backends are installed and its norms fit the widths.

    Raises:
        ConfigError: A group count does not divide a width, or the runs, which are processes of
            their own, would not know a norm.
        MissingPackageError: A backend is not installed.
    """
    for backend in study.backends:
        runtime.check_installed(backend)
    for config in study.configs().values():
        norm = NORMS[config.model.norm]
        if norm not in BUILT_IN:
            raise ConfigError(
                f"norm: expected a norm of kerasnorm.norms, which the processes of a study's runs "
                f"know. Received: norm={norm.name!r}, registered in this process only. Add its "
                "record to BUILT_IN, or train with kerasnorm.fit and report on the runs."
            )
        for width in config.model.normalized_widths:
            norm.groups(config.model, width)


def write_report(path: Path, study: Grid, summary: Summary) -> Path:
    """Writes figures and report into a study's folder; returns the report's path."""
    pictures = draw_study(summary, path / folder.FIGURES, image_source())
    wanted = set(pictures)
    for old in (path / folder.FIGURES).glob("*.png"):
        if old not in wanted:
            old.unlink()
    line = shlex.join(grid.command(study, str(path)))
    commands = {
        "The study; the same command goes on where it stopped:": line,
        "One run of it again:": f"kerasnorm fit --config {path}/{folder.RUNS}/RUN/config.toml",
        "This report again:": f"kerasnorm report {path}",
    }
    target = path / folder.REPORT
    report.write(_report(path.name, summary, pictures, commands), target)
    return target


def report_on_runs(runs: Sequence[Run], target: Path, study: Grid | None = None) -> None:
    """Writes a report on some runs to an HTML file; `study` is theirs if they are one's alone."""
    summary = _summary(runs, study) if study else summarize(runs)
    paths = " ".join(shlex.quote(str(run.path)) for run in runs)
    commands = {f"{run.path.name}:": f"kerasnorm fit --config {run.path}/config.toml"
                for run in runs}  # fmt: skip
    commands["This report again:"] = f"kerasnorm report {paths} --out {target}"
    title = runs[0].path.name if len(runs) == 1 else f"{len(runs)} runs"
    with tempfile.TemporaryDirectory() as temporary:
        pictures = draw_study(summary, Path(temporary), image_source())
        report.write(_report(title, summary, pictures, commands), target)


def _report(
    name: str, summary: Summary, pictures: Sequence[Path], commands: Mapping[str, str]
) -> report.Report:
    config = summary.groups[0].first.config
    data = summary.groups[0].first.metrics.get("data", {}).get("name", config.data.data)
    title = f"{name}: normalization compared on {data}, recipe {config.recipe}"
    return report.Report(title, summary, pictures, commands, _layers(summary))


def _layers(summary: Summary) -> Table | None:
    """Returns the receptive fields of the first run's model, None if there is no model."""
    run = summary.groups[0].first
    if not (run.path / MODEL).is_file():
        return None
    runtime.select_backend()
    from kerasnorm.inspection.layers import receptive_field, receptive_field_table

    try:
        rows = receptive_field(run.model())
    except (CorruptFileError, OSError) as error:
        logger.warning(f"{error} The report goes without receptive fields.")
        return None
    return receptive_field_table(rows, f"Receptive field of {run.config.model.norm}")


def image_source() -> Callable[[Run], NDArray[np.uint8] | None]:
    """Returns what gives a run's test images, loaded once a data set, None where it cannot."""
    loaded: dict[Any, NDArray[np.uint8] | None] = {}

    def images(run: Run) -> NDArray[np.uint8] | None:
        config = run.config.data
        key = (config.data, config.test_size, config.preprocessing)
        if key not in loaded:
            try:
                loaded[key] = prepare(config, run.config.train.seed).test.images
            except DataError as error:
                logger.warning(f"{error} Misclassified images are not drawn.")
                loaded[key] = None
        return loaded[key]

    return images
