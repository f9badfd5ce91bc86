"""What this process computes on, and where its results come from: backend, device, seeds, versions.

Keras reads its backend once, when it is imported. So everything here works without Keras until the
backend has been chosen, and no module of this package imports Keras before `start`,
`import_keras` or `select_backend` was called.
"""

import ctypes
import importlib.util
import json
import logging
import math
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

from kerasnorm.config import BACKENDS, SETTINGS
from kerasnorm.errors import ConfigError, MissingPackageError, expect
from kerasnorm.process_group import this_launch

# The packages whose versions decide a result.
PACKAGES = ("kerasnorm", "keras", "numpy", "torch", "tensorflow", "tensorflow-cpu", "jax")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 1 << 30  # bytes of freed memory that malloc keeps
COMPILERS = ("g++", "clang++")
CGROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
BFLOAT16_CAPABILITY = (8, 0)  # of NVIDIA's Ampere, the first GPUs that multiply bfloat16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """What the backend computes on."""

    kind: str  # "cpu" or "gpu"
    name: str  # the device in words, such as "NVIDIA A100" or "CPU, 2 threads"
    # Whether it multiplies matrices of bfloat16 in hardware: a processor with AMX, or a GPU of
    # compute capability 8 or higher.
    has_bfloat16: bool = False


def cache_folder() -> Path:
    """Returns the folder of downloaded data: KERASNORM_CACHE, else the user's cache folder.

    A user without a home folder, as in many containers, gets one under the temporary files.
    """
    if chosen := os.environ.get("KERASNORM_CACHE"):
        return Path(os.path.expanduser(chosen))
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "kerasnorm"
    try:
        return Path.home() / ".cache" / "kerasnorm"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"kerasnorm-{os.getuid()}"


def installed_backends() -> tuple[str, ...]:
    """Returns the Keras backends that can be imported here, in order of preference."""
    return tuple(name for name in BACKENDS if importlib.util.find_spec(name) is not None)


def check_installed(backend: str) -> None:
    """Makes sure that a Keras backend can be imported.

    Raises:
        MissingPackageError: It is not installed.
    """
    if backend not in installed_backends():
        raise MissingPackageError(
            f"The {backend} backend is not installed. "
            f"Install it with: pip install 'kerasnorm[{backend}]'"
        )


def select_backend(requested: str = "auto") -> str:
    """Sets the backend that Keras will use, without importing it; returns the backend's name.

    Args:
        requested: "torch", "tensorflow", "jax", or "auto": the one that Keras already uses in
            this process, else KERAS_BACKEND, else the first that is installed.

    Raises:
        MissingPackageError: The backend is not installed.
        ConfigError: Keras was already imported on another backend.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "keras" in sys.modules:
        active = str(sys.modules["keras"].backend.backend())
        if requested not in ("auto", active):
            raise ConfigError(
                f"Keras already runs on {active} in this process and cannot change to "
                f"{requested}; start a new process for it."
            )
        return active
    installed = installed_backends()
    if requested == "auto":
        requested = os.environ.get("KERAS_BACKEND", installed[0] if installed else "torch")
    expected = f"one of {', '.join(BACKENDS)}"
    expect(requested in BACKENDS, "KERAS_BACKEND", expected, requested)
    check_installed(requested)
    os.environ["KERAS_BACKEND"] = requested
    return requested


def name_an_installed_backend() -> None:
    """Sets KERAS_BACKEND to an installed backend, unless Keras's own config file names one."""
    home = Path(os.environ.get("KERAS_HOME", os.path.expanduser("~/.keras")))
    try:
        named = json.loads((home / "keras.json").read_text(encoding="utf-8")).get("backend")
    except (OSError, ValueError, AttributeError):
        named = None
    installed = installed_backends()
    if installed and named not in installed:
        os.environ["KERAS_BACKEND"] = installed[0]


def preferred(own: str) -> str:
    """Returns what to request of `start` to use a model that was trained on backend `own`.

    It is that backend, unless Keras was imported already, KERAS_BACKEND names another one, or that
    backend is not installed here.
    """
    is_decided = "keras" in sys.modules or "KERAS_BACKEND" in os.environ
    return "auto" if is_decided or own not in installed_backends() else own


