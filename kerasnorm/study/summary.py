"""What runs amount to: groups over seeds, paired differences, and the published numbers beside."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from kerasnorm.config import SETTINGS, Config, published, resolve
from kerasnorm.norms import is_read
from kerasnorm.study import ablation as levers
from kerasnorm.study.ablation import Lever
from kerasnorm.study.groups import Group
from kerasnorm.study.interval import LEVEL, Interval, interval
from kerasnorm.study.plan import AXES, Grid, field_value, identity
from kerasnorm.training.run import Run

MEASURES = (
    "test_accuracy",
    "test_loss",
    "train_accuracy",
    "train_loss",
    "val_accuracy",
    "val_loss",
)
DEFINITIONS = {
    "n": "runs, which differ in the seed alone",
    "mean": "mean over the seeds of the value after the last epoch",
    "std": "sample standard deviation over the seeds (n - 1)",
    "low, high": f"{LEVEL:.0%} t-interval of the mean: mean -+ t(n - 1) * std / sqrt(n)",
    "differences": "first minus second, seed by seed over the seeds that both have, "
    f"with the {LEVEL:.0%} t-interval of their mean; not corrected for their number",
    "levers": levers.DEFINITION,
}


@dataclass(frozen=True)
class Difference:
    """How much the test accuracy of one group is above another's, paired by seed.

    Attributes:
        first: A group.
        second: Another, which differs in its norm, or in its backend, alone.
        seeds: That both have.
        spread: Of first minus second, as shares of 1.
    """

    first: Group
    second: Group
    seeds: tuple[int, ...]
    spread: Interval

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.spread.is_clear


@dataclass(frozen=True)
class Published:
    """A published result beside the group that repeats it.

    Attributes:
        group: Ours; None if no run of ours repeats it.
        norm: Its norm.
        fields: What else it is made of, such as `ln_affine`.
        values: Measure → published number.
        source: Who published it.
    """

    group: Group | None
    norm: str
    fields: Mapping[str, Any]
    values: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Summary:
    """What a study found.

    Attributes:
        axes: Fields, besides norm, backend and seed, in which its runs differ.
        groups: In the order of their first runs.
        differences: Between groups, as `Difference` has it.
        published: Numbers of others for the same recipe and data.
        is_star: Whether the groups are a base and what changes one field of it alone.
        levers: What these changes do, as `Lever` has it; of a star only.
    """

    axes: tuple[str, ...]
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]
    published: tuple[Published, ...]
    is_star: bool = False
    levers: tuple[Lever, ...] = ()

    @property
    def runs(self) -> list[Run]:
        """All runs, group by group."""
        return [run for group in self.groups for _, run in sorted(group.runs.items())]

    @property
    def bases(self) -> tuple[Group, ...]:
        """The groups of a star's base; of another study, or where the base failed, all groups."""
        found = tuple(group for group in self.groups if not group.fields)
        return found if self.is_star and found else self.groups

    @property
    def arms(self) -> list[Group]:
        """One base for each norm and what only this norm reads; the first of each."""
        found: dict[str, Group] = {}
        for group in self.bases:
            found.setdefault(f"{group.norm} {group.own}", group)
        return list(found.values())

    def along(self, name: str) -> "Summary":
        """Returns of a star the base and what changes field `name`, the base's value among them."""
        if not self.is_star:
            return self
        groups = tuple(
            replace(group, fields=_fields(group.first.config, [name]))
            for group in self.groups
            if not {*group.fields} - {name}
        )
        return replace(self, groups=groups)


def summarize(runs: Sequence[Run], vary: Sequence[str] = (), star: Grid | None = None) -> Summary:
    """Returns what runs amount to; of two runs that compute the same, the last counts.

    Args:
        runs: Finished runs, one at least.
        vary: Fields that were varied on purpose; they are named before others.
        star: The grid one at a time whose runs these are, which says what the base is.
    """
    axes = _axes([run.config for run in runs], vary)
    changes = star.changes() if star else {}
    found: dict[str, Group] = {}
    for run in runs:
        config = run.config
        fields = _fields(config, changes[identity(config)] if star else axes)
        group = Group(config.model.norm, config.train.backend, fields, {config.train.seed: run})
        key = repr((group.norm, group.backend, fields))
        known = found.get(key, group)
        found[key] = replace(known, runs={**known.runs, **group.runs})
    groups = tuple(found.values())
    return Summary(
        axes,
        groups,
        tuple(_differences(groups, alike=star is not None)),
        tuple(_published(groups)),
        is_star=star is not None,
        levers=levers.find(groups) if star else (),
    )


