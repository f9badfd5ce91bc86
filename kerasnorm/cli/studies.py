"""Commands on many runs: `compare`, `sweep` and `report`."""

import logging
from pathlib import Path
from typing import Any

import click

from kerasnorm import runtime
from kerasnorm.cli import options as opt
from kerasnorm.config import BACKENDS, SETTINGS
from kerasnorm.errors import ConfigError
from kerasnorm.norms import COMPARED, NORMS
from kerasnorm.progress import ConsoleProgress

SEEDS_BY_DEFAULT = 3


STUDY_OPTIONS: tuple[opt.Decorator, ...] = (
    click.option(
        "--norm",
        "norms",
        multiple=True,
        type=click.Choice(NORMS),
        help=f"Norm; more than one may be given. By default {', '.join(COMPARED)}.",
    ),
    click.option(
        "--backend",
        "backends",
        multiple=True,
        type=click.Choice(BACKENDS),
        help="Keras backend, likewise. By default the first installed.",
    ),
    click.option(
        "--seeds",
        type=click.IntRange(1),
        help=f"How many seeds. By default {SEEDS_BY_DEFAULT}.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        help="The first seed, by default 0; others follow.",
    ),
    click.option(
        "--vary",
        multiple=True,
        metavar="FIELD=V,V,…",
        help="Values of a config field, such as batch_size=8,32; more than one may be "
        "given. A field that a norm does not read does not multiply its runs.",
    ),
    click.option(
        "--one-at-a-time",
        is_flag=True,
        help="Train each value of --vary alone, beside the base that the other options say, "
        "and tell what each does: an ablation. By default all combinations.",
    ),
    click.option(
        "--linear-rate",
        is_flag=True,
        help="Scale the peak learning rate with the batch size.",
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        help="The study's folder; one that holds a part of the study is gone on with. "
        "By default one under results/studies.",
    ),
    click.option(
        "--resume",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Go on with the study in this folder, as its study.toml says.",
    ),
    click.option(
        "--jobs",
        "-j",
        default=1,
        show_default=True,
        type=click.IntRange(1),
        help="Runs at a time on this machine; they share its cores.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Let the workers of this Dask scheduler train: tcp://host:8786.",
    ),
    click.option("--dry-run", is_flag=True, help="List the runs, estimate their time, and stop."),
    opt.as_json,
    opt.quiet,
    opt.config_options("model", "data", "train", without=("norm", "backend", "seed")),
)


def _study_options(function: Any) -> Any:
    """Adds the options that compare and sweep share."""
    for decorate in reversed(STUDY_OPTIONS):
        function = decorate(function)
    return function


@click.command(cls=opt.ConfigCommand)
@_study_options
def compare(**options: Any) -> None:
    """Train several norms on several seeds and compare them in one study folder.

    The same command again goes on where it stopped: finished runs are kept.

    Example: kerasnorm compare --norm bn --norm gn --norm ln --backend torch --seeds 3
    """
    _conduct(**options)


@click.command(cls=opt.ConfigCommand)
@_study_options
def sweep(**options: Any) -> None:
    """Vary any fields of the config, over several norms and seeds, in one study folder.

    With --one-at-a-time each value is trained alone, beside the base: what does it do by itself?

    Example: kerasnorm sweep --vary batch_size=2,4,8,16,32 --norm bn --norm gn
    """
    if not options["vary"] and options["resume"] is None:
        raise ConfigError("sweep: expected --vary FIELD=VALUE,VALUE. Received: none.")
    _conduct(**options)


