"""The arithmetic of receptive fields against hand-computed networks and its own laws."""

from functools import reduce
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasnorm.errors import ConfigError
from kerasnorm.inspection.receptive_field import (
    FeatureMap,
    Field,
    hull,
    merge,
    same_padding,
    window,
)

kernels = st.integers(1, 7)
strides = st.integers(1, 4)
windows = st.builds(window, kernels, strides, st.integers(1, 4), st.integers(-3, 3))
fields = st.builds(
    Field, st.integers(1, 60), st.integers(1, 16), st.integers(-50, 50), st.booleans()
)


def chain(*layers: Field) -> Field:
    return reduce(Field.then, layers, Field())


CONV, POOL = window(3, padding=1), window(2, 2)


def test_vgg16_sees_212_pixels_at_its_last_pooling() -> None:
    blocks = [chain(*[CONV] * count, POOL) for count in (2, 2, 3, 3, 3)]
    ends = [(end.size, end.jump) for end in accumulate(blocks, Field.then)]
    assert ends == [(6, 2), (16, 4), (44, 8), (100, 16), (212, 32)]


@pytest.mark.parametrize(
    ("layers", "size", "jump", "start"),
    [
        ([window(3, dilation=1), window(3, dilation=2), window(3, dilation=4)], 15, 1, 0),
        ([window(3, dilation=4, padding=4)], 9, 1, -4),
        ([window(7, 2, padding=3), window(3, 2, padding=1)], 11, 4, -5),  # the stem of a ResNet
        ([window(1, 2), window(1, 2)], 1, 4, 0),  # strides without kernels skip pixels
        ([POOL, window(5)], 10, 2, 0),
        ([window(5), POOL], 6, 2, 0),
        ([window(1, padding=2), window(1, padding=-2)], 1, 1, 0),  # pad, then crop
        ([window(11, 4), window(3, 2), window(5, padding=2), window(3, 2)], 67, 16, -16),  # AlexNet
    ],
)
def test_hand_computed(layers: list[Field], size: int, jump: int, start: int) -> None:
    assert chain(*layers) == Field(size, jump, start)


def test_center_lies_in_the_middle() -> None:
    assert window(3, padding=1).center == 0
    assert window(2, 2).center == 0.5


@given(kernels, kernels)
def test_two_convolutions_equal_one_of_the_sum(a: int, b: int) -> None:
    assert window(a).then(window(b)) == window(a + b - 1)


@given(windows, windows, windows)
def test_composition_is_associative(a: Field, b: Field, c: Field) -> None:
    assert a.then(b).then(c) == a.then(b.then(c))


@given(fields, fields, fields)
def test_composition_is_associative_with_shared_fields(a: Field, b: Field, c: Field) -> None:
    assert a.then(b).then(c) == a.then(b.then(c))


@given(fields)
def test_the_input_is_neutral(field: Field) -> None:
    assert Field().then(field) == field == field.then(Field())


@given(kernels, strides, st.integers(1, 4))
def test_a_dilated_convolution_after_a_stride_is_one_of_the_product(
    kernel: int, stride: int, dilation: int
) -> None:
    strided = window(1, stride)
    assert strided.then(window(kernel, dilation=dilation)) == window(
        kernel, dilation=dilation * stride
    ).then(strided)


@given(windows, windows)
def test_padding_does_not_change_the_size(a: Field, b: Field) -> None:
    bare = Field(a.size, a.jump).then(Field(b.size, b.jump))
    assert (a.then(b).size, a.then(b).jump) == (bare.size, bare.jump)


@given(st.integers(1, 40), kernels, strides, st.integers(1, 3))
def test_same_padding_is_the_smaller_half(units: int, k: int, s: int, d: int) -> None:
    k_eff = d * (k - 1) + 1
    total = max((-(-units // s) - 1) * s + k_eff - units, 0)
    assert same_padding(units, k, s, d) == total // 2


def test_same_padding_of_unknown_size_takes_a_multiple_of_the_stride() -> None:
    assert same_padding(None, 3, 2) == same_padding(8, 3, 2) == 0
    assert same_padding(7, 3, 2) == 1


@given(st.lists(fields, min_size=1, max_size=4), st.integers(1, 9))
def test_hull_covers_its_branches_and_no_more(branches: list[Field], jump: int) -> None:
    branches = [Field(f.size, jump, f.start) for f in branches]
    whole = hull(branches)
    assert whole.start == min(f.start for f in branches)
    assert whole.start + whole.size == max(f.start + f.size for f in branches)
    assert hull([whole, *branches]) == whole == hull(branches[::-1])


@given(windows, st.lists(windows, min_size=1, max_size=3), strides)
def test_composition_distributes_over_hulls(first: Field, rest: list[Field], jump: int) -> None:
    rest = [Field(f.size, jump, f.start) for f in rest]
    assert first.then(hull(rest)) == hull([first.then(branch) for branch in rest])


def test_hull_of_shifted_branches_is_wider_than_each() -> None:
    left, right = window(3, padding=2), window(3, padding=0)
    assert hull([left, right]) == Field(size=5, start=-2)


def test_hull_refuses_branches_of_different_jumps() -> None:
    with pytest.raises(ConfigError, match=r"one jump.*Received: jumps \[1, 2\]"):
        hull([window(3), window(3, 2)], units=8)


def test_single_units_of_different_jumps_can_be_merged() -> None:
    assert hull([Field(8, 2), Field(12, 4, -2)], units=1) == Field(12, 4, -2)


def test_scaling_by_a_pooled_unit_shows_the_whole_map_and_no_convolution_adds_to_it() -> None:
    before = FeatureMap.of_input((8, 8)).through([CONV, CONV], (8, 8))
    scaled = merge([before, before.pooled()])
    assert scaled == FeatureMap((8, 8), (Field(10, 1, -1, is_shared=True),) * 2)
    assert scaled.through([CONV, CONV], (8, 8)).receptive_field == 10
    assert merge([before, scaled]) == scaled


def test_axes_are_told_apart_where_they_differ() -> None:
    tall = FeatureMap.of_input((32, 16)).through([window(3), window(1)], (30, 16))
    assert (tall.receptive_field, tall.jump, tall.size) == ([3, 1], 1, [30, 16])
    assert tall.pooled().receptive_field == [32, 16]
    assert tall.pooled().size == 1


def test_a_vector_has_no_receptive_field() -> None:
    vector = FeatureMap.of_input(())
    assert (vector.receptive_field, vector.jump, vector.size) == (None, None, None)
    assert merge([vector, vector]).pooled() == vector


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureMap.of_input((None,)).pooled(), "known size"),
        (
            lambda: merge([FeatureMap.of_input((None,)), FeatureMap.of_input((1,))]),
            "fixed input shape",
        ),
        (
            lambda: merge([FeatureMap.of_input((8,)), FeatureMap.of_input((7,))]),
            "one size.*sizes 8, 7",
        ),
        (
            lambda: merge([FeatureMap.of_input((8,)), FeatureMap.of_input((8, 8))]),
            r"same number of axes.*\[8\] and \[8, 8\]",
        ),
    ],
)
def test_refusals_say_what_was_received(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()  # type: ignore[operator]
