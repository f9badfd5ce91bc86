"""The norms against their definition in NumPy, against PyTorch's own, and against their laws."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from helpers.gradients import gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from kerasnorm.config import ModelConfig
from kerasnorm.errors import ConfigError
from kerasnorm.layers import StandardizedConv2D, standardize_kernel
from kerasnorm.norms import BUILT_IN, USER_COLORS, normalization

EPSILON = 1e-5
SHAPE = (3, 4, 5, 8)
GROUPS = 2

pytestmark = pytest.mark.backend("any")


class Case(NamedTuple):
    """A norm by its definition: x is seen as (N, H, W, groups, C / groups).

    Attributes:
        settings: Fields of the config.
        groups: Number of groups of channels.
        axes: Axes of that view that share a mean and a variance.
        pytorch: PyTorch's own norm, called with torch.nn.functional, x as (N, C, H, W), gamma and
            beta; None where PyTorch has none.
        is_centered: Whether the mean is subtracted.
        has_shift: Whether there is a beta.
    """

    settings: dict[str, Any]
    groups: int
    axes: tuple[int, ...]
    pytorch: Callable[..., Any] | None = None
    is_centered: bool = True
    has_shift: bool = True


def channels_last(norm: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a norm of (N, H, W, C) as one of (N, C, H, W)."""
    return lambda F, x, *affine: norm(F, x.permute(0, 2, 3, 1), *affine).permute(0, 3, 1, 2)


CASES = {
    "bn": Case(
        {"norm": "bn"},
        SHAPE[-1],
        (0, 1, 2),
        lambda F, x, *affine: F.batch_norm(x, None, None, *affine, training=True, eps=EPSILON),
    ),
    "gn": Case(
        {"norm": "gn", "groups": GROUPS},
        GROUPS,
        (1, 2, 4),
        lambda F, x, *affine: F.group_norm(x, GROUPS, *affine, EPSILON),
    ),
    "ln channel": Case(
        {"norm": "ln", "ln_affine": "channel"},
        1,
        (1, 2, 4),
        lambda F, x, *affine: F.group_norm(x, 1, *affine, EPSILON),
    ),
    "ln element": Case(
        {"norm": "ln", "ln_affine": "element"},
        1,
        (1, 2, 4),
        channels_last(lambda F, x, *affine: F.layer_norm(x, x.shape[1:], *affine, EPSILON)),
    ),
    "lnc": Case(
        {"norm": "lnc"},
        1,
        (4,),
        channels_last(lambda F, x, *affine: F.layer_norm(x, x.shape[3:], *affine, EPSILON)),
    ),
    "in": Case(
        {"norm": "in"},
        SHAPE[-1],
        (1, 2),
        lambda F, x, gamma, beta: F.instance_norm(x, weight=gamma, bias=beta, eps=EPSILON),
    ),
    "rms": Case(
        {"norm": "rms"},
        1,
        (4,),
        channels_last(lambda F, x, gamma, beta: F.rms_norm(x, x.shape[3:], gamma, EPSILON)),
        is_centered=False,
        has_shift=False,
    ),
}
# float32: half a dozen roundings of 2^-24 on sums of up to 160 numbers of size 10, and Keras's
# variance E[x²] - E[x]². mixed_bfloat16: the arithmetic is the same, and all inputs are bfloat16
# numbers, so each result is rounded once, or twice on the way through a sum: 2^-8.
TOLERANCE = {
    "float32": {"rtol": 5e-5, "atol": 5e-5},
    "mixed_bfloat16": {"rtol": 2**-7, "atol": 1e-4},
}


