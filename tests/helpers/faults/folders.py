"""Fault 6: folders that cannot be written, odd paths and clocks, and many who want the same one."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from helpers.faults import harness
from kerasnorm.config import resolve
from kerasnorm.errors import RunFolderError
from kerasnorm.files import run_lock
from kerasnorm.training import run_folder

NOBODY = 65534
ODD_PATHS = ("with space", "ünïcode-日本語", 'it\'s "quoted"', "--dashes", "a%20b;c&d")


def race(rounds, processes):
    """Lets processes start runs in one folder at the same time.

    Returns:
        How many rounds had one winner and only exit codes 6 beside it.
    """
    config, fair = resolve({"norm": "bn", "backend": "torch"}), 0
    with tempfile.TemporaryDirectory() as name:
        for number in range(rounds):
            folder = Path(name) / str(number)
            go = time.monotonic() + 0.05

            def start(folder=folder, go=go):
                time.sleep(max(0.0, go - time.monotonic()))
                with run_folder.new_folder(folder, config, "x"):
                    time.sleep(0.02)

            children = [harness.fork(start) for _ in range(processes)]
            codes = sorted(harness.wait(child) for child in children)
            fair += codes == [0] + [RunFolderError.exit_code] * (processes - 1)
    return {"rounds": rounds, "processes": processes, "fair": fair}


def dead_owner():
    """Kills the owner of a lock; returns whether the lock is free then."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def hold():
            with run_lock(folder):
                (folder / "held").touch()
                time.sleep(60)

        child = harness.fork(hold)
        while not (folder / "held").exists():
            time.sleep(0.005)
        try:
            with run_lock(folder):
                return False
        except RunFolderError:
            os.kill(child, signal.SIGKILL)
            harness.wait(child)
        with run_lock(folder):
            return True


def read_only():
    """Tries to start a run where this user may not write; returns the exit code."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o555)

        def start():
            if os.getuid() == 0:  # whom no permission stops
                os.setuid(NOBODY)
            with run_folder.new_folder(home / "run", resolve({"backend": "torch"}), "x"):
                pass

        code = harness.wait(harness.fork(start))
        home.chmod(0o755)
        return code


def odd_path(name, *words):
    """Trains in a folder of an odd name, in the C locale without UTF-8 mode, and reads it again.

    Returns:
        Whether every command went well and said nothing of an error.
    """
    environment = os.environ | {
        "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / name / "run"  # missing folders are made
        fit = ["fit", "--data", "shapes", "--train-size", "40", "--test-size", "10", "--epochs",
               "1", "--batch-size", "20", "--widths", "4,4,4,4,4,4,4,4,4,4", "--out", folder,
               "--resume", "auto", "--json"]  # fmt: skip
        for command in ([*fit, *words], [*fit, *words], ["evaluate", folder, "--json"]):
            done = subprocess.run(
                [sys.executable, "-m", "kerasnorm", *map(str, command)],
                env=environment, capture_output=True, check=False,
            )  # fmt: skip
            if done.returncode or b"Traceback" in done.stderr:
                return False
        return (folder / run_folder.MODEL).is_file()


def clock_set_back():
    """Trains and resumes while every look at the clock shows an earlier time.

    Returns:
        Whether the result is that of an undisturbed run.
    """
    wanted = harness.options("auto")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        harness.fit(home / "straight", wanted)
        clock = itertools.count(2e9, -3600.0)
        with mock.patch.object(time, "time", clock.__next__):
            events = harness.Events(40, _interrupt)
            with contextlib.suppress(KeyboardInterrupt), events.watched():
                harness.fit(home / "run", wanted)
            for age, path in enumerate(sorted((home / "run").rglob("*"))):
                os.utime(path, (age * 1000, 10**9 - age * 1000))
            harness.fit(home / "run", wanted)
        return harness.result(home / "run") == harness.result(home / "straight")


def _interrupt(_):
    raise KeyboardInterrupt
