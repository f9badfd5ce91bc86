"""What all tests share: the backend, and golden files.

`pytest --update-golden` writes the golden files anew; look at the difference before you keep it.
"""

import os
from collections.abc import Callable
from pathlib import Path

# Keras and matplotlib read these when they are imported, which the tests do.
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests train tiny nets, which threads only slow down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="Write the golden files anew.",
    )


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


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, model.keras, exported to every format that can be made here."""
    from helpers import exported

    return exported.write(tmp_path_factory.mktemp("exports"))