def reference(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, cotangent: np.ndarray, case: Case
) -> list[np.ndarray]:
    """Returns y, and the gradients of sum(cotangent * y) in x, gamma and beta, from `Case`."""

    def mean(values: np.ndarray) -> np.ndarray:
        grouped = values.reshape(*values.shape[:3], case.groups, -1)
        means = grouped.mean(case.axes, keepdims=True)
        return np.broadcast_to(means, grouped.shape).reshape(values.shape)

    centered = x - mean(x) if case.is_centered else x
    inverse = 1 / np.sqrt(mean(centered**2) + EPSILON)
    normal = centered * inverse
    slope = cotangent * gamma
    along = slope - normal * mean(slope * normal)
    if case.is_centered:
        along -= mean(slope)
    shared = (0, 1, 2) if gamma.ndim == 1 else 0
    gradients = [along * inverse, (cotangent * normal).sum(shared), cotangent.sum(shared)]
    return [normal * gamma + beta, *gradients]


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Cuts float32 numbers to those that bfloat16 has too: it is their upper half."""
    bits = values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def tensors(case: Case, shape: tuple[int, ...] = SHAPE) -> list[np.ndarray]:
    """Returns random x, gamma, beta and cotangent; mean and spread of x differ by channel."""
    rng = np.random.default_rng(0)
    channels = shape[-1]
    x = rng.normal(size=shape) * rng.uniform(0.5, 2, channels) + rng.uniform(-2, 2, channels)
    affine = shape[1:] if case.settings.get("ln_affine") == "element" else (channels,)
    gamma, beta = rng.uniform(0.5, 2, affine), rng.normal(size=affine)
    if not case.has_shift:
        beta = np.zeros(affine)
    return [bfloat16(values) for values in (x, gamma, beta, rng.normal(size=shape))]


def built(case: Case, shape: tuple[int, ...] = SHAPE, dtype: str = "float32") -> Any:
    layer = normalization(ModelConfig(**case.settings), shape[-1], dtype=dtype)
    layer.build(shape)
    return layer


def apply(layer: Any, x: Any, parameters: Any, training: bool = True) -> Any:
    """Returns y of a layer that takes these tensors in place of its own parameters."""
    mapping = zip(layer.trainable_variables, parameters, strict=True)
    with keras.StatelessScope(state_mapping=list(mapping)):
        return layer(x, training=training)


def forward_and_gradients(layer: Any, arrays: list[np.ndarray], training: bool = True) -> list:
    """Returns y, and the gradients of sum(cotangent * y) in x, gamma and, where it exists, beta."""
    *inputs, cotangent = arrays
    inputs = inputs[: 1 + len(layer.trainable_variables)]

    def projection(x: Any, *parameters: Any) -> Any:
        y = apply(layer, x, parameters, training)
        return ops.sum(ops.cast(y, "float32") * ops.convert_to_tensor(cotangent))

    y = apply(layer, inputs[0], map(ops.convert_to_tensor, inputs[1:]), training)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    y = ops.convert_to_numpy(ops.cast(y, "float32"))
    return [y, *gradient(projection, *inputs)]


def numerical_gradient(function: Callable[[np.ndarray], float], x: np.ndarray) -> np.ndarray:
    """Returns central differences in float64; their error is about 1e-9 at this step."""
    step = 1e-5
    found = np.zeros(x.size)
    for index in range(x.size):
        shift = np.zeros(x.size)
        shift[index] = step
        shift = shift.reshape(x.shape)
        found[index] = (function(x + shift) - function(x - shift)) / (2 * step)
    return found.reshape(x.shape)


@pytest.mark.parametrize("name", CASES)
def test_reference_gradients_equal_central_differences(name: str) -> None:
    case = CASES[name]
    arrays = [array.astype(np.float64) for array in tensors(case, (2, 2, 3, 8))]
    cotangent = arrays[3]
    gradients = reference(*arrays, case)[1:]
    for position in range(3):

        def projection(values: np.ndarray, position: int = position) -> float:
            changed = [*arrays[:position], values, *arrays[position + 1 :]]
            return float((cotangent * reference(*changed, case)[0]).sum())

        expected = numerical_gradient(projection, arrays[position])
        np.testing.assert_allclose(gradients[position], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_equal_the_definition(name: str, precision: str) -> None:
    case = CASES[name]
    arrays = tensors(case)
    found = forward_and_gradients(built(case, dtype=precision), arrays)
    expected = reference(*(array.astype(np.float64) for array in arrays), case)
    assert len(found) == (4 if case.has_shift else 3)
    for ours, theirs in zip(found, expected, strict=False):
        np.testing.assert_allclose(ours, theirs, **TOLERANCE[precision])


@pytest.mark.backend("torch")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.pytorch])
def test_output_and_gradients_equal_pytorch(name: str) -> None:
    import torch
    from torch.nn import functional as F

    arrays = tensors(CASES[name])
    *inputs, cotangent = (torch.tensor(array, dtype=torch.float64) for array in arrays)
    for tensor in inputs:
        tensor.requires_grad_(True)
    x, *affine = inputs
    y = CASES[name].pytorch(F, x.permute(0, 3, 1, 2), *affine).permute(0, 2, 3, 1)
    y.backward(cotangent)
    expected = [y.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)]
    found = forward_and_gradients(built(CASES[name]), arrays)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), **TOLERANCE["float32"])


@pytest.mark.parametrize("precision", TOLERANCE)
def test_bn_in_inference_uses_its_moving_statistics(precision: str) -> None:
    case = CASES["bn"]
    x, gamma, beta, cotangent = arrays = tensors(case)
    mean, variance = np.linspace(-1, 1, 8), np.linspace(0.1, 2, 8)
    layer = built(case, dtype=precision)
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    inverse = 1 / np.sqrt(variance + EPSILON)
    normal = (x - mean) * inverse
    axes = (0, 1, 2)
    expected = [
        normal * gamma + beta,
        cotangent * gamma * inverse,
        (cotangent * normal).sum(axes),
        cotangent.sum(axes),
    ]
    found = forward_and_gradients(layer, arrays, training=False)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **TOLERANCE[precision])


def test_bn_moves_its_statistics_towards_the_biased_ones_of_each_batch() -> None:
    layer = normalization(ModelConfig(norm="bn", bn_momentum=0.8), 8)
    rng = np.random.default_rng(1)
    mean, variance = np.zeros(8), np.ones(8)
    for batch in range(4):
        x = rng.normal(batch, 1 + batch, SHAPE).astype(np.float32)
        layer(x, training=True)
        mean = 0.8 * mean + 0.2 * x.mean((0, 1, 2), dtype=np.float64)
        variance = 0.8 * variance + 0.2 * x.var((0, 1, 2), dtype=np.float64)
    layer(x, training=False)  # which must not move them
    np.testing.assert_allclose(ops.convert_to_numpy(layer.moving_mean.value), mean, rtol=1e-5)
    np.testing.assert_allclose(
        ops.convert_to_numpy(layer.moving_variance.value), variance, rtol=1e-5
    )


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if 0 not in case.axes])
def test_norms_of_one_image_treat_it_alone_and_alike_in_training_and_inference(name: str) -> None:
    case = CASES[name]
    x, *parameters, _ = tensors(case)
    layer = built(case)
    layer.set_weights(parameters[: len(layer.weights)])
    together = ops.convert_to_numpy(layer(x, training=True))
    alone = ops.convert_to_numpy(layer(x[1:2], training=False))
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-5, atol=1e-5)


# Properties

few = settings(max_examples=15, deadline=None)  # the first call of an operation is slow
shapes = st.tuples(*[st.integers(1, high) for high in (3, 5, 5)])


def output(norm: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """Returns a fresh layer's output: gamma is 1, beta 0."""
    layer = normalization(ModelConfig(**norm), x.shape[-1])
    return ops.convert_to_numpy(layer(x.astype(np.float32), training=True))


