"""Prints the operations of Keras's models and layers that `operations.toml` does not list.

`python scripts/operations.py torch` exports to `.pt2`, and `python scripts/operations.py
tensorflow` to SavedModel and ONNX; names after the backend choose models. Weights are random. Add
to the list what only computes. Of ONNX only the sets of operations are judged.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

APPLICATIONS = {
    "MobileNet": 64,
    "MobileNetV2": 64,
    "MobileNetV3Small": 64,
    "EfficientNetB0": 64,
    "EfficientNetV2B0": 64,
    "DenseNet121": 64,
    "ResNet50V2": 64,
    "Xception": 96,
    "NASNetMobile": 64,
    "InceptionV3": 96,
    "ConvNeXtTiny": 64,
    "VGG16": 64,
}
FORMATS = {"torch": ["torch"], "tensorflow": ["saved-model", "onnx"]}
UNARY = (
    "abs arccos arccosh arcsin arcsinh arctan arctanh ceil cos cosh erf erfinv exp exp2 expm1 "
    "floor isfinite log log1p log2 log10 logical_not negative reciprocal relu6 round rsqrt sign "
    "sin sinh sqrt square tan tanh zeros_like ones_like trunc nan_to_num"
)
ALONG = (
    "all any argmax argmin argsort cumprod cumsum flip logsumexp max mean median min prod softmax "
    "sort std sum var"
)
ACTIVATIONS = (
    "celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu linear "
    "log_sigmoid log_softmax mish relu relu6 selu sigmoid silu softmax soft_shrink softplus "
    "softsign sparse_plus sparse_sigmoid sparsemax squareplus tanh tanh_shrink threshold"
)
BINARY = "add subtract multiply divide floor_divide mod power maximum minimum arctan2 greater"


def _called(layer: Any, x: Any) -> Any:
    return layer([x, x])


def _computed(operation: Callable[[Any], Any], x: Any) -> Any:
    from keras import ops

    return ops.cast(operation(x), "float32")


def _combined(operation: Callable[[Any, Any], Any], x: Any) -> Any:
    from keras import ops

    return ops.cast(operation(x, x + 1.0), "float32")


def parts() -> dict[str, Callable[[Any], Any]]:
    """Returns what a model may hold, each applied to images (N, 16, 16, 4), by name."""
    from keras import layers, ops

    def rows(layer: Any) -> Callable[[Any], Any]:  # images as sequences
        return lambda x: layer(layers.Reshape((16, 64))(x))

    found: dict[str, Callable[[Any], Any]] = {
        f"{name} {padding} {strides}": layer(3, strides=strides, padding=padding)
        for name in ("MaxPooling2D", "AveragePooling2D", "DepthwiseConv2D")
        for padding in ("same", "valid")
        for strides in (1, 2)
        for layer in [getattr(layers, name)]
    }
    for name in (
        *("BatchNormalization", "LayerNormalization", "RMSNormalization", "UnitNormalization"),
        *("PReLU", "ELU", "LeakyReLU", "ReLU", "Softmax", "Flatten"),
        *("GlobalAveragePooling2D", "GlobalMaxPooling2D", "UpSampling2D", "ZeroPadding2D"),
        *("Cropping2D", "Normalization"),
    ):
        found[name] = getattr(layers, name)()
    for name in ("Attention", "AdditiveAttention"):
        found[name] = rows(partial(_called, getattr(layers, name)()))
    for name in ("Average", "Add", "Multiply", "Subtract", "Maximum", "Minimum", "Concatenate"):
        found[name] = partial(_called, getattr(layers, name)())
    for name in ("LSTM", "GRU", "SimpleRNN"):
        found[name] = rows(getattr(layers, name)(3))
    for name in ACTIVATIONS.split():
        found[f"activation {name}"] = layers.Activation(name)
    for name in UNARY.split():
        found[f"ops.{name}"] = partial(_computed, getattr(ops, name))
    for name in ALONG.split():
        found[f"ops.{name}"] = partial(_computed, partial(getattr(ops, name), axis=1))
    for name in BINARY.split():
        found[f"ops.{name}"] = partial(_combined, getattr(ops, name))
    return found | {
        "GroupNormalization": layers.GroupNormalization(2),
        "instance norm": layers.GroupNormalization(-1),
        "SpectralNormalization": layers.SpectralNormalization(layers.Conv2D(2, 3)),
        "Conv2D dilated": layers.Conv2D(4, 3, dilation_rate=2, padding="same"),
        "Conv2D strided": layers.Conv2D(4, 3, strides=2, padding="same"),
        "Conv2D grouped": layers.Conv2D(4, 3, groups=2),
        "Conv2D channels first": layers.Conv2D(4, 3, data_format="channels_first"),
        "Conv2DTranspose": layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
        "SeparableConv2D": layers.SeparableConv2D(4, 3, strides=2, padding="same"),
        "Conv1D": rows(layers.Conv1D(4, 3, padding="causal")),
        "Conv3D": lambda x: layers.Conv3D(2, 3)(layers.Reshape((16, 16, 4, 1))(x)),
        "MaxPooling1D": rows(layers.MaxPooling1D(2)),
        "AdaptiveAveragePooling2D": layers.AdaptiveAveragePooling2D(3),
        "AdaptiveMaxPooling2D": layers.AdaptiveMaxPooling2D(3),
        "UpSampling2D bilinear": layers.UpSampling2D(2, interpolation="bilinear"),
        "Resizing": layers.Resizing(9, 9),
        "Resizing nearest": layers.Resizing(9, 9, interpolation="nearest"),
        "Resizing crop": layers.Resizing(9, 7, crop_to_aspect_ratio=True),
        "Resizing bicubic": layers.Resizing(9, 9, interpolation="bicubic"),
        "CenterCrop": layers.CenterCrop(8, 8),
        "RandomCrop": layers.RandomCrop(8, 8),
        "Rescaling": layers.Rescaling([0.1, 0.2, 0.3, 0.4], -1),
        "Permute": layers.Permute((3, 1, 2)),
        "EinsumDense": layers.EinsumDense("nhwc,cd->nhwd", output_shape=(16, 16, 3)),
        "Embedding": lambda x: layers.Embedding(9, 3)(ops.cast(ops.clip(x, 0, 8), "int32")),
        "MultiHeadAttention": rows(lambda y: layers.MultiHeadAttention(2, 4)(y, y)),
        "GroupedQueryAttention": rows(lambda y: layers.GroupQueryAttention(4, 2, 1)(y, y)),
        "TimeDistributed": rows(layers.TimeDistributed(layers.Dense(3))),
        "Bidirectional": rows(layers.Bidirectional(layers.GRU(3))),
        "RepeatVector": lambda x: layers.RepeatVector(3)(layers.Flatten()(x)),
        "Dot": rows(lambda y: layers.Dot(2)([y, y])),
        "channels reversed": lambda x: x[..., ::-1],
        "a channel": lambda x: x[..., :1],
        "split": lambda x: ops.concatenate(ops.split(x, 2, axis=-1)[::-1], axis=-1),
        "chunked": lambda x: ops.stack(ops.unstack(x, axis=-1), axis=1),
        "matmul": lambda x: ops.matmul(x, ops.transpose(x, (0, 1, 3, 2))),
        "einsum": lambda x: ops.einsum("nhwc,nhwd->ncd", x, x),
        "roll": lambda x: ops.roll(x, 2, axis=1),
        "pad": lambda x: ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect"),
        "tile": lambda x: ops.tile(x, (1, 2, 1, 1)),
        "repeat": lambda x: ops.repeat(x, 2, axis=1),
        "take": lambda x: ops.take(x, [2, 1, 0], axis=-1),
        "one hot": lambda x: ops.one_hot(ops.cast(ops.clip(x, 0, 8), "int32"), 9),
        "top k": lambda x: ops.top_k(x, 2)[0],
        "broadcast": lambda x: (
            ops.broadcast_to(ops.mean(x, (1, 2, 3), keepdims=True), (1, 16, 16, 4)) + x
        ),
        "where": lambda x: ops.where(x > 1, x, 0.0),
        "moments": lambda x: ops.moments(x, axes=(1, 2))[1],
        "clip": lambda x: ops.clip(x, 0, 1),
        "norm": lambda x: ops.norm(x, axis=-1),
    }


def written(name: str, path: Path) -> None:
    """Writes a model of that name to a `.keras` file."""
    import keras
    from keras import layers

    if name in APPLICATIONS:
        size = APPLICATIONS[name]
        shape = (size, size, 3)
        make = getattr(keras.applications, name)
        model = make(weights=None, input_shape=shape, classes=10)
    else:
        image = keras.Input((16, 16, 4))
        output = layers.Dense(2)(layers.Flatten()(parts()[name](image)))
        model = keras.Model(image, output)
    model.save(path)


def unknown(format_name: str, source: Path, folder: Path) -> set[str]:
    """Returns the operations of an exported model that are not on the list."""
    from kerasnorm.formats import FORMATS, torch_program
    from kerasnorm.formats.safety import checks, pt2

    out = folder / f"model{FORMATS[format_name].suffix}"
    if format_name == "torch":
        torch_program.write_program(source, out)
        with zipfile.ZipFile(out) as archive:
            (member,) = (one for one in archive.namelist() if one.endswith("/models/model.json"))
            return pt2.unknown_operations(json.loads(archive.read(member)))
    FORMATS[format_name].write(source, out)
    if format_name == "saved-model":
        return checks.unknown_operations(checks.read_saved_model(out).meta_graphs[0])
    checks.check_onnx(out)
    return set()


def main() -> None:
    """Exports the models that the command line names, and prints what is not on the list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=("torch", "tensorflow"))
    parser.add_argument("--formats", nargs="*", default=None)
    parser.add_argument("names", nargs="*")
    given = parser.parse_intermixed_args()
    os.environ["KERAS_BACKEND"] = given.backend
    from kerasnorm import runtime

    runtime.start(given.backend, "cpu")
    warnings.simplefilter("ignore")  # the converters warn of each other
    formats = given.formats or FORMATS[given.backend]
    missing: set[str] = set()
    for name in given.names or [*APPLICATIONS, *parts()]:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "source.keras"
            for format_name in formats:
                try:
                    if not source.exists():
                        written(name, source)
                    found = unknown(format_name, source, Path(folder))
                except Exception as error:
                    lines = str(error).strip().splitlines() or [type(error).__name__]
                    print(f"{name}, {format_name}: {lines[0][:200]}", flush=True)
                    continue
                missing |= found
                if found:
                    print(f"{name}, {format_name}: {' '.join(sorted(found))}", flush=True)
    print(f"not on the list: {' '.join(sorted(missing)) or 'none'}")
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
