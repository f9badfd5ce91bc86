"""`kerasnorm bench`."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from kerasnorm import runtime
from kerasnorm.cli import options as opt
from kerasnorm.config import AUGMENTATIONS, BACKENDS, BUILTIN, FOREIGN_RECIPE, RECIPES, SETTINGS
from kerasnorm.errors import ConfigError, KerasnormError
from kerasnorm.norms import COMPARED, KEEP, NORMS

logger = logging.getLogger(__name__)
RESULT, TABLE = "bench.json", "bench.txt"


@click.command()
@opt.repeatable(
    "backend", "Backend; repeatable. By default torch and tensorflow.", click.Choice(BACKENDS)
)
@opt.repeatable(
    "norm", f"Norm; repeatable. By default {', '.join(COMPARED)}.", opt.NormName(tuple(NORMS))
)
@click.option(
    "--recipe",
    type=click.Choice(RECIPES),
    help="Recipe of the network. By default era8, and plain for other networks than builtin.",
)
@click.option(
    "--network",
    default=BUILTIN,
    help="Network, as in fit. Others than builtin race model.fit alone, with their own norms by "
    "default.",
)
@opt.count("--side", 32, "Side of an image.", least=8)
@opt.count("--images", 2560, "Images per round.", least=20)
@opt.count("--batch-size", 128, "Images per step.")
@opt.count("--rounds", 5, "Timed rounds.")
@click.option(
    "--dropout", type=click.FloatRange(0, 0.95), help="Dropout rate. By default the recipe's."
)
@click.option("--augment/--no-augment", help="Augment as the recipe does.")
@opt.option("precision")
@click.option(
    "--deterministic", is_flag=True, help="Make model.fit and kerasnorm deterministic, as in fit."
)
@opt.repeatable("contender", "Contender; repeatable. By default all, see the notes of the table.")
@click.option("--out", type=opt.OUT_FOLDER, help="Output folder.")
@opt.trust_option
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
    """Race kerasnorm against model.fit and PyTorch loops.

    The contenders train in turns, each in its own process, on the same network, data and batches.

    Example: kerasnorm bench --backend torch --norm gn --out results/bench
    """
    is_augmented, side = options.pop("augment"), options.pop("side")
    is_builtin = options["network"] == BUILTIN
    options["recipe"] = options["recipe"] or ("era8" if is_builtin else FOREIGN_RECIPE)
    if options["batch_size"] > images:
        raise ConfigError(
            f"batch_size: expected at most --images {images}. Received: {options['batch_size']}"
        )
    runtime.select_backend()  # this process only tabulates
    from kerasnorm.benchmark.race import CONTENDERS, race, race_table
    from kerasnorm.config import check_precision, resolve, unknown

    for name in contenders:
        if name not in CONTENDERS:
            raise unknown("contender", name, CONTENDERS)
    installed = runtime.installed_backends()
    fields = opt.given(options) | {"image_size": (side, side)}
    if not is_augmented:
        fields |= {name: SETTINGS[name].field.default for name in AUGMENTATIONS}  # off
    results = []
    for backend in backends or tuple(b for b in ("torch", "tensorflow") if b in installed):
        runtime.check_installed(backend)
        names = [
            name
            for name, contender in CONTENDERS.items()
            if backend in contender.backends
            and (not contenders or name in contenders)
            and (is_builtin or contender.predicts)
        ]
        if not names:
            logger.warning(f"None of {', '.join(contenders)} races on {backend} and this network.")
            continue
        for norm in norms or (COMPARED if is_builtin else (KEEP,)):
            logger.info(f"{backend}, {norm}: {', '.join(names)}, {rounds} rounds")
            config = resolve(fields | {"backend": backend, "norm": norm})
            check_precision(config)
            results += race(config, names, images, rounds)
    if not results:
        raise KerasnormError("No contender has raced, for the reasons above.")
    document: dict[str, Any] = {
        **opt.given(options),
        "side": side,
        "images": images,
        "rounds": rounds,
        "augmented": is_augmented,
        "host": runtime.host(),
        "versions": runtime.versions(),
        "results": [asdict(result) for result in results],
    }
    table = race_table(results)
    opt.show(as_json, document, table)
    if out is None:
        return
    # Last, as it may fail.
    from kerasnorm.benchmark.race import race_chart
    from kerasnorm.files import write_bytes, write_json
    from kerasnorm.tables import to_text

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RESULT, document)
    write_bytes(out / TABLE, to_text(table).encode())
    host, network = document["host"], "" if is_builtin else f"{options['network']}, "
    heading = (
        f"{network}{options['recipe']}, batch {options['batch_size']}: {host['processor']}, "
        f"{host['cpus']} cores"
    )
    race_chart(results, heading).save(out)


COMMANDS = (bench,)
