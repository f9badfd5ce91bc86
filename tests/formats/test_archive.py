"""Model files: what goes in comes out, anywhere; what could do harm is refused."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from helpers.exported import stock_norms
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from kerasnorm.config import resolve
from kerasnorm.errors import CorruptFileError
from kerasnorm.formats import safety
from kerasnorm.formats.archive import load_model, open_model, read_archive, save_model
from kerasnorm.formats.safety import checks
from kerasnorm.formats.safety.checks import METADATA
from kerasnorm.layers import EQUALIZED_PIXELS
from kerasnorm.network import CIFAR10_MEAN, CIFAR10_STD, build, build_model

SHAPE = (8, 8, 3)
WIDTHS = (4, 4, 4, 8, 8, 8, 4, 8, 8, 8)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), dtype=np.uint8)


def network(norm: str = "gn", **options: Any) -> keras.Model:
    return build_model(norm, input_shape=SHAPE, widths=WIDTHS, **options)


def logits(model: keras.Model) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(IMAGES, training=False))


def tiny() -> keras.Model:
    """Returns a model of stock layers that loads in a moment."""
    return keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten(), layers.Dense(2)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.keras"
    tiny().save(path)
    return path


def rewrite(path: Path, **members: bytes) -> Path:
    """Replaces members of an archive: config is config.json, metadata the metadata."""
    with zipfile.ZipFile(path) as before:
        content = {name: before.read(name) for name in before.namelist()}
    content |= {{"config": "config.json", "metadata": METADATA}[k]: v for k, v in members.items()}
    with zipfile.ZipFile(path, "w") as after:
        for name, data in content.items():
            after.writestr(name, data)
    return path


# Round trips


def test_a_model_comes_back_with_its_metadata(tmp_path: Path) -> None:
    config = resolve({"norm": "gn", "widths": WIDTHS, "groups": 2, "epochs": 3})
    model = build(
        config.model, input_shape=SHAPE, classes=3, mean=CIFAR10_MEAN, std=CIFAR10_STD, seed=4
    )
    names = ["cat", "Hündchen", "鳥"]
    path = tmp_path / "model.keras"
    save_model(model, path, {"class_names": names, "config": config.to_dict()})
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.keras"]

    for target in (path, tmp_path):  # a file, or a run's folder
        saved = open_model(target)
        assert saved.path == path
        assert saved.class_names == tuple(names)
        assert saved.config == config
        assert saved.image_shape == SHAPE
        assert not saved.wants_equalized
        np.testing.assert_allclose(logits(saved.model), logits(model), rtol=1e-5, atol=1e-5)
    for argument in (str(path), path, tmp_path):
        np.testing.assert_array_equal(logits(load_model(argument)), logits(saved.model))
    assert read_archive(path)[1]["class_names"] == names


def test_a_file_says_that_its_images_must_be_equalized(tmp_path: Path) -> None:
    options = {"input_shape": SHAPE, "classes": 2, "mean": CIFAR10_MEAN, "std": CIFAR10_STD}
    model = build(resolve({"widths": WIDTHS}).model, **options, input_name=EQUALIZED_PIXELS)
    save_model(model, tmp_path / "model.keras", {})
    assert open_model(tmp_path).wants_equalized


@pytest.mark.parametrize("metadata", [{}, {"class_names": ["one"]}, {"class_names": 7}])
def test_classes_are_numbered_where_the_metadata_does_not_name_each(
    tmp_path: Path, metadata: dict[str, Any]
) -> None:
    image = keras.Input((2, 2, 1))
    path = tmp_path / "foreign.keras"
    keras.Model(image, layers.Dense(3)(layers.Flatten()(image))).save(path)
    saved = open_model(rewrite(path, metadata=json.dumps(metadata).encode()))
    assert saved.class_names == ("0", "1", "2")
    assert saved.config is None


def features(image: Any) -> Any:
    start = keras.initializers.HeNormal(3)
    return layers.Conv2D(4, 3, padding="same", kernel_initializer=start)(image)


def policies_and_rules(image: Any) -> Any:
    rules = {"kernel_regularizer": "l2", "kernel_constraint": "max_norm"}
    return layers.Dense(2, dtype="mixed_bfloat16", **rules)(image)


ORDINARY: dict[str, Callable[[Any], Any]] = {
    "slices": lambda image: features(image)[:, ::2, 1:, 0:2],
    "ellipsis": lambda image: features(image)[..., :1],
    "operators and constants": lambda image: (image - np.ones(3, np.float32)) * 2.0 + image,
    "operations": lambda image: keras.ops.relu(keras.ops.einsum("nhwc->nc", image)),
    "pairs of pairs": lambda image: features(layers.ZeroPadding2D(((1, 0), (0, 1)))(image)),
    "nested models": lambda image: features(keras.Sequential([layers.Conv2D(2, 1)])(image)),
    "augmentation": lambda image: layers.Rescaling(1 / 255)(layers.RandomFlip()(image)),
    "policies and rules": policies_and_rules,
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_models_from_elsewhere_load(tmp_path: Path, name: str) -> None:
    image = keras.Input(SHAPE)
    model = keras.Model(image, ORDINARY[name](image))
    model.compile("adam", keras.losses.MeanSquaredError(), metrics=["mae"])
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(logits(load_model(tmp_path / "m.keras")), logits(model))


# Other processes and backends, without this package

READER = """
import sys
from pathlib import Path

