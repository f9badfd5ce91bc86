"""What is checked in each format before its runtime opens a file that anyone may have written.

Most formats are programs: their runtimes run whatever operations a file lists, which may read and
write files. Only operations that compute are admitted. The `.pt2` format has its own module.
"""

import io
import json
import math
import re
import tomllib
import zipfile
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from kerasnorm.errors import CorruptFileError
from kerasnorm.formats import safety

# Of a `.keras` file.
METADATA = "kerasnorm.json"
WEIGHTS = "model.weights.h5"
MAX_CONFIG = 1 << 24  # bytes of the config, and of the metadata
MAX_UNITS = 1 << 20  # of a layer
SIZES = ("units", "filters", "input_dim", "output_dim", "depth_multiplier")
# Nodes of a Keras config that hold plain values and name no module.
VALUES = {
    *("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__slice__", "__ellipsis__"),
}
# Layers that run code or files of the author's choice.
REFUSED = {"Lambda", "TorchModuleWrapper", "TFSMLayer", "FlaxLayer", "JaxLayer", "StableHLO"}

OPENVINO_SETS = re.compile(r"opset\d+$")  # other sets run a library or a framework's code
CHECKPOINT_FUNCTION = re.compile(r"__inference__traced_(save|restore)(_\d+)?$")
OBJECTS = {  # that a SavedModel may hold
    *("user_object", "function", "bare_concrete_function", "constant", "captured_tensor"),
    *("variable", None),
}


def admitted(framework: str, kind: str) -> frozenset[str]:
    """Returns the operations that files may list; see `operations.toml`."""
    text = Path(__file__).with_name("operations.toml").read_text(encoding="utf-8")
    return frozenset(tomllib.loads(text)[framework][kind].split())


