"""A norm explained by what its Keras layer does: measured, in words, and in a figure.

The definition, `normalize`, is a few lines of NumPy. The layer is observed from outside: one of its
inputs changes, or a small tensor passes through it, and its outputs must agree with the definition.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm import runtime, user_code
from kerasnorm.analysis.answer import Answer
from kerasnorm.config import ModelConfig, unknown
from kerasnorm.errors import ConfigError, described, expect, expect_whole, is_number
from kerasnorm.norms import (
    EPSILON,
    MOVED,
    NORMS,
    Norm,
    NormFacts,
    built,
    moved_outputs,
    normalization,
    without_zeros,
)
from kerasnorm.plots.style import FAINT, INK, TEXT_SIZE, Picture, new_figure, small_text
from kerasnorm.progress import in_percent

if TYPE_CHECKING:
    import keras
    from matplotlib.axes import Axes

    from kerasnorm.benchmark.cost import NormCost

Array = NDArray[Any]
Index = tuple[int, int, int, int]

CUBE = (3, 2, 3, 8)  # (N, H, W, C) of the tensor in which one value changes
SMALL = (2, 1, 2, 4)  # (N, H, W, C) of the worked example
GROUPS = 2  # of gn in both
DRAWS = 64  # random inputs by which a norm of unknown code is probed
BATCHES = 3  # batches after which the moving statistics are shown
TOLERANCE = 1e-4  # of the layer in float32 against the definition in float64
WIDTH = 100  # letters per line of text
FIGURE_WIDTH = 52  # letters per line beside the cube
REST = "#f2f2f2"  # color of values that do not move
PERTURBED = "#333333"


@dataclass(frozen=True)
class Step:
    """One step of a worked example: the name of its result, and that, broadcast to (N, H, W, C)."""

    name: str
    values: Array


@dataclass(frozen=True)
class Worked:
    """A small tensor that passes through a norm step by step.

    Attributes:
        training: Input, mean and variance (or mean square), normalized, scaled and shifted, and
            the norm's final step if it has one.
        inference: The same steps at inference; they differ only for a norm with moving statistics.
        layer_training: Output of the Keras layer in training, which the last step equals.
        layer_inference: Output of the Keras layer at inference.
        gamma: Scale, (C,).
        beta: Shift, (C,); zeros for a norm without one.
        moving: Moving mean and variance, (2, C), at the start and after each batch; empty for a
            norm without them.
        momentum: Share of the old value in a moving statistic.
        final: Variable of the norm's final step, (C,); None where there is no such step.
    """

    training: tuple[Step, ...]
    inference: tuple[Step, ...]
    layer_training: Array
    layer_inference: Array
    gamma: Array
    beta: Array
    moving: tuple[Array, ...]
    momentum: float
    final: Array | None = None


@dataclass(frozen=True)
class BatchOfOne:
    """What happens to an image alone in its batch, measured on the Keras layer.

    Attributes:
        training_change: Largest change of an image's outputs in training when the other images
            leave its batch; 0 for a norm that does not depend on them. Outputs have std 1.
        inference_change: The same at inference.
        survives_one_pixel: Whether the output in training still depends on the input when the
            batch is one image of one pixel.
    """

    training_change: float
    inference_change: float
    survives_one_pixel: bool


@dataclass(frozen=True, eq=False)
class Explanation:
    """A norm, explained.

    Attributes:
        norm: Short name of the norm.
        facts: Formula, sources and users.
        index: Index (n, h, w, c) of the input that changed.
        shared: Which outputs of the Keras layer changed with it, bool (N, H, W, C).
        worked: A small tensor that passes through the norm.
        batch_of_one: What happens to an image alone in its batch.
        cost: Parameters and share of a training step; None where not measured.
    """

    norm: str
    facts: NormFacts
    index: Index
    shared: NDArray[np.bool_]
    worked: Worked
    batch_of_one: BatchOfOne
    cost: "NormCost | None"


def explain(
    norm: str, *, cost: bool = True, batch_size: int = 64, rounds: int = 7
) -> Answer[Explanation]:
    """Explains a norm by what its Keras layer does.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, x (N, H, W, C); norms differ in the
    axes that share a mean and a variance. Sources: `kerasnorm.norms`.

    Of a norm in the user's code, `package.module:MyNorm`, the values that share statistics are
    found by perturbation, and the small tensor's input and output are shown. A record with axes is
    checked and explained like the built-in ones.

    Args:
        norm: Name of a norm, see `kerasnorm.norms.NORMS`, or of one in the user's code.
        cost: Whether to measure what the norm costs in this network, which takes about ten seconds.
        batch_size: Number of images per step of that measurement.
        rounds: Number of times that the network is timed, each with and without the norm.

    Returns:
        An `Answer` whose data are an `Explanation`, with a figure named after the norm.

    Raises:
        ConfigError: The norm is unknown, or its layer does not compute what its record says.
    """
    record = _record(norm)
    expect_whole(batch_size, "batch_size", 1)
    expect_whole(rounds, "rounds", 1)
    backend, _ = runtime.start()
    from kerasnorm.benchmark.cost import norm_cost

    index = (0, 0, 0, 0)
    draws = 1 if record.axes else DRAWS
    shared = shared_by_perturbation(norm, CUBE, index, draws=draws)
    found = Explanation(
        norm,
        record.facts or _observed(norm, shared),
        index,
        shared,
        worked_example(norm) if record.axes else _passed_through(norm),
        batch_of_one(norm),
        norm_cost(norm, backend, batch_size, rounds) if cost else None,
    )
    return Answer(found, [explain_figure(found)])


def _record(norm: str) -> Norm:
    """Returns the record of a norm."""
    known = [name for name, record in NORMS.items() if record.facts]
    expected = f"a name: {', '.join(known)}, or package.module:name of a norm in your code"
    expect(isinstance(norm, str), "norm", expected, norm)
    if user_code.is_named(norm):
        user_code.load(norm, "norm")  # afterwards NORMS knows its record, if it is one
    elif norm not in known:
        raise unknown("norm to explain", norm, known)
    return NORMS[norm]


def _observed(norm: str, shared: NDArray[np.bool_]) -> NormFacts:
    """Returns what perturbation tells about a norm in the user's code."""
    # Along each axis, how many places hold an output that changed.
    changed = [len(set(places.tolist())) for places in np.nonzero(shared)]
    names = [name for name, count in zip("NHW", changed, strict=False) if count > 1]
    if changed[3] == shared.shape[3]:
        names.append("C")
    elif changed[3] > 1:
        names.append(f"{changed[3]} of {shared.shape[3]} channels")
    over = f"{', '.join(names)} (found by perturbation)" if names else "nothing: each value alone"
    return NormFacts(
        name="a norm of your own", over=over, formula=f"that of {norm}", source="your code"
    )


