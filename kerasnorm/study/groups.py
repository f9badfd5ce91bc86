"""Runs that differ in the seed alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kerasnorm.norms import owner
from kerasnorm.study.interval import Interval, interval
from kerasnorm.training.run import Run


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

    Attributes:
        norm: Of all of them.
        backend: Of all of them.
        fields: What else tells this group from others of its norm: field → value. In a study one
            at a time what it changes of the base, whose own group changes nothing.
        runs: By seed.
    """

    norm: str
    backend: str
    fields: Mapping[str, Any]
    runs: Mapping[int, Run]

    @property
    def first(self) -> Run:
        """The run of the lowest seed."""
        return self.runs[min(self.runs)]

    @property
    def own(self) -> dict[str, Any]:
        """The fields that only its norm reads."""
        return {name: value for name, value in self.fields.items() if owner(name)}

    @property
    def shared(self) -> dict[str, Any]:
        """The fields that any norm reads, and the backend not among them."""
        return {name: value for name, value in self.fields.items() if not owner(name)}

    def spread(self, measure: str) -> Interval | None:
        """Returns a measure over the seeds, None where a run lacks it."""
        values = [run.metrics.get(measure) for run in self.runs.values()]
        known = [float(value) for value in values if value is not None]
        return interval(known) if known and len(known) == len(values) else None
