"""The runtimes of the export formats: a file becomes a function from images to outputs.

All of this runs in the helper's process. Each opener checks its file first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.errors import CorruptFileError
from kerasnorm.inspection.outputs import check_finite
from kerasnorm.keras_settings import stock_keras

BATCH = 256
MAX_VALUES = 1 << 24  # of one image
MAX_CLASSES = 1 << 16

Call = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass
class Opened:
    """A file that is open in its runtime.

    Attributes:
        call: From a batch of images, (N, H, W, C) of `dtype`, to its outputs, (N, classes).
        image_shape: (H, W, C).
        dtype: Of the input: "float32" or "uint8".
        input_name: Of the input; says whether images must be equalized.
        quantization: Scale and zero point of a quantized input, else None.
        classes: Known once a first batch has run.
    """

    call: Call
    image_shape: tuple[int, ...]
    dtype: str
    input_name: str
    quantization: tuple[float, int] | None = None
    classes: int = 0

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the outputs (N, classes) for raw images (N, H, W, C)."""
        parts = [self._batch(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        return np.concatenate(parts)

    def _batch(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        batch = images.astype(np.float32)
        if self.quantization is not None:
            scale, zero = self.quantization
            limits = np.iinfo(self.dtype)
            batch = np.clip(np.rint(batch / scale) + zero, limits.min, limits.max)
        return np.asarray(self.call(batch.astype(self.dtype)), np.float32)


def open_file(path: Path, name: str) -> Opened:
    """Opens a file of the format `name`, once it has passed its checks.

    Raises:
        CorruptFileError: It is not safe to open, or no classifier of images.
    """
    opened = OPENERS[name](path)
    shape = opened.image_shape
    if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise CorruptFileError(
            f"{path}: expected a classifier of images (N, H, W, C) of fixed size. "
            f"Received: an input of (N, {', '.join(map(str, shape))})"
        )
    if np.prod(shape, dtype=np.float64) > MAX_VALUES:
        raise CorruptFileError(f"{path} takes images of more than {MAX_VALUES:,} values.")
    if opened.dtype not in ("float32", "uint8", "int8"):
        raise CorruptFileError(f"{path}: expected pixels as float32. Received: {opened.dtype}")
    probe = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (2, *shape), np.uint8)
    outputs = opened.predict(probe)
    if outputs.ndim != 2 or outputs.shape[0] != 2 or not 2 <= outputs.shape[1] <= MAX_CLASSES:
        raise CorruptFileError(
            f"{path}: expected outputs (N, classes) of two classes or more. "
            f"Received: {outputs.shape} for two images"
        )
    check_finite(outputs, path)
    opened.classes = outputs.shape[1]
    return opened


def _image_shape(dimensions: Any) -> tuple[int, ...]:
    return tuple(n if isinstance(n, int) else 0 for n in list(dimensions)[1:])


def _one(path: Path, items: Any, what: str) -> Any:
    items = list(items)
    if len(items) != 1:
        raise CorruptFileError(f"{path}: expected one {what}. Received: {len(items)}")
    return items[0]


def open_saved_model(path: Path) -> Opened:
    """Opens a folder of tf.saved_model."""
    import tensorflow as tf

    from kerasnorm.formats.inspection import check_saved_model

    check_saved_model(path)
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    name, spec = _one(path, function.structured_input_signature[1].items(), "input")
    output = _one(path, function.structured_outputs, "output")

    # `loaded` is named there to be kept alive: its functions do not do it.
    def call(batch: NDArray[Any], _: Any = loaded) -> NDArray[Any]:
        result: NDArray[Any] = function(**{name: tf.constant(batch)})[output].numpy()
        return result

    return Opened(call, _image_shape(spec.shape), spec.dtype.name, name)


def open_onnx(path: Path) -> Opened:
    """Opens an ONNX file in onnxruntime."""
    import onnxruntime

    from kerasnorm.formats.inspection import check_onnx

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        check_onnx(path), options, providers=["CPUExecutionProvider"]
    )
    entry = _one(path, session.get_inputs(), "input")
    output = _one(path, session.get_outputs(), "output").name
    types = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}

    def call(batch: NDArray[Any]) -> NDArray[Any]:
        result: NDArray[Any] = session.run([output], {entry.name: batch})[0]
        return result

    return Opened(call, _image_shape(entry.shape), types.get(entry.type, entry.type), entry.name)


