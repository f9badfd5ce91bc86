"""A state dict in a safetensors file, with a plain PyTorch module beside it, and the way back.

The file's metadata holds the Keras config, which makes it a whole model without running the module.
Nothing of a model enters the module's source but numbers and names that are plain identifiers.
"""

import json
import keyword
import re
import runpy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnorm.errors import ConfigError, CorruptFileError, described
from kerasnorm.formats import archive, safety
from kerasnorm.formats.format import Format, Opened, fixed_sizes

if TYPE_CHECKING:
    import keras
    from numpy.typing import NDArray

CONFIG = "keras_config"
WEIGHTS = ("weight", "bias", "running_mean", "running_var")
# An expression for a layer's output, from the names of the layer and of its inputs; and the line
# that makes the layer in __init__ ("" where it has no state).
Emitted = tuple[str, str]

_ACTIVATIONS = {"leaky_relu": "F.leaky_relu({}, 0.2)"} | {
    name: f"F.{name}({{}})" for name in ("relu", "elu", "gelu", "silu", "mish")
}
TEMPLATE = '''"""A Keras model as a PyTorch module, written by kerasnorm. It needs nothing but torch.

    from safetensors.torch import load_file

    model = Model()
    model.load_state_dict(load_file("{weights}"))
    logits = model.eval()(pixels)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Model(nn.Module):
    """Classifies images of {height}x{width} pixels with {channels} channels."""

    def __init__(self) -> None:
        super().__init__()
{layers}

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns logits (N, {classes}) for raw pixels (N, {height}, {width}, {channels}), 0 to 255."""
        x = pixels.float().permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
{forward}
        return x
'''  # noqa: E501


def write(source: Path, out: Path) -> None:
    """Writes the tensors of a `.keras` file's model to `out` and its module beside them (`.py`).

    Raises:
        ConfigError: The model has a layer that no module can be written for.
    """
    import numpy as np
    from safetensors.numpy import save_file

    model = archive.load_model(source)
    module, tensors = generate(model, out.name)
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(contiguous, out, metadata={CONFIG: model.to_json()})
    out.with_suffix(".py").write_text(module, encoding="utf-8")


def load(path: Path) -> "keras.Model":
    """Returns the Keras model of a file that `write` made.

    Raises:
        CorruptFileError: It is damaged, not safe to open, or only tensors.
    """
    from kerasnorm.formats.safety.torch_files import read_safetensors

    tensors, metadata = read_safetensors(path)
    if CONFIG not in metadata:
        raise CorruptFileError(
            f"{path} holds tensors without a model. Make a model of them: kerasnorm import-torch"
        )
    with safety.reading(path):
        model = archive.model_from_config(path, json.loads(metadata[CONFIG]))
        _, expected = generate(model, path.name)
        if {*expected} != {*tensors}:
            raise ValueError(f"{sorted({*expected} ^ {*tensors})[0]} is missing or too many")
        for layer in model.layers:
            names = WEIGHTS[: len(layer.weights)]
            values = [tensors[f"{layer.name}.{name}"] for name in names]
            axes = {4: (2, 3, 1, 0), 3: (1, 2, 0), 1: (0,)}
            layer.set_weights([value.transpose(axes[value.ndim]) for value in values])
    return model


