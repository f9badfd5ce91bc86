"""Activations, gradients, weights and updates of a run's network, by layer and by epoch.

Keras is imported inside the functions, because the runs determine the backend.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kerasnorm.analysis.answer import Answer, counter, open_runs
from kerasnorm.config import LAYER_LABELS
from kerasnorm.data import Dataset
from kerasnorm.data.dataset import Split
from kerasnorm.errors import ConfigError, CorruptFileError, about, expect_whole
from kerasnorm.keras_settings import stock_keras
from kerasnorm.layers import custom_layers
from kerasnorm.plots.labels import run_labels
from kerasnorm.plots.style import (
    GRID,
    INK,
    TEXT_SIZE,
    WIDTH,
    Picture,
    draw_legend,
    first_texts,
    fit,
    log_ticks,
    marked_styles,
    new_figure,
    quiet,
    repeats,
    small_text,
    text_width,
)
from kerasnorm.progress import Progress, counted, in_percent
from kerasnorm.tables import Table
from kerasnorm.training import checkpoints
from kerasnorm.training.fit import make_engine
from kerasnorm.training.run import Run
from kerasnorm.training.run_folder import CHECKPOINTS

if TYPE_CHECKING:
    import keras

    from kerasnorm.analysis.probe import Weights

Array = NDArray[np.float64]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 61  # bins of a weight histogram
NAMES = 14  # of layers at the left of a map, at most; of more layers, every second or third one's
NAME_WIDTH = 1.2  # inches of a layer's name
LABEL_WIDTH = 3.0  # inches of a run's name
SPARSE = 1e-3  # a weight below this share of its layer's largest counts as 0
SHOWN = 0.999  # share of the weights that lie between the edges of a histogram
JUDGED = 2000  # images of each split that the trained model is scored on, at most
# Names of the operations of Keras that are activations without a layer, such as keras.ops.relu(x).
ACTIVATIONS = {"Relu", "Relu6", "LeakyRelu", "Elu", "Gelu", "Silu", "HardSilu"}
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
LAYER_PANELS = (  # attribute, heading, scale
    ("activation_mean", "activation input: mean", "linear"),
    ("activation_std", "activation input: std", "log"),
    ("zero_share", "share of zeros", "share"),
    ("dead_share", "share of dead channels", "share"),
    ("gradient_norm", "gradient norm of the kernel", "log"),
    ("update_ratio", "update / weight, per epoch", "log"),
)
MAPS = (
    ("activation_std", "std of activation input"),
    ("gradient_norm", "gradient norm"),
    ("update_ratio", "update / weight"),
)
ROWS_NOTE = (
    "Rows are convolutions that an activation follows, at once or behind norms; others, such as "
    "those before an addition, have none. mean and std: of the activation's input; zeros: share of "
    "its outputs that are 0; dead: share of channels of which all outputs are 0; gradient and "
    "weight norm: of the kernel; update/weight: its change in an epoch, relative to it."
)
GAP_NOTE = (
    "|w| is the norm of all kernels of the trained model; near 0 is the share of their weights "
    "below a thousandth of the layer's largest. Accuracies are measured without augmentation on at "
    f"most {JUDGED:,} images per split; the gap is train minus test, in percentage points."
)
LOST_NOTE = (
    "-: the file of this model holds standardized kernels, whose filters all have norm 1 whatever "
    "was trained, and the run's folder has no checkpoint with those that were trained."
)


@dataclass(frozen=True)
class LayerStatistics:
    """One convolution and its activation, at one moment of training.

    Attributes:
        epoch: Number of epochs trained; 0 is the initial network.
        layer: Label of the convolution: C1, C2, c3 ...
        activation_mean: Mean of the activation function's input, over images, pixels, channels.
        activation_std: Standard deviation of that input.
        zero_share: Share of the activation function's outputs that are 0.
        dead_share: Share of its channels in which all outputs are 0.
        gradient_norm: |dL/dw| of the kernel, on the probed images, in training.
        weight_norm: |w| of the kernel.
        weight_quantiles: 5, 25, 50, 75 and 95 % quantiles of the kernel.
        update_ratio: |w now - w an epoch ago| / |w an epoch ago|; NaN at epoch 0, and where
            the kernel was 0.
    """

    epoch: int
    layer: str
    activation_mean: float
    activation_std: float
    zero_share: float
    dead_share: float
    gradient_norm: float
    weight_norm: float
    weight_quantiles: tuple[float, ...]
    update_ratio: float


@dataclass(frozen=True)
class WeightHistogram:
    """The weights of all kernels of a trained network.

    Attributes:
        edges: Edges of the bins, (BINS + 1,).
        share: Share of the weights in each bin, (BINS,); those beyond the edges are in none.
        sparsity: Share of the weights that are 0, or below a thousandth of their layer's largest.
        norm: |w| of all kernels together.
        mean: Mean of the weights.
        std: Standard deviation of the weights.
    """

    edges: Array
    share: Array
    sparsity: float
    norm: float
    mean: float
    std: float


@dataclass(frozen=True, eq=False)
class NetworkStatistics:
    """What happens inside one run's network.

    Attributes:
        run: Folder of the run.
        label: Short text that tells the run from the others.
        norm: Name of the run's norm.
        layers: One row per layer and epoch of the repeated training.
        weights: Weights of the run's own trained model; None where its kernels were standardized
            and those that were trained are lost.
        train_accuracy: Accuracy of the trained model on unaugmented training images, 0 to 1.
        test_accuracy: Accuracy of the trained model on test images, 0 to 1.
        train_loss: Loss of the trained model on the same training images, in nats.
        test_loss: Loss of the trained model on the same test images, in nats.
        repeated_images: Number of training images of the repeated training.
        repeated_epochs: Number of epochs of the repeated training.
    """

    run: Path
    label: str
    norm: str
    layers: list[LayerStatistics]
    weights: WeightHistogram | None
    train_accuracy: float
    test_accuracy: float
    train_loss: float
    test_loss: float
    repeated_images: int
    repeated_epochs: int

    @property
    def gap(self) -> float:
        """Training accuracy minus test accuracy, in percentage points."""
        return 100 * (self.train_accuracy - self.test_accuracy)

    def rows(self, epoch: int) -> list[LayerStatistics]:
        """Returns the rows of all layers after an epoch."""
        return [row for row in self.layers if row.epoch == epoch]


def statistics(
    runs: Sequence[Run | Path | str],
    *,
    train_size: int = 2000,
    epochs: int = 0,
    images: int = 128,
    progress: Progress | None = None,
) -> Answer[list[NetworkStatistics]]:
    """Measures activations, gradients, weights and updates of runs' networks, layer by layer.

    The training is repeated from the run's config, on fewer images by default, and measured
    after each epoch. Weights, sparsity and the gap between training and test are those of the
    run's own trained model; weights that were standardized are read from its last checkpoint,
    because its model holds them standardized.

    Args:
        runs: Finished runs, or their folders.
        train_size: Number of training images to repeat the training on; 0 uses all.
        epochs: Number of epochs to repeat; 0 uses the run's.
        images: Number of training images that the layers are measured on.
        progress: Receives the progress; by default shown in notebooks alone.

    Returns:
        An `Answer` whose data are a list of `NetworkStatistics`, with the figures `layers`,
        `epochs` and `weights`.

    Raises:
        ConfigError: No run is given, or an argument is out of range.
        CorruptFileError: A run is damaged.
        DivergedError: The repeated training diverges.
    """
    for name, value, low in (
        ("train_size", train_size, 0),
        ("epochs", epochs, 0),
        ("images", images, 1),
    ):
        expect_whole(value, name, low)
    loaded, backend = open_runs(runs)
    models = [run.model() for run in loaded]
    total = sum(epochs or run.config.train.epochs for run in loaded)
    tick = counter(progress, "statistics", total)
    found, trained = [], []
    for run, label, model in zip(loaded, run_labels(loaded), models, strict=True):
        config = run.config.replace(backend=backend, epochs=epochs or run.config.train.epochs)
        dataset = run.dataset()
        train = dataset.train.sample(train_size or len(dataset.train))
        size = min(config.train.batch_size, len(train))
        engine = make_engine(
            config.replace(batch_size=size), dataclasses.replace(dataset, train=train)
        )
        measured = train.sample(images)
        with about(run.path):
            taps = Taps(engine.model)
            layers = taps.measure(measured, 0)
            for epoch in range(config.train.epochs):
                before = taps.weights()
                engine.train_epoch(epoch)
                layers += taps.measure(measured, epoch + 1, before)
                tick()
        trained.append(trained_kernels(run, engine, model))
        found.append(
            NetworkStatistics(
                run.path,
                label,
                config.model.norm,
                layers,
                None,
                **_scores(model, dataset),
                repeated_images=len(train),
                repeated_epochs=config.train.epochs,
            )
        )
    found = [
        dataclasses.replace(one, weights=weights)
        for one, weights in zip(found, _histograms(trained), strict=True)
    ]
    return Answer(found, [layers_figure(found), epochs_figure(found), weights_figure(found)])


def trained_kernels(run: Run, engine: Any, saved: "keras.Model") -> "Weights | None":
    """Returns all kernels of a run's trained model as they were trained, None where they are lost.

    A saved model holds standardized kernels in place of those that training changed, which are in
    the run's checkpoints. The engine, of the same run, takes the state of the last one.
    """
    from kerasnorm.inspection.graph import kernels
    from kerasnorm.layers import StandardizedConv2D, leaves, portable

    model = saved
    if any(isinstance(layer, StandardizedConv2D) for layer in leaves(engine.model)):
        model = engine.model
        try:
            state, _ = checkpoints.load_newest(run.path / CHECKPOINTS)
            engine.load_state(state)
        except CorruptFileError:
            return None
        # A callback may have restored other weights at the end of the training.
        pairs = zip(portable(model).get_weights(), saved.get_weights(), strict=True)
        if not all(np.allclose(one, other, atol=1e-6) for one, other in pairs):
            return None
    return [_numbers(kernel.value).copy() for _, kernel in kernels(model)]


def _histograms(networks: "Sequence[Weights | None]") -> list[WeightHistogram | None]:
    """Returns the weights of each network, all between the same edges."""
    ends = [
        float(np.quantile(np.abs(np.concatenate([kernel.ravel() for kernel in one])), SHOWN))
        for one in networks
        if one is not None
    ]
    return [None if one is None else weight_histogram(one, max(ends)) for one in networks]


def _scores(model: "keras.Model", dataset: Dataset) -> dict[str, float]:
    """Returns a trained model's accuracy and loss on both splits."""
    from kerasnorm.analysis.probe import Probe

    probe = Probe(model)
    scores: dict[str, float] = {}
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        judged = split.sample(JUDGED)
        loss, accuracy = probe.score(judged.images, judged.labels)
        scores |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
    return scores


