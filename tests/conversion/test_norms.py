"""Converted norms: formulas by hand, what is carried over, what is refused."""

import keras
import numpy as np
import pytest
from helpers.norm_nets import drawn, images, network, single, weights_by_path
from keras import layers, ops

from kerasnorm import convert_norm
from kerasnorm.conversion.norms import effect_note, freeze_batch_norms
from kerasnorm.conversion.rebuild import Tap, rebuild
from kerasnorm.errors import ConfigError
from kerasnorm.layers import StandardizedConv2D, standardize_kernel
from kerasnorm.norms import EPSILON, Norm

pytestmark = pytest.mark.backend("any")
NORMS_OF_NETWORK = ["stem/bn", "block/inner_bn", "shared_bn", "last_bn"]


def by_hand(x, norm, gamma, beta, groups=1):
    """Normalizes x (N, H, W, C) in float64 by the definition of a norm."""
    x = x.astype(np.float64)
    shape = x.shape
    if norm in ("lnc", "rms"):
        axes = 3
    else:
        x, axes = x.reshape(*shape[:3], groups, -1), (1, 2, 4)
    mean = 0 if norm == "rms" else x.mean(axes, keepdims=True)
    variance = np.square(x - mean).mean(axes, keepdims=True)
    return ((x - mean) / np.sqrt(variance + EPSILON)).reshape(shape) * gamma + beta


CASES = {"gn": 4, "ln": 1, "in": 8, "lnc": 1, "rms": 1}


@pytest.mark.parametrize("norm", CASES)
def test_the_new_norm_normalizes_by_its_formula_with_the_old_scale_and_shift(norm):
    model, x = (
        single(layers.BatchNormalization()),
        np.random.default_rng(2).normal(size=(3, 6, 6, 8)),
    )
    gamma, beta = (np.asarray(w.numpy()) for w in model.layers[1].weights[:2])
    new = convert_norm(model, norm, **({"groups": 4} if norm == "gn" else {})).model
    expected = by_hand(x, norm, gamma, 0 if norm == "rms" else beta, CASES[norm])
    assert np.allclose(new.predict_on_batch(x), expected, atol=1e-5)


def test_every_norm_of_nested_and_shared_models_is_replaced():
    model = network()
    before = weights_by_path(model)
    done = convert_norm(model, "gn", groups=4)
    assert [row.name for row in done.layers] == NORMS_OF_NETWORK
    assert [(row.channels, row.groups) for row in done.layers] == [(6, 3), (6, 3), (4, 4), (8, 4)]
    after = weights_by_path(done.model)
    moving = {name for name in before if "moving" in name}
    assert {*after} == {*before} - moving
    assert all(np.array_equal(after[name], before[name]) for name in after)
    assert all(
        np.array_equal(values, before[name]) for name, values in weights_by_path(model).items()
    )
    assert [layer.name for layer in done.model.layers] == [layer.name for layer in model.layers]
    block = done.model.get_layer("block")
    assert len(done.model.get_layer("block")._inbound_nodes) == 2
    assert isinstance(block.get_layer("inner_bn"), layers.GroupNormalization)
    assert isinstance(done.model.get_layer("stem"), keras.Sequential)
    assert done.parameters[0] - done.parameters[1] == 2 * (6 + 6 + 4 + 8)
    assert not done.preserves
    assert not any(row.preserves for row in done.layers)


def test_what_a_layer_had_stays():
    norm = layers.BatchNormalization(
        scale=False,
        beta_regularizer=keras.regularizers.L2(0.1),
        beta_constraint="non_neg",
        beta_initializer="ones",
        dtype="mixed_bfloat16",
        name="norm",
    )
    model = single(norm)
    norm.trainable = False
    model.get_layer("norm").beta.assign(np.ones(8))
    new = convert_norm(model, "gn").model.get_layer("norm")
    assert new.dtype_policy.name == "mixed_bfloat16"
    assert (new.scale, new.center, new.trainable) == (False, True, False)
    assert float(new.beta_regularizer.l2) == pytest.approx(0.1)
    assert isinstance(new.beta_constraint, keras.constraints.NonNeg)
    assert isinstance(new.beta_initializer, keras.initializers.Ones)
    assert np.array_equal(new.beta.numpy(), np.ones(8))


def test_frozen_models_stay_frozen():
    model = network()
    model.get_layer("block").trainable = False
    new = convert_norm(model, "gn", groups=2).model
    assert not new.get_layer("block").get_layer("depthwise").trainable
    assert new.get_layer("stem").get_layer("conv").trainable
    assert len(new.trainable_weights) == len(model.trainable_weights)


