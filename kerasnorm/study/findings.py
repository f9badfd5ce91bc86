"""What a study found, for people: tables, and sentences that say no more than the numbers do."""

from collections.abc import Sequence

from kerasnorm.progress import duration
from kerasnorm.study.ablation import Lever
from kerasnorm.study.board import FAILED, Entry
from kerasnorm.study.estimate import Estimate, makespan
from kerasnorm.study.interval import Interval
from kerasnorm.study.labels import (
    MEASURES,
    change_text,
    field_texts,
    group_label,
    measure_text,
    norm_label,
    value_text,
)
from kerasnorm.study.summary import Difference, Published, Summary
from kerasnorm.tables import Table

INTERVAL = "95 % interval"
NO_VALUE = "-"
MOST_SENTENCES = 8
GROUP_NOTE = (
    "Values after the last epoch: mean ± sample std over the seeds, n runs. In brackets the "
    "95 % t-interval of the mean."
)
DIFFERENCE_NOTE = (
    "First minus second in points of test accuracy, seed by seed over the seeds that both have; "
    "clear where the interval leaves out zero. Not corrected for the number of comparisons."
)
LEVER_NOTE = (
    "One field changed alone, the rest as in the base: means of {measure} after the last epoch "
    "over the n seeds that both have, and instead minus base in points, seed by seed; clear where "
    "the interval leaves out zero. Not corrected for the number of levers."
)
PLAN_NOTE = (
    "Estimated from the epochs of runs of the same kind, else from a few steps here, each run on "
    "its share of the cores. A busy machine makes it long."
)


def percent(found: Interval | None, *, interval: bool = False) -> str:
    """Returns a spread of shares in percent: "81.90 ± 0.21 [80.00, 83.80]"."""
    if found is None:
        return NO_VALUE
    text = f"{100 * found.mean:.2f}"
    if found.std is not None:
        text += f" ± {100 * found.std:.2f}"
    if interval and found.low is not None and found.high is not None:
        text += f" [{100 * found.low:.2f}, {100 * found.high:.2f}]"
    return text


def nats(found: Interval | None) -> str:
    """Returns a spread of losses: "0.517 ± 0.004"."""
    if found is None:
        return NO_VALUE
    return f"{found.mean:.3f}" + ("" if found.std is None else f" ± {found.std:.3f}")


def group_table(summary: Summary) -> Table:
    """Returns the table of findings: a row a group."""
    has_validation = any(group.spread("val_accuracy") for group in summary.groups)
    rows = []
    for group in summary.groups:
        parameters = group.first.metrics.get("parameters")
        row = [
            group_label(group, summary.groups),
            str(len(group.runs)),
            percent(group.spread("test_accuracy"), interval=True),
            percent(group.spread("train_accuracy")),
        ]
        row += [percent(group.spread("val_accuracy"))] if has_validation else []
        row += [nats(group.spread("test_loss")), nats(group.spread("train_loss"))]
        rows.append((*row, NO_VALUE if parameters is None else f"{parameters:,}"))
    validation = (">validation %",) if has_validation else ()
    return Table(
        ("norm", ">n", ">test accuracy %", ">training %", *validation, ">test loss",
         ">training loss", ">parameters"),
        rows,
        notes=(GROUP_NOTE,),
        title="Findings",
    )  # fmt: skip


def difference_table(summary: Summary) -> Table:
    """Returns the table of paired differences, in points of test accuracy."""
    rows = [
        (
            group_label(item.first, summary.groups),
            group_label(item.second, summary.groups),
            str(item.spread.n),
            f"{100 * item.spread.mean:+.2f}",
            NO_VALUE if item.spread.std is None else f"{100 * item.spread.std:.2f}",
            _interval(item.spread),
            _clear(item.spread),
        )
        for item in summary.differences
    ]
    return Table(
        ("first", "second", ">n", ">difference", ">std", f">{INTERVAL}", "clear"),
        rows,
        notes=(DIFFERENCE_NOTE,),
        title="Differences",
    )


def lever_table(summary: Summary) -> Table:
    """Returns the table of levers, in points of the accuracy that they were judged by."""
    is_mixed = len({item.measure for item in summary.levers}) > 1
    rows = [
        (
            group_label(item.base, summary.groups),
            f"{item.field} ({MEASURES[item.measure]})" if is_mixed else item.field,
            value_text(item.base_value),
            value_text(item.value),
            str(item.spread.n),
            f"{100 * item.mean(item.base):.2f}",
            f"{100 * item.mean(item.changed):.2f}",
            f"{100 * item.spread.mean:+.2f}",
            _interval(item.spread),
            _clear(item.spread),
        )
        for item in summary.levers
    ]
    return Table(
        ("norm", "field", "base", "instead", ">n", ">base %", ">instead %", ">difference",
         f">{INTERVAL}", "clear"),
        rows,
        notes=(LEVER_NOTE.format(measure=measure_text(summary.levers)),),
        title="Levers",
    )  # fmt: skip


