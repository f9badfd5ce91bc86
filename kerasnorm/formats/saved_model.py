"""TensorFlow's SavedModel, a folder."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnorm.formats import archive
from kerasnorm.formats.format import Format, Opened, image_shape, only
from kerasnorm.formats.safety import checks

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILE = "saved_model.pb"
write = partial(archive.export_with_keras, format="tf_saved_model")


def open_folder(path: Path) -> Opened:
    """Checks a SavedModel and opens it in TensorFlow."""
    import tensorflow as tf

    checks.check_saved_model(path)
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    name, spec = only(path, function.structured_input_signature[1].items(), "input")
    output = only(path, function.structured_outputs, "output")

    # The default keeps `loaded` alive, to which the function holds weak references only.
    def call(batch: "NDArray[Any]", _: Any = loaded) -> "NDArray[Any]":
        result: NDArray[Any] = function(**{name: tf.constant(batch)})[output].numpy()
        return result

    return Opened(call, image_shape(spec.shape), spec.dtype.name, name)


FORMAT = Format(
    name="saved-model",
    suffix=".savedmodel",
    runtime="tf.saved_model",
    write=write,
    open=open_folder,
    modules=("tensorflow",),
    writers={"tensorflow": ()},
)
