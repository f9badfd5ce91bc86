"""Summary of runs: groups over seeds, paired differences, ablation effects, published numbers."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from kerasnorm.config import SETTINGS, Config, DataConfig, published, resolve
from kerasnorm.data.sources import loading, locate
from kerasnorm.errors import DataError
from kerasnorm.norms import is_read, owner
from kerasnorm.study.plan import AXES, StudyPlan, field_value, identity
from kerasnorm.training.run import Run

LEVEL = 0.95  # confidence level of every interval
MEASURES = (
    "test_accuracy",
    "test_loss",
    "train_accuracy",
    "train_loss",
    "val_accuracy",
    "val_loss",
)
# An ablation effect is judged by the first of these that all its runs have.
JUDGED_BY = ("val_accuracy", "test_accuracy")
DEFINITIONS = {
    "n": "runs, which differ in the seed alone",
    "mean": "mean over the seeds of the value after the last epoch",
    "std": "sample standard deviation over the seeds (n - 1)",
    "low, high": f"{LEVEL:.0%} t-interval of the mean: mean -+ t(n - 1) * std / sqrt(n)",
    "differences": "first minus second, seed by seed over the seeds that both have, "
    f"with the {LEVEL:.0%} t-interval of their mean; not corrected for their number",
    "ablation_effects": "value minus base, one field changed alone (with adam the weight decay "
    "too, with a linear rate the learning rate of the batch size), seed by seed over the seeds "
    "that both have; the measure is validation accuracy where all of these runs have it, else "
    "test accuracy; with the t-interval of the mean, not corrected for the number of effects",
}


@dataclass(frozen=True)
class Interval:
    """The mean of a handful of measurements and its 95 % interval.

    Attributes:
        n: Number of measurements.
        mean: Mean of the measurements.
        std: Sample standard deviation (n - 1); None for one measurement.
        low: Lower end of the 95 % t-interval of the mean; None for one measurement.
        high: Upper end of that interval; None for one measurement.
    """

    n: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Returns n, mean, std and the 95 % interval mean ± t(n - 1) * std / sqrt(n).

        Raises:
            ValueError: There are no values.
        """
        if not values:
            raise ValueError("Interval.of: expected at least one value. Received: none")
        n, mean = len(values), statistics.fmean(values)
        if n < 2:
            return cls(n, mean)
        std = statistics.stdev(values)
        half = t_quantile(0.5 + LEVEL / 2, n - 1) * std / math.sqrt(n)
        return cls(n, mean, std, mean - half, mean + half)

    @property
    def is_clear(self) -> bool:
        """Whether there is an interval that does not contain zero."""
        low, high = self.low, self.high
        return low is not None and high is not None and (low > 0 or high < 0)


def t_distribution(t: float, freedom: int) -> float:
    """Returns P(T <= t) of Student's t with a whole number of degrees of freedom.

    Source: Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(t, math.sqrt(freedom))
    cos2 = math.cos(angle) ** 2
    term = math.cos(angle) if freedom % 2 else 1.0
    total = 0.0
    for k in range(1 + freedom % 2, freedom, 2):
        total += term
        term *= cos2 * k / (k + 1)
    inside = math.sin(angle) * total
    if freedom % 2:
        inside = 2 / math.pi * (angle + inside)
    return 0.5 + inside / 2


def t_quantile(p: float, freedom: int) -> float:
    """Returns the t with P(T <= t) = p, for p from 0.5 up to 1, by bisection."""
    low, high = 0.0, 1.0
    while t_distribution(high, freedom) < p:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_distribution(middle, freedom) < p else (low, middle)
    return high


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

    Attributes:
        norm: Name of their norm.
        backend: Name of their Keras backend.
        fields: Fields and values that tell this group from others of its norm. In a
            one-factor-at-a-time study the field in which it differs from the base, if any.
        runs: Runs by seed.
    """

    norm: str
    backend: str
    fields: Mapping[str, Any]
    runs: Mapping[int, Run]

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

    def interval(self, measure: str) -> Interval | None:
        """Returns the mean of a measure over the seeds, None where a run lacks the measure."""
        values = [run.metrics.get(measure) for run in self.runs.values()]
        known = [float(value) for value in values if value is not None]
        return Interval.of(known) if known and len(known) == len(values) else None

    def to_dict(self) -> dict[str, Any]:
        """Returns what identifies the group, as plain values."""
        return {"norm": self.norm, "backend": self.backend, **self.fields}


