"""`kerasnorm bench`."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from kerasnorm import runtime
from kerasnorm.cli import options as opt
from kerasnorm.config import BACKENDS, RECIPES
from kerasnorm.errors import ConfigError
from kerasnorm.norms import COMPARED, NORMS

logger = logging.getLogger(__name__)
RESULT, TABLE, CHART = "bench.json", "bench.txt", "bench.png"
UNAUGMENTED = {
    "flip": 0.0,
    "alternating_flip": False,
    "translate": 0,
    "shift_scale_rotate": 0.0,
    "cutout": 0.0,
    "gray": 0.0,
}


@click.command()
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(BACKENDS),
    help="Keras backend; more than one may be given. By default torch and tensorflow.",
)
@click.option(
    "--norm",
    "norms",
    multiple=True,
    type=click.Choice(NORMS),
    help=f"Norm; more than one may be given. By default {', '.join(COMPARED)}.",
)
@click.option(
    "--recipe", type=click.Choice(RECIPES), default="era8", show_default=True, help="Of the net."
)
@click.option(
    "--images", default=2560, show_default=True, type=click.IntRange(20), help="A round's images."
)
@click.option(
    "--batch-size", default=128, show_default=True, type=click.IntRange(1), help="Images a step."
)
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns that are timed."
)
@click.option("--dropout", type=click.FloatRange(0, 0.95), help="By default the recipe's.")
@click.option("--augment/--no-augment", help="Augment as the recipe does.", show_default=True)
@click.option("--deterministic", is_flag=True, help="As in fit; for model.fit and our engine.")
@click.option("--contender", "contenders", multiple=True, help="Only these; see the table's foot.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write files here.")
@opt.device_option
@opt.as_json
def bench(
    backends: tuple[str, ...],
    norms: tuple[str, ...],
    contenders: tuple[str, ...],
    images: int,
    rounds: int,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Race this package's engine against model.fit and hand-written PyTorch loops.

    Contenders take turns in processes of their own, on the same net, data and batches.

    Example: kerasnorm bench --backend torch --norm gn --out results/bench
    """
    is_augmented = options.pop("augment")
    if options["batch_size"] > images:
        raise ConfigError(
            f"batch_size: expected at most --images {images}. Received: {options['batch_size']}"
        )
    runtime.select_backend()  # of this process, which only tabulates
    from kerasnorm import tables
    from kerasnorm.benchmark.race import CONTENDERS, MEANINGS, race
    from kerasnorm.config import resolve, unknown

    for name in contenders:
        if name not in MEANINGS:
            raise unknown("contender", name, MEANINGS)
    installed = runtime.installed_backends()
    fields = opt.given(options) | ({} if is_augmented else UNAUGMENTED)
    results = []
    for backend in backends or tuple(b for b in ("torch", "tensorflow") if b in installed):
        runtime.check_installed(backend)
        names = [n for n in CONTENDERS[backend] if not contenders or n in contenders]
        for norm in norms or COMPARED:
            logger.info(f"{backend}, {norm}: {', '.join(names)}, {rounds} rounds")
            config = resolve(fields | {"backend": backend, "norm": norm})
            results += race(config, names, images, rounds)
    document: dict[str, Any] = {
        **opt.given(options),
        "images": images,
        "rounds": rounds,
        "augmented": is_augmented,
        "host": runtime.host(),
        "versions": runtime.versions(),
        "results": [asdict(result) for result in results],
    }
    grid = tables.bench_table(results)
    if out is not None and results:
        _write(out, document, grid, results)
    if as_json:
        opt.print_json(document)
    else:
        opt.print_table(grid)


def _write(out: Path, document: dict[str, Any], grid: Any, results: list[Any]) -> None:
    from kerasnorm import plots, tables
    from kerasnorm.benchmark.plots import speed_figure
    from kerasnorm.files import write_bytes, write_json

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RESULT, document)
    write_bytes(out / TABLE, tables.to_text(grid).encode())
    host = document["host"]
    heading = (
        f"{document['recipe']}, batch {document['batch_size']}: {host['processor']}, "
        f"{host['cpus']} cores"
    )
    plots.save(speed_figure(results, heading), out / CHART)


COMMANDS = (bench,)