def open_file(path: Path) -> Opened:
    """Opens the module beside a file that this program has just written: it runs the source."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    model = runpy.run_path(str(path.with_suffix(".py")))["Model"]()
    model.load_state_dict(load_file(path))
    model.eval()
    with safe_open(path, "pt") as file:
        first = json.loads(file.metadata()[CONFIG])["config"]["layers"][0]["config"]
    call = torch.inference_mode()(lambda batch: model(torch.from_numpy(batch)).numpy())
    return Opened(call, fixed_sizes(first["batch_shape"]), "float32", first["name"])


def generate(model: Any, weights: str) -> "tuple[str, dict[str, NDArray[Any]]]":
    """Returns the source of a PyTorch module and its state_dict, named as the Keras layers are.

    `weights` is the name of the file of tensors, for the source's docstring.

    Raises:
        ConfigError: It has a layer that is not written here, or a name that Python does not take.
    """
    writer = _Writer()
    writer.walk(model)
    height, width, channels = model.input_shape[1:]
    source = TEMPLATE.format(
        weights=re.sub(r"[^\w. -]", "_", weights),
        layers="\n".join(f"        {line}" for line in writer.layers),
        forward="\n".join(f"        {line}" for line in writer.forward),
        height=height,
        width=width,
        channels=channels,
        classes=model.output_shape[-1],
    )
    return source, writer.tensors


class _Writer:
    """Collects the lines and tensors of one model."""

    def __init__(self) -> None:
        self.layers: list[str] = []
        self.forward: list[str] = []
        self.tensors: dict[str, NDArray[Any]] = {}

    def walk(self, model: Any) -> None:
        """Writes every call of the model's graph, in order."""
        from kerasnorm.inspection.graph import functional_graph, nodes

        calls = [node for node in nodes(functional_graph(model)) if node.input_tensors]
        uses = Counter(id(tensor) for node in calls for tensor in node.input_tensors)
        names = {id(tensor): "x" for tensor in model.inputs}
        made = set()
        for place, node in enumerate(calls):
            layer = node.operation
            inputs = [names[id(tensor)] for tensor in node.input_tensors]
            _check_name(layer.name)
            if layer.name in made:
                raise ConfigError(f"{layer.name}: a layer that is used twice cannot be written.")
            made.add(layer.name)
            kind = type(layer).__name__
            if kind not in _EMITTERS:
                raise ConfigError(
                    f"{layer.name}: a layer of type {kind} cannot be written as a state dict; "
                    f"expected one of {', '.join(sorted(_EMITTERS))}. Use --format torch."
                )
            expression, line = _EMITTERS[kind](self, layer, inputs, node)
            output = node.outputs[0]
            following = calls[place + 1].input_tensors if place + 1 < len(calls) else [output]
            is_next = any(tensor is output for tensor in following)
            names[id(output)] = "x" if uses[id(output)] <= 1 and is_next else f"x{place}"
            if line:
                self.layers.append(f"self.{layer.name} = {line}")
            if expression != names[id(output)]:
                self.forward.append(f"{names[id(output)]} = {expression}")

    def rescaling(self, layer: Any, inputs: list[str], node: Any) -> Emitted:
        """Per-channel scale and offset, as constants of the source."""
        import numpy as np

        for name in ("scale", "offset"):
            values = np.ravel(np.asarray(getattr(layer, name), np.float32)).tolist()
            tensor = f"torch.tensor({values}).view(1, -1, 1, 1)"
            buffer = f"{layer.name}_{name}"
            self.layers.append(f'self.register_buffer("{buffer}", {tensor}, persistent=False)')
        return f"{inputs[0]} * self.{layer.name}_scale + self.{layer.name}_offset", ""

    def conv(self, layer: Any, inputs: list[str], node: Any) -> Emitted:
        """A convolution, stride 1, padding same."""
        height, width = layer.kernel_size
        is_plain = layer.strides == (1, 1) and layer.dilation_rate == (1, 1) and layer.groups == 1
        is_same = layer.padding == "same" or height * width == 1
        if not is_plain or not is_same or (height * width) % 2 == 0:
            raise ConfigError(f"{layer.name}: expected stride 1, padding same, an odd kernel.")
        channels = node.input_tensors[0].shape[-1]
        kernel = layer.get_weights()[0]
        self.tensors[f"{layer.name}.weight"] = kernel.transpose(3, 2, 0, 1)
        if layer.use_bias:
            self.tensors[f"{layer.name}.bias"] = layer.get_weights()[1]
        padding = f", padding={(height // 2, width // 2)}" if height * width > 1 else ""
        options = f"{(int(height), int(width))}{padding}, bias={bool(layer.use_bias)}"
        line = f"nn.Conv2d({channels}, {int(layer.filters)}, {options})"
        return self.activated(layer, f"self.{layer.name}({inputs[0]})"), line

    def activated(self, layer: Any, expression: str) -> str:
        """Returns an expression with the activation of a layer."""
        name = getattr(layer.activation, "__name__", None) or described(layer.activation)
        if name == "linear":
            return expression
        if name not in _ACTIVATIONS:
            raise ConfigError(f"{layer.name}: the activation {name} cannot be written.")
        return _ACTIVATIONS[name].format(expression)

    def batch_norm(self, layer: Any, inputs: list[str], node: Any) -> Emitted:
        """Batch normalization, with its moving statistics."""
        import numpy as np

        self._keep(layer, WEIGHTS)
        counter = f"{layer.name}.num_batches_tracked"
        self.tensors[counter] = np.zeros((), np.int64)
        channels = node.input_tensors[0].shape[-1]
        line = f"nn.BatchNorm2d({channels}, eps={float(layer.epsilon)})"
        return f"self.{layer.name}({inputs[0]})", line

    def group_norm(self, layer: Any, inputs: list[str], node: Any) -> Emitted:
        """Group, layer (one group) and instance (one group per channel) normalization."""
        self._keep(layer, ("weight", "bias"))
        channels = node.input_tensors[0].shape[-1]
        groups = channels if layer.groups == -1 else int(layer.groups)
        line = f"nn.GroupNorm({groups}, {channels}, eps={float(layer.epsilon)})"
        return f"self.{layer.name}({inputs[0]})", line

    def layer_norm(self, layer: Any, inputs: list[str], node: Any) -> Emitted:
        """Layer normalization over all of an image, or over the channels of each pixel."""
        _, height, width, channels = node.input_tensors[0].shape
        self._keep(layer, ("weight", "bias"))
        axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
        if sorted(axis % 4 for axis in axes) == [1, 2, 3]:
            shape = f"({channels}, {height}, {width})"
            for part in ("weight", "bias"):
                name = f"{layer.name}.{part}"
                self.tensors[name] = self.tensors[name].transpose(2, 0, 1)
            expression = f"self.{layer.name}({inputs[0]})"
        else:
            shape, expression = f"{channels}", self._per_pixel(layer, inputs)
        return expression, f"nn.LayerNorm({shape}, eps={float(layer.epsilon)})"

    def rms_norm(self, layer: Any, inputs: list[str], node: Any) -> Emitted:
        """Root mean square normalization over the channels of each pixel."""
        self._keep(layer, ("weight",))
        channels = node.input_tensors[0].shape[-1]
        line = f"nn.RMSNorm({channels}, eps={float(layer.epsilon)})"
        return self._per_pixel(layer, inputs), line

    def _per_pixel(self, layer: Any, inputs: list[str]) -> str:
        return f"self.{layer.name}({inputs[0]}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)"

    def _keep(self, layer: Any, names: tuple[str, ...]) -> None:
        weights = layer.get_weights()
        if len(weights) != len(names):
            raise ConfigError(f"{layer.name}: expected {len(names)} weights, scale and shift too.")
        for name, value in zip(names, weights, strict=True):
            self.tensors[f"{layer.name}.{name}"] = value

    def pool(self, layer: Any, inputs: list[str], node: Any) -> Emitted:
        """A max or average pooling."""
        if layer.padding != "valid" or layer.strides != layer.pool_size:
            raise ConfigError(f"{layer.name}: expected padding valid and strides of the pool.")
        function = "max_pool2d" if type(layer).__name__ == "MaxPooling2D" else "avg_pool2d"
        return f"F.{function}({inputs[0]}, {tuple(map(int, layer.pool_size))})", ""

    def flatten(self, layer: Any, inputs: list[str], node: Any) -> Emitted:
        """Flattening of single pixels, whose order does not depend on the layout."""
        if tuple(node.input_tensors[0].shape[1:3]) != (1, 1):
            raise ConfigError(f"{layer.name}: expected one pixel to flatten.")
        return f"{inputs[0]}.flatten(1)", ""


