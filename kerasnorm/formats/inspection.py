"""What is checked in a file from elsewhere before its runtime opens it.

These formats are programs: their runtimes run whatever operations they list, which may read and
write files. Only operations that compute are admitted.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from kerasnorm.errors import CorruptFileError
from kerasnorm.formats.limits import MAX_BYTES, admitted, check_count, check_file, read_limited

TENSORFLOW_OPERATIONS = admitted("tensorflow", "compute")
CHECKPOINT_OPERATIONS = admitted("tensorflow", "checkpoint")
CHECKPOINT_FUNCTION = re.compile(r"__inference__traced_(save|restore)(_\d+)?$")


def _refuse(path: Path, found: set[str]) -> None:
    if found:
        raise CorruptFileError(
            f"{path} was refused: it needs {', '.join(sorted(found)[:5])}, which an image "
            "classifier does not need and which could do harm."
        )


def check_saved_model(path: Path) -> None:
    """Checks a folder of tf.saved_model.

    Raises:
        CorruptFileError: It is damaged, too large, or holds operations that do more than compute.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    entries = list(path.rglob("*"))
    if any(entry.is_symlink() for entry in entries):
        raise CorruptFileError(f"{path} was refused: it holds a symbolic link.")
    if sum(entry.stat().st_size for entry in entries) > MAX_BYTES:
        raise CorruptFileError(f"{path} is larger than {MAX_BYTES >> 20} MiB.")
    document = SavedModel()
    try:
        document.ParseFromString(read_limited(path / "saved_model.pb"))
    except DecodeError as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from None
    if len(document.meta_graphs) != 1:
        raise CorruptFileError(f"{path}: expected one graph. Received: {len(document.meta_graphs)}")
    graph = document.meta_graphs[0]
    if graph.asset_file_def or _kinds(graph) - KINDS:
        raise CorruptFileError(f"{path} was refused: it holds assets or foreign objects.")
    if not graph.object_graph_def.nodes:
        raise CorruptFileError(f"{path} is of TensorFlow 1, whose loader runs what it holds.")
    _refuse(path, _foreign_operations(graph))
    shapes = [node.variable.shape for node in graph.object_graph_def.nodes]
    check_count(path, sum(math.prod(d.size for d in s.dim) if s.dim else 1 for s in shapes))


KINDS = {
    "user_object",
    "function",
    "bare_concrete_function",
    "constant",
    "captured_tensor",
    "variable",
    None,
}


def _kinds(graph: Any) -> set[str | None]:
    return {node.WhichOneof("kind") for node in graph.object_graph_def.nodes}


def _foreign_operations(graph: Any) -> set[str]:
    """Operations of a saved model that do more than compute."""
    functions = graph.graph_def.library.function
    # What loading and calling can reach: the objects' functions, and what functions call.
    reachable = set(graph.object_graph_def.concrete_functions)
    reachable |= {name for function in functions for name in _calls(function.node_def)}
    found = {node.op for node in graph.graph_def.node}
    for function in functions:
        name = function.signature.name
        operations = {node.op for node in function.node_def}
        if CHECKPOINT_FUNCTION.match(name) and name not in reachable:
            operations -= CHECKPOINT_OPERATIONS
        found |= operations
    return found - TENSORFLOW_OPERATIONS


def _calls(nodes: Any) -> Iterator[str]:
    for node in nodes:
        for value in node.attr.values():
            yield from [value.func.name, *(entry.name for entry in value.list.func)]


def check_onnx(path: Path) -> bytes:
    """Checks an ONNX file and returns its bytes.

    Raises:
        CorruptFileError: It is damaged, wants other files, or holds operations of no standard.
    """
    import onnx
    from google.protobuf.message import DecodeError

    content = read_limited(path)
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from None
    tensors = list(_onnx_tensors(model.graph))
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise CorruptFileError(f"{path} was refused: its weights are to be read from a file.")
    domains = {node.domain for node in _onnx_nodes(model)} - {"", "ai.onnx"}
    _refuse(path, {f"operations of {name}" for name in domains})
    check_count(path, sum(math.prod(tensor.dims) for tensor in tensors))
    return content


def _onnx_nodes(model: Any) -> Iterator[Any]:
    pending = [model.graph.node, *(function.node for function in model.functions)]
    while pending:
        for node in pending.pop():
            yield node
            for attribute in node.attribute:
                pending += [g.node for g in (attribute.g, *attribute.graphs) if g.node]


def _onnx_tensors(graph: Any) -> Iterator[Any]:
    pending = [graph]
    while pending:
        current = pending.pop()
        yield from current.initializer
        yield from (part for entry in current.sparse_initializer for part in (entry.values,))
        for node in current.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                pending += [g for g in (attribute.g, *attribute.graphs) if g.node]


def check_litert(path: Path) -> bytes:
    """Checks a LiteRT file and returns its bytes; its interpreter has no operation but its own.

    Raises:
        CorruptFileError: It is none.
    """
    content = read_limited(path)
    if content[4:8] != b"TFL3":
        raise CorruptFileError(f"{path} is no LiteRT file: it does not begin like one.")
    return content


# Layers of OpenVINO that run a library or a framework's code.
_OPENVINO_SETS = re.compile(r"opset\d+$")


def check_openvino(path: Path) -> None:
    """Checks an OpenVINO model, its `.xml` and its `.bin`.

    Raises:
        CorruptFileError: It is damaged, or holds layers of no standard.
    """
    content = read_limited(path)
    weights = path.with_suffix(".bin")
    check_file(weights)
    if path.is_symlink() or weights.is_symlink():
        raise CorruptFileError(f"{path} was refused: it is a symbolic link.")
    if b"<!" in content.replace(b"<!--", b""):
        raise CorruptFileError(f"{path} was refused: it declares a document type.")
    try:
        root = ElementTree.fromstring(content)  # noqa: S314  (without document type, no entities)
    except ElementTree.ParseError as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from None
    if root.tag != "net":
        raise CorruptFileError(f"{path} is no OpenVINO model: it begins with <{root.tag}>.")
    sets = {layer.get("version", "none") for layer in root.iter("layer")}
    _refuse(path, {f"layers of {name}" for name in sets if not _OPENVINO_SETS.match(name)})
    available, total = weights.stat().st_size, 0
    for layer in root.iter("layer"):
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None:
            continue
        offset, size = data.get("offset", ""), data.get("size", "")
        if not (offset.isdecimal() and size.isdecimal()) or int(offset) + int(size) > available:
            raise CorruptFileError(f"{path} is damaged: its weights are not in {weights.name}.")
        total += int(size)
    check_count(path, total / 4)
