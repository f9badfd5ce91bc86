"""Commands that analyze: `explain`, `inputs`, `landscape`, `robustness` and `statistics`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasnorm import runtime
from kerasnorm.analysis.corruptions import CORRUPTIONS, SEVERITIES
from kerasnorm.cli import options as opt
from kerasnorm.cli.models import (
    classes_option,
    image_shape_option,
    model_options,
    network_of,
    open_target,
    split_option,
)
from kerasnorm.errors import ConfigError
from kerasnorm.files import make_folder, write_json
from kerasnorm.norms import NORMS
from kerasnorm.progress import ConsoleProgress

if TYPE_CHECKING:
    from kerasnorm.analysis.answer import Answer
    from kerasnorm.tables import Table

SHORT = 3  # epochs of a training on each preprocessing
EXPLAINED = tuple(name for name, norm in NORMS.items() if norm.facts)


def _several(name: str, metavar: str) -> opt.Decorator:
    """Returns the argument of a command on one run or several."""
    return click.argument(
        name, metavar=metavar, nargs=-1, required=True, type=opt.PATH, callback=_refuse_studies
    )


def _refuse_studies(
    context: click.Context, param: click.Parameter, value: tuple[Path, ...]
) -> tuple[Path, ...]:
    from kerasnorm.study.folder import RUNS, is_study

    for path in value:
        if is_study(path):
            raise ConfigError(f"{path} is a study: name its runs, such as {path / RUNS}/*.")
    return value


def _out(default: str) -> opt.Decorator:
    return click.option(
        "--out",
        type=opt.OUT_FOLDER,
        default=Path(default),
        help="Folder for the figures.",
    )


def _positive(flag: str, default: float, text: str) -> opt.Decorator:
    """Returns an option that takes a number above 0."""
    kind = click.FloatRange(0, min_open=True)
    return click.option(flag, default=default, type=kind, help=text)


@click.command()
@click.argument(
    "norm", metavar=f"[{'|'.join(EXPLAINED)}]", required=False, type=opt.NormName(EXPLAINED)
)
@click.option("--cost/--no-cost", default=True, help="Measure the norm's cost.")
@opt.count("--batch-size", 64, "Images per timed training step.")
@opt.count("--rounds", 7, "Timed rounds, each with and without the norm.")
@click.option(
    "--network",
    help="List the norms of this network instead, each with the values that share statistics: "
    "as in fit, or a run's folder. Its own norms, or the given one in their place.",
)
@opt.option("groups")
@opt.option("group_size")
@image_shape_option
@classes_option
@opt.trust_option
@opt.backend_option
@_out("results/explain")
@opt.as_json
def explain(
    norm: str | None,
    cost: bool,
    batch_size: int,
    rounds: int,
    network: str | None,
    backend: str | None,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Explain a norm: what it computes, and what it costs.

    Prints which values share statistics, a worked example, and the share of a training step that
    the norm takes on this machine. The norm may be your own, as package.module:Layer or
    file.py:Layer. With --network, explain the norms of a network instead.

    Example: kerasnorm explain gn
    """
    others = ("groups", "group_size", "image_shape", "classes")
    costs = ("cost",) if cost else ()  # --no-cost asks for what happens anyway
    refused = others if network is None else (*costs, "batch_size", "rounds", "out")
    if flag := opt.typed_flag(*refused):
        verb = "add" if network is None else "leave out"
        raise ConfigError(f"{flag}: {verb} --network, or leave out {flag}.")
    _start(backend)
    if network is not None:
        runtime.import_keras()
        from kerasnorm.analysis.network_norms import norm_rows, norms_table
        from kerasnorm.config import ModelConfig
        from kerasnorm.norms import normalization

        model = network_of(network, **opt.given({"norm": norm} | options))
        own = normalization(ModelConfig(norm=norm), 8) if norm is not None else None
        rows = norm_rows(model, [type(own)] if own else [])
        document = [asdict(row) | {"over": row.over} for row in rows]
        opt.show(as_json, document, norms_table(rows, f"{network}: {norm or 'its own norms'}"))
        return
    if norm is None:
        raise ConfigError("Nothing to explain: name a norm, or give --network.")
    from kerasnorm.analysis.norm import explain as ask
    from kerasnorm.analysis.norm import explanation_text

    answer = ask(norm, cost=cost, batch_size=batch_size, rounds=rounds)
    _show(answer, out, as_json, explanation_text(answer.data))


@click.command(cls=opt.ConfigCommand)
@opt.config_file
@_out("results/inputs")
@click.option("--train", is_flag=True, help="Also train briefly on each preprocessing.")
@opt.norm_option
@opt.as_json
@opt.config_options("data", "train", without=("log",))
def inputs(config_file: Path | None, out: Path, train: bool, as_json: bool, **options: Any) -> None:
    """Draw the input: preprocessing, augmentation, histograms.

    With --train, also train on each preprocessing, by default for 3 epochs.

    Example: kerasnorm inputs --recipe era8 --out inputs
    """
    config = opt.resolve_options(options, config_file)
    if train and config_file is None and options["epochs"] is None:
        config = config.replace(epochs=SHORT)
    from kerasnorm.analysis.inputs import input_figures, inputs_table
    from kerasnorm.analysis.inputs import inputs as ask

    drawn = [picture.save(out) for picture in input_figures(config)]
    with ConsoleProgress(quarters=True) as progress:
        answer = ask(config, train=train, progress=progress)
    _show(answer, out, as_json, inputs_table(answer.data), drawn=drawn)


