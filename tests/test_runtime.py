"""Choosing backend and device, seeds, and the record of the environment."""

import json
import os
import random
import resource
import subprocess
import sys
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("device", "gpus", "has_mps", "name"),
    [
        ("cpu", 2, False, "cpu"), ("auto", 0, False, "cpu"), ("auto", 2, False, "cuda:0"),
        ("gpu", 2, False, "cuda:0"), ("cuda:1", 2, False, "cuda:1"), ("auto", 0, True, "mps"),
        ("gpu", 0, True, "mps"), ("cpu", 0, True, "cpu"),
    ],
)  # fmt: skip
def test_pytorch_computes_on_the_named_device(device, gpus, has_mps, name, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    assert runtime.torch_device(device) == name


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_peak_of_memory_is_in_bytes(platform, unit, monkeypatch):
    usage = SimpleNamespace(ru_maxrss=3_000_000_000 // unit)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(sys, "platform", platform)
    assert runtime.peak_memory() == pytest.approx(3e9, abs=unit)


# What a container's control groups say: files by their path, and /proc/self/cgroup.
LIMITS = {
    "none": ({}, "", 8),
    "docker --cpus 1.5": ({"cpu.max": "150000 100000\n"}, "0::/\n", 2),
    "docker --cpus 0.5": ({"cpu.max": "50000 100000\n"}, "0::/\n", 1),
    "no limit": ({"cpu.max": "max 100000\n"}, "0::/\n", 8),
    "more than there are": ({"cpu.max": "6400000 100000\n"}, "0::/\n", 8),
    "a service": ({"a.slice/b.service/cpu.max": "300000 100000\n"}, "0::/a.slice/b.service\n", 3),
    "a group around it": (
        {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", 2
    ),
    "version 1": (
        {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        "5:cpu,cpuacct:/docker/of-the-host\n1:memory:/docker/of-the-host\n", 3
    ),
    "version 1, no limit": (
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "5:cpu:/\n", 8
    ),
    "version 1, a pod": (
        {"cpu/pod/cpu.cfs_quota_us": "400000\n", "cpu/pod/cpu.cfs_period_us": "100000\n"},
        "5:cpu,cpuacct:/pod/container\n", 4
    ),
    "damaged": ({"cpu.max": "many\n"}, "0\n", 8),
}  # fmt: skip


@pytest.mark.parametrize(("files", "own", "expected"), LIMITS.values(), ids=LIMITS)
def test_the_limits_of_a_container_are_kept(files, own, expected, monkeypatch, tmp_path):
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    (tmp_path / "self").write_text(own)
    monkeypatch.setattr(runtime, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(runtime, "OWN_GROUPS", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert runtime.cores() == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    assert runtime.cores() == 1


def test_systems_without_affinity_have_all_cores(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    for name in ("CGROUPS", "OWN_GROUPS"):
        monkeypatch.setattr(runtime, name, tmp_path / "missing")
    assert runtime.cores() == 6


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


STARTED = """
import json, sys
from pathlib import Path
from kerasnorm import runtime
_, device = runtime.start({backend!r}, "cpu", deterministic=True)
import kerasnorm
from kerasnorm.formats.archive import open_model, save_model
path = Path({path!r})
save_model(kerasnorm.build_model("gn"), path, {{}})
open_model(path)
has_tensorflow = "tensorflow" in sys.modules
if {backend!r} == "torch":
    import torch
    is_deterministic = torch.are_deterministic_algorithms_enabled()
else:
    from tensorflow.python.framework import config
    is_deterministic = config.is_op_determinism_enabled()
print(json.dumps([device.name, runtime.threads({backend!r}), is_deterministic, has_tensorflow]))
"""
THREADS = {"torch": "OMP_NUM_THREADS", "tensorflow": "TF_NUM_INTRAOP_THREADS"}


@pytest.mark.long
@pytest.mark.parametrize("backend", THREADS)
def test_a_backend_starts_deterministic_with_the_threads_of_the_user_and_alone(backend, tmp_path):
    """On torch, making, saving and opening a model leave TensorFlow alone."""
    if backend not in runtime.installed_backends():
        pytest.skip(f"{backend} is not installed")
    words = [sys.executable, "-c", STARTED.format(backend=backend, path=str(tmp_path / "m.keras"))]
    environment = os.environ | {"KERAS_BACKEND": backend, THREADS[backend]: "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["CPU, 1 thread", 1, True, backend == "tensorflow"]


class TestBfloat16:
    """Which devices multiply it: AMX, and GPUs from compute capability 8."""

    @pytest.mark.parametrize(
        ("flags", "has_it"), [("sse avx512_bf16 amx_bf16 amx_tile", True), ("sse amx_tile", False)]
    )
    def test_processors(self, flags, has_it, monkeypatch):
        lines = f"processor\t: 0\nmodel name\t: Some\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
        monkeypatch.setattr(runtime.Path, "read_text", lambda path, **_: lines)
        assert runtime.start(device="cpu")[1].has_bfloat16 == has_it
        assert runtime.host()["processor"] == "Some"

    def test_processors_of_systems_without_proc(self, monkeypatch):
        def missing(path, **_):
            raise FileNotFoundError

        monkeypatch.setattr(runtime.Path, "read_text", missing)
        assert not runtime.start(device="cpu")[1].has_bfloat16
        assert runtime.host()["processor"] == runtime.platform.processor()

    @pytest.mark.parametrize(("capability", "has_it"), [((7, 5), False), ((8, 0), True)])
    def test_gpus(self, capability, has_it, monkeypatch):
        torch = pytest.importorskip("torch")
        monkeypatch.delitem(sys.modules, "keras", raising=False)
        monkeypatch.setenv("KERAS_TORCH_DEVICE", "cpu")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: "Some GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", {"cuda:1": capability}.get)
        device = runtime._torch_device("cuda:1")
        assert device == runtime.Device("gpu", "Some GPU (cuda:1)", has_it)

    @pytest.mark.parametrize(
        ("details", "has_it"),
        [
            ([{"compute_capability": (9, 0)}], True),
            ([{"compute_capability": (9, 0)}, {"compute_capability": (7, 0)}], False),
            ([{}], False),
        ],
    )
    def test_gpus_of_tensorflow(self, details, has_it, monkeypatch):
        tf = pytest.importorskip("tensorflow")
        gpus = [*range(len(details))]
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
        monkeypatch.setattr(tf.config, "set_visible_devices", lambda *_: None)
        for name in ("set_memory_growth", "get_device_details"):
            answer = details.__getitem__ if name == "get_device_details" else lambda *_: None
            monkeypatch.setattr(tf.config.experimental, name, answer)
        device = runtime._tensorflow_device("gpu", len(gpus))
        assert (device.kind, device.has_bfloat16) == ("gpu", has_it)

    def test_auto_takes_it_where_the_device_does_and_says_so(self, caplog):
        caplog.set_level("INFO", "kerasnorm")
        amx, other = (runtime.Device("cpu", f"CPU {has}", has) for has in (True, False))
        assert runtime.chosen_precision("auto", amx) == "mixed_bfloat16"
        assert runtime.chosen_precision("auto", other) == "float32"
        assert runtime.chosen_precision("float32", amx) == "float32"
        assert caplog.messages == [
            "precision: mixed_bfloat16, since CPU True multiplies bfloat16 in hardware.",
            "precision: float32, since CPU False is not known to multiply bfloat16 in hardware.",
        ]

    def test_several_processes_must_name_it(self, monkeypatch):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
        monkeypatch.setenv("WORLD_SIZE", "2")
        device = runtime.Device("cpu", "CPU", has_bfloat16=True)
        with pytest.raises(ConfigError, match=r"precision: .* several processes.*'auto'"):
            runtime.chosen_precision("auto", device)
        assert runtime.chosen_precision("mixed_bfloat16", device) == "mixed_bfloat16"

    @pytest.mark.parametrize(
        ("has_it", "expected"), [(True, "CPU, bfloat16 in hardware"), (False, "CPU")]
    )
    def test_probes_tell_it(self, has_it, expected, monkeypatch, capsys):
        def run_here(command, **_):
            exec(command[-1])
            return SimpleNamespace(returncode=0, stdout=capsys.readouterr().out)

        monkeypatch.setattr(runtime, "start", lambda _: ("", runtime.Device("cpu", "CPU", has_it)))
        monkeypatch.setattr(runtime.subprocess, "run", run_here)
        assert runtime.probe(runtime.installed_backends()[0]) == expected


@pytest.mark.backend("torch")
def test_the_environment_names_versions_device_and_command():
    record = runtime.environment("torch", runtime.Device("cpu", "CPU, 2 threads"))
    assert {"python", "keras", "numpy", "kerasnorm"} <= set(record["versions"])
    assert record["device"] == {"kind": "cpu", "name": "CPU, 2 threads"}
    assert record["command_line"]


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
