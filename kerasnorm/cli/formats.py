"""Commands that export and import models."""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasnorm import runtime
from kerasnorm.cli import options as opt
from kerasnorm.cli.models import model_options, start, with_input_scale
from kerasnorm.config import resolve
from kerasnorm.errors import ConfigError, KerasnormError
from kerasnorm.formats import FORMATS, check_formats
from kerasnorm.norms import NORMS
from kerasnorm.version import __version__

if TYPE_CHECKING:
    from kerasnorm.formats.archive import SavedModel
    from kerasnorm.formats.export import Export

logger = logging.getLogger(__name__)
CALIBRATION = 200  # training images from which quantization takes ranges
SYNONYMS = {  # of the formats' names
    "tflite": "litert",
    "pt2": "torch",
    "pytorch": "torch",
    "pth": "state-dict",
    "safetensors": "state-dict",
    "savedmodel": "saved-model",
    "tensorflow": "saved-model",
}


@click.command()
@opt.target
@click.option(
    "--format",
    "formats",
    multiple=True,
    required=True,
    type=opt.Choice((*FORMATS, "all"), SYNONYMS),
    help="Format to write; repeat for several.",
)
@click.option(
    "--out",
    type=opt.OUT_FOLDER,
    help="Folder for the exports. [default: exports, in the run's folder or beside the file]",
)
@click.option(
    "--quantize",
    type=click.Choice(("int8",)),
    help="Also write LiteRT in int8, and measure the accuracy of all exports.",
)
@click.option(
    "--accuracy",
    is_flag=True,
    help="Measure the accuracy of each export on all test images, in its own runtime.",
)
@opt.data_option
@model_options
@opt.as_json
def export(
    target: Path,
    formats: tuple[str, ...],
    out: Path | None,
    quantize: str | None,
    accuracy: bool,
    as_json: bool,
    **options: str | None,
) -> None:
    """Write a trained model in other formats, each checked.

    Every export takes raw pixels, 0 to 255, and is compared with Keras at batch 1, 7 and 256
    before it is put in place, with its metadata (JSON) beside it. A table compares size and time
    of an image. Where one format fails, the others are written; the exit code is then 1. With all,
    a format that cannot hold the network is left out, which is said and is no failure.

    Example: kerasnorm export results/best/runs/gn-torch-s0 --format onnx --format litert
    """
    names = list(FORMATS) if "all" in formats else list(dict.fromkeys(formats))
    if quantize and "litert" not in names:
        raise ConfigError("--quantize int8 belongs to LiteRT: add --format litert.")
    check_formats(names)
    start(options)
    import numpy as np

    from kerasnorm.formats.archive import open_model
    from kerasnorm.formats.export import INT8, Exporter, export_table
    from kerasnorm.training.images import splits_of

    saved = with_input_scale(open_model(target), options)
    if saved.wants_equalized:
        logger.warning(f"{saved.path} takes histogram-equalized images, and so do its exports.")
    folder = out or (target if target.is_dir() else target.parent) / "exports"
    test = calibration = None
    if accuracy or quantize:
        names_read = ("test", "train") if quantize else ("test",)
        test, *train = splits_of(saved, options["data"], names_read, options["resize"])
        for split in train:
            order = np.random.Generator(np.random.PCG64(0)).permutation(len(split))
            calibration = split.images[np.sort(order[:CALIBRATION])]
    done: list[Export] = []
    with Exporter(saved, folder, _known_accuracy(saved), test=test) as exporter:
        work = {name: partial(exporter.export, name) for name in names}
        if calibration is not None:
            work[INT8] = partial(exporter.quantize, calibration)
        failed: list[str] = []
        for name, export_one in work.items():
            try:
                done.append(export_one())
            except KerasnormError as error:
                if len(work) == 1:
                    raise
                # So a format refuses a network; it is in `names` only because of "all".
                if isinstance(error, ConfigError) and name not in (*formats, INT8):
                    logger.warning(f"{name} is left out, since it cannot hold the network: {error}")
                    continue
                failed.append(name)
                logger.error(str(error))
                continue
            if not as_json:
                place, writer = done[-1].place_text, done[-1].writer_text
                click.echo(f"{name:<12}{place}   written by {writer}")
    document = [asdict(one) | {"max_difference": one.max_difference} for one in done]
    opt.show(as_json, document, *([export_table(done)] if done else []))
    if failed:
        raise KerasnormError(
            f"{len(failed)} of {len(work)} exports failed, for the reasons above: "
            f"{', '.join(failed)}." + (f" The others are in {folder}." if done else "")
        )


