"""Commands that draw: `plot` and `inputs`."""

import logging
from pathlib import Path
from typing import Any

import click

from kerasnorm.cli import options as opt
from kerasnorm.errors import DataError
from kerasnorm.progress import ConsoleProgress

logger = logging.getLogger(__name__)
SAMPLES = 2000  # images in a histogram
ROWS, EPOCHS = 5, 6  # images and epochs in a grid
SHORT = 3  # epochs of a training on each preprocessing


@click.command()
@click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the pictures; by default each run's own plots/, or for several runs "
    "results/plots.",
)
@opt.as_json
def plot(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Redraw the pictures of a run, or overlay the curves of several.

    Example: kerasnorm plot results/runs/shapes-bn-torch-s0 results/runs/shapes-gn-torch-s0
    """
    from kerasnorm import plots
    from kerasnorm.data.prepare import prepare
    from kerasnorm.training.run import Run

    loaded = [Run.load(path) for path in runs]
    if len(loaded) > 1:
        paths = plots.draw_runs(loaded, out or Path("results/plots"))
    else:
        config = loaded[0].config
        try:
            images = prepare(config.data, config.train.seed).test.images
        except DataError as error:
            logger.warning(f"{error} misclassified.png is not drawn again.")
            images = None
        paths = plots.draw_run(loaded[0], images, out)
    _print_paths(paths, as_json)


@click.command(cls=opt.ConfigCommand)
@opt.config_file
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results/inputs"),
    show_default=True,
    help="Folder of the pictures.",
)
@click.option(
    "--train", is_flag=True, help="Train briefly on each of the four ways of preprocessing too."
)
@opt.norm_option
@opt.as_json
@opt.config_options("data", "train")
def inputs(config_file: Path | None, out: Path, train: bool, as_json: bool, **options: Any) -> None:
    """Draw what the model is fed: input preprocessing side by side, each augmentation, histograms.

    With --train, a short training on each preprocessing, by default of 3 epochs.

    Example: kerasnorm inputs --recipe era8 --out inputs
    """
    config = opt.resolve_options(options, config_file)
    if train and config_file is None and options["epochs"] is None:
        config = config.replace(epochs=SHORT)
    import numpy as np

    from kerasnorm import plots
    from kerasnorm.data.prepare import input_statistics, prepare
    from kerasnorm.data.preprocessing import equalize
    from kerasnorm.explain import texts
    from kerasnorm.explain.inputs import inputs as ask

    seed, preprocessing = config.train.seed, config.data.preprocessing
    raw = prepare(config.replace(preprocessing="none").data, seed).train
    preprocessed = equalize(raw.images) if preprocessing == "equalize" else raw.images
    mean, std = input_statistics(preprocessing, preprocessed)
    shown = np.arange(min(SAMPLES, len(raw)))
    views = plots.augmented_views(raw, config.data, shown[:ROWS], EPOCHS, seed)
    pixels = (preprocessed[shown] / 255 - mean) / std
    paths = plots.draw_inputs(out, raw.images[shown], views, pixels, preprocessing)
    with ConsoleProgress(quarters=True) as progress:
        answer = ask(config, train=train, progress=progress)
    paths += answer.save(out)
    if as_json:
        opt.print_json({"data": answer.document(), "figures": [str(path) for path in paths]})
    else:
        opt.print_table(texts.inputs_table(answer.data))
        _print_paths(paths, as_json)


def _print_paths(paths: list[Path], as_json: bool) -> None:
    if as_json:
        opt.print_json([str(path) for path in paths])
    else:
        for path in paths:
            click.echo(path)


COMMANDS = (plot, inputs)