class Taps:
    """Measures the activations, gradients and weights of a network of `kerasnorm.network`."""

    def __init__(self, model: "keras.Model") -> None:
        import keras

        from kerasnorm.analysis.probe import Probe
        from kerasnorm.inspection.graph import named_by_path

        self.model = model
        self.probe = Probe(model)
        self.units = units_of(model)
        outputs = [tensor for unit in self.units for tensor in (unit.inside, unit.outside)]
        with named_by_path(model):
            self.tapped = keras.Model(model.inputs, outputs)

    def weights(self) -> "Weights":
        """Returns copies of the kernels of the convolutions that are measured, in their order."""
        return [_numbers(unit.kernel.value).copy() for unit in self.units]

    @stock_keras
    def measure(
        self, split: Split, epoch: int, before: "Weights | None" = None
    ) -> list[LayerStatistics]:
        """Returns one row per convolution that is followed by a norm and an activation.

        The network is in training mode: a norm uses the statistics of these images.
        """
        import keras

        pixels = keras.ops.convert_to_tensor(split.images[:].astype(np.float32))
        with keras.StatelessScope():  # the moving statistics stay as they are
            tapped = [_numbers(tensor) for tensor in self.tapped(pixels, training=True)]
        _, gradients = self.probe.gradient(split.images, split.labels)
        variables = (id(variable) for variable in self.model.trainable_variables)
        norms = {v: float(np.linalg.norm(g)) for v, g in zip(variables, gradients, strict=True)}
        rows = []
        for place, unit in enumerate(self.units):
            inside, outside = tapped[2 * place], tapped[2 * place + 1]
            kernel = _numbers(unit.kernel.value)
            rows.append(
                LayerStatistics(
                    epoch,
                    unit.label,
                    float(inside.mean(dtype=np.float64)),
                    float(inside.std(dtype=np.float64)),
                    float((outside == 0).mean()),
                    float((outside == 0).all(axis=unit.positions).mean()),
                    norms.get(id(unit.kernel), float("nan")),  # a frozen one has no gradient
                    float(np.linalg.norm(kernel)),
                    tuple(np.quantile(kernel, QUANTILES).tolist()),
                    float("nan") if before is None else _ratio(kernel, before[place]),
                )
            )
        return rows


