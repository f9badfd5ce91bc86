"""`kerasnorm fit`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasnorm.cli import options as opt
from kerasnorm.config import to_toml
from kerasnorm.errors import ConfigError
from kerasnorm.process_group import this_launch
from kerasnorm.progress import ConsoleProgress, counted, duration, in_percent, rounded

if TYPE_CHECKING:
    from kerasnorm.training.run_folder import Row


@click.command(cls=opt.ConfigCommand)
@opt.config_file
@opt.trust_option
@click.option(
    "--out",
    type=opt.PATH,
    help="New or empty folder for the run. By default one under results/runs.",
)
@click.option(
    "--resume",
    metavar="RUN|auto",
    help="Resume the unfinished run in this folder; give --data too if its data were moved. With "
    "auto, resume the run in --out, or start it if there is none.",
)
@click.option("--dry-run", is_flag=True, help="Print the resolved config and exit.")
@opt.as_json
@opt.quiet
@opt.config_options("model", "data", "train")
def fit(
    config_file: Path | None,
    out: Path | None,
    resume: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train one model and write its run folder.

    The folder holds the model, history, metrics and plots. Every field of the config can also be
    set in the --config file and by an environment variable KERASNORM_<FIELD>.

    In a batch queue, this command starts or resumes a run:
    kerasnorm fit --out runs/gn --resume auto

    Example: kerasnorm fit --norm gn --backend torch
    """
    config, overrides = None, {}
    if resume in (None, "auto") or config_file is not None:
        config = opt.resolve_options(options, config_file)
    else:  # environment variables are defaults of new runs and do not change old ones
        overrides = {name: v for name, v in opt.given(options).items() if opt.is_typed(name)}
    if dry_run:
        if config is None:
            raise ConfigError("--dry-run shows the config of a new run; leave out --resume.")
        opt.show(as_json, config.to_dict(), to_toml(config).removesuffix("\n"))
        return
    is_first = this_launch().rank == 0
    opt.only_errors(not is_first)  # the first process reports for all
    from kerasnorm.training.fit import fit as train

    run = train(config, out=out, resume=resume, progress=ConsoleProgress(quiet=quiet), **overrides)
    if is_first:
        opt.show(as_json, {"path": run.path, **run.metrics}, results(run.history, run.path))


def results(history: "Sequence[Row]", folder: Path) -> str:
    """Returns the result of a run as text: scores of the last epoch, time and folder."""
    lines = []
    last: Row = history[-1] if history else {}
    for name, word in (("train", "train"), ("val", "validation"), ("test", "test")):
        loss, accuracy = last.get(f"{name}_loss"), last.get(f"{name}_accuracy")
        if loss is not None and accuracy is not None:
            lines.append(
                f"{word:<11}accuracy {in_percent(accuracy):>6} %   loss {rounded(loss, 4)}"
            )
    seconds = sum(row.get("seconds") or 0.0 for row in history)
    lines.append(f"{'trained':<11}{counted(len(history), 'epoch')} in {duration(seconds)}")
    lines.append(f"{'folder':<11}{folder}")
    return "\n".join(lines)


COMMANDS = (fit,)
