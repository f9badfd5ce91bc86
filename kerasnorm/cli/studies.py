"""Commands on many runs: `compare` and `report`."""

import copy
import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasnorm import runtime
from kerasnorm.cli import options as opt
from kerasnorm.config import ARMS, BACKENDS, RATE_POWERS, SETTINGS
from kerasnorm.errors import ConfigError, DataError
from kerasnorm.files import in_command, short_name
from kerasnorm.norms import COMPARED, NORMS
from kerasnorm.progress import ConsoleProgress
from kerasnorm.study.intervals import MARGIN

if TYPE_CHECKING:
    from kerasnorm.study.plan import StudyPlan
    from kerasnorm.study.study import Outcome

logger = logging.getLogger(__name__)

SEEDS_BY_DEFAULT = 3

STUDY_OPTIONS: tuple[opt.Decorator, ...] = (
    click.option(
        "--norm",
        "norms",
        multiple=True,
        type=click.Choice(NORMS),
        help=f"Norm; repeatable. By default {', '.join(COMPARED)}.",
    ),
    click.option(
        "--backend",
        "backends",
        multiple=True,
        type=click.Choice(BACKENDS),
        help="Keras backend; repeatable. By default the first installed.",
    ),
    click.option(
        "--seeds",
        type=click.IntRange(1),
        help=f"Number of seeds. By default {SEEDS_BY_DEFAULT}.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        help="First seed; the others follow it. By default 0.",
    ),
    click.option(
        "--vary",
        multiple=True,
        metavar="FIELD=V,V,…",
        help="Values of a config field, such as batch_size=8,32; repeatable. A field that a norm "
        "does not use adds no runs of that norm.",
    ),
    click.option(
        "--one-at-a-time",
        is_flag=True,
        help="Run an ablation: change one --vary value at a time from the base config, and report "
        "its effect. By default all combinations are trained.",
    ),
    click.option(
        "--arms",
        type=click.Choice(ARMS),
        help="Whether the norms' runs differ in the norm alone (matched), or each norm has the "
        "values that the recipe holds for it (tuned). By default matched.",
    ),
    click.option(
        "--rate-scaling",
        type=click.Choice(tuple(RATE_POWERS)),
        help="How the peak learning rate follows a varied batch size: none, linear, or sqrt. By "
        "default linear with sgd (Goyal et al., arXiv 1706.02677), else sqrt (Malladi et al., "
        "arXiv 2205.10782).",
    ),
    click.option(
        "--margin",
        type=click.FloatRange(0),
        metavar="POINTS",
        help="Largest difference in accuracy, in percentage points, that does not matter to you. "
        f"By default {100 * MARGIN:g}.",
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder for the study, which is resumed if it has been started there. By default one "
        "under results/studies.",
    ),
    click.option(
        "--resume",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Resume the study in this folder, as planned in its study.toml; give --data too if "
        "its data were moved.",
    ),
    click.option(
        "--jobs",
        "-j",
        default=1,
        show_default=True,
        type=click.IntRange(1),
        help="Number of runs to train at a time on this machine; they share its cores.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Train on the workers of this Dask scheduler, such as tcp://host:8786.",
    ),
    click.option("--dry-run", is_flag=True, help="Only list the runs and estimate their time."),
    opt.as_json,
    opt.quiet,
    opt.config_options("model", "data", "train", without=("norm", "backend", "seed")),
)


def _study_options(function: Any) -> Any:
    """Adds `STUDY_OPTIONS`."""
    for decorate in reversed(STUDY_OPTIONS):
        function = decorate(function)
    return function


