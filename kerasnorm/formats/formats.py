"""The formats that models are exported to, as data: how each is named, made and opened."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kerasnorm.errors import MissingPackageError
from kerasnorm.runtime import check_installed, installed_backends

SAVED_MODEL_FILE = "saved_model.pb"


@dataclass(frozen=True)
class Format:
    """One export format.

    Attributes:
        name: As `--format` takes it.
        suffix: Of the file, or of the folder, that holds the model.
        runtime: What opens it, in words.
        run_packages: Modules that opening it needs.
        makers: Backend that can make it → modules needed beside it; the best backend first. Empty
            where no backend is needed.
        companions: Suffixes of files that belong to it.
    """

    name: str
    suffix: str
    runtime: str
    run_packages: tuple[str, ...] = ()
    makers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    companions: tuple[str, ...] = ()

    def check_runtime(self) -> None:
        """Makes sure that the format can be opened here.

        Raises:
            MissingPackageError: A package is missing.
        """
        _require(self.run_packages, self.name)

    def check_package(self, module: str) -> None:
        """Makes sure that one of its packages is there.

        Raises:
            MissingPackageError: It is not.
        """
        _require((module,), self.name)

    def maker(self) -> str | None:
        """Returns the backend to make it with, None where it needs none.

        Raises:
            MissingPackageError: No backend that can make it is installed, or a package is missing.
        """
        if not self.makers:
            return None
        installed = [name for name in self.makers if name in installed_backends()]
        for backend in installed:
            if not _missing(self.makers[backend]):
                return backend
        first = installed[0] if installed else next(iter(self.makers))
        check_installed(first)
        _require(self.makers[first], self.name)
        return first


FORMATS = {
    entry.name: entry
    for entry in (
        Format("keras", ".keras", "Keras on the other backends"),
        Format(
            "saved-model",
            ".savedmodel",
            "tf.saved_model",
            run_packages=("tensorflow",),
            makers={"tensorflow": ()},
        ),
        Format(
            "onnx",
            ".onnx",
            "onnxruntime",
            run_packages=("onnx", "onnxruntime"),
            # From torch, element-affine layer normalization fails: TensorFlow comes first.
            makers={"tensorflow": ("onnx", "tf2onnx"), "torch": ("onnx", "onnxscript")},
        ),
        Format(
            "litert",
            ".tflite",
            "LiteRT interpreter",
            run_packages=("ai_edge_litert",),
            makers={"tensorflow": ()},
        ),
        Format("torch", ".pt2", "torch.export", run_packages=("torch",), makers={"torch": ()}),
        Format(
            "openvino",
            ".xml",
            "OpenVINO",
            run_packages=("openvino",),
            # Keras converts with the help of SciPy, which neither of the two brings.
            makers={"tensorflow": ("openvino", "scipy"), "torch": ("openvino", "scipy")},
            companions=(".bin",),
        ),
        Format(
            "state-dict",
            ".safetensors",
            "PyTorch module beside it",
            run_packages=("safetensors", "torch"),
            companions=(".py",),
        ),
    )
}
_SUFFIXES = {entry.suffix: entry for entry in FORMATS.values()}


def detect(target: Path) -> Format:
    """Returns the format that a path names; a run's folder, and the unknown, is "keras"."""
    if target.is_dir():
        is_saved_model = (target / SAVED_MODEL_FILE).exists() or target.suffix == ".savedmodel"
        return FORMATS["saved-model" if is_saved_model else "keras"]
    return _SUFFIXES.get(target.suffix, FORMATS["keras"])


def _missing(modules: tuple[str, ...]) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def _require(modules: tuple[str, ...], what: str) -> None:
    if missing := _missing(modules):
        extra = missing[0] if missing[0] in ("tensorflow", "torch") else "export"
        raise MissingPackageError(
            f"The format {what} needs {', '.join(missing)}, which is not installed. "
            f"Install it with: pip install 'kerasnorm[{extra}]'"
        )
