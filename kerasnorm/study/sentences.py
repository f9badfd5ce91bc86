"""The results of a study as sentences."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kerasnorm.config import field_value, tuned_values
from kerasnorm.errors import shortened
from kerasnorm.norms import NORMS
from kerasnorm.plots.labels import short_places, shown_fields, value_text, value_texts
from kerasnorm.progress import counted, in_percent
from kerasnorm.study.intervals import Verdict, image_error
from kerasnorm.study.summary import (
    IMAGE_FIELDS,
    AblationEffect,
    Difference,
    Failure,
    Summary,
)
from kerasnorm.study.tables import (
    LONGEST_MESSAGE,
    change_text,
    group_label,
    interval_points,
    points,
)
from kerasnorm.training.run import Run

MOST_SENTENCES = 8
RANKED_BY_VALIDATION = (
    "Ranked and compared by accuracy on the validation split; test accuracy beside it."
)
RANKED_BY_TEST = (
    "Ranked and compared by accuracy on the test set, for want of a validation split: the winner's "
    "test accuracy is then too high by chance. Give --validation to choose on other images than "
    "those you report."
)
# Not said of images that are held out for validation: each seed holds out others.
SAME_IMAGES = (
    "All seeds are judged on the same images: the intervals say what other seeds would give, not "
    "what other images would."
)


def arms_sentence(summary: Summary) -> str:
    """Returns in which fields, besides the norm, the norms' runs differ; "" for one norm."""
    if len({group.norm for group in summary.groups}) < 2:
        return ""
    if not summary.compares_norms:
        return (
            "No norms are compared: no two of them have runs of the same seed that are alike in "
            "all that was varied."
        )
    if not summary.unmatched:
        return (
            "Matched arms: the norms' runs differ in the norm alone, and in options that one norm "
            f"alone has, such as groups.{_tuned_text(summary)}"
        )
    texts = [_unmatched_text(name, values) for name, values in summary.unmatched.items()]
    return f"The arms differ in more than the norm: {'; '.join(texts)}."


def steps_sentence(summary: Summary) -> str:
    """Returns how many steps the batch sizes of a study differ by; "" where they do not vary."""

    def size(run: Run) -> int:
        return run.config.train.batch_size

    runs = [group.first for group in summary.groups]
    low, high = min(runs, key=size), max(runs, key=size)
    if "batch_size" not in summary.axes or size(low) == size(high):
        return ""
    steps = [f"{run.metrics['steps_per_epoch']:,}" for run in (low, high)]
    return (
        f"At equal epochs, larger batches take fewer steps: an epoch has {steps[0]} in batches of "
        f"{size(low)} and {steps[1]} in batches of {size(high)}. A part of the difference may be "
        "the number of steps."
    )


def following_sentence(summary: Summary) -> str:
    """Returns which fields change together with the varied ones; "" where none does."""
    if not summary.following:
        return ""
    texts = [
        f"{name.replace('_', ' ')} ({', '.join(value_texts(values))})"
        for name, values in summary.following.items()
    ]
    varied = ", ".join(name.replace("_", " ") for name in summary.axes)
    return f"Together with what was varied ({varied}), these change: {'; '.join(texts)}."


def statistics_sentence(summary: Summary) -> str:
    """Returns which groups trained too short for the moving statistics of their batch norms."""
    texts = [
        f"{group_label(group, summary)} {in_percent(group.initial_statistics, 0)} %"
        for group in summary.groups
        if group.initial_statistics
    ]
    if not texts:
        return ""
    return (
        "At the end of training, moving statistics of batch norms are still in part the initial "
        f"ones, and the accuracy at inference suffers: {'; '.join(texts)}. Train longer, or "
        "measure the statistics afterwards: kerasnorm recalibrate."
    )


def leak_sentence(summary: Summary) -> str:
    """Returns how many images of other splits were training images too, the most of all runs."""
    most: dict[str, int] = {}
    for run in summary.runs:
        for name, count in run.metrics.get("leaked_images", {}).items():
            most[name] = max(most.get(name, 0), int(count))
    if not most:
        return ""
    counts = " and ".join(f"{count:,} {name}" for name, count in most.items())
    return (
        f"In the data, {counts} images have the same pixels as a training image: accuracies are "
        "too high. Remove them from one of the two."
    )


