"""The `.keras` file: a portable model with its metadata, written atomically.

The metadata is one more member of the archive, `kerasnorm.json`, which Keras ignores: class names
and the config of the run travel with the model.
"""

import copy
import json
import logging
import math
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnorm.config import Config, resolve
from kerasnorm.errors import ConfigError, CorruptFileError
from kerasnorm.files import as_json, as_path, check_file, unwritable, write_bytes
from kerasnorm.formats import safety
from kerasnorm.formats.format import Format, Opened, fixed_sizes
from kerasnorm.formats.safety import checks
from kerasnorm.keras_settings import stock_keras

if TYPE_CHECKING:
    import keras
    import numpy as np
    from numpy.typing import NDArray

    from kerasnorm.data.stored import Images
    from kerasnorm.inspection.outputs import Kind

logger = logging.getLogger(__name__)
# Of a name scope in TensorFlow.
VALID_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")
INPUT_SCALE = "input_scale"  # the key, in metadata, of `SavedModel.input_scale`


def save_model(model: "keras.Model", path: Path, metadata: dict[str, Any]) -> None:
    """Writes a model to `path` (`.keras`), in float32 and of stock Keras layers only.

    The metadata are JSON-able: `class_names` and `config`.
    """
    from kerasnorm.layers import portable

    write_archive(portable(model), path, metadata)


def write_archive(model: "keras.Model", path: Path, metadata: dict[str, Any]) -> None:
    """Writes a model to `path` (`.keras`) as it is, with its metadata, atomically.

    Raises:
        RunFolderError: It cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.saving.keras")  # Keras insists on the suffix
    try:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(checks.METADATA, as_json(metadata))
        content = temporary.read_bytes()
    except OSError as error:
        raise unwritable(path, error, 4 * model.count_params()) from error
    finally:
        temporary.unlink(missing_ok=True)
    write_bytes(path, content)


@dataclass(frozen=True)
class SavedModel:
    """A classifier of images that was read from a file and runs in Keras.

    Attributes:
        path: File that it was read from.
        model: The model, uncompiled.
        class_names: One name per class; "0", "1", … where the metadata has none.
        config: Config of the run that trained it, None for a model from elsewhere.
        input_scale: Range of pixels that it was trained on, where that was stated for a model
            without a rescaling; see `kerasnorm.formats.input_scale`.
    """

    path: Path
    model: "keras.Model"
    class_names: tuple[str, ...]
    config: Config | None
    input_scale: str | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of the images that it takes."""
        height, width, channels = self.model.input_shape[1:]
        return height, width, channels

    @property
    def wants_equalized(self) -> bool:
        """Whether its images must be histogram-equalized first."""
        from kerasnorm.layers import EQUALIZED_PIXELS

        return bool(self.model.inputs[0].name == EQUALIZED_PIXELS)

    @cached_property
    def kind(self) -> "Kind":
        """Kind of its outputs; see `kerasnorm.inspection.outputs`."""
        from kerasnorm.inspection.output_graph import model_kind

        return model_kind(self.model, self._forward)

    @cached_property
    def _predictor(self) -> "Callable[[Images], NDArray[np.float32]]":
        from kerasnorm.engines import choice

        return choice.predictor(self.model)

    @stock_keras
    def _forward(self, images: "Images") -> "NDArray[np.float32]":
        return self._predictor(images)

    def predict(self, images: "Images") -> "NDArray[np.float32]":
        """Returns the logits (N, classes) for raw images (N, H, W, C).

        Raises:
            CorruptFileError: Its outputs are neither logits nor probabilities, or not finite.
        """
        from kerasnorm.inspection.output_graph import model_kind
        from kerasnorm.inspection.outputs import as_logits, check_finite

        found = self._forward(images)
        check_finite(found, self.path)
        return as_logits(found, model_kind(self.model, self._forward, found), self.path)


def open_model(target: Path) -> SavedModel:
    """Returns the classifier in a run's folder or in a `.keras` file.

    Raises:
        CorruptFileError: It is missing, damaged, not safe to open or no image classifier.
    """
    path, model, metadata = open_archive(target)
    config = read_config(path, metadata)
    return classifier(path, model, metadata.get("class_names"), config, metadata.get(INPUT_SCALE))


