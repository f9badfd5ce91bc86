"""The laws of the house: no import cycles, light modules stay light, `--help` answers at once."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import kerasnorm

HOME = Path(kerasnorm.__file__).parent


def dotted(path):
    parts = path.relative_to(HOME.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


HEAVY = {"keras", "tensorflow", "torch", "jax", "numpy", "matplotlib", "PIL", "rich", "scipy"}
NAMES = {dotted(path) for path in HOME.rglob("*.py")}
LIGHT = ("errors", "files", "config", "norms", "runtime", "cli", "__init__", "__main__")


def modules():
    """Maps each module's dotted name to its syntax tree."""
    return {
        dotted(path): ast.parse(path.read_text(encoding="utf-8")) for path in HOME.rglob("*.py")
    }


def imported(tree, *, top_only):
    """Yields the dotted names that a module imports; `top_only` leaves out those in functions."""
    for node in _statements(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in NAMES else node.module


def _statements(tree):
    """Yields what runs when the module is imported; blocks for type checkers do not run."""
    for node in tree.body:
        is_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        yield from () if is_types else ast.walk(node) if isinstance(node, ast.If) else (node,)


def cycle(edges):
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_through_others():
    trees = modules()
    edges = {
        name: {target for target in imported(tree, top_only=True) if target in trees} - {name}
        for name, tree in trees.items()
    }
    assert cycle(edges) == []
    assert cycle({"a": {"b"}, "b": {"a"}}) != []


def test_light_modules_import_nothing_heavy_at_their_top():
    heavy = [
        f"{name} imports {target}"
        for name, tree in modules().items()
        if [*name.split("."), "__init__"][1] in LIGHT
        for target in imported(tree, top_only=True)
        if target.partition(".")[0] in HEAVY
    ]
    assert heavy == []


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, kerasnorm, kerasnorm.cli; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


def test_no_module_hides_a_public_name():
    """Importing a submodule sets its name on the package, where it would replace a function."""
    children = {name.split(".")[1] for name in NAMES if "." in name}
    assert "analysis" in children
    assert children & set(kerasnorm.__all__) == set()
