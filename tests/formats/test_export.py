"""Exports: they agree with Keras in their own runtimes, and say what they are."""

import importlib.util
import json
import re
import shutil
import warnings

import keras
import numpy as np
import pytest
from helpers import exported
from helpers.command import call
from helpers.exported import IMAGES, NAMES, SHAPE, network, path_of
from hostile.exports import INPUTS as HOSTILE
from hostile.exports import (
    ODD_NAMES,
    adapted,
    answer_in_a_dict,
    augmented,
    bracketed,
    fixed_batch,
    oddly_named,
)
from keras import layers

from kerasnorm.data import Split
from kerasnorm.errors import (
    ConfigError,
    CorruptFileError,
    KerasnormError,
    MissingPackageError,
    RunFolderError,
)
from kerasnorm.formats import FORMATS, check_formats, detect, export
from kerasnorm.formats.archive import open_model, save_model
from kerasnorm.formats.exported import metadata_path, open_any
from kerasnorm.formats.litert import dequantized
from kerasnorm.inspection.evaluation import log_softmax
from kerasnorm.inspection.outputs import as_logits, kind_by_values
from kerasnorm.runtime import installed_backends
from kerasnorm.tables import to_text

POSSIBLE = exported.possible()
QUICK = (adapted, augmented, bracketed)
QUICK_NAMES = [name for name in ("onnx", "torch") if name in POSSIBLE]
NORM_OPTIONS = {norm: {"norm": norm} for norm in exported.stock_norms()} | {
    "ln-element": {"norm": "ln", "ln_affine": "element"},
    "standardized": {"norm": "gn", "weight_standardization": True},
    "era8": {"norm": "bn", "recipe": "era8"},
    "gelu": {"norm": "ln", "activation": "gelu", "pooling": "average"},
    "elu": {"norm": "in", "activation": "elu", "pooling": "mean"},
    "silu": {"norm": "rms", "activation": "silu"},
    "mish": {"norm": "bn", "activation": "mish"},
    "leaky": {"norm": "none", "activation": "leaky_relu", "order": "conv-act-norm"},
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_an_export_opens_with_the_logits_and_the_metadata_of_its_model(exports, name):
    path = path_of(exports, name)
    metadata = json.loads(metadata_path(path).read_text())
    assert metadata["classes"] == list(NAMES)
    assert metadata["input"]["shape"] == [None, *SHAPE]
    assert metadata["input"]["range"] == [0, 255]
    assert metadata["accuracy"] == 0.5
    assert all(value < 1e-4 for value in metadata["max_difference"].values())
    assert {*metadata["max_difference"]} == {"1", "7", "256"}
    opened = open_any(path)
    assert opened.class_names == NAMES
    assert opened.image_shape == SHAPE
    assert opened.config == exported.config()
    assert not opened.wants_equalized
    expected = open_model(exports).predict(IMAGES)
    for n in (1, 3, 5):  # the batch is free
        np.testing.assert_allclose(opened.predict(IMAGES[:n]), expected[:n], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in POSSIBLE if name != "keras"])
def test_a_file_that_its_metadata_was_not_written_for_is_refused(exports, name, tmp_path):
    path = path_of(exports, name)
    shutil.copytree(path.parent, tmp_path / "copy")
    copy = tmp_path / "copy" / path.name
    changed = next(copy.rglob("*.pb")) if copy.is_dir() else copy
    changed.write_bytes(changed.read_bytes() + b" ")
    with pytest.raises(CorruptFileError, match="checksums differ"):
        open_any(copy)


WRITERS = {
    "keras": {"keras"},
    "saved-model": {"keras", "tensorflow"},
    "onnx": {"keras", "tensorflow", "onnx", "tf2onnx"},
    "litert": {"keras", "tensorflow"},
    "torch": {"keras", "torch"},
    "openvino": {"keras", "tensorflow", "openvino", "scipy"},
    "state-dict": {"keras", "safetensors", "torch"},
}


@pytest.mark.skipif("tensorflow" not in installed_backends(), reason="torch writes some then")
@pytest.mark.parametrize("name", POSSIBLE)
def test_the_metadata_name_the_packages_that_wrote_the_file(exports, name):
    metadata = json.loads(metadata_path(path_of(exports, name)).read_text())
    assert set(metadata["writer"]) == WRITERS[name]
    assert metadata["writer"]["keras"] == keras.__version__


