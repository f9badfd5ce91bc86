"""The native torch engine on the classifiers of keras.applications, against Keras in float64."""

import keras
import numpy as np
import pytest
from keras import layers
from keras.src.backend.common import dtypes

torch = pytest.importorskip("torch")
if keras.backend.backend() != "torch":
    pytest.skip("needs the torch backend", allow_module_level=True)

from kerasnorm.data import Split  # noqa: E402
from kerasnorm.data.augment import Augmentation  # noqa: E402
from kerasnorm.data.batches import Batches  # noqa: E402
from kerasnorm.engines.keras_engine import KerasEngine  # noqa: E402
from kerasnorm.engines.torch.engine import TorchEngine  # noqa: E402
from kerasnorm.engines.torch.layers import Mode  # noqa: E402
from kerasnorm.engines.torch.lowering import LoweredModel  # noqa: E402
from kerasnorm.inspection.graph import flattened  # noqa: E402
from kerasnorm.layers import leaves  # noqa: E402
from kerasnorm.network import build_model  # noqa: E402
from tests.helpers import tiny  # noqa: E402

pytestmark = [pytest.mark.backend("torch"), pytest.mark.slow]
NETWORKS = (
    *("ResNet50", "ResNet50V2", "MobileNet", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0"),
    *("EfficientNetV2B0", "ConvNeXtTiny", "DenseNet121", "VGG16", "Xception", "InceptionV3"),
)
SIDES = {"Xception": 71, "InceptionV3": 75}
# Of these the gradient changes 6e6 and 5e7 times as much as the weights: each larger step would
# amplify what Keras rounds in its loss, which is float32.
RATES = {"ResNet50": 2**-21, "InceptionV3": 2**-24}
RANDOM = layers.Dropout, layers.SpatialDropout2D


def batch_norm(layer, inputs, training=None, mask=None):
    """BatchNormalization by its formula: Keras's own call computes in float32 whatever its type."""
    mean, variance = layer.moving_mean.value, layer.moving_variance.value
    if training and layer.trainable:
        mean = inputs.mean((0, 1, 2))
        variance = (inputs - mean).square().mean((0, 1, 2))
        for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving.assign(layer.momentum * moving.value + (1 - layer.momentum) * value.detach())
    y = (inputs - mean) / torch.sqrt(variance + layer.epsilon)
    y = y if layer.gamma is None else y * layer.gamma.value
    return y + layer.beta.value


@pytest.fixture(autouse=True)
def float64(monkeypatch):
    """Makes Keras compute everything in float64, which it leaves for float32 in an addition."""
    monkeypatch.setattr(layers.BatchNormalization, "call", batch_norm)
    result_type = dtypes.result_type
    monkeypatch.setattr(
        dtypes,
        "result_type",
        lambda *types: (
            "float64" if any("float64" in str(one) for one in types) else result_type(*types)
        ),
    )
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def network(name):
    """Returns a network in float64, its vectors moved, without dropout."""
    side = SIDES.get(name, 64)
    # Keras rescales with float32 numbers; by these, 1/64 and -2, it does so exactly.
    exactly = {"mean": [128 / 255] * 3, "std": [64 / 255] * 3, "input_shape": (side, side, 3)}
    model = build_model("keep", "plain", network=f"keras:{name}", **exactly)

    def exact(layer):
        if not isinstance(layer, layers.Layer):
            return layer
        config = layer.get_config() | {"dtype": "float64"}
        return type(layer).from_config(config | ({"rate": 0} if isinstance(layer, RANDOM) else {}))

    copy = keras.models.clone_model(model, clone_function=exact, recursive=True)
    copy = flattened(copy)  # a clone of a Sequential takes float32, to which Keras would cast
    copy.set_weights(model.get_weights())
    rng = np.random.default_rng(0)
    for variable in copy.variables:
        if len(variable.shape) == 1 and "float" in variable.dtype:
            moved = np.abs(1 + 0.1 * rng.normal(0, 1, variable.shape))
            is_scale = "gamma" in variable.path or "variance" in variable.path
            variable.assign(moved if is_scale else moved - 1)
    for layer in leaves(copy):
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()
    return copy


def images(model, count=4):
    return np.random.default_rng(1).integers(0, 256, (count, *model.input_shape[1:]), np.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_loss_and_gradients_equal_keras(name):
    model = network(name)
    lowered = LoweredModel(model)
    assert not lowered.foreign
    pixels, labels = torch.from_numpy(images(model)), torch.arange(4)
    start = model.get_weights()
    parameters = [variable.value for variable in model.trainable_variables]
    for training in (False, True):
        found = []
        for forward in (
            lambda x, training=training: model(x, training=training),
            lambda x, training=training: lowered(x, Mode(training=training)),
        ):
            logits = forward(pixels)
            loss = torch.nn.functional.cross_entropy(logits, labels)
            gradients = torch.autograd.grad(loss, parameters)
            found.append((logits.detach(), loss.detach(), gradients, model.get_weights()))
            model.set_weights(start)
        expected, received = found
        assert (received[0] - expected[0]).abs().max() <= 1e-5 * expected[0].abs().max()
        torch.testing.assert_close(received[1], expected[1], rtol=1e-5, atol=0)
        scale = max(float(gradient.abs().max()) for gradient in expected[2])
        for variable, a, b in zip(model.trainable_variables, received[2], expected[2], strict=True):
            assert float((a - b).abs().max()) <= 1e-5 * scale, variable.path
        for a, b in zip(received[3], expected[3], strict=True):  # the moving statistics
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_three_optimizer_steps_equal_keras(name):
    side = SIDES.get(name, 64)
    # Keras computes 1 - rate * decay in float32: of these powers of two, exactly.
    options = {"learning_rate": RATES.get(name, 2**-17), "weight_decay": 2**-5}
    config = tiny.config(batch_size=4, optimizer="sgd", schedule="constant", **options)
    pixels = np.random.default_rng(2).integers(0, 256, (12, side, side, 3), np.uint8)
    train = Split(pixels, np.arange(12) % 10)
    engines = []
    for kind in (KerasEngine, TorchEngine):
        augmentation = Augmentation(config.data, (side, side, 3), np.full(3, 100.0), 12, 0)
        batches = Batches(train, 4, 0, augmentation)
        engines.append(kind(network(name), batches, config.train))
    start = engines[0].model.get_weights()
    for engine in engines:
        assert engine.batches.steps == 3
        engine.train_epoch(0)
    stock, native = (engine.model.get_weights() for engine in engines)
    for begin, a, b in zip(start, native, stock, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        assert np.abs(a - b).max() <= 1e-3 * np.abs(b - begin).max() + 1e-8
