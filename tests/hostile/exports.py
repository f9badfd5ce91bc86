"""Models that people really export: each of them, as Keras or its runtime's own tools write it."""

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
    ("an ONNX file of batch 1", fixed_batch, "is evaluated"),
]
