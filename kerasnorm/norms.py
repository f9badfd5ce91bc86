"""The normalization layers, one record each, from which everything about a norm is derived.

A norm is y = gamma * (x - mean) / sqrt(variance + epsilon) + beta with the biased variance, x of
shape (N, H, W, C). Norms differ in the values that share a mean and a variance, in the shape of
gamma and beta, and in the terms that they leave out. To add a norm, add its record to `BUILT_IN`.
"""

import importlib
import inspect
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kerasnorm import user_code
from kerasnorm.errors import ConfigError, described, error_text, expect

if TYPE_CHECKING:
    import keras
    import numpy as np
    from numpy.typing import NDArray

    from kerasnorm.config import ModelConfig

# Takes the number of channels and the name of the layer.
LayerFactory = Callable[[int, str], "keras.layers.Layer"]
EPSILON = 1e-5  # of every norm, and of weight standardization
COMPARED = ("bn", "gn", "ln")  # what studies and benchmarks compare by default
MOVED = 1e-6  # smallest change of an output that counts; rounding of float32 is 1e-7
FREE_SIZE = 4  # of an axis whose size a model leaves open, where a layer is tried
KEEP = "keep"  # as a norm: a network other than the built-in one stays as it is
CENTERED = "y = gamma * (x - mean) / sqrt(variance + epsilon) + beta"


@dataclass(frozen=True)
class FinalStep:
    """What a norm does to its scaled and shifted values, with one more learned variable.

    Attributes:
        name: What the values are afterwards, such as "thresholded".
        variable: Name of the layer's variable, which has one value per channel.
        apply: Takes the scaled and shifted values (N, H, W, C) and the variable (C,) as NumPy
            arrays and returns the output of the norm.
        neutral: Value of the variable at which the step changes nothing.
    """

    name: str
    variable: str
    apply: "Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]"
    neutral: float


@dataclass(frozen=True, kw_only=True)
class NormFacts:
    """Facts about a norm, in words.

    Attributes:
        name: Full name.
        over: Which values share statistics.
        formula: Formula in plain text.
        source: Paper that introduced it.
        users: Who uses it today and why, each with its source.
        caution: What popular accounts get wrong, or where it fails.
    """

    name: str
    over: str
    formula: str = CENTERED
    source: str
    users: tuple[str, ...] = ()
    caution: str = ""


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A norm: how its layer is made and what it computes.

    Attributes:
        name: Short name, which `--norm` takes.
        layer: Takes the network's config, the number of channels and the common arguments of a
            Keras layer, and returns the layer; None where nothing is normalized. Its variables
            gamma, beta and so on have one value per channel. A layer with moving statistics calls
            them `moving_mean` and `moving_variance`, of shape (C,) and not trainable, and the share
            of the old value in them `momentum`. In mixed precision the layer casts its input to
            float32, and its output to `compute_dtype`. A class of your own stands in a module that
            this function imports, so that importing `norms` needs no Keras, and is registered with
            `keras.saving.register_keras_serializable(package="kerasnorm")`.
        color: Color of its curves and points, as #RRGGBB.
        facts: What is known about it; None where there is nothing to explain.
        groups: Takes the network's config and the number of channels and returns the number of
            groups of channels.
        axes: Axes that share statistics, of x seen as (N, H, W, groups, C / groups). Empty for a
            norm that the formula above does not describe: `explain` then only observes its layer.
        is_centered: Whether the mean is subtracted; otherwise the statistic is the mean square.
        scale: Name of the layer's variable gamma.
        shift: Name of the layer's variable beta, None where there is none.
        final: Step after scale and shift, None where there is none.
        fields: Config fields that no other norm reads.

    Raises:
        ConfigError: The color is not written as #RRGGBB.
    """

    name: str
    layer: "Callable[..., keras.layers.Layer] | None"
    color: str
    facts: NormFacts | None = None
    groups: "Callable[[ModelConfig, int], int]" = lambda config, channels: 1
    axes: tuple[int, ...] = ()
    is_centered: bool = True
    scale: str = "gamma"
    shift: str | None = "beta"
    final: FinalStep | None = None
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        is_right = re.fullmatch("#[0-9A-Fa-f]{6}", str(self.color)) is not None
        expect(is_right, "color", "text such as #0072B2", self.color)

    @property
    def label(self) -> str:
        """Name in figures and tables: "BN" for bn."""
        if self.name == KEEP:
            return "own norms"
        if user_code.is_named(self.name):
            return self.name.rpartition(":")[2]
        return self.name.upper() if self.layer else "no norm"


def _groups(config: "ModelConfig", channels: int) -> int:
    """Returns the number of groups of gn; a ConfigError lists those that divide the channels."""
    if config.groups:
        name, value, groups = "groups", config.groups, config.groups
    else:
        name, value, groups = "group_size", config.group_size, channels // config.group_size
    if groups < 1 or channels % groups or (not config.groups and channels % config.group_size):
        raise ConfigError(
            f"{name}: expected a divisor of {channels}, the channels of a layer that gn "
            f"normalizes: {_divisors(channels)}. Received: {name}={value}"
        )
    return groups


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def check_groups(config: "ModelConfig") -> None:
    """Makes sure that the groups of a norm divide the channels of all layers that it normalizes.

    Raises:
        ConfigError: They do not; for gn the message lists the numbers that fit every layer.
    """
    widths, groups = config.normalized_widths, NORMS[config.norm].groups
    try:
        for width in widths:
            groups(config, width)
    except ConfigError as error:
        if groups is not _groups:
            raise
        raise ConfigError(
            f"{error}. The norms of this network, over "
            f"{', '.join(map(str, sorted(set(widths))))} channels, all take "
            f"{_divisors(math.gcd(*widths))}."
        ) from None


def _keras() -> ModuleType:
    """Returns the module of Keras's layers, imported when the first layer is made."""
    return importlib.import_module("keras.layers")