@click.command()
@_several("runs", "RUN…")
@opt.trust_option
@opt.count("--steps", 100, "Training steps to repeat.")
@opt.count("--lines", 10, "Lines along the gradient, spread evenly over these steps.")
@_positive("--rate", 0.1, "Factor of the gradient in a step; a line runs from 1/2 to 4 times this.")
@opt.count("--points", 13, "Points on each axis of the surface; odd.", least=3)
@_positive("--radius", 1.0, "Radius of the surface, in norms of each filter.")
@opt.count("--images", 300, "Test images to measure the surface on.")
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
    """Draw the loss landscape of runs.

    Repeats the first steps of each training to measure the loss along the gradient, then draws
    the loss around the trained model.

    Example: kerasnorm landscape results/runs/shapes-bn-torch-s0 results/runs/shapes-none-torch-s0
    """
    _start(backend)
    from kerasnorm.analysis.landscape import landscape as ask
    from kerasnorm.analysis.landscape import landscape_table

    with ConsoleProgress(quiet=quiet, quarters=True) as progress:
        answer = ask(runs, **sizes, progress=progress)
    _show(answer, out, as_json, landscape_table(answer.data))


@click.command()
@_several("targets", "RUN-OR-MODEL…")
@opt.trust_option
@opt.data_option
@split_option
@model_options
@opt.count(
    "--images", 0, "Number of images to measure on, drawn class by class; 0 uses all.", least=0
)
@opt.repeatable(
    "corruption",
    "Corruption to measure; repeatable. By default all.",
    click.Choice(tuple(CORRUPTIONS)),
)
@click.option(
    "--severity",
    "severities",
    multiple=True,
    type=click.IntRange(SEVERITIES[0], SEVERITIES[-1]),
    help="Severity to measure; repeatable. By default all.",
)
@opt.count("--seed", 0, "Seed of the drawn images, the noise and the mixed batches.", least=0)
@opt.margin_option
@_out("results/plots")
@opt.quiet
@opt.as_json
def robustness(
    targets: tuple[Path, ...],
    margin: float,
    out: Path,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the accuracy that is lost on corrupted images.

    Also measures it with the statistics of batches of one class. The corruptions and their
    strengths are those of CIFAR-10-C (Hendrycks & Dietterich, arXiv 1903.12261). Runs that differ
    in the seed alone are one row, and the losses of two norms are compared seed by seed.
    robustness.json, beside the figure, has all numbers.

    Example: kerasnorm robustness results/best/runs/bn-torch-s0 results/best/runs/gn-torch-s0
    """
    models = [open_target(target, options) for target in targets]
    measured = {k: v for k, v in options.items() if k not in ("backend", "device", "input_scale")}
    from kerasnorm.analysis.robustness import loss_table, robustness_table
    from kerasnorm.analysis.robustness import robustness as ask

    with ConsoleProgress(quiet=quiet, quarters=True) as progress:
        answer = ask(models, **measured, progress=progress)
    tables: list[str | Table] = [robustness_table(answer.data)]
    if any(one.differences for one in answer.data):
        table = loss_table(answer.data, split=options["split"], margin=margin / 100)
        tables += ["", table]
    _show(answer, out, as_json, *tables, document="robustness.json")


@click.command()
@_several("runs", "RUN…")
@opt.trust_option
@opt.count("--train-size", 2000, "Training images to repeat the training on; 0 uses all.", least=0)
@opt.count("--epochs", 0, "Epochs of the repeated training; 0 uses the run's.", least=0)
@opt.count("--images", 128, "Training images to measure the layers on.")
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
    """Measure activations, gradients, weights and updates.

    Trains each run again, briefly, and measures every layer after every epoch. Use it on runs with
    and without a norm, or with several values of --l1, --l2 or --dropout.

    Example: kerasnorm statistics results/runs/shapes-bn-torch-s0 results/runs/shapes-none-torch-s0
    """
    _start(backend)
    from kerasnorm.analysis.statistics import statistics as ask
    from kerasnorm.analysis.statistics import statistics_table, weights_table

    with ConsoleProgress(quiet=quiet, quarters=True) as progress:
        answer = ask(runs, **sizes, progress=progress)
    found = answer.data
    _show(answer, out, as_json, statistics_table(found), "", weights_table(found))


def _start(backend: str | None) -> None:
    """Starts Keras on a requested backend; without one it starts when the runs are read."""
    if backend is not None:
        runtime.start(backend)


def _show(
    answer: "Answer[Any]",
    out: Path,
    as_json: bool,
    *parts: "str | Table",
    drawn: Sequence[Path] = (),
    document: str | None = None,
) -> None:
    """Saves an answer; prints its parts, also where nothing can be written, and figures' paths."""
    paths = [str(path) for path in drawn]
    try:
        if document is not None:
            make_folder(out)
            write_json(out / document, answer.document())
        paths.extend(str(picture.save(out)) for picture in answer.pictures)
    finally:
        opt.show(as_json, {"data": answer.document(), "figures": paths}, *parts, *paths)


COMMANDS = (explain, inputs, landscape, robustness, statistics)
