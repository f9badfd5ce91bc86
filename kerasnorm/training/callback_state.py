"""The state of Keras callbacks in a form that a checkpoint can hold: exact, and without pickle.

A callback with `get_state()` and `set_state(state)` decides itself what is saved. For any other
callback, the attributes are saved that training has changed and that are plain data: numbers, text,
booleans, None, NumPy arrays, and lists, tuples and dicts of them. So `EarlyStopping`,
`ReduceLROnPlateau` and `ModelCheckpoint` continue where they were, while the arguments of their
constructors are those of the resuming call. Attributes of other kinds (files, models, generators)
are not restored.
"""

import base64
import io
import json
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras.callbacks import Callback

from kerasnorm.errors import ConfigError

logger = logging.getLogger(__name__)

# What Keras sets on every callback; and an argument of constructors whose sign Keras changes in
# place when it is first used, and would change again.
NOT_SAVED = {"model", "_model", "params", "validation_data", "min_delta"}


def encode(value: Any) -> Any:
    """Returns plain data as a JSON document.

    Raises:
        TypeError: The data hold something that is not plain data.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {kind: base64.b64encode(file.getvalue()).decode()}
    if type(value) is list:
        return [encode(item) for item in value]
    if type(value) is tuple:
        return {"tuple": [encode(item) for item in value]}
    if type(value) is dict:
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    raise TypeError(f"{type(value).__name__} is not plain data")


def decode(document: Any) -> Any:
    """Returns the data that `encode` received."""
    if isinstance(document, list):
        return [decode(item) for item in document]
    if not isinstance(document, dict):
        return document
    ((kind, content),) = document.items()
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(map(decode, content))
    if kind == "dict":
        return {decode(k): decode(v) for k, v in content}
    array = np.load(io.BytesIO(base64.b64decode(content)), allow_pickle=False)
    return array if kind == "array" else array[()]


def _attributes(callback: Callback) -> tuple[dict[str, Any], list[str]]:
    """Returns the plain attributes, encoded, and the names of the others."""
    plain, others = {}, []
    for name, value in vars(callback).items():
        if name in NOT_SAVED or callable(value):
            continue
        try:
            plain[name] = encode(value)
        except TypeError:
            others.append(name)
    return plain, others


class CallbackStates:
    """The states of a run's callbacks."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)
        self.before = [_attributes(callback)[0] for callback in self.callbacks]

    def save(self) -> list[dict[str, Any]]:
        """Returns the states as a JSON document.

        Raises:
            ConfigError: A callback's `get_state` did not return plain data.
        """
        pairs = zip(self.callbacks, self.before, strict=True)
        return [self._save(callback, before) for callback, before in pairs]

    def _save(self, callback: Callback, before: dict[str, Any]) -> dict[str, Any]:
        name = type(callback).__name__
        if not (hasattr(callback, "get_state") and hasattr(callback, "set_state")):
            plain, others = _attributes(callback)
            # Compared as text: a list or array may have changed in place.
            changed = {k: v for k, v in plain.items() if _text(v) != _text(before.get(k, ...))}
            return {"class": name, "changed": changed, "left_out": others}
        try:
            return {"class": name, "state": encode(callback.get_state())}
        except TypeError as error:
            raise ConfigError(
                f"callbacks: expected plain data from the get_state of {name}, numbers, text, "
                f"arrays, or lists and dicts of them. Received: {error}."
            ) from None

    def load(self, saved: Sequence[dict[str, Any]]) -> None:
        """Restores what `save` returned; call it after `on_train_begin`, which resets callbacks.

        Raises:
            ConfigError: A callback that has a state is missing now.
        """
        left = list(self.callbacks)
        for entry in saved:
            match = [callback for callback in left if type(callback).__name__ == entry["class"]]
            if not match and (entry.get("changed") or "state" in entry):
                names = [type(callback).__name__ for callback in self.callbacks]
                raise ConfigError(
                    f"callbacks: this run was trained with {entry['class']}, which has a state. "
                    f"Received: callbacks={names}. Pass it again: kerasnorm.fit(resume=…, "
                    "callbacks=[…])."
                )
            if match:
                left.remove(match[0])
                _restore(match[0], entry)


def _text(document: Any) -> str:
    return json.dumps(document, default=repr)


def _restore(callback: Callback, entry: dict[str, Any]) -> None:
    if "state" in entry:
        callback.set_state(decode(entry["state"]))
        return
    for name, value in entry["changed"].items():
        setattr(callback, name, decode(value))
    # Keras's own open files and writers anew.
    if entry["left_out"] and not type(callback).__module__.startswith("keras."):
        logger.warning(
            f"{entry['class']}: {', '.join(entry['left_out'])} could not be restored; "
            "get_state and set_state would save them."
        )
