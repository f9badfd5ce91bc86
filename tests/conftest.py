"""What all tests share: the backend, hypothesis's settings, golden files and exported models.

`pytest --update-golden` writes the golden files anew; look at the difference before you keep it.
"""

import gc
import os
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path

# Keras and matplotlib read these when they are imported, which the tests do.
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests train tiny nets, which threads only slow down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import hypothesis
import pytest
from filelock import FileLock
from helpers import forked

from kerasnorm.runtime import cache_folder, import_keras

# A test that has a cache of its own need not compile again.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache_folder() / "extensions"))

BACKEND = os.environ["KERAS_BACKEND"]
GOLDEN = Path(__file__).parent / "golden"

if BACKEND == "tensorflow":
    import tensorflow as tf

    # A test trains for a few steps, which takes less time than to trace and compile them.
    tf.config.run_functions_eagerly(True)

# The first call of an operation is slow, and every call is on a busy machine.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def trusts_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets after each test which modules of its own it named."""
    monkeypatch.setenv("KERASNORM_TRUST", "")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="Write the golden files anew.",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks what is long or slow on this backend, and skips the tests of other backends."""
    marker = item.get_closest_marker("backend")
    for duration in ("long", "slow"):
        if any(m.kwargs.get(f"{duration}_on") == BACKEND for m in item.iter_markers("backend")):
            item.add_marker(getattr(pytest.mark, duration))
    if marker is not None and not {"any", BACKEND} & set(marker.args):
        item.add_marker(pytest.mark.skip(reason=f"needs the {marker.args[0]} backend"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each process of the suite one half of TensorFlow's tests first: they take longest."""
    halves = [item for item in items if item.path.name == "test_backends.py"]
    items[:] = [item for item in items if item not in halves]
    for number, half in enumerate(halves):  # each process begins with an equal share of the items
        items.insert(number * (len(items) + len(halves)) // len(halves), half)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Lets the garbage collector pass over what stays to the end: modules and tests."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escapes what is not UTF-8 in a report, which the processes of the suite could not send."""
    report = yield
    report.sections = [(name, _escaped(text)) for name, text in report.sections]
    if (text := str(report.longrepr or "")) != _escaped(text):
        report.longrepr = _escaped(text)
    return report


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.fixture(scope="session", autouse=True)
def _processes_start_at_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> None:
    """Prepares Keras as commands do, and lets their processes be forks; see `helpers.forked`."""
    import_keras(BACKEND)
    base = tmp_path_factory.getbasetemp()
    is_alone = worker_id == "master"
    base, owner = (base, os.getpid()) if is_alone else (base.parent, os.getppid())
    with FileLock(base / "python.lock"):
        sys.executable = forked.launcher(base / "python", owner)


@pytest.fixture
def heeds_sigint() -> Generator[None]:
    """Handles SIGINT as Python does, also in a pytest that a script started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with tests/golden/<name>, or writes it there with --update-golden."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            GOLDEN.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        assert path.is_file(), f"{path} is missing; write it with: pytest --update-golden"
        assert text == path.read_text(encoding="utf-8"), "if this is meant: pytest --update-golden"

    return compare


@pytest.fixture
def compiled() -> Generator[None]:
    """Lets TensorFlow trace and compile its functions, as users do."""
    if BACKEND != "tensorflow":
        yield
        return
    tf.config.run_functions_eagerly(False)
    yield
    tf.config.run_functions_eagerly(True)


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder with a tiny model, model.keras, exported to every format that can be made here.

    The processes of one session share it; no test writes to it.
    """
    from helpers import exported

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "exports"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_name("unfinished-exports")
            unfinished.mkdir()
            exported.write(unfinished).rename(folder)
    return folder
