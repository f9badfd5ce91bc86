"""The one place that prepares the process from its environment: backend, device, seeds.

What a launcher of several processes says is read in `kerasnorm.training.launch`.

Keras reads its backend once, on import; so everything here works without keras until it has been
chosen, and no module of this package imports keras before `start` or `select_backend` ran.
"""

import ctypes
import importlib.util
import os
import platform
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from kerasnorm.config import BACKENDS, SETTINGS
from kerasnorm.errors import ConfigError, MissingPackageError
from kerasnorm.training.launch import this_launch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 1 << 30  # bytes of freed memory that malloc keeps


@dataclass(frozen=True)
class Device:
    """Where the backend computes.

    Attributes:
        kind: "cpu" or "gpu".
        name: The device in words, such as "NVIDIA A100" or "CPU, 2 threads".
    """

    kind: str
    name: str


def cache_folder() -> Path:
    """Returns the folder of downloaded data: KERASNORM_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("KERASNORM_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kerasnorm"


def installed_backends() -> tuple[str, ...]:
    """Returns the Keras backends that can be imported here, in order of preference."""
    return tuple(name for name in BACKENDS if importlib.util.find_spec(name) is not None)


def check_installed(backend: str) -> None:
    """Makes sure that a Keras backend can be imported.

    Raises:
        MissingPackageError: It cannot.
    """
    if backend not in installed_backends():
        raise MissingPackageError(
            f"The {backend} backend is not installed. "
            f"Install it with: pip install 'kerasnorm[{backend}]'"
        )


def select_backend(requested: str = "auto") -> str:
    """Makes Keras use a backend, and returns its name.

    Args:
        requested: "torch", "tensorflow", "jax", or "auto": the one that keras already uses in
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
    if requested not in BACKENDS:
        raise ConfigError(
            f"KERAS_BACKEND: expected one of {', '.join(BACKENDS)}. "
            f"Received: KERAS_BACKEND={requested!r}"
        )
    check_installed(requested)
    os.environ["KERAS_BACKEND"] = requested
    return requested


def preferred(own: str) -> str:
    """Returns what to ask `select_backend` for where a run was trained on backend `own`.

    That one, unless Keras runs already, KERAS_BACKEND says otherwise, or it is not installed here.
    """
    is_decided = "keras" in sys.modules or "KERAS_BACKEND" in os.environ
    return "auto" if is_decided or own not in installed_backends() else own


def start(
    backend: str = "auto",
    device: str = "auto",
    devices: int = 1,
    *,
    deterministic: bool = False,
    keeps_memory: bool = True,
) -> tuple[str, Device]:
    """Chooses backend and device, imports keras, and returns the name of both.

    Args:
        backend: As for `select_backend`.
        device: "auto" (a GPU where there is one), "cpu", "gpu", or "cuda:1".
        devices: How many devices this process uses, above 1 on tensorflow only.
        deterministic: Whether the backend keeps to operations that give the same bits each time.
        keeps_memory: Whether the process keeps the memory that it frees (`keep_freed_memory`).

    It also keeps Keras from importing TensorFlow on another backend (`spare_tensorflow`).

    Raises:
        MissingPackageError: The backend is not installed.
        ConfigError: The device is not there, or keras was imported before with another choice.
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
    if devices > 1:
        chosen = _tensorflow_devices(device, devices)
    else:
        kinds = {"torch": _torch_device, "tensorflow": _tensorflow_device, "jax": _jax_device}
        chosen = kinds[backend](device)
    spare_tensorflow()  # imports keras: after the choice, not before
    if keeps_memory:
        keep_freed_memory()
    return backend, chosen


def keep_freed_memory() -> None:
    """Asks glibc's malloc to keep what is freed from now on; does nothing where there is no glibc.

    A training step frees and takes the same hundred megabytes again; given back to the system in
    between, each page costs a fault when it is next touched.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT)


def spare_tensorflow() -> None:
    """Keeps Keras from importing TensorFlow on another backend.

    Keras does so, where it is installed, whenever it writes a config, to ask whether an object is
    of one of its types: three seconds and 400 MB a process.
    """
    from keras import backend
    from keras.src.saving import serialization_lib

    if backend.backend() != "tensorflow" and hasattr(serialization_lib, "tf"):
        serialization_lib.tf = SimpleNamespace(available=False)


def _be_deterministic(backend: str) -> None:
    """Has an effect on GPUs; must come before their first use."""
    if backend == "torch":
        # cuBLAS reads it when it starts; see PyTorch's notes on reproducibility.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        import torch

        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing of ours reads it
    elif backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    else:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def _no_gpu(device: str, backend: str, count: int) -> ConfigError:
    return ConfigError(
        f"device: expected a GPU that {backend} can use; it sees {count}. "
        f"Received: device={device!r}. Use --device cpu or auto."
    )


