"""A study from its plan to its report: runs trained, tables, figures and report written."""

import logging
import math
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from kerasnorm import runtime, tables, user_code
from kerasnorm.config import (
    ARMS,
    BACKENDS,
    BUILTIN,
    RATE_SCALINGS,
    UNCOMPARED,
    Config,
    DataConfig,
    ModelConfig,
    check_precision,
    unknown,
)
from kerasnorm.data import Dataset, load, prepare
from kerasnorm.data.sources import loading, locate, with_place
from kerasnorm.data.stored import Images
from kerasnorm.errors import (
    ConfigError,
    CorruptFileError,
    DataError,
    KerasnormError,
    described,
    expect,
    expect_whole,
    is_number,
)
from kerasnorm.files import as_path, encoded, in_command, write_bytes
from kerasnorm.json_process import JsonProcess
from kerasnorm.norms import BUILT_IN, COMPARED, NORMS, check_groups, is_foreign
from kerasnorm.progress import Progress, in_percent
from kerasnorm.study import execution, folder, plan, probe, report
from kerasnorm.study import tables as study_tables
from kerasnorm.study.figures import draw_study
from kerasnorm.study.folder import PlannedRun, State
from kerasnorm.study.intervals import MARGIN
from kerasnorm.study.plan import AXES, StudyPlan, identity
from kerasnorm.study.sentences import sentences
from kerasnorm.study.summary import Failure, Summary, data_name, fields_of, summarize
from kerasnorm.training.loggers import check_loggers
from kerasnorm.training.run import Run
from kerasnorm.training.run_folder import CONFIG, MODEL, check_data

logger = logging.getLogger(__name__)
Describe = Callable[[DataConfig], Dataset]  # the data set of a config, without its images


@dataclass(frozen=True)
class Outcome:
    """Outcome of a study.

    Attributes:
        path: Folder of the study.
        runs: All runs and how they ended.
        summary: Summary of the finished runs; None if there is none.
        unwritten: Why its tables, figures or report could not be written; None if they were.
    """

    path: Path
    runs: Sequence[PlannedRun]
    summary: Summary | None
    unwritten: Exception | None = None

    def __repr__(self) -> str:
        states = [run.state for run in self.runs]
        parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        return f"Outcome({str(self.path)!r}, {', '.join(parts)})"

    def __str__(self) -> str:
        return "\n".join(self._parts())

    def _parts(self) -> Iterator[str]:
        if self.summary is None:
            yield repr(self)
            return
        yield from sentences(self.summary)
        for table in study_tables.all_tables(self.summary):
            yield tables.to_text(table)

    def table(self) -> tables.Table:
        """Returns the answer: the accuracy by norm and by what was varied.

        Raises:
            CorruptFileError: No run has finished.
        """
        if self.summary is None:
            raise CorruptFileError(f"{self.path} has no finished run.")
        return study_tables.answer_table(self.summary)

    def best(self) -> Run:
        """Returns the best run, see `best_run`."""
        return best_run(self.path)

    def failure(self) -> Exception | None:
        """Returns the error that names the failed runs, else `unwritten`.

        The exit code of the former is theirs where they agree.
        """
        failed = [run for run in self.runs if run.state == State.FAILED]
        if not failed:
            return self.unwritten
        codes = {run.exit_code for run in failed}
        names: dict[str, list[str]] = {}
        for run in failed:
            names.setdefault(run.message, []).append(run.name)
        lines = "\n".join(f"  {', '.join(runs)}: {message}" for message, runs in names.items())
        error = KerasnormError(
            f"{len(failed)} of {len(self.runs)} runs failed:\n{lines}\n"
            f"Their output is in {self.path}/{folder.RUNS}/*/{folder.LOG}. "
            "The same command tries them again."
        )
        error.exit_code = codes.pop() if len(codes) == 1 and min(codes) > 0 else 1
        return error


def describer() -> Describe:
    """Returns a function that describes the data of a config, and reads each data set once."""
    describe = cache(lambda config: prepare(config, 0).without_images())
    return lambda config: describe(loading(config))


