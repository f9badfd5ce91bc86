"""What each choice does alone: a field changed, the rest as in the base, paired by seed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kerasnorm.study.groups import Group
from kerasnorm.study.interval import Interval, interval
from kerasnorm.study.plan import field_value
from kerasnorm.training.run import Run

JUDGES = ("val_accuracy", "test_accuracy")  # choices are made on the first where there is one
DEFINITION = (
    "value minus base, one field changed alone (with adam the weight decay too, with a linear rate "
    "the batch size's learning rate), seed by seed over the seeds that both have; the "
    "measure is validation accuracy where all of these runs have it, else test accuracy; with the "
    "t-interval of the mean, not corrected for the number of levers"
)


@dataclass(frozen=True)
class Lever:
    """What one value of one field does to the base, paired by seed.

    Attributes:
        norm: Of both groups.
        backend: Of both groups.
        field: Which is changed.
        base_value: Its value in the base.
        value: Its value instead.
        base: The group of the base.
        changed: The group with `value`.
        seeds: That both have.
        measure: "val_accuracy" where all these runs have it, else "test_accuracy".
        spread: Of the measure with `value` minus that of the base, as shares of 1.
    """

    norm: str
    backend: str
    field: str
    base_value: Any
    value: Any
    base: Group
    changed: Group
    seeds: tuple[int, ...]
    measure: str
    spread: Interval

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.spread.is_clear

    @property
    def differences(self) -> list[float]:
        """Value minus base, as shares of 1, in the order of `seeds`."""
        return _differences(self.base, self.changed, self.seeds, self.measure)

    def mean(self, group: Group) -> float:
        """Returns the mean of the measure over the common seeds of `base` or `changed`."""
        return interval([_score(group.runs[seed], self.measure) for seed in self.seeds]).mean


def find(groups: Sequence[Group]) -> tuple[Lever, ...]:
    """Returns the levers of a study one at a time, norm by norm, the largest difference first.

    Args:
        groups: Whose `fields` are what they change of the base.
    """
    bases = {(g.norm, g.backend): g for g in groups if not g.fields}
    places = list(dict.fromkeys((g.norm, g.backend) for g in groups))
    found = []
    for group in groups:
        base = bases.get((group.norm, group.backend))
        if base is None or not group.fields:
            continue
        seeds = tuple(sorted({*base.runs} & {*group.runs}))
        if seeds:
            found.append(_lever(base, group, seeds))
    return tuple(
        sorted(
            found,
            key=lambda item: (places.index((item.norm, item.backend)), -abs(item.spread.mean)),
        )
    )


def _lever(base: Group, changed: Group, seeds: tuple[int, ...]) -> Lever:
    ((name, value),) = changed.fields.items()
    runs = [group.runs[seed] for group in (base, changed) for seed in seeds]
    measure = next(
        name for name in JUDGES if all(run.metrics.get(name) is not None for run in runs)
    )
    return Lever(
        norm=base.norm,
        backend=base.backend,
        field=name,
        base_value=field_value(base.first.config, name),
        value=value,
        base=base,
        changed=changed,
        seeds=seeds,
        measure=measure,
        spread=interval(_differences(base, changed, seeds, measure)),
    )


def _differences(base: Group, changed: Group, seeds: Sequence[int], measure: str) -> list[float]:
    return [
        _score(changed.runs[seed], measure) - _score(base.runs[seed], measure) for seed in seeds
    ]


def _score(run: Run, measure: str) -> float:
    return float(run.metrics[measure])


def to_dict(lever: Lever) -> dict[str, Any]:
    """Returns a lever as plain values, ready for JSON."""
    return {
        "measure": lever.measure,
        "norm": lever.norm,
        "backend": lever.backend,
        "field": lever.field,
        "base": lever.base_value,
        "value": lever.value,
        "seeds": list(lever.seeds),
        **asdict(lever.spread),
    }