def _behind(found: Interval) -> str:
    return f"({INTERVAL} {_interval(found)}, n = {found.n} common seeds)"


def _clear(found: Interval) -> str:
    return NO_VALUE if found.low is None else "yes" if found.is_clear else "no"


def _interval(found: Interval) -> str:
    if found.low is None or found.high is None:
        return NO_VALUE
    return f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"


def published_table(summary: Summary) -> Table:
    """Returns the published numbers beside ours, in percent."""
    rows = []
    for item in summary.published:
        name = ", ".join([norm_label(item.norm), *field_texts(item.fields)])
        rows.append((name, *_pair(item, "train_accuracy"), *_pair(item, "test_accuracy")))
    sources = dict.fromkeys(item.source for item in summary.published)
    return Table(
        ("norm", ">published training %", ">ours", ">above by", ">published test %", ">ours",
         ">above by"),
        rows,
        notes=tuple(f"Published: {source}." for source in sources),
        title="Published and ours",
    )  # fmt: skip


def _pair(item: Published, measure: str) -> tuple[str, str, str]:
    theirs = item.values.get(measure)
    ours = item.group.spread(measure) if item.group else None
    known = NO_VALUE if theirs is None else f"{100 * theirs:.2f}"
    if theirs is None or ours is None:
        return known, percent(ours), NO_VALUE
    return known, f"{percent(ours)} (n {ours.n})", f"{100 * (ours.mean - theirs):+.2f}"


def sentences(summary: Summary) -> list[str]:
    """Returns what the differences say, a sentence each; the clear ones first.

    Of a star, what its levers do, the larger before the smaller, comes after the differences
    between its bases.
    """
    differences = [d for d in summary.differences if not (summary.is_star and d.first.fields)]
    levers = sorted(summary.levers, key=lambda i: (not i.is_clear, -abs(i.spread.mean)))
    ranked = [
        *(_sentence(d, summary) for d in sorted(differences, key=lambda d: not d.is_clear)),
        *(_lever_sentence(item, summary) for item in levers),
    ]
    texts, left = ranked[:MOST_SENTENCES], len(ranked) - MOST_SENTENCES
    return [*texts, f"{left} more stand in the tables."] if left > 0 else texts


def _lever_sentence(item: Lever, summary: Summary) -> str:
    name = f"{group_label(item.base, summary.groups)}, {change_text(item)}"
    points = f"{100 * item.spread.mean:+.2f} points of {MEASURES[item.measure]}"
    if item.spread.n < 2:
        return f"{name}: {points}, one seed, so nothing follows."
    behind = _behind(item.spread)
    return f"{name}: {points} {behind}{'' if item.is_clear else ', not clear'}."


def _sentence(item: Difference, summary: Summary) -> str:
    first, second = (group_label(g, summary.groups) for g in (item.first, item.second))
    points = 100 * item.spread.mean
    if item.spread.n < 2:
        return f"{first} against {second}: {points:+.2f} points, one seed, so nothing follows."
    behind = _behind(item.spread)
    if not item.is_clear:
        return f"{first} and {second} cannot be told apart: {points:+.2f} points {behind}."
    if points < 0:
        return f"{first} is {-points:.2f} points below {second} {behind}."
    return f"{first} is {points:.2f} points above {second} {behind}."


def plan_table(estimates: Sequence[Estimate], lanes: int) -> Table:
    """Returns the table of a dry run: every run, and the time that it is expected to take."""
    rows = [
        (
            one.job.name,
            "finished" if one.job.done else "begun" if one.job.path.exists() else "new",
            NO_VALUE if one.seconds is None else duration(one.seconds),
            one.source,
        )
        for one in estimates
    ]
    total = makespan(estimates, lanes)
    left = sum(not one.job.done for one in estimates)
    text = NO_VALUE if total is None else duration(total)
    return Table(
        ("run", "state", ">time", "rate from"),
        rows,
        totals=[(f"{left} to train, {lanes} at a time", "", text, "")],
        notes=(PLAN_NOTE,),
        title="Plan",
    )


def failures(entries: Sequence[Entry]) -> list[str]:
    """Returns a line for every run that failed: its name and its last words."""
    return [f"{entry.job.name}: {entry.words}" for entry in entries if entry.state == FAILED]
