"""The tests marked `backend` hold on TensorFlow too; each process has one backend."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_same_laws_hold_on_tensorflow() -> None:
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    here = Path(__file__).parent
    marked = [path for path in here.rglob("test_*.py") if "mark.backend(" in path.read_text()]
    options = ["-q", "-n0", "-p", "no:cacheprovider", "--tb=short", "-m", "backend and not slow"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *map(str, set(marked) - {Path(__file__)})],
        cwd=here.parent,
        env=os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(done.stdout + done.stderr)