def import_keras(requested: str = "auto") -> str:
    """Imports Keras on a backend, and returns the backend's name.

    Where TensorFlow is installed, Keras imports it on other backends too whenever it writes a
    config, to ask whether an object is of one of TensorFlow's types: three seconds and 400 MB per
    process. That is switched off here. `requested` is as for `select_backend`.

    Raises:
        MissingPackageError: The backend is not installed.
        ConfigError: Keras was already imported on another backend.
    """
    backend = select_backend(requested)
    from keras.src.saving import serialization_lib

    if backend != "tensorflow" and hasattr(serialization_lib, "tf"):
        serialization_lib.tf = SimpleNamespace(available=False)
    return backend


def start(
    backend: str = "auto",
    device: str = "auto",
    devices: int = 1,
    *,
    deterministic: bool = False,
    keeps_memory: bool = True,
) -> tuple[str, Device]:
    """Prepares this process to compute, and returns the backend's name and the device.

    In this order: the backend is chosen, and with it the environment variables KERAS_BACKEND and
    TF_CPP_MIN_LOG_LEVEL are set (`select_backend`); deterministic operations are switched on; the
    device is chosen; the memory allocator keeps what is freed (`keep_freed_memory`); Keras is
    imported, without TensorFlow on other backends (`import_keras`).

    Args:
        backend: As for `select_backend`.
        device: "auto" (a GPU where there is one), "cpu", "gpu", or one by its number: "cuda:1".
        devices: Number of devices that this process uses; above 1 on TensorFlow only.
        deterministic: Whether the backend uses only operations that give the same bits each time.
        keeps_memory: Whether the memory that is freed stays with the process.

    Raises:
        MissingPackageError: The backend is not installed.
        ConfigError: The device is not there, or Keras was imported before with another choice.
    """
    backend = select_backend(backend)
    if devices > 1 and backend != "tensorflow":
        advice = f"torchrun --nproc-per-node {devices} -m kerasnorm fit … --backend torch"
        raise ConfigError(
            f"devices: expected 1 on {backend}. Received: devices={devices}. Start several "
            f"processes instead: {advice}"
        )
    if deterministic:
        _be_deterministic(backend)
    if backend == "tensorflow":
        chosen = _tensorflow_device(device, devices)
    else:
        chosen = _torch_device(device) if backend == "torch" else _jax_device(device)
    if keeps_memory:
        keep_freed_memory()
    return import_keras(backend), chosen


def chosen_precision(requested: str, device: Device) -> str:
    """Returns the floating-point type of the layers of a new run on a device.

    It is "float32" or "mixed_bfloat16", as requested; of "auto", the latter on a device that
    multiplies bfloat16.

    Raises:
        ConfigError: It is "auto", and several processes, on devices that may differ, train the run.
    """
    if requested != "auto":
        return requested
    expected = "float32 or mixed_bfloat16 with several processes, whose devices may differ"
    expect(this_launch().size == 1, "precision", expected, requested)
    precision, verb = "float32", "is not known to multiply"
    if device.has_bfloat16:
        precision, verb = "mixed_bfloat16", "multiplies"
    logger.info(f"precision: {precision}, since {device.name} {verb} bfloat16 in hardware.")
    return precision


