"""`kerasnorm fit`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasnorm.cli import options as opt
from kerasnorm.config import to_toml
from kerasnorm.errors import ConfigError
from kerasnorm.progress import ConsoleProgress, duration
from kerasnorm.training.launch import this_launch

if TYPE_CHECKING:
    from kerasnorm.training.run import Row

AUTO = "auto"


@click.command(cls=opt.ConfigCommand)
@opt.config_file
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder; new or empty.")
@click.option(
    "--resume",
    metavar="RUN|auto",
    help="Go on with the unfinished run in this folder; auto starts the run in --out, or goes on "
    "with it where it was begun.",
)
@click.option("--dry-run", is_flag=True, help="Print the resolved config and stop.")
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
    """Train one model; leave its run's folder with model, history and plots.

    Every field can also come from --config and from KERASNORM_<FIELD>.

    On a batch queue, one line that starts or goes on:
    kerasnorm fit --out runs/gn --resume auto

    Example: kerasnorm fit --norm gn --backend torch
    """
    is_auto = resume == AUTO
    if is_auto and out is None:
        raise ConfigError("--resume auto needs the folder of the run: --out DIR.")
    if resume is not None and not is_auto:
        if out is not None or config_file is not None:
            raise ConfigError(
                "--resume takes the run's folder and config: leave out --out, --config."
            )
        if not Path(resume).is_dir():
            raise ConfigError(f"--resume: expected a run's folder or auto. Received: {resume}")
    # A variable of the environment is a default for new runs, not a wish to change an old one.
    overrides = {k: v for k, v in opt.given(options).items() if opt.is_typed(k)}
    is_new = resume is None or is_auto
    config = opt.resolve_options(options, config_file) if is_new else None
    if dry_run:
        if config is None:
            raise ConfigError("--dry-run shows the config of a new run; leave out --resume.")
        if as_json:
            opt.print_json(config.to_dict())
        else:
            click.echo(to_toml(config), nl=False)
        return
    opt.only_errors(this_launch().rank > 0)  # the first process speaks for all
    from kerasnorm.training import api

    run = api.fit(
        config,
        out=out,
        resume=resume,
        progress=ConsoleProgress(quiet=quiet),
        **({} if is_new else overrides),
    )
    if this_launch().rank > 0:
        return
    if as_json:
        opt.print_json({"path": str(run.path), **run.metrics})
    else:
        click.echo(results(run.history, run.path))


def results(history: "Sequence[Row]", folder: Path) -> str:
    """Returns the end of a run in a few lines: last epoch's scores, time, folder.

    Args:
        history: A row an epoch.
        folder: The run's folder.
    """
    lines = []
    last: Row = history[-1] if history else {}
    for name, word in (("train", "train"), ("val", "validation"), ("test", "test")):
        loss, accuracy = last.get(f"{name}_loss"), last.get(f"{name}_accuracy")
        if loss is not None and accuracy is not None:
            lines.append(f"{word:<11}accuracy {100 * accuracy:6.2f} %   loss {loss:.4f}")
    seconds = sum(row.get("seconds") or 0.0 for row in history)
    lines.append(f"{'trained':<11}{len(history)} epochs in {duration(seconds)}")
    lines.append(f"{'folder':<11}{folder}")
    return "\n".join(lines)


COMMANDS = (fit,)
