"""Accuracy of trained models on corrupted images, and with the statistics of batches of one class.

Keras is imported inside the functions, because the runs determine the backend.
"""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kerasnorm import runtime
from kerasnorm.analysis.answer import Answer, counter
from kerasnorm.analysis.corruptions import CORRUPTIONS, SEVERITIES
from kerasnorm.config import unknown
from kerasnorm.data.dataset import Split
from kerasnorm.data.preprocessing import equalize
from kerasnorm.errors import ConfigError, expect, expect_whole, is_list, listed
from kerasnorm.files import as_path, plain
from kerasnorm.formats import detect
from kerasnorm.formats.archive import SavedModel
from kerasnorm.formats.exported import ExportedModel, needs_keras, open_any
from kerasnorm.inspection.evaluation import score
from kerasnorm.keras_settings import stock_keras
from kerasnorm.norms import KEEP
from kerasnorm.plots.curves import SHADE
from kerasnorm.plots.labels import short_places
from kerasnorm.plots.style import (
    Picture,
    band,
    draw_legend,
    first_texts,
    legend_height,
    marked_styles,
    new_figure,
    quiet,
)
from kerasnorm.progress import Progress
from kerasnorm.study.intervals import DIFFERENCES, MARGIN, SHARES, Comparison, Interval, compare
from kerasnorm.study.sentences import SAME_IMAGES
from kerasnorm.study.summary import Group, summarize
from kerasnorm.study.tables import (
    JUDGED,
    difference_note,
    group_label,
    judged,
    percent,
)
from kerasnorm.tables import Table
from kerasnorm.training.images import images_of
from kerasnorm.training.run import Run
from kerasnorm.training.run_folder import MODEL, is_run

if TYPE_CHECKING:
    import keras

Indices = NDArray[np.int64]
BATCH = 64  # images, at most, whose statistics are used
PANELS = 3  # in a row of the figure
PANEL_HEIGHT = 2.5  # inches
BATCH_PANEL = "STATISTICS OF THE BATCH"
MODES = ("inference", "mixed batches", "one class")  # ticks of that panel


@dataclass(frozen=True)
class ModelRobustness:
    """Accuracies of one model, 0 to 1.

    Attributes:
        path: File or folder of the model.
        images: Number of images that it was measured on.
        clean: Accuracy on the images as they are.
        corrupted: Accuracy by corruption and severity.
        mixed: Accuracy where norms with moving statistics normalize each batch by its own
            statistics, in batches of all classes; None where the model has no training mode.
        one_class: The same in batches of one class each.
        reason: Why there are no accuracies of batches; empty where there are.
    """

    path: Path
    images: int
    clean: float
    corrupted: Mapping[str, Mapping[int, float]]
    mixed: float | None
    one_class: float | None
    reason: str = ""

    def mean(self, name: str = "") -> float:
        """Returns the mean over the severities of a corruption, by default over all of these."""
        means = {key: fmean(found.values()) for key, found in self.corrupted.items()}
        return means[name] if name else fmean(means.values())

    @property
    def loss(self) -> float:
        """Accuracy on clean images minus the mean over all corruptions."""
        return self.clean - self.mean()


