"""Files are untrusted until they are checked: none of these runs, hangs or crashes anything."""

import io
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from helpers import exported
from helpers.exported import path_of
from keras import layers

from kerasnorm.errors import ConfigError, CorruptFileError, KerasnormError
from kerasnorm.formats import FORMATS, detect, safety
from kerasnorm.formats.exported import checksums, metadata_path, needs_keras, open_any
from kerasnorm.formats.safety import checks
from kerasnorm.formats.safety.process import FileProcess
from kerasnorm.formats.state_dict import generate
from kerasnorm.torch_import import read_tensors

POSSIBLE = exported.possible()
MUTATIONS = {"few": 6, "many": 500}


def needs(name):
    return pytest.mark.skipif(name not in POSSIBLE, reason=f"{name} cannot be made here")


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "trace"


@pytest.fixture
def copy(exports, tmp_path):
    """Returns a function that copies an export, without its metadata, to spoil it."""

    def make(name):
        shutil.copytree(exports / "exports", tmp_path / "copy")
        path = tmp_path / "copy" / path_of(exports, name).name
        metadata_path(path).unlink()
        return path

    return make


def refused(path, match=None):
    """Opens a file in a process of its own, which must refuse it."""
    with pytest.raises(CorruptFileError, match=match) as caught:
        open_any(path)
    assert len(str(caught.value).splitlines()) == 1


def rewrite(path, change):
    """Writes an archive anew, its members changed by a function of name and data."""
    with zipfile.ZipFile(path) as before:
        members = {name: before.read(name) for name in before.namelist()}
    with zipfile.ZipFile(path, "w") as after:
        for name, data in members.items():
            after.writestr(name, change(name, data))


# .keras


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.keras"
    keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten(), layers.Dense(2)]).save(path)
    return path


def with_config(file, change):
    def edit(name, data):
        if name != "config.json":
            return data
        config = json.loads(data)
        change(config)
        return json.dumps(config).encode()

    rewrite(file, edit)


def test_two_huge_layers_in_a_row_are_refused_before_any_is_made(file, monkeypatch):
    def widen(config):
        head = config["config"]["layers"][-1]
        first = json.loads(json.dumps(head))
        first["config"] |= {"units": 2**19, "name": "first"}
        head["config"] |= {"units": 2**19, "name": "second"}
        for layer in (first, head):
            layer.pop("build_config")  # of the size that they were
        config["config"]["layers"][-1:] = [first, head]  # 2^38 weights between them

    with_config(file, widen)
    monkeypatch.setattr(keras.saving, "load_model", lambda *a, **k: pytest.fail("it was made"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(file, "more than 268,435,456 weights")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_images_of_absurd_size_are_refused(tmp_path):
    path = tmp_path / "wide.keras"
    image = keras.Input((40_000, 40_000, 3))
    keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(image))).save(path)
    refused(path, "images of more than")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    model = keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten(), layers.Dense(2)])
    model.layers[-1].bias.assign([0.0, value])
    model.save(tmp_path / "nan.keras")
    refused(tmp_path / "nan.keras", "NaN or infinity")


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "..\\outside"])
def test_members_that_leave_their_folder_are_refused(file, name):
    with zipfile.ZipFile(file, "a") as opened:
        opened.writestr(name, b"x")
    refused(file, "would leave its folder")


def test_members_of_the_same_name_are_refused(file):
    with zipfile.ZipFile(file, "a") as opened, pytest.warns(UserWarning, match="Duplicate"):
        opened.writestr("config.json", b"{}")
    refused(file, "the same name")


@pytest.mark.long
def test_a_bomb_is_refused_before_it_unpacks(file, monkeypatch):
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("assets/bomb", bytes(safety.MAX_BYTES + 1))
    assert file.stat().st_size < 2_000_000
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *a: pytest.fail("it was unpacked"))
    refused(file, "unpacks to more than 1024 MiB")


def with_weights(file, change):
    def edit(name, data):
        if name != checks.WEIGHTS:
            return data
        content = io.BytesIO(data)
        with h5py.File(content, "r+") as opened:
            change(opened)
        return content.getvalue()

    rewrite(file, edit)


def external_link(opened):
    opened["stolen"] = h5py.ExternalLink("/etc/passwd", "/")


def external_data(opened):
    opened.create_dataset("stolen", (8,), "u1", external=[("/etc/passwd", 0, 8)])


def virtual_data(opened):
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "data", (8,))
    opened.create_virtual_dataset("stolen", layout)


def huge_data(opened):
    opened.create_dataset("huge", (2**40,), "f4", chunks=(1024,))