def _grouped(config: "ModelConfig", channels: int, **common: Any) -> "keras.layers.Layer":
    groups = NORMS[config.norm].groups(config, channels)
    return _keras().GroupNormalization(groups=groups, epsilon=EPSILON, **common)


def _layer(config: "ModelConfig", channels: int, **common: Any) -> "keras.layers.Layer":
    if config.ln_affine == "element":
        return _keras().LayerNormalization(axis=(1, 2, 3), epsilon=EPSILON, **common)
    return _grouped(config, channels, **common)


# Colors of norms in the user's code, each of which takes one by its name: those of Paul Tol's that
# look like no built-in one.
USER_COLORS = ("#332288", "#999933", "#882255", "#661100")
# The colors are Okabe & Ito's palette, which color-blind readers can tell apart; its yellow is too
# faint on white.
BUILT_IN = (
    Norm(
        name="bn",
        layer=lambda config, channels, **common: _keras().BatchNormalization(
            momentum=config.bn_momentum, epsilon=EPSILON, **common
        ),
        color="#0072B2",
        groups=lambda config, channels: channels,
        axes=(0, 1, 2, 4),
        fields=("bn_momentum", "bn_sync"),
        facts=NormFacts(
            name="Batch Normalization",
            over="N, H, W: one mean and variance per channel, shared by the whole batch",
            source="Ioffe & Szegedy 2015, arXiv 1502.03167",
            users=(
                "ResNet (arXiv 1512.03385) and EfficientNet (arXiv 1905.11946).",
                "At inference it is a fixed scale and shift, which folds into a convolution: free.",
            ),
            caution="Less 'internal covariate shift' does not explain its benefit: with noise "
            "injected behind it, which shifts the distributions again, it trains as well. A "
            "smoother loss is one explanation (Santurkar et al. 2018, arXiv 1805.11604), larger "
            "usable learning rates another (Bjorck et al. 2018, arXiv 1806.02375). With few images "
            "per batch its statistics are noisy (Wu & He, arXiv 1803.08494, figure 1).",
        ),
    ),
    Norm(
        name="gn",
        layer=_grouped,
        color="#D55E00",
        groups=_groups,
        axes=(1, 2, 4),
        fields=("groups", "group_size"),
        facts=NormFacts(
            name="Group Normalization",
            over="H, W and the channels of a group: one mean and variance per image and group",
            source="Wu & He 2018, arXiv 1803.08494",
            users=(
                "BiT (arXiv 1912.11370), with weight standardization, at any batch size.",
                "Diffusion U-Nets (DDPM, arXiv 2006.11239): few large images per device.",
            ),
            caution="One group is ln over H, W, C; as many groups as channels is instance "
            "normalization.",
        ),
    ),
    Norm(
        name="ln",
        layer=_layer,
        color="#009E73",
        axes=(1, 2, 4),
        fields=("ln_affine",),
        facts=NormFacts(
            name="Layer Normalization over H, W, C",
            over="H, W, C: one mean and variance per image",
            source="Ba et al. 2016, arXiv 1607.06450",
            users=("PoolFormer (arXiv 2111.11418), as Group Normalization with one group.",),
            caution="Three different things are called layer norm of images: over H, W, C with a "
            "scale and shift per element (PyTorch's LayerNorm((C, H, W)); ties the model to one "
            "image size), the same with one per channel (GroupNorm with one group), and over C at "
            "each pixel (lnc).",
        ),
    ),
    Norm(
        name="lnc",
        layer=lambda config, channels, **common: _keras().LayerNormalization(
            axis=-1, epsilon=EPSILON, **common
        ),
        color="#CC79A7",
        axes=(4,),
        facts=NormFacts(
            name="Layer Normalization over channels",
            over="C: one mean and variance per pixel",
            source="Ba et al. 2016, arXiv 1607.06450; on images as in ConvNeXt, arXiv 2201.03545",
            users=(
                "ConvNeXt (arXiv 2201.03545): it depends on neither the batch nor the image size.",
                "Vision and Swin Transformers (arXiv 2010.11929, 2103.14030); a pixel is a token.",
            ),
            caution="It is what 'layer norm' means in transformers, not what it means in PyTorch "
            "examples for images; see ln.",
        ),
    ),
    Norm(
        name="in",
        layer=_grouped,
        color="#E69F00",
        groups=lambda config, channels: channels,
        axes=(1, 2, 4),
        facts=NormFacts(
            name="Instance Normalization",
            over="H, W: one mean and variance per image and channel",
            source="Ulyanov et al. 2016, arXiv 1607.08022",
            users=(
                "Style transfer (AdaIN, arXiv 1703.06868): mean and variance are the style.",
                "Medical segmentation (nnU-Net, arXiv 1904.08128): batches of two volumes.",
            ),
            caution="It removes each channel's mean and scale from each image, which a classifier "
            "may need; on a map of one pixel it erases everything.",
        ),
    ),
    Norm(
        name="rms",
        layer=lambda config, channels, **common: _keras().RMSNormalization(
            axis=-1, epsilon=EPSILON, **common
        ),
        color="#56B4E9",
        axes=(4,),
        is_centered=False,
        scale="scale",
        shift=None,
        facts=NormFacts(
            name="Root Mean Square Normalization",
            over="C, no mean: one mean square per pixel",
            formula="y = gamma * x / sqrt(mean(x^2) + epsilon)",
            source="Zhang & Sennrich 2019, arXiv 1910.07467",
            users=("Language models (T5, arXiv 1910.10683; LLaMA, 2302.13971): cheaper than lnc.",),
            caution="It does not center: a constant added to all channels changes the direction of "
            "the output.",
        ),
    ),
    Norm(name="none", layer=None, color="#000000"),
)