def instance_sentence(summary: Summary) -> str:
    """Returns in which groups of runs gn is in part instance normalization."""
    texts = [
        f"{group_label(group, summary)} in {alone} of {count} norms"
        for group in summary.groups
        for alone, count in [group.instance_norms]
        if alone
    ]
    if not texts:
        return ""
    return f"Groups of one channel each are instance normalization: {'; '.join(texts)}."


def chance_sentence(summary: Summary) -> str:
    """Returns which groups have runs that are no better than always answering one class."""
    texts = [
        f"{group_label(group, summary)} in {alike} of {counted(len(group.runs), 'run')}"
        for group in summary.groups
        if (alike := sum(map(_is_at_chance, group.runs.values())))
    ]
    if not texts:
        return ""
    return (
        "No better than always answering the most frequent class of the test set: "
        f"{'; '.join(texts)}. Such a training has failed, and may decide means and verdicts."
    )


def _is_at_chance(run: Run) -> bool:
    counts = np.asarray(run.metrics["confusion"], np.int64).sum(axis=1)
    return bool(run.metrics["test_accuracy"] <= counts.max() / counts.sum())


def _tuned_text(summary: Summary) -> str:
    """Returns which values of its own the recipe has for the norms of a matched study."""
    norms = [group.norm for group in summary.groups]
    tuned = tuned_values(summary.groups[0].first.config.recipe)
    texts = [
        _unmatched_text(name, {norm: values[norm] for norm in dict.fromkeys(norms)})
        for name, values in tuned.items()
        if len({values.get(norm) for norm in norms}) > 1 and set(norms) <= {*values}
    ]
    if not texts:
        return ""
    return f" The recipe has values for each norm, which --arms tuned takes: {'; '.join(texts)}."


def _unmatched_text(name: str, values: Mapping[str, Any]) -> str:
    norms: dict[str, list[str]] = {}
    for norm, value in zip(values, value_texts([*values.values()]), strict=True):
        norms.setdefault(value, []).append(NORMS[norm].label)
    parts = [f"{', '.join(labels)} {value}" for value, labels in norms.items()]
    return f"{name.replace('_', ' ')} ({'; '.join(parts)})"


def images_sentence(summary: Summary) -> str:
    """Returns which runs are not compared, because they are tested on other images; "" for none."""
    texts = []
    for name in IMAGE_FIELDS:
        fields = [{name: field_value(run.config, name)} for run in summary.runs]
        values = dict.fromkeys(value_text(shown_fields(one, fields)[name]) for one in fields)
        if len(values) > 1:
            texts.append(f"{name.replace('_', ' ')} ({', '.join(values)})")
    if not texts:
        return ""
    return (
        f"Runs that differ in {' or '.join(texts)} are not compared with each other, because they "
        "are tested on other images."
    )


def measure_sentence(summary: Summary) -> str:
    """Returns by which split the groups are compared, and how far off its images may be.

    Where groups are compared by the test images, it says what that costs.
    """
    is_compared = bool(summary.differences or summary.changes or summary.effects)
    is_by_test = summary.measure == "test_accuracy"
    is_drawn = not is_by_test and all(run.config.data.validation for run in summary.runs)
    texts = [RANKED_BY_TEST if is_by_test else RANKED_BY_VALIDATION] if is_compared else []
    texts += [SAME_IMAGES] if is_compared and not is_drawn else []
    texts += _image_texts(summary, "val_accuracy") if not is_by_test and not is_drawn else []
    texts += _image_texts(summary, "test_accuracy")
    return " ".join(texts)


def _image_texts(summary: Summary, measure: str) -> list[str]:
    """Returns how far off an accuracy on so many images may be, one sentence per data set.

    A data set is left out if the number of its images is not known, or differs between runs.
    """
    places = short_places(run.config.data.data for run in summary.runs)
    texts = []
    for place, name in places.items():
        groups = [group for group in summary.groups if group.first.config.data.data == place]
        counts = {_images(run, measure) for group in groups for run in group.runs.values()}
        if len(counts) == 1 and (images := counts.pop()):
            kind = ("test" if measure == "test_accuracy" else "validation") + " images"
            kind += f" of {name}" if len(places) > 1 else ""
            highest = max(group.mean(measure) for group in groups)
            texts.append(
                f"There are {images:,} {kind}: by chance alone, an accuracy of "
                f"{in_percent(highest)} % on them may miss that on all such images by "
                f"{100 * image_error(highest, images):.2f} points."
            )
    return texts


