"""Commands that explain: `explain`, `landscape` and `statistics`."""

from pathlib import Path
from typing import Any

import click

from kerasnorm import runtime
from kerasnorm.cli import options as opt
from kerasnorm.norms import NORMS
from kerasnorm.progress import ConsoleProgress

EXPLAINED = tuple(name for name, norm in NORMS.items() if norm.facts)
runs_argument = click.argument(
    "runs", metavar="RUN…", nargs=-1, required=True, type=click.Path(path_type=Path)
)


def _out(default: str) -> opt.Decorator:
    return click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(default),
        show_default=True,
        help="Folder of the pictures.",
    )


@click.command()
@click.argument("norm", metavar="|".join(EXPLAINED), type=click.Choice(EXPLAINED))
@click.option("--cost/--no-cost", default=True, show_default=True, help="Measure what it costs.")
@click.option(
    "--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Of a timed step."
)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="Timed turns.")
@opt.backend_option
@_out("results/explain")
@opt.as_json
def explain(
    norm: str,
    cost: bool,
    batch_size: int,
    rounds: int,
    backend: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Explain a norm by what its real layer does: who shares statistics, step by step, cost.

    Example: kerasnorm explain gn
    """
    _start(backend)
    from kerasnorm.explain.norm import explain as ask
    from kerasnorm.explain.norm import explanation_text

    answer = ask(norm, cost=cost, batch_size=batch_size, rounds=rounds)
    _show(answer, out, as_json, lambda found: click.echo(explanation_text(found)))


@click.command()
@runs_argument
@click.option(
    "--steps", default=100, show_default=True, type=click.IntRange(1), help="Steps to train again."
)
@click.option(
    "--lines", default=10, show_default=True, type=click.IntRange(1), help="Looks along the way."
)
@click.option(
    "--rate",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Step along the gradient; each look goes from 1/2 to 4 of it.",
)
@click.option(
    "--points", default=13, show_default=True, type=click.IntRange(3), help="A side; odd."
)
@click.option(
    "--radius",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Of the surface, in lengths of each filter.",
)
@click.option(
    "--images", default=300, show_default=True, type=click.IntRange(1), help="Test images."
)
@opt.backend_option
@_out("results/landscape")
@opt.quiet
@opt.as_json
def landscape(
    runs: tuple[Path, ...],
    backend: str | None,
    out: Path,
    quiet: bool,
    as_json: bool,
    **sizes: Any,
) -> None:
    """Draw the loss around runs: along the gradient in training, and over a plane at the end.

    Example: kerasnorm landscape results/runs/shapes-bn-torch-s0 results/runs/shapes-none-torch-s0
    """
    _start(backend)
    from kerasnorm.explain import texts
    from kerasnorm.explain.landscape import landscape as ask

    with ConsoleProgress(quiet=quiet, quarters=True) as progress:
        answer = ask(runs, **sizes, progress=progress)
    _show(answer, out, as_json, lambda found: opt.print_table(texts.landscape_table(found)))


@click.command()
@runs_argument
@click.option(
    "--train-size",
    default=2000,
    show_default=True,
    type=click.IntRange(0),
    help="Training images of the repetition; 0 is all, which repeats the run.",
)
@click.option(
    "--epochs",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Epochs of the repetition; 0 is the run's.",
)
@click.option(
    "--images", default=128, show_default=True, type=click.IntRange(1), help="Images looked at."
)
@opt.backend_option
@_out("results/statistics")
@opt.quiet
@opt.as_json
def statistics(
    runs: tuple[Path, ...],
    backend: str | None,
    out: Path,
    quiet: bool,
    as_json: bool,
    **sizes: Any,
) -> None:
    """Look into networks: activations, gradients, weights, updates, by layer and epoch.

    Give it runs with and without norm, or a sweep of --l1, --l2 or --dropout.

    Example: kerasnorm statistics results/runs/shapes-bn-torch-s0 results/runs/shapes-none-torch-s0
    """
    _start(backend)
    from kerasnorm.explain import texts
    from kerasnorm.explain.statistics import JUDGED
    from kerasnorm.explain.statistics import statistics as ask

    with ConsoleProgress(quiet=quiet, quarters=True) as progress:
        answer = ask(runs, **sizes, progress=progress)

    def show(found: Any) -> None:
        opt.print_table(texts.statistics_table(found))
        click.echo()
        opt.print_table(texts.weights_table(found, JUDGED))

    _show(answer, out, as_json, show)


def _start(backend: str | None) -> None:
    """Starts Keras on a backend that was asked for; otherwise it starts when the runs are read."""
    if backend is not None:
        runtime.start(backend)


def _show(answer: Any, out: Path, as_json: bool, show: Any) -> None:
    paths = [str(path) for path in answer.save(out)]
    if as_json:
        opt.print_json({"data": answer.document(), "figures": paths})
        return
    show(answer.data)
    for path in paths:
        click.echo(path)


COMMANDS = (explain, landscape, statistics)
