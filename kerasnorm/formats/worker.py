"""What the helper's process does: one function per task.

See `kerasnorm.formats.helper`. What it returns is plain; arrays travel in `.npy` files.
"""

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kerasnorm.errors import CorruptFileError, KerasnormError
from kerasnorm.json_process import limit_memory, serve

MEMORY = 4 << 30  # bytes that opening and running a file may take
_opened: dict[str, Any] = {}


def make(path: Path, format: str, out: str, **options: Any) -> None:  # noqa: A002
    """Writes the Keras model at `path` to `out` in another format."""
    from kerasnorm.formats import makers

    makers.make(path, format, Path(out), **options)


def open_file(path: Path, format: str) -> dict[str, Any]:  # noqa: A002
    """Checks and opens a file, keeps it for `run`, and says what it takes and gives."""
    from kerasnorm.formats import runtimes

    for name in runtimes.IMPORTS[format]:
        importlib.import_module(name)
    if format != "keras":
        limit_memory(MEMORY)
    opened = runtimes.open_file(path, format)
    _opened[str(path)] = opened
    return {
        "image_shape": opened.image_shape,
        "classes": opened.classes,
        "dtype": opened.dtype,
        "input_name": opened.input_name,
        "quantization": opened.quantization,
    }


def run(path: Path, images: str, out: str) -> None:
    """Writes the outputs of the file opened last for the images of a `.npy` file."""
    import numpy as np

    np.save(out, _opened[str(path)].predict(np.load(images)))


def latency(path: Path, repeats: int = 50) -> float:
    """Returns the median time of one image, in milliseconds."""
    import numpy as np

    opened = _opened[str(path)]
    image = np.full((1, *opened.image_shape), 127, np.uint8)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        opened.predict(image)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000


def run_module(path: Path, images: str, out: str) -> float:
    """Runs the PyTorch module that we generated; returns the median milliseconds of an image."""
    from kerasnorm.formats.torch_module import run

    return run(path, images, out)


def read_tensors(path: Path, out: str) -> list[str]:
    """Writes the tensors of a PyTorch file to an `.npz`, by their places; returns their names."""
    import torch  # noqa: F401  (before the limit)

    from kerasnorm.formats.torch_files import read_pickled

    limit_memory(MEMORY)
    return read_pickled(path, Path(out))


TASKS: dict[str, Callable[..., Any]] = {
    "make": make,
    "open": open_file,
    "run": run,
    "latency": latency,
    "run_module": run_module,
    "read_tensors": read_tensors,
}


def answer(request: dict[str, Any]) -> Any:
    """Does one task; every error becomes one of ours."""
    path = Path(request.pop("path"))
    task = request.pop("task")
    try:
        return TASKS[task](path, **request)
    except KerasnormError:
        raise
    except MemoryError:
        message = f"{path} would take more than {MEMORY >> 30} GiB of memory."
        raise CorruptFileError(message) from None
    except Exception as error:  # the parsers of six projects raise every type
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if task == "make":
            message = f"The model cannot be written as {request['format']}: {lines[0]}"
            raise KerasnormError(message) from error
        raise CorruptFileError(f"{path} is damaged: {lines[0][:300]}") from error


def refuse_telemetry() -> None:
    """Keeps OpenVINO from reporting its use: over the network, from a fork that can hang."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # as if not installed


if __name__ == "__main__":
    refuse_telemetry()
    serve(answer)
