"""A study's grid: norms x backends x seeds x any fields, as configs, and as `study.toml`."""

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kerasnorm.config import RECIPES, SETTINGS, Config, resolve, unknown
from kerasnorm.errors import ConfigError, CorruptFileError
from kerasnorm.norms import is_read

STUDY = "study.toml"
AXES = {"norm": "--norm", "backend": "--backend", "seed": "--seeds"}  # have options of their own
TRUTH = {"true": True, "false": False}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a study trains.

    Attributes:
        norms: Norms to compare.
        backends: Keras backends, resolved.
        seeds: Seeds, the same for every other choice, so that runs are paired.
        vary: Field → its values; all combinations are trained.
        fixed: Field → value for all runs, `recipe` and `data` among them.
        linear_rate: The peak learning rate grows with the batch size, from the recipe's of both.
        one_at_a_time: Of `vary`, each value is trained alone, beside the base, which is what
            `fixed` says: a star, not the product.
    """

    norms: tuple[str, ...]
    backends: tuple[str, ...]
    seeds: tuple[int, ...]
    vary: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    linear_rate: bool = False
    one_at_a_time: bool = False

    def configs(self) -> dict[str, Config]:
        """Returns the configs of all runs by `identity`, seeds innermost, none twice.

        Fields that a norm does not read do not multiply its runs.

        Raises:
            ConfigError: A value is out of range.
        """
        return {key: config for key, (config, _) in self._runs().items()}

    def changes(self) -> dict[str, dict[str, Any]]:
        """Returns by `identity` what a run changes of the base; the base's own nothing."""
        return {key: chosen for key, (_, chosen) in self._runs().items()}

    def base(self, config: Config) -> Config:
        """Returns what is trained for the norm, backend and seed of `config` if nothing varies."""
        place = {"backend": config.train.backend, "seed": config.train.seed}
        return resolve({**self.fixed, "norm": config.model.norm, **place})

    def _runs(self) -> dict[str, tuple[Config, dict[str, Any]]]:
        found: dict[str, tuple[Config, dict[str, Any]]] = {}
        for values in self._choices():
            for norm, backend, seed in itertools.product(self.norms, self.backends, self.seeds):
                chosen = {k: v for k, v in values.items() if is_read(k, norm)}
                config = self._config(norm, chosen, {"backend": backend, "seed": seed})
                found.setdefault(identity(config), (config, chosen))
        return found

    def _choices(self) -> Iterator[dict[str, Any]]:
        if self.one_at_a_time:
            yield {}
            for name, values in self.vary.items():
                yield from ({name: value} for value in values)
        else:
            for combination in itertools.product(*self.vary.values()):
                yield dict(zip(self.vary, combination, strict=True))

    def _config(self, norm: str, chosen: dict[str, Any], place: dict[str, Any]) -> Config:
        base = resolve({**self.fixed, "norm": norm, **place})
        config = resolve({**self.fixed, "norm": norm, **place, **chosen})
        if self.linear_rate and "learning_rate" not in chosen:
            scale = config.train.batch_size / base.train.batch_size
            config = config.replace(learning_rate=base.train.learning_rate * scale)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Returns the grid as plain values, ready for TOML and JSON."""
        # Said only where it holds: the names of default folders are hashes of this.
        star = {"one_at_a_time": True} if self.one_at_a_time else {}
        return {
            "norms": list(self.norms),
            "backends": list(self.backends),
            "seeds": list(self.seeds),
            "linear_rate": self.linear_rate,
            **star,
            "vary": {name: [_plain(v) for v in values] for name, values in self.vary.items()},
            "fixed": {name: _plain(value) for name, value in self.fixed.items()},
        }

    def conflict(self, other: "Grid") -> str:
        """Returns the first setting in which two grids are no parts of one study, "" for none."""
        for name in sorted({*self.fixed, *other.fixed} - {"device"}):
            if self.fixed.get(name) != other.fixed.get(name):
                return name
        if self.linear_rate != other.linear_rate:
            return "linear_rate"
        # Where nothing varies, there is the base alone, which any star may grow from.
        is_other = self.one_at_a_time != other.one_at_a_time and self.vary and other.vary
        return "one_at_a_time" if is_other else ""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def identity(config: Config) -> str:
    """Returns the hash of what a run computes: no device, no field that its norm does not read."""
    model = config.model
    strange = {name for name in SETTINGS if not is_read(name, model.norm)}
    if model.groups:
        strange.add("group_size")
    neutral = {name: SETTINGS[name].field.default for name in strange}
    return config.replace(**neutral).hash()


def run_name(config: Config, grid: Grid) -> str:
    """Returns the name of a run's folder: `gn-torch-batch_size-8-s0`.

    One at a time it holds what differs from the base, whose own is `gn-torch-s0`.
    """
    parts = [config.model.norm, config.train.backend]
    base = grid.base(config) if grid.one_at_a_time else None
    for name in grid.vary:
        if is_read(name, config.model.norm):
            value = field_value(config, name)
            if base and value == field_value(base, name):
                continue
            text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts += [name, Path(text).name]
    return "-".join([*parts, f"s{config.train.seed}"])


def field_value(config: Config, name: str) -> Any:
    """Returns the value of a field named without its section, or of `recipe`."""
    if name == "recipe":
        return config.recipe
    return getattr(getattr(config, SETTINGS[name].section), name)


def parse_vary(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Returns the fields and values of `--vary` options.

    Args:
        texts: Each `field=value,value,…`; between the values of a field that is itself a list of
            numbers stands a semicolon.

    Raises:
        ConfigError: A field is unknown, has an option of its own or comes twice, or a value is of
            the wrong type.
    """
    vary: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not values.strip():
            raise ConfigError(
                f"vary: expected FIELD=VALUE,VALUE such as batch_size=32,64. Received: {text!r}"
            )
        if name in AXES:
            raise ConfigError(f"vary: {name} has an option of its own: {AXES[name]}.")
        if name not in SETTINGS and name != "recipe":
            raise unknown("config field", name, ["recipe", *SETTINGS])
        if name in vary:
            raise ConfigError(f"vary: expected each field once. Received: {name} twice")
        separator = ";" if _is_list(name) else ","
        vary[name] = tuple(dict.fromkeys(_parse(name, v) for v in values.split(separator)))
    return vary


