"""Fused norms on TensorFlow against Keras's layers in float64, and the graphs they are taken in."""

import itertools
import os

import keras
import numpy as np
import pytest
from helpers import tiny
from helpers.pairs import pairs

if keras.backend.backend() != "tensorflow":
    pytest.skip("needs the tensorflow backend", allow_module_level=True)

import tensorflow as tf
from keras import layers

from kerasnorm.engines.fused import ACTIVATIONS
from kerasnorm.engines.tensorflow import fused
from kerasnorm.engines.tensorflow.lowering import LoweredModel
from kerasnorm.training.fit import make_engine

pytestmark = [
    pytest.mark.backend("tensorflow"),
    pytest.mark.skipif(fused.library() is None, reason="there is no C++ compiler"),
]

EPSILON, RATE = 1e-3, 0.2
FUNCTIONS = {"linear": lambda x: x, "relu": tf.nn.relu, "relu6": tf.nn.relu6, "silu": tf.nn.silu}
PAIRS = [("linear", name) for name in FUNCTIONS] + [(name, "linear") for name in FUNCTIONS][1:]
SHAPES = [(5, 8, 8, 16), (3, 7, 5, 12), (1, 9, 9, 10), (4, 1, 1, 40), (2, 40, 36, 8)]
CASES = [
    (shape, groups, offset, has_residual, drops)
    for (shape, offset), (has_residual, drops) in zip(
        itertools.product(SHAPES, (0.0, 1000.0)),
        itertools.cycle([(False, False), (True, True), (True, False), (False, True), (True, True)]),
        strict=False,
    )
    for groups in (0, 2)
]


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape)


def norm_layer(groups, channels, dtype, gamma, beta):
    if groups:
        layer = layers.GroupNormalization(groups, epsilon=EPSILON, dtype=dtype)
    else:
        layer = layers.BatchNormalization(epsilon=EPSILON, momentum=0.7, dtype=dtype)
    layer.build((None, 1, 1, channels))
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    return layer