def _numbers(tensor: Any) -> NDArray[np.float32]:
    from keras import ops

    return ops.convert_to_numpy(ops.stop_gradient(tensor))


def _ratio(new: NDArray[np.float32], old: NDArray[np.float32]) -> float:
    """Returns |new - old| / |old|, NaN where the old kernel is 0."""
    length = float(np.linalg.norm(old))
    return float(np.linalg.norm(new - old)) / length if length else float("nan")


@dataclass(frozen=True)
class Unit:
    """A convolution and the activation that follows it, at once or behind norms."""

    label: str  # its short name in the built-in network, else its path, such as block1/conv
    layer: "keras.Layer"  # the convolution
    inside: "keras.KerasTensor"  # symbolic tensor before the activation
    outside: "keras.KerasTensor"  # symbolic tensor behind it

    @property
    def kernel(self) -> Any:
        """Variable of its kernel; the second one of a separable convolution."""
        return [w for w in self.layer.weights if w.name.endswith("kernel")][-1]

    @property
    def positions(self) -> tuple[int, int, int]:
        """Axes of the images and pixels, which are all but that of the channels."""
        return (0, 2, 3) if self.layer.data_format == "channels_first" else (0, 1, 2)


def _without_activation(layer: Any) -> "keras.Layer":
    """Returns a layer that computes what a convolution does before its activation."""
    import keras

    class WithoutActivation(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            activation, layer.activation = layer.activation, keras.activations.linear
            try:
                return layer.call(x)
            finally:
                layer.activation = activation

    return WithoutActivation(dtype=layer.dtype_policy)


def units_of(model: "keras.Model") -> list[Unit]:
    """Returns the convolutions that an activation follows, from the input to the output.

    Raises:
        ConfigError: There is none.
    """
    from keras import activations, layers

    from kerasnorm.conversion.norms import STOCK
    from kerasnorm.inspection.graph import (
        Calls,
        flattened,
        functional_graph,
        may_be_own_norm,
        nodes,
    )

    kinds = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.Conv2DTranspose)
    norms = (*STOCK, *custom_layers().values())
    rectifiers = (layers.Activation, layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU)
    graph = functional_graph(flattened(model))
    readers: dict[int, list[Any]] = {}
    for node in nodes(graph):
        for tensor in node.input_tensors:
            readers.setdefault(id(tensor), []).append(node)
    found: dict[int, Unit] = {}  # by the `id` of the convolution, which may be called again
    paths = Calls(model).paths
    for node in nodes(graph):
        layer = node.operation
        if not isinstance(layer, kinds) or id(layer) in found:
            continue
        path, outside = paths[id(layer)], node.outputs[0]
        label = LAYER_LABELS.get(path, path)
        if layer.activation is not activations.linear:
            inside = _without_activation(layer)(node.input_tensors[0])
            found[id(layer)] = Unit(label, layer, inside, outside)
            continue
        following = readers.get(id(outside), [])
        while len(following) == 1 and (
            isinstance(following[0].operation, norms) or may_be_own_norm(following[0])
        ):
            following = readers.get(id(following[0].outputs[0]), [])
        if len(following) == 1 and (
            isinstance(following[0].operation, rectifiers)
            or type(following[0].operation).__name__ in ACTIVATIONS
        ):
            (end,) = following
            found[id(layer)] = Unit(label, layer, end.input_tensors[0], end.outputs[0])
    if not found:
        raise ConfigError(
            "model: expected convolutions that an activation follows, norms in between. "
            "Received: none"
        )
    return list(found.values())


