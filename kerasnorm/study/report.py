"""`report.html`: everything about a study, or a few runs, in one file that needs no network."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from kerasnorm import __version__
from kerasnorm.files import write_bytes
from kerasnorm.study import findings
from kerasnorm.study.labels import group_label
from kerasnorm.study.report_figures import Figure, described
from kerasnorm.study.summary import Summary
from kerasnorm.tables import Table
from kerasnorm.training.run import ENVIRONMENT, Run

TEMPLATE = "report.html.j2"
MOST_BYTES = 3_500_000  # of all pictures, which base64 makes a third longer


@dataclass(frozen=True)
class Report:
    """What stands in a report.

    Attributes:
        title: Of the page.
        summary: Of its runs.
        pictures: PNG files, in order; those beyond `MOST_BYTES` are only named.
        commands: What each command line does → the command line.
        layers: Receptive fields, None where no model was there to read.
    """

    title: str
    summary: Summary
    pictures: Sequence[Path]
    commands: Mapping[str, str]
    layers: Table | None


def write(report: Report, path: Path) -> None:
    """Writes a report to an HTML file."""
    write_bytes(path, render(report).encode())


def render(report: Report) -> str:
    """Returns a report as HTML."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (resources.files("kerasnorm.study") / TEMPLATE).read_text(encoding="utf-8")
    summary = report.summary
    figures = [described(path, summary) for path in report.pictures]
    shown, left_out = _within_budget(figures)
    found = [findings.lever_table(summary)] if summary.levers else []
    found += [findings.published_table(summary)] if summary.published else []
    found += [findings.difference_table(summary)] if summary.differences else []
    html: str = environment.from_string(source).render(
        title=report.title,
        sentences=findings.sentences(summary),
        findings=findings.group_table(summary),
        tables=found,
        figures=shown,
        left_out=left_out,
        layers=report.layers,
        commands=report.commands,
        runs=run_table(summary),
        environment=environment_rows(summary.runs),
        version=__version__,
        count=len(summary.runs),
    )
    return html.lstrip()


def _within_budget(figures: Sequence[Figure]) -> tuple[list[dict[str, str]], list[str]]:
    shown, left_out, total = [], [], 0
    for figure in figures:
        content = figure.path.read_bytes()
        if total + len(content) > MOST_BYTES:
            left_out.append(figure.path.name)
            continue
        total += len(content)
        shown.append(
            {
                "source": f"data:image/png;base64,{base64.b64encode(content).decode()}",
                "alt": figure.alt,
                "caption": figure.caption,
            }
        )
    return shown, left_out


def run_table(summary: Summary) -> Table:
    """Returns the table of all runs."""
    rows = []
    for group in summary.groups:
        label = group_label(group, summary.groups)
        for seed, run in sorted(group.runs.items()):
            metrics = run.metrics
            accuracies = (f"{100 * metrics[k]:.2f}" for k in ("test_accuracy", "train_accuracy")
                          if k in metrics)  # fmt: skip
            cells = [*accuracies, findings.NO_VALUE][:2]
            rows.append((run.path.name, label, str(seed), *cells, str(len(run.history))))
    columns = ("run", "norm", ">seed", ">test %", ">training %", ">epochs")
    return Table(columns, rows, title="Runs")


def environment_rows(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Returns what the runs were computed with, each value once: (what, values)."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in _facts(run.path / ENVIRONMENT):
            if value not in (None, ""):
                found.setdefault(name, {})[str(value)] = None
    return [(name, ", ".join(values)) for name, values in found.items()]


def _facts(path: Path) -> list[tuple[str, Any]]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        host = facts.get("host", {})
        return [
            *facts.get("versions", {}).items(),
            ("device", facts.get("device", {}).get("name")),
            ("processor", host.get("processor")),
            ("system", host.get("system")),
            ("git revision", facts.get("git_revision")),
        ]
    except (OSError, ValueError, AttributeError):
        return []  # a run may have been copied without it
