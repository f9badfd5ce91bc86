"""The network: its parts, its numbers against NumPy, what it refuses, and its portable copy."""

from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import kerasnorm
from kerasnorm import runtime
from kerasnorm.config import resolve
from kerasnorm.errors import ConfigError
from kerasnorm.layers import EQUALIZED_PIXELS, StandardizedConv2D, portable
from kerasnorm.network import build, build_model
from kerasnorm.norms import NORMS

pytestmark = pytest.mark.backend("any")

NARROW = (4, 4, 4, 8, 8, 8, 4, 8, 8, 8)
ERA8_LAYERS = """
pixels input_rescaling
convblock1_conv1 convblock1_relu1 convblock1_norm1 convblock1_dropout1
convblock1_conv2 convblock1_relu2 convblock1_norm2 convblock1_dropout2
transblock1_conv transblock1_relu transblock1_pool
convblock2_conv1 convblock2_relu1 convblock2_norm1 convblock2_dropout1
convblock2_conv2 convblock2_relu2 convblock2_norm2 convblock2_dropout2
convblock2_conv3 convblock2_relu3 convblock2_norm3 convblock2_dropout3
transblock2_conv transblock2_relu transblock2_pool
convblock3_conv1 convblock3_relu1 convblock3_norm1 convblock3_dropout1
convblock3_conv2 convblock3_relu2 convblock3_norm2 convblock3_dropout2
convblock3_conv3 convblock3_relu3 convblock3_norm3 convblock3_dropout3
gap fc1 logits
"""
BEST_LAYERS = """
pixels input_rescaling
convblock1_conv1 convblock1_norm1 convblock1_silu1
convblock1_conv2 convblock1_norm2 convblock1_silu2 convblock1_add2
transblock1_conv transblock1_norm transblock1_silu transblock1_pool
convblock2_conv1 convblock2_norm1 convblock2_silu1
convblock2_conv2 convblock2_norm2 convblock2_silu2 convblock2_add2
convblock2_conv3 convblock2_norm3 convblock2_silu3 convblock2_add3
transblock2_conv transblock2_norm transblock2_silu transblock2_pool
convblock3_conv1 convblock3_norm1 convblock3_silu1
convblock3_conv2 convblock3_norm2 convblock3_silu2 convblock3_add2
convblock3_conv3 convblock3_norm3 convblock3_silu3 convblock3_add3
gap fc1 logits
"""
SKELETON = """
convblock1_conv1 convblock1_conv2 transblock1_conv transblock1_pool
convblock2_conv1 convblock2_conv2 convblock2_conv3 transblock2_conv transblock2_pool
convblock3_conv1 convblock3_conv2 convblock3_conv3 gap fc1
"""


def small(norm: str = "gn", recipe: str = "best", **options: Any) -> keras.Model:
    """Returns a narrow network of 8x8 images, which calls in milliseconds."""
    return build_model(norm, recipe, **({"input_shape": (8, 8, 3), "widths": NARROW} | options))


@cache
def ready_made(norm: str, name: str) -> keras.Model:
    """Returns a network as its recipe has it, to be looked at and not changed."""
    return build_model(norm, name)


def images(model: keras.Model, count: int = 4) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, *model.input_shape[1:]), dtype=np.uint8)


def numpy(tensor: Any) -> np.ndarray:
    return ops.convert_to_numpy(tensor)


def logits(model: keras.Model, x: np.ndarray | None = None) -> np.ndarray:
    return numpy(model(images(model) if x is None else x, training=False))


def names(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers]


def activations(model: keras.Model, wanted: list[str], x: Any, **options: Any) -> list[np.ndarray]:
    """Returns the outputs of the named layers."""
    probe = keras.Model(model.input, {name: model.get_layer(name).output for name in wanted})
    outputs = probe(x, **options)
    return [numpy(outputs[name]) for name in wanted]


def kernels(model: keras.Model) -> list[np.ndarray]:
    return [numpy(layer.kernel.value) for layer in model.layers if hasattr(layer, "kernel")]


def scramble(model: keras.Model) -> None:
    """Gives all weights that start as zeros or ones values of their own."""
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if variable.name != "kernel":
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))


