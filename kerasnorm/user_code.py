"""Functions and classes of the user, named on the command line as `package.module:name`.

A file works too: `path/to/file.py:name`, relative to the current folder. Naming one runs its code,
as importing it does. A saved model that holds classes of such a module is opened only where the
module was named in this process, or in the environment variable KERASNORM_TRUST.
"""

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kerasnorm.errors import ConfigError, error_text

if TYPE_CHECKING:
    import keras

TRUST = "KERASNORM_TRUST"  # modules and .py files whose classes models may hold, as in PATH


def is_named(text: str) -> bool:
    """Returns whether a text names something of the user's code; `keras:NAME` does not."""
    module, _, name = text.rpartition(":")
    return module not in ("", "keras") and name.isidentifier()


def load(text: str, field: str) -> Any:
    """Returns what `package.module:name` or `path/to/file.py:name` names.

    Raises:
        ConfigError: It is not of that form; there is no such module, or no such name in it; or
            importing it raises an error.
    """
    if not is_named(text):
        raise ConfigError(
            f"{field}: expected package.module:name or file.py:name. Received: {text!r}"
        )
    module_name, _, name = text.rpartition(":")
    module = _imported(module_name, field)
    trust(module_name)
    if not hasattr(module, name):
        raise ConfigError(
            f"{field}: expected the name of a function or class of {module_name}. Received: {name}"
        )
    return getattr(module, name)


def load_trusted(text: str, field: str) -> Any:
    """Returns what `load` does where the module is trusted in this process already, else None."""
    return load(text, field) if text.rpartition(":")[0] in _trusted() else None


def trust(*modules: str) -> None:
    """Lets this process, and those that it starts, open models that hold classes of these modules.

    They are named, or given as the paths of .py files.
    """
    known = _trusted()
    os.environ[TRUST] = os.pathsep.join([*known, *(m for m in modules if m not in known)])


def _trusted() -> list[str]:
    return [name for name in os.environ.get(TRUST, "").split(os.pathsep) if name]


def classes() -> list[type]:
    """Returns the classes that the trusted modules define and that a saved model may hold.

    They are layers, and the initializers, regularizers and constraints of layers.

    Raises:
        ConfigError: One of the modules cannot be imported.
    """
    import keras

    kinds = (
        keras.Layer,
        keras.Initializer,
        keras.Regularizer,
        keras.constraints.Constraint,
    )
    found = []
    for name in _trusted():
        module = _imported(name, "trust")
        found += [
            kind
            for kind in vars(module).values()
            if inspect.isclass(kind)
            and issubclass(kind, kinds)
            and kind.__module__ == module.__name__
        ]
    return found


def check_class(layer: "keras.layers.Layer", field: str) -> None:
    """Makes sure that the class of a layer is found when a model that holds it is opened.

    Raises:
        ConfigError: It is defined in a function.
    """
    name = type(layer).__qualname__
    if "<locals>" in name:
        raise ConfigError(
            f"{field}: expected layers of classes at the top of their module, where those of a "
            f"saved model are looked for. Received: {layer.name!r} of {name}"
        )


def _imported(name: str, field: str) -> ModuleType:
    """Returns a module, or that of a .py file."""
    try:
        return _module(name)
    except (Exception, SystemExit) as error:  # it is the user's code, which may raise anything
        raise ConfigError(
            f"{field}: importing {name} raised {error_text(error)}. Expected a "
            "module, or the path of a .py file."
        ) from error


@functools.cache
def _module(name: str) -> ModuleType:
    if not name.endswith(".py"):
        with _searching(os.getcwd()):  # an installed command does not search the current folder
            return importlib.import_module(name)
    path = Path(name).absolute()
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None or not path.is_file():
        raise FileNotFoundError("there is no such file")
    module = importlib.util.module_from_spec(specification)
    known = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # as for any import: dataclasses look for their module there
    try:
        with _searching(str(path.parent)):
            specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    finally:
        if known is not None:  # a file may be named as a module is that others use
            sys.modules[path.stem] = known
    return module


@contextmanager
def _searching(folder: str) -> Iterator[None]:
    """Looks for modules in a folder first; afterwards last, for imports inside functions."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)
