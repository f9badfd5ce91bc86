"""Tables of what the questions about inputs, landscapes and statistics measure."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasnorm.tables import Table

MEASURED_NOTE = "Medians over the lines along the gradient; the surface is of test images."
GAP_NOTE = (
    "|w| and near 0 are of all kernels of the trained model; near 0 is below a thousandth of the "
    "layer's largest. Accuracies are of that model on images as they are, {judged} of a split at "
    "most; the gap is train minus test, in points."
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
