"""Every norm of a network replaced by another, or removed, or frozen."""

import math
from collections.abc import Sequence
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import keras

from kerasnorm import user_code
from kerasnorm.config import ModelConfig, unknown
from kerasnorm.conversion.rebuild import Tap, rebuild, refuse_hidden, run_tapped
from kerasnorm.conversion.result import (
    EXACT,
    Conversion,
    ConvertedLayer,
    compared,
    difference,
    probe_inputs,
)
from kerasnorm.errors import ConfigError, described
from kerasnorm.inspection.graph import Calls, layers, may_be_own_norm
from kerasnorm.keras_settings import stock_keras
from kerasnorm.layers import StandardizedConv2D, custom_layers, is_instance_norm
from kerasnorm.norms import KEEP, NORMS, LayerFactory, Norm, built, layer_factory, norm_title

DEFAULT_GROUPS = 32  # Wu & He 2018
STOCK = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)
# Settings that Keras's norms share, and that a replacement takes over.
SHARED = (
    *("center", "beta_initializer", "beta_regularizer", "beta_constraint"),
    *("scale", "gamma_initializer", "gamma_regularizer", "gamma_constraint"),
)
# Names of the weights of the scale and of the shift.
ROLES = {"scale": ("gamma", "scale"), "shift": ("beta",)}
MOVING_NOTE = (
    "The moving statistics of the new batch norms are those of an untrained layer: train the "
    "network, or measure them with kerasnorm recalibrate."
)


class Replaced(NamedTuple):
    """A copy of a network with other norms."""

    model: keras.Model  # the copy, uncompiled
    calls: Calls  # the calls of the given network
    # Its norms, each with its channels and the positions of its smallest map.
    found: Sequence[tuple[Any, int, int | None]]
    replaced: dict[int, Any]  # what took the place of a layer, by its `id`; None where removed
    notes: Sequence[str]  # sentences about what was left as it was


@stock_keras
def convert_norm(
    model: keras.Model,
    norm: "str | type[keras.layers.Layer] | LayerFactory | Norm",
    *,
    groups: int | None = None,
    group_size: int | None = None,
    weight_standardization: bool = False,
) -> Conversion:
    """Returns a copy of a network in which every norm is replaced by another.

    Batch, group, layer, RMS and instance norms over channels are replaced, in nested models and in
    a Sequential too; a layer that is the wanted norm already stays. Scale and shift are carried
    over where their shapes agree, and all other weights always. Names, regularizers, dtype
    policies, `trainable` and shared layers stay.

    Args:
        model: A functional or Sequential model, channels last.
        norm: A norm's name, see `kerasnorm.norms.NORMS`; "none" removes the norms and "keep"
            leaves them. Or a norm of your own: a Layer class, a function (channels, name) -> Layer,
            a `kerasnorm.norms.Norm`, or "package.module:name" of one of these.
        groups: Number of groups of "gn", by default 32: a layer takes the largest divisor of its
            channels that is at most this.
        group_size: Channels per group of "gn" instead: a layer takes the largest divisor of its
            channels that is at most this.
        weight_standardization: Whether Conv2D layers standardize their kernels. Those are changed
            from which a norm is reached before the next layer with a kernel, which leaves the
            output layer and squeeze-and-excite blocks as they are.

    Raises:
        ConfigError: The model has no norms, or holds one that cannot be converted; the number of
            groups divides the channels of no layer; the norm is unknown or fails.
    """
    done = replace_norms(model, norm, groups, group_size, weight_standardization)
    rows, notes = _rows(model, done.calls, done.found, done.replaced), [*done.notes]
    if any(isinstance(new, keras.layers.BatchNormalization) for new in done.replaced.values()):
        notes.append(MOVING_NOTE)
    return compared(model, done.model, rows, notes=notes)