def _passed_through(norm: str) -> Worked:
    """Passes a small tensor through a norm in the user's code, with its initial variables."""
    channels = SMALL[-1]
    x = np.random.Generator(np.random.PCG64(7)).integers(0, 10, SMALL).astype(np.float32)
    outputs = [_call(_make_layer(norm, SMALL), x, training) for training in (True, False)]
    phases = [(Step("input", x), Step("output", y)) for y in outputs]
    ones, zeros = np.ones(channels), np.zeros(channels)
    return Worked(phases[0], phases[1], outputs[0], outputs[1], ones, zeros, (), 0.0)


# Definition


def normalize(x: Array, norm: str, groups: int = 1, epsilon: float = EPSILON) -> Array:
    """Returns x normalized by definition, before scale and shift, in float64.

    y = (x - mean) / sqrt(variance + epsilon), with mean and variance as in `moments`.

    Args:
        x: Array of shape (N, H, W, C).
        norm: Name of a norm, see `kerasnorm.norms.NORMS`.
        groups: Number of groups of gn; other norms ignore it.
        epsilon: Added to the variance.

    Raises:
        ConfigError: The norm is unknown, the groups do not divide C, or an argument has another
            type or shape.

    >>> y = normalize(np.array([1.0, 3.0, 10.0, 30.0]).reshape(1, 1, 2, 2), "lnc")
    >>> y.round(3).ravel().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """
    is_epsilon = is_number(epsilon) and 0 <= epsilon < math.inf
    expect(is_epsilon, "epsilon", "a number of at least 0", epsilon)
    x = _four_axes(x)
    mean, variance = moments(x, norm, groups)
    return (x - mean) / np.sqrt(variance + epsilon)