# Size and skeleton


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize(
    ("norm", "options", "expected"),
    [
        ("bn", {}, 49_808),
        ("gn", {}, 49_808),
        ("ln", {}, 49_808),
        ("ln", {"ln_affine": "element"}, 176_336),
        ("lnc", {}, 49_808),
        ("in", {}, 49_808),
        ("rms", {}, 49_808 - 224),  # no shifts
        ("none", {}, 49_808 - 448),
    ],
)
def test_era8_has_the_published_number_of_parameters(
    norm: str, options: dict[str, str], expected: int
) -> None:
    model = build_model(norm, "era8", **options) if options else ready_made(norm, "era8")
    assert sum(np.prod(variable.shape) for variable in model.trainable_variables) == expected
    moving = 2 * 224 if norm == "bn" else 0
    assert model.count_params() == expected + moving


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("norm", NORMS)
def test_best_stays_below_50_000_moving_statistics_included(norm: str) -> None:
    model = ready_made(norm, "best")
    assert 45_000 < model.count_params() < 50_000
    assert all("seed" not in variable.path for variable in model.weights)


def test_layer_names_of_the_recipes() -> None:
    assert names(ready_made("gn", "era8")) == ERA8_LAYERS.split()
    assert names(ready_made("gn", "best")) == BEST_LAYERS.split()


@pytest.mark.parametrize("norm", NORMS)
def test_skeleton_is_the_same_for_every_norm(norm: str) -> None:
    model = ready_made(norm, "best")
    kinds = (keras.layers.Conv2D, keras.layers.MaxPooling2D, keras.layers.GlobalAveragePooling2D)
    found = [layer for layer in model.layers if isinstance(layer, kinds)]
    assert [layer.name for layer in found] == SKELETON.split()
    convolutions = [layer for layer in found if hasattr(layer, "kernel")]
    sizes = [3, 3, 1, 3, 3, 3, 1, 3, 3, 3, 1]
    assert [layer.kernel_size for layer in convolutions] == [(size, size) for size in sizes]
    assert [layer.filters for layer in convolutions] == [16, 16, 12, 32, 32, 32, 16, 32, 32, 32, 10]
    assert not any(layer.use_bias for layer in convolutions)
    assert model.output_shape == (None, 10)


@pytest.mark.parametrize(
    ("order", "expected"),
    [("conv-act-norm", "conv1 elu1 norm1"), ("conv-norm-act", "conv1 norm1 elu1")],
)
def test_order_inside_a_unit(order: str, expected: str) -> None:
    model = small(order=order, activation="elu")
    first = names(model)[2:5]
    assert first == [f"convblock1_{part}" for part in expected.split()]


def test_transitions_are_normalized_only_where_the_recipe_says_so() -> None:
    for wanted in (True, False):
        found = {name for name in names(small(norm_transitions=wanted)) if "trans" in name}
        assert ("transblock1_norm" in found) == ("transblock2_norm" in found) == wanted


# Residual adds


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        (
            (3, 4, 4, 4, 5, 5, 5, 6, 5, 5),
            "convblock1_add1 convblock2_add1 convblock2_add3 convblock3_add3",
        ),
        ((4, 5, 6, 7, 8, 9, 10, 11, 12, 12), "convblock3_add3"),
        ((4, 5, 6, 7, 8, 9, 10, 11, 12, 13), ""),
    ],
)
def test_residual_adds_stand_only_where_the_widths_match(
    widths: tuple[int, ...], expected: str
) -> None:
    found = [name for name in names(small("none", widths=widths)) if "_add" in name]
    assert found == expected.split()


def test_no_residual_adds_where_they_are_off() -> None:
    assert not any("_add" in name for name in names(small(residual=False)))


def test_a_residual_add_sums_the_input_and_the_output_of_its_unit() -> None:
    model = small()
    wanted = ["convblock1_silu1", "convblock1_silu2", "convblock1_add2"]
    before, unit, after = activations(model, wanted, images(model))
    np.testing.assert_array_equal(after, before + unit)


# The whole network against NumPy


