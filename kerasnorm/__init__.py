"""A normalization lab for Keras 3: one small CNN, seven norms, two backends, honest numbers.

The names below are imported when they are first used, and Keras with them: `import kerasnorm`
alone costs nothing and leaves the choice of the Keras backend open. Only where Keras would take
TensorFlow by default and TensorFlow is not installed, KERAS_BACKEND is set to a backend that is.
"""

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any

from kerasnorm.version import __version__ as __version__

if TYPE_CHECKING:
    from kerasnorm.analysis.inputs import inputs as inputs
    from kerasnorm.analysis.landscape import landscape as landscape
    from kerasnorm.analysis.norm import explain as explain
    from kerasnorm.analysis.norm import normalize as normalize
    from kerasnorm.analysis.robustness import robustness as robustness
    from kerasnorm.analysis.statistics import statistics as statistics
    from kerasnorm.config import Config as Config
    from kerasnorm.config import resolve as resolve
    from kerasnorm.conversion.folding import fold_norms as fold_norms
    from kerasnorm.conversion.norms import convert_norm as convert_norm
    from kerasnorm.conversion.recalibration import recalibrate as recalibrate
    from kerasnorm.formats.archive import load_model as load_model
    from kerasnorm.inspection.layers import layer_table as layer_table
    from kerasnorm.inspection.layers import receptive_field as receptive_field
    from kerasnorm.layers import portable as portable
    from kerasnorm.network import build_model as build_model
    from kerasnorm.study.study import compare as compare
    from kerasnorm.training.fit import fit as fit
    from kerasnorm.training.run import Run as Run

_HOMES = {
    "Config": "config",
    "Run": "training.run",
    "build_model": "network",
    "compare": "study.study",
    "convert_norm": "conversion.norms",
    "explain": "analysis.norm",
    "fit": "training.fit",
    "fold_norms": "conversion.folding",
    "inputs": "analysis.inputs",
    "landscape": "analysis.landscape",
    "layer_table": "inspection.layers",
    "load_model": "formats.archive",
    "normalize": "analysis.norm",
    "portable": "layers",
    "recalibrate": "conversion.recalibration",
    "receptive_field": "inspection.layers",
    "resolve": "config",
    "robustness": "analysis.robustness",
    "statistics": "analysis.statistics",
}
# Modules that import Keras at their top, and so need its backend chosen before.
_NEED_KERAS = {
    *("layers", "network", "inspection.layers", "formats.archive"),
    *("conversion.norms", "conversion.folding", "conversion.recalibration"),
}

if "KERAS_BACKEND" not in os.environ and importlib.util.find_spec("tensorflow") is None:
    from kerasnorm.runtime import name_an_installed_backend

    name_an_installed_backend()

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604  (the keys are strings)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    if home in _NEED_KERAS:
        from kerasnorm.runtime import import_keras

        import_keras()
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