@pytest.mark.parametrize("change", [external_link, external_data, virtual_data, huge_data])
def test_weights_that_lie_elsewhere_or_nowhere_are_refused(file, change):
    with_weights(file, change)
    refused(file, r"refused|holds more than")


# PyTorch pickles and safetensors


def test_an_untrusted_pickle_never_runs(tmp_path, trace):
    torch = pytest.importorskip("torch")
    path = tmp_path / "untrusted.pth"
    torch.save({"weight": Trap(trace)}, path)
    torch.load(path, weights_only=False)
    trace.rmdir()  # so the trap works
    for untrusted in (path, tmp_path / "bare.pth", tmp_path / "bare.pt"):
        if untrusted != path:
            untrusted.write_bytes(pickle.dumps(Trap(trace), 2))
        with pytest.raises(CorruptFileError, match=r"nothing of it ran|damaged"):
            read_tensors(untrusted)
        assert not trace.exists()


def test_a_pickle_that_fills_the_memory_is_refused(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "hungry.pth"
    # bytearray(2**40), and its repetitions
    path.write_bytes(b"\x80\x02cbuiltins\nbytearray\n(\x8a\x06\x00\x00\x00\x00\x00\x01tR.")
    with pytest.raises(CorruptFileError):
        read_tensors(path)


def safetensors(header, data=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


HEADER = {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}
SAFETENSORS = {
    "wrong magic": b"hello" * 10,
    "long header": (2**62).to_bytes(8, "little") + b"{}",
    "huge shape": safetensors(HEADER, bytes(4)),
    "negative": safetensors({"w": HEADER["w"] | {"shape": [-1]}}, bytes(4)),
    "outside": safetensors({"w": HEADER["w"] | {"shape": [1], "data_offsets": [0, 400]}}, b"1234"),
    "nan": safetensors({"w": HEADER["w"] | {"shape": [1]}}, b"\x00\x00\xc0\x7f"),
    "no object": safetensors([1, 2]),
    "nested": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "empty": b"",
}


@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS)
def test_untrusted_safetensors_are_refused(tmp_path, content):
    pytest.importorskip("safetensors")
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError):
        read_tensors(path)
    refused(path)


@needs("state-dict")
def test_an_untrusted_module_beside_its_tensors_never_runs(copy, trace):
    path = copy("state-dict")
    path.with_suffix(".py").write_text(f"import os; os.mkdir({str(trace)!r})")
    open_any(path)
    assert not trace.exists()
    with FileProcess() as process, pytest.raises(CorruptFileError, match="would run its code"):
        process.do("open", path, format="state-dict")
    assert not trace.exists()


# Exports


@needs("torch")
@pytest.mark.parametrize(
    "where",
    [
        "weight",
        "expression",
        "operation",
        "file",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("sample", "guard")),
    ],
)
def test_an_untrusted_pt2_never_runs(copy, trace, where):
    path = copy("torch")
    code = f"__import__('os').mkdir({str(trace)!r})"

    def weight(name, data):
        if name.endswith("weights_config.json"):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
        return pickle.dumps(Trap(trace)) if "/weights/weight_" in name else data

    def program(name, data):
        if not name.endswith("model.json"):
            return data
        document = json.loads(data)
        graph = document["graph_module"]["graph"]
        if where == "expression":
            for value in graph["sym_int_values"].values():
                value["as_expr"]["expr_str"] = code
        elif where == "guard":
            document["guards_code"] = [code]
        else:
            target = {"operation": "torch.os.system", "file": "torch.ops.aten.from_file.default"}
            graph["nodes"][0]["target"] = target[where]
        return json.dumps(document).encode()

    def sample(name, data):
        return pickle.dumps(Trap(trace)) if name.endswith("model.pt") else data

    rewrite(path, {"weight": weight, "sample": sample}.get(where, program))
    if where in ("sample", "guard"):  # dropped, not looked at
        assert open_any(path).predict(exported.IMAGES).shape == (5, 10)
    else:
        known = where in ("weight", "expression")
        refused(
            path, "was refused: it holds" if known else "is not on the list of known operations"
        )
    assert not trace.exists()


@pytest.mark.long
@needs("saved-model")
def test_a_saved_model_that_writes_files_is_refused(tmp_path, trace):
    """Written by TensorFlow in a process of its own; the trap works there."""
    words = [sys.executable, "-m", "helpers.trap", str(tmp_path / "m.savedmodel"), str(trace)]
    paths = os.pathsep.join(map(str, Path(__file__).parents[1:3]))
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "PYTHONPATH": paths}
    subprocess.run(words, check=True, capture_output=True, env=environment)
    trace.unlink()  # so the trap works
    refused(tmp_path / "m.savedmodel", "known operations, which only compute: .*WriteFile")
    assert not trace.exists()


