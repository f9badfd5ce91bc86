"""`report.html`: a study, or a few runs, in one file that needs no network."""

import base64
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from kerasnorm.plots.style import Picture
from kerasnorm.study import tables
from kerasnorm.study.sentences import sentences
from kerasnorm.study.summary import Summary
from kerasnorm.tables import Table
from kerasnorm.version import __version__

TEMPLATE = "report.html.j2"
MOST_BYTES = 3_500_000  # of all pictures, which base64 makes a third longer


def render(
    title: str,
    summary: Summary,
    pictures: Mapping[Path, Picture],
    commands: Mapping[str, str],
    layers: Table | None,
) -> str:
    """Returns a report as HTML; pictures beyond `MOST_BYTES` are only named."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (resources.files("kerasnorm.study") / TEMPLATE).read_text(encoding="utf-8")
    figures, left_out = _within_budget(pictures)
    findings, *found = tables.all_tables(summary)
    html: str = environment.from_string(source).render(
        title=title,
        sentences=sentences(summary),
        findings=findings,
        tables=found,
        figures=figures,
        left_out=left_out,
        layers=layers,
        commands=commands,
        runs=tables.run_table(summary),
        environment=tables.environment_rows(summary.runs),
        version=__version__,
        count=len(summary.runs),
    )
    return html.lstrip()


def _within_budget(
    pictures: Mapping[Path, Picture],
) -> tuple[list[tuple[Picture, str]], list[str]]:
    """Returns the pictures that fit with their PNG files in base64, and the names of the others."""
    shown, left_out, total = [], [], 0
    for path, picture in pictures.items():
        content = path.read_bytes()
        if total + len(content) > MOST_BYTES:
            left_out.append(path.name)
            continue
        total += len(content)
        shown.append((picture, base64.b64encode(content).decode()))
    return shown, left_out