class _Norms(dict[str, Norm]):
    """Records by name: those of this package and, when they are asked for, those of the user."""

    def __missing__(self, name: str) -> Norm:
        """Returns the record of `KEEP`, or that of a norm in the user's code.

        The code itself is run only where it is trusted; elsewhere the name alone is known.
        """
        if not is_foreign(name):
            raise KeyError(name)
        if name == KEEP:
            return Norm(name=name, layer=None, color="#666666")
        layer = partial(_user_layer, name)
        found = user_code.load_trusted(name, "norm")
        if isinstance(found, Norm):
            return replace(found, name=name, layer=layer)
        position = zlib.crc32(name.encode()) % len(USER_COLORS)
        return Norm(name=name, layer=layer, color=USER_COLORS[position])


def is_foreign(name: str) -> bool:
    """Returns whether a norm is none of `NORMS`, but `KEEP` or one in the user's code."""
    return name == KEEP or user_code.is_named(name)


def _user_layer(
    code: str, config: "ModelConfig", channels: int, **common: Any
) -> "keras.layers.Layer":
    """Returns the layer that a norm in the user's code makes."""
    layer = layer_factory(code, config)(channels, common.get("name", "norm"))
    if "dtype" in common:
        layer.dtype_policy = common["dtype"]
    return layer


def norm_title(norm: object) -> str:
    """Returns how a message names a norm that was given: by its name, or as module:name."""
    return f"the Norm {norm.name!r}" if isinstance(norm, Norm) else described(norm)


