"""Receptive fields: the pixels of the input that the units of a feature map see.

Along one axis, unit i of a map sees the `size` input pixels that begin at start + i * jump. A layer
has such a field in its own input: that of a convolution of kernel k, stride s, dilation d and p
units of padding before the first one has size k_eff = d * (k - 1) + 1, jump s and start -p. Fields
compose (`Field.then`): size r += (k_eff - 1) * j, jump j *= s. Padding changes only the start.
Global pooling over n units is a window of n: r += (n - 1) * j; the jump of the single remaining
unit has no meaning, and by convention does not change.

A transposed convolution or an upsampling by s has jump 1 / s, and neighbors see windows of
different sizes. Its field is the smallest of the form above that holds them all, so that the sizes
of what follows are bounds; jumps and starts are fractions then.

Source: Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill
2019, doi 10.23915/distill.00021. Sizes are those of a large image; at its border, part of the
field is outside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor
from typing import TypeVar

from kerasnorm.errors import ConfigError

T = TypeVar("T")
Pixels = int | Fraction


@dataclass(frozen=True)
class Field:
    """Receptive field of a map's units along one axis; by default that of the input."""

    size: Pixels = 1  # number of input pixels that a unit sees
    jump: Pixels = 1  # distance between the fields of two neighboring units, in input pixels
    start: Pixels = 0  # first pixel that unit 0 sees; negative if it is in the padding
    # Whether every unit sees the same pixels, those of unit 0, as after the scaling by a
    # squeeze-and-excitation branch.
    is_shared: bool = False
    is_bound: bool = False  # whether a unit may see fewer pixels, none of them outside of the field

    @property
    def center(self) -> float:
        """Middle of the field of unit 0, in input pixels."""
        return float(self.start + (self.size - 1) / 2)

    def then(self, layer: "Field") -> "Field":
        """Returns the field of a layer's output in the input, given `layer`, its field in this map.

        Associative, with `Field()` as the neutral element.
        """
        step = 0 if self.is_shared else self.jump
        return Field(
            size=self.size + (layer.size - 1) * step,
            jump=self.jump * layer.jump,
            start=self.start + layer.start * step,
            is_shared=self.is_shared or layer.is_shared,
            is_bound=self.is_bound or layer.is_bound,
        )


def window(kernel: int, stride: int = 1, dilation: int = 1, padding: int = 0) -> Field:
    """Returns the field of a convolution or pooling in its own input.

    Stride, dilation and padding are in units; a cropping has a negative padding.
    """
    return Field(size=dilation * (kernel - 1) + 1, jump=stride, start=-padding)


def transposed(kernel: int, factor: int, dilation: int = 1, padding: int = 0) -> Field:
    """Returns the field of a transposed convolution in its own input.

    Unit o of the output reads the units i with i * factor = o + padding - dilation * t, for the
    taps t from 0 to kernel - 1. `factor` is its strides, `padding` the number of units cut off
    before the first one.
    """
    reach = Fraction(dilation * (kernel - 1), factor)
    start = Fraction(padding, factor) - reach
    return Field(1 + reach, Fraction(1, factor), start, is_bound=factor > 1)


def upsampling(factor: int, taps: int = 1) -> Field:
    """Returns the field of an upsampling in its own input.

    A unit is interpolated from `taps`: 1 for the nearest, 2 for bilinear.
    """
    if factor == 1:
        return Field()
    step = Fraction(1, factor)
    # Unit o lies at (o + 1/2) / factor - 1/2, and reads the `taps` units around that.
    return Field(taps + 1 - step, step, step - Fraction(taps + 1, 2), is_bound=True)


def same_padding(units: int | None, kernel: int, stride: int = 1, dilation: int = 1) -> int:
    """Returns the units that padding="same" adds before the first one: the smaller half."""
    last = stride if units is None or units % stride == 0 else units % stride
    return max(dilation * (kernel - 1) + 1 - last, 0) // 2


