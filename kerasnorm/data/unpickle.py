"""Reads the pickles of the CIFAR batches without running anything that a pickle can ask for.

A pickle is a program: it may import and call whatever it names. Here the few names that stand for
NumPy arrays and bytes resolve to stand-ins of our own, and every other name is refused before it
is imported. NumPy itself never sees the pickle's state, only bytes of checked type and shape.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.dataset import Where, parsing, unexpected

_KINDS = "biuf"


class _RefusedError(Exception):
    """The pickle asks for something that no data file needs."""


class _Dtype:
    """Stands for a `numpy.dtype` while the pickle is read: plain numbers only."""

    def __init__(self, code: Any, *_: object) -> None:
        code = _text(code)
        if code[:1] not in _KINDS or not code[1:].isdigit():
            raise _RefusedError(f"an array of type {code!r}")
        self.numpy: np.dtype[Any] = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numpy = self.numpy.newbyteorder(_text(state[1]))  # type: ignore[arg-type]


class _Array:
    """Stands for a `numpy.ndarray` while the pickle is read."""

    def __init__(self) -> None:
        self.values: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.values = _from_buffer(raw, dtype, shape, "F" if fortran else "C").values


def _text(value: Any) -> str:
    # Nothing but text is turned into text: lists that share lists, a few bytes in the pickle,
    # would fill the memory when written out.
    if not isinstance(value, (bytes, str)):
        raise TypeError(f"{type(value).__name__} where text should stand")
    return value.decode("ascii") if isinstance(value, bytes) else value


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
    if not isinstance(dtype, _Dtype) or not isinstance(raw, (bytes, bytearray)):
        raise _RefusedError("an array that is not made of plain numbers")
    if not all(isinstance(length, int) for length in shape):
        raise TypeError("a shape that is not made of whole numbers")
    if math.prod(shape) * dtype.numpy.itemsize != len(raw):
        raise _RefusedError(f"an array of shape {shape} made from {len(raw)} bytes")
    array = _Array()
    array.values = np.frombuffer(raw, dtype.numpy).reshape(shape, order=order)
    return array


class _Unpickler(pickle.Unpickler):
    """Resolves the names of NumPy's array reconstruction to stand-ins, and no other name."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        # All bytes that a protocol-2 pickle encodes stand in it as text: a pickle that encodes
        # one text again and again to fill the memory runs out of this allowance.
        self._allowance = len(content)
        self._admitted: dict[tuple[str, str], Callable[..., Any]] = {
            ("_codecs", "encode"): self._encode,
            ("__builtin__", "bytes"): lambda: b"",  # how protocol 2 writes no bytes
            ("numpy", "dtype"): _Dtype,
            ("numpy", "ndarray"): lambda *_: self._refuse("to call numpy.ndarray"),
        }
        for core in ("numpy.core", "numpy._core"):
            self._admitted |= {
                (f"{core}.multiarray", "_reconstruct"): lambda *_: _Array(),
                (f"{core}.multiarray", "scalar"): (
                    lambda dtype, raw: _from_buffer(raw, dtype, ()).values.item()
                ),
                (f"{core}.numeric", "_frombuffer"): _from_buffer,
            }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._admitted:
            self._refuse(f"to run {module}.{name}")
        admitted = self._admitted[module, name]

        # A new function each time, because a pickle can set attributes on what it receives.
        def stand_in(*arguments: Any) -> Any:
            return admitted(*arguments)

        return stand_in

    def persistent_load(self, pid: Any) -> Any:
        self._refuse("an object that is kept outside of it")

    def forget(self) -> None:
        """Drops all that was read: functions in these two refer back to this object."""
        self.memo.clear()
        self._admitted.clear()

    def _refuse(self, what: str) -> None:
        raise _RefusedError(what)

    def _encode(self, text: str, codec: Any) -> bytes:
        if _text(codec) != "latin1":
            self._refuse(f"to run _codecs.encode with {codec!r}")
        self._allowance -= len(text)
        if self._allowance < 0:
            self._refuse("more memory than its own size")
        return text.encode("latin1")


# Opcode → the bytes of its argument, or one of pickletools' codes for where the length stands.
_LENGTHS = {op.code.encode("latin1")[0]: op.arg.n if op.arg else 0 for op in pickletools.opcodes}
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_STOP, _PUT, _LONG_BINPUT, _LINE_PAIRS = ord("."), ord("p"), ord("r"), (ord("c"), ord("i"))


def _check_memo(content: bytes) -> None:
    """Refuses memo slots beyond the pickle's length, which no honest pickle can fill.

    Python's unpickler allots all slots up to the highest: ten bytes could take all memory. This
    steps over the opcodes without decoding them; `pickletools.genops` takes ten times as long.
    """
    at, end = 0, len(content)
    while at < end and content[at] != _STOP:
        opcode, start = content[at], at + 1
        length = _LENGTHS[opcode]
        if length == pickletools.UP_TO_NEWLINE:
            at = content.index(b"\n", start) + 1
            if opcode in _LINE_PAIRS:
                at = content.index(b"\n", at) + 1
        elif length >= 0:
            at = start + length
        else:
            width = _LENGTH_BYTES[length]
            at = start + width + int.from_bytes(content[start : start + width], "little")
        if opcode in (_PUT, _LONG_BINPUT):
            argument = content[start:at]
            slot = int(argument) if opcode == _PUT else int.from_bytes(argument, "little")
            if slot > end:
                raise _RefusedError(f"memory for {slot} objects")


def _load(content: bytes) -> Any:
    unpickler = _Unpickler(content)
    try:
        return unpickler.load()
    finally:
        unpickler.forget()


def load_batch(content: bytes, where: Where) -> dict[str, Any]:
    """Returns the dict that a pickled CIFAR batch holds, with text keys and NumPy arrays.

    Strings of Python 2 come as bytes (`encoding="bytes"`): keys are decoded, values left as they
    are. Arrays inside of lists or inner dicts are not read.

    Raises:
        DataError: The pickle is damaged, holds no dict, or names anything but NumPy's array
            reconstruction. Nothing that it names has run.
    """
    expected = "a pickled dict of NumPy arrays and plain containers"
    with parsing(where, expected):
        try:
            _check_memo(content)
            document = _load(content)
        except _RefusedError as refusal:
            advice = "It was refused and nothing of it ran; download the official file again"
            raise unexpected(where, expected, f"a pickle that wants {refusal}", advice) from None
        if not isinstance(document, dict):
            raise TypeError(f"it holds {type(document).__name__}, not dict")
        return {
            _text(key): value.values if isinstance(value, _Array) else value
            for key, value in document.items()
        }