def _known_accuracy(saved: "SavedModel") -> float | None:
    """Returns the test accuracy that the model's run reports, None where there is none."""
    from kerasnorm.errors import CorruptFileError
    from kerasnorm.training.run import Run
    from kerasnorm.training.run_folder import MODEL, is_run

    if saved.path.name != MODEL or not is_run(saved.path.parent):
        return None
    try:
        return float(Run.load(saved.path.parent).metrics["test_accuracy"])
    except (CorruptFileError, TypeError, ValueError):
        return None  # an unfinished run has no accuracy yet


@click.command("import-torch", cls=opt.ConfigCommand)
@click.argument("file", metavar="FILE", type=opt.PATH)
@click.option("--out", required=True, type=opt.OUT_KERAS, help="The .keras file to write.")
@click.option("--image-size", default="32,32", metavar="H,W", type=opt.NumberList(),
              help="Height and width of the images.")  # fmt: skip
@click.option("--mean", type=opt.NumberList(float), help="Mean of each channel in its training, "
              "for pixels from 0 to 1. "
              "[default: CIFAR-10's for three channels, else 0.5]")  # fmt: skip
@click.option("--std", type=opt.NumberList(float), help="Standard deviation of each channel in its "
              "training. [default: CIFAR-10's for three channels, else 0.25]")  # fmt: skip
@click.option(
    "--epsilon",
    type=click.FloatRange(min=0, min_open=True),
    help="Epsilon of the norms in its training, which no file of weights holds. [default: 1e-5]",
)
@click.option("--class-names", help="Names of the classes, separated by commas.")
@opt.backend_option
@opt.as_json
@opt.trust_option
@opt.config_options("model")
def import_torch(
    file: Path,
    out: Path,
    image_size: tuple[int, ...],
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    class_names: str | None,
    backend: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a Keras model from a PyTorch state_dict.

    The weights must be those of this network. The state_dict may be alone or in a checkpoint, in a
    .pth, .pt, .ckpt, .bin, .tar or .safetensors file.

    Tensors are matched by order and shape, whatever their names; widths come from the tensors.
    Where a file does not hold them in the order of the network, as .safetensors does not, the
    numbers in their names decide it.

    Example: kerasnorm import-torch weights.pth --norm bn --recipe era8 --out model.keras
    """
    if len(image_size) != 2:
        raise ConfigError(f"--image-size: expected H,W. Received: {image_size}")
    epsilon: float | None = options.pop("epsilon")
    given = opt.given(options)
    if "widths" in given:
        raise ConfigError("--widths: leave it out; the widths come from the tensors.")
    runtime.start(backend or "auto")
    from kerasnorm.files import sha256
    from kerasnorm.formats.archive import save_model
    from kerasnorm.torch_import import import_tensors, read_tensors, sorted_by_words

    tensors = read_tensors(file)
    guessed = sorted_by_words(file, tensors)
    if guessed:
        logger.warning(
            f"{file} does not tell in which order the network runs these kernels of one shape, "
            f"which were taken as listed: {', '.join(guessed)}. If it runs them in another one, "
            "number their names, or import a .pth of a module that holds its layers in order."
        )
    imported = import_tensors(
        tensors,
        given,
        image_size=(image_size[0], image_size[1]),
        mean=mean,
        std=std,
        epsilon=epsilon,
    )
    model = imported.model
    network = resolve(given).model
    if epsilon is None and NORMS[network.norm].layer is not None:
        logger.info(
            "The norms have an epsilon of 1e-5, PyTorch's default (of nn.RMSNorm it is 1.2e-7). "
            "The file does not hold that of its training; another one is --epsilon."
        )
    if network.activation == "leaky_relu":
        logger.warning("leaky_relu: Keras's slope is 0.2, that of PyTorch's nn.LeakyReLU() 0.01.")
    classes = model.output_shape[-1]
    names = class_names.split(",") if class_names else [str(n) for n in range(classes)]
    if len(names) != classes:
        raise ConfigError(f"--class-names: expected {classes} names. Received: {len(names)}")
    metadata = {
        "class_names": names,
        "imported_from": {"file": file.name, "sha256": sha256(file)},
        "kerasnorm": __version__,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, out, metadata)
    facts = {"path": out, "parameters": model.count_params()}
    facts |= {"matched": imported.matched, "ignored": imported.ignored}
    lines = [f"{tensor:<40} {weight}" for weight, tensor in imported.matched.items()]
    lines += [f"{tensor:<40} ignored" for tensor in imported.ignored]
    opt.show(as_json, facts, *lines, f"{out}   {model.count_params():,} parameters")


COMMANDS = (export, import_torch)
