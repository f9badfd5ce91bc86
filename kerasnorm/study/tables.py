"""The results of a study as text: tables and sentences for people, CSV and JSON files."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kerasnorm.files import encoded, read_text, write_bytes, write_json
from kerasnorm.norms import NORMS, is_read
from kerasnorm.plots.labels import field_texts, value_text
from kerasnorm.progress import duration
from kerasnorm.study.execution import Estimate, makespan
from kerasnorm.study.folder import PlannedRun
from kerasnorm.study.plan import field_value, identity
from kerasnorm.study.summary import (
    MEASURES,
    AblationEffect,
    Difference,
    Group,
    Interval,
    Published,
    Summary,
)
from kerasnorm.tables import Table
from kerasnorm.training.run import ENVIRONMENT, Run

RUNS_FILE, SUMMARY_FILE, DOCUMENT = "runs.csv", "summary.csv", "summary.json"
PARTS = ("mean", "std", "low", "high")
ACCURACIES = {"val_accuracy": "validation accuracy", "test_accuracy": "test accuracy"}
LONGEST_VALUE = 18  # letters of a changed value; all ten widths would leave no room for the dots
MOST_SENTENCES = 8
INTERVAL = "95 % interval"
NO_VALUE = "-"
GROUP_NOTE = (
    "Values after the last epoch: mean ± sample std over the seeds, n runs. In brackets the "
    "95 % t-interval of the mean."
)
DIFFERENCE_NOTE = (
    "First minus second in points of test accuracy, seed by seed over the seeds that both have; "
    "clear where the interval does not contain zero. Not corrected for the number of comparisons."
)
EFFECT_NOTE = (
    "One field changed alone, the rest as in the base: means of {measure} after the last epoch "
    "over the n seeds that both have, and variant minus base in points, seed by seed; clear where "
    "the interval does not contain zero. Not corrected for the number of effects."
)
PLAN_NOTE = (
    "Estimated from the epochs of runs that differ in the seed alone, else from a few steps "
    "measured here, each run on its share of the cores. A busy machine makes the estimate too long."
)


def group_label(group: Group, groups: Iterable[Group], *, without: str = "") -> str:
    """Returns what tells a group from the others, such as "LN, affine element, tensorflow".

    Args:
        group: Group of a study.
        groups: All groups that are shown beside it.
        without: Name of a field that the figure shows in another way.
    """
    fields = {name: value for name, value in group.fields.items() if name != without}
    texts = [NORMS[group.norm].label, *field_texts(fields)]
    if len({other.backend for other in groups}) > 1:
        texts.append(group.backend)
    return ", ".join(texts)


def measure_text(effects: Sequence[AblationEffect]) -> str:
    """Returns which accuracy the ablation effects are measured by."""
    used = {item.measure for item in effects}
    return " or ".join(text for name, text in ACCURACIES.items() if name in used)


def change_text(effect: AblationEffect) -> str:
    """Returns what an ablation changes, long values cut: "batch size 128 → 64"."""
    values = [value_text(value) for value in (effect.base_value, effect.value)]
    short = [v if len(v) <= LONGEST_VALUE else f"{v[: LONGEST_VALUE - 1]}…" for v in values]
    return f"{effect.field.replace('_', ' ')} {' → '.join(short)}"


def percent(found: Interval | None, *, interval: bool = False) -> str:
    """Returns a mean of shares in percent: "81.90 ± 0.21 [80.00, 83.80]"."""
    if found is None:
        return NO_VALUE
    text = f"{100 * found.mean:.2f}"
    if found.std is not None:
        text += f" ± {100 * found.std:.2f}"
    if interval and found.low is not None and found.high is not None:
        text += f" [{100 * found.low:.2f}, {100 * found.high:.2f}]"
    return text


def nats(found: Interval | None) -> str:
    """Returns a mean of losses: "0.517 ± 0.004"."""
    if found is None:
        return NO_VALUE
    return f"{found.mean:.3f}" + ("" if found.std is None else f" ± {found.std:.3f}")


def group_table(summary: Summary) -> Table:
    """Returns the table of results, one row per group."""
    has_validation = any(group.interval("val_accuracy") for group in summary.groups)
    rows = []
    for group in summary.groups:
        parameters = group.first.metrics.get("parameters")
        row = [
            group_label(group, summary.groups),
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
        notes=(GROUP_NOTE,),
        title="Findings",
    )  # fmt: skip


def difference_table(summary: Summary) -> Table:
    """Returns the table of paired differences, in points of test accuracy."""
    rows = [
        (
            group_label(item.first, summary.groups),
            group_label(item.second, summary.groups),
            str(item.interval.n),
            f"{100 * item.interval.mean:+.2f}",
            NO_VALUE if item.interval.std is None else f"{100 * item.interval.std:.2f}",
            _ends(item.interval),
            _clear(item.interval),
        )
        for item in summary.differences
    ]
    return Table(
        ("first", "second", ">n", ">difference", ">std", f">{INTERVAL}", "clear"),
        rows,
        notes=(DIFFERENCE_NOTE,),
        title="Differences",
    )


def effect_table(summary: Summary) -> Table:
    """Returns the table of ablation effects, in points of the accuracy they are measured by."""
    is_mixed = len({item.measure for item in summary.effects}) > 1
    rows = [
        (
            group_label(item.base, summary.groups),
            f"{item.field} ({ACCURACIES[item.measure]})" if is_mixed else item.field,
            value_text(item.base_value),
            value_text(item.value),
            str(item.interval.n),
            f"{100 * item.mean(item.base):.2f}",
            f"{100 * item.mean(item.first):.2f}",
            f"{100 * item.interval.mean:+.2f}",
            _ends(item.interval),
            _clear(item.interval),
        )
        for item in summary.effects
    ]
    return Table(
        ("norm", "field", "base", "variant", ">n", ">base %", ">variant %", ">difference",
         f">{INTERVAL}", "clear"),
        rows,
        notes=(EFFECT_NOTE.format(measure=measure_text(summary.effects)),),
        title="Ablation effects",
    )  # fmt: skip


def _clear(found: Interval) -> str:
    return NO_VALUE if found.low is None else "yes" if found.is_clear else "no"


def _ends(found: Interval) -> str:
    if found.low is None or found.high is None:
        return NO_VALUE
    return f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"


def published_table(summary: Summary) -> Table:
    """Returns the published numbers beside ours, in percent."""
    rows = []
    for item in summary.published:
        name = ", ".join([NORMS[item.norm].label, *field_texts(item.fields)])
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
    known = NO_VALUE if theirs is None else f"{100 * theirs:.2f}"
    if theirs is None or ours is None:
        return known, percent(ours), NO_VALUE
    return known, f"{percent(ours)} (n {ours.n})", f"{100 * (ours.mean - theirs):+.2f}"


def sentences(summary: Summary) -> list[str]:
    """Returns one sentence per difference and ablation effect, clear ones first.

    In a one-factor-at-a-time study the differences between the bases come first, then the effects,
    the largest first.
    """
    differences = [d for d in summary.differences if not (summary.one_at_a_time and d.first.fields)]
    differences.sort(key=lambda item: not item.interval.is_clear)
    effects = sorted(
        summary.effects, key=lambda item: (not item.interval.is_clear, -abs(item.interval.mean))
    )
    ranked = [_difference_sentence(item, summary) for item in differences]
    ranked += [_effect_sentence(item, summary) for item in effects]
    left = len(ranked) - MOST_SENTENCES
    return ranked[:MOST_SENTENCES] + ([f"The tables hold {left} more."] if left > 0 else [])


def _difference_sentence(item: Difference, summary: Summary) -> str:
    first, second = (group_label(group, summary.groups) for group in (item.first, item.second))
    points = 100 * item.interval.mean
    if item.interval.n < 2:
        return f"{first} against {second}: {points:+.2f} points of one seed, which proves nothing."
    behind = _behind(item.interval)
    if not item.interval.is_clear:
        return f"{first} and {second} cannot be told apart: {points:+.2f} points {behind}."
    direction = "below" if points < 0 else "above"
    return f"{first} is {abs(points):.2f} points {direction} {second} {behind}."


def _effect_sentence(item: AblationEffect, summary: Summary) -> str:
    name = f"{group_label(item.base, summary.groups)}, {change_text(item)}"
    points = f"{100 * item.interval.mean:+.2f} points of {ACCURACIES[item.measure]}"
    if item.interval.n < 2:
        return f"{name}: {points} of one seed, which proves nothing."
    unclear = "" if item.interval.is_clear else ", not clear"
    return f"{name}: {points} {_behind(item.interval)}{unclear}."


def _behind(found: Interval) -> str:
    return f"({INTERVAL} {_ends(found)}, n = {found.n} common seeds)"


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
        notes=(PLAN_NOTE,),
        title="Plan",
    )


def run_table(summary: Summary) -> Table:
    """Returns the table of all finished runs."""
    rows = []
    for group in summary.groups:
        label = group_label(group, summary.groups)
        for seed, run in sorted(group.runs.items()):
            found = [run.metrics.get(name) for name in ("test_accuracy", "train_accuracy")]
            cells = [NO_VALUE if value is None else f"{100 * value:.2f}" for value in found]
            rows.append((run.path.name, label, str(seed), *cells, str(len(run.history))))
    columns = ("run", "norm", ">seed", ">test %", ">training %", ">epochs")
    return Table(columns, rows, title="Runs")


def environment_rows(runs: Iterable[Run]) -> list[tuple[str, str]]:
    """Returns what the runs were computed with, as pairs of a name and its distinct values."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in _environment(run.path / ENVIRONMENT).items():
            if value not in (None, ""):
                found.setdefault(name, {})[str(value)] = None
    return [(name, ", ".join(values)) for name, values in found.items()]


def _environment(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(read_text(path))
        host = facts.get("host", {})
        return {
            **facts.get("versions", {}),
            "device": facts.get("device", {}).get("name"),
            "processor": host.get("processor"),
            "system": host.get("system"),
            "git revision": facts.get("git_revision"),
        }
    except (OSError, ValueError, AttributeError):
        return {}  # a run may have been copied without it


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
        read = [name for name in summary.axes if is_read(name, group.norm)]
        row = {
            "norm": group.norm,
            "backend": group.backend,
            **dict.fromkeys(summary.axes, ""),
            **{name: _text(field_value(config, name)) for name in read},
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
