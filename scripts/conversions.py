"""Writes the tables of results/convert: `make conversions`, or `python scripts/conversions.py`.

Converts the networks of keras.applications to group normalization, of 32 groups at most, and folds
their batch norms. Weights are random, the statistics of batch norms are measured on noise and then
moved a little, and images have 96 pixels. TensorFlow computes, because Keras does not build
NASNetMobile on PyTorch.
"""

import csv
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np

from kerasnorm import convert_norm, fold_norms, recalibrate
from kerasnorm.conversion.result import Conversion
from kerasnorm.errors import ConfigError
from kerasnorm.inspection.outputs import probe_images

TABLES = Path(__file__).parent.parent / "results" / "convert"
NAMES = (
    *("MobileNet", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0"),
    *("ResNet50", "ResNet50V2", "DenseNet121", "Xception", "NASNetMobile", "InceptionV3"),
    *("ConvNeXtTiny", "VGG16"),
)


def application(name: str, dtype: str = "float32") -> keras.Model:
    """Returns a network with random weights, whose batch norms have nearly measured statistics."""
    keras.utils.set_random_seed(0)
    options = {"weights": None, "classes": 10, "classifier_activation": None}
    keras.config.set_dtype_policy(dtype)
    model = getattr(keras.applications, name)(input_shape=(96, 96, 3), **options)
    keras.config.set_dtype_policy("float32")
    rng = np.random.Generator(np.random.PCG64(0))
    for weight in model.weights:
        if weight.name in ("gamma", "beta"):
            low = 0.5 if weight.name == "gamma" else -0.5
            weight.assign(rng.uniform(low, low + 1, weight.shape))
    with suppress(ConfigError):  # there is no batch norm
        model = recalibrate(model, probe_images((96, 96, 3), 16))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            mean, variance = (np.array(w) for w in (layer.moving_mean, layer.moving_variance))
            layer.moving_mean.assign(mean + rng.uniform(-0.3, 0.3, mean.shape) * variance**0.5)
            layer.moving_variance.assign(variance * rng.uniform(0.7, 1.5, mean.shape))
    return model


def row(name: str, done: Conversion) -> dict[str, object]:
    """Returns what both tables say about a conversion."""
    assert done.multiply_adds is not None
    return {
        "network": name,
        "norms": len(done.layers),
        "parameters_before": done.parameters[0],
        "parameters_after": done.parameters[1],
        "multiply_adds_before": done.multiply_adds[0],
        "multiply_adds_after": done.multiply_adds[1],
        "difference": f"{done.difference:.1e}",
    }


def converted(model: keras.Model, name: str) -> dict[str, object]:
    """Returns the row of a network whose norms become group norms."""
    done = convert_norm(model, "gn", groups=32)
    taken = Counter(layer.groups for layer in done.layers)
    groups = "; ".join(f"{count} x {groups} groups" for groups, count in taken.most_common())
    return row(name, done) | {"groups": groups}


def folded(model: keras.Model, name: str) -> dict[str, object]:
    """Returns the row of a network whose batch norms are folded, with those that stay."""
    done = fold_norms(model)
    notes = [layer.note for layer in done.layers if layer.after == "kept"]
    reasons = Counter(note.partition("(")[2].partition(")")[0] or note for note in notes)
    kept = "; ".join(f"{count} behind {kind}" for kind, count in reasons.most_common())
    wide = fold_norms(application(name, "float64"))
    return row(name, done) | {
        "difference_in_float64": f"{wide.difference:.1e}",
        "folded": len(done.layers) - len(notes),
        "kept": kept,
    }


def main() -> None:
    """Writes both tables; a network that is refused has its reason in the last column."""
    TABLES.mkdir(parents=True, exist_ok=True)
    for file, convert in (("gn32.csv", converted), ("fold.csv", folded)):
        rows: list[dict[str, object]] = []
        for name in NAMES:
            try:
                rows.append(convert(application(name), name))
            except ConfigError as error:
                rows.append({"network": name, "refused": str(error)})
            print(rows[-1], flush=True)
        columns = list(dict.fromkeys(key for one in rows for key in one))
        with (TABLES / file).open("w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
