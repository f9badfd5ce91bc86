"""The laws of the house: no import cycles, light modules, imports without effects, documentation.

`--help` and `import kerasnorm` answer at once because they import nothing heavy; no test takes the
time, which a busy machine would decide.
"""

import ast
import dataclasses
import functools
import inspect
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import kerasnorm
from kerasnorm.cli import app

HOME = Path(kerasnorm.__file__).parent


def dotted(path):
    parts = path.relative_to(HOME.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


HEAVY = {"keras", "tensorflow", "torch", "jax", "numpy", "matplotlib", "PIL", "rich", "scipy"}
NAMES = {dotted(path) for path in HOME.rglob("*.py")}
LIGHT = ("errors", "files", "config", "norms", "runtime", "cli", "__init__", "__main__")


@functools.cache
def modules():
    """Maps each module's dotted name to its syntax tree."""
    return {
        dotted(path): ast.parse(path.read_text(encoding="utf-8")) for path in HOME.rglob("*.py")
    }


def imported(tree, *, top_only=False):
    """Yields the dotted names that a module imports, but for those that only its types need.

    `top_only` leaves out what its functions import when they are called.
    """
    for node in _statements(tree) if top_only else _code(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in NAMES else node.module


def _statements(tree):
    """Yields what runs when the module is imported; blocks for type checkers do not run."""
    for node in tree.body:
        yield from _code(node) if isinstance(node, ast.If) else (node,)


def _code(tree):
    """Yields all nodes of a tree outside of blocks for type checkers."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        return
    yield tree
    for node in ast.iter_child_nodes(tree):
        yield from _code(node)


def cycle(edges):
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_through_others():
    # Also not when a function is called: an import in one would only hide the cycle.
    trees = modules()
    edges = {
        name: {target for target in imported(tree) if target in trees} - {name}
        for name, tree in trees.items()
    }
    assert cycle(edges) == []
    assert cycle({"a": {"b"}, "b": {"a"}}) != []


def test_no_folder_imports_itself_through_others():
    """Of the package's folders and the modules beside them, each lies above what it imports."""
    trees = modules()
    edges = {}
    for name, tree in trees.items():
        room = ".".join(name.split(".")[:2])
        targets = {".".join(x.split(".")[:2]) for x in imported(tree) if x in trees}
        edges.setdefault(room, set()).update(targets - {room})
    assert cycle(edges) == []


def test_light_modules_import_nothing_heavy_at_their_top():
    heavy = [
        f"{name} imports {target}"
        for name, tree in modules().items()
        if [*name.split("."), "__init__"][1] in LIGHT
        for target in imported(tree, top_only=True)
        if target.partition(".")[0] in HEAVY
    ]
    assert heavy == []


def loaded_after(code):
    """Returns the names of all modules that a fresh Python has imported after some code."""
    code = f"import sys\n{code}\nprint(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_importing_the_package_imports_nothing_heavy():
    assert HEAVY & loaded_after("import kerasnorm, kerasnorm.cli") == set()
    assert "numpy" in loaded_after("import kerasnorm.data")


def test_help_imports_nothing_heavy():
    code = (
        "from kerasnorm.cli import app\n"
        "for words in ([], *([name] for name in app.commands)):\n"
        "    app([*words, '--help'], standalone_mode=False)"
    )
    loaded = loaded_after(code)
    assert "kerasnorm.cli.training" in loaded
    assert HEAVY & loaded == set()


def acts(node):
    """Returns whether a statement at a module's top changes something outside of the module."""
    match node:
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.With() | ast.Delete():
            return True
        case ast.Assign(targets=targets):
            return any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets)
        case ast.If(test=test):
            is_guard = ast.unparse(test) in ("TYPE_CHECKING", "__name__ == '__main__'")
            return not is_guard and any(map(acts, [*node.body, *node.orelse]))
        case ast.For():
            return any(map(acts, node.body))
    return False


# `import kerasnorm; import keras` must work where only torch is installed; see the decisions.
ALLOWED = ("app.add_command(", "name_an_installed_backend()")


def test_importing_a_module_changes_nothing():
    found = [
        f"{name}: {ast.unparse(node)}"
        for name, tree in modules().items()
        for node in tree.body
        if acts(node) and not any(call in ast.unparse(node) for call in ALLOWED)
    ]
    assert found == []
    assert acts(ast.parse("os.environ['A'] = '1'").body[0])
    assert acts(ast.parse("keras.config.disable()").body[0])


PUBLIC = sorted(set(kerasnorm.__all__) - {"__version__"})


def test_no_module_hides_a_public_name():
    """Importing a submodule sets its name on the package, where it would replace a function."""
    children = {name.split(".")[1] for name in NAMES if "." in name}
    assert "analysis" in children
    assert children & set(PUBLIC) == set()


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented(name):
    thing = getattr(kerasnorm, name)
    doc = inspect.getdoc(thing)
    if inspect.isclass(thing):
        missing = [
            field.name for field in dataclasses.fields(thing) if f"{field.name}: " not in doc
        ]
        assert missing == []
        assert "Attributes:" in doc
        return
    parameters = inspect.signature(thing).parameters
    described = doc.partition("Args:\n")[2]
    assert [name for name in parameters if f"{name}: " not in described] == []
    assert doc.startswith("Returns") or "Returns:\n" in doc
    assert "Raises:\n" in doc


@pytest.mark.parametrize("name", [name for name, one in app.commands.items() if not one.hidden])
def test_a_command_has_help_with_an_example(name):
    assert f"Example: kerasnorm {name}" in (app.commands[name].help or "")
