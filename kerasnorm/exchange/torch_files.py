"""Reads the tensors of PyTorch files, `.pth`, `.pt` and `.safetensors`, with distrust."""

import json
import math
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.errors import CorruptFileError, MissingPackageError
from kerasnorm.exchange.formats import FORMATS
from kerasnorm.exchange.helper import Helper
from kerasnorm.exchange.limits import check_count, check_file, check_members, read_limited

Named = list[tuple[str, NDArray[Any]]]
PICKLED = (".pth", ".pt")
_NESTED = ("state_dict", "model_state_dict", "model", "net", "params", "ema")
MAX_TENSORS = 10_000


def read_tensors(path: Path) -> Named:
    """Returns the named tensors of a PyTorch file, in its order.

    Raises:
        CorruptFileError: It is missing, damaged, too large, would run code, or holds no tensors.
        MissingPackageError: The package that reads it is not installed.
    """
    check_file(path)
    if path.suffix == ".safetensors":
        return _natural(list(read_safetensors(path)[0].items()))
    if path.suffix not in PICKLED:
        raise CorruptFileError(f"Expected a .pth, .pt or .safetensors file. Received: {path}")
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise MissingPackageError(
            f"Reading {path.suffix} files needs torch, which is not installed. "
            "Install it with: pip install 'kerasnorm[torch]'"
        )
    with Helper(seconds=120.0) as helper, tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tensors.npz"
        names = helper.ask("read_tensors", path, out=str(out))
        with np.load(out, allow_pickle=False) as arrays:
            return [(name, arrays[str(place)]) for place, name in enumerate(names)]


def read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Returns the tensors and the metadata of a safetensors file.

    Raises:
        CorruptFileError: It is damaged or too large.
        MissingPackageError: The package safetensors is not installed.
    """
    FORMATS["state-dict"].check_package("safetensors")
    from safetensors.numpy import load

    content = read_limited(path)
    try:
        length = int.from_bytes(content[:8], "little")
        if length > min(len(content), 1 << 24):
            raise ValueError("its header is longer than the file")
        header = json.loads(content[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        check_count(path, sum(math.prod(entry["shape"]) for entry in header.values()))
        tensors = {name: _as_float(value) for name, value in load(content).items()}
    except CorruptFileError:
        raise
    except Exception as error:  # the parsers raise a dozen types
        reason = str(error).splitlines() or [type(error).__name__]
        raise CorruptFileError(f"{path} is damaged: {reason[0]}") from None
    _check(path, tensors)
    return tensors, metadata


def _as_float(value: NDArray[Any]) -> NDArray[Any]:
    return value.astype(np.float32) if value.dtype.kind == "f" else value


def _check(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    for name, value in tensors.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise CorruptFileError(f"{path}: the tensor {name} holds NaN or infinity.")


def _natural(tensors: Named) -> Named:
    """Sorts by name, numbers by value: safetensors does not keep the order of the module."""

    def key(item: tuple[str, Any]) -> list[tuple[bool, int, str]]:
        pieces = re.split(r"(\d+)", item[0])
        return [(p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in pieces]

    return sorted(tensors, key=key)


def read_pickled(path: Path, out: Path) -> list[str]:
    """Writes the tensors of a `.pth` file to `out` (`.npz`) and returns their names.

    In the helper's process; the file's pickle may rebuild tensors and nothing else.

    Raises:
        CorruptFileError: It is damaged, too large, would run code, or holds no tensors.
    """
    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_members(path, archive)
    import pickle

    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"wants to run {found[1]}" if found else "wants more than tensors"
        raise CorruptFileError(
            f"{path} was refused: its pickle {what}, or it is damaged; nothing of it ran. Expected "
            "a state_dict: torch.save(model.state_dict(), …)."
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
    import torch

    for _ in range(3):
        if not isinstance(document, dict):
            break
        found = {str(k): v for k, v in document.items() if isinstance(v, torch.Tensor)}
        if any(value.ndim > 0 for value in found.values()):
            if len(found) > MAX_TENSORS:
                raise CorruptFileError(f"{path} holds more than {MAX_TENSORS:,} tensors.")
            return found
        inner = [document[name] for name in _NESTED if isinstance(document.get(name), dict)]
        document = inner[0] if inner else None
    raise CorruptFileError(f"{path} holds no state_dict: no tensors by their names.")