def _axes(configs: Sequence[Config], vary: Sequence[str]) -> tuple[str, ...]:
    """Returns the fields that tell apart runs of one norm, none that follows from those before."""
    names = dict.fromkeys([*vary, "recipe", "data", *SETTINGS])
    axes: list[str] = []
    for name in names:
        if name in AXES or name == "device":
            continue
        seen: dict[str, set[str]] = {}
        for config in configs:
            norm = config.model.norm
            if is_read(name, norm):
                key = repr((norm, _fields(config, axes)))
                seen.setdefault(key, set()).add(repr(field_value(config, name)))
        if any(len(values) > 1 for values in seen.values()):
            axes.append(name)
    return tuple(axes)


def _fields(config: Config, axes: Iterable[str]) -> dict[str, Any]:
    norm = config.model.norm
    return {name: field_value(config, name) for name in axes if is_read(name, norm)}


def _differences(groups: Sequence[Group], *, alike: bool) -> list[Difference]:
    """Returns all pairs, of a star (`alike`) those that change the same: the others are levers."""
    found = []
    for first, second in combinations(groups, 2):
        is_arm = first.norm != second.norm or first.own != second.own
        is_backend = first.backend != second.backend
        if first.shared != second.shared or is_arm == is_backend:
            continue
        if alike and first.fields != second.fields:
            continue
        seeds = tuple(sorted({*first.runs} & {*second.runs}))
        if seeds:
            values = [_accuracy(first, seed) - _accuracy(second, seed) for seed in seeds]
            found.append(Difference(first, second, seeds, interval(values)))
    return found


def _accuracy(group: Group, seed: int) -> float:
    return float(group.runs[seed].metrics["test_accuracy"])


def _published(groups: Sequence[Group]) -> list[Published]:
    """Returns others' numbers for the recipe and data that all groups have in common."""
    configs = [group.first.config for group in groups]
    names = {(config.recipe, group.first.metrics.get("data", {}).get("name", config.data.data))
             for config, group in zip(configs, groups, strict=True)}  # fmt: skip
    if len(names) != 1:
        return []
    recipe, data = names.pop()
    entry = published(recipe, data)
    found = []
    for norm, numbers in entry.items():
        if not isinstance(numbers, dict):
            continue
        values = {name: value for name, value in numbers.items() if name in MEASURES}
        fields = {name: value for name, value in numbers.items() if name not in MEASURES}
        wanted = {"norm": norm, "epochs": entry["epochs"], **fields}
        ours = [g for g in groups if _matches(g, wanted)]
        found += [Published(g, norm, fields, values, entry["source"]) for g in ours]
        if not ours:
            found.append(Published(None, norm, fields, values, entry["source"]))
    return found if any(item.group for item in found) else []


def _matches(group: Group, wanted: Mapping[str, Any]) -> bool:
    """Says whether a group is its recipe itself, unchanged but for the wanted fields."""
    config = group.first.config
    place = {name: field_value(config, name) for name in ("data", "backend", "engine", "seed")}
    plain = resolve({"recipe": config.recipe, **place, **wanted})
    return identity(plain) == identity(config)


def to_dict(summary: Summary) -> dict[str, Any]:
    """Returns a summary as plain values, ready for JSON."""
    return {
        "groups": [
            {
                **_name(group),
                "seeds": sorted(group.runs),
                "parameters": group.first.metrics.get("parameters"),
                **{
                    measure: asdict(found)
                    for measure in MEASURES
                    if (found := group.spread(measure)) is not None
                },
            }
            for group in summary.groups
        ],
        "differences": [
            {
                "measure": "test_accuracy",
                "first": _name(item.first),
                "second": _name(item.second),
                "seeds": list(item.seeds),
                **asdict(item.spread),
            }
            for item in summary.differences
        ],
        "levers": [levers.to_dict(item) for item in summary.levers],
        "published": [
            {
                "norm": item.norm,
                **item.fields,
                "published": dict(item.values),
                "source": item.source,
                "ours": _name(item.group) if item.group else None,
                **_beside(item),
            }
            for item in summary.published
        ],
        "definitions": DEFINITIONS,
    }


def _beside(item: Published) -> dict[str, Any]:
    """Returns our means of the published measures, and by how much they are above."""
    if item.group is None:
        return {}
    spreads = {name: item.group.spread(name) for name in item.values}
    known = {name: found for name, found in spreads.items() if found}
    return {
        name: {**asdict(found), "above_published": found.mean - item.values[name]}
        for name, found in known.items()
    }


def _name(group: Group) -> dict[str, Any]:
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in group.fields.items()}
    return {"norm": group.norm, "backend": group.backend, **fields}
