"""A model as a safetensors file with a PyTorch module beside it, and the way back.

The file's metadata hold the Keras config, so that it is a whole model without running the module.
"""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasnorm.errors import ConfigError, CorruptFileError
from kerasnorm.formats.archive import model_from_config
from kerasnorm.formats.torch_files import read_safetensors
from kerasnorm.formats.torch_module import generate

CONFIG = "keras_config"


def write(model: keras.Model, path: Path) -> None:
    """Writes the tensors to `path` (`.safetensors`) and the module beside them (`.py`).

    Raises:
        ConfigError: The model has a layer that no module is written for.
    """
    from safetensors.numpy import save_file

    source, tensors = generate(model, path.name)
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(contiguous, path, metadata={CONFIG: model.to_json()})
    path.with_suffix(".py").write_text(source, encoding="utf-8")


def read(path: Path) -> keras.Model:
    """Returns the Keras model of a file that `write` made.

    Raises:
        CorruptFileError: It is damaged, not safe to open, or only tensors.
    """
    tensors, metadata = read_safetensors(path)
    if CONFIG not in metadata:
        raise CorruptFileError(
            f"{path} holds tensors without a model. Make a model of them: kerasnorm import-torch"
        )
    try:
        config = json.loads(metadata[CONFIG])
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from None
    model = model_from_config(path, config)
    try:
        _, expected = generate(model, path.name)
        if {*expected} != {*tensors}:
            raise ValueError(f"{sorted({*expected} ^ {*tensors})[0]} is missing or too many")
        for layer in model.layers:
            _set(layer, tensors)
    except (ConfigError, ValueError, KeyError) as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from None
    return model


def _set(layer: Any, tensors: dict[str, Any]) -> None:
    if not layer.weights:
        return
    names = ("weight", "bias", "running_mean", "running_var")[: len(layer.weights)]
    values = [tensors[f"{layer.name}.{name}"] for name in names]
    axes = {4: (2, 3, 1, 0), 3: (1, 2, 0), 1: (0,)}
    layer.set_weights([value.transpose(axes[value.ndim]) for value in values])
