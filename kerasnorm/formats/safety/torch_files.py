"""Reads the tensors of PyTorch files (torch.save, safetensors) that anyone may have written."""

import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.errors import CorruptFileError
from kerasnorm.formats.format import require
from kerasnorm.formats.safety import check_count, check_members, read_limited, reading

# Types of safetensors and their names in NumPy, such as "<f8", which has none for BF16.
TYPES = {
    name: f"<{name[0].lower()}{int(name[1:]) // 8}"
    for name in ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8")
} | {"BOOL": "?"}
PROGRAM = re.compile(r"[^/]+/(code/|constants\.pkl$)")  # members of TorchScript
MAX_TENSORS = 10_000
MAX_DEPTH = 4  # dicts within dicts


def read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Returns the tensors and the metadata of a safetensors file.

    Raises:
        CorruptFileError: It is damaged or too large.
        MissingPackageError: The package safetensors is not installed.
    """
    require(("safetensors",), path.suffix)
    from safetensors import deserialize

    content = read_limited(path)
    with reading(path):
        length = int.from_bytes(content[:8], "little")
        if length > min(len(content), 1 << 24):
            raise ValueError("its header is longer than the file")
        header = json.loads(content[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        check_count(path, sum(math.prod(entry["shape"]) for entry in header.values()))
        read = deserialize(content)  # type: ignore[no-untyped-call]
        tensors = {name: _array(entry) for name, entry in read}
    _check(path, tensors)
    return tensors, metadata


def _array(entry: dict[str, Any]) -> NDArray[Any]:
    """Returns a tensor of a safetensors file; floating-point types become float32."""
    kind, data = entry["dtype"], entry["data"]
    if kind == "BF16":  # the upper half of a float32
        value = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    elif kind in TYPES:
        value = np.frombuffer(data, TYPES[kind])
    else:
        raise ValueError(f"tensors of type {kind} are not read")
    value = value.reshape(entry["shape"])
    return value.astype(np.float32) if value.dtype.kind == "f" else value


def _check(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    for name, value in tensors.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise CorruptFileError(f"{path}: the tensor {name} holds NaN or infinity.")


def read_pickled(path: Path, out: Path) -> list[str]:
    """Writes the tensors of a file of `torch.save` to `out` (`.npz`) and returns their names.

    Runs in a process of `safety.process`. The pickle may rebuild tensors and nothing else.

    Raises:
        CorruptFileError: It is damaged, too large, would run code, or holds no tensors.
    """
    import pickle

    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_members(path, archive)
            if any(PROGRAM.match(name) for name in archive.namelist()):
                raise CorruptFileError(
                    f"{path} was refused: it is a TorchScript program, which runs "
                    "where it is opened. If you trust its author, write its weights alone: "
                    f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
                )
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"wants to run {found[1]}" if found else "wants more than tensors"
        raise CorruptFileError(
            f"{path} was refused: its pickle {what}, or it is damaged; nothing of it ran. Expected "
            "a state_dict: torch.save(model.state_dict(), …). If you trust a checkpoint's author, "
            "write its weights: torch.save(torch.load(…, weights_only=False)['state_dict'], …)."
        ) from None
    tensors = _tensors(path, document)
    check_count(path, sum(value.numel() for value in tensors.values()))
    arrays = {}
    for name, value in tensors.items():
        plain = value.detach().to("cpu")
        arrays[name] = (plain.float() if plain.is_floating_point() else plain).numpy()
    _check(path, arrays)
    np.savez(out, **{str(place): value for place, value in enumerate(arrays.values())})
    return list(arrays)


def _tensors(path: Path, document: Any) -> dict[str, Any]:
    """Returns the state_dict in what was unpickled: of all dicts, the one with the most tensors.

    Raises:
        CorruptFileError: There is none; or there are several of the same shapes and other values,
            such as that of a moving average of the weights.
    """
    import torch

    dicts: dict[int, tuple[str, dict[Any, Any]]] = {}  # by id: a file may hold one a million times
    pending = [("", document)]
    for _ in range(MAX_DEPTH):
        new = {id(item): (place, item) for place, item in pending if isinstance(item, dict)}
        new = {key: found for key, found in new.items() if key not in dicts}
        dicts |= new
        pending = [
            (f"{place}[{name!r}]", value)
            for place, item in new.values()
            for name, value in item.items()
            if isinstance(value, dict)
        ]
    found = {
        place: {str(name): value for name, value in item.items() if isinstance(value, torch.Tensor)}
        for place, item in dicts.values()
    }
    best = max(found.values(), key=lambda tensors: len(_weights(tensors)), default={})
    if not _weights(best):
        keys = ", ".join(map(str, document)) if isinstance(document, dict) else "no dict"
        raise CorruptFileError(
            f"{path} holds no state_dict: no tensors by their names. Received: {keys[:200]}"
        )
    if len(best) > MAX_TENSORS:
        raise CorruptFileError(f"{path} holds more than {MAX_TENSORS:,} tensors.")
    weights = {place: _weights(tensors) for place, tensors in found.items()}
    shapes = [value.shape for value in _weights(best)]
    alike = {p: values for p, values in weights.items() if [v.shape for v in values] == shapes}
    if any(not all(map(_is_same, values, _weights(best))) for values in alike.values()):
        raise CorruptFileError(
            f"{path} holds {len(alike)} state_dicts of the same shapes and other values, at "
            f"{', '.join(alike)[:200]}. Write the one that you want: "
            f"torch.save(torch.load({str(path)!r}){[*alike][-1][:80]}, 'weights.pth')"
        )
    return best


def _weights(tensors: dict[str, Any]) -> list[Any]:
    return [value for value in tensors.values() if value.ndim > 0]


def _is_same(one: Any, other: Any) -> bool:
    return bool(one.dtype == other.dtype and one.equal(other))
