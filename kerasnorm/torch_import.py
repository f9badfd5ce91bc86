"""Reads PyTorch weights of this network, whatever their names are, and makes a Keras model.

Kernels are matched by order, kernel size and the chain of channels, norms by order and shape.
"""

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import SKELETON, resolve
from kerasnorm.errors import ConfigError, CorruptFileError
from kerasnorm.formats.format import require
from kerasnorm.formats.safety import check_file
from kerasnorm.formats.safety.process import FileProcess
from kerasnorm.formats.safety.torch_files import read_safetensors
from kerasnorm.layers import is_instance_norm
from kerasnorm.network import build_model
from kerasnorm.norms import NORMS

Tensor = tuple[str, NDArray[Any]]
Group = list[Tensor]

# Sizes of the kernels in their order; the last is that of C10.
SIZES = [size for _, count, size in SKELETON for _ in range(count)] + [1]
# Names that authors give to a norm's tensors, and the position of each among Keras's weights.
PLACES = {
    "weight": 0,
    "gamma": 0,
    "scale": 0,
    "bias": 1,
    "beta": 1,
    "running_mean": 2,
    "moving_mean": 2,
    "running_var": 3,
    "moving_variance": 3,
}
MAX_KERNELS = 20  # among which the skeleton is looked for
IGNORED = ("num_batches_tracked",)

PICKLED = (".pth", ".pt", ".ckpt", ".bin", ".tar")  # that people give files of torch.save


def read_tensors(path: Path) -> Group:
    """Returns the named tensors of a PyTorch file, in its order.

    Raises:
        CorruptFileError: It is missing, damaged, too large, would run code, or holds no tensors.
        MissingPackageError: The package that reads it is not installed.
    """
    check_file(path)
    if path.suffix == ".safetensors":
        return by_numbers(sorted(read_safetensors(path)[0].items()))
    if path.suffix not in PICKLED:
        raise CorruptFileError(
            f"Expected a file of torch.save ({', '.join(PICKLED)}) or a .safetensors file. "
            f"Received: {path}"
        )
    require(("torch",), path.suffix)
    with FileProcess() as process, tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tensors.npz"
        names = process.do("read_tensors", path, seconds=120.0, out=out)
        with np.load(out, allow_pickle=False) as arrays:
            return [(name, arrays[str(place)]) for place, name in enumerate(names)]


def by_numbers(tensors: Sequence[Tensor]) -> Group:
    """Sorts tensors by the numbers in their names, and by words in the order in which they come."""
    pieces = [re.split(r"(\d+)", name) for name, _ in tensors]
    words = {word: n for n, word in enumerate(dict.fromkeys(w for ws in pieces for w in ws))}

    def key(place: int) -> list[int]:
        return [int(p) if p.isdecimal() else words[p] for p in pieces[place]]

    return [tensors[place] for place in sorted(range(len(tensors)), key=key)]


def _kernels(tensors: Iterable[Tensor]) -> Group:
    """Returns the kernels, (outputs, inputs, H, W); that of a dense layer has a size of 1."""
    return [
        (name, v[..., None, None] if v.ndim == 2 else v) for name, v in tensors if v.ndim in (2, 4)
    ]


def is_in_order(tensors: Iterable[Tensor]) -> bool:
    """Returns whether the kernels are those of the skeleton, in its order."""
    shapes = [value.shape for _, value in _kernels(tensors)]
    return [shape[2] for shape in shapes] == SIZES and all(
        before[0] == after[1] for before, after in pairwise(shapes)
    )


def sorted_by_words(path: Path, tensors: Group) -> list[str]:
    """Returns the names of kernels of one shape whose order neither the file nor numbers tell.

    A safetensors file does not keep the order of the modules; only numbers in the names do. So it
    is with the order of another file, if the network does not run its modules in it.
    """
    if path.suffix != ".safetensors" and is_in_order(tensors):
        return []
    shapes: dict[tuple[int, ...], dict[str, str]] = {}
    for name, value in _kernels(tensors):
        shapes.setdefault(value.shape, {}).setdefault(re.sub(r"\d+", "", name), name)
    return [name for names in shapes.values() if len(names) > 1 for name in names.values()]


@dataclass
class Imported:
    """A model made from PyTorch tensors."""

    model: keras.Model
    # Name of the tensor that each Keras weight was taken from.
    matched: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)  # names of the tensors that hold no weight


def import_tensors(
    tensors: Sequence[Tensor],
    options: Mapping[str, Any],
    *,
    image_size: tuple[int, int] = (32, 32),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    epsilon: float | None = None,
) -> Imported:
    """Returns the Keras model of a PyTorch state_dict of this skeleton.

    Args:
        tensors: Name and values of each tensor, in the order of the modules.
        options: Norm, recipe and other fields of the model's config; widths come from the tensors.
        image_size: Height and width of the images; element-affine norms override it.
        mean: Mean per channel that the training subtracted, of pixels from 0 to 1.
        std: Standard deviation per channel that the training divided by.
        epsilon: Epsilon of the norms, by default `kerasnorm.norms.EPSILON`.

    Raises:
        ConfigError: A tensor does not fit; the message names each.
    """
    ignored = [name for name, value in tensors if name.endswith(IGNORED) or value.ndim == 0]
    kept = [(name, value) for name, value in tensors if name not in ignored]
    kept = kept if is_in_order(kept) else by_numbers(kept)
    kernels = _chain(_kernels(kept))
    norms = [item for item in kept if item[1].ndim not in (2, 4)]
    options = dict(options)
    config = resolve(options).model
    elements = [value for _, value in norms if value.ndim == 3]
    if elements and "ln_affine" in NORMS[config.norm].fields:
        options["ln_affine"] = "element"
        image_size = (elements[0].shape[1], elements[0].shape[2])
    outputs = [value.shape[0] for _, value in kernels]
    model = build_model(
        **options | {"widths": outputs[:-1]},
        input_shape=(*image_size, kernels[0][1].shape[1]),
        classes=outputs[-1],
        mean=mean,
        std=std,
    )
    if epsilon is not None:
        for layer in model.layers:
            if hasattr(layer, "epsilon"):
                layer.epsilon = epsilon
    imported = Imported(model, ignored=ignored)
    _fill(imported, kernels, norms, config.norm)
    return imported


