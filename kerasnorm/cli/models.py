"""Commands on models and runs: layers, receptive field, scores, predictions, figures."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasnorm import runtime, user_code
from kerasnorm.cli import options as opt
from kerasnorm.config import BUILTIN, SETTINGS, unknown
from kerasnorm.errors import ConfigError, DataError
from kerasnorm.files import in_command
from kerasnorm.formats.input_scale import INPUT_SCALES
from kerasnorm.norms import NORMS
from kerasnorm.progress import counted, in_percent, rounded

if TYPE_CHECKING:
    import keras

    from kerasnorm.data.stored import Images
    from kerasnorm.formats.archive import SavedModel
    from kerasnorm.formats.exported import ExportedModel

logger = logging.getLogger(__name__)
split_option = click.option(
    "--split",
    type=click.Choice(("test", "validation", "train", "all")),
    default="test",
    help="Split to use; all takes every image, such as those of a folder that was never split.",
)
image_shape_option = click.option(
    "--image-shape",
    default="32,32,3",
    metavar="H,W,C",
    type=opt.NumberList(),
    help="Height, width and channels of an image.",
)
classes_option = click.option("--classes", default=10, help="Number of classes.")
Options = Mapping[str, Any]  # of a command, those of `model_options` and perhaps --data among them


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say how a trained model is opened."""
    resize = click.option(
        "--resize",
        type=click.Choice(SETTINGS["resize"].field.metadata["choices"]),
        help="How images of another size are resized to the model's; by default as when it was "
        "trained.",
    )
    scale = click.option(
        "--input-scale",
        type=click.Choice(INPUT_SCALES),
        help="Range of the pixels that a Keras model without a rescaling was trained on; it is "
        "given raw pixels, 0 to 255, otherwise. standardize is mean 0 and std 1 of each channel "
        "over the training images.",
    )
    return resize(scale(opt.backend_option(opt.device_option(function))))


def _build(options: dict[str, Any], image_shape: tuple[int, ...], classes: int) -> "keras.Model":
    from kerasnorm.network import build_model

    return build_model(**options, input_shape=image_shape, classes=classes)


def network_of(
    target: str, image_shape: tuple[int, ...], classes: int, **options: Any
) -> "keras.Model":
    """Returns the model in a file or a run's folder, or a network made for images of a shape.

    `options` are `norm`, `groups` and `group_size` of the network; those of a file are replaced.
    """
    if user_code.is_named(target) or target.startswith("keras:") or target == BUILTIN:
        return _build({"network": target, **options}, image_shape, classes)
    from kerasnorm.conversion.norms import replace_norms
    from kerasnorm.formats.archive import load_model

    model = load_model(target)
    return (
        replace_norms(model, options.pop("norm"), **options).model if "norm" in options else model
    )


network_argument = click.argument("target", metavar="[MODEL-NETWORK-OR-NORM]", required=False)


def _named_model(target: str, image_shape: tuple[int, ...], classes: int) -> "keras.Model":
    """Returns the model that `network_argument` names.

    Raises:
        ConfigError: It names none.
    """
    if target in NORMS:
        return _build({"norm": target}, image_shape, classes)
    if not any(sign in target for sign in ".:") and not Path(target).exists():
        raise unknown("norm", target, NORMS)
    return network_of(target, image_shape, classes)


@click.command(cls=opt.ConfigCommand)
@network_argument
@opt.trust_option
@opt.as_json
@image_shape_option
@classes_option
@opt.config_options("model")
def summary(
    target: str | None,
    as_json: bool,
    image_shape: tuple[int, ...],
    classes: int,
    **options: Any,
) -> None:
    """Print layers, shapes, parameters and receptive fields.

    The model is that of a run, of a functional .keras file, a network such as keras:MobileNetV2 or
    file.py:function, or the built-in network with the norm that is named. Without a name the
    options describe it.

    Example: kerasnorm summary --norm bn --recipe era8
    """
    if target is not None and (flag := opt.typed_flag(*options)):
        raise ConfigError(f"{flag}: leave it out, or leave out {target}, which names the model.")
    runtime.import_keras()
    from kerasnorm.inspection.layers import layer_table, layers_to_json, summary_table

    given = opt.given(options)
    if target is None:
        model = _build(given, image_shape, classes)
    else:
        model = _named_model(target, image_shape, classes)
    rows = layer_table(model)
    title = target or " ".join(f"{name}={value}" for name, value in given.items())
    opt.show(as_json, layers_to_json(rows), summary_table(rows, title))