def images(shape: tuple[int, ...], channels: int) -> np.ndarray:
    return np.random.default_rng(7).normal(1, 2, (*shape, channels)).astype(np.float32)


@few
@given(
    shape=shapes,
    groups=st.integers(1, 4),
    group_size=st.integers(1, 4),
    scale=st.sampled_from([0.01, 1]),  # at 0.01 epsilon is a fortieth of the variance
)
def test_a_group_leaves_gn_with_mean_0_and_variance_v_over_v_plus_epsilon(
    shape: tuple[int, ...], groups: int, group_size: int, scale: float
) -> None:
    x = scale * images(shape, groups * group_size)
    y = output({"norm": "gn", "groups": groups}, x)
    before, after = (a.astype(np.float64).reshape(*shape, groups, group_size) for a in (x, y))
    variance = before.var((1, 2, 4))
    # A group of one number has variance 0: its rounding error, 1e-6, is divided by sqrt(1e-5).
    np.testing.assert_allclose(after.mean((1, 2, 4)), 0, atol=1e-3)
    np.testing.assert_allclose(after.var((1, 2, 4)), variance / (variance + EPSILON), atol=1e-3)


@few
@given(shape=shapes, channels=st.integers(2, 6))
def test_gn_with_one_group_is_ln_and_with_a_group_a_channel_is_in(
    shape: tuple[int, ...], channels: int
) -> None:
    x = images(shape, channels)
    one, each = (output({"norm": "gn", "groups": groups}, x) for groups in (1, channels))
    for affine in ("channel", "element"):
        ln = output({"norm": "ln", "ln_affine": affine}, x)
        np.testing.assert_allclose(one, ln, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(each, output({"norm": "in"}, x), rtol=1e-4, atol=1e-4)


@few
@given(name=st.sampled_from(sorted(CASES)), scale=st.floats(0.5, 100), shift=st.floats(-3, 3))
def test_scale_and_shift_of_the_input_do_not_matter(name: str, scale: float, shift: float) -> None:
    norm = CASES[name].settings
    x = images((3, 4, 5), 8)
    moved = scale * (x + shift) if CASES[name].is_centered else scale * x
    # Epsilon beside a variance of at least 0.1 changes the fifth digit.
    np.testing.assert_allclose(output(norm, moved), output(norm, x), rtol=1e-3, atol=1e-3)


def test_rms_keeps_the_mean() -> None:
    x = images((2, 3, 3), 6)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + EPSILON)
    np.testing.assert_allclose(output({"norm": "rms"}, x), expected, rtol=1e-5)