def keep_freed_memory() -> None:
    """Asks glibc's malloc to keep what is freed from now on; does nothing where there is no glibc.

    A training step frees and takes the same hundred megabytes again; given back to the system in
    between, each page costs a fault when it is next touched.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT)


def _be_deterministic(backend: str) -> None:
    """Switches on deterministic operations; must come before the first use of a GPU."""
    if backend == "torch":
        # cuBLAS reads it when it starts; see PyTorch's notes on reproducibility.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        import torch

        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # we read none
    elif backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    else:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def _gpu_index(device: str, backend: str, count: int) -> int:
    """Returns the number of the requested GPU, or -1 for the CPU."""
    if device == "cpu" or (device == "auto" and count == 0):
        return -1
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise ConfigError(
            f"device: expected a GPU that {backend} can use; it sees {count}. "
            f"Received: device={device!r}. Use --device cpu or auto."
        )
    return index


def _cpu(threads: int) -> Device:
    name = f"CPU, {threads} thread{'s' if threads != 1 else ''}"
    return Device("cpu", name, "amx_bf16" in _processor("flags").split())


def torch_device(device: str) -> str:
    """Returns PyTorch's name of a device: "cpu", "mps", or a GPU of CUDA by its number, "cuda:1".

    `device` is as for `start`.

    Raises:
        ConfigError: The device is not there.
    """
    import torch

    launch, count = this_launch(), torch.cuda.device_count()
    if device in ("auto", "gpu") and count and launch.launcher == "torchrun":
        device = f"cuda:{launch.local_rank}"
    if device in ("auto", "gpu") and torch.backends.mps.is_available():
        return "mps"
    index = _gpu_index(device, "torch", count)
    return "cpu" if index < 0 else f"cuda:{index}"


def _torch_device(device: str) -> Device:
    import torch

    name = torch_device(device)
    if name == "cpu":
        described = _cpu(torch.get_num_threads())
    elif name == "mps":
        described = Device("gpu", f"Apple GPU ({name})")
    else:
        can = torch.cuda.get_device_capability(name) >= BFLOAT16_CAPABILITY
        described = Device("gpu", f"{torch.cuda.get_device_name(name)} ({name})", can)
    if "keras" not in sys.modules:
        os.environ["KERAS_TORCH_DEVICE"] = name
        return described
    current = str(sys.modules["keras"].src.backend.torch.core.DEFAULT_DEVICE)
    if current.removesuffix(":0") != name.removesuffix(":0"):
        raise ConfigError(
            f"Keras already computes on {current} in this process and cannot change to {name}; "
            "start a new process for it."
        )
    return described


def _tensorflow_device(device: str, count: int) -> Device:
    """Prepares one device, or several: GPUs, or logical devices on the CPU."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    index = _gpu_index(device, "tensorflow", len(gpus))
    if index >= 0 and count > len(gpus):
        raise ConfigError(
            f"devices: expected at most the {len(gpus)} GPUs that tensorflow sees. "
            f"Received: devices={count}. Use fewer, or --device cpu."
        )
    first = index if count == 1 else 0
    chosen = gpus[first : first + count] if index >= 0 else []
    try:
        tf.config.set_visible_devices(chosen, "GPU")
        for gpu in chosen:
            tf.config.experimental.set_memory_growth(gpu, True)
        if count > 1 and not chosen:
            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0],
                [tf.config.LogicalDeviceConfiguration()] * count,
            )
    except RuntimeError:
        raise ConfigError(
            f"TensorFlow already runs in this process and cannot change to device={device!r}, "
            f"devices={count}; start a new process for it."
        ) from None
    if not chosen:
        cpu = _cpu(threads("tensorflow"))
        return cpu if count == 1 else replace(cpu, name=f"CPU, as {count} devices")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in chosen]
    can = all(one.get("compute_capability", ()) >= BFLOAT16_CAPABILITY for one in details)
    name = f"{details[0].get('device_name', 'GPU')} (GPU:{index})"
    return Device("gpu", name if count == 1 else f"{count} GPUs", can)


def _jax_device(device: str) -> Device:
    import jax

    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    devices = jax.devices()
    count = 0 if devices[0].platform == "cpu" else len(devices)
    index = _gpu_index(device, "jax", count)
    if index < 0:
        return _cpu(threads("jax"))
    jax.config.update("jax_default_device", devices[index])
    return Device("gpu", f"{devices[index].device_kind} ({devices[index]})")


def seed_everything(seed: int, epoch: int) -> None:
    """Seeds the global generators of Python, NumPy and the backend from (seed, epoch).

    It is called at the start of every epoch, so that a resumed run draws the numbers of an
    uninterrupted one. `keras.utils.set_random_seed` would import TensorFlow where it is installed.
    """
    import numpy as np

    value = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(value)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(value)


def peak_memory() -> int:
    """Returns the largest resident memory of this process so far, in bytes."""
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # see getrusage(2) of each system


