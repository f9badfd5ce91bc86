"""ONNX files, run by onnxruntime."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnorm.formats import archive
from kerasnorm.formats.format import Format, Opened, fixed_sizes, only
from kerasnorm.formats.safety import checks

if TYPE_CHECKING:
    import keras

TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


def write(source: Path, out: Path) -> None:
    """Writes the model of a `.keras` file as an ONNX file."""
    import keras

    model = archive.load_used_model(source)
    with ExitStack() as stack:
        if keras.config.backend() == "tensorflow":
            _register_erfc()
            _make_constant(model)
            stack.enter_context(_without_xla())
        model.export(str(out), format="onnx", verbose=False)


def _make_constant(model: "keras.Model") -> None:
    """Makes the tensors that Normalization derived from its weights constants of a graph.

    tf2onnx writes tensors from outside of the graph as further inputs.
    """
    import keras
    import numpy as np

    from kerasnorm.layers import leaves

    for layer in leaves(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)


@contextmanager
def _without_xla() -> Iterator[None]:
    """Lets TensorFlow trace what Keras compiles with XLA as any other operation.

    Those are grouped convolutions, which older kernels for CPUs lacked: tf2onnx writes the compiled
    function as an operation that ONNX does not have. Their graph is only converted here, not run.
    """
    from unittest import mock  # with asyncio, too much for every command's start

    import tensorflow as tf

    function = tf.function

    def traced(*args: Any, jit_compile: bool | None = None, **options: Any) -> Any:
        if jit_compile and not args:
            return lambda plain: plain
        return function(*args, **options)

    with mock.patch.object(tf, "function", traced):
        yield


def _register_erfc() -> None:
    """Lets tf2onnx write TensorFlow's exact GELU, whose erfc(x) = 1 - erf(x) ONNX does not have."""
    import numpy as np
    from tf2onnx.handler import tf_op

    def erfc(graph: Any, node: Any, **_: object) -> None:
        erf = graph.make_node("Erf", node.input)
        one = graph.make_const(f"{node.name}_one", np.ones((), np.float32))
        graph.remove_node(node.name)
        inputs = [one.output[0], erf.output[0]]
        graph.make_node("Sub", inputs, name=node.name, outputs=node.output)

    tf_op("Erfc").register_compat_handler(erfc, 9)


def open_file(path: Path) -> Opened:
    """Checks an ONNX file and opens it in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    content, providers = checks.check_onnx(path), ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(content, options, providers=providers)
    entry = only(path, session.get_inputs(), "input")
    output = only(path, session.get_outputs(), "output").name
    return Opened(
        lambda batch: session.run([output], {entry.name: batch})[0],
        fixed_sizes(entry.shape),
        TYPES.get(entry.type, entry.type),
        entry.name,
    )


FORMAT = Format(
    name="onnx",
    suffix=".onnx",
    runtime="onnxruntime",
    write=write,
    open=open_file,
    modules=("onnx", "onnxruntime"),
    # From torch, element-affine layer normalization fails: TensorFlow comes first.
    writers={"tensorflow": ("onnx", "tf2onnx"), "torch": ("onnx", "onnxscript")},
)
