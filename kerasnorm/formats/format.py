"""The record of a format, and a model file that is open in its runtime."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnorm.config import LOGGERS
from kerasnorm.errors import CorruptFileError, MissingPackageError
from kerasnorm.runtime import installed_backends

if TYPE_CHECKING:
    import keras
    import numpy as np
    from numpy.typing import NDArray

BATCH = 256


@dataclass(frozen=True)
class Opened:
    """A model file that is open in its runtime."""

    # Takes a batch of images (N, H, W, C) of `dtype` and returns its outputs (N, classes).
    call: "Callable[[NDArray[Any]], NDArray[Any]]"
    shape: tuple[int, ...]  # shape (N, H, W, C) of the input; 0 for a size that is not fixed
    dtype: str  # type of the input
    input_name: str  # name of the input, which tells whether images must be equalized
    # Scale and zero point of a quantized input, None for any other.
    quantization: tuple[float, int] | None = None

    def predict(self, images: "NDArray[np.uint8]") -> "NDArray[np.float32]":
        """Returns the outputs (N, classes) for raw images (N, H, W, C).

        A model whose batch is fixed receives batches of that size, the last filled up with zeros.
        """
        import numpy as np

        outputs = []
        fixed = self.shape[0]
        size = fixed or BATCH
        for start in range(0, len(images), size):
            batch = images[start : start + size].astype(np.float32)
            missing = max(fixed - len(batch), 0)
            batch = np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1))
            if self.quantization is not None:
                scale, zero = self.quantization
                limits = np.iinfo(self.dtype)
                batch = np.clip(np.rint(batch / scale) + zero, limits.min, limits.max)
            found = np.asarray(self.call(batch.astype(self.dtype)), np.float32)
            outputs.append(found[: len(found) - missing])
        return np.concatenate(outputs)


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of model files.

    Every exported model takes raw pixels as float32, (N, H, W, C) with N free, and returns what the
    Keras model returns.

    Attributes:
        name: Name, which `--format` takes.
        suffix: Suffix of the file, or of the folder, that holds the model: one dot, and of no other
            format, because it tells which format a file has.
        runtime: What opens it, in words, such as "LiteRT interpreter".
        write: Takes a `.keras` file of this program, whose model `archive.load_model` returns, and
            the path to write to.
        open: Checks a file and opens it in its runtime. Runs in a process of `safety.process`.
            Every error there becomes a `CorruptFileError` of one line.
        load: Checks a file and returns its Keras model, where Keras is what runs the format; None
            otherwise. `open` is needed too.
        runs_code: Whether `open` runs code in the file, so that only our own files may be opened.
        modules: Modules that `open` needs, imported before memory is limited. A package that is
            not among the dependencies belongs to the extra `export` of `pyproject.toml`.
        writers: Each backend that `write` can run on, the best one first, with the modules that it
            needs too; empty where `write` needs no backend in particular.
        companions: Suffixes of further files that belong to the model.
    """

    name: str
    suffix: str
    runtime: str
    write: Callable[[Path, Path], object]
    open: Callable[[Path], Opened]
    load: "Callable[[Path], keras.Model] | None" = None
    runs_code: bool = False
    modules: tuple[str, ...] = ()
    writers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    companions: tuple[str, ...] = ()

    def files(self, path: Path) -> list[Path]:
        """Returns the files that a model of this format at `path` may consist of."""
        if path.is_dir():
            return sorted(entry for entry in path.rglob("*") if entry.is_file())
        return [path, *(path.with_suffix(suffix) for suffix in self.companions)]

    def usable_writers(self) -> list[str | None]:
        """Returns the backends that can write the format here, [None] where it needs none.

        Raises:
            MissingPackageError: No backend that can write it is installed, or a package is missing.
        """
        if not self.writers:
            return [None]
        usable: list[str | None] = [
            name
            for name, modules in self.writers.items()
            if name in installed_backends() and not _missing(modules)
        ]
        if not usable:
            raise lacking({self.name: self.missing()})
        return usable

    def written_with(self, backend: str | None) -> dict[str, str]:
        """Returns the packages that write the format, and their versions."""
        modules = (backend, *self.writers[backend]) if backend else self.modules
        names = dict.fromkeys(name.partition(".")[0] for name in ("keras", *modules))
        return {name: found for name in names if (found := _version(name))}

    def missing(self) -> list[str]:
        """Returns the packages that are not installed, of those that write and open the format."""
        needed = [_missing((name, *modules)) for name, modules in self.writers.items()]
        return list(dict.fromkeys([*min(needed, key=len, default=[]), *_missing(self.modules)]))


def lacking(missing: Mapping[str, Sequence[str]]) -> MissingPackageError:
    """Returns the error that names the packages that are missing, and one pip command for all."""
    names = list(dict.fromkeys(package for packages in missing.values() for package in packages))
    parts = [f"{', '.join(packages)} (for {name})" for name, packages in missing.items()]
    return MissingPackageError(
        f"These packages are not installed: {'; '.join(parts)}. "
        f"Install them with: {install_command(names)}"
    )


def install_command(packages: Iterable[str]) -> str:
    """Returns the pip command that installs packages which formats and loggers need."""
    own = ("tensorflow", "torch", "jax", *LOGGERS)  # extras; the others are in "export"
    extras = dict.fromkeys(name if name in own else "export" for name in packages)
    return f"pip install 'kerasnorm[{','.join(extras)}]'"


def require(modules: Sequence[str], name: str) -> None:
    """Makes sure that the modules that a format or logger needs are installed.

    Raises:
        MissingPackageError: One is not; the message names the pip command.
    """
    if missing := _missing(modules):
        raise lacking({name: missing})


def _missing(modules: Sequence[str]) -> list[str]:
    packages = dict.fromkeys(name.partition(".")[0] for name in modules)
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _version(module: str) -> str:
    """Returns the version of the distribution that a module is of, "" where that is not known."""
    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:  # such as tensorflow in tensorflow-cpu
        found = metadata.packages_distributions().get(module, [])
        return metadata.version(found[0]) if found else ""


def only(path: Path, items: Iterable[Any], what: str) -> Any:
    """Returns the one input or output that a model has, or raises a CorruptFileError."""
    found = list(items)
    if len(found) != 1:
        raise CorruptFileError(f"{path}: expected one {what}. Received: {len(found)}")
    return found[0]


def fixed_sizes(dimensions: Iterable[Any]) -> tuple[int, ...]:
    """Returns the dimensions of an input, with 0 for those that are not fixed."""
    return tuple(n if isinstance(n, int) and n > 0 else 0 for n in dimensions)