def completed(study: StudyPlan, describe: Describe | None = None) -> StudyPlan:
    """Returns the plan with everything resolved that was left open.

    No backends become the one in use, or the first that is installed; data `auto` become those at
    hand; and images are held out for validation where the data have no test set of their own.

    Args:
        study: The plan.
        describe: The `describer` of the command, which `run_study` may use too.

    Raises:
        ConfigError: A value does not fit.
        DataError: The data are damaged or unfit.
        MissingPackageError: A backend is not installed.
    """
    _check_choices(study)
    if study.one_at_a_time and not study.vary:
        raise ConfigError("--one-at-a-time: expected --vary FIELD=VALUE,VALUE too. Received: none.")
    if axes := sorted({*AXES} & {*study.fixed}):
        raise ConfigError(
            f"{axes[0]}: expected it among {axes[0]}s, which a study has several of. "
            f"Received: {axes[0]}={study.fixed[axes[0]]!r}"
        )
    if both := sorted({*study.vary} & {*study.fixed}):
        name = both[0]
        raise ConfigError(f"{name}: expected either --{name.replace('_', '-')} or --vary {name}=…")
    study = replace(study, backends=study.backends or (runtime.select_backend(),))
    for backend in study.backends:
        runtime.check_installed(backend)
    for config in study.configs().values():  # refuses what is out of range before data are read
        check_precision(config)
    study.check_read()
    if "batch_size" in study.vary and study.rate_scaling == "auto":
        logger.warning(
            "The peak learning rate follows the batch size: linearly with sgd, else by its square "
            "root. With --rate-scaling none you would compare learning rates as well."
        )
    return _with_data(study, describe or describer()).located()


def _check_choices(study: StudyPlan) -> None:
    """Makes sure that a plan has something to train, and that its own settings are known."""
    for kind, names, known in (
        ("backend", study.backends, BACKENDS),
        ("arms", (study.arms,), ARMS),
        ("rate_scaling", (study.rate_scaling,), RATE_SCALINGS),
    ):
        for name in names:
            if name not in known:
                raise unknown(kind, name if isinstance(name, str) else described(name), known)
    margin: Any = study.margin
    is_right = is_number(margin) and 0 <= margin < math.inf
    expect(is_right, "margin", "a number of percentage points of at least 0", margin)
    if not study.norms:
        raise ConfigError("norms: expected the name of at least one norm. Received: none")
    for name, values in study.vary.items():
        if name in AXES:
            raise ConfigError(
                f"vary: expected a field without an option of its own. Received: vary={name}. "
                f"Give {name}s instead ({AXES[name]})."
            )
        if name in UNCOMPARED:
            raise ConfigError(
                "vary: expected a field that changes what a run computes. Received: "
                f"vary={name}. Give one {name} to all runs."
            )
        if not values:
            raise ConfigError(f"vary: expected at least one value of {name}. Received: none")