@pytest.mark.parametrize(
    ("old", "norm", "after"),
    [
        (layers.BatchNormalization(), "bn", "kept"),
        (layers.LayerNormalization(), "lnc", "kept"),
        (layers.RMSNormalization(), "rms", "kept"),
        (layers.GroupNormalization(4), "gn", "kept"),
        (layers.GroupNormalization(-1), "in", "kept"),
        (layers.GroupNormalization(1), "ln", "kept"),
        (layers.GroupNormalization(2), "gn", "GroupNormalization"),
        (layers.RMSNormalization(), "lnc", "LayerNormalization"),
        (layers.LayerNormalization(), "rms", "RMSNormalization"),
    ],
)
def test_a_layer_that_is_the_wanted_norm_stays(old, norm, after):
    model = single(old)
    done = convert_norm(model, norm, **({"groups": 4} if norm == "gn" else {}))
    assert done.layers[0].after == after
    assert done.layers[0].preserves == done.preserves == (after == "kept")
    scale = next(w for w in model.weights if w.name in ("gamma", "scale"))
    new = next(w for w in done.model.weights if w.name in ("gamma", "scale"))
    assert np.array_equal(scale.numpy(), new.numpy())


def test_layer_norm_over_elements_loses_its_scale():
    done = convert_norm(single(layers.LayerNormalization(axis=(1, 2, 3))), "ln")
    assert done.layers[0].note == "scale and shift lost, scale and shift new"
    assert done.parameters == (2 * 6 * 6 * 8, 2 * 8)


def test_no_norm_is_the_network_without_the_layers():
    model, x = network(), images()
    done = convert_norm(model, "none")
    assert {row.after for row in done.layers} == {"removed"}
    assert not [w for w in weights_by_path(done.model) if "bn" in w]

    def through(values, *names):
        for name in names:
            values = model.get_layer(name)(values)
        return values

    y = ops.relu(model.get_layer("stem").get_layer("conv")(x))
    for _ in range(2):
        y = y + model.get_layer("block").get_layer("depthwise")(y)
    y = ops.concatenate([through(y, "left"), through(y, "right")], axis=-1)
    expected = ops.convert_to_numpy(through(ops.mean(y, (1, 2)), "logits"))
    assert np.allclose(done.model.predict_on_batch(x), expected, atol=1e-5)


def test_weight_standardization_of_the_convolutions_before_norms():
    pixels = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="stem")(pixels)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Conv2D(8, 1, name="sum_conv")(x)
    x = layers.Add()([x, layers.DepthwiseConv2D(1, name="depthwise")(x)])
    x = layers.BatchNormalization(name="bn2")(x)
    gate = layers.Conv2D(8, 1, activation="sigmoid", name="gate")(x)
    x = layers.Conv2D(4, 1, name="head")(layers.Multiply()([x, gate]))
    model = drawn(keras.Model(pixels, x))
    done = convert_norm(model, "keep", weight_standardization=True)
    chosen = [one.name for one in done.model.layers if isinstance(one, StandardizedConv2D)]
    assert chosen == ["stem", "sum_conv"]
    assert done.notes == (
        "Not standardized: 1 DepthwiseConv2D (no standardized form), such as depthwise.",
        "Not standardized: 2 Conv2D (no norm behind it), such as gate.",
    )
    kernel = np.asarray(done.model.get_layer("stem").kernel.numpy(), np.float64)
    assert np.array_equal(kernel, model.get_layer("stem").kernel.numpy())
    standardized = kernel - kernel.mean((0, 1, 2))
    standardized /= np.sqrt(27 * standardized.var((0, 1, 2)) + EPSILON)
    assert np.allclose(ops.convert_to_numpy(standardize_kernel(kernel)), standardized, atol=1e-6)


