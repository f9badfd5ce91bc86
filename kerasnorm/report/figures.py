"""What the pictures of a study show, in words: alt texts and captions."""

from dataclasses import dataclass
from pathlib import Path

from kerasnorm.findings import nats, percent
from kerasnorm.plots.labels import group_label, norm_label
from kerasnorm.study.summary import Group, Summary

MOST_VALUES = 8  # groups that an alt text names


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
    if kind in ("accuracy", "loss"):
        return _curves(path, summary, kind)
    if kind == "final":
        text = "Test accuracy after the last epoch, every seed a dot"
        return Figure(path, f"{text}. Means: {_values(summary)}.", f"{text}.")
    if kind == "against":
        words = rest.replace("_", " ")
        text = f"Test result against {words}, one line a norm"
        return Figure(path, f"{text}. Test accuracy: {_values(summary)}.", f"{text}; sd shaded.")
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
    ends = _values(summary, f"test_{measure}")
    caption = f"{text}: means over the seeds, one standard deviation shaded."
    return Figure(path, f"{text}. Test {measure} after the last epoch: {ends}.", caption)


def _values(summary: Summary, measure: str = "test_accuracy") -> str:
    def text(group: Group) -> str:
        found = group.spread(measure)
        value = nats(found) if measure.endswith("loss") else f"{percent(found)} %"
        return f"{group_label(group, summary.groups)} {value}"

    texts = [text(group) for group in summary.groups]
    more = len(texts) - MOST_VALUES
    return "; ".join(texts[:MOST_VALUES]) + (f"; and {more} more" if more > 0 else "")