def hull(fields: Sequence[Field], units: int | None = None) -> Field:
    """Returns the field of units that merge the same-numbered units of several maps.

    Raises:
        ConfigError: The jumps differ, so that the maps do not match; or `units` is needed and
            unknown.
    """
    own = {field.jump for field in fields if not field.is_shared}
    if len(own) > 1 and units != 1:
        raise ConfigError(
            "Expected branches of one jump, because maps of different strides do not match. "
            f"Received: jumps {sorted(own)}"
        )
    jump = max(own or {field.jump for field in fields})
    is_shared = any(field.is_shared for field in fields)
    if is_shared:
        fields = [field if field.is_shared else _over_all(field, units) for field in fields]
    start = min(field.start for field in fields)
    end = max(field.start + field.size for field in fields)
    return Field(end - start, jump, start, is_shared, any(field.is_bound for field in fields))


def _over_all(field: Field, units: int | None) -> Field:
    if units is None:
        raise ConfigError(
            "Expected a map of known size, since a unit sees all of it. Received: a size of None. "
            "Build the model with a fixed input shape."
        )
    return field.then(Field(size=units))


@dataclass(frozen=True)
class FeatureMap:
    """Size and receptive field of a feature map, one entry per axis: (H, W), (L,) or ()."""

    # Number of units along each axis, None if unknown. Flattening keeps them.
    sizes: tuple[int | None, ...]
    fields: tuple[Field, ...]  # field of the units along each axis

    @classmethod
    def of_input(cls, sizes: Sequence[int | None]) -> "FeatureMap":
        """Returns the map of the input itself, whose units are pixels."""
        return cls(tuple(sizes), (Field(),) * len(sizes))

    @property
    def size(self) -> int | list[int | None] | None:
        """Units: one number if the axes agree, else one per axis; None if there are none."""
        return _one_or_all(self.sizes)

    @property
    def receptive_field(self) -> int | list[int] | None:
        """Pixels: one number if the axes agree, else one per axis; None if there are none."""
        return _one_or_all([floor(field.size) for field in self.fields])

    @property
    def jump(self) -> float | list[float] | None:
        """Pixels: one number if the axes agree, else one per axis; None if there are none."""
        jumps = [field.jump for field in self.fields]
        return _one_or_all([int(j) if j == int(j) else float(j) for j in jumps])

    @property
    def is_bound(self) -> bool:
        """Whether units may see fewer pixels than `receptive_field` says."""
        return any(field.is_bound for field in self.fields)

    @property
    def is_shared(self) -> bool:
        """Whether all units see the same pixels along an axis, as `Field.is_shared` says."""
        return any(field.is_shared for field in self.fields)

    def through(self, layer: Sequence[Field], sizes: Sequence[int | None]) -> "FeatureMap":
        """Returns the map of a layer's output."""
        fields = (field.then(own) for field, own in zip(self.fields, layer, strict=True))
        return FeatureMap(tuple(sizes), tuple(fields))

    def pooled(self) -> "FeatureMap":
        """Returns the map of one unit that sees this whole map: global pooling, or a dense layer.

        Raises:
            ConfigError: The size of the map is unknown.
        """
        pairs = zip(self.fields, self.sizes, strict=True)
        return FeatureMap((1,) * len(self.sizes), tuple(_over_all(*pair) for pair in pairs))


def merge(maps: Sequence[FeatureMap]) -> FeatureMap:
    """Returns the output map of an element-wise layer of several maps; sizes of 1 are broadcast.

    Raises:
        ConfigError: Axes, sizes or jumps differ.
    """
    if len({len(m.fields) for m in maps}) > 1:
        raise ConfigError(
            "Expected branches with the same number of axes. "
            f"Received: sizes {' and '.join(str(list(m.sizes)) for m in maps)}"
        )
    axes = range(len(maps[0].fields))
    merged = [_merge_axis([(m.sizes[axis], m.fields[axis]) for m in maps]) for axis in axes]
    return FeatureMap(tuple(size for size, _ in merged), tuple(field for _, field in merged))


def _merge_axis(branches: Sequence[tuple[int | None, Field]]) -> tuple[int | None, Field]:
    larger = {size for size, _ in branches} - {1} or {1}
    if len(larger) > 1:
        raise ConfigError(
            "Expected branches of one size, or of size 1. "
            f"Received: sizes {', '.join(str(size) for size, _ in branches)}"
        )
    (units,) = larger
    fields = [replace(f, is_shared=f.is_shared or size != units) for size, f in branches]
    return units, hull(fields, units)


def _one_or_all(values: Sequence[T]) -> T | list[T] | None:
    return next(iter(values), None) if len(set(values)) < 2 else list(values)
