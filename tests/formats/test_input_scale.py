"""Models that hold no rescaling: what they were trained on is asked for, applied and recorded."""

import json

import keras
import numpy as np
import pytest
from helpers.command import call
from keras import layers
from PIL import Image

from kerasnorm.errors import ConfigError
from kerasnorm.formats.archive import open_model
from kerasnorm.formats.input_scale import rescaling_layer, scaled, unscaled_layer

SHAPE = (8, 8, 3)
IMAGES = np.random.default_rng(0).integers(0, 200, (12, *SHAPE), dtype=np.uint8)
LABELS = np.arange(12) % 3
MEAN, STD = IMAGES.mean((0, 1, 2)), IMAGES.std((0, 1, 2))
SCALES = {
    "0-1": lambda pixels: pixels / 255,
    "-1-1": lambda pixels: pixels / 127.5 - 1,
    "0-255": lambda pixels: pixels,
    "standardize": lambda pixels: (pixels - MEAN) / STD,
}


def body(x):
    x = layers.Conv2D(4, 3, padding="same", name="first")(x)
    x = layers.Conv2D(3, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return layers.Flatten()(x)


def nested(x):
    inner = keras.Sequential([keras.Input(SHAPE), layers.Conv2D(4, 3, name="inner")])
    return layers.Dense(3)(layers.Flatten()(inner(x)))


def model(before=lambda x: x, then=body):
    image = keras.Input(SHAPE)
    return keras.Model(image, then(before(image)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the model "raw.keras" and the images "images.npz"."""
    folder = tmp_path_factory.mktemp("raw")
    model().save(folder / "raw.keras")
    arrays = {f"x_{half}": IMAGES for half in ("train", "test")}
    np.savez(folder / "images.npz", **arrays, y_train=LABELS, y_test=LABELS)
    return folder


@pytest.mark.backend("any")
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("then", [body, nested])
def test_the_pixels_are_brought_to_the_range_that_was_stated(tmp_path, scale, then):
    model(then=then).save(tmp_path / "model.keras")
    saved = open_model(tmp_path)
    expected = saved.model(SCALES[scale](IMAGES.astype(np.float32)))
    found = scaled(saved, scale, lambda: IMAGES)
    assert found.input_scale == scale
    np.testing.assert_allclose(
        found.predict(IMAGES), keras.ops.convert_to_numpy(expected), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("before", "then", "layer"),
    [
        (lambda x: x, body, "first"),
        (lambda x: x, nested, "inner"),
        (lambda x: layers.ZeroPadding2D()(layers.RandomFlip()(x)), body, "first"),
        (lambda x: layers.Activation("linear")(x[..., ::-1]), body, "first"),
        (layers.Rescaling(1 / 255), body, None),
        (lambda x: layers.ZeroPadding2D()(layers.Normalization(mean=1, variance=2)(x)), body, None),
        (lambda x: x / 255, body, None),
        (keras.Sequential([layers.Rescaling(1 / 255)]), body, None),
        (layers.BatchNormalization(), body, None),
        (layers.Activation("tanh"), body, None),
    ],
)
def test_a_convolution_that_raw_pixels_reach_is_found(before, then, layer):
    assert unscaled_layer(model(before, then)) == layer


ops = keras.ops
REVERSED = {  # the channels in reverse order, and pixels moved otherwise
    "slices": lambda x: x[..., ::-1],
    "stack": lambda x: ops.stack([x[..., i] for i in (2, 1, 0)], axis=-1),
    "concatenate": lambda x: ops.concatenate([x[..., i : i + 1] for i in (2, 1, 0)], axis=-1),
    "layer": lambda x: layers.Concatenate()(ops.split(x, 3, axis=-1)[::-1]),
    "unstack": lambda x: ops.stack(ops.unstack(x, axis=-1)[::-1], axis=-1),
    "flip": lambda x: ops.flip(x, -1),
    "take": lambda x: ops.take(x, [2, 1, 0], axis=-1),
    "roll": lambda x: ops.roll(ops.cast(x, "float32"), 1, axis=-1),
    "axes": lambda x: ops.moveaxis(ops.swapaxes(x, 1, 2), 1, 2),
    "dimensions": lambda x: ops.squeeze(ops.expand_dims(x, 1), 1),
}


@pytest.mark.parametrize("kind", REVERSED)
def test_pixels_that_are_moved_keep_their_range(kind):
    moved = REVERSED[kind]
    assert unscaled_layer(model(moved)) == "first"
    assert rescaling_layer(model(moved)) is None
    assert rescaling_layer(model(lambda x: moved(x) - 120)) is not None


@pytest.mark.parametrize("name", ["densenet", "mobilenet", "resnet50"])  # Keras's three modes
def test_the_preprocessing_of_an_application_is_a_rescaling(name):
    assert rescaling_layer(model(getattr(keras.applications, name).preprocess_input)) is not None


def test_a_model_that_rescales_its_input_is_not_rescaled_again(tmp_path):
    model(layers.Rescaling(1 / 255, name="inside")).save(tmp_path / "model.keras")
    with pytest.raises(ConfigError, match=r"rescales raw pixels itself, in 'inside'"):
        scaled(open_model(tmp_path), "0-1", lambda: IMAGES)


def loss_of(scale):
    """Returns a function of a saved model: its mean cross-entropy on pixels of that range."""

    def measure(saved):
        logits = keras.ops.convert_to_numpy(saved.model(SCALES[scale](IMAGES.astype(np.float32))))
        logits = logits.astype(np.float64)
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return -np.log(chances[np.arange(12), LABELS]).mean()

    return measure


@pytest.mark.backend("any")
@pytest.mark.parametrize("scale", SCALES)
def test_evaluate_takes_the_range_and_warns_without_it(files, scale):
    path, saved = files / "raw.keras", open_model(files / "raw.keras")
    words = ("evaluate", path, "--data", files / "images.npz", "--json")
    out, err = call(*words, "--input-scale", scale)
    assert json.loads(out)["loss"] == pytest.approx(loss_of(scale)(saved), rel=1e-4)
    assert "holds no rescaling" not in err
    if scale == "0-255":
        raw, err = call(*words)
        assert raw == out
        assert "holds no rescaling: its layer 'first' receives pixels of 0 to 255" in err
        assert "--input-scale 0-1, -1-1 or standardize" in err


@pytest.mark.parametrize(
    ("scale", "format_name", "name"),
    [
        ("standardize", "state-dict", "raw.safetensors"),
        pytest.param("0-255", "state-dict", "raw.safetensors", marks=pytest.mark.slow),
        # Keras opens these on the other backend, in a process of its own.
        pytest.param("-1-1", "keras", "raw.keras", marks=pytest.mark.slow),
        pytest.param("0-255", "keras", "raw.keras", marks=pytest.mark.slow),
    ],
)
def test_an_export_holds_the_range_and_its_metadata_name_it(
    files, scale, format_name, name, tmp_path
):
    pytest.importorskip("safetensors")
    pytest.importorskip("torch")
    path, data = files / "raw.keras", files / "images.npz"
    words = ("--format", format_name, "--out", tmp_path, "--data", data)
    call("export", path, *words, "--input-scale", scale)
    metadata = json.loads((tmp_path / f"{name}.json").read_text())
    assert metadata["input"]["input_scale"] == scale
    assert metadata["input"]["range"] == [0, 255]
    out, err = call("evaluate", tmp_path / name, "--data", data, "--json")
    assert json.loads(out)["loss"] == pytest.approx(loss_of(scale)(open_model(path)), rel=1e-3)
    assert "holds no rescaling" not in err


def test_predict_has_no_images_to_standardize_by_and_says_what_to_do(files, tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    words = ("predict", files / "raw.keras", tmp_path / "a.png", "--input-scale")
    _, err = call(*words, "standardize", code=2)
    assert "predict reads none" in err
    assert "--format keras --input-scale standardize --data DATA" in err
    chances = np.array(
        [c["confidence"] for c in json.loads(call(*words, "0-1", "--json")[0])[0]["classes"]]
    )
    pixels = IMAGES[:1].astype(np.float32) / 255
    logits = keras.ops.convert_to_numpy(open_model(files / "raw.keras").model(pixels))[0]
    expected = np.sort(np.exp(logits) / np.exp(logits).sum())[::-1]
    np.testing.assert_allclose(chances, expected, rtol=1e-4)


def test_a_file_of_another_runtime_takes_no_range(tmp_path):
    words = ("evaluate", tmp_path / "a.onnx", "--input-scale", "0-1")
    assert "--input-scale is for Keras" in call(*words, code=2)[1]