def passes(function, layer, inputs, upstream):
    """The output, the gradients of the inputs, scale and shift, and the moving statistics."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(layer, *inputs)
    weights = [variable.value for variable in layer.trainable_variables]
    gradients = tape.gradient(y, [*inputs, *weights], tf.cast(upstream, y.dtype))
    return [y, *gradients, *(variable.value for variable in layer.non_trainable_variables)]


@pytest.mark.parametrize(("functions", "dtype"), pairs(PAIRS, fused.TYPES), ids=str)
def test_a_fused_norm_is_that_of_keras_in_float64(functions, dtype):
    before, after = functions
    tolerance = 2e-5 if dtype == "float32" else 1e-2
    for shape, groups, offset, has_residual, drops in CASES:
        if dtype == "bfloat16" and offset:
            continue  # bfloat16 has no numbers between 1000 and 1004
        x, residual = normal(*shape) + offset, normal(*shape, 1)[..., 0]
        gamma, beta = np.abs(normal(shape[-1])) + 0.5, normal(shape[-1], 1)[:, 0]
        gamma, beta = gamma.astype("float32"), beta.astype("float32")
        given = [tf.cast(part, dtype) for part in ([x, residual] if has_residual else [x])]
        upstream = tf.cast(normal(*shape, 2)[..., 0], dtype)
        dropped = np.flatnonzero(np.random.default_rng(0).random(x.size) < RATE)
        kept = np.ones(x.size)
        kept[dropped if drops else []] = 0
        kept = kept.reshape(shape) / (1 - RATE if drops else 1)

        def exact(layer, x, *residuals, kept=kept):
            y = FUNCTIONS[after](layer(FUNCTIONS[before](x), training=True)) * kept
            return sum(residuals, y)

        def ours(layer, x, *residuals, drops=drops, dropped=dropped):
            assert fused.can_compute(layer)
            options = {"dropped": dropped, "rate": RATE} if drops else {}
            return fused.normalize(layer, x, *residuals, before=before, after=after, **options)

        policy = "float32" if dtype == "float32" else "mixed_bfloat16"
        received = passes(ours, norm_layer(groups, shape[-1], policy, gamma, beta), given, upstream)
        wide = [tf.cast(part, "float64") for part in given]
        expected = passes(
            exact, norm_layer(groups, shape[-1], "float64", gamma, beta), wide, upstream
        )
        for mine, theirs in zip(received, map(np.asarray, expected), strict=True):
            error = np.abs(tf.cast(mine, "float64") - theirs).max()
            assert error < tolerance * max(np.abs(theirs).max(), 0.1), (shape, groups)


def test_what_cannot_be_fused_is_left():
    kinds = layers.BatchNormalization, layers.GroupNormalization
    assert fused.can_compute(layers.BatchNormalization(scale=False))
    assert not fused.can_compute(layers.BatchNormalization(synchronized=True))
    assert not fused.can_compute(layers.LayerNormalization())
    for kind in kinds:
        assert not fused.can_compute(kind(dtype="float64"))
        assert not fused.can_compute(kind(trainable=False))
        assert not fused.can_compute(kind(axis=1))


def network(norm, activation):
    """Two units with every neighbour that can be joined, and one with none."""
    x = inputs = keras.Input((6, 6, 4))
    for rate in (0.3, 0.0):
        y = layers.Conv2D(4, 3, padding="same")(x)
        y = layers.Activation(activation)(norm()(y))
        x = layers.Add()([x, layers.Dropout(rate)(y) if rate else y])
    y = norm()(layers.Activation("relu")(x))
    return keras.Model(inputs, layers.Concatenate()([layers.Activation("silu")(y), y]))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("norm", "activation", "joined"),
    [
        (layers.BatchNormalization, "silu", 6),
        (lambda: layers.GroupNormalization(2, scale=False), "relu", 6),
        (layers.BatchNormalization, "mish", 1),  # no add behind an activation that is none of ours
    ],
)
def test_a_fused_graph_computes_what_its_layers_do(norm, activation, joined):
    model, x = network(norm, activation), tf.cast(normal(3, 6, 6, 4), "float32")
    start, received = model.get_weights(), []
    for is_fused in (True, False):
        model.set_weights(start)
        lowered = LoweredModel(model, is_compiled=False, is_fused=is_fused)
        assert len(lowered.joined) == is_fused * joined
        drawn, ends = lowered.draw([(1, 2, 3)], 3)

        @tf.function
        def step(lowered=lowered, drawn=drawn, ends=ends):
            with tf.GradientTape() as tape:
                y = lowered(x, drawn, ends[0])
            return y, tape.gradient(y, [variable.value for variable in model.trainable_variables])

        outputs = tf.nest.flatten(step())
        moved = [variable.value.numpy() for variable in model.non_trainable_variables]
        received.append([*outputs, *moved])
    for ours, theirs in zip(*received, strict=True):
        assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_subclasses_and_other_types_are_left():
    class Mine(layers.ReLU):
        def call(self, x):
            return 2 * x

    inputs = keras.Input((6, 6, 4))
    x = layers.GroupNormalization(2, dtype="mixed_bfloat16")(inputs)
    x = Mine()(layers.GroupNormalization(2)(layers.Conv2D(4, 1)(x)))
    lowered = LoweredModel(keras.Model(inputs, x), is_compiled=False, is_fused=True)
    assert [len(chain.calls) for chain in lowered.chains.values()] == [1]


def test_opening_the_operations_leaves_the_environment_alone(monkeypatch, tmp_path):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    garbage = tmp_path / "garbage.so"
    garbage.write_bytes(b"no library")
    with pytest.raises(OSError, match=r"garbage\.so"):
        fused._open(garbage)
    assert "GOMP_SPINCOUNT" not in os.environ


def test_the_option_decides_and_a_resumed_run_keeps_to_its_own():
    dataset = tiny.dataset()
    on, off = (make_engine(tiny.config(fused=flag), dataset) for flag in (True, False))
    assert on.fused_kernels == on.lowered.fused_kernels == fused.library().digest
    assert off.fused_kernels is None
    on.keep_to(None)
    assert on.fused_kernels is on.lowered.fused_kernels is None
    assert not on.lowered.chains


def test_threads_and_nan_do_not_change_other_images(monkeypatch):
    layer = norm_layer(1, 6, "float32", np.ones(6), np.zeros(6))
    x = normal(4, 5, 5, 6).astype("float32")
    y = fused.normalize(layer, tf.constant(x), after="silu").numpy()
    monkeypatch.setattr(fused, "threads", lambda backend: 3)
    assert np.array_equal(fused.normalize(layer, tf.constant(x), after="silu"), y)
    x[1, 2, 2, 3] = np.nan
    for after in ACTIVATIONS:
        spoilt = np.isnan(fused.normalize(layer, tf.constant(x), after=after).numpy())
        assert spoilt[1].all(), after
        assert not np.delete(spoilt, 1, axis=0).any(), after
