"""The native TensorFlow engine against that of Keras, and its dropout against chance."""

from itertools import pairwise
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import tiny

if keras.backend.backend() != "tensorflow":
    pytest.skip("needs the tensorflow backend", allow_module_level=True)

import tensorflow as tf
from keras import layers

from kerasnorm.engines.tensorflow.engine import TensorFlowEngine, inference, predict
from kerasnorm.engines.tensorflow.lowering import Dropout, LoweredModel
from kerasnorm.formats.archive import SavedModel
from kerasnorm.process_group import ProcessGroup
from kerasnorm.training.fit import make_batches, make_engine

pytestmark = [pytest.mark.backend("tensorflow"), pytest.mark.usefixtures("compiled")]


def pair(norm, recipe, **overrides):
    """A Keras engine and a native one in the same state."""
    options = {"dropout": 0.0, "batch_size": 7, "learning_rate": 1e-3, "groups": 2} | overrides
    return [
        make_engine(
            tiny.config(norm=norm, recipe=recipe, engine=engine, **options), tiny.dataset(64)
        )
        for engine in ("keras", "native")
    ]


def assert_ten_steps_are_equal(stock, native):
    assert isinstance(native, TensorFlowEngine)
    assert stock.batches.steps == 10  # the last of a single image
    tiny.assert_same_epoch(stock, native)
    expected, received = stock.state(), native.state()
    for name, array in expected.items():
        if name.startswith("model/"):
            error = np.abs(array - received[name]).max()
            assert error <= 1e-3 * np.abs(array).max() + 1e-5, name


@pytest.mark.parametrize(
    ("norm", "recipe", "options"),
    [
        # Keras's batch norm is 4e-5 from float64 in the first logits here, the fused one 1e-6: an
        # image near the border changes its class.
        pytest.param(
            *("bn", "era8", {"l1": 1e-4, "l2": 1e-3, "fused": False}), marks=pytest.mark.long
        ),
        pytest.param("ln", "best", {"ln_affine": "element"}, marks=pytest.mark.long),
        pytest.param("gn", "era8", {}, marks=pytest.mark.long),
        pytest.param("gn", "best", {}, marks=pytest.mark.slow),
        pytest.param("rms", "best", {"optimizer": "sgd"}, marks=pytest.mark.slow),
        pytest.param("bn", "best", {"optimizer": "muon"}, marks=pytest.mark.slow),
    ],
)
def test_ten_optimizer_steps_equal_the_keras_engine(norm, recipe, options):
    assert_ten_steps_are_equal(*pair(norm, recipe, **options))


@pytest.mark.long
@pytest.mark.parametrize(
    ("norm", "recipe", "options"),
    [
        ("gn", "era8", {"optimizer": "sgd", "momentum": 0.9}),  # the least to compile
        pytest.param("gn", "best", {}, marks=pytest.mark.slow),
        pytest.param("bn", "best", {}, marks=pytest.mark.slow),
    ],
)
def test_steps_compiled_by_xla_equal_the_keras_engine(norm, recipe, options):
    stock, native = pair(norm, recipe, **options)
    compiled = TensorFlowEngine(native.model, native.batches, native.config, is_compiled=True)
    assert compiled.whole_steps is not compiled.steps
    assert_ten_steps_are_equal(stock, compiled)