def open_archive(target: Path) -> "tuple[Path, keras.Model, dict[str, Any]]":
    """Returns the path, the model and the metadata of a run's folder or of a `.keras` file.

    Raises:
        CorruptFileError: It is missing, damaged or not safe to open.
    """
    path = target
    if target.is_dir():
        check_file(path := target / "model.keras")
    return path, *read_archive(path)


def read_config(path: Path, metadata: dict[str, Any]) -> Config | None:
    """Returns the config in the metadata of a model, None where it has none.

    Raises:
        CorruptFileError: It is no valid config.
    """
    try:
        return resolve(document=metadata["config"]) if "config" in metadata else None
    except (ConfigError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path}: its metadata is damaged: {error}") from None


def name_classes(names: Any, count: int) -> tuple[str, ...]:
    """Returns the names of `count` classes, which are numbered where `names` does not fit."""
    is_fitting = isinstance(names, list) and len(names) == count
    return tuple(map(str, names if is_fitting else range(count)))


def classifier(
    path: Path, model: "keras.Model", names: Any, config: Config | None, input_scale: Any = None
) -> SavedModel:
    """Returns a model read from `path` as a classifier of images.

    Raises:
        CorruptFileError: It is none.
    """
    shapes = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    for shape, rank in zip(shapes, (4, 2), strict=True):
        if not isinstance(shape, tuple) or len(shape) != rank or None in shape[1:]:
            raise CorruptFileError(
                f"{path}: expected a classifier from (N, H, W, C), of fixed size, to "
                f"(N, classes). Received: {shapes[0]} to {shapes[1]}. {_advice(model)}"
            )
    ends = (getattr(model, name, None) for name in ("input", "output"))  # a Sequential has none
    if any(isinstance(end, (dict, list, tuple)) for end in ends):
        # Of one tensor; a call on TensorFlow would return such a dict or list.
        import keras

        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    classes = model.output_shape[-1]
    if classes < 2:
        raise CorruptFileError(f"{path}: expected two classes or more. Received: one output.")
    safety.check_image(path, math.prod(model.input_shape[1:]))
    scale = None if input_scale is None else str(input_scale)
    return SavedModel(path, model, name_classes(names, classes), config, scale)


def _advice(model: "keras.Model") -> str:
    """Returns what to do with a model that is no classifier of images of one size."""
    from kerasnorm.layers import ONE_OF_EACH, OTHER_NETWORKS

    inputs, outputs = (getattr(model, name, None) or () for name in ("inputs", "outputs"))
    if max(len(inputs), len(outputs)) > 1:
        return ONE_OF_EACH
    has_open_size = any(len(one.shape) == 4 and None in one.shape[1:] for one in inputs)
    return "Build it for images of one size." if has_open_size else OTHER_NETWORKS


def load_model(path: Path | str) -> "keras.Model":
    """Returns the model of a `.keras` file, or of a run's folder, uncompiled.

    Args:
        path: The file or the folder.

    Raises:
        CorruptFileError: It is missing, damaged or not safe to open.
    """
    return open_archive(as_path(path, "path"))[1]


@stock_keras
def read_archive(path: Path) -> "tuple[keras.Model, dict[str, Any]]":
    """Returns the model of a `.keras` file, uncompiled, and its metadata ({} where it has none).

    Raises:
        CorruptFileError: The file is missing, damaged, no `.keras` file, or not safe to open.
    """
    import keras
    import numpy as np

    from kerasnorm.layers import own_classes

    config, metadata = checks.check_keras(path)
    with _with_valid_names(path, config) as place:
        _check_config(path, config)
        model = _load(
            path,
            lambda: keras.saving.load_model(place, own_classes(), compile=False, safe_mode=True),
        )
    for weight in model.weights:
        values = keras.ops.convert_to_numpy(weight)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise CorruptFileError(f"{path}: the weight {weight.path} holds NaN or infinity.")
    return model, metadata


@contextmanager
def _with_valid_names(path: Path, config: dict[str, Any]) -> Iterator[Path]:
    """Yields the path of an archive whose layers have names that the backend takes.

    It is the file itself where they have; else a copy in which, as in `config`, others replace
    them.
    """
    if not _rename(config):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        renamed = Path(folder) / "model.keras"
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(renamed, "w") as target:
            for name in source.namelist():
                is_config = name == "config.json"
                target.writestr(name, json.dumps(config) if is_config else source.read(name))
        yield renamed


