"""The `.keras` file: a portable model with its card, written atomically and read with distrust.

The card is one more member of the archive, `kerasnorm.json`, which Keras ignores: class names and
where the model comes from travel with it.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import keras

from kerasnorm.errors import CorruptFileError, KerasnormError
from kerasnorm.files import atomic_writer
from kerasnorm.model import portable

CARD = "kerasnorm.json"
MAX_BYTES = 1 << 30  # of all members together, unpacked
MAX_WEIGHTS = 1 << 28
# Layers that run code or files of the author's choice.
REFUSED = {"Lambda", "TorchModuleWrapper", "TFSMLayer", "FlaxLayer", "JaxLayer", "StableHLO"}


def save_model(model: keras.Model, path: Path, card: dict[str, Any]) -> None:
    """Writes a model to `path` (`.keras`), in float32 and of stock Keras layers only.

    Args:
        model: Any functional model that `kerasnorm.model.build` made.
        path: Where to; replaced atomically.
        card: What travels with it: `class_names` and provenance, JSON-able.
    """
    temporary = path.with_name(f".{path.stem}.saving.keras")  # Keras insists on the suffix
    try:
        portable(model).save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(CARD, json.dumps(card, indent=2, ensure_ascii=False))
        with atomic_writer(path) as file:
            file.write(temporary.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)


def load_model(path: Path) -> tuple[keras.Model, dict[str, Any]]:
    """Returns the model of a `.keras` file, uncompiled, and its card ({} where it has none).

    Raises:
        CorruptFileError: The file is missing, damaged, no `.keras` file, or not safe to open.
    """
    config, card = _inspect(path)
    refused = sorted(_foreign_classes(config))
    if refused:
        raise CorruptFileError(
            f"{path} was refused: it needs {', '.join(refused)}, which could run code of its "
            "author. Expected layers of Keras itself."
        )
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except KerasnormError:
        raise
    except Exception as error:  # Keras raises nearly every type on damaged files
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CorruptFileError(f"{path} is damaged: {reason[0]}") from error
    if not isinstance(model, keras.Model) or model.count_params() > MAX_WEIGHTS:
        raise CorruptFileError(f"{path} holds no Keras model of fewer than {MAX_WEIGHTS} weights.")
    return model, card


def _inspect(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the config and the card of a `.keras` file, read without Keras."""
    if not path.is_file():
        raise CorruptFileError(f"There is no model file {path}.")
    if path.suffix != ".keras":
        raise CorruptFileError(f"Expected a .keras file. Received: {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                raise CorruptFileError(f"{path} unpacks to more than {MAX_BYTES >> 20} MiB.")
            config = json.loads(archive.read("config.json"))
            card = json.loads(archive.read(CARD)) if CARD in archive.namelist() else {}
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise CorruptFileError(f"{path} is no .keras file, or is damaged: {error}") from None
    if not isinstance(config, dict) or not isinstance(card, dict):
        raise CorruptFileError(f"{path} is no .keras file: its config is no object.")
    return config, card


def _foreign_classes(node: Any) -> set[str]:
    """Names of the classes in a Keras config that are not Keras's own, or that run code."""
    if isinstance(node, list):
        return set().union(*map(_foreign_classes, node)) if node else set()
    if not isinstance(node, dict):
        return set()
    found = set().union(*map(_foreign_classes, node.values())) if node else set()
    if "class_name" in node:
        name, module = str(node["class_name"]), str(node.get("module") or "keras")
        is_keras = module.split(".", maxsplit=1)[0] in ("keras", "builtins")
        if name in REFUSED or not is_keras or node.get("registered_name", name) not in (name, None):
            found.add(f"{module}.{name}")
    return found