@needs("saved-model")
@pytest.mark.long
def test_a_saved_model_with_a_link_is_refused(copy):
    path = copy("saved-model")
    (path / "assets" / "link").symlink_to("/etc/passwd")
    refused(path, "symbolic link")


@needs("onnx")
@pytest.mark.parametrize("untrusted", ["external", "domain", "nan", "huge"])
def test_untrusted_onnx_files_are_refused(copy, untrusted):
    import onnx

    path = copy("onnx")
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda entry: len(entry.raw_data))
    if untrusted == "external":
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../../../etc/passwd")
    elif untrusted == "domain":
        model.graph.node[0].domain = "evil.org"
    elif untrusted == "nan":
        tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, np.float32).tobytes()
    else:
        tensor.dims[0] = 2**40
    path.write_bytes(model.SerializeToString())
    refused(
        path, {"external": "from a file", "domain": "evil", "nan": "NaN"}.get(untrusted, "holds")
    )


def ways_to(kind, start, longest):
    """Yields the fields that lead from one type of message to another."""
    for name, field in start.fields_by_name.items() if longest else ():
        if field.message_type == kind:
            yield [name]
        if field.message_type:
            yield from ([name, *way] for way in ways_to(kind, field.message_type, longest - 1))


@needs("onnx")
def test_an_onnx_file_that_reads_another_file_is_refused_wherever_it_says_so(tmp_path):
    import onnx

    ways = list(ways_to(onnx.TensorProto.DESCRIPTOR, onnx.ModelProto.DESCRIPTOR, 6))
    assert ["graph", "node", "attribute", "g", "initializer"] in ways  # a branch without calls
    assert ["graph", "node", "attribute", "sparse_tensor", "values"] in ways
    path = tmp_path / "model.onnx"
    for way in ways:
        model = part = onnx.ModelProto(ir_version=8)
        for name in way:
            value = getattr(part, name)
            part = value.add() if hasattr(value, "add") else value
        part.external_data.add(key="location", value="secret.bin")
        path.write_bytes(model.SerializeToString())
        with pytest.raises(CorruptFileError, match="its weights are to be read from a file"):
            checks.check_onnx(path)


@needs("openvino")
@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("<net ", '<!DOCTYPE a [<!ENTITY b "c">]><net ', "document type"),
        ('offset="0"', 'offset="99999999"', "its weights are not in"),
        ('version="opset1"', 'version="evil"', "layers of evil"),
        ("</net>", "", "is damaged"),
    ],
)
def test_untrusted_openvino_models_are_refused(copy, old, new, match):
    path = copy("openvino")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    refused(path, match)


@pytest.mark.parametrize("name", [name for name in POSSIBLE if name != "saved-model"])
@pytest.mark.parametrize("content", [b"", b"hello" * 100])
def test_what_is_no_such_file_is_refused(tmp_path, name, content):
    path = tmp_path / f"model{FORMATS[name].suffix}"
    path.write_bytes(content)
    for suffix in FORMATS[name].companions:
        path.with_suffix(suffix).write_bytes(content)
    refused(path)