def _is_list(name: str) -> bool:
    return name != "recipe" and isinstance(SETTINGS[name].field.default, tuple)


def _parse(name: str, text: str) -> Any:
    text = text.strip()
    if name == "recipe":
        if text not in RECIPES:
            raise unknown("recipe", text, RECIPES)
        return text
    default: Any = SETTINGS[name].field.default
    try:
        if isinstance(default, tuple):
            return tuple(int(item) for item in text.split(","))
        if isinstance(default, bool):
            return TRUTH[text.lower()]
        kind: Any = type(default)
        return kind(text)
    except (ValueError, KeyError):
        raise ConfigError(
            f"vary: expected values of {name} like {default!r}. Received: {name}={text!r}"
        ) from None


def to_toml(grid: Grid) -> str:
    """Returns a grid as the text of `study.toml`."""
    import tomli_w

    return tomli_w.dumps(grid.to_dict())


def read(path: Path) -> Grid:
    """Returns the grid in a `study.toml`.

    Raises:
        CorruptFileError: The file is missing or damaged.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        vary = {name: tuple(map(_frozen, v)) for name, v in document.get("vary", {}).items()}
        grid = Grid(
            norms=tuple(document["norms"]),
            backends=tuple(document["backends"]),
            seeds=tuple(document["seeds"]),
            vary=vary,
            fixed={name: _frozen(v) for name, v in document.get("fixed", {}).items()},
            linear_rate=bool(document.get("linear_rate", False)),
            one_at_a_time=bool(document.get("one_at_a_time", False)),
        )
        grid.configs()
    except FileNotFoundError:
        raise CorruptFileError(f"{path.parent} is no study's folder: it has no {STUDY}.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from None
    return grid


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def command(grid: Grid, out: str) -> list[str]:
    """Returns the words of the command that makes a study of this grid in folder `out`."""
    words = ["kerasnorm", "sweep" if grid.vary else "compare"]
    for name, value in grid.fixed.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", _word(value)]
    for norm in grid.norms:
        words += ["--norm", norm]
    for backend in grid.backends:
        words += ["--backend", backend]
    words += ["--seeds", str(len(grid.seeds))]
    words += ["--seed", str(grid.seeds[0])] if grid.seeds[0] else []
    for name, values in grid.vary.items():
        separator = ";" if _is_list(name) else ","
        words += ["--vary", f"{name}={separator.join(map(_word, values))}"]
    words += ["--linear-rate"] if grid.linear_rate else []
    words += ["--one-at-a-time"] if grid.one_at_a_time else []
    return [*words, "--out", out]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def with_data(grid: Grid, name: str) -> Grid:
    """Returns the grid on a data set, `auto` replaced by what it stands for."""
    return replace(grid, fixed={**grid.fixed, "data": name})
