"""Processes of our own that answer requests: one line of JSON for each, both ways.

`JsonProcess` is the parent's side; the module that the process runs calls `serve`. The answers have
stdout to themselves: whatever else the process prints goes to stderr, which the parent keeps. The
process ends with its parent, however that dies.
"""

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Self

from kerasnorm import errors
from kerasnorm.errors import KerasnormError

POLL = 0.2  # seconds between two checks whether an answer is still wanted
DYING = 10.0  # seconds for a process that has closed its stdout to exit by itself
ORPHANED = 143  # exit code of a process whose parent is gone, as after SIGTERM


class ProcessEndedError(KerasnormError):
    """A process ended before it answered.

    Attributes:
        code: Its exit code; negative for the number of the signal that ended it.
        last_words: The last line that it wrote to stderr, "" if there is none.
        is_late: Whether it was ended because it took longer than it may.
    """

    def __init__(self, module: str, code: int, last_words: str, *, is_late: bool) -> None:
        super().__init__(f"{module} ended with {code}: {last_words or 'no message'}")
        self.code, self.last_words, self.is_late = code, last_words, is_late


class JsonProcess:
    """A process that runs a module of ours, used in a `with` block.

    The process starts with the first request, and anew with the next one after it has ended. `log`
    receives its stderr, by default a temporary file.
    """

    def __init__(
        self, module: str, *, environment: Mapping[str, str] | None = None, log: Path | None = None
    ) -> None:
        self.module = module
        self._environment = dict(os.environ if environment is None else environment)
        root = str(Path(__file__).parent.parent)
        paths = [root, *filter(None, self._environment.get("PYTHONPATH", "").split(os.pathsep))]
        self._environment["PYTHONPATH"] = os.pathsep.join(paths)
        options: dict[str, Any] = {"mode": "w+", "encoding": "utf-8", "errors": "replace"}
        self._stderr = log.open(**options) if log else tempfile.TemporaryFile(**options)  # noqa: SIM115  (closed by close)
        self._process: subprocess.Popen[str] | None = None
        self._exchange = threading.Thread()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._end()
        self._stderr.close()

    def ask(
        self,
        request: Mapping[str, Any],
        *,
        seconds: float = math.inf,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Any:
        """Returns the answer to one request.

        The request is JSON-able; paths are sent as text. The process is killed after `seconds`, and
        once `is_stopped`, which is called every now and then, returns true.

        Raises:
            ProcessEndedError: The process died or was killed.
            KerasnormError: The error, of the same class, that the answer consists of.
        """
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = self._start()
        process, lines = self._process, [""]
        line = json.dumps(request, default=str) + "\n"
        exchange = self._exchange = threading.Thread(
            target=_exchange, args=(process, line, lines), daemon=True
        )
        deadline = time.monotonic() + seconds
        exchange.start()
        is_late = False
        while exchange.is_alive() and not is_late and not is_stopped():
            exchange.join(POLL)
            is_late = exchange.is_alive() and time.monotonic() > deadline
        try:
            reply = None if exchange.is_alive() else json.loads(lines[-1])
        except ValueError:  # it is dead, or something else than `serve` has answered
            reply = None
        if reply is None:
            code = self._end(0.0 if exchange.is_alive() else DYING)
            raise ProcessEndedError(self.module, code, self._last_words(), is_late=is_late)
        if "error" in reply:
            raise getattr(errors, reply["error"], KerasnormError)(reply["message"])
        return reply["result"]

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603  (our own code, in this Python)
            # -P: no module of the folder that we happen to stand in.
            [sys.executable, "-P", "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            env=self._environment,
        )

    def _end(self, patience: float = 0.0) -> int:
        """Kills the process unless it exits within its patience; returns its exit code."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
        # Not `communicate`: a process that a library forked may hold the pipes open for ever.
        code = process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):  # what was left to write has no reader
            process.stdin.close()
        # Closing waits for the exchange's read, maybe for ever: we do not wait for it.
        closing = threading.Thread(
            target=_close, args=(process.stdout, self._exchange), daemon=True
        )
        closing.start()
        closing.join(POLL)
        return code

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read()[-2000:].strip().splitlines()
        return lines[-1].removeprefix("kerasnorm: ") if lines else ""


def _close(stdout: IO[str], exchange: threading.Thread) -> None:
    exchange.join()
    stdout.close()


def _exchange(process: subprocess.Popen[str], request: str, lines: list[str]) -> None:
    """Appends the answer to a request to `lines`; nothing where the process is dead."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request)
        process.stdin.flush()
        lines.append(process.stdout.readline())
    except (OSError, ValueError):  # a broken pipe, one that `_end` has closed, or no UTF-8
        return


def serve(answer: Callable[[dict[str, Any]], Any]) -> None:
    """Answers the requests of the parent process until it closes this process or dies.

    A `KerasnormError` that `answer` raises is raised in the parent; any other error ends the
    process.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever else is printed, by C libraries too, is no reply
    sys.stdout = sys.stderr
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests,), daemon=True).start()
    while True:
        request = json.loads(requests.get())
        try:
            reply = {"result": answer(request)}
        except KerasnormError as error:
            reply = {"error": type(error).__name__, "message": str(error)}
        replies.write(json.dumps(reply) + "\n")


def _receive(requests: "queue.SimpleQueue[bytes]") -> None:
    """Queues the lines of stdin, and ends this process, even amid a request, when they end."""
    # Not sys.stdin, whose lock a daemon thread must not hold when Python shuts down.
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        while line := stdin.readline():
            requests.put(line)
    os._exit(ORPHANED)


def limit_memory(size: int) -> None:
    """Limits the address space to what is in use now and `size` bytes, where the system can."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return  # Windows and macOS have no such limit
    size += pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
