"""What a run is made of: frozen dataclasses whose fields describe themselves.

Each field carries its own help, choices and range, so that the command line, the environment
variables (`KERASNORM_<FIELD>`), the config file and the checks all come from this one table.
Field names are unique across the sections: `batch_size` is enough to say which field is meant.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kerasnorm.errors import ConfigError

NORMS = ("bn", "gn", "ln", "lnc", "in", "rms", "none")
BACKENDS = ("torch", "tensorflow", "jax")
RECIPES = ("best", "era8")
# Names of earlier versions: files that hold them are read, callers learn the new name.
RENAMED = {"treatment": "preprocessing", "sd": "std"}
RENAMED_ARGUMENTS = {"monitor": "progress", "reporter": "progress"}  # of functions
LARGEST = 1e300  # of any number; also refuses NaN and infinity


def _field(
    default: Any,
    help: str,  # noqa: A002  (the word that click and argparse use)
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    metadata = {"help": help, "choices": choices, "low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


class _Checked:
    """Checks every field against its own type, choices and range when the object is made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = check_value(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Checked):
    """The network: norm, widths and everything that stands between two convolutions."""

    norm: str = _field("gn", "Normalization layer.", choices=NORMS)
    groups: int = _field(0, "Groups of gn; 0 takes channels / group-size.", low=0)
    group_size: int = _field(4, "Channels a group of gn, where --groups is 0.", low=1)
    ln_affine: str = _field(
        "channel",
        "Scale and shift of ln: one a channel, or one an element (H*W*C).",
        choices=("channel", "element"),
    )
    weight_standardization: bool = _field(False, "Standardize the kernels of the convolutions.")
    widths: tuple[int, ...] = _field(
        (16, 16, 12, 32, 32, 32, 16, 32, 32, 32),
        "Channels of C1 C2 c3 C3 C4 C5 c6 C7 C8 C9.",
        low=1,
        high=65536,
    )
    activation: str = _field(
        "relu", "Activation.", choices=("relu", "leaky_relu", "elu", "gelu", "silu", "mish")
    )
    order: str = _field(
        "conv-norm-act",
        "Order inside a unit.",
        choices=("conv-norm-act", "conv-act-norm"),
    )
    norm_transitions: bool = _field(True, "Normalize after the 1x1 convolutions too.")
    residual: bool = _field(True, "Add a unit's input to its output where the shapes match.")
    dropout: float = _field(0.0, "Dropout rate after each unit.", low=0.0, high=0.95)
    dropout_kind: str = _field(
        "element", "Drop single values or whole channels.", choices=("element", "spatial")
    )
    l1: float = _field(0.0, "L1 regularization of the kernels.", low=0.0)
    l2: float = _field(0.0, "L2 regularization of the kernels.", low=0.0)
    bn_momentum: float = _field(
        0.9, "Share of the old value in bn's moving statistics.", low=0.0, high=1.0
    )
    initializer: str = _field(
        "he_normal",
        "How kernels start; torch is PyTorch's default (Kaiming uniform, a = sqrt 5).",
        choices=("he_normal", "he_uniform", "glorot_uniform", "torch"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.widths) != 10:
            raise ConfigError(
                "widths: expected 10 numbers, the channels of C1 C2 c3 C3 C4 C5 c6 C7 C8 C9. "
                f"Received: widths={list(self.widths)}"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Checked):
    """The images: where they come from, how they are preprocessed and augmented."""

    data: str = _field(
        "auto",
        "cifar10, cifar100, fashion_mnist, mnist, shapes, a path, or auto "
        "(cifar10 if it is cached or downloads, else shapes).",
    )
    train_size: int = _field(
        0, "Training images to use; 0 is all of them (shapes: 10,000).", low=0, high=10_000_000
    )
    test_size: int = _field(
        0, "Test images to use; 0 is all of them (shapes: 2,000).", low=0, high=10_000_000
    )
    validation: int = _field(
        0, "Training images to hold out for validation, the same share of each class.", low=0
    )
    preprocessing: str = _field(
        "standardize",
        "What is done to pixels before the first convolution.",
        choices=("standardize", "scale", "none", "equalize"),
    )
    flip: float = _field(0.0, "Probability of a horizontal flip.", low=0.0, high=1.0)
    alternating_flip: bool = _field(False, "Mirror each image in every other epoch.")
    translate: int = _field(0, "Largest random shift in pixels, edges reflected.", low=0)
    shift_scale_rotate: float = _field(
        0.0,
        "Probability of a random shift (10 %), scale (10 %) and rotation (15 degrees).",
        low=0.0,
        high=1.0,
    )
    cutout: float = _field(0.0, "Probability of a square hole of the mean color.", low=0, high=1)
    cutout_size: int = _field(16, "Side of that hole in pixels.", low=1)
    gray: float = _field(0.0, "Probability of a change to gray.", low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Checked):
    """The training: backend, device, optimizer, schedule and length."""

    backend: str = _field(
        "auto", "Keras backend; auto takes the first installed.", choices=("auto", *BACKENDS)
    )
    engine: str = _field(
        "native",
        "Training engine: native is this package's own for torch and tensorflow (jax has only "
        "keras), keras is model.fit.",
        choices=("native", "keras"),
    )
    device: str = _field("auto", "auto, cpu, gpu, or one by number: cuda:1.")
    devices: int = _field(
        1, "Devices of this machine to train on (tensorflow; for torch see torchrun).", low=1
    )
    bn_sync: str = _field(
        "on",
        "On several devices, bn's statistics are those of the whole batch (on) or of each "
        "device's part (off).",
        choices=("on", "off"),
    )
    precision: str = _field(
        "float32", "Arithmetic of the layers.", choices=("float32", "mixed_bfloat16")
    )
    deterministic: bool = _field(
        False, "The same bits in every run on a GPU too, for some speed; on a CPU they always are."
    )
    seed: int = _field(
        0, "Seed of order, augmentation, dropout and weights.", low=0, high=2**31 - 1
    )
    epochs: int = _field(20, "Passes over the training images.", low=1, high=100_000)
    batch_size: int = _field(128, "Images a step.", low=1)
    optimizer: str = _field(
        "adamw",
        "Optimizer; sgd has Nesterov momentum, muon is for kernels and leaves vectors to adamw.",
        choices=("adam", "adamw", "sgd", "muon"),
    )
    learning_rate: float = _field(0.01, "Peak learning rate.", low=0.0)
    momentum: float = _field(0.9, "Nesterov momentum of sgd and muon.", low=0.0, high=1.0)
    weight_decay: float = _field(
        0.05, "Decoupled decay of the kernels, times the rate; all but adam.", low=0.0
    )
    schedule: str = _field(
        "triangular",
        "Learning rate, step by step.",
        choices=("triangular", "onecycle", "cosine", "constant"),
    )
    warmup: float = _field(
        0.25, "Share of the steps before the peak; constant has none.", low=0.0, high=1.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        kind, _, number = self.device.partition(":")
        if self.device not in ("auto", "cpu", "gpu") and not (
            kind == "cuda" and number.isascii() and number.isdecimal()
        ):
            raise ConfigError(
                "device: expected auto, cpu, gpu or a device such as cuda:1. "
                f"Received: device={self.device!r}"
            )
        if self.optimizer == "adam" and self.weight_decay > 0:
            raise ConfigError(
                "weight_decay: expected 0 with adam, whose decoupled form is adamw. "
                f"Received: optimizer='adam', weight_decay={self.weight_decay}. "
                "Use --optimizer adamw, --weight-decay 0, or --l2."
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides what a run computes; `kerasnorm.recipes.resolve` makes it.

    Attributes:
        recipe: Name of the recipe that it started from.
        model: The network.
        data: The images.
        train: The training.
    """

    recipe: str
    model: ModelConfig
    data: DataConfig
    train: TrainConfig

    def to_dict(self) -> dict[str, Any]:
        """Returns the config as nested dicts of plain values, ready for TOML and JSON."""
        document: dict[str, Any] = {"recipe": self.recipe}
        for name in SECTIONS:
            section = dataclasses.asdict(getattr(self, name))
            document[name] = {k: list(v) if isinstance(v, tuple) else v for k, v in section.items()}
        return document

    def hash(self) -> str:
        """Returns 12 hexadecimal digits that change when any field but the devices changes."""
        document = self.replace(device="auto", devices=1).to_dict()
        text = json.dumps(document, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def replace(self, **overrides: Any) -> "Config":
        """Returns a copy with some fields changed, named without their section.

        Raises:
            ConfigError: A name is unknown or a value is out of range.
        """
        return build_config(self.recipe, flatten(self.to_dict()) | overrides)


SECTIONS: dict[str, type] = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}


class Setting(NamedTuple):
    """One field of the config and the section that it lives in."""

    section: str
    field: "dataclasses.Field[Any]"


SETTINGS: dict[str, Setting] = {
    field.name: Setting(section, field)
    for section, cls in SECTIONS.items()
    for field in dataclasses.fields(cls)
}


def check_value(field: "dataclasses.Field[Any]", value: Any) -> Any:
    """Returns `value` in the type of `field`.

    Raises:
        ConfigError: The value has another type, or is not among the choices or in the range.
    """
    meta = field.metadata
    if not meta:
        return value
    if isinstance(field.default, tuple):
        if not isinstance(value, (list, tuple)):
            raise _wrong(field.name, "a list of whole numbers", value)
        return tuple(_check_number(field.name, item, int, meta) for item in value)
    if isinstance(field.default, bool):
        if not isinstance(value, bool):
            raise _wrong(field.name, "true or false", value)
        return value
    if isinstance(field.default, str):
        if not isinstance(value, str):
            raise _wrong(field.name, "text", value)
        if meta["choices"] and value not in meta["choices"]:
            raise _wrong(field.name, f"one of {', '.join(meta['choices'])}", value)
        return value
    return _check_number(field.name, value, type(field.default), meta)


def _check_number(name: str, value: Any, kind: type, meta: Mapping[str, Any]) -> Any:
    low, high = meta["low"], meta["high"]
    low = float("-inf") if low is None else low
    high = float("inf") if high is None else high
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_number = is_number and abs(value) <= LARGEST and kind(value) == value
    if not is_number or not low <= value <= high:
        noun = "a whole number" if kind is int else "a number"
        bounds = f" of at least {low}" if meta["low"] is not None else ""
        bounds += f" and at most {high}" if meta["high"] is not None else ""
        raise _wrong(name, noun + bounds, value)
    return kind(value)


def _wrong(name: str, expected: str, received: object) -> ConfigError:
    return ConfigError(f"{name}: expected {expected}. Received: {name}={received!r}")


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Returns the error for a name that is not known, with the nearest ones that are."""
    if new := (RENAMED | RENAMED_ARGUMENTS).get(name):
        return ConfigError(f"Unknown {kind}: {name!r}. It is called {new} now.")
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3)
    advice = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}."
    return ConfigError(f"Unknown {kind}: {name!r}. {advice}")


def build_config(recipe: str, values: Mapping[str, Any]) -> Config:
    """Returns the config of these fields, named without their section; others have defaults.

    Raises:
        ConfigError: A name is unknown or a value is out of range.
    """
    parts: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in values.items():
        if name not in SETTINGS:
            raise unknown("config field", name, SETTINGS)
        parts[SETTINGS[name].section][name] = value
    sections = {section: cls(**parts[section]) for section, cls in SECTIONS.items()}
    return Config(recipe=recipe, **sections)


def flatten(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of all sections in one dict, the recipe's name left out.

    Raises:
        ConfigError: A section is unknown or no table, or a field is not of its section.
    """
    flat: dict[str, Any] = {}
    for section, values in document.items():
        if section == "recipe":
            continue
        if section not in SECTIONS:
            raise unknown("config section", section, ["recipe", *SECTIONS])
        if not isinstance(values, Mapping):
            raise _wrong(section, "a table of fields", values)
        for given, value in values.items():
            name = RENAMED.get(str(given), str(given))
            if name not in SETTINGS or SETTINGS[name].section != section:
                names = [n for n, setting in SETTINGS.items() if setting.section == section]
                raise unknown(f"field of [{section}]", name, names)
            flat[name] = value
    return flat
