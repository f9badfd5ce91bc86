"""What the pictures of a study show, in words: alt texts and captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kerasnorm.study.findings import nats, percent
from kerasnorm.study.groups import Group
from kerasnorm.study.labels import change_text, group_label, measure_text, norm_label
from kerasnorm.study.summary import Summary

MOST_VALUES = 8  # groups, or levers, that an alt text names


@dataclass(frozen=True)
class Figure:
    """A picture with its words.

    Attributes:
        path: The PNG file.
        alt: What a person who cannot see it should know.
        caption: What stands below it.
    """

    path: Path
    alt: str
    caption: str


def described(path: Path, summary: Summary) -> Figure:
    """Returns the picture of a study at `path`, whose name says what it shows, with its words."""
    kind, _, rest = path.stem.partition("-")
    if kind == "levers":
        return _levers(path, summary)
    if kind in ("accuracy", "loss"):
        return _curves(path, summary, kind)
    if kind == "final":
        text = "Test accuracy after the last epoch, every seed a dot"
        return Figure(path, f"{text}. Means: {_values(summary, summary.groups)}.", f"{text}.")
    if kind == "against":
        words = rest.replace("_", " ")
        text = f"Test result against {words}, one line a norm"
        ends = _values(summary, summary.along(rest).groups)
        return Figure(path, f"{text}. Test accuracy: {ends}.", f"{text}; std shaded.")
    norm = rest.partition("-")[0]
    name = ", ".join([norm_label(norm), *rest.split("-")[1:]])
    if kind == "confusion":
        text = f"Confusion matrix of {name} on the test set"
        return Figure(path, f"{text}: rows true classes, columns predicted ones.", f"{text}.")
    text = f"Ten misclassified test images of {name}"
    alt = f"{text} in two rows of five, each with its true and its predicted class."
    return Figure(path, alt, f"{text}: the mistakes of highest confidence.")


def _curves(path: Path, summary: Summary, measure: str) -> Figure:
    text = f"Training and test {measure} over the epochs, side by side"
    ends = _values(summary, summary.bases, f"test_{measure}")
    caption = f"{text}: means over the seeds, one standard deviation shaded."
    return Figure(path, f"{text}. Test {measure} after the last epoch: {ends}.", caption)


def _levers(path: Path, summary: Summary) -> Figure:
    measure = measure_text(summary.levers)
    text = f"What one choice changed alone does to {measure}, a row a choice, every seed a dot"
    texts = [
        f"{group_label(item.base, summary.groups)} {change_text(item)} "
        f"{100 * item.spread.mean:+.2f}"
        for item in summary.levers
    ]
    alt = f"{text}. Mean differences in points: {_first(texts)}."
    return Figure(path, alt, f"{text}: value instead minus the base's, paired by seed.")


def _values(summary: Summary, groups: Sequence[Group], measure: str = "test_accuracy") -> str:
    def text(group: Group) -> str:
        found = group.spread(measure)
        value = nats(found) if measure.endswith("loss") else f"{percent(found)} %"
        return f"{group_label(group, summary.groups)} {value}"

    return _first([text(group) for group in groups])


def _first(texts: Sequence[str]) -> str:
    more = len(texts) - MOST_VALUES
    return "; ".join(texts[:MOST_VALUES]) + (f"; and {more} more" if more > 0 else "")