def _listed(name: str, values: Any, example: str) -> tuple[Any, ...]:
    """Returns the distinct values that an argument lists; refuses one value alone."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ConfigError(
            f"{name}: expected several values such as {example}. Received: {described(values)}"
        )
    return tuple({repr(value): value for value in values}.values())


def _varied(vary: Any) -> dict[str, tuple[Any, ...]]:
    """Returns the values of each varied field."""
    example = {"batch_size": [32, 64]}
    if not isinstance(vary, Mapping):
        raise ConfigError(
            f"vary: expected values by field such as {example}. Received: {described(vary)}"
        )
    return {
        name: _listed(f"vary, {name}", values, f"those in {example}")
        for name, values in vary.items()
    }


def _with_data(study: StudyPlan, describe: Describe) -> StudyPlan:
    """Returns the plan with `auto` resolved, and with a validation split where it decides.

    Where the data have no test set of their own, the images that this package sets aside for the
    test must not choose the norm too: as many training images are held out for validation, and at
    most a fifth of those that the smallest `train_size` leaves.
    """
    fixed = dict(study.fixed)
    if "data" not in study.vary and fixed.get("data", "auto") == "auto":
        fixed["data"] = load("auto").name
        study = replace(study, fixed=fixed)
    if {"data", "validation", "test_size"} & {*study.vary} or "validation" in fixed:
        return study
    config = next(iter(study.configs().values()))
    if not Path(locate(config.data.data)).is_absolute():  # a data set that is known by its name
        return study
    try:
        data = describe(config.data)
    except DataError:  # the study says so, unless its workers have them elsewhere
        return study
    if data.has_own_test or data.validation is not None:
        return study
    sizes = {one.data.train_size for one in study.configs().values()} - {0}
    held_out = min([len(data.test), *(size // 5 for size in sizes)])
    logger.warning(
        f"{data.source}: the data have no test set of their own, so {len(data.test)} images are "
        f"held out for it and {held_out} for validation, by which the norms are ranked "
        "(--validation)."
    )
    return replace(study, fixed={**fixed, "validation": held_out})


def compare(  # noqa: PLR0913  (all but the norms are options by name)
    norms: Sequence[str] = COMPARED,
    *,
    backends: Sequence[str] = (),
    seeds: int = 3,
    vary: Mapping[str, Sequence[Any]] | None = None,
    arms: str = "matched",
    rate_scaling: str = "auto",
    margin: float = 100 * MARGIN,
    one_at_a_time: bool = False,
    out: Path | str | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
    **fixed: Any,
) -> Outcome:
    """Trains several norms on several seeds and compares them; runs that are finished are kept.

    Args:
        norms: Names of the norms.
        backends: Names of Keras backends; by default the one in use, else the first installed.
        seeds: Number of seeds, from 0.
        vary: Values of config fields, all combinations of which are trained.
        arms: "matched": the runs of the norms differ in the norm alone. "tuned": each norm has the
            values that the recipe holds for it.
        rate_scaling: How the peak learning rate follows a varied batch size, see `StudyPlan`.
        margin: Largest difference in accuracy, in percentage points, that does not matter to you.
        one_at_a_time: Whether each value in `vary` is trained alone: an ablation.
        out: Folder of the study; by default one under `results/studies`.
        jobs: Number of runs at a time.
        progress: Receives the number of trained epochs and the table of all runs; by default both
            are shown in a notebook, and nothing elsewhere.
        **fixed: Fields of the config that all runs share, `recipe` and `data` among them; `data`
            may be a tuple of arrays, as for `fit`.

    Returns:
        The study's runs and their summary; printed, its sentences and tables. What of it could
        not be written is told by its `unwritten`.

    Raises:
        ConfigError: A value does not fit.
        DataError: The data are missing, damaged or unfit.
        MissingPackageError: A backend is not installed.
        RunFolderError: The folder holds something else, is in use or cannot be written.
    """
    expect_whole(seeds, "seeds", 1)
    describe = describer()
    study = completed(
        StudyPlan(
            norms=_listed("norms", norms, "('bn', 'gn')"),
            backends=_listed("backends", backends, "('torch', 'tensorflow')"),
            seeds=tuple(range(seeds)),
            arms=arms,
            rate_scaling=rate_scaling,
            margin=margin,
            one_at_a_time=one_at_a_time,
            vary=_varied({} if vary is None else vary),
            fixed=with_place(fixed),
        ),
        describe,
    )
    place = folder.default(study) if out is None else as_path(out, "out")
    return run_study(study, place, progress, jobs=jobs, describe=describe)


def run_study(
    study: StudyPlan,
    out: Path,
    progress: Progress | None = None,
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    describe: Describe | None = None,
) -> Outcome:
    """Trains the missing runs of a study and writes its tables, figures and report.

    Args:
        study: Plan of the study.
        out: Folder of the study; one that holds a part of it is resumed.
        progress: Receives the number of trained epochs and the table of all runs.
        jobs: Number of runs at a time on this machine.
        scheduler: Address of a Dask scheduler whose workers train instead.
        describe: The `describer` by which the plan was completed.

    Raises:
        ConfigError: A value or a network does not fit, or the scheduler does not answer.
        CorruptFileError: The file of a network is missing, damaged or not safe to open.
        DataError: The data are missing, damaged or unfit.
        MissingPackageError: A backend, or dask.distributed, is not installed.
        RunFolderError: The folder holds something else, is in use or cannot be written.
    """
    expect_whole(jobs, "jobs", 1)
    check(study)
    for config in study.configs().values():
        for name in filter(user_code.is_named, (config.model.norm, config.model.network)):
            user_code.trust(name.rpartition(":")[0])  # the report opens the models that it makes
    study = study.located()
    describe = describe or describer()
    if scheduler is None:
        check_networks(folder.unfinished(out, study), describe)
    else:
        out = out.resolve()  # workers may have another working directory
    with folder.opened(out, study):
        runs = folder.survey(out, study)
        check_content(runs, describe, is_remote=scheduler is not None)
        place = execution.dask(scheduler) if scheduler else execution.local(jobs)
        resume = f"kerasnorm compare --resume {in_command(out)}"
        if scheduler is not None:
            resume += f" --scheduler {scheduler}"
        elif jobs > 1:
            resume += f" --jobs {jobs}"
        execution.execute(out, runs, place, resume, progress)
        return _concluded(out, study, runs)


def rebuild_report(path: Path, out: Path | None = None) -> Path:
    """Writes the tables, figures and report of a study again; returns the report's path.

    With `out`, an HTML file, the folder stays as it is.

    Raises:
        CorruptFileError: The folder holds no study, or none of its runs has finished.
        RunFolderError: It is in use.
    """
    if out is not None:
        study, runs = folder.load(path)
        _write_study_report(path, study, _whole_summary(runs, study), out)
        return out
    with folder.opened(path, plan.read(path)):
        study, runs = folder.load(path)
        _write(path, study, runs, _whole_summary(runs, study))
    return path / folder.REPORT


def redraw(path: Path, out: Path | None = None) -> list[Path]:
    """Draws the figures of a study, by default into its folder; returns their paths.

    Raises:
        CorruptFileError: The folder holds no study, or none of its runs has finished.
        RunFolderError: It is in use.
    """
    with folder.opened(path, plan.read(path)):
        study, runs = folder.load(path)
        summary = _whole_summary(runs, study)
        return [*draw_study(summary, out or path / folder.FIGURES, image_source())]


def _concluded(path: Path, study: StudyPlan, runs: Sequence[PlannedRun]) -> Outcome:
    """Writes what a study, now that its runs have ended, has found; returns its outcome."""
    if not folder.finished(runs):
        return Outcome(path, runs, None)
    summary = _whole_summary(runs, study)
    try:
        _write(path, study, runs, summary)
    except Exception as error:  # whatever cannot be written must not cost the answer
        logger.warning(
            f"{path}: the tables, figures and report are not complete ({type(error).__name__}: "
            f"{error}). The runs are kept. Write the rest with: kerasnorm report {in_command(path)}"
        )
        return Outcome(path, runs, summary, error)
    return Outcome(path, runs, summary)


def _write(path: Path, study: StudyPlan, runs: Sequence[PlannedRun], summary: Summary) -> None:
    """Writes the tables, figures and report of a study into its folder."""
    study_tables.write(path, runs, summary)
    _write_study_report(path, study, summary)


def _write_study_report(
    path: Path, study: StudyPlan, summary: Summary, out: Path | None = None
) -> None:
    """Writes the report of a study, by default with its figures into its folder."""
    one = in_command(path / folder.RUNS / "RUN" / CONFIG)
    elsewhere = "" if out is None else f" --out {in_command(out)}"
    commands = {
        "The study; the same command resumes it:": shlex.join(plan.command(study, str(path))),
        "One of its runs:": f"kerasnorm fit --config {one}",
        "This report:": f"kerasnorm report {in_command(path)}{elsewhere}",
    }
    figures, target = (path / folder.FIGURES, path / folder.REPORT) if out is None else (None, out)
    _write_report(target, path.resolve().name, summary, commands, figures)


def _whole_summary(runs: Sequence[PlannedRun], study: StudyPlan) -> Summary:
    """Returns the summary of the finished runs of a study, with what is known of all others."""
    waiting = sum(run.state in (State.RUNNING, State.WAITING) for run in runs)
    summary = _summarize(folder.finished(runs), study)
    return replace(summary, failures=tuple(_failures(runs, study, summary.axes)), waiting=waiting)


def _summarize(runs: Sequence[Run], study: StudyPlan) -> Summary:
    varied = [name for name, found in study.vary.items() if study.one_at_a_time or len(found) > 1]
    is_ablation = study if study.one_at_a_time else None
    return summarize(runs, varied, is_ablation, study.margin / 100)


def best_run(path: Path) -> Run:
    """Returns the best run of the study in a folder: that of the best group, and of its best seed.

    Runs are ranked by validation accuracy where all have one, else by test accuracy. Groups that
    have fewer seeds than others, because runs failed or are not trained yet, are left out.

    Raises:
        ConfigError: Its runs are on several data sets.
        CorruptFileError: The folder holds no study, or none of its runs has finished.
    """
    study, planned = folder.load(path)
    runs = folder.finished(planned)
    if len(sources := study.vary.get("data", ())) > 1:
        raise ConfigError(
            "--best: expected a study on one data set, whose accuracies can be ranked. Received: "
            f"{path}, on {' and '.join(map(str, sources))}. Name one of its runs instead, such as "
            f"{in_command(runs[0].path)}"
        )
    summary = _summarize(runs, study)
    measure, groups, first = summary.measure, summary.groups, summary.best
    partial = [group for group in groups if len(group.runs) < len(first.runs)]
    if partial:
        names = ", ".join(study_tables.group_label(group, summary) for group in partial)
        logger.warning(f"{path}: groups with fewer seeds than the others are left out: {names}.")
    best = max(first.runs.values(), key=lambda run: float(run.metrics[measure]))
    logger.info(
        f"{path}: {best.path.name}, {in_percent(best.metrics[measure])} %, is the best seed of "
        f"{study_tables.group_label(first, summary)}, which has the highest mean "
        f"{study_tables.measure_text(summary)}, {in_percent(first.mean(measure))} %."
    )
    return best


def _failures(
    runs: Sequence[PlannedRun], study: StudyPlan, axes: Sequence[str]
) -> Iterator[Failure]:
    """Yields the groups of runs of which one has failed; `axes` are those of the summary."""
    changes = study.changes()
    groups: dict[str, list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault(identity(run.config.replace(seed=0)), []).append(run)
    for group in groups.values():
        if failed := [run for run in group if run.state == State.FAILED]:
            config, message = failed[0].config, failed[0].message
            names = changes[identity(config)] if study.one_at_a_time else axes
            fields, model, train = fields_of(config, names), config.model, config.train
            yield Failure(model.norm, train.backend, fields, len(failed), len(group), message)


def check(study: StudyPlan) -> None:
    """Makes sure that a study's backends and loggers are installed, and that its fields fit.

    Raises:
        ConfigError: A group count does not divide a width, a batch is larger than the training
            set, or the run processes would not know a norm.
        MissingPackageError: A backend or logger is not installed.
    """
    for backend in study.backends:
        runtime.check_installed(backend)
    for config in study.configs().values():
        check_loggers(config)
        size, batch = config.data.train_size - config.data.validation, config.train.batch_size
        if 0 < size < batch:
            raise ConfigError(
                f"batch_size: expected at most the {size} training images. Received: "
                f"batch_size={batch}"
            )
        norm = NORMS[config.model.norm]
        if norm not in BUILT_IN and not is_foreign(norm.name):
            raise ConfigError(
                "norm: expected a norm of kerasnorm.norms, which the processes of a study's runs "
                f"know. Received: norm={norm.name!r}, registered in this process only. Add its "
                "record to BUILT_IN, or train with kerasnorm.fit and report on the runs."
            )
        if config.model.is_builtin:  # the layers of others are known when they are made
            check_groups(config.model)


def check_networks(configs: Iterable[Config], describe: Describe) -> None:
    """Makes sure, before anything is written, that networks and norms of the user's can be made.

    A warning says what a run would not tell: instance norms that the user did not ask for, or that
    leave nothing to learn from.
    """
    with ExitStack() as processes:
        by_backend: dict[str, JsonProcess] = {}
        made = set()
        for config in configs:
            model, backend = config.model, config.train.backend
            is_own = not model.is_builtin or user_code.is_named(model.norm)
            if not is_own and not _has_instance_norms(model):
                continue
            dataset = describe(config.data)
            key = model, backend, dataset.image_shape, dataset.class_names
            if key in made:
                continue
            made.add(key)
            if backend not in by_backend:
                by_backend[backend] = processes.enter_context(JsonProcess(probe.MODULE))
            sizes = {"image_shape": dataset.image_shape, "classes": len(dataset.class_names)}
            try:
                task = {"task": "build", "config": config.fields, "sizes": sizes}
                if note := by_backend[backend].ask(task)["note"]:
                    logger.warning(note)
            except CorruptFileError as error:
                raise CorruptFileError(
                    f"{error} No run was touched: repeat the command once the network opens."
                ) from None


def _has_instance_norms(model: ModelConfig) -> bool:
    """Returns whether norms of the built-in network have statistics per image and channel."""
    record = NORMS[model.norm]
    is_alone = any(record.groups(model, width) == width for width in model.normalized_widths)
    return is_alone and bool(record.axes) and 0 not in record.axes


def check_content(
    runs: Sequence[PlannedRun], describe: Describe, *, is_remote: bool = False
) -> None:
    """Makes sure, before any run is trained, that the data are there and are those of the runs.

    With `is_remote`, the workers of a Dask scheduler train, which may have the data alone.

    Raises:
        DataError: The data of a run to train are missing or damaged, or are not those that a run of
            the study was trained on.
    """
    data = dict.fromkeys(loading(run.config.data) for run in runs if not run.finished)
    for config in data:
        try:
            dataset = describe(config)
        except DataError as error:
            if not is_remote:
                raise
            logger.warning(f"{error} The workers must have them.")
            continue
        for run in runs:
            if loading(run.config.data) == config:
                check_data(run.path, dataset)


def report_on_runs(runs: Sequence[Run], target: Path) -> None:
    """Writes a report on some finished runs to an HTML file."""
    paths = " ".join(in_command(run.path) for run in runs)
    names = [run.path.resolve().name for run in runs]
    commands = {
        f"{name}:": f"kerasnorm fit --config {in_command(run.path / CONFIG)}"
        for name, run in zip(names, runs, strict=True)
    }
    commands["This report:"] = f"kerasnorm report {paths} --out {in_command(target)}"
    name = names[0] if len(runs) == 1 else f"{len(runs)} runs"
    _write_report(target, name, summarize(runs), commands)


def _write_report(
    target: Path,
    name: str,
    summary: Summary,
    commands: Mapping[str, str],
    figures: Path | None = None,
) -> None:
    """Writes a report; its pictures are kept in the folder `figures`, if one is given."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        pictures = draw_study(summary, figures or Path(temporary), image_source())
        layers = _layers(summary.groups[0].first)
        html = report.render(_title(name, summary), summary, pictures, commands, layers)
    write_bytes(target, encoded(html))


