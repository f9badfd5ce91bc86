"""The plan of the house: imports point only downwards, and the light floors stay light."""

import ast
from pathlib import Path

import kerasnorm

HOME = Path(kerasnorm.__file__).parent
FLOORS = (
    ("errors", "files", "interruptions", "keras_settings", "team"),
    ("config", "job", "receptive", "skeleton"),
    ("recipes",),
    ("runtime", "provenance"),
    ("data", "norms"),
    ("model",),
    ("analysis", "engines", "exchange"),
    ("callback_state", "checkpoints", "run", "loop", "train", "bench"),
    ("study",),
    ("tables", "texts", "plots", "console", "board", "findings", "report"),
    ("api", "lab", "understanding"),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {"keras", "tensorflow", "torch", "jax", "numpy", "matplotlib", "PIL", "rich"}
LIGHT = (
    "errors",
    "files",
    "interruptions",
    "team",
    "config",
    "job",
    "recipes",
    "receptive",
    "skeleton",
    "runtime",
    "provenance",
    "cli",
    "__init__",
    "__main__",
)


def modules():
    return {path.relative_to(HOME): ast.parse(path.read_text()) for path in HOME.rglob("*.py")}


def imported(tree, *, top_only=False):
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module == "kerasnorm":
                yield from (f"kerasnorm.{alias.name}" for alias in node.names)


def room(name):
    return name.parts[0].removesuffix(".py")


def test_every_room_has_a_floor():
    rooms = {room(name) for name in modules()} - {"__init__", "__main__"}
    assert rooms == set(FLOOR)


def test_imports_point_only_downwards():
    upward = [
        f"{name} imports {target}"
        for name, tree in modules().items()
        if room(name) in FLOOR
        for target in imported(tree)
        if target.startswith("kerasnorm.") and target.split(".")[1] in FLOOR
        if FLOOR[target.split(".")[1]] > FLOOR[room(name)]
    ]
    assert upward == []


def test_the_light_floors_import_nothing_heavy_at_their_top():
    heavy = [
        f"{name} imports {target}"
        for name, tree in modules().items()
        if room(name) in LIGHT
        for target in imported(tree, top_only=True)
        if target.partition(".")[0] in HEAVY
    ]
    assert heavy == []


def test_no_module_outgrows_its_room():
    sizes = {str(name): len((HOME / name).read_text().splitlines()) for name in modules()}
    assert {name: size for name, size in sizes.items() if size > 350} == {}
