"""LiteRT (TensorFlow Lite) files, in float32 and quantized to int8."""

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnorm.formats import archive, saved_model
from kerasnorm.formats.format import Format, Opened, fixed_sizes, only
from kerasnorm.formats.safety import checks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def write_int8(source: Path, out: Path, calibration: "NDArray[np.uint8]") -> None:
    """Writes a LiteRT file of int8 weights and activations that takes uint8 pixels.

    The ranges of the activations are taken from `calibration`, raw images (N, H, W, C).
    """
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        saved_model.write(source, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            [image[None].astype("float32")] for image in calibration
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.float32
        out.write_bytes(converter.convert())


def open_file(path: Path) -> Opened:
    """Checks a LiteRT file and opens it in LiteRT's interpreter."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=checks.check_litert(path), num_threads=1)
    entry = only(path, interpreter.get_input_details(), "input")
    output = only(path, interpreter.get_output_details(), "output")
    scale, zero = entry["quantization"]
    shape = fixed_sizes(int(n) for n in entry.get("shape_signature", entry["shape"]))
    name = entry["name"].removeprefix("serving_default_").partition(":")[0]

    def call(batch: "NDArray[Any]") -> "NDArray[Any]":
        if not shape[0]:
            interpreter.resize_tensor_input(entry["index"], batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry["index"], batch)
        interpreter.invoke()
        return dequantized(interpreter.get_tensor(output["index"]), *output["quantization"])

    quantization = (float(scale), int(zero)) if scale else None
    return Opened(call, shape, np.dtype(entry["dtype"]).name, name, quantization)


def dequantized(outputs: "NDArray[Any]", scale: float, zero: int) -> "NDArray[Any]":
    """Returns outputs (N, classes) as the numbers that they stand for; a scale of 0 is none.

    Those of a softmax in 8 bits are multiples of 1/256 from 0 on
    (https://ai.google.dev/edge/litert/models/quantization_spec); rounded so, they need not sum to 1
    and are divided by their sum.
    """
    import numpy as np

    if not scale or outputs.dtype.kind == "f":
        return outputs
    numbers = (outputs.astype(np.float32) - zero) * np.float32(scale)
    if (scale, zero) != (1 / 256, np.iinfo(outputs.dtype).min):
        return numbers
    sums = numbers.sum(-1, keepdims=True)
    is_rounded = (sums > 0) & (abs(sums - 1) <= scale / 2 * numbers.shape[-1])
    return numbers / np.where(is_rounded, sums, 1)


FORMAT = Format(
    name="litert",
    suffix=".tflite",
    runtime="LiteRT interpreter",
    write=partial(archive.export_with_keras, format="litert"),
    open=open_file,
    modules=("ai_edge_litert.interpreter",),
    writers={"tensorflow": ()},
)
