"""Summary of runs: groups over seeds, paired differences, ablation effects, published numbers."""

import logging
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from kerasnorm.config import (
    SETTINGS,
    UNCOMPARED,
    Config,
    DataConfig,
    field_value,
    published,
    reads,
    resolve,
)
from kerasnorm.data.sources import loading, locate
from kerasnorm.errors import DataError
from kerasnorm.norms import owner
from kerasnorm.study.intervals import (
    LEAST_SEEDS,
    LEVEL,
    MARGIN,
    SHARES,
    Comparison,
    Interval,
    Verdict,
    compare,
)
from kerasnorm.study.plan import AXES, StudyPlan, identity
from kerasnorm.training.run import Run

logger = logging.getLogger(__name__)
MEASURES = (
    "test_accuracy",
    "test_loss",
    "train_accuracy",
    "train_loss",
    "val_accuracy",
    "val_loss",
)
MOST_SHOWN = 12  # groups whose confused classes and mistakes are shown
# Fields by which runs are tested on other images: runs that differ in one are never compared.
IMAGE_FIELDS = ("data", "test_size")
# Groups are ranked and compared by the first of these that all runs of a study have.
RANKED_BY = ("val_accuracy", "test_accuracy")
DEFINITIONS = {
    "n": "runs, which differ in the seed alone",
    "mean": "mean over the seeds of the value after the last epoch",
    "std": "sample standard deviation over the seeds (n - 1)",
    "low, high": f"{LEVEL:.0%} t-interval of the mean: mean -+ t(n - 1) * std / sqrt(n), cut off "
    "where no value can be: at 0, at 1 for accuracies, at -1 and 1 for their differences",
    "train_accuracy, train_loss": "means over the last epoch, of augmented images in training mode",
    "initial_statistics": "share of the moving statistics of batch norms that is still their "
    "initial value, the largest of all seeds; left out where no run recorded one",
    "measure": "accuracy by which groups are ranked and compared: that of the validation split "
    "where all runs have one, else that of the test set, which then is no longer unseen",
    "unmatched": "fields besides the norm in which the norms' runs differ, with their values",
    "following": "values of fields that change together with a varied one and may share its effect",
    "differences": "first minus second, seed by seed over the seeds that both have, with the "
    "t-interval of the mean at the level of its step in Holm's procedure (5 % / number of "
    "tests that are left) and Holm's adjusted p of the paired t-test",
    "ablation_effects": "value minus base, one field changed alone (with adam the weight decay "
    "too, with a scaled rate the learning rate of the batch size), seed by seed over the seeds "
    "that both have; intervals and p as for differences, corrected for the number of tests",
    "verdict": f"none, and no test, below {LEAST_SEEDS} common seeds, or if all differences are "
    "the same; equivalent where the interval at the level 5 % / number of all tests lies within "
    "the margin; different where the interval excludes zero; else not significant",
    "margin": "largest difference in accuracy that does not matter in practice",
}


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone."""

    norm: str  # name of their norm
    backend: str  # name of their Keras backend
    # Fields and values that tell this group from others of its norm. In a one-factor-at-a-time
    # study the field in which it differs from the base, if any.
    fields: Mapping[str, Any]
    runs: Mapping[int, Run]  # by seed

    @property
    def first(self) -> Run:
        """Run of the lowest seed."""
        return self.runs[min(self.runs)]

    @property
    def own(self) -> dict[str, Any]:
        """Those of its fields that only its norm reads."""
        return {name: value for name, value in self.fields.items() if owner(name)}

    @property
    def shared(self) -> dict[str, Any]:
        """Those of its fields that every norm reads."""
        return {name: value for name, value in self.fields.items() if not owner(name)}

    @property
    def initial_statistics(self) -> float:
        """Largest share of the moving statistics of batch norms that is still initial, recorded."""
        return max(float(r.metrics.get("initial_statistics", 0.0)) for r in self.runs.values())

    @property
    def instance_norms(self) -> tuple[int, int]:
        """Number of group norms whose groups are one channel each, and of all, where recorded."""
        alone, count = self.first.metrics.get("instance_norms", (0, 0))
        return int(alone), int(count)

    def interval(self, measure: str) -> Interval | None:
        """Returns the mean of a measure over the seeds, None where a run lacks the measure."""
        values = [run.metrics.get(measure) for run in self.runs.values()]
        known = [float(value) for value in values if value is not None]
        within = SHARES if measure.endswith("accuracy") else (0.0, math.inf)
        return Interval.of(known, within=within) if known and len(known) == len(values) else None

    def mean(self, measure: str) -> float:
        """Returns the mean over the seeds of a measure that all runs have."""
        return statistics.fmean(float(run.metrics[measure]) for run in self.runs.values())

    def to_dict(self) -> dict[str, Any]:
        """Returns what identifies the group, as plain values."""
        return {"norm": self.norm, "backend": self.backend, **self.fields}


@dataclass(frozen=True)
class Difference:
    """How much a measure of one group exceeds that of another, paired by seed."""

    first: Group  # whose measure counts positive
    second: Group  # whose measure is subtracted
    seeds: tuple[int, ...]  # that both groups have
    measure: str  # that is compared, a key of the runs' metrics
    comparison: Comparison  # mean difference, corrected for the number of differences of its study

    @property
    def values(self) -> list[float]:
        """First minus second in the order of `seeds`, as shares of 1."""
        return _paired(self.first, self.second, self.seeds, self.measure)

    @property
    def interval(self) -> Interval:
        """Mean of `values` with its corrected interval."""
        return self.comparison.interval

    def mean(self, group: Group, measure: str = "") -> float:
        """Returns the mean of a measure, by default that compared, over `seeds` of one group."""
        return statistics.fmean(_scores(group, self.seeds, measure or self.measure))

    def to_dict(self) -> dict[str, Any]:
        """Returns the difference in the test accuracy too, as plain values."""
        test = self.mean(self.first, "test_accuracy") - self.mean(self.second, "test_accuracy")
        return {
            "measure": self.measure,
            "first": self.first.to_dict(),
            "second": self.second.to_dict(),
            "seeds": list(self.seeds),
            **asdict(self.interval),
            "p": self.comparison.p,
            "test_accuracy_mean": test,
        }


def _scores(group: Group, seeds: Sequence[int], measure: str) -> list[float]:
    return [float(group.runs[seed].metrics[measure]) for seed in seeds]


def _paired(first: Group, second: Group, seeds: Sequence[int], measure: str) -> list[float]:
    scores = (_scores(group, seeds, measure) for group in (first, second))
    return [one - other for one, other in zip(*scores, strict=True)]


def _compared(kind: "type[D]", pairs: Iterable[tuple[Group, Group]], measure: str) -> "list[D]":
    """Returns the differences of those pairs that have seeds in common, corrected together."""
    common = [(*pair, tuple(sorted({*pair[0].runs} & {*pair[1].runs}))) for pair in pairs]
    common = [item for item in common if item[2]]
    found = compare([_paired(*item, measure) for item in common])
    return [kind(*item, measure, one) for item, one in zip(common, found, strict=True)]


D = TypeVar("D", bound=Difference)


@dataclass(frozen=True)
class AblationEffect(Difference):
    """What one field, changed alone, does to an accuracy: variant (`first`) minus base."""

    @property
    def base(self) -> Group:
        """Group in which nothing is changed."""
        return self.second

    @property
    def field(self) -> str:
        """Name of the field that is changed."""
        return next(iter(self.first.fields))

    @property
    def value(self) -> Any:
        """Value of the field in the variant."""
        return self.first.fields[self.field]

    @property
    def base_value(self) -> Any:
        """Value of the field in the base."""
        return field_value(self.base.first.config, self.field)


@dataclass(frozen=True)
class Published:
    """A published result beside the group that repeats it."""

    group: Group | None  # ours with the same config; None if there is none
    norm: str
    fields: Mapping[str, Any]  # other fields and values of the published config
    values: Mapping[str, float]  # published number of each measure
    source: str  # citation of the publication


@dataclass(frozen=True)
class Failure:
    """Runs of one group that failed, of all that were planned; the message is that of the first."""

    norm: str
    backend: str
    fields: Mapping[str, Any]
    count: int
    planned: int
    message: str


@dataclass(frozen=True)
class Summary:
    """Results of a study."""

    axes: tuple[str, ...]  # fields, besides norm, backend and seed, in which its runs differ
    groups: tuple[Group, ...]  # in the order of their first runs
    measure: str  # accuracy by which groups are ranked and compared, one of `RANKED_BY`
    # Paired differences, corrected for their number: between groups that differ in their norm, or
    # in their backend, alone; and between groups of one norm and backend that differ in one varied
    # field alone, each against the field's first value. Groups that are tested on other images, see
    # `IMAGE_FIELDS`, are not compared.
    differences: tuple[Difference, ...]
    changes: tuple[Difference, ...]
    published: tuple[Published, ...]  # published numbers for the same recipe and data
    # Values by norm of each field in which the norms' runs differ though it was not varied.
    unmatched: Mapping[str, Mapping[str, Any]]
    # Distinct values of each field that changes together with a varied one, such as the learning
    # rate that follows the batch size.
    following: Mapping[str, Sequence[Any]]
    margin: float = MARGIN  # largest difference, as a share of 1, that does not matter in practice
    one_at_a_time: bool = False  # whether the groups are a base and variants of one field each
    effects: tuple[AblationEffect, ...] = ()  # of these changes; empty for other studies
    failures: tuple[Failure, ...] = ()  # groups of which a run failed
    waiting: int = 0  # number of planned runs that are not finished and have not failed

    @property
    def runs(self) -> list[Run]:
        """All runs, group by group."""
        return [run for group in self.groups for _, run in sorted(group.runs.items())]

    @property
    def shown_rows(self) -> "list[Group | Failure]":
        """The groups, then those of which runs failed: all that labels must tell apart."""
        return [*self.groups, *self.failures]

    @property
    def compares_norms(self) -> bool:
        """Whether two norms have runs that differ in the norm alone and share a seed."""
        return any(item.first.norm != item.second.norm for item in self.differences)

    @property
    def bases(self) -> tuple[Group, ...]:
        """Base groups of a one-factor-at-a-time study; all groups of others, or without a base."""
        found = tuple(group for group in self.groups if not group.fields)
        return found if self.one_at_a_time and found else self.groups

    @property
    def shown_groups(self) -> tuple[Group, ...]:
        """Base groups whose mistakes are shown: all, or of many the first of each norm."""
        if len(self.bases) <= MOST_SHOWN:
            return self.bases
        found: dict[str, Group] = {}
        for group in self.bases:
            found.setdefault(f"{group.norm} {group.own}", group)
        return tuple(found.values())[:MOST_SHOWN]

    def along(self, name: str) -> "Summary":
        """Returns the base and the variants of field `name` of a one-factor-at-a-time study.

        The base has a value of the field too. Any other study is returned as it is.
        """
        if not self.one_at_a_time:
            return self
        groups = tuple(
            replace(group, fields=fields_of(group.first.config, [name]))
            for group in self.groups
            if not {*group.fields} - {name}
        )
        return replace(self, groups=groups)

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as plain values, ready for JSON."""
        return {
            "measure": self.measure,
            "margin": self.margin,
            "unmatched": self.unmatched,
            "following": self.following,
            "groups": [_group_row(group) for group in self.groups],
            "differences": [self._judged(item) for item in self.differences],
            "changes": [self._judged(item) for item in self.changes],
            "ablation_effects": [
                {"field": item.field, "base": item.base_value, "value": item.value}
                | self._judged(item)
                for item in self.effects
            ],
            "failures": [asdict(item) for item in self.failures],
            "waiting": self.waiting,
            "published": [_published_row(item) for item in self.published],
            "definitions": DEFINITIONS,
        }

    def verdict(self, item: Difference) -> Verdict:
        """Returns what a difference says, by the margin of this summary."""
        return item.comparison.verdict(self.margin)

    def _judged(self, item: Difference) -> dict[str, Any]:
        return {**item.to_dict(), "verdict": self.verdict(item)}

    @property
    def best(self) -> Group:
        """The group of the highest mean of `measure`, of `whole_groups`."""
        return max(whole_groups(self.groups), key=lambda group: group.mean(self.measure))