@pytest.mark.parametrize("is_hashed", [False, True])
@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_dropout_takes_each_value_with_its_probability(rate, is_hashed):
    count, steps = 20_000, 40
    dropout, taken = Dropout(layers.Dropout(rate), (), is_hashed), np.zeros(count)
    for step in range(steps):
        drawn = dropout.draw(np.random.default_rng(step), count)
        y = dropout(tf.ones([count]), tf.constant(drawn), (0, len(drawn)), 0).numpy()
        assert np.allclose(y[y != 0], 1 / (1 - rate))
        taken += y == 0
    spread = np.sqrt(count * steps * rate * (1 - rate))
    assert abs(taken.sum() - count * steps * rate) < 5 * spread
    assert abs(taken[: count // 2].sum() - taken[count // 2 :].sum()) < 5 * spread
    # Neither neighbors nor steps go together.
    centered = taken - taken.mean()
    for lag in (1, 2, 16, 32):
        assert abs(np.mean(centered[lag:] * centered[:-lag])) < 5 * taken.var() / np.sqrt(count)
    assert abs(taken.var() / (steps * rate * (1 - rate)) - 1) < 5 * np.sqrt(2 / count) + 0.05


def dropout_model(count, kind=layers.Dropout, rows=1):
    inputs = keras.Input((4, 5, 3))
    x = inputs if rows == 1 else keras.ops.reshape(inputs, (-1, 4 // rows, 5, 3))
    for _ in range(count):
        x = kind(0.3)(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_dropout_differs_from_layer_to_layer_and_step_to_step(is_compiled):
    lowered = LoweredModel(dropout_model(3), is_compiled=is_compiled)
    keys = [(0, epoch, step) for epoch in (0, 1) for step in (0, 1)]
    drawn, ends = lowered.draw(keys, 8)
    parts = {tuple(drawn[a:b]) for row in ends for a, b in pairwise(row)}
    assert len(parts) == 12
    alone, bounds = lowered.draw(keys[2:3], 8)
    assert np.array_equal(alone, drawn[ends[2, 0] : ends[2, -1]])
    assert np.array_equal(bounds[0], ends[2] - ends[2, 0])


@pytest.mark.parametrize("is_hashed", [False, True])
@pytest.mark.parametrize("kind", [layers.Dropout, layers.SpatialDropout2D])
@pytest.mark.parametrize("rows", [1, 2, 4])  # of an image
def test_parts_of_a_batch_drop_what_the_whole_batch_does(rows, kind, is_hashed):
    lowered = LoweredModel(dropout_model(2, kind, rows), is_compiled=False, is_hashed=is_hashed)
    drawn, ends = lowered.draw([(0, 0, 0)], 8)
    x = tf.ones([8, 4, 5, 3])
    parts = [lowered(x[a:b], drawn, ends[0], tf.constant(a)) for a, b in ((0, 3), (3, 8))]
    assert np.array_equal(lowered(x, drawn, ends[0]), tf.concat(parts, 0))


@pytest.mark.parametrize("is_hashed", [False, True])
def test_gradients_pass_where_values_do(is_hashed):
    dropout, x = Dropout(layers.Dropout(0.4), (100,), is_hashed), tf.ones([10, 100])
    drawn = tf.constant(dropout.draw(np.random.default_rng(0), 1000))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = dropout(x, drawn, (0, len(drawn)), 0)
    assert 0.3 < np.mean(y.numpy() == 0) < 0.5
    assert np.allclose(tape.gradient(y, x), y)  # of x = 1, both are the mask over 0.6


@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (layers.BatchNormalization(epsilon=1e-5), (0, 1, 2)),
        (layers.GroupNormalization(groups=1, epsilon=1e-5), (1, 2, 3)),
        (layers.GroupNormalization(groups=8, epsilon=1e-5), (1, 2)),
        (layers.LayerNormalization(axis=(1, 2, 3), epsilon=1e-5), (1, 2, 3)),
    ],
    ids=["bn", "ln", "in", "ln-element"],
)
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_mean_of_100_and_an_sd_of_one_hundredth_are_normalized_right(layer, axes, is_compiled):
    inputs = keras.Input((16, 16, 8))
    lowered = LoweredModel(keras.Model(inputs, layer(inputs)), is_compiled=is_compiled)
    rng = np.random.default_rng(0)
    x = (100 + 0.01 * rng.standard_normal((4, 16, 16, 8))).astype(np.float32)
    upstream = rng.standard_normal(x.shape)

    def slope(function, x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return y, tape.gradient(y, x, upstream)

    def exact(x):
        centered = x - tf.reduce_mean(x, axes, keepdims=True)
        variance = tf.reduce_mean(tf.square(centered), axes, keepdims=True)
        return centered / tf.sqrt(variance + 1e-5)

    none = tf.zeros([0], tf.int32), tf.zeros([1], tf.int32)
    run = tf.function(
        lambda x, g: slope(lambda x: lowered(x, *none), x, g), jit_compile=is_compiled
    )
    truth = slope(exact, tf.constant(x, tf.float64), tf.constant(upstream))
    found = run(tf.constant(x), tf.constant(upstream, tf.float32))
    for a, b in zip(found, truth, strict=True):
        assert np.abs(a.numpy() - b.numpy()).max() < 1e-2 * np.abs(b.numpy()).max()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "uint8"])
@pytest.mark.parametrize("form", ["rescaling", "subtract", "add"])
def test_raw_images_are_cast_to_the_inputs_type(form, dtype):
    inputs = keras.Input((6, 6, 3), dtype=dtype)
    if form == "rescaling":
        y = layers.BatchNormalization()(layers.Rescaling(1 / 255, -0.5)(inputs))
    else:
        y = inputs - 128 if form == "subtract" else layers.Add()([inputs, inputs])
    model = keras.Model(inputs, y)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 6, 3), np.uint8)
    expected = model(pixels, training=False).numpy().astype(np.float32)
    assert np.allclose(predict(inference(model), pixels), expected, rtol=1e-5, atol=1e-5)
    none = tf.zeros([0], tf.int32), tf.zeros([1], tf.int32)
    received = LoweredModel(model, is_compiled=False)(tf.constant(pixels), *none)
    expected = model(pixels, training=True).numpy().astype(np.float32)
    assert np.allclose(received.numpy().astype(np.float32), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("bn_sync", ["on", "off"])
def test_batch_norms_of_several_devices_are_synchronized_in_models_too(bn_sync, depth):
    config, data, group = tiny.config(bn_sync=bn_sync), tiny.dataset(), ProcessGroup()
    group.strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with group.scope():
        norm = layers.BatchNormalization(synchronized=bn_sync == "off")
        inner = norm
        for _ in range(depth):
            inner = keras.Sequential([keras.Input(data.image_shape), inner])
        model = keras.Sequential([keras.Input(data.image_shape), inner, layers.Flatten(),
                                  layers.Dense(10)])  # fmt: skip
        TensorFlowEngine(model, make_batches(config, data), config.train, group)
    assert norm.synchronized == (bn_sync == "on")


def test_a_saved_model_is_traced_once_and_follows_its_variables():
    traces = []

    class Traced(keras.layers.Layer):
        def call(self, x):
            traces.append(x)
            return x

    pool, head = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((4, 5, 2)), Traced(), pool, head])
    saved = SavedModel(Path("model.keras"), model, tuple("abc"), None)
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 5, 2), dtype=np.uint8)
    traces.clear()
    for count in (9, 1, 4):
        head.kernel.assign(head.kernel * 2)
        means = images[:count].astype(np.float64).mean((1, 2))
        expected = means @ head.kernel.numpy() + head.bias.numpy()
        np.testing.assert_allclose(saved.predict(images[:count]), expected, rtol=1e-4, atol=1e-3)
        assert len(traces) == 1
