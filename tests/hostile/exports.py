"""Models that people really export: each of them, as Keras or its runtime's own tools write it."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers

SHAPE = (8, 8, 3)


def _save(folder: Path, *first: keras.layers.Layer, name: str = "model", head: str = "softmax"):
    path = folder / f"{name}.keras"
    path.parent.mkdir(parents=True, exist_ok=True)
    last = [layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(3, activation=head)]
    keras.Sequential([keras.Input(SHAPE), *first, *last]).save(path)
    return path


def adapted(folder: Path) -> Path:
    images = np.random.default_rng(0).uniform(0, 255, (10, *SHAPE)).astype(np.float32)
    layer = layers.Normalization()
    layer.adapt(images)
    return _save(folder, layer)


def augmented(folder: Path) -> Path:
    inner = keras.Sequential([layers.RandomRotation(0.1), layers.RandomContrast(0.1)])
    return _save(folder, layers.RandomFlip(), inner, layers.Rescaling(1 / 255))


def bracketed(folder: Path) -> Path:
    return _save(folder / "runs [1]", layers.Rescaling(1 / 255), name="model [2]")


def grouped(folder: Path) -> Path:
    """As ConvNeXt begins: constant statistics, then convolutions of one channel each."""
    scaled = layers.Normalization(mean=[100.0, 110.0, 120.0], variance=[1e3, 2e3, 3e3])
    return _save(folder, scaled, layers.Conv2D(6, 3, groups=3, padding="same"))


def answer_in_a_dict(folder: Path) -> Path:
    image = keras.Input(SHAPE, name="image")
    features = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(image))
    answer = layers.Dense(3, activation="softmax")(features)
    path = folder / "model.keras"
    keras.Model({"image": image}, {"answer": answer}).save(path)
    return path


def oddly_named(folder: Path) -> Path:
    """Writes what only the other backends build: TensorFlow rejects these names."""
    inner = keras.Sequential([keras.Input(SHAPE), layers.Conv2D(3, 1, name="first")], name="inner")
    image = keras.Input(SHAPE, name="pixels")
    x = layers.Rescaling(1 / 255)(image)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="sum")([inner(x), x]))
    path = folder / "model.keras"
    plain = folder / "plain.keras"
    keras.Model(image, layers.Dense(3, "softmax", name="last")(x)).save(plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                text = content.decode()
                for old, new in ODD_NAMES.items():
                    text = text.replace(f'"{old}"', json.dumps(new))
                content = text.encode()
            target.writestr(name, content)
    return path


ODD_NAMES = {
    "first": "conv 1: [ü]",
    "inner": "_inner",
    "pixels": "the pixels (RGB):0",
    "sum": "a + b",
    "pool": "layer_a___b",  # what "a + b" would become
}


def fixed_batch(folder: Path) -> Path:
    """Writes an ONNX file that takes one image at a time and answers its mean per channel."""
    import onnx
    from onnx import TensorProto, helper

    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, *SHAPE])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, [1, 3])
    node = helper.make_node("ReduceMean", ["images"], ["answer"], axes=[1, 2], keepdims=0)
    graph = helper.make_graph([node], "mean", [images], [answer])
    sets = [helper.make_opsetid("", 13)]
    path = folder / "fixed.onnx"
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), path)
    return path


INPUTS: list[tuple[str, Callable[[Path], Path], str]] = [
    ("an adapted Normalization", adapted, "is exported"),
    ("augmentation in the model, nested too", augmented, "is exported"),
    ("brackets in the folder and the name", bracketed, "is exported"),
    ("a grouped convolution after a Normalization", grouped, "is exported"),
    ("inputs and outputs in a dict", answer_in_a_dict, "is exported"),
    ("names that TensorFlow rejects", oddly_named, "is exported"),
    ("an ONNX file of batch 1", fixed_batch, "is evaluated"),
]
