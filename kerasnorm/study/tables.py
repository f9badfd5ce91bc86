"""The results of a study as text: tables and sentences for people, CSV and JSON files."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kerasnorm.config import field_value, tuned_values
from kerasnorm.errors import shortened
from kerasnorm.files import encoded, write_bytes, write_json
from kerasnorm.inspection.evaluation import MOST_NAMED_CLASSES, most_confused
from kerasnorm.norms import NORMS
from kerasnorm.plots.labels import (
    field_texts,
    short_places,
    shown_fields,
    value_text,
    value_texts,
)
from kerasnorm.progress import counted, duration, in_percent, rounded
from kerasnorm.study.estimate import Estimate, makespan
from kerasnorm.study.folder import PlannedRun
from kerasnorm.study.intervals import (
    LEAST_SEEDS,
    LEVEL,
    ROUNDING,
    Comparison,
    Interval,
    Verdict,
    image_error,
)
from kerasnorm.study.plan import identity
from kerasnorm.study.summary import (
    IMAGE_FIELDS,
    MEASURES,
    AblationEffect,
    Difference,
    Failure,
    Group,
    Published,
    Summary,
    fields_of,
    whole_groups,
)
from kerasnorm.tables import Table
from kerasnorm.training.run import Run
from kerasnorm.training.run_folder import read_environment

RUNS_FILE, SUMMARY_FILE, DOCUMENT = "runs.csv", "summary.csv", "summary.json"
PARTS = ("mean", "std", "low", "high")
ACCURACIES = {"val_accuracy": "validation accuracy", "test_accuracy": "test accuracy"}
MOST_SENTENCES = 8
MOST_PAIRS = 20  # rows of the table of confused classes
LONGEST_MESSAGE = 300  # letters of the reason why a run failed
JUDGED = (">n", ">difference", ">corrected interval", ">p", "verdict")
LEAST_P = 0.001  # smaller p values are not told apart
NO_VALUE = "-"
GROUP_NOTE = (
    "Values after the last epoch: mean ± sample std over the seeds, n runs. In brackets the "
    "95 % t-interval of the mean, cut off at 0 and 100."
)
CORRECTION = (
    "Intervals and p values are those of paired t-tests, corrected for their number in this table, "
    "{count} (Holm). Different: the interval excludes zero. Equivalent: it lies within ±{margin:g} "
    "points, also where corrected as if it were the smallest p (Bonferroni). "
)
UNTESTED = (
    f"With fewer than {LEAST_SEEDS} common seeds, or the same difference on each, there is no test."
)
DIFFERENCE_NOTE = (
    "First minus second in points of {measure}, seed by seed over the n seeds that both have. "
)
EFFECT_NOTE = (
    "One field changed alone, but for those that follow it, the rest as in the base: means of "
    "{measure} after the last epoch over the n seeds that both have, and variant minus base in "
    "points, seed by seed. "
)
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
ANSWER_NOTE = "{measure} in percent, mean ± std over the seeds"
HIGHEST_NOTE = "; the highest mean of a column, of those with the most seeds, has a *"
TRAINING_NOTE = (
    "Training accuracy and loss are means over the last epoch, of augmented images in training "
    "mode: their distance to the test set is no generalization gap (kerasnorm statistics has it)."
)
CONFUSED_NOTE = (
    "Test images of the first seed's run. Classes are numbered from 0, as in the confusion matrix."
)
PLAN_NOTE = (
    "Estimated from the epochs of runs whose epochs take as long, else from a few seconds of "
    "training measured here, in as many processes at a time as will share this machine. A busy "
    "machine makes the estimate too long. The tables and the report come on top."
)
FINISHED_NOTE = "All runs are finished: nothing is left to train."


def group_label(group: Group | Failure, summary: Summary, *, without: str = "") -> str:
    """Returns what tells a group from the others, such as "LN, affine element, tensorflow"."""
    rows = summary.shown_rows
    fields = shown_fields(group.fields, (other.fields for other in rows))
    label = norm_label(group.norm, {name: v for name, v in fields.items() if name != without})
    return f"{label}, {group.backend}" if len({row.backend for row in rows}) > 1 else label


def norm_label(norm: str, fields: Mapping[str, Any]) -> str:
    """Returns a norm and some values of fields, such as "LN, affine element"."""
    return ", ".join([NORMS[norm].label, *field_texts(fields)])


def first_label(group: Group, summary: Summary) -> str:
    """Returns a group and its first seed, whose mistakes are shown: "GN, groups 2, seed 0"."""
    return f"{group_label(group, summary)}, seed {min(group.runs)}"


def measure_text(summary: Summary) -> str:
    """Returns which accuracy groups are compared by: "validation accuracy"."""
    return ACCURACIES[summary.measure]


def change_text(effect: AblationEffect) -> str:
    """Returns what an ablation changes: "batch size 128 → 64"."""
    return f"{effect.field.replace('_', ' ')} {' → '.join(_values(effect))}"


def _values(effect: AblationEffect) -> list[str]:
    """Returns the base's value of the field that an ablation changes, and the variant's."""
    pair = [{effect.field: value} for value in (effect.base_value, effect.value)]
    return [value_text(shown_fields(one, pair)[effect.field]) for one in pair]


def percent(found: Interval | None, *, interval: bool = False) -> str:
    """Returns a mean of shares in percent: "81.90 ± 0.21 [80.00, 83.80]"."""
    if found is None:
        return NO_VALUE
    text = in_percent(found.mean)
    if found.std is not None:
        text += f" ± {100 * found.std:.2f}"
    if interval and found.low is not None and found.high is not None:
        text += f" [{in_percent(found.low)}, {in_percent(found.high)}]"
    return text


def nats(found: Interval | None) -> str:
    """Returns a mean of losses: "0.517 ± 0.004"."""
    if found is None:
        return NO_VALUE
    text = rounded(found.mean, 3)
    return text if found.std is None else f"{text} ± {rounded(found.std, 3)}"


def all_tables(summary: Summary) -> list[Table]:
    """Returns the tables that a summary has rows for, the answer last."""
    makers = (group_table, failure_table, effect_table, difference_table, change_table,
              published_table, confused_table)  # fmt: skip
    found = [table for make in makers if (table := make(summary)).rows]
    is_varied = len({repr(group.shared) for group in summary.groups}) > 1
    return found + ([answer_table(summary)] if is_varied else [])


def confused_table(summary: Summary) -> Table:
    """Returns the table of the classes that are confused most often.

    It has no rows where the confusion matrix names all classes.
    """
    groups = summary.shown_groups
    rows = []
    for group in groups:
        metrics = group.first.metrics
        counts = np.asarray(metrics["confusion"], np.int64)
        names = [
            name if name == str(place) else f"{place} {name}"
            for place, name in enumerate(metrics["class_names"])
        ]
        if len(names) > MOST_NAMED_CLASSES:
            rows += [
                (
                    first_label(group, summary),
                    names[true],
                    names[predicted],
                    str(images),
                    in_percent(images / counts[true].sum(), 1),
                )
                for true, predicted, images in most_confused(
                    counts, max(2, MOST_PAIRS // len(groups))
                )
            ]
    return Table(
        ("norm", "true class", "predicted class", ">images", ">% of the class"),
        rows,
        notes=(CONFUSED_NOTE,),
        title="Most confused classes",
    )


def group_table(summary: Summary) -> Table:
    """Returns the table of results, one row per group."""
    has_validation = any(group.interval("val_accuracy") for group in summary.groups)
    rows = []
    for group in summary.groups:
        parameters = group.first.metrics.get("parameters")
        row = [
            group_label(group, summary),
            str(len(group.runs)),
            percent(group.interval("test_accuracy"), interval=True),
            percent(group.interval("train_accuracy")),
        ]
        row += [percent(group.interval("val_accuracy"))] if has_validation else []
        row += [nats(group.interval("test_loss")), nats(group.interval("train_loss"))]
        rows.append((*row, NO_VALUE if parameters is None else f"{parameters:,}"))
    validation = (">validation %",) if has_validation else ()
    return Table(
        ("norm", ">n", ">test accuracy %", ">training %", *validation, ">test loss",
         ">training loss", ">parameters"),
        rows,
        notes=(GROUP_NOTE, TRAINING_NOTE),
        title="Findings",
    )  # fmt: skip


def difference_table(summary: Summary) -> Table:
    """Returns the table of paired differences between norms, or backends, in points."""
    return _differences(summary, summary.differences, "Differences")


def change_table(summary: Summary) -> Table:
    """Returns the table of paired differences between values of a varied field, in points."""
    return _differences(summary, summary.changes, "What the varied fields change")


def _differences(summary: Summary, differences: Sequence[Difference], heading: str) -> Table:
    has_test = summary.measure != "test_accuracy"
    rows = [
        (
            group_label(item.first, summary),
            group_label(item.second, summary),
            *judged(item.comparison, summary.margin),
            *((_test_difference(item),) if has_test else ()),
        )
        for item in differences
    ]
    return Table(
        ("first", "second", *JUDGED, *((">difference in test",) if has_test else ())),
        rows,
        notes=(
            difference_note(
                measure_text(summary), [item.comparison for item in differences], summary.margin
            ),
        ),
        title=heading,
    )


def effect_table(summary: Summary) -> Table:
    """Returns the table of ablation effects, in points of the accuracy they are measured by."""
    rows = [
        (
            group_label(item.base, summary),
            item.field.replace("_", " "),
            *_values(item),
            in_percent(item.mean(item.base)),
            in_percent(item.mean(item.first)),
            *judged(item.comparison, summary.margin),
        )
        for item in summary.effects
    ]
    return Table(
        ("norm", "field", "base", "variant", ">base %", ">variant %", *JUDGED),
        rows,
        notes=(
            EFFECT_NOTE.format(measure=measure_text(summary))
            + _correction([item.comparison for item in summary.effects], summary.margin),
        ),
        title="Ablation effects",
    )


def judged(found: Comparison, margin: float) -> tuple[str, ...]:
    """Returns the cells of a difference, a share of 1, below `JUDGED`."""
    return (
        str(found.interval.n),
        points(found.interval, margin),
        _ends(found.interval, margin),
        NO_VALUE if found.p is None else _p_text(found.p),
        str(found.verdict(margin)),
    )


def _test_difference(item: Difference) -> str:
    first, second = (item.mean(group, "test_accuracy") for group in (item.first, item.second))
    return f"{100 * (first - second):+z.2f}"


def difference_note(measure: str, comparisons: Sequence[Comparison], margin: float) -> str:
    """Returns the note below a table of differences in a measure."""
    note = DIFFERENCE_NOTE.format(measure=measure)
    return note + _correction(comparisons, margin)


def _correction(comparisons: Sequence[Comparison], margin: float) -> str:
    count = sum(one.p is not None for one in comparisons)
    return (CORRECTION.format(count=count, margin=100 * margin) if count else "") + UNTESTED


def answer_table(summary: Summary) -> Table:
    """Returns the mean of the measure by norm (rows) and by what was varied (columns)."""
    groups = summary.groups
    columns = list({repr(group.shared): group.shared for group in groups}.values())
    in_column = [[group for group in groups if group.shared == shared] for shared in columns]
    ranked = [whole_groups(column) for column in in_column]
    highest = [max(group.mean(summary.measure) for group in whole) for whole in ranked]
    whole = "base" if summary.one_at_a_time else "all runs"
    headings = [
        ", ".join(field_texts(shown_fields(shared, columns))) or whole for shared in columns
    ]
    cells: dict[str, list[str]] = {}
    for group in groups:
        label = group_label(replace(group, fields=group.own), summary)
        row = cells.setdefault(label, [NO_VALUE] * len(columns))
        place = columns.index(group.shared)
        # Means of the same accuracies in another order differ in floating point.
        is_highest = highest[place] - group.mean(summary.measure) < ROUNDING
        is_marked = len(in_column[place]) > 1 and group in ranked[place] and is_highest
        mark = " *" if is_marked else ""
        row[place] = percent(group.interval(summary.measure)) + mark
    note = ANSWER_NOTE.format(measure=measure_text(summary).capitalize())
    note += HIGHEST_NOTE if any(len(column) > 1 for column in in_column) else ""
    return Table(
        ("norm", *(f">{heading}" for heading in headings)),
        [(label, *row) for label, row in cells.items()],
        notes=(f"{note}.",),
        title="Answer",
    )


def failure_table(summary: Summary) -> Table:
    """Returns the table of the runs that failed, by norm and what was varied."""
    rows = [
        (
            group_label(item, summary),
            f"{item.count} of {item.planned}",
            shortened(item.message, LONGEST_MESSAGE),
        )
        for item in summary.failures
    ]
    return Table(("norm", ">failed runs", "reason"), rows, title="Failed")


def _p_text(p: float) -> str:
    """Returns a p value; one below 5 % does not read as 5 %, nor one above it."""
    if p < LEAST_P:
        return f"<{LEAST_P}"
    level = round(1 - LEVEL, 9)
    digits = next(n for n in (3, 4, 5, 6) if n == 6 or (round(p, n) - level) * (p - level) > 0)
    return f"{p:.{digits}f}"


def _digits(found: Interval, margin: float) -> int:
    """Returns the decimals, in points, by which an interval is told from zero and the margin."""
    ends = [100 * end for end in (found.low, found.high) if end is not None]
    gaps = [abs(end - mark) for end in ends for mark in (-100 * margin, 0.0, 100 * margin)]
    digits = math.ceil(-math.log10(min((gap for gap in gaps if gap > ROUNDING), default=1.0)))
    return min(max(2, digits), 6)


def points(found: Interval, margin: float) -> str:
    """Returns a mean difference in points, as precisely as its interval."""
    return f"{100 * found.mean:+z.{_digits(found, margin)}f}"


def _ends(found: Interval, margin: float) -> str:
    """Returns an interval in points, as precisely as it is told from zero and the margin."""
    if found.low is None or found.high is None:
        return NO_VALUE
    low, high = (f"{100 * end:+.{_digits(found, margin)}f}" for end in (found.low, found.high))
    return f"{low} to {high}"


def published_table(summary: Summary) -> Table:
    """Returns the published numbers beside ours, in percent."""
    rows = []
    for item in summary.published:
        name, group = norm_label(item.norm, item.fields), item.group
        if group:  # of several that repeat it, such as those of two backends
            name = group_label(replace(group, fields={**item.fields, **group.fields}), summary)
        rows.append((name, *_beside(item, "train_accuracy"), *_beside(item, "test_accuracy")))
    sources = dict.fromkeys(item.source for item in summary.published)
    return Table(
        ("norm", ">published training %", ">ours", ">above by", ">published test %", ">ours",
         ">above by"),
        rows,
        notes=tuple(f"Published: {source}." for source in sources),
        title="Published and ours",
    )  # fmt: skip


def _beside(item: Published, measure: str) -> tuple[str, str, str]:
    theirs = item.values.get(measure)
    ours = item.group.interval(measure) if item.group else None
    known = NO_VALUE if theirs is None else in_percent(theirs)
    if theirs is None or ours is None:
        return known, percent(ours), NO_VALUE
    return known, f"{percent(ours)} (n {ours.n})", f"{100 * (ours.mean - theirs):+z.2f}"


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
    return f"({seeds}, corrected interval {_ends(found, summary.margin)})"


def plan_table(estimates: Sequence[Estimate], lanes: int) -> Table:
    """Returns the table of a dry run: every run and the time that it is expected to take."""
    rows = [
        (
            one.run.name,
            "finished" if one.run.finished else "begun" if one.run.path.exists() else "new",
            NO_VALUE if one.seconds is None else duration(one.seconds),
            one.source,
        )
        for one in estimates
    ]
    total = makespan(estimates, lanes)
    left = sum(not one.run.finished for one in estimates)
    text = NO_VALUE if total is None else duration(total)
    return Table(
        ("run", "state", ">time", "rate from"),
        rows,
        totals=[(f"{left} to train, {lanes} at a time", "", text, "")],
        notes=(PLAN_NOTE if left else FINISHED_NOTE,),
        title="Plan",
    )


def run_table(summary: Summary) -> Table:
    """Returns the table of all finished runs."""
    has_validation = summary.measure == "val_accuracy"
    names = [*(["val_accuracy"] if has_validation else []), "test_accuracy", "train_accuracy"]
    rows = []
    for group in summary.groups:
        label = group_label(group, summary)
        for seed, run in sorted(group.runs.items()):
            found = [run.metrics.get(name) for name in names]
            cells = [NO_VALUE if value is None else in_percent(value) for value in found]
            rows.append((run.path.name, label, str(seed), *cells, str(len(run.history))))
    own = (">validation %",) if has_validation else ()
    columns = ("run", "norm", ">seed", *own, ">test %", ">training %", ">epochs")
    return Table(columns, rows, title="Runs")


def environment_rows(runs: Iterable[Run]) -> list[tuple[str, str]]:
    """Returns what the runs were computed with, as pairs of a name and its distinct values."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in _environment(run.path).items():
            if value not in (None, ""):
                found.setdefault(name, {})[str(value)] = None
    return [(name, ", ".join(values)) for name, values in found.items()]