def _chain(kernels: Group) -> Group:
    """Returns the kernels in the order of the skeleton.

    The order given is kept where it fits; where it does not (files that sort by name), the first
    order in which every kernel takes the channels that the one before it gives.

    Raises:
        ConfigError: There is none.
    """
    best: list[int] = []

    def search(chosen: list[int]) -> list[int] | None:
        nonlocal best
        if len(chosen) > len(best):
            best = chosen
        if len(chosen) == len(SIZES):
            return chosen
        size, tried = SIZES[len(chosen)], set[tuple[int, ...]]()
        for place, (_, value) in enumerate(kernels):
            takes = kernels[chosen[-1]][1].shape[0] if chosen else value.shape[1]
            fits = value.shape[1:] == (takes, size, size) and place not in chosen
            # One of each shape: another of the same would fail the same way.
            if fits and value.shape not in tried and (found := search([*chosen, place])):
                return found
            tried.add(value.shape if fits else ())
        return None

    found = search([]) if len(kernels) <= MAX_KERNELS else None
    if found is None or len(kernels) != len(SIZES):
        raise ConfigError(_kernel_report(kernels, best))
    return [kernels[place] for place in found]


def _kernel_report(tensors: Group, fitting: list[int]) -> str:
    sizes = " ".join(f"{size}x{size}" for size in SIZES)
    expected = (
        f"Expected {len(SIZES)} kernels without bias, {sizes}, each taking the channels that the "
        f"one before it gives. Received: {len(tensors)}"
    )
    lines = [expected]
    for place, (name, value) in enumerate(tensors):
        fits = "fits" if place in fitting else "does not fit"
        lines.append(f"  {name} {tuple(value.shape)}: {fits}")
    return "\n".join(lines)


def _groups(tensors: Group, size: int) -> list[dict[int, Tensor]]:
    """Returns the tensors of each norm by their position among Keras's weights.

    The name before the last dot tells the module. Where the rest is no known name, every `size`
    tensors form a norm, in PyTorch's order: weight, bias, running mean, running variance.
    """
    by_module: dict[str, Group] = defaultdict(list)
    for name, value in tensors:
        by_module[name.rpartition(".")[0]].append((name, value))
    tails = {name.rpartition(".")[2] for name, _ in tensors}
    if tails <= {*PLACES}:
        return [
            {PLACES[name.rpartition(".")[2]]: (name, value) for name, value in group}
            for group in by_module.values()
        ]
    chunks = [tensors[start : start + size] for start in range(0, len(tensors), max(size, 1))]
    return [dict(enumerate(chunk)) for chunk in chunks]


def _as_keras(value: NDArray[Any]) -> NDArray[Any]:
    """Returns a norm's tensor in Keras's layout: (C,), or (C, H, W) as (H, W, C)."""
    return value.transpose(1, 2, 0) if value.ndim == 3 else value


def _fill(imported: Imported, kernels: Group, norms: Group, norm: str) -> None:
    """Sets the weights of the model; all that does not fit is reported together."""
    layers = [layer for layer in imported.model.layers if layer.weights]
    convolutions = [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)]
    size = max((len(layer.weights) for layer in layers if layer not in convolutions), default=0)
    groups = _groups(norms, size)
    remaining = iter(kernels)
    problems = []
    for layer in layers:
        if layer in convolutions:
            name, value = next(remaining)
            layer.set_weights([value.transpose(2, 3, 1, 0)])
            imported.matched[layer.weights[0].path] = name
            continue
        if not norms and is_instance_norm(layer):
            continue  # PyTorch's has no scale and shift by default: they stay 1 and 0.
        shape = tuple(layer.weights[0].shape)
        found = next((group for group in groups if _fits(group, shape, len(layer.weights))), None)
        if found is None:
            problems.append(f"  {layer.name} {shape}: no tensors of that shape are left")
            continue
        groups.remove(found)
        values = layer.get_weights()
        for place, (name, value) in found.items():
            values[place] = _as_keras(value)
            imported.matched[layer.weights[place].path] = name
        layer.set_weights(values)
    for group in groups:
        problems += [
            f"  {name} {tuple(value.shape)}: has no place" for name, value in group.values()
        ]
    if problems:
        raise ConfigError(
            f"The tensors do not fit norm={norm}; another --norm, --recipe or "
            "--norm-transitions may (its convolutions have no bias):\n" + "\n".join(problems)
        )


def _fits(group: dict[int, Tensor], shape: tuple[int, ...], count: int) -> bool:
    # Without scale and shift (affine=False) a batch norm still has its statistics.
    needed = set(range(count)) - ({0, 1} if count == 4 else set())
    is_whole = needed <= {*group} <= set(range(count))
    return is_whole and all(_as_keras(value).shape == shape for _, value in group.values())