def _images(run: Run, measure: str) -> int | None:
    """Returns the number of images that an accuracy was measured on, None where it is not known."""
    if measure == "test_accuracy":
        return int(np.sum(run.metrics["confusion"]))
    count: int | None = run.metrics.get("images", {}).get("validation")
    return count


def sentences(summary: Summary) -> list[str]:
    """Returns what the arms share, what ranks them, and one sentence per difference and effect.

    Runs that are too short for their moving statistics, and failed ones, are named before these.

    Differences that matter come first, then those that are equivalent for practice, then those
    that are not significant. In a one-factor-at-a-time study the differences between the bases
    come first, then the effects, the largest first.
    """
    differences = [d for d in summary.differences if not (summary.one_at_a_time and d.first.fields)]
    differences.sort(key=lambda item: _rank(summary.verdict(item)))
    effects = sorted(
        summary.effects,
        key=lambda item: (_rank(summary.verdict(item)), -abs(item.interval.mean)),
    )
    ranked = [_difference_sentence(item, summary) for item in differences]
    ranked += [_effect_sentence(item, summary) for item in effects]
    left = len(ranked) - MOST_SENTENCES
    ranked = ranked[:MOST_SENTENCES] + ([f"The tables hold {left} more."] if left > 0 else [])
    texts = [arms_sentence(summary), images_sentence(summary), following_sentence(summary)]
    texts += [steps_sentence(summary), measure_sentence(summary), leak_sentence(summary)]
    texts += [statistics_sentence(summary), instance_sentence(summary), chance_sentence(summary)]
    first = [text for text in texts if text]
    first += [_failure_sentence(item, summary) for item in summary.failures]
    if summary.waiting:
        verb = "is" if summary.waiting == 1 else "are"
        runs = counted(summary.waiting, "planned run")
        first.append(f"{runs} {verb} not trained yet: the command of the study goes on with them.")
    return first + ranked


def _failure_sentence(item: Failure, summary: Summary) -> str:
    name = group_label(item, summary)
    message = shortened(item.message, LONGEST_MESSAGE).removesuffix(".")
    rest = "" if item.count == item.planned else " Its other seeds alone are compared."
    return f"{name} failed in {item.count} of {item.planned} runs: {message}.{rest}"


def _rank(verdict: Verdict) -> int:
    return (Verdict.DIFFERENT, Verdict.EQUIVALENT, Verdict.OPEN, Verdict.TOO_FEW).index(verdict)


def _difference_sentence(item: Difference, summary: Summary) -> str:
    first, second = (group_label(group, summary) for group in (item.first, item.second))
    by = points(item.interval, summary.margin)
    match summary.verdict(item):
        case Verdict.DIFFERENT:
            direction = "below" if item.interval.mean < 0 else "above"
            text = f"{first} is {by.lstrip('+-')} points {direction} {second}"
        case Verdict.EQUIVALENT:
            within = f"within {100 * summary.margin:g} points"
            text = f"{first} and {second} are equivalent for practice, {within}: {by}"
        case Verdict.OPEN:
            text = f"{first} against {second} is not significant: {by} points"
        case Verdict.TOO_FEW:
            text = f"{first} against {second}: {by} points, no verdict"
    return f"{text} {_behind(item, summary)}."


def _effect_sentence(item: AblationEffect, summary: Summary) -> str:
    name = f"{group_label(item.base, summary)}, {change_text(item)}"
    verdict = summary.verdict(item)
    text = "" if verdict is Verdict.DIFFERENT else f", {verdict}"
    by = points(item.interval, summary.margin)
    return f"{name}: {by} points{text} {_behind(item, summary)}."


def _behind(item: Difference, summary: Summary) -> str:
    found = item.interval
    seeds = f"{found.n} common seed{'s' * (found.n != 1)}"
    if found.low is None:
        return f"({seeds})"
    return f"({seeds}, corrected interval {interval_points(found, summary.margin)})"