@dataclass(frozen=True)
class Difference:
    """How much a measure of one group exceeds that of another, paired by seed.

    Attributes:
        first: The group whose measure counts positive.
        second: The group whose measure is subtracted.
        seeds: Seeds that both groups have.
        measure: Measure that is compared, a key of the runs' metrics.
    """

    first: Group
    second: Group
    seeds: tuple[int, ...]
    measure: str = "test_accuracy"

    @property
    def values(self) -> list[float]:
        """First minus second in the order of `seeds`, as shares of 1."""
        pairs = zip(self._scores(self.first), self._scores(self.second), strict=True)
        return [first - second for first, second in pairs]

    @cached_property
    def interval(self) -> Interval:
        """Mean of `values` with its interval."""
        return Interval.of(self.values)

    def mean(self, group: Group) -> float:
        """Returns the mean of the measure over `seeds` of one of the two groups."""
        return statistics.fmean(self._scores(group))

    def _scores(self, group: Group) -> list[float]:
        return [float(group.runs[seed].metrics[self.measure]) for seed in self.seeds]


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
    """A published result beside the group that repeats it.

    Attributes:
        group: Our group with the same config; None if there is none.
        norm: Name of the norm.
        fields: Other fields and values of the published config, such as `ln_affine`.
        values: Published number of each measure.
        source: Citation of the publication.
    """

    group: Group | None
    norm: str
    fields: Mapping[str, Any]
    values: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Summary:
    """Results of a study.

    Attributes:
        axes: Fields, besides norm, backend and seed, in which its runs differ.
        groups: Groups in the order of their first runs.
        differences: Paired differences of test accuracy between groups that differ in their norm,
            or in their backend, alone.
        published: Published numbers for the same recipe and data.
        one_at_a_time: Whether the groups are a base and variants that change one field of it.
        effects: Effects of these changes; empty for other studies.
    """

    axes: tuple[str, ...]
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]
    published: tuple[Published, ...]
    one_at_a_time: bool = False
    effects: tuple[AblationEffect, ...] = ()

    @property
    def runs(self) -> list[Run]:
        """All runs, group by group."""
        return [run for group in self.groups for _, run in sorted(group.runs.items())]

    @property
    def bases(self) -> tuple[Group, ...]:
        """Base groups of a one-factor-at-a-time study; all groups of others, or without a base."""
        found = tuple(group for group in self.groups if not group.fields)
        return found if self.one_at_a_time and found else self.groups

    @property
    def norm_groups(self) -> list[Group]:
        """First base group of each norm and of each choice of the fields only that norm reads."""
        found: dict[str, Group] = {}
        for group in self.bases:
            found.setdefault(f"{group.norm} {group.own}", group)
        return list(found.values())

    def along(self, name: str) -> "Summary":
        """Returns the base and the variants of field `name` of a one-factor-at-a-time study.

        The base has a value of the field too. Any other study is returned as it is.
        """
        if not self.one_at_a_time:
            return self
        groups = tuple(
            replace(group, fields=_fields(group.first.config, [name]))
            for group in self.groups
            if not {*group.fields} - {name}
        )
        return replace(self, groups=groups)

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as plain values, ready for JSON."""
        return {
            "groups": [_group_row(group) for group in self.groups],
            "differences": [
                {
                    "measure": item.measure,
                    "first": item.first.to_dict(),
                    "second": item.second.to_dict(),
                    "seeds": list(item.seeds),
                    **asdict(item.interval),
                }
                for item in self.differences
            ],
            "ablation_effects": [
                {
                    "measure": item.measure,
                    **item.base.to_dict(),
                    "field": item.field,
                    "base": item.base_value,
                    "value": item.value,
                    "seeds": list(item.seeds),
                    **asdict(item.interval),
                }
                for item in self.effects
            ],
            "published": [_published_row(item) for item in self.published],
            "definitions": DEFINITIONS,
        }


def _group_row(group: Group) -> dict[str, Any]:
    found = {name: group.interval(name) for name in MEASURES}
    return {
        **group.to_dict(),
        "seeds": sorted(group.runs),
        "parameters": group.first.metrics.get("parameters"),
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
    runs: Sequence[Run], vary: Sequence[str] = (), plan: StudyPlan | None = None
) -> Summary:
    """Returns the summary of some runs; of runs that compute the same, the last counts.

    Args:
        runs: Finished runs, at least one.
        vary: Fields that were varied on purpose; they are named before others.
        plan: Plan of the one-factor-at-a-time study that these runs are; it defines the base.

    Raises:
        DataError: Runs that name the same data were trained on different data.
    """
    runs = _with_one_place(runs)
    axes = _axes([run.config for run in runs], vary)
    changes = plan.changes() if plan else {}
    found: dict[str, Group] = {}
    for run in runs:
        config = run.config
        fields = _fields(config, changes[identity(config)] if plan else axes)
        group = Group(config.model.norm, config.train.backend, fields, {config.train.seed: run})
        key = repr((group.norm, group.backend, fields))
        known = found.get(key, group)
        found[key] = replace(known, runs={**known.runs, **group.runs})
    groups = tuple(found.values())
    differences = _differences(groups)
    if plan:  # pairs that change different fields are no comparison of norms
        differences = [item for item in differences if item.first.fields == item.second.fields]
    return Summary(
        axes,
        groups,
        tuple(differences),
        tuple(_published(groups)),
        one_at_a_time=plan is not None,
        effects=tuple(_effects(groups)) if plan else (),
    )


def _with_one_place(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs with one place for each data set, wherever it lay when they were trained.

    A place that the data have left is replaced by one that exists, if a run names it.

    Raises:
        DataError: Runs that name the same data were trained on different data.
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
    """Returns the fields that tell runs of one norm apart, each only if the ones before do not."""
    axes: list[str] = []
    for name in dict.fromkeys([*vary, "recipe", "data", *SETTINGS]):
        if name in AXES or name == "device":
            continue
        seen: dict[str, set[str]] = {}
        for config in configs:
            if is_read(name, config.model.norm):
                key = repr((config.model.norm, _fields(config, axes)))
                seen.setdefault(key, set()).add(repr(field_value(config, name)))
        if any(len(values) > 1 for values in seen.values()):
            axes.append(name)
    return tuple(axes)


def _fields(config: Config, axes: Iterable[str]) -> dict[str, Any]:
    return {name: field_value(config, name) for name in axes if is_read(name, config.model.norm)}


def _common_seeds(first: Group, second: Group) -> tuple[int, ...]:
    return tuple(sorted({*first.runs} & {*second.runs}))


def _differences(groups: Sequence[Group]) -> list[Difference]:
    """Returns all pairs of groups that differ in their norm, or in their backend, alone."""
    found = []
    for first, second in combinations(groups, 2):
        differs_in_norm = first.norm != second.norm or first.own != second.own
        differs_in_backend = first.backend != second.backend
        if first.shared == second.shared and differs_in_norm != differs_in_backend:
            found.append(Difference(first, second, _common_seeds(first, second)))
    return [item for item in found if item.seeds]


def _effects(groups: Sequence[Group]) -> list[AblationEffect]:
    """Returns the ablation effects norm by norm, the largest difference first."""
    bases = {(group.norm, group.backend): group for group in groups if not group.fields}
    found = []
    for group in groups:
        base = bases.get((group.norm, group.backend))
        if base and group.fields and (seeds := _common_seeds(group, base)):
            metrics = [g.runs[seed].metrics for g in (group, base) for seed in seeds]
            measure = next(
                name for name in JUDGED_BY if all(m.get(name) is not None for m in metrics)
            )
            found.append(AblationEffect(group, base, seeds, measure))
    places = list(dict.fromkeys((group.norm, group.backend) for group in groups))

    def order(item: AblationEffect) -> tuple[int, float]:
        return places.index((item.base.norm, item.base.backend)), -abs(item.interval.mean)

    return sorted(found, key=order)


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