def cores() -> int:
    """Returns the number of cores that this process may use, at least 1.

    The affinity of the process limits it, and so does the CPU time that its control groups allow,
    rounded up: `docker run --cpus 1.5` is two cores.
    """
    return max(1, min([_visible_cores(), *map(math.ceil, _cpu_limits())]))


def _visible_cores() -> int:
    """Returns the number of cores that the system may run this process on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_limits() -> list[float]:
    """Returns the limits, in cores, of the control groups that hold this process.

    Version 2 of control groups has a quota and its period, in microseconds, in one file, version 1
    in two. Without a limit the quota is "max" or -1. In a container the root may be its own group.
    Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max) and
    https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    found = []
    for base, files in (
        (CGROUPS, ["cpu.max"]),
        (CGROUPS / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]),
    ):
        for group in _own_groups():
            with suppress(OSError, ValueError):
                texts = [(base / group / file).read_text(encoding="utf-8") for file in files]
                quota, period = map(int, " ".join(texts).split())
                found += [quota / period] if quota > 0 and period > 0 else []
    return found


def _own_groups() -> set[PurePath]:
    """Returns the control groups of this process and those that hold them, relative to the root."""
    found = {PurePath()}
    with suppress(OSError):
        for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines():
            path = PurePath(line.split(":", 2)[-1].lstrip("/"))
            found |= {path, *path.parents}
    return found


def threads(backend: str) -> int:
    """Returns the number of threads that one operation of a started backend computes on.

    OMP_NUM_THREADS decides it on torch only; TensorFlow has a thread pool of its own, which
    TF_NUM_INTRAOP_THREADS sizes.
    """
    count = 0  # stands for all cores, whatever share of their time a container has
    if backend == "torch":
        count = sys.modules["torch"].get_num_threads()
    elif backend == "tensorflow":
        chosen = sys.modules["tensorflow"].config.threading.get_intra_op_parallelism_threads()
        count = chosen or int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0)
    return count or _visible_cores()


def cpp_compiler() -> str | None:
    """Returns the path of a C++ compiler, with which `kerasnorm.engines.fused` speeds up CPUs."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def subprocess_environment(threads: int) -> dict[str, str]:
    """Returns the environment of a process that trains one of several runs.

    Variables that set config fields are left out, because the run has a config of its own.

    Args:
        threads: Number of threads to compute on, unless the user chose one: trainings that all
            compute on all cores run at a third of their speed.
    """
    fields = {f"KERASNORM_{name.upper()}" for name in (*SETTINGS, "recipe", "config")}
    kept = {name: value for name, value in os.environ.items() if name not in fields}
    counts = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return dict.fromkeys(counts, str(max(1, threads))) | kept


def probe(backend: str) -> str:
    """Returns what a backend would compute on, or how to install it, in one line.

    A device that multiplies bfloat16 in hardware says so.

    Each backend is tried in a process of its own, since one process can hold only one.
    """
    if backend not in installed_backends():
        return f"not installed; pip install 'kerasnorm[{backend}]'"
    code = (
        f"from kerasnorm.runtime import start; device = start({backend!r})[1]; "
        "print(device.name + ', bfloat16 in hardware' * device.has_bfloat16)"
    )
    try:
        done = subprocess.run(  # noqa: S603  (our own code, in this Python)
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "does not start within five minutes"
    if done.returncode:
        return f"broken: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    return done.stdout.strip().splitlines()[-1]


def environment(backend: str, device: Device) -> dict[str, Any]:
    """Returns what a reader needs to judge or repeat a result that this process computes."""
    return {
        "versions": versions(),
        "backend": backend,
        "device": {"kind": device.kind, "name": device.name},
        "threads": threads(backend),
        "host": host(),
        "git_revision": git_revision(),
        "command_line": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide a result."""
    from importlib import metadata

    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def host() -> dict[str, Any]:
    """Returns the system, the processor and the number of its cores."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor("model name") or platform.processor(),
        "cpus": os.cpu_count(),
    }


def _processor(field: str) -> str:
    """Returns what Linux says of the first processor in /proc/cpuinfo; "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() == field), "")


def git_revision() -> str | None:
    """Returns the commit of the checkout that this package runs from; None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe"]
    command += ["--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
