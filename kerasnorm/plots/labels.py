"""Labels of runs and config fields in figures and tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnorm.config import SETTINGS, Config, field_value, value_word
from kerasnorm.norms import NORMS, owner

if TYPE_CHECKING:
    from kerasnorm.training.run import Run

# A label always names these fields where they differ among the runs.
HEADLINES: dict[str, Callable[[Config], str]] = {
    "network": lambda config: config.model.network_title,
    "recipe": lambda config: config.recipe,
    "data": lambda config: config.data.data,
    "backend": lambda config: config.train.backend,
    "seed": lambda config: f"seed {config.train.seed}",
}


def run_labels(runs: "Sequence[Run]") -> list[str]:
    """Returns one distinct label per run.

    A label is the norm, then recipe, data, backend and seed where these differ among the runs,
    then any other field that tells apart runs whose labels are still equal, then the folder.
    """
    configs = [run.config for run in runs]
    norms = labels = [NORMS[config.model.norm].label for config in configs]
    for name, text in HEADLINES.items():
        texts = [text(config) for config in configs]
        if name == "data":
            texts = [short_places(texts)[place] for place in texts]
        if len(set(texts)) > 1:
            labels = _join(labels, texts)
    for name in SETTINGS:
        values = [field_value(config, name) for config in configs]
        texts = value_texts(values) if {*map(type, values)} == {float} else values
        candidate = _join(labels, [_field_text(name, text) for text in texts])
        if name not in HEADLINES and len(set(candidate)) > len(set(labels)):
            labels = candidate
    for folders in ([run.path.name for run in runs], [str(run.path) for run in runs]):
        if len(set(labels)) < len(labels):
            labels = _join(norms, folders)
    return labels


def _join(labels: Sequence[str], texts: Sequence[str]) -> list[str]:
    return [f"{label}, {text}" for label, text in zip(labels, texts, strict=True)]


def short_places(places: Iterable[str]) -> dict[str, str]:
    """Returns each path with as many of its last parts as tell it from the others.

    >>> short_places(["shapes", "/data/old/pets", "/data/new/pets"])
    {'shapes': 'shapes', '/data/old/pets': 'old/pets', '/data/new/pets': 'new/pets'}
    """
    parts = {place: Path(place).parts for place in places}
    found = {}
    for place, own in parts.items():
        others = [other for other in parts.values() if other != own]
        count = 1
        while count < len(own) and any(other[-count:] == own[-count:] for other in others):
            count += 1
        found[place] = str(Path(*own[-count:])) if own else place
    return found


def shown_fields(
    fields: Mapping[str, Any], among: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Returns fields and their values; paths and floats as short as tells them apart."""
    shown, everything = dict(fields), [fields, *among]
    for name, value in fields.items():
        values = [other[name] for other in everything if name in other]
        if name in {"data", "network"}:
            shown[name] = short_places(map(str, values))[str(value)]
        elif isinstance(value, float):
            shown[name] = value_texts(values)[0]
    return shown


def field_texts(fields: Mapping[str, Any]) -> list[str]:
    """Returns one text per field and value, such as "batch size 8" or "affine element"."""
    return [
        _field_text(name.removeprefix(f"{owner(name)}_"), value) for name, value in fields.items()
    ]


def _field_text(name: str, value: Any) -> str:
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    return f"{words} {value_text(value)}"


def value_text(value: Any) -> str:
    """Returns the value of a field as it is typed, but numbers in short: "16,16,12", "0.05"."""
    return f"{value:g}" if isinstance(value, float) else value_word(value)


def value_texts(values: Sequence[Any]) -> list[str]:
    """Returns values of one field as texts, which differ where the values do.

    >>> value_texts([0.01, 0.02 * 2**0.5]), value_texts([0.01, 0.0100000001])
    (['0.01', '0.0282843'], ['0.01', '0.0100000001'])
    """
    short = [value_text(value) for value in values]
    exact = [value_word(value) for value in values]
    return short if len(set(short)) == len(set(exact)) else exact