def moments(x: Array, norm: str, groups: int = 1) -> tuple[Array, Array]:
    """Returns the mean and the variance that normalize each value of x.

    The variance is the biased one, E[(x - mean)²]. For a norm that does not subtract the mean, the
    mean is 0 and the variance is the mean square E[x²]. Arguments are those of `normalize`, and
    both arrays have the shape of x.

    >>> mean, variance = moments(np.arange(4.0).reshape(1, 1, 2, 2), "bn")
    >>> mean[0, 0, 0].tolist(), variance[0, 0, 0].tolist()
    ([1.0, 2.0], [1.0, 1.0])
    """
    record, x = _record(norm), _four_axes(x)
    split = x.reshape(_split(record, x.shape, groups))
    mean = split.mean(record.axes, keepdims=True) if record.is_centered else np.zeros(())
    variance = np.square(split - mean).mean(record.axes, keepdims=True)
    full = [np.broadcast_to(part, split.shape).reshape(x.shape) for part in (mean, variance)]
    return full[0], full[1]


def _four_axes(x: object) -> Array:
    """Returns x, an array of numbers of shape (N, H, W, C), in float64."""
    try:
        values = np.asarray(x, np.float64)
    except (TypeError, ValueError, RuntimeError):
        values = np.empty(0)
    is_right = values.ndim == 4 and 0 not in values.shape
    what = described(values if values.size else x)
    if not is_right:
        raise ConfigError(
            "x: expected an array of numbers of shape (N, H, W, C), none of them 0. "
            f"Received: {what}"
        )
    return values


