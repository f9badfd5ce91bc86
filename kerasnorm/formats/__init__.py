"""Model files: one module per format, which says what the format needs and writes and opens it.

To add a format, write its module, which holds its record, and add the module to `MODULES`.
"""

from collections.abc import Sequence
from pathlib import Path

from kerasnorm.errors import ConfigError
from kerasnorm.formats import (
    archive,
    litert,
    onnx,
    openvino,
    saved_model,
    state_dict,
    torch_program,
)
from kerasnorm.formats.format import Format, lacking

MODULES = (archive, saved_model, onnx, litert, torch_program, openvino, state_dict)
FORMATS: dict[str, Format] = {module.FORMAT.name: module.FORMAT for module in MODULES}
_BY_SUFFIX = {entry.suffix: entry for entry in FORMATS.values()}


def detect(target: Path) -> Format:
    """Returns the format of a path; a run's folder and whatever is unknown count as "keras"."""
    if target.is_dir():
        is_saved_model = (target / saved_model.FILE).exists() or target.suffix == ".savedmodel"
        return saved_model.FORMAT if is_saved_model else archive.FORMAT
    return _BY_SUFFIX.get(target.suffix, archive.FORMAT)


def check_formats(names: Sequence[str]) -> None:
    """Makes sure that every format can be written and opened here, before any is.

    Raises:
        MissingPackageError: Packages are missing; the message names those of all formats.
        ConfigError: A format is unknown.
    """
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"format: expected one of {', '.join(FORMATS)}. Received: {name!r}")
    if missing := {name: lacks for name in names if (lacks := FORMATS[name].missing())}:
        raise lacking(missing)
