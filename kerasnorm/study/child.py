"""The process of one run: `python -m kerasnorm.study.child FOLDER`, and its keeper's side.

It trains what the folder's config.toml says, from its last checkpoint if there is one. It ends
when its stdin does, so that no death of its keeper, kill -9 included, leaves it behind.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kerasnorm import runtime
from kerasnorm.errors import CorruptFileError, KerasnormError, RunFolderError
from kerasnorm.progress import console_notes
from kerasnorm.study.folder import LOG, start_over, tidy
from kerasnorm.training import train

logger = logging.getLogger("kerasnorm.study.child")  # __name__ is __main__ in the process
ORPHANED = 143  # as after SIGTERM
POLL = 0.2  # seconds between two looks at a process
PATIENCE = 60.0  # seconds for the process of a killed keeper to give its run up


def start(folder: Path, threads: int) -> "subprocess.Popen[bytes]":
    """Starts the process of the run in `folder`, whose words go to its log.

    Args:
        folder: The run's folder; it holds at least a config.
        threads: That the run may keep busy.
    """
    with (folder / LOG).open("wb") as log:
        return subprocess.Popen(  # noqa: S603  (our own code, in this Python)
            [sys.executable, "-m", "kerasnorm.study.child", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=runtime.child_environment(threads),
        )


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and lets go of its pipe."""
    if process.poll() is None:
        process.kill()
    process.communicate()


def train_there(folder: Path, threads: int, is_stopped: Callable[[], bool]) -> tuple[int, str]:
    """Trains the run in `folder` in a process of its own; returns its exit code and last words.

    Args:
        folder: The run's folder.
        threads: That the run may keep busy.
        is_stopped: Is asked now and then; true ends the run.
    """
    patience = time.monotonic() + PATIENCE
    while True:
        process = start(folder, threads)
        try:
            while process.poll() is None:
                if is_stopped():
                    break
                time.sleep(POLL)
        finally:
            end(process)
        code = process.returncode
        # The run of a worker that was killed ends a moment after it.
        is_taken = code == RunFolderError.exit_code
        if not is_taken or is_stopped() or time.monotonic() > patience:
            return code, last_words(folder)
        time.sleep(1.0)


def last_words(folder: Path) -> str:
    """Returns the last line of a run's log."""
    try:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1].removeprefix("kerasnorm: ") if lines else "it left no message"


def _watch_keeper() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock a daemon thread must not hold at the end
    os._exit(ORPHANED)


def main(folder: Path) -> int:
    """Trains the run in `folder`; returns the exit code."""
    threading.Thread(target=_watch_keeper, daemon=True).start()
    with console_notes():
        try:
            try:
                train.fit(resume=folder)
            except CorruptFileError as error:
                logger.warning(f"{error} Starting over.")
                start_over(folder)
                train.fit(resume=folder)
        except KerasnormError as error:
            logger.error(f"kerasnorm: {error}")
            return error.exit_code
    tidy(folder)
    return 0


if __name__ == "__main__":
    # The run records this command line: what a person would type for the same.
    sys.argv = ["kerasnorm", "fit", "--resume", sys.argv[1]]
    sys.exit(main(Path(sys.argv[3])))