def check_keras(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checks a `.keras` file without Keras; returns its config, and its metadata or {}.

    Raises:
        CorruptFileError: It is missing or damaged, or its weights are in other files.
    """
    if not path.is_file():
        raise CorruptFileError(f"There is no model file {path}.")
    if path.suffix != ".keras":
        raise CorruptFileError(f"Expected a .keras file. Received: {path}")
    with safety.reading(path, ".keras file"), zipfile.ZipFile(path) as archive:
        safety.check_members(path, archive)
        for name in {"config.json", METADATA} & {*archive.namelist()}:
            if archive.getinfo(name).file_size > MAX_CONFIG:
                raise CorruptFileError(f"{path}: {name} is over {MAX_CONFIG >> 20} MiB.")
        config = json.loads(archive.read("config.json"))
        content = archive.read(METADATA) if METADATA in archive.namelist() else b"{}"
        metadata = json.loads(content.decode(errors="surrogateescape"))  # paths, see `files`
        _check_weights(path, archive)
    if not isinstance(config, dict) or not isinstance(metadata, dict):
        raise CorruptFileError(f"{path} is no .keras file: its config is no object.")
    return config, metadata


def _check_weights(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuses weights that lie in other files than the archive's own."""
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
                    safety.check_count(path, item.size or 0)
                elif address not in seen:
                    seen.add(address)
                    pending.append(item)


def check_keras_classes(
    path: Path, config: dict[str, Any], classes: Mapping[str, str], functions: Container[str]
) -> None:
    """Checks that a Keras config needs no classes but Keras's own, and none that run code.

    `classes` are the registered names of classes that are admitted too, each with the class's own
    name; `functions` those of functions.

    Raises:
        CorruptFileError: It does, or has a layer of absurd size.
    """
    found, kept = set(), list(classes.items())
    for node in safety.parts(config):
        if isinstance(node, dict):
            is_kept = (node.get("registered_name"), node.get("class_name")) in kept
            function = str(node.get("config")) if node.get("class_name") == "function" else ""
            if ">" in function and function not in functions:  # Keras's own have no package
                found.add(f"the function {function}")
            elif "class_name" in node and not is_kept and _is_foreign(node):
                found.add(f"{node.get('module') or 'custom'}.{node['class_name']}")
            if any(isinstance(node.get(name), int) and node[name] > MAX_UNITS for name in SIZES):
                found.add(f"a layer of more than {MAX_UNITS} units")
    if found:
        raise CorruptFileError(
            f"{path} was refused: it needs {', '.join(sorted(found))}, which could run code of its "
            "author. Expected layers of Keras itself. If you trust that code, name its module or "
            "file: --trust package.module, or --trust file.py."
        )


def _is_foreign(node: dict[str, Any]) -> bool:
    name, module = str(node["class_name"]), str(node.get("module"))
    if name in VALUES:
        return False
    is_keras = module.split(".", maxsplit=1)[0] in ("keras", "builtins")
    is_renamed = node.get("registered_name") not in (None, name)
    return name in REFUSED or ">" in name or not is_keras or is_renamed


def refuse_unknown(path: Path, found: set[str]) -> None:
    """Raises a CorruptFileError if operations, or sets of them, were found that are not listed."""
    if found:
        names = ", ".join(name[:80] for name in sorted(found)[:5])
        raise CorruptFileError(
            f"{path} was refused: it needs what is not on the list of known operations, which only "
            f"compute: {names}. Export the model in another format."
        )


def check_saved_model(path: Path) -> None:
    """Checks a folder of tf.saved_model.

    Raises:
        CorruptFileError: It is damaged, too large, or holds operations that do more than compute.
    """
    entries = list(path.rglob("*"))
    if any(entry.is_symlink() for entry in entries):
        raise CorruptFileError(f"{path} was refused: it holds a symbolic link.")
    if sum(entry.stat().st_size for entry in entries) > safety.MAX_BYTES:
        raise CorruptFileError(f"{path} is larger than {safety.MAX_BYTES >> 20} MiB.")
    document = read_saved_model(path)
    if len(document.meta_graphs) != 1:
        raise CorruptFileError(f"{path}: expected one graph. Received: {len(document.meta_graphs)}")
    graph = document.meta_graphs[0]
    kinds = {node.WhichOneof("kind") for node in graph.object_graph_def.nodes}
    if graph.asset_file_def or kinds - OBJECTS:
        raise CorruptFileError(f"{path} was refused: it holds assets or foreign objects.")
    if not graph.object_graph_def.nodes:
        raise CorruptFileError(f"{path} is of TensorFlow 1, whose loader runs what it holds.")
    refuse_unknown(path, unknown_operations(graph))
    shapes = [node.variable.shape for node in graph.object_graph_def.nodes]
    safety.check_count(path, sum(math.prod(d.size for d in s.dim) if s.dim else 1 for s in shapes))


def read_saved_model(path: Path) -> Any:
    """Returns what a folder of tf.saved_model holds, or raises a CorruptFileError."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    document = SavedModel()
    with safety.reading(path):
        document.ParseFromString(safety.read_limited(path / "saved_model.pb"))
    return document


def unknown_operations(graph: Any) -> set[str]:
    """Returns the operations of a saved model's graph that are not on the list of known ones."""
    functions = graph.graph_def.library.function
    # What loading and calling can reach: the objects' functions, and what functions call.
    reachable = set(graph.object_graph_def.concrete_functions)
    reachable |= {name for function in functions for name in _calls(function.node_def)}
    found = {node.op for node in graph.graph_def.node}
    for function in functions:
        name = function.signature.name
        operations = {node.op for node in function.node_def}
        if CHECKPOINT_FUNCTION.match(name) and name not in reachable:
            operations -= admitted("tensorflow", "checkpoint")
        found |= operations
    return found - admitted("tensorflow", "compute")


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

    content = safety.read_limited(path)
    with safety.reading(path):
        model = onnx.load_model_from_string(content)
    domains, weights = set(), 0
    for part in _messages(model):
        if isinstance(part, onnx.TensorProto) and (
            part.data_location == onnx.TensorProto.EXTERNAL or part.external_data
        ):
            raise CorruptFileError(f"{path} was refused: its weights are to be read from a file.")
        if isinstance(part, (onnx.TensorProto, onnx.SparseTensorProto)):
            weights += math.prod(part.dims)
        if isinstance(part, onnx.NodeProto):
            domains.add(part.domain)
    refuse_unknown(path, {f"operations of {name}" for name in domains - {"", "ai.onnx"}})
    safety.check_count(path, weights)
    return content


def _messages(message: Any) -> Iterator[Any]:
    """Yields a message of protobuf and all messages in it, at any depth and in every field."""
    pending = [message]
    while pending:
        current = pending.pop()
        yield current
        for field, value in current.ListFields():
            if field.message_type:
                pending += [value] if hasattr(value, "ListFields") else value


def check_litert(path: Path) -> bytes:
    """Returns the bytes of a LiteRT file, or raises a CorruptFileError."""
    content = safety.read_limited(path)
    if content[4:8] != b"TFL3":
        raise CorruptFileError(f"{path} is no LiteRT file: it does not begin like one.")
    return content


def check_openvino(path: Path) -> None:
    """Checks an OpenVINO model, its `.xml` and its `.bin`.

    Raises:
        CorruptFileError: It is damaged, or holds layers of no standard.
    """
    from xml.etree import ElementTree

    content = safety.read_limited(path)
    weights = path.with_suffix(".bin")
    safety.check_file(weights)
    if path.is_symlink() or weights.is_symlink():
        raise CorruptFileError(f"{path} was refused: it is a symbolic link.")
    if b"<!" in content.replace(b"<!--", b""):
        raise CorruptFileError(f"{path} was refused: it declares a document type.")
    with safety.reading(path):
        root = ElementTree.fromstring(content)  # noqa: S314  (without document type, no entities)
    if root.tag != "net":
        raise CorruptFileError(f"{path} is no OpenVINO model: it begins with <{root.tag}>.")
    sets = {layer.get("version", "none") for layer in root.iter("layer")}
    refuse_unknown(path, {f"layers of {name}" for name in sets if not OPENVINO_SETS.match(name)})
    available, total = weights.stat().st_size, 0
    for layer in root.iter("layer"):
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None:
            continue
        offset, size = data.get("offset", ""), data.get("size", "")
        if not (offset.isdecimal() and size.isdecimal()) or int(offset) + int(size) > available:
            raise CorruptFileError(f"{path} is damaged: its weights are not in {weights.name}.")
        total += int(size)
    safety.check_count(path, total / 4)
