"""What to call runs in a legend: no more than tells them apart."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kerasnorm.config import SETTINGS, Config
from kerasnorm.norms import NORMS, owner
from kerasnorm.study.ablation import Lever
from kerasnorm.study.groups import Group
from kerasnorm.training.run import Run

MEASURES = {"val_accuracy": "validation accuracy", "test_accuracy": "test accuracy"}
MOST_LETTERS = 18  # of a lever's value; widths in full would leave no room for the dots
# Fields that a reader of a comparison must hear of wherever they differ.
HEADLINES: dict[str, Callable[[Config], str]] = {
    "recipe": lambda config: config.recipe,
    "data": lambda config: Path(config.data.data).name,
    "backend": lambda config: config.train.backend,
    "seed": lambda config: f"seed {config.train.seed}",
}


def norm_label(norm: str) -> str:
    """Returns what a norm is called in a figure: "BN" for "bn"."""
    return NORMS[norm].label


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Returns one label a run, all of them distinct.

    A label is the norm, then recipe, data, backend and seed where these differ among the runs,
    then whatever other field tells apart runs that are still alike, then the folder.
    """
    configs = [run.config for run in runs]
    labels = [norm_label(config.model.norm) for config in configs]
    for text in HEADLINES.values():
        texts = [text(config) for config in configs]
        if len(set(texts)) > 1:
            labels = _join(labels, texts)
    for name in SETTINGS:
        candidate = _join(labels, [_field_text(config, name) for config in configs])
        if name not in HEADLINES and len(set(candidate)) > len(set(labels)):
            labels = candidate
    for folders in ([run.path.name for run in runs], [str(run.path) for run in runs]):
        if len(set(labels)) < len(labels):
            labels = _join([norm_label(config.model.norm) for config in configs], folders)
    return labels


def group_label(group: Group, groups: Iterable[Group], *, without: str = "") -> str:
    """Returns what tells a group from the others: "LN, affine element, tensorflow".

    Args:
        group: Of a study.
        groups: All groups that are shown beside it.
        without: A field that the figure shows by itself.
    """
    texts = [norm_label(group.norm), *field_texts(group.fields, without)]
    if len({other.backend for other in groups}) > 1:
        texts.append(group.backend)
    return ", ".join(texts)


def field_texts(fields: Mapping[str, Any], without: str = "") -> list[str]:
    """Returns each field and its value in words: "batch size 8", "affine element"."""
    return [
        _text(name.removeprefix(f"{owner(name)}_"), value)
        for name, value in fields.items()
        if name != without
    ]


def measure_text(levers: Sequence[Lever]) -> str:
    """Returns which accuracy the differences are of."""
    return " or ".join(text for name, text in MEASURES.items()
                       if any(item.measure == name for item in levers))  # fmt: skip


def change_text(lever: Lever) -> str:
    """Returns a lever in words, long values cut: "batch size 128 → 64"."""
    values = [value_text(value) for value in (lever.base_value, lever.value)]
    short = [v if len(v) <= MOST_LETTERS else f"{v[: MOST_LETTERS - 1]}…" for v in values]
    return f"{lever.field.replace('_', ' ')} {' → '.join(short)}"


def _join(labels: Sequence[str], texts: Sequence[str]) -> list[str]:
    return [f"{label}, {text}" for label, text in zip(labels, texts, strict=True)]


def _field_text(config: Config, name: str) -> str:
    return _text(name, getattr(getattr(config, SETTINGS[name].section), name))


def _text(name: str, value: Any) -> str:
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    return f"{words} {value_text(value)}"


def value_text(value: Any) -> str:
    """Returns a field's value alone: "true", "16 16 12", "0.05"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
