"""The config of a run: the table of its fields, and how recipe, file and overrides become one.

Each field carries its own help, choices and range: the command line, the environment variables
(`KERASNORM_<FIELD>`), the config file and the checks all derive from this table. Field names are
unique across the sections, so that `batch_size` alone identifies a field. A recipe is a TOML file
under `recipes/`: sections as in the config, and under `norms` values for one norm only.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from kerasnorm.errors import ConfigError, described, expect, is_list, is_number
from kerasnorm.files import plain, read_text
from kerasnorm.norms import KEEP, NORMS, is_foreign, owner

BACKENDS = ("torch", "tensorflow", "jax")
RECIPES = ("best", "era8", "plain")
DEFAULT_RECIPE = "best"
FOREIGN_RECIPE = "plain"  # the default for networks other than the built-in one
BUILTIN = "builtin"  # the network of `SKELETON`
ARMS = ("matched", "tuned")  # of a study: its norms differ alone, or have the recipe's own values
RATE_SCALINGS = ("auto", "none", "linear", "sqrt")  # of the learning rate, by the batch size
# Blocks of the network: name, number of convolutions and their kernel size. A pooling ends each
# block of 1x1 convolutions.
SKELETON = (
    ("convblock1", 2, 3),
    ("transblock1", 1, 1),
    ("convblock2", 3, 3),
    ("transblock2", 1, 1),
    ("convblock3", 3, 3),
)
LAYER_LABELS = {
    "convblock1_conv1": "C1",
    "convblock1_conv2": "C2",
    "transblock1_conv": "c3",
    "transblock1_pool": "P1",
    "convblock2_conv1": "C3",
    "convblock2_conv2": "C4",
    "convblock2_conv3": "C5",
    "transblock2_conv": "c6",
    "transblock2_pool": "P2",
    "convblock3_conv1": "C7",
    "convblock3_conv2": "C8",
    "convblock3_conv3": "C9",
    "gap": "GAP",
    "fc1": "C10",
}
CONVOLUTIONS = "C1 C2 c3 C3 C4 C5 c6 C7 C8 C9"  # those that `widths` lists
# Names of earlier versions: files may hold them; elsewhere the error gives the new name.
RENAMED = {"treatment": "preprocessing", "sd": "std"}
# Names by which other tools call a field, which an error message answers with ours.
SYNONYMS = {
    "lr": "learning_rate",
    "bs": "batch_size",
    "batch": "batch_size",
    "wd": "weight_decay",
    "decay": "weight_decay",
    "epoch": "epochs",
    "dataset": "data",
    "val": "validation",
    "val_size": "validation",
    "imgsz": "image_size",
    "scheduler": "schedule",
    "dtype": "precision",
}
RENAMED_ARGUMENTS = {"monitor": "progress", "reporter": "progress"}  # of functions
# Fields that a later version added: at their default they do not count in a config's hash, so that
# checkpoints of earlier versions are resumed.
ADDED = ("image_size", "resize", "network", "pretrained", "new_head", "fused", "log", "pooling")
UNCOMPARED = ("device", "devices", "log")  # what they say changes nothing that a run computes
AUGMENTATIONS = ("flip", "alternating_flip", "translate", "shift_scale_rotate", "cutout", "gray")
# Fields of a model that all networks read; the others are those of the built-in one.
EVERY_NETWORK = (
    *("network", "pretrained", "new_head", "norm", "groups", "group_size"),
    "weight_standardization",
)
# What `--data PATH` reads; each is the description of a reader in `kerasnorm.data`.
DATA_FORMS = {
    "class folders": "a folder of class folders of images: DIR/train/CLASS and DIR/test/CLASS "
    "(DIR/val/CLASS too), or DIR/CLASS alone",
    "npz": "an .npz file with the arrays x_train, y_train, x_test, y_test (x_val, y_val too)",
    "cifar": "a folder cifar-10-batches-py, cifar-10-batches-bin or cifar-100-python, the folder "
    "around it, or its .tar or .tar.gz",
    "idx": "a folder of the IDX files of MNIST",
}
# What `--log` takes, see `kerasnorm.training.loggers`.
LOGGERS = ("tensorboard", "mlflow")
LARGEST = 1e300  # largest absolute value of a number; NaN and infinity are refused too


def _field(
    default: Any,
    help: str,  # noqa: A002  (click and argparse call it so)
    *,
    choices: Collection[str] = (),
    others: Callable[[str], bool] = lambda text: False,
    low: float | None = None,
    high: float | None = None,
    read_if: Callable[["Config"], bool] = lambda config: True,
    needs: str = "",
) -> Any:
    """Returns a field; runs read it only if `read_if`, which `needs` says in words."""
    metadata = {"help": help, "choices": choices, "others": others, "low": low, "high": high}
    metadata |= {"read_if": read_if, "needs": needs}
    return dataclasses.field(default=default, metadata=metadata)


class _Checked:
    """Checks every field against its own type, choices and range when the object is made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = check_value(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Checked):
    """The network: norm, widths and everything else between two convolutions."""

    network: str = _field(
        BUILTIN,
        "Network: builtin; keras:NAME, a classifier of keras.applications such as "
        "keras:MobileNetV2; a .keras file; or your function (input_shape, classes) -> "
        "keras.Model, as package.module:function or file.py:function.",
    )
    pretrained: bool = _field(
        False, "Start from the weights of the .keras file that --network names."
    )
    new_head: bool = _field(
        False, "Replace the last layer of the .keras file by one for the classes of the data."
    )
    norm: str = _field(
        "gn",
        "Normalization layer. A network other than builtin takes keep too, which is its default; "
        "and your own layer, as package.module:Layer or file.py:Layer.",
        choices=NORMS,
        others=is_foreign,
    )
    groups: int = _field(
        0,
        "Number of groups of gn; 0 uses --group-size instead. In the builtin network it divides "
        "the channels of every norm; in others, each norm takes the largest divisor of its "
        "channels that is at most this.",
        low=0,
    )
    group_size: int = _field(
        4,
        "Channels per group of gn, if --groups is 0: a divisor, or the largest that is at most "
        "this, as for --groups.",
        low=1,
        read_if=lambda config: config.model.groups == 0,
        needs="groups=0",
    )
    ln_affine: str = _field(
        "channel",
        "Scale and shift of ln: one per channel, or one per element (H*W*C).",
        choices=("channel", "element"),
    )
    weight_standardization: bool = _field(False, "Standardize the kernels of the convolutions.")
    widths: tuple[int, ...] = _field(
        (16, 16, 12, 32, 32, 32, 16, 32, 32, 32), f"Channels of {CONVOLUTIONS}.", low=1, high=65536
    )
    activation: str = _field(
        "relu", "Activation.", choices=("relu", "leaky_relu", "elu", "gelu", "silu", "mish")
    )
    order: str = _field(
        "conv-norm-act",
        "Order of layers in a unit.",
        choices=("conv-norm-act", "conv-act-norm"),
        read_if=lambda config: config.model.norm != "none",
        needs="a norm",
    )
    norm_transitions: bool = _field(
        True,
        "Normalize after the 1x1 convolutions too.",
        read_if=lambda config: config.model.norm != "none",
        needs="a norm",
    )
    pooling: str = _field(
        "max",
        "Pooling of P1 and P2: max, average, or mean, the mean of the two.",
        choices=("max", "average", "mean"),
    )
    residual: bool = _field(True, "Add a unit's input to its output where the shapes match.")
    dropout: float = _field(0.0, "Dropout rate after each unit.", low=0.0, high=0.95)
    dropout_kind: str = _field(
        "element",
        "Drop single values or whole channels.",
        choices=("element", "spatial"),
        read_if=lambda config: config.model.dropout > 0,
        needs="a dropout above 0",
    )
    l1: float = _field(0.0, "Factor of the L1 penalty on the kernels.", low=0.0)
    l2: float = _field(0.0, "Factor of the L2 penalty on the kernels.", low=0.0)
    bn_momentum: float = _field(
        0.9,
        "Weight of the old value in bn's moving statistics (1 minus PyTorch's momentum).",
        low=0.0,
        high=1.0,
    )
    initializer: str = _field(
        "he_normal",
        "Initializer of the kernels; torch is PyTorch's default (Kaiming uniform, a = sqrt 5).",
        choices=("he_normal", "he_uniform", "glorot_uniform", "torch"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_network()
        widths = list(self.widths)
        expected = f"10 numbers, the channels of {CONVOLUTIONS}"
        expect(len(widths) == 10, "widths", expected, widths)

    def _check_network(self) -> None:
        """Refuses what a network does not read."""
        if self.is_builtin:
            refused = [name for name in ("pretrained", "new_head") if getattr(self, name)]
            reader = "a .keras file as --network"
            if self.norm == KEEP:
                raise ConfigError(
                    f"norm: expected one of {', '.join(NORMS)}, or your own layer. Received: "
                    f"norm={KEEP!r}, which is for networks other than builtin."
                )
        else:
            refused = [
                field.name
                for field in dataclasses.fields(self)
                if field.name not in EVERY_NETWORK and getattr(self, field.name) != field.default
            ]
            reader = f"--network {BUILTIN}"
            if not self.network.endswith(".keras"):
                refused += [name for name in ("pretrained", "new_head") if getattr(self, name)]
                reader = "a .keras file" if refused[:1] == ["pretrained"] else reader
        if refused:
            name = refused[0]
            raise ConfigError(
                f"{name}: expected {reader}, which reads it. Received: "
                f"{name}={getattr(self, name)!r} with network={self.network!r}. Leave it out."
            )

    @property
    def network_title(self) -> str:
        """Network in short: "builtin", "MobileNetV2", "resnet20"."""
        module, _, name = self.network.rpartition(":")
        is_file = self.network.endswith(".keras") or module.endswith(".py")
        return Path(module or name).stem if is_file else name

    @property
    def title(self) -> str:
        """Network and norm in short: "gn", "MobileNetV2-gn", "resnet20-FRN"."""
        norm = self.norm.rpartition(":")[2]
        return norm if self.is_builtin else f"{self.network_title}-{norm}"

    @property
    def is_builtin(self) -> bool:
        """Whether the network is the built-in one."""
        return self.network == BUILTIN

    @property
    def normalized_widths(self) -> tuple[int, ...]:
        """Channels of the convolutions that a norm follows."""
        sizes = [size for _, count, size in SKELETON for _ in range(count)]
        pairs = zip(self.widths, sizes, strict=True)
        return tuple(width for width, size in pairs if size > 1 or self.norm_transitions)


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Checked):
    """The images: where they come from, how they are preprocessed and augmented."""

    data: str = _field(
        "auto",
        "Data set: cifar10, cifar100, fashion_mnist, mnist, shapes, auto (cifar10 if it is cached "
        f"or can be downloaded, else shapes), or a path: {'; '.join(DATA_FORMS.values())}.",
    )
    image_size: tuple[int, ...] = _field(
        (),
        "Height and width to resize all images to, H,W (one number: both); by default images stay "
        "as they are and must be of one size.",
        low=1,
        high=65536,
    )
    resize: str = _field(
        "stretch",
        "How --image-size resizes: stretch to the new shape; crop the middle to it; or pad with "
        "black to it.",
        choices=("stretch", "crop", "pad"),
    )
    train_size: int = _field(
        0, "Number of training images; 0 uses all (shapes: 5,000).", low=0, high=10_000_000
    )
    test_size: int = _field(
        0, "Number of test images; 0 uses all (shapes: 1,000).", low=0, high=10_000_000
    )
    validation: int = _field(
        0, "Number of training images to hold out for validation, stratified by class.", low=0
    )
    preprocessing: str = _field(
        "standardize",
        "Preprocessing of the pixels before the first convolution.",
        choices=("standardize", "scale", "none", "equalize"),
    )
    flip: float = _field(0.0, "Probability of a horizontal flip.", low=0.0, high=1.0)
    alternating_flip: bool = _field(False, "Flip each image in every other epoch.")
    translate: int = _field(
        0,
        "Largest random shift, in pixels, or -1 for an eighth of the shorter side; edges are "
        "reflected.",
        low=-1,
    )
    shift_scale_rotate: float = _field(
        0.0,
        "Probability of a random shift (10 %), scale (10 %) and rotation (15 degrees).",
        low=0.0,
        high=1.0,
    )
    cutout: float = _field(0.0, "Probability of a square hole in the mean color.", low=0, high=1)
    cutout_size: int = _field(
        16,
        "Side of the cutout hole, in pixels.",
        low=1,
        read_if=lambda config: config.data.cutout > 0,
        needs="a cutout above 0",
    )
    gray: float = _field(0.0, "Probability of conversion to gray.", low=0.0, high=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        size = list(self.image_size)
        expect(len(size) <= 2, "image_size", "a height and a width, H,W", size)
        if len(size) == 1:
            object.__setattr__(self, "image_size", self.image_size * 2)
        if self.resize != "stretch" and not self.image_size:
            raise ConfigError(
                "resize: expected image_size beside it, since nothing is resized without it. "
                f"Received: resize={self.resize!r} alone. Give --image-size H,W too."
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Checked):
    """The training: backend, device, optimizer, schedule and length."""

    backend: str = _field(
        "auto", "Keras backend; auto uses the first installed.", choices=("auto", *BACKENDS)
    )
    engine: str = _field(
        "native",
        "Training engine: native (this package's own, for torch and tensorflow) or keras "
        "(model.fit, which jax always uses).",
        choices=("native", "keras"),
        read_if=lambda config: config.train.backend != "jax",
        needs="a backend other than jax",
    )
    device: str = _field("auto", "Device: auto, cpu, gpu, or one by number such as cuda:1.")
    devices: int = _field(
        1, "Number of local devices to train on (tensorflow only; use torchrun with torch).", low=1
    )
    bn_sync: str = _field(
        "on",
        "Statistics of bn on several devices: over the whole batch (on) or over each device's "
        "shard (off).",
        choices=("on", "off"),
        needs="several devices",  # of which torchrun and TF_CONFIG say nothing in the config
    )
    precision: str = _field(
        "float32",
        "Floating-point type of the layers; auto, which fit takes, is mixed_bfloat16 on devices "
        "that multiply bfloat16, else float32.",
        choices=("float32", "mixed_bfloat16", "auto"),
    )
    fused: bool = _field(
        True,
        "Compute each norm, its activation, dropout and residual add in one pass (native engines "
        "of torch and tensorflow, on CPUs with a C++ compiler).",
        read_if=lambda config: config.train.engine == "native" and config.train.backend != "jax",
        needs="engine=native, which jax has not",
    )
    deterministic: bool = _field(
        False,
        "Make runs on a GPU bitwise reproducible, at lower speed; on a CPU they always are. The "
        "bits depend on the device and the number of threads (torch: OMP_NUM_THREADS, tensorflow: "
        "TF_NUM_INTRAOP_THREADS).",
    )
    seed: int = _field(
        0, "Seed of image order, augmentation, dropout and initial weights.", low=0, high=2**31 - 1
    )
    epochs: int = _field(20, "Number of passes over the training images.", low=1, high=100_000)
    batch_size: int = _field(128, "Images per step.", low=1)
    optimizer: str = _field(
        "adamw",
        "Optimizer; sgd has Nesterov momentum, muon trains kernels and leaves vectors to adamw.",
        choices=("adam", "adamw", "sgd", "muon"),
    )
    learning_rate: float = _field(0.01, "Peak learning rate.", low=0.0)
    momentum: float = _field(
        0.9,
        "Nesterov momentum of sgd and muon.",
        low=0.0,
        high=1.0,
        read_if=lambda config: config.train.optimizer in ("sgd", "muon"),
        needs="optimizer=sgd or muon",
    )
    weight_decay: float = _field(
        0.05, "Decoupled decay of the kernels, times the learning rate; adam has none.", low=0.0
    )
    schedule: str = _field(
        "triangular",
        "Learning rate schedule.",
        choices=("triangular", "onecycle", "cosine", "constant"),
    )
    warmup: float = _field(
        0.25,
        "Share of the steps before the peak rate; constant has none.",
        low=0.0,
        high=1.0,
        read_if=lambda config: config.train.schedule != "constant",
        needs="a schedule that changes",
    )
    log: tuple[str, ...] = _field(
        (),
        "Log the run for another tool too: in its folder, or, mlflow, in the store that "
        "MLFLOW_TRACKING_URI names; repeatable.",
        choices=LOGGERS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        kind, _, number = self.device.partition(":")
        is_numbered = kind == "cuda" and number.isascii() and number.isdecimal()
        is_device = is_numbered or self.device in ("auto", "cpu", "gpu")
        expect(is_device, "device", "auto, cpu, gpu or a device such as cuda:1", self.device)
        if self.optimizer == "adam" and self.weight_decay > 0:
            raise ConfigError(
                "weight_decay: expected 0 with adam, whose decoupled form is adamw. "
                f"Received: optimizer='adam', weight_decay={self.weight_decay}. "
                "Use --optimizer adamw, --weight-decay 0, or --l2."
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides what a run computes; `resolve` makes it.

    Attributes:
        recipe: Name of the recipe whose values it started from.
        model: Fields of the network.
        data: Fields of the images.
        train: Fields of the training.
    """

    recipe: str
    model: ModelConfig
    data: DataConfig
    train: TrainConfig

    @property
    def fields(self) -> dict[str, Any]:
        """The recipe and the fields of all sections, by name; `resolve` makes the config again."""
        return {name: field_value(self, name) for name in ("recipe", *SETTINGS)}

    def to_dict(self) -> dict[str, Any]:
        """Returns the config as nested dicts of plain values, ready for TOML and JSON."""
        sections = {name: plain(getattr(self, name)) for name in SECTIONS}
        return {"recipe": self.recipe} | sections

    def hash(self) -> str:
        """Returns 12 hexadecimal digits that change when any field but `UNCOMPARED` changes."""
        plain = self.replace(**{name: SETTINGS[name].field.default for name in UNCOMPARED})
        document = plain.to_dict()
        for section, field in (SETTINGS[name] for name in ADDED):
            if getattr(getattr(plain, section), field.name) == field.default:
                del document[section][field.name]
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
    """One field of the config and the section that holds it."""

    section: str
    field: "dataclasses.Field[Any]"


SETTINGS: dict[str, Setting] = {
    field.name: Setting(section, field)
    for section, cls in SECTIONS.items()
    for field in dataclasses.fields(cls)
}


def check_value(field: "dataclasses.Field[Any]", value: Any) -> Any:
    """Returns `value` in the type of `field`.

    Numbers and arrays of NumPy become Python's own, and paths text.

    Raises:
        ConfigError: The value has another type, or is not among the choices or in the range.
    """
    name, meta, kind = field.name, field.metadata, type(field.default)
    found = plain(value)
    if kind is tuple and meta["choices"]:
        names = (found,) if isinstance(found, str) else found
        is_right = is_list(names) and all(n in (*meta["choices"],) for n in names)
        expect(is_right, name, f"a list of {', '.join(meta['choices'])}", value)
        return tuple(dict.fromkeys(names))
    if kind is tuple:
        expect(is_list(found), name, "a list of whole numbers", value)
        return tuple(_check_number(name, item, int, meta) for item in found)
    if kind in (bool, str):
        expected = "true or false" if kind is bool else "text"
        if callable(value) and name in ("network", "norm"):
            expected = "text, package.module:name or file.py:name of your code"
        expect(isinstance(found, kind), name, expected, value)
        is_right = not meta["choices"] or found in meta["choices"] or meta["others"](found)
        expect(is_right, name, f"one of {', '.join(meta['choices'])}", value)
        return found
    return _check_number(name, value, kind, meta)


def _check_number(name: str, value: Any, kind: type, meta: Mapping[str, Any]) -> Any:
    low, high = meta["low"], meta["high"]
    found = plain(value)  # None for NaN and infinity
    is_right = is_number(found) and abs(found) <= LARGEST and kind(found) == found
    is_right = is_right and (low is None or found >= low) and (high is None or found <= high)
    expected = "a whole number" if kind is int else "a number"
    expected += f" of at least {low}" if low is not None else ""
    expected += f" and at most {high}" if high is not None else ""
    expect(is_right, name, expected, value)
    return kind(found)


def unknown(kind: str, name: object, known: Iterable[str]) -> ConfigError:
    """Returns the error for an unknown name; it suggests the nearest known names."""
    if not isinstance(name, str):
        return ConfigError(
            f"{kind}: expected a name, one of {', '.join(known)}. Received: {described(name)}"
        )
    if new := (RENAMED | RENAMED_ARGUMENTS).get(name):
        return ConfigError(f"Unknown {kind}: {name!r}. It is now called {new}.")
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3)
    advice = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}."
    return ConfigError(f"Unknown {kind}: {name!r}. {advice}")


def build_config(recipe: str, values: Mapping[str, Any]) -> Config:
    """Returns the config with these fields, named without their section, and defaults elsewhere.

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


def field_value(config: Config, name: str) -> Any:
    """Returns the value of a field named without its section, or of `recipe`."""
    if name == "recipe":
        return config.recipe
    return getattr(getattr(config, SETTINGS[name].section), name)


def reads(config: Config, name: str) -> bool:
    """Returns whether a field changes what a run with these values of the others computes."""
    if name == "recipe":
        return True
    norm, is_read = config.model.norm, SETTINGS[name].field.metadata["read_if"](config)
    # A network, or a norm, of the user's may be one with batch norms.
    is_own = owner(name) in (None, norm) or (name == "bn_sync" and is_foreign(norm))
    return bool(is_read and is_own)


def flatten(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of all sections in one dict, without the recipe's name.

    Raises:
        ConfigError: A section is unknown or no table, or it holds a field that is not its own.
    """
    flat: dict[str, Any] = {}
    for section, values in document.items():
        if section == "recipe":
            continue
        if section not in SECTIONS:
            raise unknown("config section", section, ["recipe", *SECTIONS])
        expect(isinstance(values, Mapping), section, "a table of fields", values)
        for given, value in values.items():
            name = RENAMED.get(str(given), str(given))
            if name not in SETTINGS or SETTINGS[name].section != section:
                names = [n for n, setting in SETTINGS.items() if setting.section == section]
                raise unknown(f"field of [{section}]", name, names)
            flat[name] = value
    return flat


def defaults(recipe: str) -> dict[str, str]:
    """Returns the default of each field as text: "64", or "false; gn, ln: true"."""
    common, by_norm = _recipe_values(recipe)
    texts = {name: value_word(value) for name, value in common.items()}
    own: dict[str, dict[str, list[str]]] = {}
    for norm, values in by_norm.items():
        for name, value in values.items():
            if owner(name) is None:
                own.setdefault(name, {}).setdefault(value_word(value), []).append(norm)
            else:
                texts[name] = value_word(value)
    for name, norms_by_text in own.items():
        parts = [f"{', '.join(norms)}: {text}" for text, norms in norms_by_text.items()]
        texts[name] = "; ".join([texts[name], *parts])
    return texts


def _recipe_values(recipe: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Returns the values of a recipe that all norms share, and by norm those of its own."""
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    document = _recipe_document(recipe)
    common = {name: values for name, values in document.items() if name != "norms"}
    by_norm = {norm: flatten(values) for norm, values in document.get("norms", {}).items()}
    return build_config(recipe, flatten(common)).fields, by_norm


def value_word(value: Any) -> str:
    """Returns the value of a field as it is typed: "true", "64", "16,32"."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


@functools.cache
def _recipe_document(name: str) -> Mapping[str, Any]:
    path = resources.files("kerasnorm") / "recipes" / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def published(recipe: str, data: str) -> dict[str, Any]:
    """Returns what others published for a recipe on a data set; see `recipes/published.toml`.

    Returns:
        `source`, `epochs`, and for each norm a dict of its measures and fields; empty where
        nothing was published.
    """
    return _recipe_document("published").get(recipe, {}).get(data, {})


def config_of_call(config: Config | None, overrides: Mapping[str, Any]) -> Config:
    """Returns the config that a call of `fit` or `inputs` asks for.

    The overrides are fields by name, which are resolved alone without a config.

    Raises:
        ConfigError: It is no config, a name is unknown or a value is out of range.
    """
    expected = "a kerasnorm.Config, or fields by name: norm='bn', epochs=5"
    expect(config is None or isinstance(config, Config), "config", expected, config)
    return config.replace(**overrides) if config else resolve(overrides)


def check_precision(config: Config) -> None:
    """Makes sure that a config's precision is known, where there is no device yet to choose it by.

    Raises:
        ConfigError: It is "auto".
    """
    expected = "'float32' or 'mixed_bfloat16', since only fit chooses by its device"
    expect(config.train.precision != "auto", "precision", expected, config.train.precision)


def resolve(
    overrides: Mapping[str, Any] | None = None, document: Mapping[str, Any] | None = None
) -> Config:
    """Returns the full config: the recipe's values, then those of the file, then the overrides.

    A recipe has some values for one norm only. A value from a file or an override holds for every
    norm: a run's `config.toml` holds every field, so that overriding `norm` changes only the norm.

    Args:
        overrides: Field name → value, without sections; `recipe` may be among them.
        document: Contents of a config file: `recipe` and the sections, each optional.

    Raises:
        ConfigError: A name is unknown or a value is out of range.
    """
    for name, given in (("overrides", overrides), ("document", document)):
        is_table = given is None or isinstance(given, Mapping)
        expect(is_table, name, "a dict of config fields, or None", given)
    chosen, document = dict(overrides or {}), document or {}
    network = str((flatten(document) | chosen).get("network", BUILTIN))
    default = DEFAULT_RECIPE if network == BUILTIN else FOREIGN_RECIPE
    written = document.get("recipe", chosen.get("recipe", default))
    recipe = chosen.pop("recipe", written)
    if recipe != written:
        raise ConfigError(
            f"recipe: the config file holds the values of recipe={written!r}. "
            f"Received: recipe={recipe!r}. Leave one of the two out."
        )
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    given = flatten(document) | chosen
    plan = _recipe_document(recipe)
    values = flatten({k: v for k, v in plan.items() if k != "norms"})
    norm = str(given.get("norm", values.get("norm", "gn")))
    values |= flatten(plan.get("norms", {}).get(norm, {}))
    if network != BUILTIN:
        values = {
            name: value
            for name, value in values.items()
            if SETTINGS[name].section != "model" or name in EVERY_NETWORK
        } | {"norm": KEEP, "groups": 32}
    if given.get("optimizer") == "adam":
        values["weight_decay"] = 0.0  # the recipe's decay is for its own optimizer
    if "group_size" in given:
        values["groups"] = 0  # a group count would override the size
    if "group_size" in chosen and "groups" not in chosen:
        given["groups"] = 0  # and so would a file's
    return build_config(recipe, values | given)


def values_of_all_norms(recipe: str) -> dict[str, Any]:
    """Returns the recipe's common values of the fields to which it gives some norm its own.

    With these as overrides, two norms differ only in fields that one of them alone reads.
    """
    common, by_norm = _recipe_values(recipe)
    tuned = {name for values in by_norm.values() for name in values}
    return {name: common[name] for name in tuned if owner(name) is None}


def tuned_values(recipe: str) -> dict[str, dict[str, Any]]:
    """Returns by norm the recipe's values of the fields to which it gives some norm its own.

    Fields that one norm alone reads are left out.
    """
    common, by_norm = _recipe_values(recipe)
    return {
        name: {norm: by_norm.get(norm, {}).get(name, common[name]) for norm in NORMS}
        for name in values_of_all_norms(recipe)
    }


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the contents of a TOML config file.

    Raises:
        ConfigError: The file cannot be read or is not valid TOML.
    """
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        raise ConfigError(f"Cannot read the config {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config {path} is not valid TOML: {error}.") from None


def to_toml(config: Config) -> str:
    """Returns the config as TOML, from which `resolve(document=...)` makes the same config."""
    import tomli_w

    document = config.to_dict()
    if not config.model.is_builtin:
        document["model"] = {name: document["model"][name] for name in EVERY_NETWORK}
    return tomli_w.dumps(document)
