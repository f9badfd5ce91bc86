"""The networks of keras.applications in float64, with random weights."""

import keras
import numpy as np
import pytest
from helpers.norm_nets import drawn, weights_by_path

from kerasnorm import convert_norm, fold_norms
from kerasnorm.errors import ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.backend("any")]
# Number of norms, and of batch norms that a convolution does not directly precede.
NORMS = {
    "MobileNet": (27, 0),
    "MobileNetV2": (52, 0),
    "MobileNetV3Small": (34, 0),
    "EfficientNetB0": (49, 0),
    "EfficientNetV2B0": (59, 0),
    "ResNet50": (53, 0),
    "ResNet50V2": (49, 17),
    "DenseNet121": (121, 62),
    "Xception": (40, 0),
    "NASNetMobile": (192, 4),
    "InceptionV3": (94, 0),
    "ConvNeXtTiny": (23, None),
}


def application(name):
    if name == "NASNetMobile" and keras.backend.backend() == "torch":
        pytest.skip("Keras does not build it on torch")
    make = getattr(keras.applications, name)
    options = {"weights": None, "classes": 10, "classifier_activation": None}
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("float64")
    try:
        model = make(input_shape=(96, 96, 3), **options)
    finally:
        keras.config.set_dtype_policy("float32")
    return measured(drawn(model))


def measured(model):
    """Makes the statistics those of some images, nearly: drawn alone they would drown the input."""
    norms = [one for one in model.layers if isinstance(one, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    model(pixels(8), training=True)
    rng = np.random.default_rng(6)
    for norm in norms:
        mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
        norm.moving_mean.assign(mean + rng.uniform(-0.3, 0.3, mean.shape) * np.sqrt(variance))
        norm.moving_variance.assign(variance * rng.uniform(0.7, 1.5, mean.shape))
    return model


def pixels(count, seed=5):
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 6, 6, 3)).repeat(16, 1).repeat(16, 2)
    return (coarse + rng.normal(0, 20, coarse.shape)).clip(0, 255).astype("float32")


@pytest.mark.parametrize("name", NORMS)
def test_all_norms_are_converted_and_batch_norms_folded(name):
    model, (count, kept) = application(name), NORMS[name]
    before = weights_by_path(model)

    converted = convert_norm(model, "gn")
    after = weights_by_path(converted.model)
    assert len(converted.layers) == count
    assert {row.after for row in converted.layers} == {"GroupNormalization"}
    assert {*before} - {*after} == {path for path in before if "/moving_" in path}
    assert all(np.array_equal(values, before[path]) for path, values in after.items())
    assert np.isfinite(converted.difference)

    if kept is None:
        with pytest.raises(ConfigError, match="expected a network with BatchNormalization"):
            fold_norms(model)
        return
    folded = fold_norms(model)
    assert sum(row.after == "kept" for row in folded.layers) == kept
    x = pixels(2, seed=7)
    expected, outputs = model.predict_on_batch(x), folded.model.predict_on_batch(x)
    # Keras on torch computes some operations of float64 in float32, whose rounding the network
    # amplifies.
    tolerance = 1e-5 if keras.backend.backend() == "torch" else 1e-11
    assert np.abs(outputs - expected).max() <= tolerance * np.abs(expected).max()
    assert folded.difference <= tolerance
    assert np.ptp(expected, axis=0).max() > 0.01 * np.abs(expected).max()  # it reads its input


def test_a_network_without_norms_is_refused():
    with pytest.raises(ConfigError, match="normalization layers"):
        convert_norm(application("VGG16"), "gn")
