"""Precise batch norm: moments over all values, each layer behind batch statistics."""

import keras
import numpy as np
import pytest
from helpers.norm_nets import drawn, images, network, weights_by_path
from keras import layers

from kerasnorm import convert_norm, recalibrate
from kerasnorm.errors import ConfigError

pytestmark = pytest.mark.backend("any")


def test_statistics_are_those_of_all_values_under_batch_statistics():
    wide = {"dtype": "float64"}
    first = layers.Conv2D(4, 3, name="first", **wide)
    second = layers.Conv2D(5, 3, name="second", **wide)
    one, two = (layers.BatchNormalization(name=name, **wide) for name in ("one", "two"))
    model = keras.Sequential([keras.Input((8, 8, 3), dtype="float64"), first, one,
                              layers.Dropout(0.9, **wide), second, two])  # fmt: skip
    drawn(model)
    x = images(10)

    new = recalibrate(model, x, batch_size=4)

    # By hand: batches of 4, 3 and 3 in random order, the first norm with the moments of its batch.
    x = x[np.random.Generator(np.random.PCG64(0)).permutation(10)]
    inputs = {"one": [], "two": []}
    gamma, beta = (np.asarray(weight.numpy()) for weight in one.weights[:2])
    for part in (x[:4], x[4:7], x[7:]):
        y = keras.ops.convert_to_numpy(first(part))
        inputs["one"].append(y)
        mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
        y = gamma * (y - mean) / np.sqrt(variance + one.epsilon) + beta
        inputs["two"].append(keras.ops.convert_to_numpy(second(y)))
    for name, parts in inputs.items():
        values = np.concatenate(parts)
        layer = new.get_layer(name)
        assert np.allclose(layer.moving_mean.numpy(), values.mean((0, 1, 2)), atol=1e-6)
        assert np.allclose(layer.moving_variance.numpy(), values.var((0, 1, 2)), rtol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(100.0, 0.01), (-1000.0, 0.1), (1e4, 1.0)])
def test_the_variance_of_values_far_from_zero_is_theirs(mean, std):
    """A mean square minus the square of the mean has no digits left in float32."""
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.BatchNormalization()])
    x = (mean + std * images(40)).astype("float32")

    (norm,) = recalibrate(model, x, batch_size=8).layers

    values = x.astype("float64")
    assert np.allclose(norm.moving_mean.numpy(), values.mean((0, 1, 2)), rtol=1e-6)
    assert np.allclose(norm.moving_variance.numpy(), values.var((0, 1, 2)), rtol=1e-2)


@pytest.mark.parametrize("count", [3, 5])
def test_no_batch_is_of_a_single_image(count):
    """Whose values a norm of vectors would all make its shift."""
    flat, dense, first = layers.Flatten(), layers.Dense(4), layers.BatchNormalization(epsilon=1e-9)
    last = layers.BatchNormalization()
    model = drawn(keras.Sequential([keras.Input((8, 8, 3)), flat, dense, first, last]))
    new = recalibrate(model, images(count), batch_size=2)
    # Every batch of the first norm's outputs has mean beta, and the variance of its scale squared.
    gamma, beta = (weight.numpy() for weight in first.weights[:2])
    found = new.layers[-1]
    assert np.allclose(found.moving_mean.numpy(), beta, atol=1e-4)
    assert np.allclose(found.moving_variance.numpy(), gamma**2, rtol=1e-2)


@pytest.mark.parametrize("classes", [2, 5])
def test_images_that_come_class_by_class_give_the_statistics_of_all_classes(classes):
    """As the readers of class folders give them, so that neighbors are of one class."""
    conv, first, second = layers.Conv2D(4, 1), layers.BatchNormalization(), layers.Conv2D(3, 1)
    last = layers.BatchNormalization()
    model = drawn(keras.Sequential([keras.Input((8, 8, 3)), conv, first, second, last]))
    x = images(240) + np.repeat(20.0 * np.arange(classes), 240 // classes)[:, None, None, None]

    new = recalibrate(model, x.astype("float32"), batch_size=40)

    # Batches of one class would take its brightness away before the second convolution.
    values = keras.ops.convert_to_numpy(conv(x))
    gamma, beta = (weight.numpy() for weight in first.weights[:2])
    values = (values - values.mean((0, 1, 2))) / np.sqrt(values.var((0, 1, 2)) + first.epsilon)
    values = keras.ops.convert_to_numpy(second(gamma * values + beta))
    found = new.layers[-1]
    assert np.allclose(found.moving_variance.numpy(), values.var((0, 1, 2)), rtol=0.1)
    assert np.allclose(found.moving_mean.numpy(), values.mean((0, 1, 2)), atol=0.05)


def test_all_other_weights_stay_and_a_shared_norm_counts_every_call():
    model, x = network(), images(6)
    left, right = model.get_layer("left"), model.get_layer("right")
    before = weights_by_path(model)
    new = recalibrate(model, x, batch_size=6)
    after = weights_by_path(new)
    assert {*before} == {*after}
    for name, values in before.items():
        is_statistic = name.endswith(("moving_mean", "moving_variance"))
        assert np.array_equal(values, after[name]) != is_statistic, name
    assert all(np.array_equal(weights_by_path(model)[name], before[name]) for name in before)
    # One batch: the model in training mode gives what the shared norm received.
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    probe = keras.Model(model.input, [left.output, right.output])
    values = np.stack([keras.ops.convert_to_numpy(y) for y in probe(x, training=True)])
    shared = new.get_layer("shared_bn")
    assert np.allclose(shared.moving_mean.numpy(), values.mean((0, 1, 2, 3)), atol=1e-5)
    assert np.allclose(shared.moving_variance.numpy(), values.var((0, 1, 2, 3)), rtol=1e-4)


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="at least 2 images"):
        recalibrate(network(), images(1))
    with pytest.raises(ConfigError, match="Received: none; the"):
        recalibrate(convert_norm(network(), "gn").model, images())


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 9, 8, 3), (4, 3, 8, 8), (4, 8, 8, 3, 1)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ConfigError, match=r"images: expected .* \(N, 8, 8, 3\)") as caught:
        recalibrate(network(), np.zeros(shape, "float32"))
    assert str(caught.value).endswith(f"Received: images=an array of shape {shape}")


def test_a_model_of_two_inputs_is_refused():
    one, other = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    model = keras.Model([one, other], layers.BatchNormalization()(layers.add([one, other])))
    with pytest.raises(ConfigError, match="one input"):
        recalibrate(model, images())


def test_a_norm_of_masked_values_is_refused():
    steps = keras.Input((6, 4))
    model = keras.Model(steps, layers.BatchNormalization(name="bn")(layers.Masking()(steps)))
    with pytest.raises(ConfigError, match="its norm 'bn' receives a mask"):
        recalibrate(model, np.ones((4, 6, 4), "float32"))
