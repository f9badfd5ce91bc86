"""The tests marked `backend` hold on TensorFlow too; each process has one backend."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


# Two processes that take about as long: the files that train engines, and all others.
ENGINES = ("engines", "test_settings.py", "training")
HALVES = ("engines", "others")


@pytest.mark.parametrize("half", HALVES)
def test_the_same_laws_hold_on_tensorflow(half: str) -> None:
    run_on_tensorflow("backend and not long and not slow", half)


@pytest.mark.long
@pytest.mark.parametrize("half", HALVES)
def test_the_same_long_laws_hold_on_tensorflow(half: str) -> None:
    run_on_tensorflow("backend and long and not slow", half)


@pytest.mark.slow
@pytest.mark.parametrize("half", HALVES)
def test_the_same_slow_laws_hold_on_tensorflow(half: str) -> None:
    run_on_tensorflow("backend and slow", half)


def run_on_tensorflow(wanted: str, half: str) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    marked = {path for path in HERE.rglob("test_*.py") if "mark.backend(" in path.read_text()}
    files = {path for path in marked - {Path(__file__)} if half_of(path) == half}
    options = ["-q", "-n0", "-p", "no:cacheprovider", "--tb=short", "-m", wanted]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *map(str, sorted(files))],
        cwd=HERE.parent,
        env=os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(done.stdout + done.stderr)


def half_of(path: Path) -> str:
    return "engines" if path.relative_to(HERE).parts[0] in ENGINES else "others"
