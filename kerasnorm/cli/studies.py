"""Commands on many runs: `compare` and `report`."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasnorm.cli import options as opt
from kerasnorm.config import ARMS, BACKENDS, RATE_SCALINGS, SETTINGS
from kerasnorm.errors import ConfigError
from kerasnorm.files import in_command
from kerasnorm.norms import COMPARED, NORMS
from kerasnorm.progress import ConsoleProgress

if TYPE_CHECKING:
    from kerasnorm.study.folder import PlannedRun
    from kerasnorm.study.plan import StudyPlan
    from kerasnorm.study.study import Describe, Outcome
    from kerasnorm.tables import Table

SEEDS_BY_DEFAULT = 3


@click.command(cls=opt.ConfigCommand)
@opt.repeatable(
    "norm",
    "Norm, or your own layer as package.module:Layer; repeatable. By default "
    f"{', '.join(COMPARED)}.",
    opt.NormName(tuple(NORMS)),
)
@opt.repeatable(
    "backend",
    "Keras backend; repeatable. By default the first installed.",
    click.Choice(BACKENDS),
)
@click.option(
    "--seeds", type=click.IntRange(1), help=f"Number of seeds. By default {SEEDS_BY_DEFAULT}."
)
@click.option(
    "--seed", type=click.IntRange(0), help="First seed; the others follow it. By default 0."
)
@click.option(
    "--vary",
    multiple=True,
    metavar="FIELD=V,V,…",
    help="Values of a config field, such as batch_size=8,32; repeatable. Lists are separated by "
    "semicolons, in quotes: 'image_size=32,32;64,64'. A field that a run does not read, such "
    "as cutout_size without cutout, adds no runs.",
)
@click.option(
    "--one-at-a-time",
    is_flag=True,
    help="Run an ablation: change one --vary value at a time from the base config, and report "
    "its effect. By default all combinations are trained.",
)
@click.option(
    "--arms",
    default=ARMS[0],
    type=click.Choice(ARMS),
    help="Whether the norms' runs differ in the norm alone (matched), or each norm has the "
    "values that the recipe holds for it (tuned).",
)
@click.option(
    "--rate-scaling",
    default=RATE_SCALINGS[0],
    type=click.Choice(RATE_SCALINGS),
    help="How the peak learning rate follows a varied batch size: not at all, linearly, or by "
    "its square root; auto: linearly with sgd, else by the square root.",
)
@opt.margin_option
@click.option(
    "--out",
    type=opt.OUT_FOLDER,
    help="Folder for the study, which is resumed if it has been started there. By default one "
    "under results/studies.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Resume the study in this folder, as planned in its study.toml; give --data too if "
    "its data were moved.",
)
@click.option(
    "--jobs",
    "-j",
    default=1,
    type=click.IntRange(1),
    help="Number of runs to train at a time on this machine; they share its cores.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Train on the workers of this Dask scheduler, such as tcp://host:8786.",
)
@click.option("--dry-run", is_flag=True, help="Only list the runs and estimate their time.")
@opt.trust_option
@opt.as_json
@opt.quiet
@opt.config_options("model", "data", "train", without=("norm", "backend", "seed"))
def compare(
    resume: Path | None,
    out: Path | None,
    jobs: int,
    scheduler: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train several norms on several seeds and compare them.

    --vary repeats this at several values of any field of the config. With --one-at-a-time it is
    an ablation, which changes one value at a time from the base config. The same command resumes
    an interrupted study: finished runs are kept.

    Example: kerasnorm compare --norm bn --norm gn --vary batch_size=8,32,128 --seeds 3
    """
    from kerasnorm.study import execution, folder, study
    from kerasnorm.study.plan import read

    describe = study.describer()
    if resume is not None:
        if flag := opt.typed_flag(*({*options} - {"data"}), "out"):
            raise ConfigError(f"--resume uses the plan of the study: leave out {flag}.")
        plan, out = read(resume), resume
        if opt.is_typed("data"):  # the data were moved
            if "data" in plan.vary:
                raise ConfigError("--data: the study varies its data; repeat its command instead.")
            plan = replace(plan, fixed={**plan.fixed, "data": options["data"]}).located()
    else:
        plan = _plan(options, describe)
        out = out or folder.default(plan)
    if dry_run:
        study.check(plan)
        runs = folder.survey(out, plan)
        if scheduler is None:
            study.check_networks([run.config for run in runs if not run.finished], describe)
        study.check_content(runs, describe, is_remote=scheduler is not None)
        _dry_run(runs, out, jobs, scheduler, as_json)
        return
    progress = ConsoleProgress(quiet=quiet)
    if progress.is_live:  # its table shows every event
        logging.getLogger(execution.EVENTS).setLevel(logging.WARNING)
    outcome = study.run_study(
        plan, out, progress, jobs=jobs, scheduler=scheduler, describe=describe
    )
    _print_outcome(outcome, as_json)
    if (error := outcome.failure()) is not None:
        raise error