def _gpu_index(device: str, backend: str, count: int) -> int:
    """Returns the number of the wanted GPU, or -1 for the CPU."""
    if device == "cpu" or (device == "auto" and count == 0):
        return -1
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise _no_gpu(device, backend, count)
    return index


def _cpu(threads: int) -> Device:
    return Device("cpu", f"CPU, {threads} thread{'s' if threads != 1 else ''}")


def _torch_device(device: str) -> Device:
    import torch

    launch = this_launch()
    if device in ("auto", "gpu") and torch.cuda.device_count() and launch.launcher == "torchrun":
        device = f"cuda:{launch.local_rank}"
    if device in ("auto", "gpu") and torch.backends.mps.is_available():
        name, described = "mps", Device("gpu", "Apple GPU (mps)")
    else:
        index = _gpu_index(device, "torch", torch.cuda.device_count())
        name = "cpu" if index < 0 else f"cuda:{index}"
        described = (
            _cpu(torch.get_num_threads())
            if index < 0
            else Device("gpu", f"{torch.cuda.get_device_name(index)} ({name})")
        )
    if "keras" not in sys.modules:
        os.environ["KERAS_TORCH_DEVICE"] = name
    else:
        current = str(sys.modules["keras"].src.backend.torch.core.DEFAULT_DEVICE)
        if current.removesuffix(":0") != name.removesuffix(":0"):
            raise ConfigError(
                f"Keras already computes on {current} in this process and cannot change to "
                f"{name}; start a new process for it."
            )
    return described


def _tensorflow_device(device: str) -> Device:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    index = _gpu_index(device, "tensorflow", len(gpus))
    try:
        tf.config.set_visible_devices(gpus[index : index + 1] if index >= 0 else [], "GPU")
        if index >= 0:
            tf.config.experimental.set_memory_growth(gpus[index], True)
    except RuntimeError:
        raise ConfigError(
            f"TensorFlow already runs in this process and cannot change to device={device!r}; "
            "start a new process for it."
        ) from None
    if index < 0:
        return _cpu(os.cpu_count() or 1)
    details = tf.config.experimental.get_device_details(gpus[index])
    return Device("gpu", f"{details.get('device_name', 'GPU')} (GPU:{index})")


def _tensorflow_devices(device: str, count: int) -> Device:
    """Prepares several devices: GPUs, or logical ones on the CPU."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if device == "auto":
        device = "gpu" if gpus else "cpu"
    if device != "cpu":
        if count > len(gpus):
            raise ConfigError(
                f"devices: expected at most the {len(gpus)} GPUs that tensorflow sees. "
                f"Received: devices={count}. Use fewer, or --device cpu."
            )
        tf.config.set_visible_devices(gpus[:count], "GPU")
        return Device("gpu", f"{count} GPUs")
    try:
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * count,
        )
    except RuntimeError:
        raise ConfigError(
            f"TensorFlow already runs in this process and cannot change to devices={count}; "
            "start a new process for it."
        ) from None
    return Device("cpu", f"CPU, as {count} devices")


def _jax_device(device: str) -> Device:
    import jax

    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    devices = jax.devices()
    count = 0 if devices[0].platform == "cpu" else len(devices)
    index = _gpu_index(device, "jax", count)
    if index < 0:
        return _cpu(os.cpu_count() or 1)
    jax.config.update("jax_default_device", devices[index])
    return Device("gpu", f"{devices[index].device_kind} ({devices[index]})")


def seed_everything(seed: int, epoch: int) -> None:
    """Seeds the global generators of Python, NumPy and the backend from (seed, epoch).

    Done at the start of every epoch, so that a resumed run draws what an uninterrupted one does.
    `keras.utils.set_random_seed` is not used: it imports TensorFlow wherever it is installed.
    """
    import numpy as np

    value = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(value)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(value)


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def child_environment(threads: int) -> dict[str, str]:
    """Returns the environment of a process that trains one of several runs.

    It computes on `threads` threads unless the user chose a number: trainings that all spin on all
    cores run at a third. Variables that set config fields are left out, for the run has its config.
    """
    fields = {f"KERASNORM_{name.upper()}" for name in (*SETTINGS, "recipe", "config")}
    kept = {name: value for name, value in os.environ.items() if name not in fields}
    counts = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return dict.fromkeys(counts, str(max(1, threads))) | kept


def probe(backend: str) -> str:
    """Returns what a backend would compute on, or how to install it, in one line.

    Each backend is tried in a process of its own, since one process can hold only one.
    """
    if backend not in installed_backends():
        return f"not installed; pip install 'kerasnorm[{backend}]'"
    import subprocess

    code = f"from kerasnorm.runtime import start; print(start({backend!r})[1].name)"
    try:
        done = subprocess.run(  # noqa: S603  (our own code, in this Python)
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired:
        return "does not start within five minutes"
    if done.returncode:
        return f"broken: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    return done.stdout.strip().splitlines()[-1]
