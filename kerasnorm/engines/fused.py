"""Norms computed together with the activation, dropout and residual add beside them, on CPUs.

Apart, each of them reads and writes every image once in the forward pass and twice in the backward
pass. `fused.cpp` does all in one go while an image is in the cache. It is compiled at the
first use, for this processor, where there is a C++ compiler; without one the parts are computed one
after the other.

This module finds what can be computed together, and compiles the source; each backend calls it in a
module of the same name.
"""

import hashlib
import logging
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import keras
from keras import layers

from kerasnorm.files import file_lock, make_folder
from kerasnorm.runtime import cache_folder, cpp_compiler

logger = logging.getLogger(__name__)

Name = TypeVar("Name", bound=Hashable)  # of a tensor of a graph

SOURCE = Path(__file__).with_suffix(".cpp")
# A product and a sum may be contracted. Sums are not reordered, and NaN stays NaN.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math")
PATIENCE = 300.0  # seconds that another process may compile
ACTIVATIONS = ("linear", "relu", "relu6", "silu")  # by their number in the source


class Compiled(NamedTuple):
    """A compiled source."""

    opened: Any  # what it was opened as
    # Tells it from what another source, compiler or processor gives; norms that are computed with
    # the same one have the same bits.
    digest: str


def compiled(
    open_: Callable[[Path], Any],
    source: Path = SOURCE,
    flags: tuple[str, ...] = (),
    links: tuple[str, ...] = (),
) -> Compiled | None:
    """Returns a compiled source, from the cache if it is there; None where it cannot be used.

    `open_` opens the shared library, or raises OSError. `source` is `SOURCE` or includes it; the
    flags come beside `FLAGS`, the links are those of the linker.
    """
    compiler = cpp_compiler()
    if sys.platform != "linux" or compiler is None:
        return None
    try:
        digest = _digest(compiler, source, (*flags, *links))
        return Compiled(open_(_compile(compiler, digest, source, flags, links)), digest)
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        words = next((line for line in lines if "error" in line), (lines or ["no reason given"])[0])
        logger.warning(
            "Norms are computed apart from their activations, which is slower, because "
            f"{source.name} cannot be compiled and used here: {words}"
        )
        return None


def _digest(compiler: str, source: Path, flags: tuple[str, ...]) -> str:
    version = subprocess.run(  # noqa: S603
        [compiler, "--version"], capture_output=True, text=True, check=True
    ).stdout
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    cpu = next((fact for fact in facts if fact.startswith(("flags", "Features"))), "")
    texts = (path.read_text(encoding="utf-8") for path in dict.fromkeys((SOURCE, source)))
    # Folders of headers and libraries are those of an environment, and say nothing of the bits.
    chosen = [flag for flag in flags if not flag.startswith(("-I", "-L"))]
    parts = (*texts, *FLAGS, *chosen, version, platform.machine(), cpu)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _compile(
    compiler: str, digest: str, source: Path, flags: tuple[str, ...], links: tuple[str, ...]
) -> Path:
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache_folder() / "extensions")
    path = folder / f"kerasnorm-{digest}.so"
    if path.is_file():
        return path
    make_folder(folder)
    with file_lock(path.with_suffix(".lock"), PATIENCE), tempfile.TemporaryDirectory() as place:
        if not path.is_file():
            logger.info(f"Compiling {source.name} for this processor, once.")
            target = f"{place}/{path.name}"
            include = f"-I{SOURCE.parent}"
            objects = [*FLAGS, *flags, include, "-fopenmp", "-fPIC", "-c", str(source)]
            for words in (
                [*objects, "-o", f"{target}.o"],
                ["-shared", f"{target}.o", *links, "-o", target],
            ):
                subprocess.run(  # noqa: S603
                    [compiler, *words], capture_output=True, text=True, check=True
                )
            partial = path.with_suffix(f".{secrets.token_hex(4)}")
            shutil.copyfile(target, partial)
            partial.replace(path)
    return path


def activation_name(layer: Any) -> str:
    """Returns which of `ACTIVATIONS` a layer applies; "" for another or none."""
    if type(layer) is layers.ReLU:
        is_plain = (layer.negative_slope, layer.threshold) == (0, 0)
        return {None: "relu", 6: "relu6"}.get(layer.max_value, "") if is_plain else ""
    if type(layer) is layers.Activation:
        name = getattr(layer.activation, "__name__", "")
        is_own = layer.activation is getattr(keras.activations, name, None)
        return name if is_own and name in ACTIVATIONS[1:] else ""
    return ""


class Call(NamedTuple, Generic[Name]):
    """A call of a graph, as far as joining calls goes."""

    sources: Sequence[Name]  # names of the tensors that it reads
    targets: Sequence[Name]  # names of those that it writes
    is_norm: bool = False  # whether it is a norm that can be computed together with its neighbours
    activation: str = ""  # which of `ACTIVATIONS` it applies; "" for none
    is_dropout: bool = False  # whether it is a dropout of which the dropped positions are known
    is_add: bool = False  # whether it adds its inputs


class Chain(NamedTuple, Generic[Name]):
    """Calls that are computed together: residual + dropout(after(norm(before(x))))."""

    calls: tuple[int, ...]  # their places in the graph, in their order
    norm: int  # place of the norm
    before: str  # name of the activation before it; "" for none
    after: str  # name of the activation after it; "" for none
    dropout: int | None  # place of the dropout; None for none
    sources: tuple[Name, ...]  # names of x and, with an add at the end, of the residual


def chains(calls: Sequence[Call[Name]], readers: Counter[Name]) -> list[Chain[Name]]:
    """Joins each norm with the activation before or after it, and the dropout and add after them.

    What lies between them must have no other reader. Each call comes after those whose outputs it
    reads. `readers` counts how often each tensor is read, the outputs of the graph once more.
    """
    made = {call.targets[0]: at for at, call in enumerate(calls) if len(call.targets) == 1}
    read = {source: at for at, call in enumerate(calls) for source in call.sources}
    taken: set[int] = set()
    found = []

    def usable(neighbours: dict[Name, int], name: Name) -> int | None:
        """Returns the call that makes or reads a tensor, if it may be joined across it."""
        at = neighbours.get(name)
        return at if readers[name] == 1 and at not in taken else None

    for place, norm in enumerate(calls):
        if not norm.is_norm:
            continue
        chain, before, after, dropout = [place], "", "", None
        residual: list[Name] = []
        first = usable(made, norm.sources[0])
        if first is not None and calls[first].activation:
            chain, before = [first, place], calls[first].activation
        follower = usable(read, norm.targets[0])
        if not before and follower is not None and calls[follower].activation:
            chain.append(follower)
            after = calls[follower].activation
        follower = usable(read, calls[chain[-1]].targets[0])
        if follower is not None and calls[follower].is_dropout:
            chain.append(follower)
            dropout = follower
        last = calls[chain[-1]].targets[0]
        add = usable(read, last)
        if add is not None and calls[add].is_add and len(calls[add].sources) == 2:
            chain.append(add)
            residual = [name for name in calls[add].sources if name != last]
        taken |= set(chain)
        sources = (calls[chain[0]].sources[0], *residual)
        found.append(Chain(tuple(chain), place, before, after, dropout, sources))
    return found
