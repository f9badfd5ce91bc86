"""The `.keras` file: a portable model with its card, written atomically and read with distrust.

The card is one more member of the archive, `kerasnorm.json`, which Keras ignores: class names and
where the model comes from travel with it.
"""

import copy
import json
import math
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import Config, resolve
from kerasnorm.engines import choice
from kerasnorm.errors import ConfigError, CorruptFileError
from kerasnorm.files import as_json, check_file, unwritable, write_bytes
from kerasnorm.formats import limits
from kerasnorm.inspection import output_graph, outputs
from kerasnorm.keras_settings import stock_keras
from kerasnorm.network import EQUALIZED_PIXELS, portable
from kerasnorm.norms import custom_layers

CARD = "kerasnorm.json"
WEIGHTS = "model.weights.h5"
MAX_CONFIG = 1 << 24  # bytes of the config, and of the card
MAX_PIXELS = 1 << 24  # values of one image
MAX_UNITS = 1 << 20  # of a layer
SIZES = ("units", "filters", "input_dim", "output_dim", "depth_multiplier")
# Nodes of a Keras config that hold plain values and name no module.
VALUES = {
    "__keras_tensor__",
    "__tensor__",
    "__numpy__",
    "__bytes__",
    "__slice__",
    "__ellipsis__",
}
# Layers that run code or files of the author's choice.
REFUSED = {"Lambda", "TorchModuleWrapper", "TFSMLayer", "FlaxLayer", "JaxLayer", "StableHLO"}


def save_model(model: keras.Model, path: Path, card: dict[str, Any]) -> None:
    """Writes a model to `path` (`.keras`), in float32 and of stock Keras layers only.

    Args:
        model: Any functional model that `kerasnorm.network.build` made.
        path: Where to; replaced atomically.
        card: What travels with it: `class_names` and provenance, JSON-able.
    """
    temporary = path.with_name(f".{path.stem}.saving.keras")  # Keras insists on the suffix
    copy = portable(model)
    try:
        copy.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(CARD, as_json(card))
        content = temporary.read_bytes()
    except OSError as error:
        raise unwritable(path, error, 4 * copy.count_params()) from error
    finally:
        temporary.unlink(missing_ok=True)
    write_bytes(path, content)


@dataclass(frozen=True)
class SavedModel:
    """A model read from a file, with what its card says.

    Attributes:
        path: The `.keras` file.
        model: The model, uncompiled.
        class_names: One name a class; "0", "1", … where the card has none.
        config: The config of the run that trained it, None for a model from elsewhere.
    """

    path: Path
    model: keras.Model
    class_names: tuple[str, ...]
    config: Config | None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of the images that it takes."""
        height, width, channels = self.model.input_shape[1:]
        return height, width, channels

    @property
    def wants_equalized(self) -> bool:
        """Whether its images must be histogram-equalized first."""
        return bool(self.model.inputs[0].name == EQUALIZED_PIXELS)

    @cached_property
    def kind(self) -> outputs.Kind:
        """What it gives; see `kerasnorm.inspection.outputs`."""
        return output_graph.model_kind(self.model, self._forward)

    @stock_keras
    def _forward(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return choice.predict(self.model, images)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the logits (N, classes) for raw images (N, H, W, C).

        Raises:
            CorruptFileError: It gives neither logits nor probabilities, or values not finite.
        """
        found = self._forward(images)
        outputs.check_finite(found, self.path)
        kind = output_graph.model_kind(self.model, self._forward, found)
        return outputs.as_logits(found, kind, self.path)


def open_model(target: Path) -> SavedModel:
    """Returns the model of a run's folder or of a `.keras` file that classifies images.

    Raises:
        CorruptFileError: It is missing, damaged, not safe to open or no image classifier.
    """
    path = _model_file(target)
    if target.is_dir():
        check_file(path)
    model, card = read_archive(path)
    try:
        config = resolve(document=card["config"]) if "config" in card else None
    except (ConfigError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path}: its card is damaged: {error}") from None
    return classifier(path, model, card.get("class_names"), config)


def classifier(path: Path, model: keras.Model, names: Any, config: Config | None) -> SavedModel:
    """Returns a model read from `path` as one that classifies images.

    Raises:
        CorruptFileError: It is none.
    """
    shapes = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    for shape, rank in zip(shapes, (4, 2), strict=True):
        if not isinstance(shape, tuple) or len(shape) != rank or None in shape[1:]:
            raise CorruptFileError(
                f"{path}: expected a classifier from (N, H, W, C), of fixed size, to "
                f"(N, classes). Received: {shapes[0]} to {shapes[1]}"
            )
    if model.output_shape[-1] < 2:
        raise CorruptFileError(f"{path}: expected two classes or more. Received: one output.")
    if math.prod(model.input_shape[1:]) > MAX_PIXELS:
        raise CorruptFileError(f"{path} takes images of more than {MAX_PIXELS:,} values.")
    classes = model.output_shape[-1]
    if not isinstance(names, list) or len(names) != classes:
        names = range(classes)
    return SavedModel(path, model, tuple(map(str, names)), config)


def load_model(path: Path | str) -> keras.Model:
    """Returns the model of a `.keras` file, or of a run's folder, uncompiled.

    Args:
        path: The file or the folder.

    Raises:
        CorruptFileError: It is missing, damaged or not safe to open.
    """
    return read_archive(_model_file(Path(path)))[0]


def _model_file(target: Path) -> Path:
    """Returns the `.keras` file of a run's folder, or the file itself."""
    return target / "model.keras" if target.is_dir() else target


