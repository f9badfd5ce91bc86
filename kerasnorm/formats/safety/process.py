"""A process of our own that writes and opens model files.

Files from anyone are parsed there: it has a limit of memory and of time, and when a parser of
another project crashes, only this process dies. It is also where a second Keras backend runs.
Answers are plain; arrays travel in `.npy` files.
"""

import importlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.stored import Images, in_parts
from kerasnorm.errors import CorruptFileError, KerasnormError, first_line
from kerasnorm.formats import FORMATS, litert, safety
from kerasnorm.formats.format import BATCH, Opened
from kerasnorm.formats.safety.torch_files import read_pickled
from kerasnorm.inspection.outputs import check_finite
from kerasnorm.json_process import JsonProcess, ProcessEndedError, limit_memory, serve
from kerasnorm.keras_settings import stock_keras

MODULE = "kerasnorm.formats.safety.process"
MEMORY = 4 << 30  # bytes that opening and running a file may take
MAX_CLASSES = 1 << 16
REPEATS = 50  # of a timed prediction


class FileProcess(JsonProcess):
    """The parent's side: starts the process with the first task; use it in a `with` block.

    Without a backend, Keras takes that of the environment.
    """

    def __init__(self, backend: str | None = None) -> None:
        chosen = {"KERAS_BACKEND": backend} if backend else {}
        forced = {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",  # a GPU's address space would burst the memory limit
            "JAX_PLATFORMS": "cpu",
            # The times of the formats are compared: each runs on one thread.
            "OMP_NUM_THREADS": "1",
            "TF_NUM_INTRAOP_THREADS": "1",
        }
        super().__init__(MODULE, environment=os.environ | forced | chosen)

    def do(self, task: str, path: Path, *, seconds: float = 600.0, **arguments: Any) -> Any:
        """Returns the result of a method of `Tasks` on the file `path`.

        Raises:
            CorruptFileError: The file is damaged or not safe to open, or it crashed the process
                or kept it busy for longer than `seconds`.
            KerasnormError: The task failed for another reason.
        """
        try:
            return self.ask({"task": task, "path": path, **arguments}, seconds=seconds)
        except ProcessEndedError as error:
            if error.is_late:
                message = f"{path} was given up after {seconds:.0f} seconds."
            else:
                words = f": {error.last_words[:200]}" if error.last_words else "."
                message = f"{path} is damaged or too large: its reader ended with {error.code}"
                message += words
            raise CorruptFileError(message) from None

    def run(self, path: Path, images: Images) -> NDArray[np.float32]:
        """Returns the outputs (N, classes) of an open file for raw images (N, H, W, C)."""
        found = []
        with tempfile.TemporaryDirectory() as folder:
            given, outputs = Path(folder) / "images.npy", Path(folder) / "outputs.npy"
            for part in in_parts(images, BATCH):
                np.save(given, part)
                self.do("run", path, images=given, out=outputs)
                found.append(np.load(outputs))
        return np.concatenate(found)


class Tasks:
    """The child's side: what the process does, with the files that are open in it."""

    def __init__(self) -> None:
        self._opened: dict[Path, Opened] = {}

    def answer(self, request: dict[str, Any]) -> Any:
        """Does one task; every error becomes one of this package's."""
        path, task = Path(request.pop("path")), request.pop("task")
        try:
            return getattr(self, task)(path, **request)
        except KerasnormError:
            raise
        except MemoryError:
            message = f"{path} would take more than {MEMORY >> 30} GiB of memory."
            raise CorruptFileError(message) from None
        except Exception as error:  # the parsers of six projects raise every type
            reason = first_line(error) or type(error).__name__
            if task == "write":
                message = f"The model cannot be written as {request['format']}: {reason}"
                raise KerasnormError(message) from error
            # The file has passed its checks; its runtime may lack an operation, or be older.
            what = "opened" if task in ("open", "read_tensors") else "run"
            message = (
                f"{path} could not be {what}: {reason[:300]}. It is damaged, or its runtime here "
                "does not support it: try another version of the runtime, or another format."
            )
            raise CorruptFileError(message) from error

    def write(self, path: Path, format: str, out: str, calibration: str = "") -> None:  # noqa: A002
        """Writes the model of our `.keras` file at `path` to `out` in another format.

        With images to calibrate it by, LiteRT is written in int8.
        """
        with catch_warnings(action="ignore"):  # the converters warn of each other
            if calibration:
                stock_keras(litert.write_int8)(path, Path(out), np.load(calibration))
            else:
                stock_keras(FORMATS[format].write)(path, Path(out))

    def open(self, path: Path, format: str, is_ours: bool = False) -> dict[str, Any]:  # noqa: A002
        """Checks and opens a file for `run`; returns what it takes and how many classes it has.

        Raises:
            CorruptFileError: It is not safe to open, or no classifier of images.
        """
        entry = FORMATS[format]
        if entry.runs_code and not is_ours:
            raise CorruptFileError(f"{path} was refused: opening it here would run its code.")
        for name in entry.modules:
            importlib.import_module(name)
        if entry.load is None:
            limit_memory(MEMORY)
        opened = self._opened[path] = entry.open(path)
        shape = opened.shape[1:]
        if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise CorruptFileError(
                f"{path}: expected a classifier of images (N, H, W, C) of fixed size. "
                f"Received: an input of (N, {', '.join(map(str, shape))})"
            )
        safety.check_image(path, np.prod(shape, dtype=np.float64))
        if opened.dtype not in ("float32", "uint8", "int8"):
            raise CorruptFileError(f"{path}: expected pixels as float32. Received: {opened.dtype}")
        random = np.random.Generator(np.random.PCG64(0))
        outputs = opened.predict(random.integers(0, 256, (2, *shape), np.uint8))
        if outputs.ndim != 2 or outputs.shape[0] != 2 or not 2 <= outputs.shape[1] <= MAX_CLASSES:
            raise CorruptFileError(
                f"{path}: expected outputs (N, classes) of two classes or more. "
                f"Received: {outputs.shape} for two images"
            )
        check_finite(outputs, path)
        return {
            "batch": opened.shape[0],
            "image_shape": shape,
            "classes": outputs.shape[1],
            "dtype": opened.dtype,
            "input_name": opened.input_name,
            "quantization": opened.quantization,
        }

    def run(self, path: Path, images: str, out: str) -> None:
        """Writes the outputs of an open file for the images of a `.npy` file."""
        np.save(out, self._opened[path].predict(np.load(images)))

    def latency(self, path: Path) -> float:
        """Returns the median time of one image in an open file, in milliseconds."""
        opened = self._opened[path]
        image = np.full((1, *opened.shape[1:]), 127, np.uint8)
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            opened.predict(image)
            times.append(time.perf_counter() - start)
        return float(np.median(times)) * 1000

    def read_tensors(self, path: Path, out: str) -> list[str]:
        """Writes the tensors of a PyTorch file to an `.npz`, by position; returns their names."""
        import torch  # noqa: F401  (before the limit)

        limit_memory(MEMORY)
        return read_pickled(path, Path(out))


def refuse_telemetry() -> None:
    """Keeps OpenVINO from reporting its use: over the network, from a fork that can hang."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # as if not installed


if __name__ == "__main__":
    refuse_telemetry()
    serve(Tasks().answer)