def weight_histogram(kernels: "Weights", limit: float) -> WeightHistogram:
    """Returns the distribution of all weights of a network.

    The bins run from -limit to limit.

    >>> weight_histogram([np.array([0.0, 0.5, -0.5, 1e-6])], 1.0).sparsity
    0.5
    """
    flat = np.concatenate([kernel.ravel() for kernel in kernels]).astype(np.float64)
    # A kernel of zeros has no largest weight, below which the others could lie.
    small = sum(int(((k == 0) | (np.abs(k) < SPARSE * np.abs(k).max())).sum()) for k in kernels)
    edges = np.linspace(-limit, limit, BINS + 1)
    share = np.histogram(flat, edges)[0] / flat.size
    norm, mean, std = np.linalg.norm(flat), flat.mean(), flat.std()
    return WeightHistogram(edges, share, small / flat.size, float(norm), float(mean), float(std))


def statistics_table(found: Sequence[NetworkStatistics]) -> Table:
    """Returns the layers of each run after the last epoch."""
    columns = (
        "run",
        "layer",
        ">mean",
        ">std",
        ">zeros (%)",
        ">dead (%)",
        ">gradient norm",
        ">weight norm",
        ">update/weight",
    )
    rows = [
        (
            one.label if place == 0 else "",
            row.layer,
            f"{row.activation_mean:.3g}",
            f"{row.activation_std:.3g}",
            in_percent(row.zero_share, 1),
            in_percent(row.dead_share, 1),
            f"{row.gradient_norm:.3g}",
            f"{row.weight_norm:.3g}",
            f"{row.update_ratio:.3g}",
        )
        for one in found
        for place, row in enumerate(one.rows(one.repeated_epochs))
    ]
    notes = [
        f"{one.label}: repeated on {counted(one.repeated_images, 'image')} for "
        f"{counted(one.repeated_epochs, 'epoch')}; the rows show its last epoch."
        for one in found
    ]
    return Table(columns, rows, notes=[ROWS_NOTE, *notes])