@stock_keras
def read_archive(path: Path) -> tuple[keras.Model, dict[str, Any]]:
    """Returns the model of a `.keras` file, uncompiled, and its card ({} where it has none).

    Raises:
        CorruptFileError: The file is missing, damaged, no `.keras` file, or not safe to open.
    """
    config, card = _inspect(path)
    _check_config(path, config)
    try:
        model = keras.saving.load_model(path, custom_layers(), compile=False, safe_mode=True)
    except Exception as error:  # Keras raises nearly every type on damaged files
        raise _damaged(path, error) from error
    _check_model(path, model)
    for weight in model.weights:
        values = keras.ops.convert_to_numpy(weight)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise CorruptFileError(f"{path}: the weight {weight.path} holds NaN or infinity.")
    return model, card


@stock_keras
def model_from_config(path: Path, config: dict[str, Any]) -> keras.Model:
    """Returns the model of a Keras config read from `path`, checked, its weights fresh.

    Raises:
        CorruptFileError: It is damaged, too large, or needs classes that are not Keras's own.
    """
    if not isinstance(config, dict):
        raise CorruptFileError(f"{path} is damaged: its config is no object.")
    _check_config(path, config)
    try:
        model = keras.saving.deserialize_keras_object(config, custom_layers(), safe_mode=True)
    except Exception as error:
        raise _damaged(path, error) from error
    _check_model(path, model)
    return model


def _damaged(path: Path, error: Exception) -> CorruptFileError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return CorruptFileError(f"{path} is damaged: {reason[0]}")


def _check_config(path: Path, config: dict[str, Any]) -> None:
    """Refuses foreign classes, and models of too many weights before any is allocated."""
    config.pop("compile_config", None)  # not loaded
    refused = sorted(_foreign_classes(config))
    if refused:
        raise CorruptFileError(
            f"{path} was refused: it needs {', '.join(refused)}, which could run code of its "
            "author. Expected layers of Keras itself."
        )
    # Inside of this scope variables have shapes and no values.
    with keras.StatelessScope(initialize_variables=False):
        try:
            # Of a copy: Keras takes configs apart.
            outline = keras.saving.deserialize_keras_object(
                copy.deepcopy(config), custom_layers(), safe_mode=True
            )
        except Exception as error:
            raise _damaged(path, error) from error
        finally:
            keras.src.backend.common.global_state.set_global_attribute(
                "uninitialized_variables", []
            )
    _check_model(path, outline)


def _check_model(path: Path, model: Any) -> None:
    if not isinstance(model, keras.Model) or not model.built:
        raise CorruptFileError(f"{path} holds no Keras model that has been built.")
    if model.count_params() > limits.MAX_WEIGHTS:
        raise CorruptFileError(f"{path} holds more than {limits.MAX_WEIGHTS:,} weights.")


def _inspect(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the config and the card of a `.keras` file, read without Keras."""
    if not path.is_file():
        raise CorruptFileError(f"There is no model file {path}.")
    if path.suffix != ".keras":
        raise CorruptFileError(f"Expected a .keras file. Received: {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            limits.check_members(path, archive)
            for name in {"config.json", CARD} & {*archive.namelist()}:
                if archive.getinfo(name).file_size > MAX_CONFIG:
                    raise CorruptFileError(f"{path}: {name} is over {MAX_CONFIG >> 20} MiB.")
            config = json.loads(archive.read("config.json"))
            card = json.loads(archive.read(CARD)) if CARD in archive.namelist() else {}
            _check_weights(path, archive)
    except CorruptFileError:
        raise
    except Exception as error:  # zipfile, its decompressors and json raise a dozen types
        raise CorruptFileError(f"{path} is no .keras file, or is damaged: {error}") from None
    if not isinstance(config, dict) or not isinstance(card, dict):
        raise CorruptFileError(f"{path} is no .keras file: its config is no object.")
    return config, card


def _check_weights(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuses weights that lie in other files than the archive's own."""
    import io

    import h5py

    if WEIGHTS not in archive.namelist():
        raise CorruptFileError(f"{path} is no .keras file: it has no {WEIGHTS}.")
    with h5py.File(io.BytesIO(archive.read(WEIGHTS))) as file:
        pending: list[Any] = [file]
        seen = set()  # hard links may make a circle
        while pending:
            group = pending.pop()
            for name in group:
                link = group.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    raise CorruptFileError(f"{path} was refused: its weights hold a link.")
                item = group[name]
                address = h5py.h5o.get_info(item.id).addr
                if isinstance(item, h5py.Dataset):
                    if item.external or item.is_virtual:
                        raise CorruptFileError(f"{path} was refused: weights in other files.")
                    limits.check_count(path, item.size or 0)
                elif address not in seen:
                    seen.add(address)
                    pending.append(item)


def _foreign_classes(config: dict[str, Any]) -> set[str]:
    """Names of the classes in a Keras config that are not Keras's own, or that run code."""
    found = set()
    norms = [(kind.__name__, name) for name, kind in custom_layers().items()]
    pending: list[Any] = [config]  # no recursion: a hostile config may be nested deeply
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending.extend(node)
        elif isinstance(node, dict):
            pending.extend(node.values())
            is_norm = (node.get("class_name"), node.get("registered_name")) in norms
            if "class_name" in node and not is_norm and _is_foreign(node):
                found.add(f"{node.get('module') or 'custom'}.{node['class_name']}")
            if any(isinstance(node.get(name), int) and node[name] > MAX_UNITS for name in SIZES):
                found.add(f"a layer of more than {MAX_UNITS} units")
    return found


def _is_foreign(node: dict[str, Any]) -> bool:
    name, module = str(node["class_name"]), str(node.get("module"))
    if name in VALUES:
        return False
    is_keras = module.split(".", maxsplit=1)[0] in ("keras", "builtins")
    is_renamed = node.get("registered_name") not in (None, name)
    return name in REFUSED or ">" in name or not is_keras or is_renamed
