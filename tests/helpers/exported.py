"""A tiny model in every export format, made once a session."""

import numpy as np

from kerasnorm.config import Config, ModelConfig, resolve
from kerasnorm.errors import MissingPackageError
from kerasnorm.formats import FORMATS, check_formats
from kerasnorm.formats.archive import open_model, save_model
from kerasnorm.formats.export import Exporter
from kerasnorm.layers import custom_layers
from kerasnorm.network import build_model
from kerasnorm.norms import NORMS, normalization

SHAPE = (8, 8, 3)
WIDTHS = (4, 4, 4, 8, 8, 8, 4, 8, 8, 8)
NAMES = tuple("abcdefghij")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)


def network(norm="gn", **options):
    """Returns a tiny model whose norms no longer begin with ones and zeros."""
    model = build_model(norm, input_shape=SHAPE, widths=WIDTHS, **options)
    rng = np.random.default_rng(2)
    for variable in model.weights:
        if variable.name != "kernel":
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def stock_norms():
    """Names of the norms without a layer class of their own, which some formats refuse."""
    custom = tuple(custom_layers().values())
    made = {name: normalization(ModelConfig(norm=name), 4) for name in NORMS}
    return [name for name, layer in made.items() if not isinstance(layer, custom)]


def config() -> Config:
    return resolve({"norm": "gn", "widths": WIDTHS, "data": "shapes"})


def possible():
    """Names of the formats whose packages are installed."""
    found = []
    for name in FORMATS:
        try:
            check_formats([name])
        except MissingPackageError:
            continue
        found.append(name)
    return found


def write(folder):
    metadata = {"class_names": list(NAMES), "config": config().to_dict()}
    save_model(network("gn", weight_standardization=True), folder / "model.keras", metadata)
    with Exporter(open_model(folder / "model.keras"), folder / "exports", 0.5) as exporter:
        for name in possible():
            exporter.export(name)
    return folder


def path_of(folder, name):
    return folder / "exports" / f"model{FORMATS[name].suffix}"