@stock_keras
def replace_norms(
    model: keras.Model,
    norm: "str | type[keras.layers.Layer] | LayerFactory | Norm",
    groups: int | None = None,
    group_size: int | None = None,
    weight_standardization: bool = False,
) -> Replaced:
    """Returns the network that `convert_norm` makes, without measuring what it changed."""
    factory = None
    if not isinstance(norm, str) or ":" in norm:
        if isinstance(norm, str):
            user_code.load(norm, "norm")  # its errors say more than those of a config
        settings = ModelConfig(norm=norm) if isinstance(norm, str) else ModelConfig()
        factory = layer_factory(norm, settings)
    elif norm not in (*NORMS, KEEP):
        raise unknown("norm", norm, [*NORMS, KEEP])
    if (groups is not None or group_size is not None) and norm != "gn":
        raise ConfigError(
            f"groups and group_size: only gn reads them. Received: norm={norm_title(norm)}"
        )
    calls = Calls(model)
    found = _norms(model, calls)
    if norm == "gn":
        _check_groups([channels for _, channels, _ in found], groups, group_size)
    inputs = {id(node.operation): node.input_tensors for node in reversed(calls.nodes)}
    replaced: dict[int, Any] = {}
    for layer, channels, positions in found:
        if factory is not None:
            new = factory(channels, layer.name)
            new.dtype_policy = layer.dtype_policy
            replaced[id(layer)] = built(new, inputs[id(layer)][0].shape)
        elif norm == "none":
            replaced[id(layer)] = None
        elif norm != KEEP:
            count = fitting_groups(channels, positions, groups, group_size)
            new = _stock(str(norm), layer, channels, count)
            if not _is_same(layer, new, channels):
                _refuse_constant(layer, new, channels, positions)
                replaced[id(layer)] = new
    notes: Sequence[str] = ()
    if weight_standardization:
        chosen, notes = _standardizable(calls)
        replaced |= {id(c): StandardizedConv2D.from_config(c.get_config()) for c in chosen}
    made, _ = rebuild(model, replaced)
    _carry_over(layers(model), replaced)
    return Replaced(made, calls, found, replaced, notes)


def _norms(model: keras.Model, calls: Calls) -> list[tuple[Any, int, int | None]]:
    """Returns each norm once, with its channels and the number of positions of its smallest map.

    A map of which only the mean is read counts as one position.
    """
    kinds = (*STOCK, *custom_layers().values())
    refuse_hidden(model, kinds, "converted")
    found: dict[int, tuple[Any, int, int | None]] = {}
    for node in calls.nodes:
        layer = node.operation
        if not isinstance(layer, kinds):
            _refuse_foreign(layer, calls)
            continue
        shape = node.input_tensors[0].shape
        axes = getattr(layer, "axis", -1)
        axes = [axis % len(shape) for axis in (axes if isinstance(axes, Sequence) else [axes])]
        if len(shape) - 1 not in axes or shape[-1] is None:
            raise ConfigError(
                f"model: its norm {calls.paths[id(layer)]!r} is over axis {axes} of {shape}. "
                "Expected norms of which the last axis is the channels (channels_last)."
            )
        sizes = [_positions(size) for size in calls.shapes[id(node)]]
        if id(layer) in found:
            sizes.append(found[id(layer)][2])
        if calls.is_averaged(node):
            sizes.append(1)  # of a map that is averaged no more is left than of one position
        smallest = min((size for size in sizes if size is not None), default=None)
        found[id(layer)] = layer, shape[-1], smallest
    if not found:
        own = sorted({type(n.operation).__name__ for n in calls.nodes if may_be_own_norm(n)})
        advice = f" Layers of your own are not converted: {', '.join(own)}." if own else ""
        raise ConfigError(
            f"model: expected a network with normalization layers. Received: none.{advice}"
        )
    return list(found.values())


def _positions(shape: Sequence[int | None]) -> int | None:
    """Returns the number of positions of a map (N, …, C), None where a size is not fixed."""
    sizes = [size for size in shape[1:-1] if size is not None]
    return math.prod(sizes) if len(sizes) == len(shape) - 2 else None


def _refuse_foreign(layer: Any, calls: Calls) -> None:
    """Refuses a norm of a class of its own, which a replacement would have to understand."""
    kind = type(layer)
    is_own = kind.__module__.partition(".")[0] not in ("keras", "kerasnorm")
    if is_own and isinstance(layer, keras.Layer) and "norm" in kind.__name__.lower():
        raise ConfigError(
            f"model: its layer {calls.paths[id(layer)]!r} is a {kind.__name__}, a class that this "
            f"package does not know. Expected {', '.join(stock.__name__ for stock in STOCK)}, or a "
            "norm that kerasnorm.norms.register was given."
        )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _check_groups(widths: Sequence[int], groups: int | None, group_size: int | None) -> None:
    """Refuses a number of groups, or a size, that divides the channels of no layer."""
    if groups is not None and group_size is not None:
        raise ConfigError(
            "groups and group_size: expected one of the two. "
            f"Received: groups={groups}, group_size={group_size}"
        )
    wanted: Any
    name, wanted = ("groups", groups) if group_size is None else ("group_size", group_size)
    is_whole = isinstance(wanted, Integral) and not isinstance(wanted, bool)
    if wanted is None or (is_whole and wanted > 0 and any(width % wanted == 0 for width in widths)):
        return
    fitting = sorted({n for width in widths for n in _divisors(width)})
    raise ConfigError(
        f"{name}: expected a number that divides the channels of some norm, which are "
        f"{', '.join(map(str, sorted(set(widths))))}: one of {', '.join(map(str, fitting))}. "
        f"Received: {name}={described(wanted)}"
    )


