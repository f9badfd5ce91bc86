"""A normalization lab for Keras 3: one small CNN, seven norms, two backends, honest numbers.

The names below are imported when they are first used, and Keras with them: `import kerasnorm`
alone costs nothing and leaves the choice of the Keras backend open.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kerasnorm.analysis.layers import layer_table, receptive_field
    from kerasnorm.api import fit
    from kerasnorm.config import Config
    from kerasnorm.exchange.archive import load_model
    from kerasnorm.model import build_model
    from kerasnorm.recipes import resolve
    from kerasnorm.run import Run

__all__ = [
    "Config",
    "Run",
    "__version__",
    "build_model",
    "fit",
    "layer_table",
    "load_model",
    "receptive_field",
    "resolve",
]

_HOMES = {
    "Config": "config",
    "Run": "run",
    "build_model": "model",
    "fit": "api",
    "layer_table": "analysis.layers",
    "load_model": "exchange.archive",
    "receptive_field": "analysis.layers",
    "resolve": "recipes",
}
_NEED_KERAS = {"model", "analysis.layers", "exchange.archive"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    if home in _NEED_KERAS:
        from kerasnorm.runtime import select_backend

        select_backend()
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