@click.command(cls=opt.ConfigCommand)
@_study_options
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
    """Train several norms on several seeds, compare them, and vary any field of the config.

    The same command resumes an interrupted study: finished runs are kept. With --one-at-a-time it
    is an ablation, which changes one value at a time from the base config.

    Example: kerasnorm compare --norm bn --norm gn --vary batch_size=8,32,128 --seeds 3
    """
    from kerasnorm.study import execution, folder, study

    if resume is not None:
        typed = [name for name in (*options, "out") if name != "data" and opt.is_typed(name)]
        if typed:
            flag = {"norms": "norm", "backends": "backend"}.get(typed[0], typed[0])
            raise ConfigError(
                f"--resume uses the plan of the study: leave out --{flag.replace('_', '-')}."
            )
        plan, out = folder.read_plan(resume), resume
        if opt.is_typed("data"):  # the data were moved
            if "data" in plan.vary:
                raise ConfigError("--data: the study varies its data; repeat its command instead.")
            plan = replace(plan, fixed={**plan.fixed, "data": options["data"]}).located()
    else:
        plan = _plan(options)
        out = out or _default_folder(plan)
    if dry_run:
        _dry_run(plan, out, jobs, scheduler, as_json)
        return
    progress = ConsoleProgress(quiet=quiet)
    if progress.is_live:  # its table shows every event
        logging.getLogger(execution.EVENTS).setLevel(logging.WARNING)
    outcome = study.run_study(plan, out, progress, jobs=jobs, scheduler=scheduler)
    _print_outcome(outcome, as_json)
    if (error := outcome.failure()) is not None:
        raise error


def _plan(options: dict[str, Any]) -> "StudyPlan":
    """Returns the plan of the options; `auto` is resolved, so that hashes identify the runs."""
    from kerasnorm.study.plan import StudyPlan, parse_vary

    given = {k: v for k, v in opt.given(options).items() if k in SETTINGS or k == "recipe"}
    given.pop("seed", None)
    vary = parse_vary(options["vary"])
    if options["one_at_a_time"] and not vary:
        raise ConfigError("--one-at-a-time: expected --vary FIELD=VALUE,VALUE too. Received: none.")
    if both := set(vary) & set(given):
        name = sorted(both)[0]
        raise ConfigError(f"{name}: expected either --{name.replace('_', '-')} or --vary {name}=…")
    first, count = options["seed"] or 0, options["seeds"] or SEEDS_BY_DEFAULT
    backends = tuple(dict.fromkeys(options["backends"])) or (runtime.select_backend(),)
    for backend in backends:
        runtime.check_installed(backend)
    plan = StudyPlan(
        norms=tuple(dict.fromkeys(options["norms"])) or COMPARED,
        backends=backends,
        seeds=tuple(range(first, first + count)),
        vary=vary,
        fixed=given,
        arms=options["arms"] or ARMS[0],
        rate_scaling=options["rate_scaling"] or "none",
        margin=100 * MARGIN if options["margin"] is None else options["margin"],
        one_at_a_time=options["one_at_a_time"],
    )
    configs = plan.configs()  # refuses a value that is out of range before any data are read
    if "batch_size" in vary and options["rate_scaling"] is None and "learning_rate" not in vary:
        is_sgd = {config.train.optimizer for config in configs.values()} == {"sgd"}
        plan = replace(plan, rate_scaling="linear" if is_sgd else "sqrt")
        logger.warning(
            f"The peak learning rate follows the batch size: --rate-scaling {plan.rate_scaling}. "
            "With a fixed rate (--rate-scaling none) you would compare rates as well."
        )
    elif options["rate_scaling"] and "batch_size" not in vary:
        raise ConfigError("--rate-scaling: expected --vary batch_size=… beside it. Received: none.")
    return _with_data(plan).located()


def _with_data(plan: "StudyPlan") -> "StudyPlan":
    """Returns the plan with `auto` resolved, and with a validation split where it decides.

    Where the data have no test set of their own, the images that this package sets aside for the
    test must not choose the norm too: as many training images are held out for validation.
    """
    from kerasnorm.data import load, prepare
    from kerasnorm.data.sources import locate

    fixed = dict(plan.fixed)
    if "data" not in plan.vary and fixed.get("data", "auto") == "auto":
        fixed["data"] = load("auto").name
        plan = replace(plan, fixed=fixed)
    if {"data", "validation", "test_size"} & {*plan.vary} or "validation" in fixed:
        return plan
    config = next(iter(plan.configs().values()))
    if not Path(locate(config.data.data)).is_absolute():  # a data set that is known by its name
        return plan
    try:
        data = prepare(config.data, 0)
    except DataError:  # the study says so, unless its workers have them elsewhere
        return plan
    if data.has_own_test or data.validation is not None:
        return plan
    logger.warning(
        f"{data.source}: the data have no test set of their own, so {len(data.test)} images are "
        f"held out for it and {len(data.test)} for validation, by which the norms are ranked "
        "(--validation)."
    )
    return replace(plan, fixed={**fixed, "validation": len(data.test)})


