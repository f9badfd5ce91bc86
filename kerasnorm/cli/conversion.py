"""Commands that change the norms of a trained model."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasnorm import runtime
from kerasnorm.cli import options as opt
from kerasnorm.cli.models import model_options, start, with_input_scale
from kerasnorm.errors import ConfigError, about
from kerasnorm.norms import KEEP
from kerasnorm.progress import in_percent

if TYPE_CHECKING:
    import keras

    from kerasnorm.conversion.result import Conversion

logger = logging.getLogger(__name__)
ROUNDS = 20  # of timing
out_option = click.option(
    "--out",
    type=opt.OutPath(".keras", is_new=True),
    help="New .keras file; without it, nothing is written.",
)


def _write(model: "keras.Model", out: Path, metadata: dict[str, Any], **facts: Any) -> None:
    """Writes a model; its metadata lists what was done to it since it was trained."""
    from kerasnorm.formats.archive import write_archive

    out.parent.mkdir(parents=True, exist_ok=True)
    done = [*metadata.get("conversions", []), {k: v for k, v in facts.items() if v}]
    write_archive(model, out, metadata | {"conversions": done})


@click.command()
@opt.target
@click.option(
    "--norm",
    default=KEEP,
    help="Norm that replaces the others: a norm's name; none, which removes them; keep; or "
    "your own, as package.module:name or file.py:name.",
)
@click.option(
    "--groups",
    type=int,
    help="Number of groups of gn: each layer takes the largest divisor of its channels that is at "
    "most this. [default: 32]",
)
@click.option(
    "--group-size",
    type=int,
    help="Channels per group of gn instead: the largest divisor that is at most this.",
)
@click.option(
    "--weight-standardization",
    is_flag=True,
    help="Standardize the kernels of the convolutions before norms.",
)
@click.option(
    "--fold", is_flag=True, help="Fold batch norms into the layers before them, for inference."
)
@click.option("--freeze-bn", is_flag=True, help="Batch norms keep their statistics in training.")
@out_option
@opt.backend_option
@opt.device_option
@opt.as_json
def convert(
    target: Path,
    norm: str,
    fold: bool,
    freeze_bn: bool,
    out: Path | None,
    backend: str | None,
    device: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Replace, remove, fold or freeze the norms of a model.

    The model is a run's or any .keras file of a CNN. All other weights stay, and the table says
    which layers compute another function than before.

    Example: kerasnorm convert results/best/runs/bn-torch-s0 --norm gn --groups 8 --out gn.keras
    """
    converts = norm != KEEP or any(settings.values())
    if fold and converts:
        raise ConfigError(
            "--fold: expected the batch norms as they were trained. Leave out --norm, --groups, "
            "--group-size and --weight-standardization."
        )
    if not (fold or freeze_bn or converts):
        raise ConfigError("Nothing to do: add --norm, --fold, --freeze-bn or another option.")
    runtime.start(backend or "auto", device or "auto")
    from kerasnorm.conversion.folding import fold_norms
    from kerasnorm.conversion.norms import batch_norms, convert_norm, freeze_batch_norms
    from kerasnorm.formats.archive import open_archive

    path, model, metadata = open_archive(target)
    done: Conversion | None = None
    frozen: list[str] = []
    with about(path):
        if fold:
            done = fold_norms(model, rounds=ROUNDS)
        elif converts:
            done = convert_norm(model, norm, **settings)
        new = done.model if done else model
        if freeze_bn:
            option = "--fold" if fold else f"--norm {norm}" if norm != KEEP else ""
            if option and not batch_norms(new):
                raise ConfigError(
                    f"--freeze-bn: expected batch norms to freeze. Received: {option}, which "
                    "leaves none. Give one of the two options only."
                )
            frozen = freeze_batch_norms(new)
    if out is not None:
        _write(new, out, metadata, norm=norm, fold=fold, freeze_bn=freeze_bn, **settings)
    table = [done.table(f"{path}: {'fold' if fold else norm}")] if done else []
    lines = [f"{len(frozen)} batch norms frozen: {', '.join(frozen)}"] if frozen else []
    lines += [f"{out}   {new.count_params():,} parameters"] if out else []
    facts = done.to_json() if done else {}
    opt.show(as_json, facts | {"frozen": frozen, "path": out}, *table, *lines)


@click.command()
@opt.target
@opt.data_option
@click.option(
    "--images",
    "count",
    default=2000,
    type=click.IntRange(2),
    help="Number of training images to measure, drawn at random.",
)
@click.option(
    "--batch-size", default=64, type=click.IntRange(2), help="Images per batch, as in training."
)
@model_options
@out_option
@opt.as_json
def recalibrate(
    target: Path,
    count: int,
    batch_size: int,
    out: Path | None,
    as_json: bool,
    **options: str | None,
) -> None:
    """Measure the moving statistics of batch norms anew.

    The statistics become those of training images (precise batch norm, Wu & Johnson, arXiv
    2105.07576). Prints the accuracy on the test images before and after.

    Example: kerasnorm recalibrate results/best/runs/bn-torch-s0 --data cifar10 --out new.keras
    """
    start(options)
    import dataclasses

    import numpy as np

    from kerasnorm.conversion.recalibration import norms_to_measure
    from kerasnorm.conversion.recalibration import recalibrate as measured
    from kerasnorm.formats.archive import INPUT_SCALE, open_archive, open_model
    from kerasnorm.inspection.evaluation import score
    from kerasnorm.training.images import splits_of

    saved = open_model(target)
    with about(saved.path):
        norms_to_measure(saved.model)  # before any data are read
    saved = with_input_scale(saved, options)
    train, test = splits_of(saved, options["data"], ("train", "test"), options["resize"])
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(train))[:count]
    if len(order) < count:
        logger.info(f"There are {len(order)} training images; all of them are measured.")
    images = train.take(np.sort(order)).images
    with about(saved.path):
        new = dataclasses.replace(saved, model=measured(saved.model, images, batch_size=batch_size))
    before, after = (score(one.predict(test.images), test.labels) for one in (saved, new))
    if out is not None:
        metadata = open_archive(target)[2]
        if saved.input_scale is not None:
            metadata[INPUT_SCALE] = saved.input_scale
        _write(new.model, out, metadata, recalibrated_on=len(order))
    lines = [
        f"{name:<7} accuracy {in_percent(scores.accuracy)} %   loss {scores.loss:.4f}   "
        f"n {len(test)} test images"
        for name, scores in (("before", before), ("after", after))
    ]
    lines.append(f"measured over {len(order)} training images in batches of {batch_size} or less")
    facts = {"images": len(order), "before": before, "after": after, "n": len(test), "path": out}
    opt.show(as_json, facts, *lines, *([str(out)] if out else []))


COMMANDS = (convert, recalibrate)
