"""Choosing backend and device, seeds, and the record of the environment."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from kerasnorm import runtime
from kerasnorm.errors import ConfigError, MissingPackageError


@pytest.fixture
def fresh(monkeypatch):
    """A process in which keras is not imported yet and only torch is installed."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setattr(runtime, "installed_backends", lambda: ("torch",))
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, runtime.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_wait_briefly_unless_the_user_says_otherwise(monkeypatch, given, expected):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, given.get(name, ""))
        if name not in given:
            monkeypatch.delenv(name)
    runtime.wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_a_missing_backend_is_named_with_its_pip_command(fresh):
    with pytest.raises(MissingPackageError, match=r"pip install 'kerasnorm\[tensorflow\]'"):
        runtime.select_backend("tensorflow")


def test_auto_takes_the_environment_then_what_is_installed(fresh, monkeypatch):
    assert runtime.select_backend() == "torch"
    monkeypatch.delenv("KERAS_BACKEND")
    assert runtime.select_backend() == "torch"
    monkeypatch.setenv("KERAS_BACKEND", "mxnet")
    with pytest.raises(ConfigError, match="mxnet"):
        runtime.select_backend()


def test_the_backend_cannot_change_once_keras_is_imported():
    import keras

    active = keras.backend.backend()
    assert runtime.select_backend() == active
    other = next(name for name in ("torch", "tensorflow") if name != active)
    with pytest.raises(ConfigError, match="new process"):
        runtime.select_backend(other)


@pytest.mark.parametrize("device", ["gpu", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there_is_an_error(device):
    with pytest.raises(ConfigError, match="GPU"):
        runtime._gpu_index(device, "torch", 0)


@pytest.mark.parametrize(
    ("device", "count", "index"),
    [("auto", 0, -1), ("cpu", 2, -1), ("auto", 1, 0), ("gpu", 2, 0), ("cuda:1", 2, 1)],
)
def test_a_device_becomes_a_number(device, count, index):
    assert runtime._gpu_index(device, "torch", count) == index


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    import pwd

    def nobody(_):
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "KERASNORM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    folder = runtime.cache_folder()
    assert folder.is_absolute()
    assert str(os.getuid()) in folder.name
    monkeypatch.setenv("KERASNORM_CACHE", "~/x")
    assert str(runtime.cache_folder()) == "~/x"


WITHOUT_TENSORFLOW = """
import importlib.util, os
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: find(name) if name in ("torch", "kerasnorm") else None
import kerasnorm
print(os.environ.get("KERAS_BACKEND"))
"""


@pytest.mark.parametrize(
    ("named", "backend"), [(None, "torch"), ("tensorflow", "torch"), ("torch", "None")]
)
def test_keras_gets_an_installed_backend_where_tensorflow_is_missing(tmp_path, named, backend):
    if "torch" not in runtime.installed_backends():
        pytest.skip("torch is not installed")
    if named:
        (tmp_path / "keras.json").write_text(json.dumps({"backend": named}))
    environment = {**os.environ, "KERAS_HOME": str(tmp_path)}
    del environment["KERAS_BACKEND"]
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{backend}\n"


THREADS = """
from kerasnorm import runtime
_, device = runtime.start({0!r}, "cpu")
print(device.name, runtime.threads({0!r}))
"""


@pytest.mark.parametrize(
    ("backend", "variable"),
    [("torch", "OMP_NUM_THREADS"), ("tensorflow", "TF_NUM_INTRAOP_THREADS")],
)
def test_the_number_of_threads_is_what_the_user_chose(backend, variable):
    if backend not in runtime.installed_backends():
        pytest.skip(f"{backend} is not installed")
    command = [sys.executable, "-c", THREADS.format(backend)]
    environment = os.environ | {"KERAS_BACKEND": backend, variable: "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "CPU, 1 thread 1\n"


@pytest.mark.backend("torch")
def test_the_environment_names_versions_device_and_command():
    record = runtime.environment("torch", runtime.Device("cpu", "CPU, 2 threads"))
    assert {"python", "keras", "numpy", "kerasnorm"} <= set(record["versions"])
    assert record["device"] == {"kind": "cpu", "name": "CPU, 2 threads"}
    assert record["command_line"]


STATES = {
    "torch": "import torch; print(torch.are_deterministic_algorithms_enabled())",
    "tensorflow": "from tensorflow.python.framework import config; "
    "print(config.is_op_determinism_enabled())",
}


@pytest.mark.parametrize("backend", STATES)
def test_a_backend_is_told_to_be_deterministic(backend):
    if backend not in runtime.installed_backends():
        pytest.skip(f"{backend} is not installed")
    words = "from kerasnorm import runtime; "
    words += f"runtime.start({backend!r}, 'cpu', deterministic=True); {STATES[backend]}"
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["True"]


def test_saving_and_loading_on_torch_leave_tensorflow_alone(tmp_path):
    words = (
        "import sys; from pathlib import Path; import kerasnorm; "
        "from kerasnorm.formats.archive import open_model, save_model; "
        f"path = Path({str(tmp_path / 'model.keras')!r}); "
        "save_model(kerasnorm.build_model('gn'), path, {}); open_model(path); "
        "print('tensorflow' in sys.modules)"
    )
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["False"]


def test_seeds_are_a_function_of_seed_and_epoch():
    def draw(seed, epoch):
        runtime.seed_everything(seed, epoch)
        return random.random(), np.random.random()

    assert draw(1, 2) == draw(1, 2)
    assert len({draw(1, 2), draw(1, 3), draw(2, 2)}) == 3


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("KERASNORM_CACHE", str(tmp_path))
    assert runtime.cache_folder() == tmp_path
    monkeypatch.delenv("KERASNORM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert runtime.cache_folder() == tmp_path / "kerasnorm"


def test_a_child_shares_the_cores_unless_the_user_chose(monkeypatch):
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert runtime.subprocess_environment(3)["OMP_NUM_THREADS"] == "3"
    assert runtime.subprocess_environment(0)["TF_NUM_INTRAOP_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert runtime.subprocess_environment(3)["OMP_NUM_THREADS"] == "7"


def test_a_child_hears_of_the_cache_but_of_no_config_field(monkeypatch):
    monkeypatch.setenv("KERASNORM_CACHE", "here")
    monkeypatch.setenv("KERASNORM_BATCH_SIZE", "7")
    monkeypatch.setenv("KERASNORM_RECIPE", "era8")
    names = {name for name in runtime.subprocess_environment(1) if name.startswith("KERASNORM_")}
    assert names == {"KERASNORM_CACHE", "KERASNORM_TRUST"}