def weights_table(found: Sequence[NetworkStatistics]) -> Table:
    """Returns the trained models' weights, and the gap between training and test accuracy."""
    columns = ("run", ">|w|", ">std", ">near 0 (%)", ">train (%)", ">test (%)", ">gap")
    rows = [
        (
            one.label,
            *_weight_cells(one.weights),
            in_percent(one.train_accuracy),
            in_percent(one.test_accuracy),
            f"{one.gap:+z.2f}",
        )
        for one in found
    ]
    is_lost = any(one.weights is None for one in found)
    return Table(columns, rows, notes=[GAP_NOTE, LOST_NOTE] if is_lost else [GAP_NOTE])


def _weight_cells(weights: WeightHistogram | None) -> tuple[str, str, str]:
    """Returns norm, standard deviation and sparsity."""
    if weights is None:
        return "-", "-", "-"
    return f"{weights.norm:.2f}", f"{weights.std:.4f}", in_percent(weights.sparsity)


def _styles(found: Sequence[NetworkStatistics]) -> list[dict[str, Any]]:
    """Returns the properties of `marked_styles`, with another line style for each run of a norm."""
    norms = [one.norm for one in found]
    return [
        style | {"linestyle": LINES[repeat % len(LINES)]}
        for style, repeat in zip(marked_styles(norms), repeats(norms), strict=True)
    ]