def whole_groups(groups: Sequence[Group]) -> list[Group]:
    """Returns the groups with the most seeds, which alone are ranked.

    Of a group with failed runs the lucky seeds are left, whose mean says too much.
    """
    most = max(len(group.runs) for group in groups)
    return [group for group in groups if len(group.runs) == most]


def _group_row(group: Group) -> dict[str, Any]:
    found = {name: group.interval(name) for name in MEASURES}
    initial = group.initial_statistics
    return {
        **group.to_dict(),
        "seeds": sorted(group.runs),
        "parameters": group.first.metrics.get("parameters"),
        **({"initial_statistics": initial} if initial else {}),
        **{name: asdict(interval) for name, interval in found.items() if interval},
    }


def _published_row(item: Published) -> dict[str, Any]:
    """Returns a published result, our means of its measures, and by how much they exceed it."""
    ours = {name: item.group.interval(name) if item.group else None for name in item.values}
    return {
        "norm": item.norm,
        **item.fields,
        "published": item.values,
        "source": item.source,
        "ours": item.group.to_dict() if item.group else None,
        **{
            name: {**asdict(found), "above_published": found.mean - item.values[name]}
            for name, found in ours.items()
            if found
        },
    }


def summarize(
    runs: Sequence[Run],
    vary: Sequence[str] = (),
    plan: StudyPlan | None = None,
    margin: float = MARGIN,
) -> Summary:
    """Returns the summary of some runs; of runs that compute the same, the last counts.

    Args:
        runs: Finished runs, at least one.
        vary: Fields that were varied on purpose; they are named before others, and also where
            runs of one value alone have finished.
        plan: Plan of the one-factor-at-a-time study that these runs are; it defines the base.
        margin: Largest difference, as a share of 1, that does not matter in practice.

    Raises:
        DataError: Runs that name the same data were trained on different data.
    """
    runs = _with_one_place(runs)
    axes = _axes([run.config for run in runs], vary)
    changes = plan.changes() if plan else {}
    found: dict[str, Group] = {}
    for run in runs:
        config = run.config
        fields = fields_of(config, changes[identity(config)] if plan else axes)
        group = Group(config.model.norm, config.train.backend, fields, {config.train.seed: run})
        key = repr((group.norm, group.backend, fields))
        known = found.setdefault(key, group)
        if (other := known.runs.get(config.train.seed, run)).path != run.path:
            logger.warning(f"{other.path} is left out: {run.path} is the same run again.")
        found[key] = replace(known, runs={**known.runs, **group.runs})
    groups = tuple(found.values())
    measure = next(
        name for name in RANKED_BY if all(run.metrics.get(name) is not None for run in runs)
    )
    pairs = _norm_pairs(groups)
    if plan:  # pairs that change different fields are no comparison of norms
        pairs = [(first, second) for first, second in pairs if first.fields == second.fields]
    effects = _compared(AblationEffect, _effect_pairs(groups), measure) if plan else []
    # Norm by norm, the largest difference first.
    effects.sort(key=lambda item: (groups.index(item.base), -abs(item.interval.mean)))
    return Summary(
        axes=axes,
        groups=groups,
        measure=measure,
        differences=tuple(_compared(Difference, pairs, measure)),
        changes=() if plan else tuple(_compared(Difference, _change_pairs(groups), measure)),
        published=tuple(_published(groups)),
        unmatched=_unmatched(groups),
        following=_following(groups),
        margin=margin,
        one_at_a_time=plan is not None,
        effects=tuple(effects),
    )