def layer_factory(
    norm: "str | type[keras.layers.Layer] | LayerFactory | Norm",
    config: "ModelConfig",
) -> LayerFactory:
    """Returns a function (channels, name) -> Layer for a norm of the user's own.

    Args:
        norm: Such a function; a Layer class, which receives the channels if its constructor has a
            parameter of that name; a `Norm`; or "package.module:name" of one of these.
        config: What a `Norm` receives.

    Raises:
        ConfigError: It is none of these. The function raises it where the user's code fails.
    """
    given: Any = user_code.load(norm, "norm") if isinstance(norm, str) else norm
    record = given if isinstance(given, Norm) else None
    if record is not None:
        given = record.layer
    if not callable(given):
        raise ConfigError(
            "norm: expected a keras.layers.Layer class, a function (channels, name) -> Layer, or a "
            f"kerasnorm.norms.Norm with a layer. Received: {norm_title(norm)}"
        )
    is_class = inspect.isclass(given)
    wants_channels = is_class and "channels" in inspect.signature(given).parameters

    def make(channels: int, name: str) -> "keras.layers.Layer":
        import keras

        try:
            if record is not None:
                layer = given(config, channels, name=name)
            elif wants_channels:
                layer = given(channels=channels, name=name)
            else:
                layer = given(name=name) if is_class else given(channels, name)
        except ConfigError:  # a function of this package found that the user's code fails
            raise
        except (Exception, SystemExit) as error:  # it is the user's code, which may raise anything
            raise ConfigError(
                f"norm: {norm_title(norm)} with {channels} channels raised {error_text(error)}"
            ) from error
        if not isinstance(layer, keras.layers.Layer) or layer.name != name:
            raise ConfigError(
                f"norm: expected {norm_title(norm)} to return a Keras layer named {name!r}. "
                f"Received: {described(layer)}"
            )
        return layer

    return make


def built(layer: "keras.layers.Layer", shape: Sequence[int | None]) -> "keras.layers.Layer":
    """Returns a layer of the user's own, built for inputs of a shape, which it must keep.

    Raises:
        ConfigError: It fails on such inputs, or changes the shape.
    """
    import keras

    name = f"{layer.name!r}, a {type(layer).__name__},"
    try:
        layer.build(tuple(shape))
        sizes = tuple(size or FREE_SIZE for size in shape)
        found = layer.compute_output_spec(keras.KerasTensor(sizes))
    except (Exception, SystemExit) as error:  # it is the user's code, which may raise anything
        raise ConfigError(
            f"norm: {name} with inputs of shape {tuple(shape)} raised {error_text(error)}"
        ) from error
    if getattr(found, "shape", None) != sizes:
        raise ConfigError(
            f"norm: expected outputs of the shape of the inputs, {sizes}. Received: {name} with "
            f"outputs of shape {getattr(found, 'shape', None)}"
        )
    return layer


def without_zeros(layer: "keras.layers.Layer", kept: str = "") -> None:
    """Sets to 1 what is 0 in the trainable variables of a built layer, which is then only observed.

    A scale that begins at 0, as that of a residual branch often does, hides all that it multiplies.
    The variable of the name `kept` stays as it is.
    """
    import keras

    for variable in layer.trainable_variables:
        if variable.name != kept:
            values = keras.ops.convert_to_numpy(variable.value)
            variable.assign(values + (values == 0))


def moved_outputs(
    layer: "keras.layers.Layer", shape: Sequence[int], index: tuple[int, ...], draws: int
) -> "NDArray[np.bool_]":
    """Returns which outputs of a built layer in training change when its input at `index` does.

    The input is (N, …, C). Each call begins with the layer's variables, random generators too, as
    they are. An output counts that changes with one of `draws` random inputs.
    """
    import keras
    import numpy as np

    def outputs(values: Any) -> Any:
        with keras.StatelessScope():
            return keras.ops.convert_to_numpy(layer(values, training=True))

    has_moved = np.zeros(shape, bool)
    for seed in range(draws):
        x = np.random.Generator(np.random.PCG64(seed)).normal(size=shape).astype(np.float32)
        moved = x.copy()
        moved[index] += max(1.0, x.size / 100)  # so that means over many values move enough
        has_moved |= np.abs(outputs(moved) - outputs(x)) > MOVED
    return has_moved


NORMS: dict[str, Norm] = _Norms({norm.name: norm for norm in BUILT_IN})


def register(norm: Norm) -> None:
    """Adds a norm to `NORMS`; afterwards all functions in this process accept its name.

    Raises:
        ConfigError: The name is taken.
    """
    if norm.name in NORMS:
        raise ConfigError(f"norm: expected a name that is not taken. Received: {norm.name!r}")
    NORMS[norm.name] = norm


def normalization(
    config: "ModelConfig", channels: int, **common: Any
) -> "keras.layers.Layer | None":
    """Returns the Keras layer that normalizes a (N, H, W, C) tensor, or None for norm="none".

    `common` are arguments that all Keras layers take, such as `name` and `dtype`.

    Raises:
        ConfigError: The groups do not divide the channels.
    """
    make = NORMS[config.norm].layer
    return make(config, channels, **common) if make else None


def owner(field: str) -> str | None:
    """Returns the norm that alone reads a config field, None for a field that all norms read."""
    return next((norm.name for norm in NORMS.values() if field in norm.fields), None)