@dataclass(frozen=True)
class Robustness:
    """Runs that differ in the seed alone, or one model file.

    Attributes:
        label: Short text that tells it from the others.
        norm: Name of the runs' norm; "keep" for a model file, which does not tell.
        models: The models one by one; the intervals below are over them, of shares of 1.
        clean: Accuracy on the images as they are.
        corrupted: Accuracy by corruption and severity.
        means: Mean accuracy over the severities by corruption.
        mean: Mean of these.
        loss: Clean accuracy minus that mean.
        mixed: Accuracy with the statistics of batches of all classes; see `ModelRobustness`.
        one_class: Accuracy with the statistics of batches of one class.
        differences: Loss minus that of later entries with another norm, all else equal, by their
            labels: over the seeds of both, corrected for the number of differences of all entries.
    """

    label: str
    norm: str
    models: Sequence[ModelRobustness]
    clean: Interval
    corrupted: Mapping[str, Mapping[int, Interval]]
    means: Mapping[str, Interval]
    mean: Interval
    loss: Interval
    mixed: Interval | None
    one_class: Interval | None
    differences: Mapping[str, Comparison] = field(default_factory=dict)

    @classmethod
    def of(cls, label: str, norm: str, models: Sequence[ModelRobustness]) -> "Robustness":
        """Returns the means over models that were measured alike."""
        corrupted, share = models[0].corrupted, partial(Interval.of, within=SHARES)
        return cls(
            label,
            norm,
            models,
            clean=share([model.clean for model in models]),
            corrupted={
                name: {
                    severity: share([model.corrupted[name][severity] for model in models])
                    for severity in found
                }
                for name, found in corrupted.items()
            },
            means={name: share([model.mean(name) for model in models]) for name in corrupted},
            mean=share([model.mean() for model in models]),
            loss=Interval.of([model.loss for model in models], within=DIFFERENCES),
            mixed=_known([model.mixed for model in models]),
            one_class=_known([model.one_class for model in models]),
        )


def _known(values: Sequence[float | None]) -> Interval | None:
    """Returns the mean of values, None where one is not known."""
    known = [value for value in values if value is not None]
    return Interval.of(known, within=SHARES) if len(known) == len(values) else None


