"""Logits, probabilities or neither: by graph and values, and as every command sees them."""

import json
from functools import partial

import keras
import numpy as np
import pytest
from helpers.command import call
from keras import layers, ops

from kerasnorm.errors import CorruptFileError
from kerasnorm.formats.archive import open_model
from kerasnorm.formats.export import Exporter
from kerasnorm.formats.exported import metadata_path, open_any
from kerasnorm.inspection.evaluation import predict
from kerasnorm.inspection.output_graph import kind_by_graph, model_kind
from kerasnorm.inspection.outputs import as_logits, kind_by_values, output_kind

pytestmark = pytest.mark.backend("any")

SHAPE = (8, 8, 3)
CLASSES = ("a", "b", "c")
IMAGES = np.random.default_rng(0).integers(0, 256, (12, *SHAPE), np.uint8)
LABELS = np.arange(12) % 3


def _dense(x, activation=None, seed=0):
    start = keras.initializers.RandomNormal(stddev=0.3, seed=seed)
    return layers.Dense(3, activation=activation, kernel_initializer=start)(x)


def _conv(x, **options):
    return layers.Conv2D(3, 3, kernel_initializer=keras.initializers.GlorotNormal(1), **options)(x)


def _nested(x):
    inside = keras.Input((3,))
    return keras.Model(inside, layers.Dropout(0.5)(layers.Activation("linear")(inside)))(x)


# From pixels scaled to 0 to 1, as a map and as a vector, to the outputs.
PROBABILITIES = {
    "dense": lambda _, v: _dense(v, "softmax"),
    "then linear": lambda _, v: layers.Activation("linear")(_dense(v, "softmax")),
    "layer": lambda _, v: layers.Softmax()(_dense(v)),
    "operation": lambda _, v: ops.softmax(_dense(v)),
    "activation of a tensor": lambda _, v: keras.activations.softmax(_dense(v)),
    "average of two": lambda _, v: layers.Average()(
        [_dense(v, "softmax"), _dense(v, "softmax", seed=1)]
    ),
    "map, then pooled": lambda m, _: layers.GlobalAveragePooling2D()(
        _conv(m, activation="softmax")
    ),
    "map, averaged, pooled": lambda m, _: layers.GlobalAveragePooling2D()(
        layers.AveragePooling2D(2)(layers.Softmax()(_conv(m)))
    ),
    "map, mean": lambda m, _: ops.mean(ops.softmax(_conv(m)), axis=(1, 2)),
    "model within": lambda _, v: _nested(_dense(v, "softmax")),
    "reshaped": lambda _, v: layers.Flatten()(layers.Reshape((1, 3))(_dense(v, "softmax"))),
    "noise": lambda _, v: layers.GaussianNoise(0.1)(layers.Dropout(0.2)(_dense(v, "softmax"))),
}
# Where the graph does not tell.
BY_VALUES = {
    "exponentials over their sum": lambda _, v: _by_sum(ops.exp(_dense(v))),
    "sigmoids over their sum": lambda _, v: _by_sum(_dense(v, "sigmoid")),
    "sum of halves": lambda _, v: 0.5 * _dense(v, "softmax") + 0.5 * _dense(v, "softmax", seed=1),
}
LOGITS = {
    "dense": lambda _, v: _dense(v),
    "ReLU": lambda _, v: _dense(v, "relu"),
    "temperature": lambda _, v: _dense(v) / 2.0,
    "behind a softmax": lambda _, v: _dense(_dense(v, "softmax")),
    "map, pooled": lambda m, _: layers.GlobalAveragePooling2D()(_conv(m)),
    "logarithm": lambda _, v: ops.log_softmax(_dense(v)),
    "large scale": lambda _, v: 30.0 * _dense(v, "softmax"),
}
NEITHER = {
    "sigmoids": lambda _, v: _dense(v, "sigmoid"),
    "half a softmax": lambda _, v: 0.5 * _dense(v, "softmax"),
    "softmax over pixels": lambda m, _: layers.GlobalAveragePooling2D()(
        layers.Softmax(axis=(1, 2))(_conv(m))
    ),
    "largest of a map": lambda m, _: layers.GlobalMaxPooling2D()(
        layers.Softmax()(_conv(layers.AveragePooling2D(2)(m)))
    ),
}


def _by_sum(x):
    return x / ops.sum(x, axis=-1, keepdims=True)


def make(head):
    pixels = keras.Input(SHAPE)
    scaled = layers.Rescaling(1 / 255)(pixels)
    return keras.Model(pixels, head(scaled, layers.Flatten()(scaled)))


@pytest.mark.parametrize("name", PROBABILITIES)
def test_the_graph_shows_probabilities(name):
    assert kind_by_graph(make(PROBABILITIES[name])) == "probabilities"


KINDS = [
    *((head, "probabilities") for head in (PROBABILITIES | BY_VALUES).values()),
    *((head, "logits") for head in LOGITS.values()),
    *((head, "other") for head in NEITHER.values()),
]
NAMES = [*PROBABILITIES, *BY_VALUES, *LOGITS, *NEITHER]


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize(("head", "kind"), KINDS, ids=NAMES)
def test_every_head_is_what_it_is(head, kind):
    model = make(head)
    forward = partial(predict, model)
    assert model_kind(model, forward) == kind
    assert model_kind(model, forward, forward(IMAGES)) == kind
    assert model_kind(keras.Sequential([keras.Input(SHAPE), model]), forward) == kind


