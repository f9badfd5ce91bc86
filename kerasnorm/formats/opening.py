"""Opens whatever classifies images: a run's folder, a `.keras` file, or any export."""

import atexit
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import Config, resolve
from kerasnorm.errors import ConfigError, CorruptFileError
from kerasnorm.formats.formats import Format, detect
from kerasnorm.formats.helper import Helper
from kerasnorm.formats.metadata import read_card
from kerasnorm.inspection.outputs import Kind, as_logits, check_finite, output_kind, probe_images

if TYPE_CHECKING:
    from kerasnorm.formats.archive import SavedModel

EQUALIZED = "equalized"  # the input's name begins with it where images must be equalized


@dataclass(frozen=True)
class Artefact:
    """An exported model, open in its own runtime in a process of its own.

    Attributes:
        path: The file or folder.
        format: Which it is.
        class_names: One name a class; "0", "1", … where it has no card.
        config: The config of the run that trained it, None where that is not known.
        image_shape: (H, W, C).
        wants_equalized: Whether its images must be histogram-equalized first.
        stated: What its card says that it gives; None where it says nothing.
        helper: The process.
    """

    path: Path
    format: Format
    class_names: tuple[str, ...]
    config: Config | None
    image_shape: tuple[int, int, int]
    wants_equalized: bool
    stated: Kind | None
    helper: Helper

    def outputs(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the outputs (N, classes), as they come, for raw images (N, H, W, C)."""
        return run(self.helper, "run", self.path, images)[0]

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the logits (N, classes) for raw images (N, H, W, C).

        Raises:
            CorruptFileError: It gives neither logits nor probabilities, or values not finite.
        """
        found = self.outputs(images)
        check_finite(found, self.path)
        kind = self.stated or output_kind(np.concatenate([found, self._probed]), None)
        return as_logits(found, kind, self.path)

    @property
    def kind(self) -> Kind:
        """What it gives; see `kerasnorm.inspection.outputs`."""
        return self.stated or output_kind(self._probed, None)

    @cached_property
    def _probed(self) -> NDArray[np.float32]:
        return self.outputs(probe_images(self.image_shape))


def run(
    helper: Helper, task: str, path: Path, images: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], Any]:
    """Has a helper run images through a file; returns the outputs and the task's answer."""
    with tempfile.TemporaryDirectory() as folder:
        given, gotten = Path(folder) / "images.npy", Path(folder) / "outputs.npy"
        np.save(given, images)
        answer = helper.ask(task, path, images=str(given), out=str(gotten))
        return np.load(gotten), answer


def open_artefact(path: Path) -> Artefact:
    """Opens an exported file or folder of another format than `.keras`.

    Raises:
        CorruptFileError: It is missing, damaged, not safe to open, or no classifier of images.
        MissingPackageError: Its runtime is not installed.
    """
    found = detect(path)
    found.check_runtime()
    if not path.exists():
        raise CorruptFileError(f"There is no model file {path}.")
    card = read_card(path, found)
    helper = Helper(seconds=120.0)
    atexit.register(helper.close)
    try:
        facts = helper.ask("open", path, format=found.name)
    except BaseException:
        helper.close()
        raise
    helper.seconds = 600.0
    names = card.get("classes")
    if not isinstance(names, list) or len(names) != facts["classes"]:
        names = range(facts["classes"])
    described, stated = _table(card, "input"), _table(card, "output").get("kind")
    return Artefact(
        path=path,
        format=found,
        class_names=tuple(map(str, names)),
        config=_config(path, card),
        image_shape=tuple(facts["image_shape"]),
        wants_equalized=bool(described.get("equalized"))
        or facts["input_name"].startswith(EQUALIZED),
        stated=stated if stated in get_args(Kind) else None,
        helper=helper,
    )


def open_any(target: Path) -> "Artefact | SavedModel":
    """Opens a run's folder, a `.keras` file or an export.

    Keras must have been started where `needs_keras` says so.

    Raises:
        CorruptFileError: It is missing, damaged, not safe to open, or no classifier of images.
        MissingPackageError: Its runtime is not installed.
    """
    found = detect(target)
    if needs_keras(target):
        from kerasnorm.formats import archive, state_dict

        if found.name == "keras":
            return archive.open_model(target)
        card = read_card(target, found)
        model = state_dict.read(target)
        return archive.classifier(target, model, card.get("classes"), _config(target, card))
    return open_artefact(target)


def needs_keras(target: Path) -> bool:
    """Says whether Keras is what runs a target."""
    return detect(target).name in ("keras", "state-dict")


def _table(card: dict[str, Any], name: str) -> dict[str, Any]:
    found = card.get(name)
    return found if isinstance(found, dict) else {}


def _config(path: Path, card: dict[str, Any]) -> Config | None:
    try:
        return resolve(document=card["config"]) if card.get("config") else None
    except (ConfigError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"The card of {path} is damaged: {error}") from None