def fitting_groups(
    channels: int,
    positions: int | None = None,
    groups: int | None = None,
    group_size: int | None = None,
) -> int:
    """Returns the number of groups that a layer takes.

    It is the largest divisor of the channels that is at most `groups`, or that makes groups of at
    most `group_size` channels. On a map of a single position groups have two channels or more,
    since a single value, normalized, is always 0; so is the mean over a map of one channel.

    Args:
        channels: Number of channels of the layer.
        positions: Number of positions of its map, 1 where only their mean is read; None where that
            is not known.
        groups: Number of groups that is wanted; 32 where neither is.
        group_size: Number of channels per group that is wanted.
    """
    sizes = [n for n in _divisors(channels) if n > 1 or positions != 1] or [channels]
    if group_size is not None:
        return channels // max((n for n in sizes if n <= group_size), default=sizes[0])
    wanted = groups or DEFAULT_GROUPS
    return max(n for n in [channels // size for size in sizes] if n <= wanted or n == 1)


def _stock(norm: str, layer: Any, channels: int, groups: int) -> Any:
    """Returns the layer that a norm's record makes, with the settings that the old one shares."""
    config = ModelConfig(norm=norm, groups=groups) if norm == "gn" else ModelConfig(norm=norm)
    make = NORMS[norm].layer
    assert make is not None
    made = make(config, channels, name=layer.name, dtype=layer.dtype_policy)
    if type(made) not in STOCK or type(layer) not in STOCK:
        return made
    old, new = layer.get_config(), made.get_config()
    return type(made).from_config(new | {key: old[key] for key in SHARED if key in {*old} & {*new}})


def _is_same(old: Any, new: Any, channels: int) -> bool:
    """Returns whether a layer is the wanted norm already, whatever its epsilon."""
    if type(old) is not type(new):
        return False
    if isinstance(old, keras.layers.GroupNormalization):
        return _group_count(old, channels) == _group_count(new, channels)
    if isinstance(old, keras.layers.LayerNormalization):
        return len(keras.tree.flatten(old.axis)) == 1
    return True


def _group_count(layer: Any, channels: int) -> int | None:
    if not isinstance(layer, keras.layers.GroupNormalization):
        return None
    return channels if layer.groups == -1 else int(layer.groups)


def _refuse_constant(old: Any, new: Any, channels: int, positions: int | None) -> None:
    """Refuses a group norm whose groups hold a single value."""
    if positions == 1 and _group_count(new, channels) == channels:
        raise ConfigError(
            f"norm: {old.name!r} normalizes a map of one position, or one of which only the mean "
            "is read, by a global average pooling: instance normalization would make that the same "
            "for every image. Expected another norm for this network."
        )


def effect_note(model: keras.Model) -> str:
    """Returns a sentence about an instance norm of which only the mean is read, "" without one."""
    calls = Calls(model)
    for node in calls.nodes:
        if is_instance_norm(node.operation) and calls.is_averaged(node):
            return (
                f"{calls.paths[id(node.operation)]} makes the mean of each channel the same for "
                "every image (instance normalization), and only this mean is read behind it: the "
                "layers before it have no effect, and learn nothing. Take another norm, groups of "
                "several channels, or an activation behind the norm (of the built-in network: "
                "--order conv-norm-act)."
            )
    return ""


def _standardizable(calls: Calls) -> tuple[list[Any], list[str]]:
    """Returns the convolutions to standardize, and sentences on the other convolutions."""
    chosen: dict[int, Any] = {}
    left: dict[str, list[str]] = {}
    for node in calls.nodes:
        layer = node.operation
        name = type(layer).__name__
        if not isinstance(layer, keras.Layer) or "Conv" not in name or id(layer) in chosen:
            continue
        if type(layer) is not keras.layers.Conv2D:
            reason = "no standardized form"
        elif math.prod(layer.kernel.shape[:3]) == 1:
            reason = "a kernel of one weight"
        elif not _reaches_norm(calls, node):
            reason = "no norm behind it"
        else:
            chosen[id(layer)] = layer
            continue
        left.setdefault(f"{name} ({reason})", []).append(calls.paths[id(layer)])
    if not chosen:
        raise ConfigError(
            "weight_standardization: expected a Conv2D with a norm behind it. Received: none"
        )
    return list(chosen.values()), [
        f"Not standardized: {len(names)} {what}, such as {names[0]}."
        for what, names in left.items()
    ]


def _reaches_norm(calls: Calls, node: Any) -> bool:
    """Returns whether a norm follows a call before the next layer with a kernel."""
    pending, seen = [node], set()
    while pending:
        for reader in calls.readers(pending.pop()):
            if reader is None or id(reader) in seen or isinstance(reader.operation, keras.Model):
                continue
            seen.add(id(reader))
            if isinstance(reader.operation, (*STOCK, *custom_layers().values())):
                return True
            weights = getattr(reader.operation, "weights", ())
            if not any(weight.name.endswith("kernel") for weight in weights):
                pending.append(reader)
    return False


def _weights(layer: Any) -> dict[str, Any]:
    """Returns the scale and the shift of a norm, those that it has."""
    named = {weight.name: weight for weight in layer.weights}
    return {role: named[name] for role, names in ROLES.items() for name in names if name in named}


def _carry_over(old_layers: Any, replaced: dict[int, Any]) -> None:
    """Gives the new layers the weights of the old ones."""
    for old in old_layers:
        new = replaced.get(id(old))
        if new is None:
            continue
        if isinstance(new, StandardizedConv2D):
            new.set_weights(old.get_weights())
            continue
        source, target = _weights(old), _weights(new)
        for role in {*source} & {*target}:
            if source[role].shape == target[role].shape:
                target[role].assign(source[role])


def _rows(
    model: keras.Model,
    calls: Calls,
    found: Sequence[tuple[Any, int, int | None]],
    replaced: dict[int, Any],
) -> list[ConvertedLayer]:
    """Returns the rows of all norms and of the other replaced layers, in the order of calls."""
    channels = {id(layer): count for layer, count, _ in found}
    changed = [old for old in layers(model) if id(old) in replaced]
    gaps = _gaps(model, changed, replaced)
    rows = []
    for old in layers(model):
        if id(old) not in channels and id(old) not in replaced:
            continue
        new = replaced.get(id(old), old)
        width = channels.get(id(old)) or old.filters
        gap = gaps.get(id(old), 0.0)
        rows.append(
            ConvertedLayer(
                name=calls.paths[id(old)],
                before=type(old).__name__,
                after="removed" if new is None else "kept" if new is old else type(new).__name__,
                groups=_group_count(new, width),
                channels=width,
                parameters=(old.count_params(), new.count_params() if new is not None else 0),
                preserves=gap <= EXACT,
                difference=gap,
                note=_note(old, new),
            )
        )
    return rows


def _note(old: Any, new: Any) -> str:
    if new is old or new is None or isinstance(new, StandardizedConv2D):
        return ""
    source, target = _weights(old), _weights(new)
    carried = [r for r in source if r in target and source[r].shape == target[r].shape]
    lost = [role for role in source if role not in carried]
    fresh = [role for role in target if role not in carried]
    changed = (("lost", lost), ("new", fresh))
    return ", ".join(f"{' and '.join(roles)} {what}" for what, roles in changed if roles)


def _gaps(model: keras.Model, changed: Sequence[Any], replaced: dict[int, Any]) -> dict[int, float]:
    """Returns the difference of the outputs of old and new layers, on the old network's values."""
    gaps: dict[int, float] = {}

    def compare(old: Any, x: Any, mask: Any) -> Any:
        new, before = replaced[id(old)], old(x, training=False)
        after = x if new is None else new(x, training=False)
        gaps[id(old)] = max(gaps.get(id(old), 0.0), difference(before, after))
        return before

    taps = {id(old): Tap(old, partial(compare, old)) for old in changed}
    run_tapped(model, taps, [probe_inputs(model)])
    return gaps


def batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Returns every BatchNormalization of a model, those inside other layers among them."""
    return [
        part
        for part in model._flatten_layers()
        if isinstance(part, keras.layers.BatchNormalization)
    ]


def freeze_batch_norms(model: keras.Model) -> list[str]:
    """Sets `trainable` of every BatchNormalization to False and returns their names.

    Keras then runs them in inference mode, in training too: by their moving statistics.

    Raises:
        ConfigError: It has none.
    """
    found = batch_norms(model)
    if not found:
        raise ConfigError("freeze_bn: expected a network with BatchNormalization. Received: none")
    for part in found:
        part.trainable = False
    return [part.name for part in found]