def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolves with padding same: a sum over the taps of the kernel."""
    size, height, width = len(kernel), *x.shape[1:3]
    edge = size // 2
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )


def normalize(norm: str, y: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    gamma, beta, *moving = weights
    if norm == "bn":
        mean, variance = moving
        return (y - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    grouped = y.reshape(*y.shape[:3], -1, 4)  # groups of 4 channels
    mean, variance = (f((1, 2, 4), keepdims=True) for f in (grouped.mean, grouped.var))
    return ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(y.shape) * gamma + beta


POOLINGS = {
    "max": lambda windows: windows.max((2, 4)),
    "average": lambda windows: windows.mean((2, 4)),
    "mean": lambda windows: (windows.max((2, 4)) + windows.mean((2, 4))) / 2,
}


def network(
    model: keras.Model, norm: str, recipe: str, x: np.ndarray, pooling: str = "max"
) -> np.ndarray:
    """Returns the logits of era8 or best, in float64, from the weights of `model`."""
    weights = {
        layer.name: [numpy(weight.value).astype(np.float64) for weight in layer.weights]
        for layer in model.layers
    }

    def unit(x: np.ndarray, name: str) -> np.ndarray:
        (kernel,) = weights[name]
        affine = weights.get(name.replace("_conv", "_norm"))
        if recipe == "era8":
            y = np.maximum(convolve(x, kernel), 0)
            return normalize(norm, y, affine) if affine else y
        if norm == "gn":
            centered = kernel - kernel.mean((0, 1, 2))
            variance = (centered**2).mean((0, 1, 2))
            kernel = centered / np.sqrt(variance * kernel[..., 0].size + 1e-5)
        y = normalize(norm, convolve(x, kernel), affine)
        y = y / (1 + np.exp(-y))  # SiLU
        return x + y if name.startswith("convblock") and x.shape == y.shape else y

    x = (x / 255 - (0.4914, 0.4822, 0.4465)) / (0.2470, 0.2435, 0.2616)
    for name in SKELETON.split():
        if "_conv" in name:
            x = unit(x, name)
        elif "_pool" in name:
            n, h, w, c = x.shape
            x = POOLINGS[pooling](x.reshape(n, h // 2, 2, w // 2, 2, c))
    return x.mean((1, 2)) @ weights["fc1"][0][0, 0]


@pytest.mark.parametrize(
    ("norm", "recipe", "pooling"),
    [
        *[(norm, recipe, "max") for norm in ("bn", "gn") for recipe in ("era8", "best")],
        ("bn", "best", "average"),
        ("bn", "best", "mean"),
    ],
)
def test_logits_equal_those_of_the_network_written_in_numpy(
    norm: str, recipe: str, pooling: str
) -> None:
    model = build_model(norm, recipe, input_shape=(16, 12, 3), group_size=4, pooling=pooling)
    scramble(model)
    x = images(model)
    expected = network(model, norm, recipe, x, pooling)
    # Ten layers of float32 sums over up to 288 products each.
    np.testing.assert_allclose(logits(model, x), expected, rtol=1e-3, atol=1e-4)


# Input


def test_the_input_layer_standardizes_raw_pixels() -> None:
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.9)
    model = small(mean=mean, std=std)
    x = images(model)
    (found,) = activations(model, ["input_rescaling"], x)
    # x * scale + offset in float32, where the two cancel: 2^-24 of terms up to 4.
    np.testing.assert_allclose(found, (x / 255 - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("channels", "mean", "std"), [(3, 0.4914, 0.2470), (1, 0.5, 0.25)])
def test_default_mean_and_sd(channels: int, mean: float, std: float) -> None:
    model = small(input_shape=(8, 8, channels))
    x = images(model)
    (found,) = activations(model, ["input_rescaling"], x)
    expected = (x[..., 0] / 255 - mean) / std
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-5, atol=1e-6)


def test_uint8_pixels_give_the_logits_of_float_pixels() -> None:
    model = small()
    x = images(model)
    np.testing.assert_array_equal(logits(model, x), logits(model, x.astype(np.float32)))


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize(
    ("shape", "classes"), [((4, 4, 1), 2), ((28, 28, 1), 10), ((5, 9, 3), 7), ((7, 4, 4), 100)]
)
def test_other_image_shapes_and_class_counts(shape: tuple[int, ...], classes: int) -> None:
    model = small(input_shape=shape, classes=classes)
    found = logits(model)
    assert found.shape == (4, classes)
    assert np.isfinite(found).all()


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_shape": (3, 32, 3)}, "H and W of at least 4"),
        ({"input_shape": (32, 3, 3)}, "H and W of at least 4"),
        ({"input_shape": (32, 32)}, r"\(H, W, C\)"),
        ({"input_shape": (32, 32, 0)}, r"\(H, W, C\)"),
        ({"input_shape": ()}, r"\(H, W, C\)"),
        ({"input_shape": (None, None, 3)}, r"\(H, W, C\)"),
        ({"classes": 1}, "classes: expected a whole number of at least 2"),
        ({"mean": (0.5,)}, "expected 3 finite numbers each"),
        ({"std": (0.2, 0.2, 0.0)}, "std above 0"),
        ({"std": (0.2, 0.2, float("nan"))}, "std above 0"),
        ({"mean": (0.5, 0.5, float("inf"))}, "expected 3 finite numbers each"),
        ({"seed": -1}, "seed: expected a whole number of at least 0"),
        ({"widths": (16, 16)}, "widths: expected 10 numbers"),
        ({"widths": (0, *NARROW[1:])}, "widths: expected a whole number of at least 1"),
        ({"groups": 3, "widths": NARROW}, "groups: expected a divisor of 4.*: 1, 2, 4"),
        ({"group_size": 8, "widths": NARROW}, "group_size: expected a divisor of 4.*: 1, 2, 4"),
        ({"groups": 12}, r"over 12, 16, 32 channels, all take 1, 2, 4\.$"),
        ({"groups": 16}, r"Received: groups=16\. .*all take 1, 2, 4\.$"),
        ({"group_size": 3, "norm_transitions": False}, r"over 16, 32 .* take 1, 2, 4, 8, 16\.$"),
        ({"dropout": 1.0}, "dropout: expected a number"),
        ({"norm": "gm"}, "norm: expected one of bn, gn"),
        ({"recipe": "bets"}, "Unknown recipe: 'bets'. Did you mean best"),
        ({"precision": "float16"}, "precision: expected one of"),
        ({"precision": "auto"}, "only fit chooses"),
        ({"group": 4}, "Unknown .*'group'. Did you mean groups"),
        ({"epochs": 4}, "Unknown .*'epochs'"),
    ],
)
def test_refusals_say_what_was_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(**options)


# Regularization


@pytest.mark.parametrize("weight_standardization", [False, True])
def test_l1_and_l2_count_kernels_and_nothing_else(weight_standardization: bool) -> None:
    model = small("bn", l1=1e-3, l2=1e-2, weight_standardization=weight_standardization)
    scramble(model)
    found = kernels(model)
    assert len(found) == 11
    expected = [1e-3 * np.abs(k).sum() + 1e-2 * np.square(k).sum() for k in found]
    np.testing.assert_allclose([float(numpy(loss)) for loss in model.losses], expected, rtol=1e-5)


def test_no_losses_without_regularization() -> None:
    assert ready_made("gn", "best").losses == []


@pytest.mark.parametrize("kind", ["element", "spatial"])
def test_dropout_drops_a_share_of_values_or_channels_in_training_only(kind: str) -> None:
    runtime.seed_everything(0, 0)
    rate = 0.3
    model = small(norm="bn", activation="elu", dropout=rate, dropout_kind=kind)
    x = images(model, 256)
    wanted = ["convblock1_elu1", "convblock1_dropout1"]
    before, after = activations(model, wanted, x, training=False)
    np.testing.assert_array_equal(after, before)
    before, after = activations(model, wanted, x, training=True)
    is_dropped = after == 0
    kept = ~is_dropped
    np.testing.assert_allclose(after[kept], before[kept] / (1 - rate), rtol=1e-5)
    if kind == "spatial":
        is_dropped = is_dropped.all((1, 2))
        assert np.array_equal(kept.any((1, 2)), kept.all((1, 2)))
    allowed = 5 * np.sqrt(rate * (1 - rate) / is_dropped.size)  # five standard deviations
    assert abs(is_dropped.mean() - rate) < allowed


# Initial weights


def test_initial_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (kernels(small(seed=seed)) for seed in (5, 5, 6))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_layers_of_one_shape_start_with_different_weights() -> None:
    found = kernels(ready_made("gn", "best"))
    assert not np.array_equal(found[4], found[5])


def test_torch_initializer_is_uniform_within_one_over_the_root_of_fan_in() -> None:
    for kernel in kernels(ready_made("gn", "era8")):
        bound = 1 / np.sqrt(kernel[..., 0].size)
        assert 0.9 * bound < np.abs(kernel).max() <= bound
        # A uniform spread has std bound/sqrt(3); 160 numbers give it to a tenth.
        assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.15)


# Mixed precision


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_mixed_bfloat16_gives_float32_logits_near_those_of_float32(norm: str) -> None:
    full = small(norm)
    mixed = small(norm, precision="mixed_bfloat16")
    assert mixed.get_layer("convblock1_conv1").compute_dtype == "bfloat16"
    assert {variable.dtype for variable in mixed.weights} == {"float32"}
    expected, found = logits(full), logits(mixed)
    assert found.dtype == np.float32
    # Ten layers of bfloat16 roundings, 2^-9 each, of which some add up.
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


# Training


@pytest.mark.backend("any", long_on="tensorflow")
def test_trains_with_plain_compile_and_fit() -> None:
    runtime.seed_everything(0, 0)
    model = small("bn", weight_standardization=True, dropout=0.05, l2=1e-4, classes=3)
    labels = np.arange(48) % 3
    x = np.zeros((48, 8, 8, 3), np.uint8)
    x[np.arange(48), :, :, labels] = 200  # each class is one color
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
    history = model.fit(x, labels, batch_size=16, epochs=4, verbose=0)
    losses = history.history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    moving_mean = numpy(model.get_layer("convblock1_norm1").moving_mean.value)
    assert np.abs(moving_mean).max() > 0.01


# An ordinary Keras model


def is_stock(model: keras.Model) -> bool:
    return all(type(layer).__module__.startswith("keras.") for layer in model.layers)


def test_is_an_ordinary_functional_model_that_round_trips_through_its_config() -> None:
    model = small("bn")
    assert type(model) is type(keras.Model(model.input, model.output))
    assert is_stock(model)
    copy = keras.Model.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    assert names(copy) == names(model)
    np.testing.assert_array_equal(logits(copy), logits(model))


def test_the_input_says_whether_images_must_be_equalized() -> None:
    options = {"input_shape": (8, 8, 1), "classes": 2, "mean": (0.5,), "std": (0.2,)}
    model = build(resolve({"widths": NARROW}).model, **options, input_name=EQUALIZED_PIXELS)
    assert portable(model).inputs[0].name == model.inputs[0].name == EQUALIZED_PIXELS


# Portable copies


@pytest.mark.parametrize(
    ("norm", "weight_standardization"), [("bn", True), ("bn", False), ("gn", True)]
)
def test_portable_gives_the_same_logits_from_stock_layers(
    norm: str, weight_standardization: bool
) -> None:
    model = small(norm, "era8", weight_standardization=weight_standardization)
    scramble(model)
    copy = portable(model)
    assert is_stock(copy)
    assert is_stock(model) == (not weight_standardization)
    assert names(copy) == names(model)
    # Standardized kernels are computed by the same operations, once instead of at each call.
    np.testing.assert_allclose(logits(copy), logits(model), rtol=1e-5, atol=1e-5)


def test_portable_of_a_mixed_precision_model_is_the_float32_model() -> None:
    mixed = small("gn", weight_standardization=True, precision="mixed_bfloat16")
    full = small("gn", weight_standardization=True)
    scramble(mixed)
    full.set_weights(mixed.get_weights())
    copy = portable(mixed)
    assert {layer.compute_dtype for layer in copy.layers} == {"float32"}
    np.testing.assert_allclose(logits(copy), logits(full), rtol=1e-5, atol=1e-5)


def test_portable_copies_shares_nothing_and_leaves_the_original_alone() -> None:
    model = small("bn", weight_standardization=True)
    model.compile("sgd", "mse")
    before = logits(model)
    copy = portable(model)
    assert not copy.compiled
    for variable in copy.weights:
        variable.assign(ops.zeros_like(variable))
    np.testing.assert_array_equal(logits(model), before)
    assert model.compiled
    assert isinstance(model.get_layer("convblock1_conv1"), StandardizedConv2D)


def test_portable_keeps_regularizers_dropout_and_names() -> None:
    model = small("gn", weight_standardization=True, l2=0.1, dropout=0.2, dropout_kind="spatial")
    copy = portable(model)
    assert copy.name == model.name == "kerasnorm_gn"
    assert len(copy.losses) == 11
    assert copy.get_layer("convblock1_dropout1").rate == 0.2


def test_a_standardized_kernel_of_one_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 channels"):
        build_model("ln", widths=(4, 1, *[4] * 8))


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize(
    "norm", ["gn", *(pytest.param(norm, marks=pytest.mark.long) for norm in ("bn", "ln"))]
)
def test_a_model_saved_by_keras_is_opened_by_this_package(norm: str, tmp_path: Path) -> None:
    model = small(norm)
    model.compile("sgd", "mse")
    scramble(model)
    for name, saved in {"own": model, "clone": keras.models.clone_model(model)}.items():
        saved.set_weights(model.get_weights())
        saved.save(tmp_path / f"{name}.keras")
        opened = kerasnorm.load_model(tmp_path / f"{name}.keras")
        np.testing.assert_allclose(logits(opened), logits(model), rtol=1e-5, atol=1e-5)
    kerasnorm.portable(model).save(tmp_path / "stock.keras")
    assert is_stock(keras.saving.load_model(tmp_path / "stock.keras", custom_objects={}))


AUGMENTATION = {
    "flip": lambda: [keras.layers.RandomFlip()],
    "contrast": lambda: [keras.layers.RandomContrast(0.5)],
    "mixed": lambda: [keras.layers.MixUp(), keras.layers.RandAugment()],
    "nested": lambda: [
        keras.Sequential([keras.layers.RandomRotation(0.1), keras.layers.RandomZoom(0.1)])
    ],
}


@pytest.mark.parametrize("name", AUGMENTATION)
def test_portable_copies_leave_augmentation_out_and_keep_adapted_statistics(name: str) -> None:
    images = np.random.default_rng(0).uniform(0, 255, (20, 8, 8, 3)).astype(np.float32)
    normalization = keras.layers.Normalization()
    normalization.adapt(images)
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), *AUGMENTATION[name](), normalization, keras.layers.Flatten()]
    )
    copy = portable(model)
    texts = copy.to_json()
    assert "Random" not in texts
    assert "MixUp" not in texts
    mean, std = images.mean((0, 1, 2)), images.std((0, 1, 2))
    expected = ((images - mean) / std).reshape(20, -1)
    np.testing.assert_allclose(copy.predict(images, verbose=0), expected, rtol=1e-3, atol=1e-3)


def test_portable_refuses_a_model_of_two_outputs() -> None:
    image = keras.Input((4, 4, 1))
    with pytest.raises(ConfigError, match="Functional with 1 inputs and 2 outputs"):
        portable(keras.Model(image, [image, image + 1]))


def test_outputs_are_logits_or_their_softmax():
    logits, probabilities = (
        build_model("gn", input_shape=(8, 8, 3), widths=NARROW, outputs=outputs)
        for outputs in ("logits", "probabilities")
    )
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.float32)
    raw = ops.convert_to_numpy(logits(images, training=False)).astype(np.float64)
    expected = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    found = ops.convert_to_numpy(probabilities(images, training=False))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    labels = np.arange(5)
    loss = -np.log(expected[labels, labels]).mean()
    probabilities.compile(loss="sparse_categorical_crossentropy")
    assert np.isclose(probabilities.evaluate(images, labels, verbose=0), loss, rtol=1e-5)
    with pytest.raises(ConfigError, match="expected 'logits' or 'probabilities'"):
        build_model("gn", outputs="softmax")


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("order", ["conv-act-norm", "conv-norm-act"])
@pytest.mark.parametrize(("norm", "options"), [("in", {}), ("gn", {"groups": 4}), ("bn", {})])
def test_instance_norms_directly_before_the_average_are_said(
    norm: str, options: dict[str, Any], order: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With them every image has the same logits, and no kernel before the average a gradient."""
    model = small(norm, order=order, **options)
    pixels = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype(np.float32)
    is_lost = float(np.std(model.predict_on_batch(pixels), axis=0).max()) < 1e-6
    assert is_lost == (norm == "in" and order == "conv-act-norm")
    assert ("the same for every image" in caplog.text) == is_lost