def _rename(config: Any) -> bool:
    """Replaces the names in a Keras config that TensorFlow rejects; returns whether any was.

    Nothing is replaced on other backends.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return False
    tables = [node for node in safety.parts(config) if isinstance(node, dict)]
    names = {node["name"] for node in tables if isinstance(node.get("name"), str)}
    valid = {name: name for name in names if VALID_NAME.fullmatch(name)}
    for name in sorted(names - {*valid}):
        new = "layer_" + re.sub(r"[^A-Za-z0-9_.>-]", "_", name)
        while new in valid.values():
            new += "_"
        valid[name] = new
        logger.info(f"The name {name!r}, which TensorFlow does not take, is replaced by {new!r}.")
    for node in tables:
        if isinstance(node.get("name"), str):
            node["name"] = valid[node["name"]]
        for key in ("keras_history", "input_layers", "output_layers"):
            for call in safety.parts(node.get(key)):  # [name, node, tensor]
                if isinstance(call, list) and call and isinstance(call[0], str):
                    call[0] = valid.get(call[0], call[0])
    return any(name != new for name, new in valid.items())


@stock_keras
def model_from_config(path: Path, config: dict[str, Any]) -> "keras.Model":
    """Returns the model of a Keras config that was read from `path`, with fresh weights.

    Raises:
        CorruptFileError: It is damaged, too large, or needs classes that are not Keras's own.
    """
    if not isinstance(config, dict):
        raise CorruptFileError(f"{path} is damaged: its config is no object.")
    _rename(config)
    _check_config(path, config)
    return _load(path, lambda: _deserialize(config))


def _deserialize(config: dict[str, Any]) -> Any:
    import keras

    from kerasnorm.layers import own_classes

    return keras.saving.deserialize_keras_object(config, own_classes(), safe_mode=True)


def _check_config(path: Path, config: dict[str, Any]) -> None:
    """Refuses foreign classes, and models of too many weights before any is allocated."""
    import keras

    from kerasnorm.layers import own_classes

    config.pop("compile_config", None)  # not loaded
    names = {name: kind.__name__ for name, kind in own_classes().items()}
    checks.check_keras_classes(path, config, names, keras.saving.get_custom_objects())
    # Inside of this scope variables have shapes and no values.
    with keras.StatelessScope(initialize_variables=False):
        try:
            # A copy, because Keras changes the configs that it reads.
            _load(path, lambda: _deserialize(copy.deepcopy(config)))
        finally:
            keras.src.backend.common.global_state.set_global_attribute(
                "uninitialized_variables", []
            )


def _load(path: Path, load: Callable[[], Any]) -> "keras.Model":
    """Returns a model of Keras; a CorruptFileError refuses one not built, or of excessive size."""
    import keras

    with safety.reading(path):
        model = load()
    if not isinstance(model, keras.Model) or not model.built:
        raise CorruptFileError(
            f"{path} holds no Keras model that has been built. A Sequential needs a keras.Input as "
            "its first layer before it is saved."
        )
    safety.check_count(path, model.count_params())
    return model


def load_used_model(path: Path) -> "keras.Model":
    """Returns the model of a `.keras` file after a first call, which exporters need."""
    import numpy as np

    model = load_model(path)
    model(np.zeros((1, *model.input_shape[1:]), np.float32))
    return model


def export_with_keras(source: Path, out: Path, *, format: str) -> None:  # noqa: A002
    """Writes the model of a `.keras` file in a format that Keras itself exports to."""
    load_used_model(source).export(str(out), format=format, verbose=False)


def open_file(path: Path) -> Opened:
    """Checks a `.keras` file and opens it in Keras, on the backend of this process."""
    import numpy as np

    model = load_model(path)

    @stock_keras
    def call(batch: "NDArray[Any]") -> "NDArray[Any]":
        return np.asarray(model.predict_on_batch(batch))  # compiled, where the backend compiles

    return Opened(call, fixed_sizes(model.input_shape), "float32", model.inputs[0].name)


FORMAT = Format(
    name="keras",
    suffix=".keras",
    runtime="Keras on the other backends",
    write=shutil.copyfile,
    open=open_file,
    load=load_model,
    modules=("keras",),
)