def layers_figure(found: Sequence[NetworkStatistics]) -> Picture:
    """Returns each measure over the layers after the last epoch, one curve per run."""
    figure = new_figure(5.2, "LAYER BY LAYER, AFTER THE LAST EPOCH")
    panels = figure.subplots(2, 3).ravel()
    styles = _styles(found)
    names = [[row.layer for row in one.rows(0)] for one in found]
    room = WIDTH / 4  # of the names below a panel
    width = sum(text_width(name, TEXT_SIZE - 2) for name in names[0])
    is_named = names.count(names[0]) == len(names) and width < room
    for axes, (name, heading, scale) in zip(panels, LAYER_PANELS, strict=True):
        for one, style in zip(found, styles, strict=True):
            rows = one.rows(one.repeated_epochs)
            values = np.array([getattr(row, name) for row in rows])
            values = np.where(values > 0, values, np.nan) if scale == "log" else values
            axes.plot(range(1, len(values) + 1), values, **style)
        if is_named:
            axes.set_xticks(range(1, len(names[0]) + 1), names[0])
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        quiet(axes, heading)
        if scale == "log":
            axes.set_yscale("log")
            log_ticks(axes.yaxis)
        elif scale == "share":
            axes.set_ylim(0, max(0.1, axes.get_ylim()[1]))
        axes.tick_params(axis="x", labelsize=TEXT_SIZE - 2)
    draw_legend(figure, styles, [one.label for one in found], 3)
    measures = ", ".join(heading for _, heading, _ in LAYER_PANELS)
    if not is_named:
        for axes in panels[3:]:
            axes.set_xlabel("number of the layer")
    text = "Layers from input to output after the last epoch of the repeated training"
    caption = f"{text}, one curve per run."
    return Picture("layers", figure, "Layer by layer", caption, f"{caption} Panels: {measures}.")