def _check_name(name: str) -> None:
    from torch import nn

    is_name = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and not keyword.iskeyword(name)
    if not is_name or hasattr(nn.Module(), name):  # such as "forward" and "type"
        raise ConfigError(
            f"A layer named {name!r} cannot be written as a state dict, whose module has an "
            "attribute for each layer, beside those of every nn.Module. Use --format torch, or "
            "rename the layer."
        )


_EMITTERS: dict[str, Callable[[_Writer, Any, list[str], Any], Emitted]] = {
    "Rescaling": _Writer.rescaling,
    "Conv2D": _Writer.conv,
    "Activation": lambda writer, layer, x, node: (writer.activated(layer, x[0]), ""),
    "BatchNormalization": _Writer.batch_norm,
    "GroupNormalization": _Writer.group_norm,
    "LayerNormalization": _Writer.layer_norm,
    "RMSNormalization": _Writer.rms_norm,
    "Dropout": lambda writer, layer, x, node: (x[0], ""),
    "SpatialDropout2D": lambda writer, layer, x, node: (x[0], ""),
    "Add": lambda writer, layer, x, node: (" + ".join(x), ""),
    "Average": lambda writer, layer, x, node: (f"({' + '.join(x)}) / {len(x)}", ""),
    "MaxPooling2D": _Writer.pool,
    "AveragePooling2D": _Writer.pool,
    "GlobalAveragePooling2D": lambda writer, layer, x, node: (
        f"{x[0]}.mean((2, 3), keepdim={bool(layer.keepdims)})",
        "",
    ),
    "Flatten": _Writer.flatten,
}

FORMAT = Format(
    name="state-dict",
    suffix=".safetensors",
    runtime="PyTorch module beside it",
    write=write,
    open=open_file,
    load=load,
    runs_code=True,
    modules=("safetensors", "torch"),
    companions=(".py",),
)
