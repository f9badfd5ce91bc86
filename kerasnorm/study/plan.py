"""The plan of a study: norms, backends, seeds and varied fields, as configs and as `study.toml`."""

import itertools
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kerasnorm.config import (
    DEFAULT_RECIPE,
    RECIPES,
    RENAMED,
    SETTINGS,
    UNCOMPARED,
    Config,
    check_value,
    field_value,
    reads,
    resolve,
    unknown,
    value_word,
    values_of_all_norms,
)
from kerasnorm.data.sources import locate
from kerasnorm.errors import ConfigError, CorruptFileError, is_number
from kerasnorm.files import plain, read_text, short_name
from kerasnorm.norms import owner
from kerasnorm.study.intervals import MARGIN

STUDY = "study.toml"
AXES = {"norm": "--norm", "backend": "--backend", "seed": "--seeds"}  # have options of their own


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """The plan of a study: what it trains.

    Attributes:
        norms: Names of the norms to compare.
        backends: Names of the Keras backends, "auto" resolved.
        seeds: Seeds of every combination of the other choices, so that runs are paired by seed.
        arms: "matched" if the norms' runs differ in the norm and in fields that it alone reads;
            "tuned" if each norm has the values that the recipe holds for it.
        rate_scaling: How the peak learning rate follows a varied batch size: not at all ("none"),
            in proportion to it ("linear", Goyal et al. 2017, arXiv 1706.02677) or to its square
            root ("sqrt", Malladi et al. 2022, arXiv 2205.10782); "auto" is "linear" with sgd and
            "sqrt" with the other optimizers.
        margin: Largest difference in points of accuracy that does not matter in practice.
        one_at_a_time: Whether each value in `vary` is trained alone, beside a base without any of
            them, instead of all combinations (a one-factor-at-a-time ablation).
        vary: Values of each varied field; all combinations are trained.
        fixed: Values that all runs share, `recipe` and `data` among them.
    """

    norms: tuple[str, ...]
    backends: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: str = "matched"
    rate_scaling: str = "auto"
    margin: float = 100 * MARGIN
    one_at_a_time: bool = False
    vary: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Gives each value its field's type, so that a plan equals the one read from its file."""
        vary = {
            name: tuple(dict.fromkeys(_typed(name, value) for value in values))
            for name, values in self.vary.items()
        }
        object.__setattr__(self, "vary", vary)
        fixed = {name: _typed(name, value) for name, value in self.fixed.items()}
        object.__setattr__(self, "fixed", fixed)
        object.__setattr__(self, "one_at_a_time", bool(self.one_at_a_time))
        if is_number(self.margin):
            object.__setattr__(self, "margin", float(self.margin))

    def configs(self) -> dict[str, Config]:
        """Returns the distinct configs of all runs by `identity`, seeds innermost.

        Fields that a run does not read do not multiply the runs.

        Raises:
            ConfigError: A value is out of range.
        """
        return {key: config for key, (config, _) in self._runs.items()}

    def check_read(self) -> None:
        """Makes sure that some run reads each varied field: the others would be trained twice.

        Raises:
            ConfigError: None reads it.
        """
        for name in self.vary:
            runs = [
                config
                for config, chosen in self._runs.values()
                if not self.one_at_a_time or {*chosen} <= {name}
            ]
            if not any(_reads(config, name) for config in runs):
                norm, needed = owner(name), SETTINGS[name].field.metadata["needs"]
                needs = " and ".join(filter(None, [f"norm={norm}" if norm else "", needed]))
                raise ConfigError(
                    f"vary: expected a field that some run reads. Received: vary={name}, which is "
                    f"read only with {needs}, so that its runs would be the same."
                )

    def changes(self) -> dict[str, dict[str, Any]]:
        """Returns by `identity` the varied fields of each run; none for the base."""
        return {key: chosen for key, (_, chosen) in self._runs.items()}

    @cached_property
    def _runs(self) -> dict[str, tuple[Config, dict[str, Any]]]:
        found: dict[str, tuple[Config, dict[str, Any]]] = {}
        for values in self._choices():
            for norm, backend, seed in itertools.product(self.norms, self.backends, self.seeds):
                fixed = {**self.fixed, "norm": norm, "backend": backend, "seed": seed}
                of_norm = {key: values[key] for key in values if owner(key) in (None, norm)}
                config = self._resolved(fixed | of_norm)
                chosen = {key: of_norm[key] for key in of_norm if _reads(config, key)}
                config = config if chosen == of_norm else self._resolved(fixed | chosen)
                if "batch_size" in chosen and "learning_rate" not in chosen:
                    others = {key: value for key, value in chosen.items() if key != "batch_size"}
                    base = self._resolved(fixed | others).train
                    scale = (config.train.batch_size / base.batch_size) ** self._rate_power(config)
                    config = config.replace(learning_rate=base.learning_rate * scale)
                found.setdefault(identity(config), (config, chosen))
        return found

    def _rate_power(self, config: Config) -> float:
        """Returns the power of the batch size that the learning rate follows."""
        by_optimizer = 1.0 if config.train.optimizer == "sgd" else 0.5
        powers = {"auto": by_optimizer, "none": 0.0, "linear": 1.0, "sqrt": 0.5}
        return powers[self.rate_scaling]

    def _resolved(self, settings: Mapping[str, Any]) -> Config:
        if self.arms == "tuned":
            return resolve(settings)
        recipe = str(settings.get("recipe", DEFAULT_RECIPE))
        return resolve({**values_of_all_norms(recipe), **settings})

    def _choices(self) -> Iterator[dict[str, Any]]:
        if self.one_at_a_time:
            yield {}
            for name, values in self.vary.items():
                yield from ({name: value} for value in values)
        else:
            for combination in itertools.product(*self.vary.values()):
                yield dict(zip(self.vary, combination, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as plain values, ready for TOML and JSON."""
        document = asdict(self)
        if not self.one_at_a_time:  # left out, because default folder names are hashes of this
            del document["one_at_a_time"]
        return document

    def located(self) -> "StudyPlan":
        """Returns the plan with the place of its data in full, as workers elsewhere need it."""
        fixed, vary = dict(self.fixed), dict(self.vary)
        if "data" in fixed:
            fixed["data"] = locate(fixed["data"])
        if "data" in vary:
            vary["data"] = tuple(dict.fromkeys(map(locate, vary["data"])))
        return replace(self, fixed=fixed, vary=vary)

    def conflict(self, other: "StudyPlan") -> str:
        """Returns the first setting that keeps two plans from being parts of one study, or "".

        The place of the data comes last, because data may be moved.
        """
        ours, theirs = self.located().fixed, other.located().fixed
        for name in sorted({*ours, *theirs} - {*UNCOMPARED, "data"}):
            if ours.get(name) != theirs.get(name):
                return name
        # These matter only where they change what is trained.
        if {*self.configs()} != {*replace(self, arms=other.arms).configs()}:
            return "arms"
        if {*self.configs()} != {*replace(self, rate_scaling=other.rate_scaling).configs()}:
            return "rate_scaling"
        # A plan without varied fields has the base alone, to which either kind can be added.
        if self.one_at_a_time != other.one_at_a_time and self.vary and other.vary:
            return "one_at_a_time"
        return "data" if ours.get("data") != theirs.get("data") else ""


def _reads(config: Config, name: str) -> bool:
    """Returns whether a field changes what a run of a study computes: one process trains it."""
    return reads(config, name) and (name != "bn_sync" or config.train.devices > 1)


def identity(config: Config) -> str:
    """Returns a hash of what a run computes, without the device and fields it does not read.

    The place of the data counts in full, however it is spelled.
    """
    ignored = [name for name in SETTINGS if not reads(config, name)]
    defaults = {name: SETTINGS[name].field.default for name in ignored}
    return config.replace(**defaults | {"data": locate(config.data.data)}).hash()


def run_name(config: Config, varied: Iterable[str]) -> str:
    """Returns the name of a run's folder, such as `gn-torch-batch_size-8-s0`."""
    parts = [config.model.title, config.train.backend]
    for name in varied:
        value = field_value(config, name)
        text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
        parts += [name, Path(text).name]
    return f"{short_name('-'.join(parts))}-s{config.train.seed}"


def parse_vary(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Returns the fields and values of `--vary` options.

    Each is `field=value,value,…`; the values of a field that is itself a list of numbers are
    separated by semicolons.

    Raises:
        ConfigError: A field is unknown, has an option of its own, changes nothing or comes twice,
            or a value is of the wrong type.
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
        if name in UNCOMPARED:
            raise ConfigError(f"vary: {name} changes nothing that a run computes: --{name}.")
        if name not in SETTINGS and name != "recipe":
            raise unknown("config field", name, ["recipe", *SETTINGS])
        if name in vary:
            raise ConfigError(f"vary: expected each field once. Received: {name} twice")
        parsed = (_parse(name, value.strip()) for value in values.split(_separator(name)))
        vary[name] = tuple(dict.fromkeys(parsed))
    return vary


def _separator(name: str) -> str:
    """Returns what separates the values of a field: a semicolon where a value has commas."""
    is_list = name != "recipe" and isinstance(SETTINGS[name].field.default, tuple)
    return ";" if is_list else ","


def _typed(name: str, value: Any) -> Any:
    """Returns the value of a config field, or of `recipe`, in the field's type."""
    if name == "recipe":
        recipe = plain(value)
        if recipe not in RECIPES:
            raise unknown("recipe", recipe, RECIPES)
        return recipe
    if name not in SETTINGS:
        raise unknown("config field", name, ["recipe", *SETTINGS])
    return check_value(SETTINGS[name].field, value)


def _parse(name: str, text: str) -> Any:
    if name == "recipe":
        return _typed(name, text)
    default: Any = SETTINGS[name].field.default
    kind: Any = type(default)
    try:
        if kind is tuple:
            return tuple(map(int, text.split(",")))
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise ConfigError(
            f"vary: expected values of {name} like {default!r}. Received: {name}={text!r}"
        ) from None


def to_toml(plan: StudyPlan) -> str:
    """Returns a plan as the text of `study.toml`."""
    import tomli_w

    return tomli_w.dumps(plan.to_dict())


def read(folder: Path) -> StudyPlan:
    """Returns the plan of the study in a folder.

    Raises:
        CorruptFileError: The folder holds no study, or its plan is damaged.
    """
    path = folder / STUDY
    try:
        plan = StudyPlan(**_present(_immutable(tomllib.loads(read_text(path)))))
        plan.configs()  # raises where a value is out of range
    except FileNotFoundError:
        raise CorruptFileError(
            f"{folder} is not the folder of a study: it has no {STUDY}."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from None
    return plan


def _immutable(value: Any) -> Any:
    """Returns a TOML value with tuples for lists and the present names of renamed fields."""
    if isinstance(value, dict):
        return {RENAMED.get(name, name): _immutable(inner) for name, inner in value.items()}
    return tuple(map(_immutable, value)) if isinstance(value, list) else value


def _present(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the document of a study of any version with the present fields."""
    if "arms" in document:
        return document
    scaling = "linear" if document.pop("linear_rate", False) else "none"
    return {"arms": "tuned", "rate_scaling": scaling} | document


def command(plan: StudyPlan, out: str) -> list[str]:
    """Returns the words of the command that runs a study of this plan in folder `out`."""
    words = ["kerasnorm", "compare"]
    for name, value in plan.fixed.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple) and {*map(type, value)} == {str}:
            words += [word for item in value for word in (f"--{flag}", item)]
        else:
            words += [f"--{flag}", value_word(value)]
    for norm in plan.norms:
        words += ["--norm", norm]
    for backend in plan.backends:
        words += ["--backend", backend]
    words += ["--seeds", str(len(plan.seeds))]
    words += ["--seed", str(plan.seeds[0])] if plan.seeds[0] else []
    for name, values in plan.vary.items():
        words += ["--vary", f"{name}={_separator(name).join(map(value_word, values))}"]
    words += ["--arms", plan.arms] if plan.arms != "matched" else []
    words += ["--rate-scaling", plan.rate_scaling] if plan.rate_scaling != "auto" else []
    words += ["--margin", str(plan.margin)] if plan.margin != 100 * MARGIN else []
    words += ["--one-at-a-time"] if plan.one_at_a_time else []
    return [*words, "--out", out]
