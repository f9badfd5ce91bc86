"""A process of its own that makes or opens model files; see `kerasnorm.formats.worker`.

Files from strangers are parsed there: it has a limit of memory and of time, and when a parser of
another project crashes, only it dies. It is also where a second Keras backend runs.
"""

import os
from pathlib import Path
from typing import Any, Self

from kerasnorm.errors import CorruptFileError
from kerasnorm.json_process import JsonProcess, ProcessEndedError


class Helper:
    """Starts the process with the first task; use it in a `with` block.

    Args:
        backend: Keras backend of the process, None for none.
        seconds: Time that one answer may take.
    """

    def __init__(self, backend: str | None = None, seconds: float = 600.0) -> None:
        self.seconds = seconds
        environment = os.environ | {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",  # a GPU's address space would burst the memory limit
            "JAX_PLATFORMS": "cpu",
        }
        if backend is not None:
            environment["KERAS_BACKEND"] = backend
        self._process = JsonProcess("kerasnorm.formats.worker", environment=environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._process.close()

    def ask(self, task: str, path: Path, **arguments: Any) -> Any:
        """Returns the answer to a task of `kerasnorm.formats.worker` on the file `path`.

        Raises:
            CorruptFileError: The file is damaged or not safe to open, or it crashed the process
                or kept it busy for longer than its time.
            KerasnormError: Another error of ours.
        """
        try:
            return self._process.ask(
                {"task": task, "path": path, **arguments}, seconds=self.seconds
            )
        except ProcessEndedError as error:
            if error.is_late:
                message = f"{path} was given up after {self.seconds:.0f} seconds."
            else:
                words = f": {error.last_words[:200]}" if error.last_words else "."
                message = (
                    f"{path} is damaged or too large: its reader ended with {error.code}{words}"
                )
            raise CorruptFileError(message) from None


class Helpers:
    """Helpers by name, started when they are first asked for; use it in a `with` block."""

    def __init__(self) -> None:
        self._started: dict[str, Helper] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for helper in self._started.values():
            helper.close()
        self._started.clear()

    def get(self, name: str, backend: str | None = None) -> Helper:
        """Returns the helper of that name; `backend` is the Keras backend of a new one."""
        if name not in self._started:
            self._started[name] = Helper(backend)
        return self._started[name]
