"""A study's tables as files: runs.csv, summary.csv and summary.json."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kerasnorm.files import write_bytes, write_json
from kerasnorm.norms import is_read
from kerasnorm.study.board import Entry
from kerasnorm.study.groups import Group
from kerasnorm.study.plan import field_value, identity
from kerasnorm.study.summary import MEASURES, Summary, to_dict

RUNS, SUMMARY, DOCUMENT = "runs.csv", "summary.csv", "summary.json"
PARTS = ("mean", "std", "low", "high")


def write(path: Path, entries: Sequence[Entry], axes: Sequence[str], summary: Summary) -> None:
    """Writes the three files into a study's folder."""
    write_bytes(path / RUNS, _csv([run_row(entry, axes) for entry in entries]))
    write_bytes(path / SUMMARY, _csv(summary_rows(summary)))
    write_json(path / DOCUMENT, to_dict(summary))


def run_row(entry: Entry, axes: Sequence[str]) -> dict[str, Any]:
    """Returns a run as a row: what it is, how it stands, what it scored."""
    config, done = entry.job.config, entry.job.done
    metrics = done.metrics if done else {}
    row = {
        "run": entry.job.name,
        "state": "failed" if entry.code else "finished" if done else entry.state,
        "norm": config.model.norm,
        "backend": config.train.backend,
        "seed": config.train.seed,
        **{name: _text(field_value(config, name)) for name in axes},
        "epochs": entry.epoch,
        **{name: metrics.get(name) for name in MEASURES},
        "parameters": metrics.get("parameters"),
        "seconds": metrics.get("seconds"),
        "hash": identity(config),
        "message": entry.words,
    }
    return {name: value for name, value in row.items() if name not in ("val_accuracy", "val_loss")
            or config.data.validation}  # fmt: skip


def summary_rows(summary: Summary) -> list[dict[str, Any]]:
    """Returns a row a group: its fields, n, and each measure's mean, std and interval."""
    rows = []
    for group in summary.groups:
        row = {
            "norm": group.norm,
            "backend": group.backend,
            **{name: _field(group, name) for name in summary.axes},
            "n": len(group.runs),
            "parameters": group.first.metrics.get("parameters"),
        }
        for measure in MEASURES:
            if (found := group.spread(measure)) is not None:
                row |= {f"{measure}_{part}": getattr(found, part) for part in PARTS}
        rows.append(row)
    return rows


def _field(group: Group, name: str) -> Any:
    if not is_read(name, group.norm):
        return ""
    return _text(field_value(group.first.config, name))


def _text(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns rows as CSV; a column that a row lacks, or None, is an empty field."""
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