import keras
import numpy as np

folder, answers = map(Path, sys.argv[1:3])
absent = sys.argv[3:]
assert not any(name in sys.modules for name in absent)

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
images = np.load(folder / "images.npy")
for path in sorted(folder.glob("*.keras")):
    model = keras.saving.load_model(path)
    np.save(answers / path.stem, keras.ops.convert_to_numpy(model(images, training=False)))
    if path.stem in ("bn", "ln-element"):
        model.save(answers / path.name)
"""
SAVED = {norm: {"norm": norm} for norm in stock_norms()}
SAVED["ln-element"] = {"norm": "ln", "ln_affine": "element"}
SAVED["standardized"] = {"norm": "gn", "weight_standardization": True}
SAVED["best"] = {"norm": "in", "recipe": "best"}
SAVED["flags"] = {"norm": "bn", "activation": "mish", "residual": True, "norm_transitions": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder with a file for each norm, its weights no longer ones and zeros, and its logits."""
    folder = tmp_path_factory.mktemp("files")
    np.save(folder / "images.npy", IMAGES)
    rng = np.random.default_rng(2)
    expected = {}
    for name, options in SAVED.items():
        model = network(**{"recipe": "era8"} | options)
        for variable in model.weights:
            if variable.name != "kernel":
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        save_model(model, folder / f"{name}.keras", {})
        expected[name] = logits(model)
    return folder, expected


@pytest.mark.long
@pytest.mark.parametrize(
    ("backend", "absent"),
    [
        pytest.param("torch", "tensorflow", marks=pytest.mark.slow),
        ("tensorflow", "torch"),
        ("jax", "torch"),
    ],
)
def test_files_open_in_another_process_without_this_package(
    files: tuple[Path, dict[str, np.ndarray]], backend: str, absent: str, tmp_path: Path
) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    folder, expected = files
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-c", READER, str(folder), str(tmp_path), "kerasnorm", absent]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(done.stdout + done.stderr)
    assert sorted(path.stem for path in tmp_path.glob("*.npy")) == sorted(expected)
    for name, ours in expected.items():
        theirs = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4, err_msg=name)
    for name in ("bn", "ln-element"):  # and back, from a file that the other process wrote
        back = logits(load_model(tmp_path / f"{name}.keras"))
        np.testing.assert_allclose(back, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


# Refusals


def test_missing_files_and_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    for target in (tmp_path / "no.keras", tmp_path):
        with pytest.raises(CorruptFileError, match=r"There is no model file .*\.keras"):
            open_model(target)


def test_other_file_types_are_refused(tmp_path: Path, file: Path) -> None:
    tiny().save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(CorruptFileError, match=r"Expected a \.keras file"):
        load_model(tmp_path / "m.weights.h5")
    (tmp_path / "m.weights.h5").rename(tmp_path / "disguised.keras")
    with pytest.raises(CorruptFileError, match=r"no \.keras file, or is damaged"):
        load_model(tmp_path / "disguised.keras")


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06" + bytes(18), b"hello" * 100])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"no \.keras file, or is damaged"):
        load_model(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99, 1.0])
def test_truncated_files_are_refused(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content)) - 1])
    with pytest.raises(CorruptFileError):
        load_model(file)


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"not JSON",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"class_name": "Functional", "config": {}}',
        b'{"class_name": "Functional", "module": "keras", "config": []}',
        b'{"class_name": 7, "module": 8, "config": 9}',
        b"[" * 100_000,
        b'{"a":' * 900 + b"1" + b"}" * 900,
    ],
    ids=range(11),
)
def test_damaged_configs_are_refused(file: Path, config: bytes) -> None:
    with pytest.raises(CorruptFileError):
        load_model(rewrite(file, config=config))