@pytest.mark.long
def test_another_writer_than_before_is_a_warning(exports, tmp_path, caplog):
    pytest.importorskip("safetensors")
    with export.Exporter(open_model(exports), tmp_path, None) as exporter:
        done = exporter.export("state-dict")
        place = metadata_path(done.path)
        exporter.export("state-dict")
        assert not caplog.records
        place.write_text(json.dumps({"writer": {"keras": "3.0", "pickle": "1"}}))
        exporter.export("state-dict")
    assert "was written by keras, pickle, this one by keras, safetensors" in caplog.text


def test_exports_are_compared_in_a_table_with_their_accuracy(exports, tmp_path):
    pytest.importorskip("safetensors")
    saved = open_model(exports)
    labels = np.array([0, 1, 2, 3, 4], np.int32)
    right = np.mean(saved.model.predict(IMAGES, verbose=0).argmax(1) == labels)
    with export.Exporter(saved, tmp_path, 0.5, test=Split(IMAGES, labels)) as exporter:
        done = exporter.export("state-dict")
    assert done.accuracy == done.keras_accuracy == right
    files = [done.path, done.path.with_suffix(".py")]
    assert done.bytes == sum(file.stat().st_size for file in files)
    assert [done.path, *done.companions] == files  # none of them may stay behind
    assert done.place_text == f"{done.path} and {done.path.stem}.py"
    other = export.Export("onnx", tmp_path / "m.onnx", "", {}, "onnxruntime", {1: 2e-6, 7: 3e-6})
    lines = to_text(export.export_table([done, other])).splitlines()
    assert lines[1].split() == ["format", "kB", "ms", "difference", "accuracy", "%"]
    assert lines[3].split()[-1] == f"{100 * right:.2f}"
    assert lines[4].split() == ["onnx", "0", "-", "3.0e-06", "-"]
    assert "accuracy" not in to_text(export.export_table([other]))


def test_nothing_but_the_exports_is_left(exports):
    names = {path.name for path in (exports / "exports").iterdir()}
    files = {path_of(exports, name).name for name in POSSIBLE}
    companions = {"model.py", "model.bin"}
    assert names - companions == files | {f"{name}.json" for name in files}