def _title(name: str, summary: Summary) -> str:
    """Returns the title of a report: its name, and all data sets, networks and recipes."""
    configs = [run.config for run in summary.runs]
    networks = [*dict.fromkeys(config.model.network_title for config in configs)]
    recipes = [*dict.fromkeys(config.recipe for config in configs)]
    data = " and ".join(dict.fromkeys(data_name(run) for run in summary.runs))
    network = "" if networks == [BUILTIN] else f"in {' and '.join(networks)} "
    recipe = f"{'recipe' if len(recipes) == 1 else 'recipes'} {' and '.join(recipes)}"
    title = f"{name}: normalization compared {network}on {data}, {recipe}"
    if summary.compares_norms:
        title += f", {'tuned' if summary.unmatched else 'matched'} arms"
    return title


def _layers(run: Run) -> tables.Table | None:
    """Returns the receptive fields of a run's model; None, maybe after a warning, without them."""
    if not (run.path / MODEL).is_file():
        return None
    try:
        runtime.import_keras()
        from kerasnorm.inspection.layers import receptive_field, receptive_field_table

        rows = receptive_field(run.model())
    except (KerasnormError, OSError) as error:
        logger.warning(f"The report has no table of receptive fields: {error}")
        return None
    return receptive_field_table(
        rows, f"Receptive field of {run.config.model.title}", with_published=False
    )


def image_source() -> Callable[[Run], Images | None]:
    """Returns a function that loads the test images of a run, once per data set.

    The function returns None, after a warning, where they are missing or not those of the run.
    """
    loaded = cache(prepare)

    def load(config: DataConfig, seed: int) -> Dataset:
        # The test images depend on neither the seed nor the images held out.
        return loaded(replace(loading(config), preprocessing=config.preprocessing), 0)

    return lambda run: run.test_images(load)