@pytest.mark.parametrize("name", POSSIBLE)
def test_missing_files_are_refused(tmp_path, name):
    refused(tmp_path / f"model{FORMATS[name].suffix}", "There is no model file")


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", "[" * 100_000, '{"sha256": 3}'])
def test_damaged_metadata_is_refused(exports, tmp_path, text):
    name = "torch" if "torch" in POSSIBLE else POSSIBLE[-1]
    path = tmp_path / path_of(exports, name).name
    path.write_bytes(path_of(exports, name).read_bytes())
    metadata_path(path).write_text(text)
    refused(path, "metadata")


# The process


def test_a_reader_that_dies_or_hangs_costs_one_error(tmp_path, monkeypatch):
    with FileProcess() as process, pytest.raises(CorruptFileError):
        process.do("open", tmp_path / "none.onnx", seconds=20, format="onnx")
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with FileProcess() as process, pytest.raises(CorruptFileError, match="reader ended with 1"):
        process.do("open", tmp_path, format="onnx")
    monkeypatch.setattr(sys, "executable", shutil.which("yes"))
    with FileProcess() as process, pytest.raises(KerasnormError):
        process.do("open", tmp_path, seconds=0.2, format="onnx")


@pytest.mark.parametrize("where", ["model", "layer", "file"])
def test_names_do_not_become_code(where):
    untrusted = 'x"""\nprint(__import__)\n"""'  # PyTorch takes no dots
    names = {"model": "model", "layer": "layer", "file": "file.safetensors"} | {where: untrusted}
    image = keras.Input((8, 8, 3))
    features = layers.Conv2D(2, 3, padding="same", name=names["layer"])(image)
    model = keras.Model(image, layers.GlobalAveragePooling2D()(features), name=names["model"])
    if where == "layer":
        with pytest.raises(ConfigError, match="A layer named"):
            generate(model, names["file"])
    else:
        source, _ = generate(model, names["file"])
        assert "print(" not in source
        compile(source, "model.py", "exec")


# Damage at random


def damaged(content, rng):
    """Returns the content with bits flipped, bytes gone, or its end cut off."""
    changed = bytearray(content)
    kind = rng.integers(4)
    if kind == 0:
        return bytes(changed[: rng.integers(len(changed))])
    if kind == 1:
        start = rng.integers(len(changed))
        del changed[start : start + rng.integers(1, 64)]
        return bytes(changed)
    for place in rng.integers(len(changed), size=1 if kind == 2 else 8):
        changed[place] ^= 1 << rng.integers(8)
    return bytes(changed)


def member_damage(path, rng):
    """Damages one member of an archive and gives it a right checksum."""
    with zipfile.ZipFile(path) as opened:
        target = rng.choice(opened.namelist())
    rewrite(path, lambda name, data: damaged(data, rng) if name == target and data else data)


def answer(path, process):
    """Returns the logits of a file, or what its runtime says of it, or None where it is refused."""
    try:
        if needs_keras(path):
            return open_any(path).predict(exported.IMAGES)
        facts = process.do("open", path, seconds=60, format=detect(path).name)
    except KerasnormError:
        return None
    return facts


def spoil(path, number, rng):
    """Damages a file; says whether its archive's checksums were made right again."""
    if path.is_dir():
        path = rng.choice([entry for entry in path.rglob("*") if entry.is_file()])
    elif path.suffix == ".xml" and number % 2:
        path = path.with_suffix(".bin")
    is_sealed = bool(number % 2) and zipfile.is_zipfile(path)
    if is_sealed:
        member_damage(path, rng)
    else:
        path.write_bytes(damaged(path.read_bytes(), rng))
    return is_sealed


def fuzz(source, tmp_path, count):
    """Damages a file `count` times; with its metadata it is always refused, without it never worse.

    What an archive's own checksums cover is refused or gives the same answer.
    """
    rng = np.random.default_rng(1)
    home = tmp_path / "fuzzed"
    refusals = 0
    expected = open_any(source).predict(exported.IMAGES) if source.suffix == ".keras" else None
    has_metadata = metadata_path(source).is_file() and source.suffix != ".keras"
    with FileProcess() as process:
        for number in range(count):
            shutil.rmtree(home, ignore_errors=True)
            shutil.copytree(source.parent, home)
            path = home / source.name
            before = checksums(path, detect(path))
            is_sealed = spoil(path, number, rng)
            if before == checksums(path, detect(path)):
                continue
            if has_metadata:
                refused(path, "checksums differ")
                metadata_path(path).unlink()
            found = answer(path, process)
            refusals += found is None
            if source.suffix == ".keras" and found is not None and not is_sealed:
                np.testing.assert_array_equal(found, expected)
    assert refusals > 0
    return refusals


AMOUNTS = [
    pytest.param("few"),
    pytest.param("many", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.long if n in ("saved-model", "torch") else ())
        for n in POSSIBLE
    ],
)
def test_damaged_exports_are_refused_or_answer(exports, tmp_path, name, amount):
    refusals = fuzz(path_of(exports, name), tmp_path, MUTATIONS[amount])
    print(f"{name}: {refusals} of {MUTATIONS[amount]} refused without the metadata")


@pytest.mark.parametrize("amount", AMOUNTS)
def test_damaged_pickles_are_refused_or_read(tmp_path, amount):
    torch = pytest.importorskip("torch")
    source = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(4, 3), "b": torch.zeros(5)}, source)
    rng = np.random.default_rng(1)
    out = tmp_path / "tensors.npz"
    path = tmp_path / "damaged.pth"
    refusals = 0
    with FileProcess() as process:
        for number in range(MUTATIONS[amount]):
            shutil.copyfile(source, path)
            spoil(path, number, rng)
            try:
                process.do("read_tensors", path, seconds=60, out=str(out))
            except CorruptFileError:
                refusals += 1
    assert refusals > 0
    print(f"pth: {refusals} of {MUTATIONS[amount]} refused")


def test_the_limits_are_those_that_are_stated():
    assert safety.MAX_BYTES == 2**30
    assert safety.MAX_WEIGHTS == 2**28
