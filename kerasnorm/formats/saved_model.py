"""TensorFlow's SavedModel, a folder."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from kerasnorm.formats import archive
from kerasnorm.formats.format import Format, Opened, fixed_sizes, only
from kerasnorm.formats.safety import checks

FILE = "saved_model.pb"


def write(source: Path, out: Path) -> None:
    """Writes the model of a `.keras` file as a SavedModel."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model"  # TensorFlow reads a path as a pattern: "[" fails
        archive.export_with_keras(source, made, format="tf_saved_model")
        shutil.copytree(made, out, dirs_exist_ok=True)


def open_folder(path: Path) -> Opened:
    """Checks a SavedModel and opens it in TensorFlow."""
    import tensorflow as tf

    checks.check_saved_model(path)
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "model"  # TensorFlow reads a path as a pattern: "[" fails
        link.symlink_to(path.resolve(), target_is_directory=True)
        loaded = tf.saved_model.load(str(link))
    function = loaded.signatures["serving_default"]
    name, spec = only(path, function.structured_input_signature[1].items(), "input")
    output = only(path, function.structured_outputs, "output")

    # The default keeps `loaded` alive, to which the function holds weak references only.
    def call(batch: Any, _: Any = loaded) -> Any:
        return function(**{name: tf.constant(batch)})[output].numpy()

    return Opened(call, fixed_sizes(spec.shape), spec.dtype.name, name)


FORMAT = Format(
    name="saved-model",
    suffix=".savedmodel",
    runtime="tf.saved_model",
    write=write,
    open=open_folder,
    modules=("tensorflow",),
    writers={"tensorflow": ()},
)