def epochs_figure(found: Sequence[NetworkStatistics]) -> Picture:
    """Returns heat maps with one row per measure and one column per run, in common colors.

    Each map shows layers from top to bottom and epochs from left to right.
    """
    count = len(found)
    figure = new_figure(1.0 + 1.9 * len(MAPS), "LAYER BY LAYER, EPOCH BY EPOCH")
    names = [[row.layer for row in one.rows(0)] for one in found]
    is_shared = names.count(names[0]) == count
    grid = figure.subplots(len(MAPS), count, squeeze=False, sharey="row" if is_shared else False)
    for row, (name, heading) in zip(grid, MAPS, strict=True):
        maps = [_matrix(one, name) for one in found]
        labels = fit([one.label for one in found], (WIDTH - 1.5) / count)
        scale = _scale(maps)
        for axes, layers, values, label in zip(row, names, maps, labels, strict=True):
            first = 1 if np.isnan(values[:, 0]).all() else 0
            limits = (first - 0.5, values.shape[1] - 0.5, len(values) - 0.5, -0.5)
            drawn = axes.imshow(
                values[:, first:], cmap="viridis", norm=scale, aspect="auto", extent=limits
            )
            axes.set_facecolor(GRID)
            axes.set_title(label, fontsize=TEXT_SIZE, color=INK)
            step = -(-len(layers) // NAMES)
            axes.set_yticks(range(0, len(layers), step), fit(layers[::step], NAME_WIDTH))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            small_text(axes)
            axes.tick_params(axis="y", labelsize=TEXT_SIZE - 2)
        bar = figure.colorbar(drawn, ax=list(row), fraction=0.05 if count > 1 else 0.1)
        bar.set_label(heading, fontsize=TEXT_SIZE - 1, color=INK)
        log_ticks(bar.ax.yaxis)
        bar.outline.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("epochs trained", fontsize=TEXT_SIZE, color=INK)
    measures = ", ".join(heading for _, heading in MAPS)
    text = "Heat maps of each layer over the epochs of the repeated training"
    caption = f"{text}, one column per run; the runs share the colors of a measure."
    return Picture("epochs", figure, "Epoch by epoch", caption, f"{text}. Rows: {measures}.")


def _matrix(one: NetworkStatistics, name: str) -> Array:
    """Returns a measure as (layers, epochs + 1), NaN where it is not above 0."""
    table = [
        [getattr(row, name) for row in one.rows(epoch)] for epoch in range(one.repeated_epochs + 1)
    ]
    values = np.array(table, np.float64).T
    return np.where(values > 0, values, np.nan)


def _scale(maps: Sequence[Array]) -> Normalize:
    values = np.concatenate([one.ravel() for one in maps])
    values = values[np.isfinite(values)]
    if not values.size:
        return Normalize(0, 1)
    low, high = float(values.min()), float(values.max())
    return LogNorm(max(low, high * 1e-6), max(high, 1.01 * low))


def weights_figure(found: Sequence[NetworkStatistics]) -> Picture:
    """Returns the weights' histograms, overlaid, above the numbers of `weights_table`."""
    figure = new_figure(3.2 + 0.26 * len(found) + 0.6, "WEIGHTS OF THE TRAINED MODELS")
    upper, lower = figure.subplots(2, 1, height_ratios=(3.0, 0.26 * len(found) + 0.3))
    labels = fit([one.label for one in found], LABEL_WIDTH)
    for one, style, label in zip(found, _styles(found), labels, strict=True):
        weights = one.weights
        if weights is None:
            continue
        line = {key: style[key] for key in ("color", "linestyle")}
        share = np.where(weights.share > 0, 100 * weights.share, np.nan)
        upper.stairs(share, weights.edges, label=label, **line, linewidth=1.3)
    upper.set_yscale("log")
    log_ticks(upper.yaxis)
    upper.set_xlabel("weight")
    upper.set_ylabel("share of the weights (%)")
    quiet(upper)
    if any(one.weights is not None for one in found):
        upper.legend(frameon=False, fontsize=TEXT_SIZE - 1, labelcolor=INK, loc="upper right")
    lower.set_axis_off()
    numbers = weights_table(found)
    width = max(map(text_width, labels)) / WIDTH + 0.06
    drawn = lower.table(
        [[label, *row[1:]] for label, row in zip(labels, numbers.rows, strict=True)],
        colLabels=["", *(heading.removeprefix(">") for heading in numbers.columns[1:])],
        colWidths=[width, *[(1 - width) / 6] * 6],
        loc="center",
        edges="horizontal",
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(TEXT_SIZE)
    for cell in drawn.get_celld().values():
        cell.set_edgecolor(GRID)
        cell.get_text().set_color(INK)
    text = "Histograms of all kernels' weights of the trained models"
    caption = (
        f"{text}; at most {100 * (1 - SHOWN):.1g} % of a run's weights lie outside the panel. "
        "Below, norm, std and sparsity of the weights, and accuracies in %."
    )
    if LOST_NOTE in numbers.notes:
        caption += f" {LOST_NOTE}"
    texts = [
        f"{one.label} |w| {_weight_cells(one.weights)[0]}, gap {one.gap:+z.2f} points"
        for one in found
    ]
    alt = f"{text}. {first_texts(texts)}."
    return Picture("weights", figure, "Weights of the trained models", caption, alt)