def _split(norm: Norm, shape: Sequence[int], groups: int) -> tuple[int, ...]:
    """Returns the shape (N, H, W, groups, C / groups) that a norm's axes refer to."""
    count = norm.groups(ModelConfig(norm=norm.name, groups=groups), shape[-1])
    return (*shape[:3], count, shape[-1] // count)


# The Keras layer, observed


def _make_layer(
    norm: str,
    shape: Sequence[int],
    groups: int = GROUPS,
    values: Mapping[str, Array] | None = None,
) -> "keras.layers.Layer":
    """Returns a built layer with some variables set, each by its name to an array (C,).

    By default its final step, if it has one, changes nothing. The layer gets the whole shape (N, H,
    W, C), because the weights of a norm in the user's code may depend on H and W.
    """
    final, channels = _record(norm).final, shape[-1]
    layer = normalization(ModelConfig(norm=norm, groups=groups), channels)
    assert layer is not None
    if user_code.is_named(norm):
        built(layer, (None, *shape[1:]))
    else:
        layer.build((None, *shape[1:]))
    values = values or ({final.variable: np.full(channels, final.neutral)} if final else {})
    _expect_variables(norm, layer, values, channels)
    for variable in layer.variables:
        if variable.name in values:
            variable.assign(values[variable.name].reshape(tuple(variable.shape)))
    return layer


def _observable(norm: str, shape: Sequence[int], groups: int = GROUPS) -> "keras.layers.Layer":
    """Returns a layer of `_make_layer` in which no scale of 0 hides what the norm does."""
    layer = _make_layer(norm, shape, groups)
    if user_code.is_named(norm):
        final = _record(norm).final
        without_zeros(layer, kept=final.variable if final else "")
    return layer


def _expect_variables(
    norm: str, layer: "keras.layers.Layer", names: Iterable[str], channels: int
) -> None:
    """Refuses a layer without variables of these names, with one value per channel each."""
    shapes = {variable.name: tuple(variable.shape) for variable in layer.variables}
    for name in names:
        if name not in shapes or math.prod(shapes[name]) != channels:
            found = ", ".join(f"{other} {shape}" for other, shape in shapes.items()) or "none"
            raise ConfigError(
                f"norm {norm!r}: expected its layer to have a variable {name!r} of shape "
                f"({channels},), one value per channel. Received the variables: {found}. Give it "
                "that name and shape in the layer's build(), or change the norm's record."
            )


def _call(layer: "keras.layers.Layer", x: Array, training: bool) -> Array:
    import keras

    outputs = layer(keras.ops.convert_to_tensor(x), training=training)
    return keras.ops.convert_to_numpy(outputs)


def shared_by_perturbation(
    norm: str, shape: Index, index: Index, groups: int = GROUPS, draws: int = 1
) -> NDArray[np.bool_]:
    """Returns which outputs of the Keras layer in training change when its input at `index` does.

    They are those whose statistics have a part in the changed value, bool of the given shape. An
    output counts that changes with one of `draws` random inputs; a layer that cuts off its outputs,
    as a ReLU does, needs many.
    """
    return moved_outputs(_observable(norm, shape, groups), shape, index, draws)


def worked_example(norm: str) -> Worked:
    """Passes a small tensor through a norm step by step, and checks it against the Keras layer.

    Raises:
        ConfigError: The norm is unknown, or its layer does not compute what its record says.
    """
    record, channels = _record(norm), SMALL[-1]
    x = np.random.Generator(np.random.PCG64(7)).integers(0, 10, SMALL).astype(np.float32)
    gamma = 1 + 0.5 * np.arange(channels)
    beta = np.arange(channels) - 1.0 if record.shift else np.zeros(channels)
    final = 0.5 * np.arange(channels) - 1 if record.final else None

    def steps(mean: Array, variance: Array) -> tuple[Step, ...]:
        found = {"input": x, "mean": mean, "variance": variance}
        if not record.is_centered:
            found = {"input": x, "mean square": variance}
        found["normalized"] = (x - mean) / np.sqrt(variance + EPSILON)
        scaled = gamma * found["normalized"] + beta
        found["scaled and shifted" if record.shift else "scaled"] = scaled
        if record.final and final is not None:
            found[record.final.name] = record.final.apply(scaled, final)
        return tuple(Step(name, np.broadcast_to(part, SMALL)) for name, part in found.items())

    names = (record.scale, record.shift, record.final.variable if record.final else None)
    pairs = zip(names, (gamma, beta, final), strict=True)
    values = {name: array for name, array in pairs if name and array is not None}
    layer = _make_layer(norm, SMALL, values=values)
    moving = [_moving_statistics(norm, layer)] if hasattr(layer, "moving_mean") else []
    momentum = float(layer.momentum) if moving else 0.0
    training, from_layer = steps(*moments(x, norm, GROUPS)), _call(layer, x, True)
    _agree(norm, "output in training", training[-1].values, from_layer)
    for number in range(BATCHES if moving else 0):
        batch = x + number  # each batch is brighter than the one before by 1
        if number:
            _call(layer, batch, True)
        measured = np.stack([part[0, 0, 0] for part in moments(batch, norm)])
        moving.append(momentum * moving[-1] + (1 - momentum) * measured)
        found = _moving_statistics(norm, layer)
        _agree(norm, "moving mean and variance", moving[-1], found)
    inference = steps(*moving[-1]) if moving else training
    at_inference = _call(layer, x, False)
    _agree(norm, "output at inference", inference[-1].values, at_inference)
    return Worked(
        training, inference, from_layer, at_inference, gamma, beta, tuple(moving), momentum, final
    )


def _moving_statistics(norm: str, layer: "keras.layers.Layer") -> Array:
    """Returns a layer's moving mean and variance, (2, C)."""
    names = ("moving_mean", "moving_variance")
    _expect_variables(norm, layer, names, SMALL[-1])
    if not hasattr(layer, "momentum"):
        raise ConfigError(
            f"norm {norm!r}: expected a layer with moving statistics to have the attribute "
            "'momentum', the share of the old value in them. Received a layer without it. Set it "
            "in the layer's __init__()."
        )
    return np.stack([np.asarray(getattr(layer, name)).ravel() for name in names])


def _agree(norm: str, what: str, defined: Array, layers: Array) -> None:
    """Compares what the definition and the layer give."""
    if not np.allclose(defined, layers, rtol=TOLERANCE, atol=TOLERANCE):
        expected, received = (
            np.array2string(a.ravel()[:4], precision=4) for a in (defined, layers)
        )
        raise ConfigError(
            f"norm {norm!r}: expected its layer's {what} to begin with {expected}, as the "
            f"definition in the norm's record says. Received: {received}. Change the record "
            "(its axes, groups, is_centered or final) or the layer."
        )


def batch_of_one(norm: str) -> BatchOfOne:
    """Calls the Keras layer on an image in a batch of eight, alone, and reduced to one pixel."""
    rng = np.random.Generator(np.random.PCG64(1))
    batch = rng.normal(size=(8, 4, 4, 8)).astype(np.float32)

    def change(is_training: bool) -> float:
        together, alone = (
            _call(_observable(norm, images.shape), images, is_training)[0]
            for images in (batch, batch[:1])
        )
        largest = float(np.abs(together - alone).max())
        return largest if largest > MOVED else 0.0

    pixels = batch[:2, :1, :1]
    layer = _observable(norm, pixels[:1].shape)
    first, second = (_call(layer, pixels[i : i + 1], True) for i in (0, 1))
    return BatchOfOne(change(True), change(False), bool(np.abs(first - second).max() > MOVED))


# In words


def explanation_text(found: Explanation) -> str:
    """Returns an explanation as text for a terminal."""
    facts, worked = found.facts, found.worked
    parts = [
        f"{found.norm}: {facts.name}",
        f"formula      {facts.formula}",
        _entry("statistics", f"over {facts.over}"),
        _entry("source", facts.source),
        "",
        _shared_text(found),
        "",
        _worked_text(NORMS[found.norm], worked),
    ]
    if worked.moving:
        parts += ["", _moving_text(worked)]
    parts += ["", _entry("batch of 1", _alone_text(found.batch_of_one))]
    if found.cost is not None:
        cost = found.cost
        text = (
            f"{cost.norm_parameters:,} of {cost.parameters:,} parameters; "
            f"{in_percent(cost.share, 0)} % of a training step of {cost.batch_size} images, "
            f"median of {cost.rounds} rounds on this machine ({in_percent(cost.least, 0)} to "
            f"{in_percent(cost.largest, 0)} %), on {cost.backend}; median step "
            f"{cost.milliseconds:.0f} ms with it, {cost.milliseconds_without:.0f} ms without"
        )
        parts.append(_entry("cost", text))
    parts += [_entry("" if place else "used by", user) for place, user in enumerate(facts.users)]
    parts += [_entry("caution", facts.caution)] if facts.caution else []
    return "\n".join(parts)


def _entry(name: str, text: str) -> str:
    return fill(text, WIDTH, initial_indent=f"{name:<13}", subsequent_indent=" " * 13)


def _shared_text(found: Explanation) -> str:
    """Draws the cube as one map per image: channels upwards, pixels to the right."""
    count, height, width, channels = found.shared.shape
    n, h, w, c = found.index
    lines = [
        "Input X of the Keras layer was changed; outputs # changed with it, outputs . did not.",
        "   ".join(f"{f'image {i}':<{height * width + 3}}" for i in range(count)).rstrip(),
    ]
    for channel in reversed(range(channels)):
        row = []
        for image in range(count):
            marks = ["#" if m else "." for m in found.shared[image, :, :, channel].ravel()]
            if (image, channel) == (n, c):
                marks[h * width + w] = "X"
            row.append(f"C{channel} {''.join(marks)}")
        lines.append("   ".join(row))
    return "\n".join(lines)


def _worked_text(norm: Norm, worked: Worked) -> str:
    lines = ["A small tensor, step by step: images of two pixels (between bars) of four channels."]
    same = all(
        np.array_equal(a.values, b.values)
        for a, b in zip(worked.training, worked.inference, strict=True)
    )
    phases = [("training and inference" if same else "training", worked.training)]
    phases += [] if same else [("inference, by the moving statistics", worked.inference)]
    for phase, steps in phases:
        lines.append(f"  {phase}")
        for image in range(len(steps[0].values)):
            lines.append(f"    image {image}")
            lines += [f"      {step.name:<20}{_cells(step.values[image])}" for step in steps]
    if not norm.axes:
        return "\n".join([*lines, "  Its variables have their initial values."])
    variables = f"gamma {_row(worked.gamma)}"
    variables += f", beta {_row(worked.beta)}" if norm.shift else ""
    if norm.final and worked.final is not None:
        variables += f", {norm.final.variable} {_row(worked.final)}"
    lines.append(f"  {variables}. The last step equals the Keras layer's output.")
    return "\n".join(lines)


def _cells(image: Array) -> str:
    pixels = np.asarray(image, np.float64).reshape(-1, image.shape[-1])
    return " | ".join(" ".join(f"{value:z6.2f}" for value in pixel) for pixel in pixels)


def _row(values: Array) -> str:
    return " ".join(f"{value:g}" for value in values)


def _moving_text(worked: Worked) -> str:
    lines = [
        f"Moving average: new = {worked.momentum:g} * old + {1 - worked.momentum:g} * batch",
        "  after  mean of each channel          variance of each channel",
    ]
    for number, (mean, variance) in enumerate(worked.moving):
        lines.append(
            f"  {number or 'start':>5}  {' '.join(f'{v:6.3f}' for v in mean):<30}"
            f"{' '.join(f'{v:6.3f}' for v in variance)}"
        )
    return "\n".join(lines)


def _alone_text(alone: BatchOfOne) -> str:
    if alone.training_change:
        inference = (
            f"at inference by {alone.inference_change:.2f}"
            if alone.inference_change
            else "at inference they do not"
        )
        change = (
            f"in training an image's outputs change by up to {alone.training_change:.2f} (their "
            f"std is 1) when the seven other images leave its batch; {inference}"
        )
    else:
        change = (
            "an image's outputs do not change when the other images leave its batch, in training "
            "or at inference"
        )
    verb = "still depends" if alone.survives_one_pixel else "does not depend"
    return f"{change}. On one image of one pixel, the output {verb} on the input."


# In a figure


def explain_figure(found: Explanation) -> Picture:
    """Returns the cube of values that share statistics, above the worked example."""
    record, facts = NORMS[found.norm], found.facts
    figure = new_figure(6.4, f"{record.label}: {facts.name}")
    figure.set_layout_engine("none")  # a 3-D view leaves too much room, so axes are placed by hand
    cube = figure.add_axes((0.5, 0.4, 0.48, 0.56), projection="3d")
    _draw_cube(cube, found.shared, found.index, record.color)
    changed, others = found.shared.sum() - 1, found.shared.size - 1
    texts = (
        facts.formula,
        fill(f"Statistics over {facts.over}.", FIGURE_WIDTH),
        "Dark: the input of the Keras layer that was changed.",
        f"Color: the other outputs that changed, {changed} of {others}.",
        "Below: a small tensor step by step; the last step\nequals the layer's output.",
    )
    height = 0.9
    for text in texts:
        figure.text(0.03, height, text, fontsize=TEXT_SIZE, color=INK, va="top")
        height -= 0.05 + 0.032 * (text.count("\n") + 1)
    steps = found.worked.training
    pitch = 0.91 / max(5, len(steps))
    for place, step in enumerate(steps):
        axes = figure.add_axes((0.085 + pitch * place, 0.085, pitch - 0.012, 0.25))
        _heatmap(axes, step.values, step.name)
        if place == 0:
            axes.set_ylabel("image, pixel", fontsize=TEXT_SIZE, color=INK)
        axes.set_xlabel("channel", fontsize=TEXT_SIZE, color=INK)
    text = f"What {record.label} computes: statistics over {facts.over}"
    caption = f"{text}; below, a small tensor step by step."
    alt = f"{text}. One input changes {changed} of the {others} other outputs."
    return Picture(
        found.norm.rpartition(":")[2], figure, f"{record.label}: {facts.name}", caption, alt
    )


def _draw_cube(axes: Any, shared: NDArray[np.bool_], index: Index, color: str) -> None:
    count, height, width, channels = shared.shape
    # Voxels are (H·W, N, C): pixels to the right, images into depth, channels upwards.
    pixels = shared.reshape(count, height * width, channels).transpose(1, 0, 2)
    colors = np.where(pixels, color, REST)
    colors[index[1] * width + index[2], index[0], index[3]] = PERTURBED
    axes.voxels(
        np.ones_like(pixels), facecolors=colors, edgecolor="#bbbbbb", linewidth=0.5, shade=False
    )
    axes.set_box_aspect((height * width, 1.6 * count, channels), zoom=0.95)
    axes.view_init(elev=22, azim=-58)
    for axis, size, name in (
        (axes.xaxis, height * width, "H·W (pixel)"),
        (axes.yaxis, count, "N (image)"),
        (axes.zaxis, channels, "C (channel)"),
    ):
        axis.set_ticks(np.arange(size) + 0.5, [str(number) for number in range(size)])
        axis.set_label_text(name)
        axis.labelpad = -2
        axis.pane.set_visible(False)
        axis.line.set_color(FAINT)
        axis.label.set_fontsize(TEXT_SIZE)
        axis.label.set_color(INK)
    axes.tick_params(labelsize=TEXT_SIZE - 1.5, labelcolor=INK, pad=-2)
    axes.grid(visible=False)


def _heatmap(axes: "Axes", values: Array, name: str) -> None:
    count, height, width, channels = values.shape
    rows = np.asarray(values, np.float64).reshape(-1, channels)
    limit = max(float(np.abs(rows).max()), 1e-9)
    axes.imshow(rows, cmap="RdBu_r", vmin=-1.6 * limit, vmax=1.6 * limit, aspect="auto")
    for (row, column), value in np.ndenumerate(rows):
        text = f"{value:.0f}" if name == "input" else f"{value:z.2f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=6.8, color=INK)
    axes.axhline(height * width - 0.5, color="white", linewidth=2.5)
    axes.set_title(name, fontsize=TEXT_SIZE, color=INK)
    places = [f"{n}, {p}" for n in range(count) for p in range(height * width)]
    axes.set_yticks(range(len(places)), places if name == "input" else [""] * len(places))
    axes.set_xticks(range(channels))
    axes.spines[:].set_visible(False)
    small_text(axes)
