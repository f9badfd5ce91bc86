"""The `.pt2` files of torch.export, cleaned before they are opened.

A `.pt2` is full of places from which code can run: PyTorch evaluates its expressions and guards,
unpickles tensors and sample inputs, and looks its operations up by name. Here the archive is
written anew from what is known to be harmless; all else is dropped or refused.
"""

import io
import json
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kerasnorm.errors import CorruptFileError
from kerasnorm.formats.safety import check_count, check_file, check_members, parts, reading
from kerasnorm.formats.safety.checks import admitted, refuse_unknown

_TARGET = re.compile(r"torch\.ops\.aten\.(\w+)\.\w+")
_SYMBOL = re.compile(r"Symbol\('s\d{1,9}'(, (positive|integer)=True)*\)|s?\d{1,9}")
_MEMBER = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
    r"|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json))"
)
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


def clean(path: Path) -> bytes:
    """Returns the archive written anew, without stack traces, guards and sample inputs.

    Raises:
        CorruptFileError: It is damaged, too large, or holds what could run code.
    """
    check_file(path)
    cleaned = io.BytesIO()
    with (
        reading(path, ".pt2 file"),
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(cleaned, "w") as target,
    ):
        check_members(path, archive)
        for name in archive.namelist():
            target.writestr(name, _cleaned(path, name, archive.read(name)))
    return cleaned.getvalue()


def _cleaned(path: Path, name: str, data: bytes) -> bytes:
    if not _MEMBER.fullmatch(name):
        raise _refusal(path, f"a member {name!r}")
    if name.endswith("/models/model.json"):
        return _model(path, data)
    if name.endswith("_config.json"):
        _check_payloads(path, json.loads(data))
    return b"" if name.endswith("/sample_inputs/model.pt") else data


def _refusal(path: Path, what: str) -> CorruptFileError:
    return CorruptFileError(
        f"{path} was refused: it holds {what[:80]}, which an image classifier does not need and "
        "which could run code of its author."
    )


def _check_payloads(path: Path, document: Any) -> None:
    weights = 0
    for entry in document["config"].values():
        if entry["use_pickle"] is not False or not _PAYLOAD.fullmatch(entry["path_name"]):
            raise _refusal(path, "a pickle")
        weights += math.prod(int(size["as_int"]) for size in entry["tensor_meta"]["sizes"])
    check_count(path, weights)


def _model(path: Path, data: bytes) -> bytes:
    """Checks the program and returns it without guards and metadata."""
    document = json.loads(data)
    document["guards_code"] = []
    module = document["graph_module"]
    module["metadata"] = {}
    module["treespec_namedtuple_fields"] = {}
    refuse_unknown(path, unknown_operations(document))
    for node in module["graph"]["nodes"]:
        node["metadata"] = {}
    if module["graph"]["custom_obj_values"]:
        raise _refusal(path, "an object")
    for key, value in _entries(document):
        if key == "expr_str" and not (isinstance(value, str) and _SYMBOL.fullmatch(value)):
            raise _refusal(path, f"the expression {value!r}")
        if key in ("in_spec", "out_spec") and value:
            _check_tree(path, json.loads(value))
        if key == "as_graph":
            raise _refusal(path, "a graph inside of its graph")
    for symbol in document["range_constraints"]:
        if not _SYMBOL.fullmatch(symbol):
            raise _refusal(path, f"the symbol {symbol!r}")
    return json.dumps(document).encode()


def unknown_operations(document: Any) -> set[str]:
    """Returns the operations of a `.pt2` file's program that are not on the list of known ones."""
    operations, unknown = admitted("torch", "aten"), set()
    for node in document["graph_module"]["graph"]["nodes"]:
        found = _TARGET.fullmatch(node["target"])
        # With an underscore at its end an operation writes its result into its first tensor.
        if found is None or not {found[1], found[1].removesuffix("_")} & operations:
            unknown.add(str(node["target"]))
    return unknown


def _check_tree(path: Path, tree: Any) -> None:
    for key, value in _entries(tree):
        if key == "type" and value not in _CONTAINERS:
            raise _refusal(path, f"a container {value!r}")
        if key == "context" and value not in (None, "null", "[]"):
            raise _refusal(path, f"a container's context {value!r}")


def _entries(document: Any) -> Iterator[tuple[str, Any]]:
    """Yields every key with its value, at any depth."""
    for part in parts(document):
        if isinstance(part, dict):
            yield from part.items()