def _conduct(
    resume: Path | None,
    out: Path | None,
    jobs: int,
    scheduler: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    from kerasnorm.study import folder

    if resume is not None:
        typed = [name for name in (*options, "out") if opt.is_typed(name)]
        if typed:
            flag = {"norms": "norm", "backends": "backend"}.get(typed[0], typed[0])
            raise ConfigError(
                f"--resume takes the study's own grid: leave out --{flag.replace('_', '-')}."
            )
        grid, out = folder.read_grid(resume), resume
    else:
        grid = _grid(options)
        out = out or _default_folder(grid)
    if dry_run:
        _plan(grid, out, jobs, scheduler, as_json)
        return
    from kerasnorm.study import lab, runner

    progress = ConsoleProgress(quiet=quiet)
    if progress.is_live:  # its table shows every event
        logging.getLogger(runner.EVENTS).setLevel(logging.WARNING)
    outcome = lab.conduct(grid, out, progress, jobs=jobs, scheduler=scheduler)
    _print_outcome(outcome, as_json)
    if (error := outcome.failure()) is not None:
        raise error


def _grid(options: dict[str, Any]) -> Any:
    """Returns the grid of the options, `auto` resolved so that runs can be told by their hash."""
    from kerasnorm.study.plan import Grid, parse_vary, with_data

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
    grid = Grid(
        norms=tuple(dict.fromkeys(options["norms"])) or COMPARED,
        backends=backends,
        seeds=tuple(range(first, first + count)),
        vary=vary,
        fixed=given,
        linear_rate=options["linear_rate"],
        one_at_a_time=options["one_at_a_time"],
    )
    grid.configs()  # refuses a value that is out of range before any data are read
    if "data" not in vary and given.get("data", "auto") == "auto":
        from kerasnorm.data import load

        grid = with_data(grid, load("auto").name)
    return grid


def _default_folder(grid: Any) -> Path:
    """Returns a folder named after what all runs share, so that more seeds go to the same."""
    import hashlib
    import json
    from dataclasses import replace

    plain = replace(grid, seeds=()).to_dict()
    mark = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:6]
    data = Path(str(grid.fixed.get("data", "data"))).name
    varied = ["one-at-a-time"] if grid.one_at_a_time else [*grid.vary]  # many would be too long
    return Path("results/studies") / "-".join([data, *grid.norms, *varied, mark])


def _plan(grid: Any, out: Path, jobs: int, scheduler: str | None, as_json: bool) -> None:
    """Prints the runs of a study and the time that they are expected to take."""
    from kerasnorm.data.prepare import prepare
    from kerasnorm.study import cluster, findings, folder, lab
    from kerasnorm.study.estimate import estimate, makespan

    lab.check(grid)
    found = folder.survey(out, grid)
    lanes = cluster.lanes(scheduler) if scheduler else jobs
    threads = max(1, runtime.cores() // jobs)
    first = found[0].config
    data = prepare(first.data, first.train.seed)
    estimates = estimate(found, data, threads)
    if as_json:
        runs = [
            {
                "run": one.job.name,
                "config": one.job.config.to_dict(),
                "finished": one.job.done is not None,
                "seconds": one.seconds,
                "rate_from": one.source,
            }
            for one in estimates
        ]
        total = makespan(estimates, lanes)
        opt.print_json({"path": str(out), "at_a_time": lanes, "seconds": total, "runs": runs})
    else:
        opt.print_table(findings.plan_table(estimates, lanes))


def _print_outcome(outcome: Any, as_json: bool) -> None:
    from kerasnorm.study import findings, folder, sheets, summary

    found = outcome.summary
    axes = found.axes if found else ()
    if as_json:
        rows = [sheets.run_row(entry, axes) for entry in outcome.entries]
        document = summary.to_dict(found) if found else {}
        opt.print_json({"path": str(outcome.path), "runs": rows, **document})
    elif found:
        opt.print_table(findings.group_table(found))
        if found.levers:
            opt.print_table(findings.lever_table(found))
        elif found.differences:
            opt.print_table(findings.difference_table(found))
        if found.published:
            opt.print_table(findings.published_table(found))
        click.echo(f"folder  {outcome.path}\nreport  {outcome.path / folder.REPORT}")


@click.command()
@click.argument(
    "paths", metavar="STUDY-OR-RUN…", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The HTML file; by default report.html in a study or run, for several runs in "
    "results/plots.",
)
@opt.as_json
def report(paths: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write one HTML file with the findings, figures and commands of a study or of runs.

    A study's tables and figures are made anew from its finished runs.

    Example: kerasnorm report results/best
    """
    from kerasnorm.study import folder, lab
    from kerasnorm.training.run import Run

    studies = [path for path in paths if folder.is_study(path)]
    if studies == [*paths] and len(paths) == 1 and out is None:
        target = lab.renew(paths[0])
    else:
        runs: list[Run] = []
        for path in paths:
            runs += folder.load(path)[1] if path in studies else [Run.load(path)]
        study = folder.read_grid(paths[0]) if studies and len(paths) == 1 else None
        alone = paths[0] if len(paths) == 1 else Path("results/plots")
        target = out or alone / folder.REPORT
        target.parent.mkdir(parents=True, exist_ok=True)
        lab.report_on_runs(runs, target, study)
    if as_json:
        opt.print_json({"report": str(target)})
    else:
        click.echo(target)


COMMANDS = (compare, sweep, report)
