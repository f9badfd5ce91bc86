"""Functions and classes of the user, named on the command line as `package.module:name`.

A file works too: `path/to/file.py:name`, relative to the current folder. Naming one runs its code,
as importing it does.
"""

import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from kerasnorm.errors import ConfigError


def is_named(text: str) -> bool:
    """Returns whether a text names something of the user's code."""
    module, colon, name = text.rpartition(":")
    return bool(colon and module) and name.isidentifier()


def load(text: str, field: str) -> Any:
    """Returns what `package.module:name` or `path/to/file.py:name` names.

    Args:
        text: The name. Modules are looked for in the current folder too.
        field: Name of the config field that holds it, for the messages.

    Raises:
        ConfigError: There is no such module or name in it, or importing it raises an error.
    """
    module_name, _, name = text.rpartition(":")
    try:
        module = _module(module_name)
    except Exception as error:  # it is the user's code, which may raise anything
        raise ConfigError(
            f"{field}: importing {module_name} raised {type(error).__name__}: {error}. Expected a "
            "module, or the path of a .py file, before the colon."
        ) from error
    if not hasattr(module, name):
        raise ConfigError(
            f"{field}: expected the name of a function or class of {module_name}. Received: {name}"
        )
    return getattr(module, name)


@functools.cache
def _module(name: str) -> ModuleType:
    if not name.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(os.getcwd())
    path = Path(name)
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None or not path.is_file():
        raise FileNotFoundError("there is no such file")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