def test_none_is_no_layer() -> None:
    assert normalization(ModelConfig(norm="none"), 8) is None


@pytest.mark.parametrize("name", ["groups", "group_size"])
@pytest.mark.parametrize("value", [5, 24])
def test_groups_that_do_not_divide_are_refused_with_those_that_do(name: str, value: int) -> None:
    with pytest.raises(ConfigError) as caught:
        normalization(ModelConfig(norm="gn", **{name: value}), 12)
    assert "1, 2, 3, 4, 6, 12" in str(caught.value)
    assert f"{name}={value}" in str(caught.value)


# Weight standardization


def standardized(kernel: np.ndarray) -> np.ndarray:
    """Returns the standardized kernel by its definition."""
    fan_in = kernel[..., 0].size
    centered = kernel - kernel.mean((0, 1, 2))
    return centered / np.sqrt((centered**2).mean((0, 1, 2)) * fan_in + EPSILON)


@few
@given(size=st.sampled_from([1, 3]), inputs=st.integers(2, 8), outputs=st.integers(1, 4))
def test_a_standardized_kernel_has_mean_0_and_variance_1_over_fan_in(
    size: int, inputs: int, outputs: int
) -> None:
    fan_in = size * size * inputs
    kernel = np.random.default_rng(3).normal(0.3, 1, (size, size, inputs, outputs))
    found = ops.convert_to_numpy(standardize_kernel(ops.convert_to_tensor(kernel, "float32")))
    np.testing.assert_allclose(found, standardized(kernel), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.mean((0, 1, 2)), 0, atol=1e-6)
    # Two weights that happen to be near each other feel epsilon.
    expected = 1 / fan_in / (1 + EPSILON / (kernel.var((0, 1, 2)) * fan_in))
    np.testing.assert_allclose(found.var((0, 1, 2)), expected, rtol=1e-3)


def test_gradient_of_a_standardized_kernel_equals_central_differences() -> None:
    rng = np.random.default_rng(4)
    kernel, cotangent = bfloat16(rng.normal(size=(2, 3, 3, 2, 4)))

    def projection(values: np.ndarray) -> float:
        return float((standardized(values) * cotangent).sum())

    weights = ops.convert_to_tensor(cotangent)
    (found,) = gradient(lambda kernel: ops.sum(standardize_kernel(kernel) * weights), kernel)
    expected = numerical_gradient(projection, kernel.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@few
@given(scale=st.floats(0.5, 50), shift=st.floats(-2, 2))
def test_scale_and_shift_of_a_raw_kernel_do_not_matter(scale: float, shift: float) -> None:
    kernel = np.random.default_rng(5).normal(size=(3, 3, 4, 6)).astype(np.float32)
    changed = (scale * (kernel + shift * np.arange(6))).astype(np.float32)
    before, after = (
        ops.convert_to_numpy(standardize_kernel(ops.convert_to_tensor(values)))
        for values in (kernel, changed)
    )
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_a_standardized_convolution_convolves_with_the_standardized_kernel() -> None:
    x = images((2, 5, 5), 3)
    ours = StandardizedConv2D(4, 3, padding="same", use_bias=False)
    stock = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)
    ours.build(x.shape)
    stock.build(x.shape)
    stock.kernel.assign(standardized(ops.convert_to_numpy(ours.kernel.value)))
    found, expected = (ops.convert_to_numpy(layer(x)) for layer in (ours, stock))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def lab(color):
    """Returns the coordinates of a color in CIELAB (D65), in which equal steps look equal."""
    rgb = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ linear / [0.9505, 1.0, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_no_norm_of_the_user_has_a_color_that_looks_like_that_of_another():
    colors = [*USER_COLORS, *(norm.color for norm in BUILT_IN)]
    for place, color in enumerate(USER_COLORS):
        others = colors[:place] + colors[place + 1 :]
        assert min(np.linalg.norm(lab(color) - lab(other)) for other in others) > 25
