"""Tiny runs in processes of their own, forked so that Keras is imported once, and how runs compare.

A child is forked before this process has computed anything, so each backend needs a fresh parent.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from helpers import tiny
from kerasnorm.errors import KerasnormError
from kerasnorm.training import checkpoints, run, run_folder

TIMED = ("seconds", "images_per_second")


def options(backend, **changed):
    """A run of three epochs with everything random switched on: dropout, augmentation, order."""
    return {
        "recipe": "era8", "backend": backend, "device": "cpu", "data": "shapes", "norm": "bn",
        "train_size": 60, "test_size": 20, "validation": 20, "widths": [4] * 10, "dropout": 0.2,
        "epochs": 3, "batch_size": 8,
    } | changed  # fmt: skip


def fit(folder, wanted):
    """Starts the run in `folder`, or goes on with it."""
    return tiny.train(out=folder, resume="auto", **wanted)


def result(folder):
    """What a finished run computed: weights, optimizer and statistics, history, final numbers."""
    state, facts = checkpoints.load_newest(folder / run_folder.CHECKPOINTS)
    done = run.Run.load(folder)
    timeless = [{k: v for k, v in row.items() if k not in TIMED} for row in done.history]
    numbers = {k: v for k, v in done.metrics.items() if k not in TIMED}
    arrays = {name: (array.dtype.str, array.tobytes()) for name, array in state.items()}
    return {
        "arrays": arrays,
        "history": timeless,
        "metrics": numbers,
        "best": facts["best"],
        "callbacks": facts["callbacks"],
    }


def fork(work):
    """Runs `work` in a child; returns its number. The child exits with 0, or 1 after an error."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        silence()
        work()
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except KerasnormError as error:
        code = error.exit_code
    except BaseException:
        traceback.print_exc(file=sys.__stdout__)
    finally:
        os._exit(code)


def silence():
    """Sends stderr away, where a killed backend complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def wait(child):
    """Returns the exit code of a child; -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def straight(folder, wanted):
    """The result of a run that nothing disturbs, and how many seconds it took."""
    start = time.monotonic()
    assert wait(fork(lambda: fit(folder, wanted))) == 0
    return result(folder), time.monotonic() - start


def kill_after(child, seconds):
    """Kills a child after a while; returns whether it was still running."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return wait(child) == -signal.SIGKILL


class Events:
    """Counts each write, fsync and rename, and lets something happen at one of them.

    Args:
        at: The event, counted from 0; -1 only counts.
        act: Called with the path or descriptor that the event is about.
    """

    def __init__(self, at=-1, act=None):
        self.at, self.act, self.count, self.names = at, act, 0, []

    def _hit(self, name, target):
        self.names.append(name)
        self.count += 1
        if self.count - 1 == self.at:
            self.act(target)

    @contextlib.contextmanager
    def watched(self):
        """Watches them while the block runs."""
        fsync, replace, rename, open_ = os.fsync, Path.replace, Path.rename, Path.open

        def _fsync(descriptor):
            self._hit("fsync", descriptor)
            fsync(descriptor)

        def _replace(path, target):
            self._hit("rename", path)
            return replace(path, target)

        def _rename(path, target):
            self._hit("rename", path)
            return rename(path, target)

        def _open(path, mode="r", *args, **kwargs):
            file = open_(path, mode, *args, **kwargs)
            return _Half(file, self) if mode == "xb" else file

        try:
            os.fsync, Path.replace, Path.rename, Path.open = _fsync, _replace, _rename, _open
            yield self
        finally:
            os.fsync, Path.replace, Path.rename, Path.open = fsync, replace, rename, open_


class _Half:
    """A file whose every write is an event when half of it is on the disk."""

    def __init__(self, file, events):
        self.file, self.events = file, events

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        half = len(content) // 2
        self.file.write(content[:half])
        self.file.flush()
        self.events._hit("write", self.file.name)
        self.file.write(content[half:])


def copy(source, target):
    """Copies a run's folder over another."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def state_of(seed):
    """A small made-up state."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return {"model/000": rng.normal(size=50).astype(np.float32), "optimizer/000": np.array(seed)}
