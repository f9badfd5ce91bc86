"""A process of its own that makes or opens model files, as its owner tells it.

Files from strangers are parsed there: it has a limit of memory and of time, and when a parser of
another project crashes, only it dies. It is also where a second Keras backend runs.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import kerasnorm
from kerasnorm import errors
from kerasnorm.errors import CorruptFileError, KerasnormError

SECONDS = 600.0


class Helper:
    """Starts the process when it is first asked; use it in a `with` block.

    Args:
        backend: The Keras backend that it uses, None for none.
        seconds: How long one answer may take.
    """

    def __init__(self, backend: str | None = None, seconds: float = SECONDS) -> None:
        self.backend = backend
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            # Not `communicate`: what a library forked may hold the pipes open for ever.
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what was left to write has no reader
                        pipe.close()
            self._process = None
        self._stderr.close()

    def _start(self) -> subprocess.Popen[str]:
        root = str(Path(kerasnorm.__file__).parent.parent)
        paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",  # a GPU's address space would burst the memory limit
            "JAX_PLATFORMS": "cpu",
        }
        if self.backend is not None:
            environment["KERAS_BACKEND"] = self.backend
        return subprocess.Popen(
            # -P: no module of the folder that we happen to stand in.
            [sys.executable, "-P", "-m", "kerasnorm.formats.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=environment,
        )

    def ask(self, task: str, path: Path, **arguments: Any) -> Any:
        """Returns the answer to a task of `kerasnorm.formats.worker` on the file `path`.

        Raises:
            CorruptFileError: The file is damaged or not safe to open, or it crashed the process
                or kept it busy for longer than its time.
            KerasnormError: Another error of ours.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        is_late = threading.Event()

        def stop() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(self.seconds, stop)
        timer.start()
        try:
            job = {"task": task, "path": str(path)} | arguments
            process.stdin.write(json.dumps(job, default=str) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            process.wait()
            if is_late.is_set():
                raise CorruptFileError(f"{path} was given up after {self.seconds:.0f} seconds.")
            raise CorruptFileError(
                f"{path} is damaged or too large: its reader ended with {process.returncode}"
                f"{self._last_words()}"
            )
        return _unpack(json.loads(line))

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read()[-2000:].strip().splitlines()
        return f": {lines[-1][:200]}" if lines else "."


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


def _unpack(reply: dict[str, Any]) -> Any:
    if "error" in reply:
        kind = getattr(errors, reply["error"], KerasnormError)
        raise kind(reply["message"])
    return reply["result"]
