"""Processes of this package's modules that start at once: forks of one that has imported them.

To import Keras and a backend takes a second or several, and many tests start processes that do. So
`sys.executable` is, while tests run, a small program (`launcher.py`) that asks a server
(`server.py`), one for each backend, to fork. The process has the standard streams, the folder, the
environment, the arguments and the exit code of a real one, and receives its signals. What the
server did not import, or an environment that differs where an import may read it, gets a real
Python: all that is not `python -m kerasnorm…` (or `-m helpers…`, `-m pytest`), another KERAS_HOME,
another OMP_NUM_THREADS.

A test that needs a real Python for what it says, as those of signals do, starts `PYTHON`.
"""

import json
import os
import sys
from pathlib import Path

PYTHON = sys.executable  # before any test runs


def launcher(folder: Path, owner: int) -> str:
    """Returns what to put into `sys.executable`; the servers end with the process `owner`.

    Args:
        folder: Folder of the servers, which the processes of one session share.
        owner: Number of a process.
    """
    if not hasattr(os, "pidfd_open") or Path(PYTHON).with_name("session.json").exists():
        return PYTHON  # of another system, or of a session that is a fork itself
    path = folder / "python"
    if not path.exists():
        folder.mkdir()
        server = str(Path(__file__).parent / "server.py")
        session = {
            "python": PYTHON, "server": server, "owner": owner, "environment": {**os.environ},
        }  # fmt: skip
        (folder / "session.json").write_text(json.dumps(session), encoding="utf-8")
        code = (Path(__file__).parent / "launcher.py").read_text(encoding="utf-8")
        unfinished = folder / "unfinished"
        unfinished.write_text(f"#!{PYTHON} -IS\n{code}", encoding="utf-8")
        unfinished.chmod(0o755)
        unfinished.rename(path)
    return str(path)
