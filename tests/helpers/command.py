"""The command line, called in this process or in one of its own."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from unittest import mock

import pytest

from kerasnorm.cli import main

TINY = "--train-size 60 --test-size 20 --epochs 2 --batch-size 16 --widths 4,4,4,4,4,4,4,4,4,4"


def run(*words, code=0, python=None, **environment):
    """Runs `kerasnorm WORDS…` in a process of its own; returns its stdout and stderr."""
    done = subprocess.run(
        [python or sys.executable, "-m", "kerasnorm", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def call(*words, code=0):
    """Runs `kerasnorm WORDS…` in this process, where Keras is imported already."""
    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    with (
        mock.patch.object(sys, "argv", ["kerasnorm", *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as exit_,
    ):
        main()
    signal.signal(signal.SIGTERM, handler)
    assert (exit_.value.code or 0) == code, err.getvalue()
    assert "Traceback" not in err.getvalue()
    return out.getvalue(), err.getvalue()


def tiny_fit(folder, *words):
    """Words of a short training; an option of `TINY` is left out where the words have it."""
    tiny = TINY.split()
    kept = [word for pair in zip(tiny[::2], tiny[1::2], strict=True) if pair[0] not in words
            for word in pair]  # fmt: skip
    return ["fit", *kept, "--data", "shapes", "--out", folder, *words]