def test_an_export_that_differs_from_keras_is_not_put_in_place(exports, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    pytest.importorskip("safetensors")
    with (
        export.Exporter(open_model(exports), tmp_path / "out", None) as exporter,
        pytest.raises(KerasnormError, match="Nothing was written"),
    ):
        exporter.export("state-dict")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.long
def test_what_is_no_export_is_not_written_over(tmp_path):
    pytest.importorskip("safetensors")
    save_model(network(), tmp_path / "model.keras", {})
    (tmp_path / "model.py").write_text("mine")
    saved = open_model(tmp_path)
    with export.Exporter(saved, tmp_path, None) as exporter:
        with pytest.raises(RunFolderError, match=r"model\.keras is the model itself"):
            exporter.export("keras")
        with pytest.raises(RunFolderError, match=r"model\.py is in the way"):
            exporter.export("state-dict")
        (tmp_path / "model.py").unlink()
        exporter.export("state-dict")
        exporter.export("state-dict")  # over its own
    other = tmp_path / "other.keras"
    other.write_bytes((tmp_path / "model.keras").read_bytes())
    with (
        export.Exporter(open_model(other), tmp_path, None) as exporter,
        pytest.raises(RunFolderError, match="is the model itself"),
    ):
        exporter.export("keras")


def stock_models():
    """Models as people write them, of Keras alone: {name: model}."""
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(4, 3)(image / 255.0)
    x = keras.layers.GlobalAveragePooling2D()(keras.activations.relu(x))
    head = [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
    return {
        "operations": keras.Model(image, keras.ops.softmax(keras.layers.Dense(3)(x))),
        "sequential": keras.Sequential([keras.Input(SHAPE), *head, keras.layers.Dense(3)]),
    }


@pytest.mark.parametrize("name", ["operations", "sequential"])
@pytest.mark.long
def test_models_of_stock_keras_are_exported(tmp_path, name):
    pytest.importorskip("onnxruntime")
    stock_models()[name].save(tmp_path / "model.keras")
    saved = open_model(tmp_path)
    with export.Exporter(saved, tmp_path / "out", None) as exporter:
        done = exporter.export("onnx")
    metadata_path(done.path).unlink()  # what it gives is then seen from what it gives
    opened = open_any(done.path)
    assert opened.kind == saved.kind == ("probabilities" if name == "operations" else "logits")
    np.testing.assert_allclose(opened.predict(IMAGES), saved.predict(IMAGES), atol=1e-4)


def test_a_missing_package_is_named_with_its_pip_command(monkeypatch):
    find = importlib.util.find_spec

    def without(*absent):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in absent else find(name)
        )

    without("tensorflow")
    with pytest.raises(MissingPackageError, match=r"pip install 'kerasnorm\[tensorflow\]'"):
        check_formats(["litert"])
    without("onnxruntime")
    with pytest.raises(MissingPackageError, match=r"onnxruntime.*pip install 'kerasnorm\[export"):
        check_formats(["onnx"])
    with pytest.raises(ConfigError, match="expected one of keras"):
        check_formats(["caffe"])
    without("openvino", "onnxruntime", "tensorflow")
    with pytest.raises(MissingPackageError) as caught:
        check_formats(["keras", "openvino", "onnx", "litert"])
    text = str(caught.value)
    for name, package in (("openvino", "openvino"), ("onnx", "onnxruntime"), ("litert", "tensor")):
        assert re.search(rf"{package}\w* \(for {name}\)", text)
    (extras,) = re.findall(r"pip install 'kerasnorm\[(.*)\]'", text)
    assert {*extras.split(",")} == {"export", "tensorflow"}
    assert FORMATS["openvino"].missing() == ["openvino"]
    assert FORMATS["keras"].missing() == []


@pytest.mark.parametrize("options", NORM_OPTIONS.values(), ids=NORM_OPTIONS)
@pytest.mark.long
def test_the_written_module_has_the_logits_of_any_norm(options, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from kerasnorm.formats import state_dict
    from kerasnorm.layers import portable

    model = portable(network(**options))
    path = tmp_path / "model.safetensors"
    save_model(model, tmp_path / "model.keras", {})
    state_dict.write(tmp_path / "model.keras", path)
    expected = np.asarray(model.predict(IMAGES, verbose=0))
    opened = state_dict.open_file(path)
    assert opened.shape[1:] == SHAPE
    np.testing.assert_allclose(opened.predict(IMAGES), expected, rtol=1e-4, atol=1e-4)
    back = np.asarray(state_dict.load(path).predict(IMAGES, verbose=0))
    np.testing.assert_allclose(back, expected, rtol=1e-4, atol=1e-4)
    lines = path.with_suffix(".py").read_text().splitlines()
    assert [line for line in lines if line.startswith(("import", "from"))] == [
        "import torch",
        "from torch import Tensor, nn",
        "from torch.nn import functional as F",
    ]
    assert torch is not None


def test_a_layer_that_no_module_is_written_for_is_named():
    from kerasnorm.formats.state_dict import generate

    image = keras.Input(SHAPE)
    features = keras.layers.SeparableConv2D(2, 3)(image)
    answer = keras.layers.Dense(2)(keras.layers.Flatten()(features))
    with pytest.raises(ConfigError, match=r"SeparableConv2D cannot be written.*--format torch"):
        generate(keras.Model(image, answer), "model.safetensors")
    leaky = keras.layers.LeakyReLU(name="leaky")
    features = keras.layers.Conv2D(2, 3, padding="same", activation=leaky)(image)
    answer = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(features))
    with pytest.raises(ConfigError, match=r"the activation <LeakyReLU name=leaky, .* be written"):
        generate(keras.Model(image, answer), "model.safetensors")


def test_a_module_scales_twice_where_its_model_does(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from kerasnorm.formats import state_dict

    image = keras.Input(SHAPE)
    x = keras.layers.Rescaling(1 / 255, name="scale")(image)
    x = keras.layers.Rescaling([1.0, 2.0, 3.0], [-0.5, 0.0, 0.5])(x)
    x = keras.layers.Conv2D(3, 1)(x)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(x))
    save_model(model, tmp_path / "model.keras", {})
    path = tmp_path / "model.safetensors"
    state_dict.write(tmp_path / "model.keras", path)
    expected = model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(state_dict.open_file(path).predict(IMAGES), expected, 1e-4, 1e-4)


@pytest.mark.parametrize("name", ["forward", "type", "training", "two words", "class"])
def test_a_layer_whose_name_a_module_cannot_take_is_named(name):
    pytest.importorskip("torch")
    from kerasnorm.formats.state_dict import generate

    image = keras.Input(SHAPE)
    features = keras.layers.Conv2D(2, 1, name=name)(image)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(features))
    with pytest.raises(ConfigError, match=f"A layer named '{name}' cannot be written"):
        generate(model, "model.safetensors")