def test_small_positive_logits_that_sum_to_one_are_logits():
    dense = layers.Dense(3, kernel_initializer="zeros", bias_initializer="ones")
    model = make(lambda _, v: dense(v))
    dense.set_weights([dense.get_weights()[0], np.array([0.5, 0.25, 0.25])])
    assert kind_by_values(predict(model, IMAGES)) == "probabilities"
    assert model_kind(model, partial(predict, model), predict(model, IMAGES)) == "logits"


def test_half_precision_is_within_tolerance():
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.ones(1000), 50).astype(np.float16).astype(np.float32)
    assert kind_by_values(chances) == "probabilities"
    assert output_kind(chances, "probabilities") == "probabilities"
    assert output_kind(chances / 2, "probabilities") == "other"


def test_zeros_become_the_smallest_number():
    logits = as_logits(np.array([[0.0, 1.0]], np.float32), "probabilities")
    assert np.isfinite(logits).all()
    with pytest.raises(CorruptFileError, match=r"m\.keras.*sum to 0\.5 to 0\.5"):
        as_logits(np.array([[0.25, 0.25]], np.float32), "other", "m.keras")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "test"):
        for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
            place = folder / split / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:02d}.png")
    return folder


def by_hand(probabilities, labels):
    """Returns loss, accuracy, and the confidences of the mistakes, the highest first."""
    chances = probabilities.astype(np.float64)
    chances /= chances.sum(axis=1, keepdims=True)
    loss = -np.mean([np.log(chances[n, label]) for n, label in enumerate(labels)])
    right = chances.argmax(axis=1) == labels
    return loss, right.mean(), sorted(chances.max(axis=1)[~right], reverse=True)


COMMANDED = ("then linear", "average of two", "map, averaged, pooled", "model within")


@pytest.mark.parametrize("name", COMMANDED)
@pytest.mark.backend("any", long_on="tensorflow")
def test_the_commands_take_probabilities_for_what_they_are(name, data, tmp_path):
    model = make(PROBABILITIES[name])
    path = tmp_path / "model.keras"
    model.save(path)
    order = np.argsort(LABELS, kind="stable")  # of a data set of folders
    given = np.asarray(model.predict(IMAGES[order], verbose=0))
    loss, accuracy, confidences = by_hand(given, LABELS[order])
    found = json.loads(call("evaluate", path, "--data", data, "--json")[0])
    assert np.isclose(found["loss"], loss, rtol=1e-5)
    assert found["accuracy"] == accuracy
    mistakes = json.loads(call("misclassified", path, "--data", data, "--json")[0])
    np.testing.assert_allclose([m["confidence"] for m in mistakes], confidences[:10], rtol=1e-5)
    picture = data / "test" / CLASSES[LABELS[5]] / "05.png"
    (answer,) = json.loads(call("predict", path, picture, "--json")[0])
    expected = np.sort(np.asarray(model.predict(IMAGES[5:6], verbose=0))[0])[::-1]
    np.testing.assert_allclose([c["confidence"] for c in answer["classes"]], expected, rtol=1e-5)


@pytest.mark.parametrize("words", [["evaluate"], ["misclassified"]])
def test_what_is_neither_is_refused(words, data, tmp_path):
    make(NEITHER["sigmoids"]).save(tmp_path / "model.keras")
    *_, error = call(*words, tmp_path / "model.keras", "--data", data, "--json", code=5)
    assert "expected logits, or probabilities that sum to 1" in error


def _overflowing(value):
    """Finite weights, and outputs of NaN or infinity for bright images alone."""
    grow = {"nan": lambda x: x - x, "inf": lambda x: x}[value]
    return lambda _, v: _dense(v) + grow(ops.exp(100 * ops.mean(v, axis=-1, keepdims=True)))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_outputs_that_are_not_finite_are_refused(value, tmp_path):
    from PIL import Image

    make(_overflowing(value)).save(tmp_path / "model.keras")
    folder = tmp_path / "data"
    for split in ("train", "test"):
        for label, brightness in enumerate((0, 60, 255)):
            place = folder / split / CLASSES[label]
            place.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", SHAPE[:2], (brightness,) * 3).save(place / f"{number}.png")
    path = tmp_path / "model.keras"
    for command in ("evaluate", "misclassified"):
        out, error = call(command, path, "--data", folder, "--json", code=5)
        assert "NaN or infinity for 2 of 6 images" in error
        assert not out
    out, error = call("predict", path, folder / "test/c/0.png", "--json", code=5)
    assert "NaN or infinity for 1 of 1 images" in error


@pytest.mark.backend("any", slow_on="tensorflow")
@pytest.mark.parametrize("name", ["then linear", "average of two", "map, averaged, pooled"])
@pytest.mark.long
def test_an_exports_metadata_say_what_it_gives(name, tmp_path):
    pytest.importorskip("onnxruntime")
    make(PROBABILITIES[name]).save(tmp_path / "model.keras")
    saved = open_model(tmp_path / "model.keras")
    with Exporter(saved, tmp_path / "out", None) as exporter:
        path = exporter.export("onnx").path
    assert json.loads(metadata_path(path).read_text())["output"]["kind"] == "probabilities"
    stated = open_any(path)
    metadata_path(path).unlink()
    for opened in (stated, open_any(path)):
        assert opened.kind == "probabilities"
        np.testing.assert_allclose(opened.predict(IMAGES), saved.predict(IMAGES), atol=1e-4)