def _default_folder(plan: "StudyPlan") -> Path:
    """Returns a folder named after all but the seeds, so that more seeds use the same folder."""
    plain = replace(plan, seeds=(), margin=0.0).to_dict()
    suffix = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:6]
    data = Path(str(plan.fixed.get("data", "data"))).name
    varied = ["one-at-a-time"] if plan.one_at_a_time else [*plan.vary]  # all names: too long
    name = short_name("-".join([data, *plan.norms, *varied]))
    return Path("results/studies") / f"{name}-{suffix}"


def _dry_run(plan: "StudyPlan", out: Path, jobs: int, scheduler: str | None, as_json: bool) -> None:
    """Prints the runs of a study with their estimated time."""
    from kerasnorm.data import prepare
    from kerasnorm.study import execution, folder, study, tables

    study.check(plan)
    runs = folder.survey(out, plan)
    lanes = execution.lanes(scheduler) if scheduler else jobs
    first = runs[0].config
    data = prepare(first.data, first.train.seed)
    estimates = execution.estimate(runs, data, threads=max(1, runtime.cores() // jobs))
    if not as_json:
        opt.print_table(tables.plan_table(estimates, lanes))
        return
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
    total = execution.makespan(estimates, lanes)
    opt.print_json({"path": str(out), "at_a_time": lanes, "seconds": total, "runs": rows})


def _print_outcome(outcome: "Outcome", as_json: bool) -> None:
    from kerasnorm.study import folder, tables

    found = outcome.summary
    if as_json:
        rows = [tables.run_row(run, found.axes if found else ()) for run in outcome.runs]
        document = found.to_dict() if found else {}
        opt.print_json({"path": str(outcome.path), "runs": rows, **document})
    elif found:
        for sentence in tables.sentences(found):
            click.echo(sentence)
        opt.print_table(tables.group_table(found))
        if found.failures:
            opt.print_table(tables.failure_table(found))
        if found.effects:
            opt.print_table(tables.effect_table(found))
        elif found.differences:
            opt.print_table(tables.difference_table(found))
        if found.changes:
            opt.print_table(tables.change_table(found))
        if found.published:
            opt.print_table(tables.published_table(found))
        if len(found.groups) > 1:
            opt.print_table(tables.answer_table(found))
        click.echo(
            f"folder  {outcome.path}\nreport  {outcome.path / folder.REPORT}\n"
            f"next    kerasnorm export {in_command(outcome.path)} --best --format onnx"
        )


@click.command()
@click.argument(
    "paths", metavar="STUDY-OR-RUN…", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="HTML file to write. By default report.html in the folder of the study or run, or in "
    "results/plots for several runs.",
)
@opt.as_json
def report(paths: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write one HTML file with the findings, figures and commands of a study or of runs.

    The tables and figures of a study are rebuilt from its finished runs.

    Example: kerasnorm report results/best
    """
    from kerasnorm.study import folder, study
    from kerasnorm.training.run import Run

    if len(paths) == 1 and folder.is_study(paths[0]) and out is None:
        target = study.rebuild_report(paths[0])
    else:
        runs: list[Run] = []
        for path in paths:
            runs += folder.load(path)[1] if folder.is_study(path) else [Run.load(path)]
        is_one_study = len(paths) == 1 and folder.is_study(paths[0])
        plan = folder.read_plan(paths[0]) if is_one_study else None
        parent = paths[0] if len(paths) == 1 else Path("results/plots")
        target = out or parent / folder.REPORT
        target.parent.mkdir(parents=True, exist_ok=True)
        study.report_on_runs(runs, target, plan)
    if as_json:
        opt.print_json({"report": str(target)})
    else:
        click.echo(target)


# The former name of `compare` with `--vary`, which scripts may use.
sweep = copy.copy(compare)
sweep.name, sweep.hidden = "sweep", True
COMMANDS = (compare, sweep, report)