@pytest.mark.long
def test_exact_gelu_and_probabilities_are_exported_as_such(tmp_path):
    pytest.importorskip("onnxruntime")
    image = keras.Input(SHAPE)
    scaled = keras.layers.Rescaling(1 / 255)(image)
    features = keras.layers.Conv2D(4, 3, activation="gelu")(scaled)  # ONNX has no erfc
    pooled = keras.layers.GlobalAveragePooling2D()(features)
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax")(pooled))
    save_model(model, tmp_path / "model.keras", {})
    saved = open_model(tmp_path)
    with export.Exporter(saved, tmp_path, None) as exporter:
        done = exporter.export("onnx")
    opened = open_any(done.path)
    assert opened.kind == "probabilities"
    np.testing.assert_allclose(opened.predict(IMAGES), saved.predict(IMAGES), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", NORM_OPTIONS.values(), ids=NORM_OPTIONS)
def test_every_norm_exports_to_every_format(options, tmp_path):
    save_model(network(**options), tmp_path / "model.keras", {})
    with export.Exporter(open_model(tmp_path), tmp_path / "out", None) as exporter:
        for name in POSSIBLE:
            assert exporter.export(name).max_difference < 1e-4


@pytest.mark.slow
def test_quantized_models_keep_most_of_their_accuracy(tmp_path):
    pytest.importorskip("tensorflow")
    from kerasnorm.data.shapes import shapes
    from kerasnorm.network import build_model

    data = shapes(400, 200)
    model = build_model("bn", widths=(8,) * 10)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data.train.images, data.train.labels, batch_size=20, epochs=4, verbose=0)
    save_model(model, tmp_path / "model.keras", {})
    saved = open_model(tmp_path)
    with export.Exporter(saved, tmp_path, None, test=data.test) as exporter:
        done = exporter.quantize(data.train.images[:50])
    guesses = saved.model.predict(data.test.images, verbose=0).argmax(1)
    assert done.keras_accuracy == pytest.approx(np.mean(guesses == data.test.labels))
    assert abs(done.accuracy - done.keras_accuracy) < 0.05
    metadata = json.loads(metadata_path(done.path).read_text())
    assert metadata["accuracy"] == done.accuracy
    assert metadata["accuracy_before_quantization"] == done.keras_accuracy
    assert open_any(done.path).predict(data.test.images).shape == (200, 10)
    assert detect(done.path).name == "litert"


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("classes", [2, 10, 300])
def test_outputs_of_a_quantized_softmax_are_probabilities(classes, dtype):
    logits = np.random.default_rng(classes).normal(0, 3, (500, classes))
    truth = np.exp(log_softmax(logits))
    zero = np.iinfo(dtype).min
    stored = np.clip(np.rint(truth * 256) + zero, zero, zero + 255).astype(dtype)
    found = dequantized(stored, 1 / 256, zero)
    assert np.allclose(found.sum(1), 1, atol=1e-5)
    assert kind_by_values(found) == "probabilities"
    # Half a step, and what all classes together were rounded by.
    assert np.abs(found - truth).max() <= (1 + classes * truth.max()) / 512


@pytest.mark.parametrize(
    ("dtype", "zero"), [("uint8", 0), ("uint8", 77), ("int8", -128), ("int16", 0)]
)
def test_other_quantized_outputs_are_the_numbers_that_they_stand_for(dtype, zero):
    limits = np.iinfo(dtype)
    stored = np.arange(limits.min, limits.max + 1, 5).astype(dtype).reshape(1, -1)
    expected = 0.3 * (stored.astype(np.float64) - zero)
    assert np.allclose(dequantized(stored, 0.3, zero), expected)
    plain = expected.astype(np.float32)
    assert dequantized(plain, 0.0, 0) is plain


