"""What understanding commands print: norms explained in words, and tables of measurements."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np

from kerasnorm.tables import Table

WIDTH = 100
MEASURED_NOTE = "Medians over the lines along the gradient; the surface is of test images."
GAP_NOTE = (
    "|w| and near 0 are of all kernels of the trained model; near 0 is below a thousandth of the "
    "layer's largest. Accuracies are of that model on images as they are, {judged} of a split at "
    "most; the gap is train minus test, in points."
)


def explanation_text(found: Any) -> str:
    """Returns an `Explanation` as text for a terminal."""
    facts, alone = found.facts, found.batch_of_one
    parts = [
        f"{found.norm}: {facts.name}",
        f"formula      {facts.formula}",
        _entry("statistics", f"over {facts.over}"),
        _entry("source", facts.source),
        "",
        _shared(found),
        "",
        _worked(found.worked),
    ]
    if found.worked.moving:
        parts += ["", _moving(found.worked)]
    parts += ["", _entry("batch of 1", _alone(alone))]
    if found.cost is not None:
        parts.append(_entry("cost", _cost(found.cost)))
    parts += [
        _entry("used by" if place == 0 else "", user) for place, user in enumerate(facts.users)
    ]
    parts.append(_entry("mind", facts.caution))
    return "\n".join(parts)


def _entry(name: str, text: str) -> str:
    return fill(text, WIDTH, initial_indent=f"{name:<13}", subsequent_indent=" " * 13)


def _shared(found: Any) -> str:
    """Draws the cube as one map an image: channels down, pixels to the right."""
    count, height, width, channels = found.shared.shape
    pixels = height * width
    n, h, w, c = found.index
    lines = [
        "Input X of the real layer was moved; outputs # moved with it, outputs . did not.",
        "   ".join(f"{f'image {i}':<{pixels + 3}}" for i in range(count)).rstrip(),
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


def _worked(worked: Any) -> str:
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
    shift = f", beta {_row(worked.beta)}" if worked.beta.any() else ""  # rms has none
    lines.append(
        f"  gamma {_row(worked.gamma)}{shift}. The last step equals the Keras layer's output."
    )
    return "\n".join(lines)


def _cells(image: Any) -> str:
    pixels = np.asarray(image, np.float64).reshape(-1, image.shape[-1])
    return " | ".join(" ".join(f"{value:z6.2f}" for value in pixel) for pixel in pixels)


def _row(values: Any) -> str:
    return " ".join(f"{value:g}" for value in values)


def _moving(worked: Any) -> str:
    lines = [
        f"Moving average: new = {worked.momentum:g} * old + {1 - worked.momentum:g} * the batch's",
        "  after  mean of each channel          variance of each channel",
    ]
    for number, (mean, variance) in enumerate(worked.moving):
        name = f"{number}" if number else "start"
        lines.append(
            f"  {name:>5}  {' '.join(f'{v:6.3f}' for v in mean):<30}"
            f"{' '.join(f'{v:6.3f}' for v in variance)}"
        )
    return "\n".join(lines)


def _alone(alone: Any) -> str:
    training = (
        f"in training an image's outputs change by up to {alone.training_change:.2f} (their std is "
        "1) when the seven others of its batch go"
        if alone.training_change
        else "an image's outputs do not change when the others of its batch go"
    )
    inference = (
        f"at inference by {alone.inference_change:.2f}"
        if alone.inference_change
        else "at inference they do not"
        if alone.training_change
        else "in training or at inference"
    )
    joined = f"{training}; {inference}" if alone.training_change else f"{training}, {inference}"
    one = (
        "still depends on the input" if alone.survives_one_pixel else "does not depend on the input"
    )
    return f"{joined}. On one image of one pixel, the output {one}."


def _cost(cost: Any) -> str:
    return (
        f"{cost.norm_parameters:,} of {cost.parameters:,} parameters; {100 * cost.share:.0f} % of "
        f"a training step of {cost.batch_size} images ({cost.milliseconds:.0f} ms, without it "
        f"{cost.milliseconds_without:.0f} ms), {cost.backend}, median of {cost.rounds} turns here "
        "and now"
    )


def inputs_table(found: Sequence[Any]) -> Table:
    """Returns mean and std of each channel by preprocessing, and the short trainings' ends."""
    has_training = any(one.history or one.diverged for one in found)
    columns = ["preprocessing", ">mean of each channel", ">std of each channel"]
    columns += [">train loss", ">test accuracy (%)"] if has_training else []
    rows = []
    for one in found:
        cells = [one.preprocessing, _numbers(one.mean), _numbers(one.std)]
        if has_training:
            last = one.history[-1] if one.history and not one.diverged else None
            cells += (
                [f"{last['train_loss']:.3f}", f"{100 * last['test_accuracy']:.2f}"]
                if last
                else ["diverged", ""]
            )
        rows.append(tuple(cells))
    return Table(tuple(columns), rows)


def _numbers(values: Any) -> str:
    return " ".join(f"{float(value):z.3f}" for value in values)


def landscape_table(found: Sequence[Any]) -> Table:
    """Returns the roughness of each run in numbers."""
    columns = (
        "run",
        ">range of loss",
        ">change of gradient",
        ">effective smoothness",
        ">loss at the model",
        ">highest on the surface",
    )
    rows = []
    for one in found:
        lines, around = one.lines, one.surface
        medians = [np.median(v) for v in (lines.loss_range, lines.change, lines.smoothness)]
        numbers = [*medians, around.center, around.plane.max()]
        rows.append((one.label, *(f"{number:.4g}" for number in numbers)))
    return Table(columns, rows, notes=[MEASURED_NOTE])


def statistics_table(found: Sequence[Any]) -> Table:
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
            f"{100 * row.zero_share:.1f}",
            f"{100 * row.dead_share:.1f}",
            f"{row.gradient_norm:.3g}",
            f"{row.weight_norm:.3g}",
            f"{row.update_ratio:.3g}",
        )
        for one in found
        for place, row in enumerate(r for r in one.layers if r.epoch == one.repeated_epochs)
    ]
    notes = [
        f"{one.label}: repeated on {one.repeated_images:,} images for {one.repeated_epochs} "
        "epochs; the rows are of its last one."
        for one in found
    ]
    return Table(columns, rows, notes=notes)


def weights_table(found: Sequence[Any], judged: int) -> Table:
    """Returns weights and the gap between training and test of the trained models.

    Args:
        found: `NetworkStatistics`.
        judged: Most images of a split that the models were scored on.
    """
    columns = ("run", ">|w|", ">std", ">near 0 (%)", ">train (%)", ">test (%)", ">gap")
    rows = [
        (
            one.label,
            f"{one.weights.norm:.2f}",
            f"{one.weights.std:.4f}",
            f"{100 * one.weights.sparsity:.2f}",
            f"{100 * one.train_accuracy:.2f}",
            f"{100 * one.test_accuracy:.2f}",
            f"{100 * (one.train_accuracy - one.test_accuracy):+.2f}",
        )
        for one in found
    ]
    return Table(columns, rows, notes=[GAP_NOTE.format(judged=f"{judged:,}")])