class OwnNorm(layers.Layer):
    """A user's norm: a scale of the channels."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=(shape[-1],), name="gamma", initializer="ones")

    def call(self, x):
        return x * self.gamma


class NormOfWidth(OwnNorm):
    """One that wants to know the channels."""

    def __init__(self, channels, **options):
        super().__init__(**options)
        self.channels = channels


def factory(channels, name):
    return NormOfWidth(channels, name=name)


RECORD = Norm(
    name="own",
    layer=lambda config, channels, **common: NormOfWidth(channels, **common),
    color="#000000",
)


@pytest.mark.parametrize("norm", [OwnNorm, NormOfWidth, factory, RECORD])
@pytest.mark.backend("any", long_on="tensorflow")
def test_a_norm_of_the_users_own(norm):
    model, x = network(), images()
    done = convert_norm(model, norm)
    assert all(row.after in ("OwnNorm", "NormOfWidth") for row in done.layers)
    assert done.layers[0].note == "shift lost"
    kind = done.layers[0].after
    assert done.notes == (f"Multiply-adds of layers of your own are not counted: {kind}.",)
    gamma = model.get_layer("stem").get_layer("bn").gamma
    new = done.model.get_layer("stem").get_layer("bn")
    assert np.array_equal(new.gamma.numpy(), gamma.numpy())
    assert getattr(new, "channels", 6) == 6
    assert np.isfinite(done.model.predict_on_batch(x)).all()


def test_frozen_batch_norms_run_in_inference_mode_in_training():
    model, x = network(), images()
    expected = model.predict_on_batch(x)
    assert sorted(freeze_batch_norms(model)) == ["bn", "inner_bn", "last_bn", "shared_bn"]
    assert np.allclose(ops.convert_to_numpy(model(x, training=True)), expected, atol=1e-5)
    with pytest.raises(ConfigError, match="expected a network with BatchNormalization"):
        freeze_batch_norms(single(layers.ReLU()))


def test_inputs_and_outputs_keep_their_structure():
    one, two = keras.Input((4, 4, 2), name="one"), keras.Input((4,), name="two")
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization(name="bn")(one))
    y = layers.Dense(2, name="dense")(two)
    model = drawn(keras.Model({"one": one, "two": two}, {"sum": x + y, "y": y}))
    new = convert_norm(model, "gn", groups=2).model
    values = {"one": images()[:, :4, :4, :2], "two": np.ones((4, 4), "float32")}
    assert {*new(values)} == {"sum", "y"}
    before, after = model.predict_on_batch(values), new.predict_on_batch(values)
    assert np.allclose(before["y"], after["y"])
    assert not np.allclose(before["sum"], after["sum"])


@pytest.mark.parametrize("shape", [(6, 6, 3), (5, 3), (3,)])
def test_the_measured_difference_of_a_network_that_compares_its_inputs(shape):
    inner = keras.Input(shape)
    norm = layers.BatchNormalization(name="bn")
    branch = keras.Model(inner, layers.Flatten()(norm(layers.Dense(4)(inner))), name="branch")
    one, two = keras.Input(shape), keras.Input(shape)
    model = drawn(keras.Model([one, two], layers.Subtract()([branch(one), branch(two)])))
    assert convert_norm(model, "gn", groups=2).difference > 0.1


def lambda_of_a_closure():
    factor = np.float32(0.5)
    return layers.Lambda(lambda x: ops.abs(x) * factor)


def lambda_of_a_function():
    def halved(x):
        return x / 2

    return layers.Lambda(halved, output_shape=(8, 8, 4), arguments={})


@pytest.mark.parametrize("made", [lambda_of_a_closure, lambda_of_a_function])
def test_a_lambda_computes_what_it_did(made):
    image = keras.Input((8, 8, 4))
    x = layers.BatchNormalization(name="bn")(layers.Dense(4)(made()(image)))
    model, x = drawn(keras.Model(image, x)), np.random.default_rng(0).normal(size=(2, 8, 8, 4))
    new = convert_norm(model, "bn").model
    assert np.array_equal(new.predict_on_batch(x), model.predict_on_batch(x))


class WithoutConfig(layers.Layer):
    """A layer of the user's whose `get_config` leaves out what its constructor needs."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, x):
        return x * self.factor


def test_a_layer_that_cannot_be_made_anew_is_named():
    image = keras.Input((8, 8, 4))
    x = layers.BatchNormalization(name="bn")(WithoutConfig(2.0)(image))
    with pytest.raises(
        ConfigError, match=r"'without_config.*' \(WithoutConfig\) cannot be made anew"
    ):
        convert_norm(keras.Model(image, x), "gn")


