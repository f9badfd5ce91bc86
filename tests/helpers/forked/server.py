"""Imports Keras, its backend and this package once, and forks for each process that is asked for.

`python server.py SOCKET OWNER`; it ends when the process OWNER does.
"""

import array
import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from typing import NoReturn

MODULES = (
    "keras", "matplotlib.pyplot", "matplotlib.backends.backend_agg", "scipy.stats", "PIL.Image",
    "h5py", "kerasnorm.cli", "kerasnorm.training.fit", "kerasnorm.study.study",
    "kerasnorm.study.report", "kerasnorm.formats.export", "kerasnorm.formats.exported",
    "kerasnorm.formats.safety.process", "kerasnorm.engines.choice", "kerasnorm.data.sources",
)  # fmt: skip
OF_BACKENDS = {
    "torch": ("torch", "torch.optim", "kerasnorm.engines.torch.engine", "safetensors.torch"),
    "tensorflow": ("tensorflow", "kerasnorm.engines.tensorflow.engine"),
}


def main(path: str, owner: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    paths = sys.path[1:]
    sys.path[0] = str(Path(__file__).parents[3])
    for name in (*OF_BACKENDS[os.environ["KERAS_BACKEND"]], *MODULES):
        with contextlib.suppress(ImportError):  # the processes say what is missing
            importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lack the other threads"
    gc.collect()
    gc.freeze()  # the collector of a fork need not touch, and so copy, what was imported
    request = serve(path, owner)
    become(request, paths)
    run(request["words"])


def serve(path: str, owner: int) -> dict:
    """Forks for each request. Returns in the forks only, with the request."""
    events = selectors.DefaultSelector()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.unfinished")
    listener.listen(64)
    os.rename(f"{path}.unfinished", path)
    events.register(os.pidfd_open(owner), selectors.EVENT_READ, os._exit)
    events.register(listener, selectors.EVENT_READ, accept)
    while True:
        for key, _ in events.select():
            if key.fd not in events.get_map():  # closed by what came before
                continue
            if key.data is os._exit:
                os._exit(0)
            request = key.data(events, key.fileobj)
            if request is not None:
                return request


def accept(events: selectors.BaseSelector, listener: socket.socket) -> dict | None:
    """Forks for a launcher. Returns in the fork only, with the request."""
    client, _ = listener.accept()
    try:
        request, streams = received(client)
    except (OSError, IndexError):  # it was killed
        client.close()
        return None
    process = os.fork()
    if process == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for key in [*events.get_map().values()]:
            key.fileobj.close() if isinstance(key.fileobj, socket.socket) else os.close(key.fd)
        for other in (client, events):
            other.close()
        for stream in streams:
            os.close(stream)
        return request
    for stream in streams:
        os.close(stream)
    with contextlib.suppress(OSError):
        client.sendall(f"{process}\n".encode())
    handle = os.pidfd_open(process)
    events.register(handle, selectors.EVENT_READ, partial(end, process=process, client=client))
    events.register(client, selectors.EVENT_READ, partial(kill, process=process))
    return None


def kill(events: selectors.BaseSelector, client: socket.socket, process: int) -> None:
    """Kills a process whose launcher was killed."""
    events.unregister(client)
    os.kill(process, signal.SIGKILL)


def end(events: selectors.BaseSelector, handle: int, process: int, client: socket.socket) -> None:
    """Sends the exit code of a process that has ended to its launcher."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(OSError):
        client.sendall(f"{code}\n".encode())
    events.unregister(handle)
    os.close(handle)
    with contextlib.suppress(KeyError):  # its launcher was killed
        events.unregister(client)
    client.close()


def received(client: socket.socket) -> tuple[dict, list[int]]:
    """Returns a request, and the standard streams of its process."""
    streams = array.array("i")
    head, ancillary, _, _ = client.recvmsg(8, socket.CMSG_SPACE(3 * streams.itemsize))
    streams.frombytes(ancillary[0][2])
    content = b""
    while len(content) < int.from_bytes(head, "little"):
        content += client.recv(1 << 16)
    return json.loads(content), streams.tolist()


def become(request: dict, paths: list[str]) -> None:
    """Makes this process the one that was asked for."""
    with contextlib.suppress(OSError):  # its group may be gone
        os.setpgid(0, request["group"])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = request["executable"]
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    first = [] if request["words"][0] == "-P" else [request["folder"]]
    sys.path[:] = dict.fromkeys([*first, *filter(None, before), *paths])
    sys.stdin = stream(0, "r", "strict")
    sys.stdout = stream(1, "w", "strict")
    sys.stderr = stream(2, "w", "backslashreplace")


def stream(number: int, mode: str, errors: str) -> io.TextIOWrapper:
    """Returns a standard stream as Python opens it where the locale is UTF-8."""
    file = open(number, f"{mode}b", closefd=False)  # noqa: SIM115  (it is open to the end)
    is_line = number == 2 or file.isatty()
    return io.TextIOWrapper(file, encoding="utf-8", errors=errors, line_buffering=is_line)


def run(words: list[str]) -> NoReturn:
    """Runs `python -m MODULE…`, and ends this process as Python would end it.

    What Python does last, to free all objects one by one, takes a second here.
    """
    place, code = words.index("-m"), 0
    sys.argv = ["-m", *words[place + 2 :]]
    try:
        runpy.run_module(words[place + 1], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            file.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