def robustness(  # noqa: PLR0913  (all but the models are options by name)
    models: Sequence[Run | Path | str | SavedModel | ExportedModel],
    *,
    data: str | None = None,
    split: str = "test",
    resize: str | None = None,
    images: int = 0,
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Answer[list[Robustness]]:
    """Measures the accuracy of trained models on corrupted images, and of the batch's statistics.

    The corruptions are four of those of CIFAR-10-C (arXiv 1903.12261); see
    `kerasnorm.analysis.corruptions`. All models see the same pixels, on every backend.

    Then norms with moving statistics, such as bn, normalize by the statistics of each batch, as in
    training, while all other layers, dropout among them, work as at inference. Batches of one class
    are what a model meets whose input comes in runs of similar images, when its norms are left in
    training mode or adapt to their input; batches of all classes, of the same sizes, are the
    control. Both have 64 images at most. Norms without moving statistics, such as gn and ln, give
    the same accuracy in any batch; so does a frozen bn. The models are not changed.

    Args:
        models: Runs, folders of runs, model files, or opened models; exports too, which have no
            training mode.
        data: Data to measure on; by default those that the model was trained on.
        split: "test", "validation", "train", or "all".
        resize: How images of another size are resized; by default as when the model was trained.
        images: Number of images, the same share of each class; 0 uses all.
        corruptions: Names of corruptions; by default all.
        severities: Severities, 1 to 5; by default all.
        seed: Decides which images are drawn, the noise, and the order of the mixed batches.
        progress: Receives the progress; by default shown in notebooks alone.

    Returns:
        An `Answer` whose data are a list of `Robustness`, with the figure `robustness`. Runs that
        differ in the seed alone are one entry, and the losses of two norms are compared seed by
        seed.

    Raises:
        ConfigError: No model is given, or two of one file, or an argument is out of range.
        CorruptFileError: A model is damaged.
        DataError: The images do not fit a model, or there is no such split.
    """
    corruptions, severities = plain(corruptions), plain(severities)
    is_right = is_list(models) and len(models) > 0
    expect(is_right, "models", "a list of at least one run or model", models)
    expect_whole(images, "images", 0)
    expect_whole(seed, "seed", 0)
    for option, values in (("corruptions", corruptions), ("severities", severities)):
        expect(is_list(values), option, "a list", values)
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise unknown("corruption", name, CORRUPTIONS)
    for severity in severities:
        expect(severity in SEVERITIES, "severity", "1 to 5", severity)
    chosen = list(dict.fromkeys(corruptions or CORRUPTIONS))
    levels = sorted({*(severities or SEVERITIES)})
    opened = [_opened(model) for model in models]
    files = Counter(model.path.resolve() for model in opened)
    if twice := [path for path, count in files.items() if count > 1]:
        received = f"{listed(twice)} more than once"
        raise ConfigError(f"models: expected models of different files. Received: {received}.")
    tick = counter(progress, "robustness", len(opened) * (2 + len(chosen) * len(levels)))
    found: dict[Path, ModelRobustness] = {}
    for model in opened:
        raw = images_of(model, data, split, resize, equalized=False, count=images, sample_seed=seed)
        found[model.path] = _measured(model, raw, chosen, levels, seed, tick)
    entries = _entries(found)
    return Answer(entries, [robustness_figure(entries)])


def _opened(
    model: Run | Path | str | SavedModel | ExportedModel,
) -> SavedModel | ExportedModel:
    if isinstance(model, Run):
        return model.saved_model()
    if isinstance(model, SavedModel | ExportedModel):
        return model
    path = as_path(model, "models")
    if needs_keras(path):
        runtime.import_keras(runtime.preferred("auto"))
    return open_any(path)


def _entries(found: Mapping[Path, ModelRobustness]) -> list[Robustness]:
    """Returns an entry for runs that differ in the seed alone, and one for each model file.

    A model file is no run even where it names a run's config: norms may have been replaced since.
    """
    runs = {path: path.parent for path in found if path.name == MODEL and is_run(path.parent)}
    entries = entries_of_runs([Run.load(folder) for folder in runs.values()], found)
    labels = short_places(str(path) for path in found if path not in runs)
    entries += [
        Robustness.of(labels[str(path)], KEEP, [one])
        for path, one in found.items()
        if path not in runs
    ]
    return entries


def entries_of_runs(runs: Sequence[Run], found: Mapping[Path, ModelRobustness]) -> list[Robustness]:
    """Returns an entry for each group of runs that differ in the seed alone."""
    if not runs:
        return []
    summary = summarize(runs)

    def label(group: Group) -> str:
        return group_label(group, summary)

    def models(group: Group, seeds: Iterable[int]) -> list[ModelRobustness]:
        return [found[group.runs[seed].path / MODEL] for seed in seeds]

    pairs = [(item.first, item.second, item.seeds) for item in summary.differences]
    losses = [
        [
            one.loss - other.loss
            for one, other in zip(models(first, seeds), models(second, seeds), strict=True)
        ]
        for first, second, seeds in pairs
    ]
    differences: dict[str, dict[str, Comparison]] = {label(group): {} for group in summary.groups}
    for (first, second, _), comparison in zip(pairs, compare(losses), strict=True):
        differences[label(first)][label(second)] = comparison
    return [
        replace(
            Robustness.of(label(group), group.norm, models(group, sorted(group.runs))),
            differences=differences[label(group)],
        )
        for group in summary.groups
    ]


def _measured(
    model: SavedModel | ExportedModel,
    split: Split,
    corruptions: Sequence[str],
    severities: Sequence[int],
    seed: int,
    tick: Callable[[], None],
) -> ModelRobustness:
    """Returns the accuracies of one model on raw images."""

    def accuracy(pixels: NDArray[np.uint8]) -> float:
        prepared = equalize(pixels) if model.wants_equalized else pixels
        found = score(model.predict(prepared), split.labels).accuracy
        tick()
        return found

    images = split.images[:]  # read once where they lie in a file
    clean = accuracy(images)
    corrupted = {
        name: {
            severity: accuracy(CORRUPTIONS[name](images, severity, _rng(seed, name, severity)))
            for severity in severities
        }
        for name in corruptions
    }
    prepared = equalize(images) if model.wants_equalized else images
    batches: dict[str, float] = {}
    reason = ""
    try:
        batches = accuracies_in_batches(
            model, Split(prepared, split.labels), batches_of(split.labels, seed)
        )
    except ConfigError as error:
        reason = str(error)
    tick()
    mixed, one_class = (batches.get(name) for name in ("mixed", "one_class"))
    return ModelRobustness(model.path, len(split), clean, corrupted, mixed, one_class, reason)


def _rng(seed: int, name: str, severity: int = 0) -> np.random.Generator:
    """Returns a generator whose numbers do not depend on which others are drawn."""
    return np.random.Generator(np.random.PCG64([seed, severity, zlib.crc32(name.encode())]))


def batches_of(labels: NDArray[np.int32], seed: int) -> dict[str, list[Indices]]:
    """Returns the indices of batches of one class each, and of mixed ones of the same sizes.

    The sizes of the batches of a class differ by at most one. Mixed batches are the same however
    the classes are numbered, the largest first.

    >>> {name: [len(part) for part in parts] for name, parts in
    ...  batches_of(np.array([0] * 65 + [1] * 2), 0).items()}
    {'mixed': [33, 32, 2], 'one_class': [33, 32, 2]}
    """
    of_classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    single = [
        part
        for places in of_classes
        for part in np.array_split(places, math.ceil(len(places) / BATCH))
    ]
    order = _rng(seed, "mixed").permutation(len(labels))
    sizes = sorted((len(part) for part in single), reverse=True)
    mixed = np.split(order, np.cumsum(sizes)[:-1])
    return {"mixed": mixed, "one_class": single}


@stock_keras
def accuracies_in_batches(
    model: SavedModel | ExportedModel, split: Split, batches: Mapping[str, Sequence[Indices]]
) -> dict[str, float]:
    """Returns the accuracies, 0 to 1, of norms that use the statistics of each batch.

    Each batch is the indices of its images.

    Raises:
        ConfigError: The model has no training mode, or one that cannot be reached.
    """
    if isinstance(model, ExportedModel):
        raise ConfigError(
            f"{model.path} runs in {detect(model.path).runtime}, which has no training mode. "
            "Measure batches on the Keras model."
        )
    from kerasnorm.conversion.rebuild import Tap, rebuild, refuse_hidden
    from kerasnorm.inspection.graph import Calls, keeps_shape

    network = model.model
    parts = network._flatten_layers()
    kinds = tuple({type(part) for part in parts if hasattr(part, "moving_mean")})
    refuse_hidden(network, kinds, "put into training mode")
    norms = [
        node.operation
        for node in Calls(network).nodes
        if isinstance(node.operation, kinds)
        or (keeps_shape(node) and node.operation.non_trainable_weights)
    ]
    tapped, _ = rebuild(
        network, {id(norm): Tap(norm, partial(_in_training, norm)) for norm in norms}
    )
    tapped.run_eagerly = True

    def right(batch: Indices) -> int:
        outputs = tapped.predict_on_batch(split.images[batch].astype(np.float32))
        return int((outputs.argmax(axis=1) == split.labels[batch]).sum())

    return {name: sum(map(right, parts)) / len(split) for name, parts in batches.items()}


def _in_training(norm: "keras.layers.Layer", x: Any, mask: Any) -> Any:
    """Returns what a layer gives in training if it has moving statistics, which stay as they are.

    These are weights that are not trained and that training changes, whatever they are called.
    """
    import keras

    options = {} if mask is None else {"mask": mask}
    with keras.StatelessScope() as scope:
        found = norm(x, training=True, **options)
    weights = norm.non_trainable_weights
    is_moving = any(scope.get_current_value(weight) is not None for weight in weights)
    return found if is_moving else norm(x, training=False, **options)


def robustness_table(found: Sequence[Robustness]) -> Table:
    """Returns one row of accuracies per entry."""
    names = list(found[0].means)
    rows = [
        (
            one.label,
            str(len(one.models)),
            percent(one.clean),
            *(percent(one.means[name]) for name in names),
            percent(one.mean),
            percent(one.loss),
            percent(one.mixed),
            percent(one.one_class),
        )
        for one in found
    ]
    counts = sorted({model.images for one in found for model in one.models})
    severities = [*map(str, found[0].corrupted[names[0]])]
    which = "the mean over the severities " if len(severities) > 1 else "that at severity "
    accuracies = (
        f"Accuracy in percent on {' or '.join(f'{count:,}' for count in counts)} images; mean ± "
        f"sample std over n seeds. A corruption's column is {which}{', '.join(severities)}; mean "
        "is that of these columns, and lost is clean minus mean, in points."
    )
    batches = (
        "Mixed and one class: norms with moving statistics use those of each batch of at most "
        f"{BATCH} images instead, of all classes or of one. Other norms do not change."
    )
    reasons = dict.fromkeys(m.reason for one in found for m in one.models if m.reason)
    titles = (f">{CORRUPTIONS[name].title}" for name in names)
    columns = ("model", ">n", ">clean", *titles, ">mean", ">lost", ">mixed", ">one class")
    return Table(columns, rows, notes=(accuracies, batches, *reasons))


def loss_table(
    found: Sequence[Robustness], *, split: str = "test", margin: float = MARGIN
) -> Table:
    """Returns one row per pair of norms: how much more accuracy the first loses."""
    rows = [
        (one.label, label, *judged(comparison, margin))
        for one in found
        for label, comparison in one.differences.items()
    ]
    comparisons = [comparison for one in found for comparison in one.differences.values()]
    notes = [difference_note("lost accuracy", comparisons, margin)]
    notes += [SAME_IMAGES] if split == "test" else []
    return Table(
        ("first", "second", *JUDGED), rows, notes=notes, title="Differences in lost accuracy"
    )


def robustness_figure(found: Sequence[Robustness]) -> Picture:
    """Returns accuracy against severity, a panel per corruption, and that of batches."""
    names = list(found[0].corrupted)
    has_batches = any(one.mixed for one in found)
    panels = len(names) + has_batches
    columns, rows = min(PANELS, panels), math.ceil(panels / PANELS)
    labels = [one.label for one in found]
    height = 0.4 + PANEL_HEIGHT * rows + legend_height(labels)
    figure = new_figure(height, "ACCURACY ON CORRUPTED IMAGES")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    styles = marked_styles([one.norm for one in found])
    first = grid[0]
    for axes, name in zip(grid, names, strict=False):
        if axes is not first:
            axes.sharey(first)
        for one, style in zip(found, styles, strict=True):
            _draw(axes, {0: one.clean, **one.corrupted[name]}, style)
        quiet(axes, CORRUPTIONS[name].title.upper())
        axes.set_xlabel("severity (0: clean)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if has_batches:
        axes = grid[len(names)]
        for one, style in zip(found, styles, strict=True):
            if one.mixed and one.one_class:
                points = dict(enumerate((one.clean, one.mixed, one.one_class)))
                _draw(axes, points, style | {"marker": style["marker"] or "o"})
        quiet(axes, BATCH_PANEL)
        axes.set_xticks(range(len(MODES)), MODES)
        axes.set_xlim(-0.3, len(MODES) - 0.7)
    for axes in grid[panels:]:
        axes.set_axis_off()
    for axes in grid[::columns]:
        axes.set_ylabel("accuracy (%)")
    draw_legend(figure, styles, labels)
    text = "Accuracy against the severity of each corruption"
    batch = (
        f", and with the statistics of batches of at most {BATCH} images, of all classes or of one"
        if has_batches
        else ""
    )
    has_seeds = any(len(one.models) > 1 for one in found)
    spread = "; shades are the standard deviation over the seeds" if has_seeds else ""
    losses = [f"{one.label} {percent(one.clean)} clean, {percent(one.loss)} lost" for one in found]
    return Picture(
        "robustness",
        figure,
        "Accuracy on corrupted images",
        f"{text}{batch}{spread}.",
        f"{text}{batch}. In percent, and what is lost on average over the corruptions in points: "
        f"{first_texts(losses)}.",
    )


def _draw(axes: Axes, points: Mapping[int, Interval], style: Mapping[str, Any]) -> None:
    """Draws means, in percent, and the standard deviation around them."""
    places = list(points)
    mean = 100 * np.array([point.mean for point in points.values()])
    std = 100 * np.array([point.std or 0.0 for point in points.values()])
    axes.plot(places, mean, **style)
    color = style["color"]
    axes.fill_between(places, *band(mean, std), color=color, alpha=SHADE, linewidth=0)