@pytest.mark.parametrize("metadata", [b"not JSON", b"[]", b"[" * 100_000])
def test_damaged_metadata_is_refused(file: Path, metadata: bytes) -> None:
    with pytest.raises(CorruptFileError):
        load_model(rewrite(file, metadata=metadata))


@pytest.mark.parametrize(
    "config",
    [
        7,
        "best",
        ["best"],
        {"recipe": "bets"},
        {"recipe": ["best"]},
        {"model": 7},
        {"model": {"norm": "gm"}},
        {"model": {"norm": ["gn"]}},
        {"model": {"widths": [10**400] * 10}},
        {"model": {"l2": 10**400}},
        {"model": {"depth": 50}},
        {"head": {}},
    ],
    ids=lambda config: str(config)[:40],
)
def test_a_config_in_the_metadata_that_is_none_is_refused(file: Path, config: object) -> None:
    rewrite(file, metadata=json.dumps({"config": config}).encode())
    with pytest.raises(CorruptFileError, match="its metadata is damaged"):
        open_model(file)


@pytest.mark.parametrize("method", [99, zipfile.ZIP_DEFLATED])
def test_archives_that_do_not_unpack_are_refused(file: Path, method: int) -> None:
    """The config is said to be compressed, by a method that is unknown or that it is not."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as opened:
        local = opened.getinfo("config.json").header_offset
        central = content.index(b"config.json", opened.start_dir) - 46
    for position in (local + 8, central + 10):
        content[position : position + 2] = method.to_bytes(2, "little")
    file.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"no \.keras file, or is damaged"):
        load_model(file)


def test_encrypted_archives_are_refused(file: Path) -> None:
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as opened:
        local = opened.getinfo("config.json").header_offset
        central = content.index(b"config.json", opened.start_dir) - 46
    content[local + 6] |= 1
    content[central + 8] |= 1
    file.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"no \.keras file, or is damaged"):
        load_model(file)


def test_archives_that_unpack_to_too_much_are_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safety, "MAX_BYTES", 1000)
    with pytest.raises(CorruptFileError, match="unpacks to more than"):
        load_model(file)


def test_models_with_too_many_weights_are_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safety, "MAX_WEIGHTS", 9)  # it has 10
    with pytest.raises(CorruptFileError, match="9 weights"):
        load_model(file)


@settings(max_examples=25, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_does_not_matter(where: float, flip: int) -> None:
    content = bytearray(Damage.content)
    content[int(where * len(content))] ^= flip
    Damage.path.write_bytes(content)
    try:
        model = load_model(Damage.path)
    except CorruptFileError:
        return
    for ours, theirs in zip(model.get_weights(), Damage.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Damage:
    """One file for all examples of a property: its place, its bytes and its weights."""

    path: Path
    content: bytes
    weights: list[np.ndarray]


@pytest.fixture(autouse=True, scope="module")
def damage(tmp_path_factory: pytest.TempPathFactory) -> None:
    Damage.path = tmp_path_factory.mktemp("damage") / "tiny.keras"
    model = tiny()
    model.save(Damage.path)
    Damage.content, Damage.weights = Damage.path.read_bytes(), model.get_weights()


@pytest.mark.parametrize(("shape", "units"), [((4,), 2), ((4, 4), 2)])
def test_what_does_not_classify_images_loads_but_does_not_open(
    tmp_path: Path, shape: tuple[int, ...], units: int
) -> None:
    path = tmp_path / "m.keras"
    keras.Sequential([keras.Input(shape), layers.Dense(units)]).save(path)
    load_model(path)
    with pytest.raises(CorruptFileError, match="expected a classifier"):
        open_model(path)


def test_several_inputs_or_outputs_do_not_open(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    image = keras.Input((2, 2, 1))
    flat = layers.Flatten()(image)
    keras.Model(image, [layers.Dense(2)(flat), layers.Dense(3)(flat)]).save(path)
    with pytest.raises(CorruptFileError, match="expected a classifier"):
        open_model(path)


# Files that would run code


def trap(trace: Path) -> layers.Layer:
    """Returns a layer that leaves a trace whenever its code runs."""

    name = str(trace)
    return layers.Lambda(lambda x: (open(name, "w").close(), x)[1], (2, 2, 1))


WRAPPED: dict[str, Callable[[layers.Layer], list[layers.Layer]]] = {
    "bare": lambda layer: [layer],
    "in a wrapper": lambda layer: [layers.TimeDistributed(layer)],
    "in a model": lambda layer: [keras.Sequential([keras.Input((2, 2, 1)), layer])],
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_an_untrusted_lambda_never_runs(
    tmp_path: Path, wrapped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, path = tmp_path / "trace", tmp_path / "untrusted.keras"
    shape = (1, 2, 2, 1) if wrapped == "in a wrapper" else (2, 2, 1)
    model = keras.Sequential([keras.Input(shape), *WRAPPED[wrapped](trap(trace))])
    model.save(path)
    trace.unlink(missing_ok=True)
    keras.saving.load_model(path, safe_mode=False)(np.zeros((1, *shape)))
    trace.unlink()  # so the trap works
    for open_it in (load_model, open_model):
        with pytest.raises(CorruptFileError, match=r"was refused: it needs .*Lambda"):
            open_it(path)
        assert not trace.exists()
    # The second line of defence: Keras's own safe mode.
    monkeypatch.setattr(checks, "check_keras_classes", lambda *_: None)
    with pytest.raises(CorruptFileError):
        load_model(path)
    assert not trace.exists()


def test_an_untrusted_lambda_in_the_place_of_a_function_never_runs(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "untrusted.keras"
    code = trap(trace).get_config()["function"]["config"]
    keras.Sequential([keras.Input((2, 2, 1)), layers.Activation("relu")]).save(path)
    function = {
        "class_name": "__lambda__",
        "config": {"value": [code["code"], code["defaults"], code["closure"]]},
    }
    with_layer(path, activation(function))
    keras.saving.load_model(path, safe_mode=False)(np.zeros((1, 2, 2, 1)))
    trace.unlink()  # so the trap works
    with pytest.raises(CorruptFileError):
        load_model(path)
    assert not trace.exists()


def with_layer(file: Path, layer: dict[str, Any]) -> Path:
    """Puts a layer of one's choice in the place of the first."""
    with zipfile.ZipFile(file) as opened:
        config = json.loads(opened.read("config.json"))
    config["config"]["layers"][1] = layer
    return rewrite(file, config=json.dumps(config).encode())