@click.command("receptive-field")
@network_argument
@opt.trust_option
@opt.as_json
@image_shape_option
@classes_option
def receptive_field(
    target: str | None, as_json: bool, image_shape: tuple[int, ...], classes: int
) -> None:
    """Print the receptive field of each layer.

    Also prints the size of its map and the jump, the distance of neighbouring outputs in pixels.

    The model is that of a run, of a functional .keras file, a network such as keras:MobileNetV2 or
    file.py:function, or the built-in network with the norm that is named, by default without one.

    Example: kerasnorm receptive-field keras:MobileNetV2 --image-shape 224,224,3
    """
    runtime.import_keras()
    from kerasnorm.inspection.layers import layers_to_json, receptive_field_table
    from kerasnorm.inspection.layers import receptive_field as spatial_rows

    rows = spatial_rows(_named_model(target or "none", image_shape, classes))
    opt.show(as_json, layers_to_json(rows), receptive_field_table(rows))


def open_target(target: Path, options: Options) -> "ExportedModel | SavedModel":
    """Opens what a command is given, as its `model_options` say."""
    from kerasnorm.formats import detect
    from kerasnorm.formats.exported import ExportedModel, needs_keras, open_any

    if needs_keras(target):
        start(options)
    elif flag := opt.typed_flag("backend", "device", "input_scale"):
        runtime_name = detect(target).runtime
        raise ConfigError(f"{flag} is for Keras; {target} runs in {runtime_name}. Leave it out.")
    saved = open_any(target)
    if not isinstance(saved, ExportedModel):
        saved = with_input_scale(saved, options)
    if saved.wants_equalized:
        logger.info(f"{saved.path} expects histogram-equalized images; they are equalized first.")
    return saved


def start(options: Options) -> None:
    """Starts Keras as the `model_options` of a command say."""
    runtime.start(options["backend"] or "auto", options["device"] or "auto")


def with_input_scale(saved: "SavedModel", options: Options) -> "SavedModel":
    """Returns a model that takes raw pixels, as `--input-scale` says; warns where it must guess.

    Raises:
        ConfigError: The model rescales its input itself, or its training images are not known.
    """
    from kerasnorm.formats.input_scale import scaled, unscaled_layer

    if (scale := options["input_scale"]) is not None:
        return scaled(saved, scale, lambda: _training_images(saved, options))
    layer = unscaled_layer(saved.model) if saved.input_scale is None else None
    if layer is not None:
        logger.warning(
            f"{saved.path} holds no rescaling: its layer {layer!r} receives pixels of 0 to 255. If "
            "it was trained on others, name them: --input-scale 0-1, -1-1 or standardize. If not, "
            "--input-scale 0-255 silences this warning."
        )
    return saved


def _training_images(saved: "SavedModel", options: Options) -> "Images":
    """Returns the images that `--input-scale standardize` measures."""
    from kerasnorm.training.images import images_of

    if "data" not in options:
        raise ConfigError(
            "--input-scale standardize measures training images, and predict reads none. Write the "
            "scale into a model once, and predict with that: "
            f"kerasnorm export {in_command(saved.path)} --format keras --input-scale standardize "
            "--data DATA"
        )
    return images_of(saved, options["data"], "train", options["resize"]).images


@click.command()
@opt.target
@opt.data_option
@split_option
@model_options
@opt.as_json
def evaluate(target: Path, split: str, as_json: bool, **options: str | None) -> None:
    """Measure the accuracy and loss of a trained model.

    Example: kerasnorm evaluate results/runs/shapes-gn-torch-s0
    """
    saved = open_target(target, options)
    from kerasnorm.inspection.evaluation import score
    from kerasnorm.training.images import images_of

    images = images_of(saved, options["data"], split, options["resize"])
    scores = score(saved.predict(images.images), images.labels)
    opt.show(
        as_json,
        {"accuracy": scores.accuracy, "loss": scores.loss, "n": len(images)},
        f"accuracy {in_percent(scores.accuracy)} %   loss {rounded(scores.loss, 4)}   "
        f"n {len(images)} {'' if split == 'all' else split + ' '}images",
    )