def _with_one_place(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs with one place for each data set, wherever it lay when they were trained.

    A place that the data have left is replaced by one that exists, if a run names it.
    """
    places = [locate(run.config.data.data) for run in runs]
    contents = [run.content for run in runs]
    exists = {place: not Path(place).is_absolute() or Path(place).exists() for place in places}
    known: dict[DataConfig, Run] = {}
    found = []
    for run, place, content in zip(runs, places, contents, strict=True):
        same = [
            p for p, other in zip(places, contents, strict=True) if content and other == content
        ]
        located = run.config.replace(data=max(same or [place], key=exists.__getitem__))
        found.append(replace(run, config=located))
        first = known.setdefault(loading(located.data), run) if content else run
        if content and first.content and (differences := first.content.differences(content)):
            raise DataError(
                f"{run.path}: expected the data of {first.path}, with which it would be averaged "
                f"or compared. Received: {'; '.join(differences)}, though both name "
                f"{place}. Report on them separately."
            )
    return found


def _axes(configs: Sequence[Config], vary: Sequence[str]) -> tuple[str, ...]:
    """Returns the varied fields and others that tell runs of one norm apart, where these do not.

    Those of `IMAGE_FIELDS` in which any runs differ are among them.
    """
    axes: list[str] = []
    for name in dict.fromkeys([*vary, "recipe", "data", *SETTINGS]):
        if name in AXES or name in UNCOMPARED:
            continue
        seen: dict[str, set[str]] = {}
        for config in configs:
            if reads(config, name):
                key = repr((config.model.norm, fields_of(config, axes)))
                key = "" if name in IMAGE_FIELDS else key
                seen.setdefault(key, set()).add(repr(field_value(config, name)))
        if name in vary or any(len(values) > 1 for values in seen.values()):
            axes.append(name)
    return tuple(axes)


def fields_of(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Returns the values of those fields that a run of a config reads."""
    return {name: field_value(config, name) for name in names if reads(config, name)}


def _unmatched(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """Returns fields that every norm reads and that differ between norms that are compared."""
    found: dict[str, dict[str, Any]] = {}
    for name in SETTINGS:
        if name in AXES or name in UNCOMPARED or owner(name):
            continue
        for shared in {repr(group.shared): group.shared for group in groups}.values():
            same = [group for group in groups if group.shared == shared]
            values = {group.norm: field_value(group.first.config, name) for group in same}
            if len({*map(repr, values.values())}) > 1:
                found.setdefault(name, values)
    return found


def _following(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Returns the values of fields that differ between groups of one norm though none names them.

    They change together with a field that does, and so may be what makes the difference.
    """
    found: dict[str, list[Any]] = {}
    for name in SETTINGS:
        if name in AXES or name in UNCOMPARED:
            continue
        by_norm: dict[str, dict[str, Any]] = {}
        for group in groups:
            config = group.first.config
            if reads(config, name) and name not in group.fields:
                value = field_value(config, name)
                by_norm.setdefault(group.norm, {})[repr(value)] = value
        if values := next((known for known in by_norm.values() if len(known) > 1), None):
            found[name] = [*values.values()]
    return found


def _norm_pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Returns all pairs of groups that differ in their norm, or in their backend, alone."""
    found = []
    for first, second in combinations(groups, 2):
        differs_in_norm = first.norm != second.norm or first.own != second.own
        differs_in_backend = first.backend != second.backend
        if first.shared == second.shared and differs_in_norm != differs_in_backend:
            found.append((first, second))
    return found


def _change_pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Returns each group beside the first one that differs from it in one shared field alone."""
    found = []
    for place, group in enumerate(groups):
        for name in (name for name in group.shared if name not in IMAGE_FIELDS):
            rest = {**group.fields, name: None}
            first = next(
                other
                for other in groups[: place + 1]
                if (other.norm, other.backend) == (group.norm, group.backend)
                and {**other.fields, name: None} == rest
            )
            if first is not group:
                found.append((group, first))
    return found


def _effect_pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Returns each variant of a one-factor-at-a-time study beside the base of its norm.

    Variants that are tested on other images are left out.
    """
    bases = {(group.norm, group.backend): group for group in groups if not group.fields}
    variants = [group for group in groups if {*group.fields} - {*IMAGE_FIELDS}]
    pairs = [(group, bases.get((group.norm, group.backend))) for group in variants]
    return [(group, base) for group, base in pairs if base]


def _published(groups: Sequence[Group]) -> list[Published]:
    """Returns published numbers for the recipe and data that all groups have in common."""
    names = {(group.first.config.recipe, data_name(group.first)) for group in groups}
    if len(names) != 1:
        return []
    entry = published(*names.pop())
    found: list[Published] = []
    for norm, numbers in entry.items():
        if not isinstance(numbers, dict):
            continue
        values = {name: value for name, value in numbers.items() if name in MEASURES}
        fields = {name: value for name, value in numbers.items() if name not in MEASURES}
        wanted = {"norm": norm, "epochs": entry["epochs"], **fields}
        ours: list[Group | None] = [group for group in groups if _matches(group, wanted)]
        found += [
            Published(group, norm, fields, values, entry["source"]) for group in ours or [None]
        ]
    return found if any(item.group for item in found) else []


def data_name(run: Run) -> str:
    """Returns the name of the data set of a run."""
    return str(run.metrics.get("data", {}).get("name", run.config.data.data))


def _matches(group: Group, wanted: Mapping[str, Any]) -> bool:
    """Returns whether a group is its recipe, unchanged but for the wanted fields."""
    config = group.first.config
    place = {name: field_value(config, name) for name in ("data", "backend", "engine", "seed")}
    plain = resolve({"recipe": config.recipe, **place, **wanted})
    return identity(plain) == identity(config)
