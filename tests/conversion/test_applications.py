"""The networks of keras.applications, with random weights and statistics."""

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
    return drawn(make(input_shape=(96, 96, 3), **options))


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
    x = np.random.default_rng(5).uniform(-1, 1, (2, 96, 96, 3)).astype("float32")
    expected, outputs = model.predict_on_batch(x), folded.model.predict_on_batch(x)
    assert np.abs(outputs - expected).max() <= 1e-5 * np.abs(expected).max()
    assert folded.difference <= 1e-5
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max()  # it reads its input


def test_a_network_without_norms_is_refused():
    with pytest.raises(ConfigError, match="'vgg16', which has none"):
        convert_norm(application("VGG16"), "gn")
