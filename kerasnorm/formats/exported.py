"""An exported model: its metadata, in a JSON file beside it, and the model open in its runtime."""

import json
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import Config
from kerasnorm.data.stored import Images
from kerasnorm.errors import CorruptFileError
from kerasnorm.files import read_text, sha256
from kerasnorm.formats import archive, detect
from kerasnorm.formats.archive import SavedModel
from kerasnorm.formats.format import Format, require
from kerasnorm.formats.safety.process import FileProcess
from kerasnorm.inspection.outputs import Kind, as_logits, check_finite, output_kind, probe_images

MAX_BYTES = 1 << 24  # of the metadata
EQUALIZED = "equalized"  # the input's name begins with it where images must be equalized


def metadata_path(path: Path) -> Path:
    """Returns the path of the metadata of the exported file or folder at `path`."""
    return path.with_name(f"{path.name}.json")


def checksums(path: Path, format: Format) -> dict[str, str]:  # noqa: A002
    """Returns the SHA-256 of each file that an export consists of, by name."""
    files = [entry for entry in format.files(path) if entry.is_file()]
    home = path if path.is_dir() else path.parent
    return {entry.relative_to(home).as_posix(): sha256(entry) for entry in files}


def read_metadata(path: Path, format: Format) -> dict[str, Any]:  # noqa: A002
    """Returns the metadata of the export at `path`, {} where it has none.

    Raises:
        CorruptFileError: It is damaged, or was written for other files.
    """
    place = metadata_path(path)
    if not place.is_file():
        return {}
    try:
        if place.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
        metadata = json.loads(read_text(place))
        expected = metadata["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"The metadata {place} is damaged: {error}") from None
    if checksums(path, format) != expected:
        raise CorruptFileError(
            f"{path} is not the file that its metadata {place.name} was written for: the checksums "
            "differ. Export it again."
        )
    return dict(metadata)


@dataclass(frozen=True)
class ExportedModel:
    """An exported model, open in its own runtime in a process of its own."""

    path: Path  # file or folder of the model
    class_names: tuple[str, ...]  # one name per class; "0", "1", … where it has no metadata
    config: Config | None  # config of the run that trained it, None where that is not known
    image_shape: tuple[int, int, int]  # shape (H, W, C) of the images that it takes
    wants_equalized: bool  # whether its images must be histogram-equalized first
    stated: Kind | None  # kind of its outputs by its metadata, None where it does not tell
    process: FileProcess  # process in which it is open

    def predict(self, images: Images) -> NDArray[np.float32]:
        """Returns the logits (N, classes) for raw images (N, H, W, C).

        Raises:
            CorruptFileError: Its outputs are neither logits nor probabilities, or not finite.
        """
        found = self.process.run(self.path, images)
        check_finite(found, self.path)
        kind = self.stated or output_kind(np.concatenate([found, self._probed]), None)
        return as_logits(found, kind, self.path)

    @property
    def kind(self) -> Kind:
        """Kind of its outputs; see `kerasnorm.inspection.outputs`."""
        return self.stated or output_kind(self._probed, None)

    @cached_property
    def _probed(self) -> NDArray[np.float32]:
        return self.process.run(self.path, probe_images(self.image_shape))


def open_any(target: Path) -> ExportedModel | SavedModel:
    """Opens the classifier in a run's folder, a `.keras` file or an export.

    Keras must have been started where `needs_keras` says so.

    Raises:
        CorruptFileError: It is missing, damaged, not safe to open, or no classifier of images.
        MissingPackageError: Its runtime is not installed.
    """
    found = detect(target)
    if found is archive.FORMAT:
        return archive.open_model(target)
    if found.load is not None:
        metadata = read_metadata(target, found)
        model, config = found.load(target), archive.read_config(target, metadata)
        scale = _table(metadata, "input").get(archive.INPUT_SCALE)
        return archive.classifier(target, model, metadata.get("classes"), config, scale)
    return _open_in_process(target, found)


def _open_in_process(path: Path, format: Format) -> ExportedModel:  # noqa: A002
    require(format.modules, format.name)
    if not path.exists():
        raise CorruptFileError(f"There is no model file {path}.")
    metadata = read_metadata(path, format)
    config = archive.read_config(path, metadata)
    process = FileProcess()
    try:
        facts = process.do("open", path, seconds=120.0, format=format.name)
    except BaseException:
        process.close()
        raise
    stated = _table(metadata, "output").get("kind")
    is_equalized = bool(_table(metadata, "input").get("equalized"))
    opened = ExportedModel(
        path=path,
        class_names=archive.name_classes(metadata.get("classes"), facts["classes"]),
        config=config,
        image_shape=tuple(facts["image_shape"]),
        wants_equalized=is_equalized or facts["input_name"].startswith(EQUALIZED),
        stated=stated if stated in get_args(Kind) else None,
        process=process,
    )
    weakref.finalize(opened, process.close)
    return opened


def _table(metadata: dict[str, Any], name: str) -> dict[str, Any]:
    found = metadata.get(name)
    return found if isinstance(found, dict) else {}


def needs_keras(target: Path) -> bool:
    """Returns whether Keras is what runs a target."""
    return detect(target).load is not None
