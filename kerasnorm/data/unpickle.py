"""Reads the pickles of the CIFAR batches without running anything that a pickle can ask for.

A pickle is a program: it may import and call whatever it names. Here the few names that stand for
NumPy arrays and bytes resolve to stand-ins of our own, and every other name is refused before it
is imported. NumPy itself never sees the pickle's state, only checked bytes, type and shape.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.errors import DataError

_KINDS = "biuf"


class _Refused(Exception):
    """The pickle wants something that no data file needs."""


class _Dtype:
    """Stands for a `numpy.dtype` while the pickle is read: plain numbers only."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(text, str) or text[:1] not in _KINDS or not text[1:].isdigit():
            raise _Refused(f"an array of type {text!r}")
        self.numpy: np.dtype[Any] = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.numpy = self.numpy.newbyteorder(order)


class _Array:
    """Stands for a `numpy.ndarray` while the pickle is read."""

    value: NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _from_buffer(raw, dtype, shape, "F" if fortran else "C")


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any = "C") -> NDArray[Any]:
    if not isinstance(dtype, _Dtype) or not isinstance(raw, (bytes, bytearray)):
        raise _Refused("an array that is not made of plain numbers")
    if math.prod(shape) * dtype.numpy.itemsize != len(raw):
        raise _Refused(f"an array of shape {shape} from {len(raw)} bytes")
    return np.frombuffer(raw, dtype.numpy).reshape(shape, order=order)


class _Unpickler(pickle.Unpickler):
    """Resolves the names of NumPy's array reconstruction to stand-ins, and no other name."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        # All bytes that a protocol-2 pickle encodes stand in it as text: a pickle that encodes
        # one text again and again to fill the memory runs out of this allowance.
        self._allowance = len(content)
        # Made anew for each pickle: it could set attributes on them.
        self._admitted: dict[tuple[str, str], Callable[..., Any]] = {
            ("_codecs", "encode"): self._encode,
            ("numpy", "dtype"): lambda *arguments: _Dtype(*arguments),
            ("numpy", "ndarray"): lambda *_: _refuse("a call of numpy.ndarray"),
        }
        for core in ("numpy.core", "numpy._core"):
            self._admitted |= {
                (f"{core}.multiarray", "_reconstruct"): lambda *_: _Array(),
                (f"{core}.multiarray", "scalar"): lambda dtype, raw: (
                    _from_buffer(raw, dtype, ()).item()
                ),
                (f"{core}.numeric", "_frombuffer"): lambda *arguments: _from_buffer(*arguments),
            }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._admitted:
            raise _Refused(f"to run {module}.{name}")
        return self._admitted[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object kept outside the file")

    def _encode(self, text: str, codec: str | bytes) -> bytes:
        if codec not in ("latin1", b"latin1"):
            raise _Refused(f"to run _codecs.encode with {codec!r}")
        self._allowance -= len(text)
        if self._allowance < 0:
            raise _Refused("more bytes than it holds")
        return text.encode("latin1")


def _refuse(what: str) -> None:
    raise _Refused(what)


def _check_memo(content: bytes) -> None:
    """Refuses memo slots beyond what the pickle's length can fill: the list of slots is dense."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "LONG_BINPUT" and argument > len(content):
            raise _Refused(f"room for {argument} objects")


def load_batch(content: bytes, where: str) -> dict[str, Any]:
    """Returns the dict that a pickled CIFAR batch holds, with text keys and NumPy arrays.

    Python 2 strings come as bytes (`encoding="bytes"`); keys are decoded, values are left.

    Args:
        content: The pickle, of any protocol.
        where: The file's name, for messages.

    Raises:
        DataError: The pickle is damaged, is no dict, or names anything but NumPy's array
            reconstruction. Nothing of it has run.
    """
    try:
        _check_memo(content)
        document = _Unpickler(content).load()
        if not isinstance(document, dict):
            raise _Refused(f"to be a {type(document).__name__}, not a dict")
        return {
            key.decode("ascii") if isinstance(key, bytes) else str(key): (
                value.value if isinstance(value, _Array) else value
            )
            for key, value in document.items()
        }
    except _Refused as refusal:
        raise DataError(
            f"{where}: expected a pickle of NumPy arrays and plain containers. Received: a pickle "
            f"that wants {refusal}. It was refused and nothing of it ran; get the file anew from "
            "its official address."
        ) from None
    except Exception as error:  # a damaged pickle can raise anything at all
        raise DataError(
            f"{where}: expected a pickle of NumPy arrays and plain containers. Received: a damaged "
            f"or truncated file ({type(error).__name__}: {error}). Get it anew from its official "
            "address."
        ) from error
