"""docs/kerasnorm.ipynb runs from top to bottom, shortened, on both backends."""

import ast
import importlib
import re
import sys
from pathlib import Path

import nbformat
import pytest

from kerasnorm.runtime import installed_backends

NOTEBOOK = Path(__file__).parent.parent / "docs" / "kerasnorm.ipynb"
SHORT = "DATA = 'shapes'\nIMAGES, TESTED, EPOCHS = 200, 40, 1\nSTEPS, POINTS, ROUNDS = 1, 3, 1\n"


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_outputs_are_committed_and_complete():
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 15
    assert not re.search(r"/(home|tmp|root|opt)/", str(outputs))


def test_its_parameters_are_those_that_the_test_shortens():
    (cell,) = [c for c in read().cells if "parameters" in c.metadata.get("tags", [])]
    names = re.findall(r"[A-Z]+", re.sub(r"#.*|\".*?\"", "", cell.source))
    assert names == re.findall(r"[A-Z]+", re.sub(r"'.*?'", "", SHORT))


def test_its_names_exist():
    cells = [cell.source for cell in read().cells if cell.cell_type == "code"]
    code = re.sub(r"^( *)%.*", r"\1pass", "\n".join(cells), flags=re.MULTILINE)
    known = {"kerasnorm": importlib.import_module("kerasnorm")}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("kerasnorm"):
            home = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                if not hasattr(home, name):
                    importlib.import_module(f"{node.module}.{name}")
                known[name] = getattr(home, name)
    calls = re.findall(r"\b(kerasnorm|plots|tables)\.([a-z_]+)\(", code)
    assert [call for call in calls if not hasattr(known[call[0]], call[1])] == []
    assert ("kerasnorm", "fit") in calls
    assert "explanation_text" in known


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's machinery
@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
def test_it_runs_from_top_to_bottom(backend, tmp_path, monkeypatch):
    if backend not in installed_backends():
        pytest.skip(f"{backend} is not installed")
    from nbclient import NotebookClient

    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    notebook = read()
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = SHORT
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.km = client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's machinery
def test_training_in_a_notebook_shows_its_progress(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    tiny = "data='shapes', train_size=60, test_size=20, batch_size=20, epochs=2, widths=[4] * 10"
    source = f"import kerasnorm\nrun = kerasnorm.fit({tiny}, plots=False, out='run')"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.km = client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute()
    (output,) = [o for o in notebook.cells[0].outputs if o.output_type == "display_data"]
    assert re.search(r"training .* 6/6 +epoch 2/2", output.data["text/plain"])