def activation(function: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of an Activation layer that calls a function."""
    return {
        "module": "keras.layers",
        "class_name": "Activation",
        "config": {"activation": function},
        "registered_name": None,
    }


@pytest.mark.parametrize(
    "name", ["Lambda", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"]
)
@pytest.mark.parametrize("module", ["keras.layers", "keras.src.layers", None])
def test_layers_that_run_foreign_code_are_refused(file: Path, name: str, module: str) -> None:
    layer = {"class_name": name, "module": module, "config": {}, "registered_name": None}
    with pytest.raises(CorruptFileError, match=f"was refused: it needs .*{name}"):
        load_model(with_layer(file, layer))


@pytest.mark.parametrize(
    "layer",
    [
        {"module": "os", "class_name": "system", "config": {"command": "true"}},
        {"module": "kerasx.layers", "class_name": "Dense", "config": {"units": 2}},
        {"module": "my.package", "class_name": "Dense", "registered_name": "my>Dense"},
        {"module": None, "class_name": "Mine", "config": {}, "registered_name": "my>Mine"},
        {"module": "keras.layers", "class_name": "Dense", "registered_name": "my>Mine"},
    ],
    ids=lambda layer: layer["class_name"],
)
def test_foreign_classes_are_refused(file: Path, layer: dict[str, Any]) -> None:
    with pytest.raises(CorruptFileError, match="was refused: it needs"):
        load_model(with_layer(file, layer))


def test_layers_of_absurd_size_are_refused_before_they_are_made(file: Path) -> None:
    layer = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2**40}}
    with pytest.raises(CorruptFileError, match="units"):
        load_model(with_layer(file, layer))


@pytest.mark.parametrize(
    ("module", "name"),
    [("builtins", "eval"), ("os", "system"), ("keras.utils", "get_file"), ("keras.src", "sys")],
)
def test_foreign_functions_are_refused(file: Path, module: str, name: str) -> None:
    function = {
        "module": module,
        "class_name": "function",
        "config": name,
        "registered_name": "function",
    }
    with pytest.raises(CorruptFileError):
        load_model(with_layer(file, activation(function)))


# Failures of saving


def test_nothing_is_left_and_the_old_file_stays_when_saving_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = network(), tmp_path / "model.keras"
    path.write_bytes(b"old")
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_model(model, path, {"class_names": object()})
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.keras"]
    assert path.read_bytes() == b"old"

    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, path, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.keras"]
    assert path.read_bytes() == b"old"