def open_litert(path: Path) -> Opened:
    """Opens a LiteRT (TensorFlow Lite) file in its interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    from kerasnorm.formats.inspection import check_litert

    interpreter = Interpreter(model_content=check_litert(path), num_threads=1)
    entry = _one(path, interpreter.get_input_details(), "input")
    output = _one(path, interpreter.get_output_details(), "output")
    scale, zero = entry["quantization"]
    shape = [int(n) for n in entry.get("shape_signature", entry["shape"])]
    name = entry["name"].removeprefix("serving_default_").partition(":")[0]

    def call(batch: NDArray[Any]) -> NDArray[Any]:
        interpreter.resize_tensor_input(entry["index"], batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry["index"], batch)
        interpreter.invoke()
        result: NDArray[Any] = interpreter.get_tensor(output["index"])
        return result

    quantization = (float(scale), int(zero)) if scale else None
    return Opened(call, tuple(shape[1:]), np.dtype(entry["dtype"]).name, name, quantization)


def open_torch(path: Path) -> Opened:
    """Opens a `.pt2` file of torch.export."""
    import io

    import torch

    from kerasnorm.formats.pt2 import clean

    program = torch.export.load(io.BytesIO(clean(path)))
    module = program.module(check_guards=False)
    name = _one(path, program.graph_signature.user_inputs, "input")
    node = next(node for node in program.graph.nodes if node.name == name)
    value = node.meta["val"]

    def call(batch: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode():
            result: NDArray[Any] = module(torch.from_numpy(batch)).numpy()
            return result

    return Opened(call, _image_shape(value.shape), str(value.dtype).removeprefix("torch."), name)


def open_openvino(path: Path) -> Opened:
    """Opens an OpenVINO model (`.xml` with the `.bin` of the same name)."""
    import openvino

    from kerasnorm.formats.inspection import check_openvino

    check_openvino(path)
    core = openvino.Core()
    # bfloat16 is the default on CPUs that have it: off by 1e-2.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(path), "CPU", options)
    entry = _one(path, compiled.inputs, "input")
    dimensions = [0 if n.is_dynamic else n.get_length() for n in entry.get_partial_shape()]

    def call(batch: NDArray[Any]) -> NDArray[Any]:
        result: NDArray[Any] = compiled([batch])[compiled.output(0)]
        return result

    name = entry.any_name.partition(":")[0]
    return Opened(call, tuple(dimensions[1:]), entry.element_type.to_dtype().name, name)


def open_keras(path: Path) -> Opened:
    """Opens a `.keras` file in Keras, on the backend of this process."""
    from kerasnorm.formats.archive import load_model

    model = load_model(path)

    @stock_keras
    def call(batch: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(model.predict_on_batch(batch))  # compiled, where the backend compiles

    return Opened(call, model.input_shape[1:], "float32", model.inputs[0].name)


OPENERS: dict[str, Callable[[Path], Opened]] = {
    "keras": open_keras,
    "saved-model": open_saved_model,
    "onnx": open_onnx,
    "litert": open_litert,
    "torch": open_torch,
    "openvino": open_openvino,
}
# What is imported before the limit of memory is set.
IMPORTS: dict[str, tuple[str, ...]] = {
    "keras": ("keras",),
    "saved-model": ("tensorflow",),
    "onnx": ("onnx", "onnxruntime"),
    "litert": ("ai_edge_litert.interpreter",),
    "torch": ("torch.export", "sympy"),
    "openvino": ("openvino",),
}
