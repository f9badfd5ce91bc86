"""Makes the export formats, each with the backend that can; in the helper's process.

Every artefact takes raw pixels as float32, (N, H, W, C), N free, and gives what the model gives.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasnorm.formats.archive import load_model
from kerasnorm.keras_settings import stock_keras


@stock_keras
def make(path: Path, name: str, out: Path, calibration: str | None = None) -> None:
    """Writes the Keras model at `path` to `out` in the format `name`.

    Args:
        path: A `.keras` file.
        name: Of the format.
        out: File or folder to write.
        calibration: `.npy` file of raw images, uint8: quantize to int8 with their ranges.
    """
    model = load_model(path)
    height, width, channels = model.input_shape[1:]
    model(np.zeros((1, height, width, channels), np.float32))  # ONNX export wants a used model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converters are noisy about each other
        if calibration is not None:
            out.write_bytes(_quantized(model, np.load(calibration)))
        else:
            MAKERS[name](model, out)


def _saved_model(model: keras.Model, out: Path) -> None:
    model.export(out, format="tf_saved_model", verbose=False)


def _onnx(model: keras.Model, out: Path) -> None:
    if keras.config.backend() == "tensorflow":
        _teach_erfc()
    model.export(out, format="onnx", verbose=False)


def _teach_erfc() -> None:
    """Lets tf2onnx write TensorFlow's exact GELU, whose erfc(x) = 1 - erf(x) ONNX does not have."""
    from tf2onnx.handler import tf_op

    def erfc(graph: Any, node: Any, **_: object) -> None:
        erf = graph.make_node("Erf", node.input)
        one = graph.make_const(f"{node.name}_one", np.ones((), np.float32))
        graph.remove_node(node.name)
        inputs = [one.output[0], erf.output[0]]
        graph.make_node("Sub", inputs, name=node.name, outputs=node.output)

    tf_op("Erfc").register_compat_handler(erfc, 9)


def _litert(model: keras.Model, out: Path) -> None:
    model.export(out, format="litert", verbose=False)


def _openvino(model: keras.Model, out: Path) -> None:
    model.export(str(out), format="openvino", verbose=False)


def _torch(model: keras.Model, out: Path) -> None:
    import torch

    from kerasnorm.formats.pt2 import clean

    model.eval()
    # Two images: torch.export takes a dimension of 1 for a constant.
    images = torch.zeros((2, *model.input_shape[1:]))
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes=(({0: batch},),))
    torch.export.save(program, out)
    out.write_bytes(clean(out))  # without the stack traces, which name the author's folders


MAKERS: dict[str, Callable[[keras.Model, Path], None]] = {
    "saved-model": _saved_model,
    "onnx": _onnx,
    "litert": _litert,
    "openvino": _openvino,
    "torch": _torch,
}


def _quantized(model: keras.Model, images: Any) -> bytes:
    """Returns the model as a LiteRT file of int8 weights and activations, uint8 pixels in."""
    import tensorflow as tf

    def samples() -> Iterator[list[Any]]:
        for image in images:
            yield [image[None].astype(np.float32)]

    with tempfile.TemporaryDirectory() as folder:
        _saved_model(model, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        return _convert_int8(converter, samples)


def _convert_int8(converter: Any, samples: Callable[[], Iterator[list[Any]]]) -> bytes:
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.float32
    content: bytes = converter.convert()
    return content
