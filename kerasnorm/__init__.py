"""A normalization lab for Keras 3: one small CNN, seven norms, two backends, honest numbers.

The names below are imported when they are first used, and Keras with them: `import kerasnorm`
alone costs nothing and leaves the choice of the Keras backend open.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kerasnorm.analysis.inputs import inputs
    from kerasnorm.analysis.landscape import landscape
    from kerasnorm.analysis.norm import explain, normalize
    from kerasnorm.analysis.statistics import statistics
    from kerasnorm.config import Config, resolve
    from kerasnorm.formats.archive import load_model
    from kerasnorm.inspection.layers import layer_table, receptive_field
    from kerasnorm.network import build_model
    from kerasnorm.training.api import fit
    from kerasnorm.training.run import Run

__all__ = [
    "Config",
    "Run",
    "__version__",
    "build_model",
    "explain",
    "fit",
    "inputs",
    "landscape",
    "layer_table",
    "load_model",
    "normalize",
    "receptive_field",
    "resolve",
    "statistics",
]

_HOMES = {
    "Config": "config",
    "Run": "training.run",
    "build_model": "network",
    "explain": "analysis.norm",
    "fit": "training.api",
    "inputs": "analysis.inputs",
    "landscape": "analysis.landscape",
    "layer_table": "inspection.layers",
    "load_model": "formats.archive",
    "normalize": "analysis.norm",
    "receptive_field": "inspection.layers",
    "resolve": "config",
    "statistics": "analysis.statistics",
}
_NEED_KERAS = {"network", "inspection.layers", "formats.archive"}


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