def _plan(options: dict[str, Any], describe: "Describe | None" = None) -> "StudyPlan":
    """Returns the plan of the options; `auto` is resolved, so that hashes identify the runs."""
    from kerasnorm.study.plan import StudyPlan, parse_vary
    from kerasnorm.study.study import completed

    given = {k: v for k, v in opt.given(options).items() if k in SETTINGS or k == "recipe"}
    given.pop("seed", None)
    first, count = options["seed"] or 0, options["seeds"] or SEEDS_BY_DEFAULT
    return completed(
        StudyPlan(
            norms=tuple(dict.fromkeys(options["norms"])) or COMPARED,
            backends=tuple(dict.fromkeys(options["backends"])),
            seeds=tuple(range(first, first + count)),
            arms=options["arms"],
            rate_scaling=options["rate_scaling"],
            margin=options["margin"],
            one_at_a_time=options["one_at_a_time"],
            vary=parse_vary(options["vary"]),
            fixed=given,
        ),
        describe,
    )


def _dry_run(
    runs: "Sequence[PlannedRun]", out: Path, jobs: int, scheduler: str | None, as_json: bool
) -> None:
    """Prints the runs of a study with their estimated time."""
    from kerasnorm.study import execution, tables
    from kerasnorm.study.estimate import estimate, makespan

    slots = execution.slots(scheduler) if scheduler else {"": jobs}
    lanes = max(1, sum(slots.values()))
    estimates = estimate(runs, max(slots.values(), default=1))
    rows = [
        {
            "run": one.run.name,
            "config": one.run.config.to_dict(),
            "finished": one.run.finished is not None,
            "seconds": one.seconds,
            "rate_from": one.source,
        }
        for one in estimates
    ]
    total = makespan(estimates, lanes)
    document = {"path": out, "at_a_time": lanes, "seconds": total, "runs": rows}
    opt.show(as_json, document, tables.plan_table(estimates, lanes))


def _print_outcome(outcome: "Outcome", as_json: bool) -> None:
    from kerasnorm.study import folder, tables
    from kerasnorm.study.sentences import sentences

    found, path = outcome.summary, outcome.path
    rows = [tables.run_row(run, found.axes if found else ()) for run in outcome.runs]
    shown: list[str | Table] = []
    if found:
        shown += [*sentences(found), *tables.all_tables(found)]
        shown += [f"folder  {path}", f"report  {path / folder.REPORT}"]
    if found and "data" not in found.axes:  # accuracies on several data sets have no best
        shown.append(f"next    kerasnorm export {in_command(path)} --best --format onnx")
    document = found.to_dict() if found else {}
    opt.show(as_json, {"path": path, "runs": rows, **document}, *shown)


@click.command()
@click.argument("paths", metavar="STUDY-OR-RUN…", nargs=-1, required=True, type=opt.PATH)
@click.option(
    "--out",
    type=opt.OUT_HTML,
    help="HTML file to write. By default report.html in the folder of the study or run, or in "
    "results/plots for several runs.",
)
@opt.trust_option
@opt.as_json
def report(paths: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write one HTML file about a study or about runs.

    It holds their results, figures and commands. The tables and figures of a study are rebuilt
    from its finished runs.

    Example: kerasnorm report results/best
    """
    from kerasnorm.study import folder, study
    from kerasnorm.training.run import Run

    if len(paths) == 1 and folder.is_study(paths[0]):
        target = study.rebuild_report(paths[0], out)
    else:
        runs: list[Run] = []
        for path in paths:
            is_study = folder.is_study(path)
            runs += folder.finished(folder.load(path)[1]) if is_study else [Run.load(path)]
        parent = paths[0] if len(paths) == 1 else Path("results/plots")
        target = out or parent / folder.REPORT
        study.report_on_runs(runs, target)
    opt.show(as_json, {"report": target}, str(target))


# The former name of `compare` with `--vary`, which scripts may use.
sweep = copy.copy(compare)
sweep.name, sweep.hidden = "sweep", True
COMMANDS = (compare, sweep, report)