def test_a_mask_reaches_the_layers_behind_a_norm():
    steps = keras.Input((6, 4))
    x = layers.BatchNormalization(name="bn")(layers.Masking()(steps))
    outputs = layers.LayerNormalization(name="ln")(layers.GlobalAveragePooling1D()(x))
    model, x = keras.Model(steps, outputs), np.random.default_rng(0).normal(size=(2, 6, 4))
    x[:, 3:] = 0
    (norm,) = [layer for layer in model.layers if layer.name == "bn"]
    tapped, _ = rebuild(
        model, {id(norm): Tap(norm, lambda x, mask: norm(x, mask=mask, training=False))}
    )
    assert np.allclose(tapped.predict_on_batch(x), model.predict_on_batch(x), atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_the_measured_difference_is_that_of_pixels_whatever_their_type(dtype):
    image = keras.Input((8, 8, 3), dtype=dtype)
    x = layers.Conv2D(4, 3, name="conv")(layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, layers.BatchNormalization(name="bn")(x))
    found = convert_norm(model, "gn", groups=2)
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(dtype)
    one, other = (ops.convert_to_numpy(net(x)) for net in (model, found.model))
    assert np.abs(one - other).max() > 0.5  # a batch norm that was not trained changes nothing
    assert found.difference > 0.1
    assert not found.layers[0].preserves


def branches(norm, x):
    """Two branches that end in a norm, added."""
    one, two = (layers.Conv2D(8, 1)(x) for _ in range(2))
    return norm()(one) + layers.SpatialDropout2D(0.1)(norm()(two))


def one_branch(norm, x):
    """A norm that is added to what does not depend on it."""
    return layers.Add()([norm()(layers.Conv2D(8, 3, padding="same")(x)), layers.ReLU()(x)])


def pooled(x):
    return layers.GlobalAveragePooling2D()(x)


class FixedDropout(layers.Dropout):
    """A dropout that a user extends, as EfficientNet's code does."""


class Identity(layers.Layer):
    """A layer of the user's own that is called as one of Keras, and does something."""

    def call(self, x):
        return keras.ops.relu(x)


# What follows a convolution up to a vector, and whether the norms reach the vector by their mean.
ENDS = {
    "norm": (lambda norm, x: pooled(norm()(x)), True),
    "dropout": (lambda norm, x: pooled(layers.Dropout(0.5)(norm()(x))), True),
    "channels": (lambda norm, x: pooled(layers.SpatialDropout2D(0.5)(norm()(x))), True),
    "alpha": (lambda norm, x: pooled(layers.AlphaDropout(0.5)(norm()(x))), True),
    "gaussian": (lambda norm, x: pooled(layers.GaussianDropout(0.5)(norm()(x))), True),
    "noise": (lambda norm, x: pooled(layers.GaussianNoise(0.5)(norm()(x))), True),
    "penalty": (lambda norm, x: pooled(layers.ActivityRegularization(0.5)(norm()(x))), True),
    "identity": (lambda norm, x: pooled(layers.Identity()(norm()(x))), True),
    "gradient": (lambda norm, x: pooled(keras.ops.stop_gradient(norm()(x))), True),
    "linear": (lambda norm, x: pooled(layers.Activation("linear")(norm()(x))), True),
    "branches": (lambda norm, x: pooled(branches(norm, x)), True),
    "own dropout": (lambda norm, x: pooled(FixedDropout(0.5)(norm()(x))), True),
    "own identity": (lambda norm, x: pooled(Identity()(norm()(x))), False),
    "relu": (lambda norm, x: pooled(layers.ReLU()(norm()(x))), False),
    "maximum": (lambda norm, x: layers.GlobalMaxPooling2D()(norm()(x)), False),
    "flat": (lambda norm, x: layers.Flatten()(norm()(x)), False),
    "conv": (lambda norm, x: pooled(layers.Conv2D(4, 3)(norm()(x))), False),
}


def ending(end, norm):
    pixels = keras.Input((8, 8, 3))
    x = end(norm, layers.Conv2D(8, 3)(pixels))
    return drawn(keras.Model(pixels, layers.Dense(5)(x)))


def spread(model):
    """How far the outputs of different images lie apart."""
    return float(np.std(model.predict_on_batch(images(6)), axis=0).max())


@pytest.mark.parametrize("name", ENDS)
def test_an_instance_norm_before_an_average_leaves_nothing_of_the_image(name):
    end, is_lost = ENDS[name]
    alone = ending(end, lambda: layers.GroupNormalization(-1))
    assert (spread(alone) < 1e-5) == is_lost
    assert bool(effect_note(alone)) == is_lost
    model = ending(end, layers.BatchNormalization)
    done = convert_norm(model, "gn")
    assert spread(done.model) > 1e-3
    assert {row.groups for row in done.layers} == {4 if is_lost else 8}
    if is_lost:
        with pytest.raises(ConfigError, match="only the mean"):
            convert_norm(model, "in")


def test_a_branch_of_which_only_the_mean_is_read_has_groups_of_two_channels():
    model = ending(lambda norm, x: pooled(one_branch(norm, x)), layers.BatchNormalization)
    assert [row.groups for row in convert_norm(model, "gn").layers] == [4]


def test_a_map_of_one_position_is_seen_in_a_model_for_any_size():
    start, pixels = keras.Input((None, None, 3)), keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, strides=8, padding="same")(start)
    backbone = keras.Model(start, layers.ReLU()(layers.BatchNormalization()(x)))
    model = drawn(keras.Model(pixels, layers.Flatten()(backbone(pixels))))
    assert [row.groups for row in convert_norm(model, "gn").layers] == [4]
    with pytest.raises(ConfigError, match="one position"):
        convert_norm(model, "in")