def _environment(path: Path) -> dict[str, Any]:
    facts = read_environment(path)
    try:
        host = facts.get("host", {})
        return {
            **facts.get("versions", {}),
            "device": facts.get("device", {}).get("name"),
            "processor": host.get("processor"),
            "system": host.get("system"),
            "git revision": facts.get("git_revision"),
        }
    except AttributeError:
        return {}


def write(path: Path, runs: Sequence[PlannedRun], summary: Summary) -> None:
    """Writes runs.csv, summary.csv and summary.json into a study's folder."""
    write_bytes(path / RUNS_FILE, _csv([run_row(run, summary.axes) for run in runs]))
    write_bytes(path / SUMMARY_FILE, _csv(summary_rows(summary)))
    write_json(path / DOCUMENT, summary.to_dict())


def run_row(run: PlannedRun, axes: Sequence[str]) -> dict[str, Any]:
    """Returns a run as a row of runs.csv: its config, its state and its scores."""
    config, metrics = run.config, run.finished.metrics if run.finished else {}
    has_validation = config.data.validation or metrics.get("val_accuracy") is not None
    measures = [m for m in MEASURES if has_validation or not m.startswith("val_")]
    return {
        "run": run.name,
        "state": "failed" if run.exit_code else "finished" if run.finished else str(run.state),
        "norm": config.model.norm,
        "backend": config.train.backend,
        "seed": config.train.seed,
        **{name: _text(field_value(config, name)) for name in axes},
        "epochs": run.epoch,
        **{name: metrics.get(name) for name in measures},
        "parameters": metrics.get("parameters"),
        "seconds": metrics.get("seconds"),
        "hash": identity(config),
        "message": run.message,
    }


def summary_rows(summary: Summary) -> list[dict[str, Any]]:
    """Returns one row of summary.csv per group: fields, n, and each measure with its interval."""
    rows = []
    for group in summary.groups:
        config = group.first.config
        row = {
            "norm": group.norm,
            "backend": group.backend,
            **dict.fromkeys(summary.axes, ""),
            **{name: _text(value) for name, value in fields_of(config, summary.axes).items()},
            "n": len(group.runs),
            "parameters": group.first.metrics.get("parameters"),
        }
        for measure in MEASURES:
            if (found := group.interval(measure)) is not None:
                row |= {f"{measure}_{part}": getattr(found, part) for part in PARTS}
        rows.append(row)
    return rows


def _text(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns rows as CSV; a column that a row lacks, or None, is an empty field."""
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return encoded(text.getvalue())