@pytest.mark.long
@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("last", ["linear", "softmax"])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_a_fully_quantized_litert_file_gives_what_keras_gives(last, dtype, tmp_path):
    pytest.importorskip("ai_edge_litert")
    import tensorflow as tf

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(10, activation=last)(x))
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    model.export(str(tmp_path / "saved"), verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None].astype("float32")] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = getattr(tf, dtype)
    path = tmp_path / "model.tflite"
    path.write_bytes(converter.convert())
    expected = model.predict(images.astype("float32"), verbose=0)
    found = open_any(path)
    kind = "probabilities" if last == "softmax" else "logits"
    assert found.kind == kind
    logits = found.predict(images), as_logits(expected, kind)
    received, truth = (np.exp(log_softmax(one)) for one in logits)
    assert np.abs(received - truth).max() < 0.02


@pytest.mark.parametrize(
    "format_name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "saved-model" else ())
        for name in ("onnx", "saved-model")
        if name in POSSIBLE
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        make
        if make in (adapted, augmented, bracketed)
        else pytest.param(make, marks=pytest.mark.slow)
        for _, make, outcome in HOSTILE
        if outcome == "is exported"
    ],
)
@pytest.mark.long
def test_models_that_people_really_have_are_exported(make, format_name, tmp_path):
    saved = open_model(make(tmp_path))
    expected = saved.model.predict(IMAGES.astype(np.float32), verbose=0)
    with export.Exporter(saved, saved.path.parent / "out", None) as exporter:
        opened = open_any(exporter.export(format_name).path)
    answers = np.exp(opened.predict(IMAGES))
    np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("dtype", "names"), [("int32", POSSIBLE), ("uint8", QUICK_NAMES), ("float16", QUICK_NAMES)]
)
def test_models_of_other_types_of_pixels_are_exported_to_take_float32(dtype, names, tmp_path):
    pixels = keras.Input(SHAPE, dtype=dtype)
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(layers.Rescaling(1 / 255)(pixels))
    x = layers.GlobalAveragePooling2D(keepdims=True)(layers.Activation("relu")(x))
    x = layers.Flatten()(layers.Conv2D(3, 1, use_bias=False)(x))
    model = keras.Model(pixels, x)
    model.save(tmp_path / "model.keras")
    expected = model.predict(IMAGES.astype(dtype), verbose=0)
    with export.Exporter(open_model(tmp_path / "model.keras"), tmp_path / "out", None) as exporter:
        for name in names:
            place = exporter.export(name).path
            assert json.loads(metadata_path(place).read_text())["input"]["dtype"] == "float32"
            found = open_any(place).predict(IMAGES)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.backend("torch")