@click.command()
@opt.target
@click.argument("pictures", metavar="IMAGE-OR-FOLDER…", nargs=-1, required=True, type=opt.PATH)
@opt.count("--top", 3, "Number of classes to show.")
@model_options
@opt.as_json
def predict(
    target: Path, pictures: tuple[Path, ...], top: int, as_json: bool, **options: str | None
) -> None:
    """Classify image files, and the images in folders.

    Images are resized to the input size of the model. Of several, those that cannot be read are
    named and left out; the exit code is then 3.

    Example: kerasnorm predict results/runs/shapes-gn-torch-s0 photo.png
    """
    saved = open_target(target, options)
    import numpy as np

    from kerasnorm.data.pictures import list_pictures, read_picture
    from kerasnorm.data.preprocessing import equalize
    from kerasnorm.inspection.evaluation import log_softmax
    from kerasnorm.training.images import resize_of

    paths = [path for given in pictures for path in list_pictures(given)]
    method = resize_of(saved, options["resize"])
    readable, pixels = [], []
    for path in paths:
        try:
            pixels.append(read_picture(path, saved.image_shape, method))
            readable.append(path)
        except DataError as error:
            if len(paths) == 1:
                raise
            logger.error(str(error))
    failure = f"{len(paths) - len(pixels)} of {len(paths)} images cannot be read, see above."
    if not pixels:
        raise DataError(failure)
    images = np.stack(pixels)
    if saved.wants_equalized:
        images = equalize(images)
    chances = np.exp(log_softmax(saved.predict(images)))
    answers, lines = [], []
    for path, chance in zip(readable, chances, strict=True):
        order = np.argsort(-chance, kind="stable")[:top]
        found = [(saved.class_names[i], float(chance[i])) for i in order]
        classes = [{"class": name, "confidence": share} for name, share in found]
        answers.append({"image": path, "classes": classes})
        named = [f"{name} {in_percent(share, 1)} %" for name, share in found]
        lines.append(f"{path}: {', '.join(named)}")
    opt.show(as_json, answers, *lines)
    if len(readable) < len(paths):
        raise DataError(failure)


@click.command()
@opt.target
@opt.data_option
@split_option
@model_options
@click.option("--out", type=opt.OUT_PNG, help="Also draw them to this PNG file.")
@opt.as_json
def misclassified(
    target: Path, split: str, out: Path | None, as_json: bool, **options: str | None
) -> None:
    """Show the ten mistakes of highest confidence.

    Example: kerasnorm misclassified results/runs/shapes-gn-torch-s0 --out mistakes.png
    """
    saved = open_target(target, options)
    from dataclasses import asdict, replace

    from kerasnorm.inspection.evaluation import worst_mistakes
    from kerasnorm.plots.images import misclassified_figure
    from kerasnorm.training.images import images_of

    images = images_of(saved, options["data"], split, options["resize"])
    names = saved.class_names
    logits = saved.predict(images.images)
    mistakes = [asdict(mistake) for mistake in worst_mistakes(logits, images.labels)]
    if images.files is not None:
        mistakes = [mistake | {"file": images.files[mistake["index"]]} for mistake in mistakes]
    kind = "image" if split == "all" else f"{split} image"
    lines = [
        f"{kind} {m['index']}{', ' + m['file'] if 'file' in m else ''}: true {names[m['true']]}, "
        f"predicted {names[m['predicted']]} {in_percent(m['confidence'], 0)} %"
        for m in mistakes
    ] or [f"None of {counted(len(images), kind)} is misclassified."]
    opt.show(as_json, mistakes, *lines)
    if out is not None:  # last, as it may fail
        picture = misclassified_figure(images.images, mistakes, names, target.name)
        replace(picture, name=out.stem).save(out.parent)
        if not as_json:
            click.echo(str(out))


@click.command()
@click.argument("runs", metavar="RUN-OR-STUDY…", nargs=-1, required=True, type=opt.PATH)
@click.option("--best", is_flag=True, help=opt.BEST)
@click.option(
    "--out",
    type=opt.OUT_FOLDER,
    help="Folder for the figures. By default plots/ in the run's folder, figures/ in the "
    "study's, or results/plots for several runs.",
)
@opt.trust_option
@opt.as_json
def plot(runs: tuple[Path, ...], best: bool, out: Path | None, as_json: bool) -> None:
    """Redraw the figures of a run or study, or overlay runs.

    Example: kerasnorm plot results/runs/shapes-bn-torch-s0 results/runs/shapes-gn-torch-s0
    """
    from kerasnorm import plots
    from kerasnorm.study import folder, study
    from kerasnorm.training.run import Run

    if len(runs) == 1 and not best and folder.is_study(runs[0]):
        paths = study.redraw(runs[0], out)
    elif len(loaded := [Run.load(opt.run_of(path, best)) for path in runs]) > 1:
        paths = plots.draw_runs(loaded, out or Path("results/plots"))
    else:
        paths = plots.draw_run(loaded[0], loaded[0].test_images(), out)
    opt.show(as_json, paths, *map(str, paths))


COMMANDS = (summary, receptive_field, evaluate, predict, misclassified, plot)
