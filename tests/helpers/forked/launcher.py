"""What `sys.executable` is while tests run: asks a server to fork, or becomes a real Python.

It imports little, and stands in a folder with `session.json`, which `forked.launcher` writes.
"""

import array
import fcntl
import json
import os
import signal
import socket
import sys
import time

FOLDER = os.path.dirname(os.path.abspath(__file__))
MODULES = ("helpers", "kerasnorm", "pytest")
# What imports read, by how the names begin; KERAS_BACKEND chooses the server. Libraries set others.
READ = ("COV", "HOME", "KERAS_", "LANG", "LC_", "LD_", "MKL_", "MPL", "OMP_", "PYTHON", "XDG_")
NOT_READ = ("KERAS_BACKEND", "PYTHONPATH")


def backend_of(words, session):
    """Returns the backend whose server can fork this process, None where none can."""
    before = session["environment"]
    changed = {name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name)}
    if any(name.startswith(READ) and name not in NOT_READ for name in changed):
        return None
    if words[:1] != ["-m"] and words[:2] != ["-P", "-m"]:
        return None
    if words[words.index("-m") + 1].partition(".")[0] not in MODULES:
        return None
    backend = os.environ.get("KERAS_BACKEND")
    if "--backend" in words:
        backend = words[words.index("--backend") + 1]
    return backend if backend in ("torch", "tensorflow") else None


def connected(backend, session):
    """Returns a socket of the server, which is started if there is none; OSError if it cannot."""
    path = os.path.join(FOLDER, backend)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            start(path, backend, session)
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    return server


def start(path, backend, session):
    words = [session["python"], session["server"], path, str(session["owner"])]
    environment = session["environment"] | {"KERAS_BACKEND": backend}
    streams = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    streams += [(os.POSIX_SPAWN_OPEN, number, f"{path}.log", log, 0o644) for number in (1, 2)]
    number = os.posix_spawn(words[0], words, environment, file_actions=streams, setpgroup=0)
    while not os.path.exists(path):
        if os.waitpid(number, os.WNOHANG)[0]:
            raise OSError("the server ended")
        time.sleep(0.01)


def main():
    words = sys.argv[1:]
    with open(os.path.join(FOLDER, "session.json"), encoding="utf-8") as file:
        session = json.load(file)
    backend = backend_of(words, session)
    try:
        server = connected(backend, session) if backend else None
    except OSError:
        server = None
    if server is None:
        os.execv(session["python"], [session["python"], *words])
    request = {
        "words": words,
        "executable": os.path.join(FOLDER, "python"),
        "folder": os.getcwd(),
        "environment": {**os.environ},
        "group": os.getpgrp(),
        "umask": os.umask(0),
    }
    content = json.dumps(request).encode()
    streams = array.array("i", [0, 1, 2]).tobytes()
    server.sendmsg(
        [len(content).to_bytes(8, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)]
    )
    server.sendall(content)
    answers = server.makefile("r")
    process = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: os.kill(process, number))
    closed = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # the process's own; whoever reads them waits for it alone
        os.dup2(closed, stream)
    code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
        time.sleep(60)
    os._exit(code)


main()