@pytest.mark.long
def test_operations_of_keras_that_only_compute_are_admitted(tmp_path):
    from kerasnorm.formats import torch_program

    image = keras.Input(SHAPE)
    x = keras.ops.roll(keras.ops.flip(image, axis=1), 2, axis=2)
    x = keras.ops.take(keras.ops.floor(keras.ops.log1p(x)), [2, 0], axis=-1)
    low = keras.ops.less(x, keras.ops.mean(x, axis=-1, keepdims=True))
    x = keras.ops.where(keras.ops.logical_or(low, keras.ops.isnan(x)), 0.5 * x, x)
    x = layers.AdaptiveMaxPooling2D(2)(keras.ops.concatenate([x, keras.ops.sin(x)], axis=-1))
    model = keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))
    model.save(tmp_path / "model.keras")
    torch_program.write(tmp_path / "model.keras", tmp_path / "model.pt2")
    opened = torch_program.open_file(tmp_path / "model.pt2")
    expected = model.predict(IMAGES.astype(np.float32), verbose=0)
    np.testing.assert_allclose(opened.predict(IMAGES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.backend("any")
@pytest.mark.parametrize("make", [answer_in_a_dict, oddly_named])
def test_models_of_any_structure_and_names_are_opened(make, tmp_path):
    path = make(tmp_path)
    plain = tmp_path / "plain.keras"
    images = IMAGES.astype(np.float32)
    if make is oddly_named:
        expected = keras.saving.load_model(plain).predict(images, verbose=0)
    else:
        expected = keras.saving.load_model(path).predict({"image": images}, verbose=0)["answer"]
    opened = open_model(path)
    np.testing.assert_allclose(np.exp(opened.predict(IMAGES)), expected, rtol=1e-4)
    if make is oddly_named:
        names = {layer.name for layer in opened.model.layers}
        is_kept = keras.backend.backend() != "tensorflow"
        assert ({ODD_NAMES["sum"], ODD_NAMES["inner"], ODD_NAMES["pool"]} <= names) == is_kept
        assert is_kept or {"layer_a___b", "layer_a___b_", "layer__inner"} <= names


@pytest.mark.backend("any")
def test_a_quantized_model_is_refused_with_the_reason(tmp_path):
    model = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(3, name="last")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the layers that quantize() passes over
        model.quantize("int8")
    model.save(tmp_path / "model.keras")
    words = ("export", tmp_path / "model.keras", "--format", "keras", "--input-scale", "0-255")
    _, err = call(*words, code=2)
    assert "its layer 'last' was quantized by model.quantize()" in err
    assert len(err.strip().splitlines()) == 1


def test_a_model_of_a_fixed_batch_is_run_one_image_at_a_time(tmp_path):
    pytest.importorskip("onnxruntime")
    opened = open_any(fixed_batch(tmp_path))
    np.testing.assert_allclose(opened.predict(IMAGES), IMAGES.mean((1, 2)), rtol=1e-5)


def test_a_file_that_its_runtime_cannot_open_is_not_called_damaged(tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    model = onnx.load(fixed_batch(tmp_path))
    model.graph.node[0].op_type = "NoSuchOperation"
    onnx.save(model, tmp_path / "new.onnx")
    with pytest.raises(CorruptFileError, match=r"could not be opened: .*NoSuchOperation"):
        open_any(tmp_path / "new.onnx")


def test_differences_are_judged_by_how_far_logits_lie_apart():
    apart = np.array([[-1.0, 1.0], [1.0, -1.0]], np.float32)
    assert export.tolerated(apart) == pytest.approx(1.1e-4)
    assert export.tolerated(100 * apart) == pytest.approx(1.1e-2)
    near = np.log(0.5 + 1e-3 * apart)  # 1e-4 would be a tenth of their spread
    assert export.tolerated(near) < 1e-5


@pytest.fixture
def separable(tmp_path, monkeypatch):
    """A model that the state dict cannot hold; there are two formats."""
    pytest.importorskip("safetensors")
    two = {name: FORMATS[name] for name in ("keras", "state-dict")}
    monkeypatch.setattr("kerasnorm.cli.formats.FORMATS", two)
    image = keras.Input(SHAPE)
    x = keras.layers.SeparableConv2D(2, 3)(keras.layers.Rescaling(1 / 255)(image))
    answer = keras.layers.Dense(2)(keras.layers.Flatten()(x))
    save_model(keras.Model(image, answer), tmp_path / "model.keras", {})
    return tmp_path / "model.keras"


@pytest.mark.long
def test_of_all_formats_one_that_cannot_hold_the_network_is_left_out(separable, tmp_path):
    out = tmp_path / "out"
    text, notes = call("export", separable, "--format", "all", "--out", out)
    assert "state-dict is left out, since it cannot hold the network: " in notes
    assert "a layer of type SeparableConv2D" in notes
    assert (out / "model.keras").is_file()
    assert not (out / "model.safetensors").exists()
    assert "Exports" in text


@pytest.mark.long
def test_a_format_that_was_named_or_fails_otherwise_ends_all_with_code_1(separable, tmp_path):
    named = ["--format", "all", "--format", "state-dict", "--out", tmp_path / "out"]
    assert "1 of 2 exports failed" in call("export", separable, *named, code=1)[1]
    own = ["--format", "all", "--out", tmp_path]  # the .keras export would replace the model
    notes = call("export", separable, *own, code=1)[1]
    assert "1 of 2 exports failed, for the reasons above: keras." in notes
    assert "state-dict is left out" in notes
    assert "The others" not in notes


def test_one_failed_format_does_not_end_the_others(tmp_path):
    pytest.importorskip("safetensors")
    save_model(network(), tmp_path / "model.keras", {})
    formats = ["--format", "keras", "--format", "state-dict"]
    model = tmp_path / "model.keras"
    _, err = call("export", model, *formats, "--out", tmp_path, code=1)
    assert "1 of 2 exports failed, for the reasons above: keras." in err
    assert (tmp_path / "model.safetensors").is_file()
