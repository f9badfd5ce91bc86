"""A finished run: its numbers, its model, and what can be made of them."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm import runtime
from kerasnorm.config import Config, DataConfig
from kerasnorm.data import Dataset, prepare
from kerasnorm.data.content import Content
from kerasnorm.data.dataset import to_pixels, unexpected
from kerasnorm.data.preprocessing import equalize
from kerasnorm.data.stored import Images
from kerasnorm.errors import CorruptFileError, DataError, described, is_number
from kerasnorm.files import as_path, check_file, in_command, read_text
from kerasnorm.formats import check_formats
from kerasnorm.formats.archive import SavedModel, load_model, open_model
from kerasnorm.inspection.evaluation import Scores, log_softmax, score
from kerasnorm.progress import in_percent
from kerasnorm.training import run_folder
from kerasnorm.training.images import images_of
from kerasnorm.training.run_folder import METRICS, Row

if TYPE_CHECKING:
    import keras

    from kerasnorm.formats.export import Export

logger = logging.getLogger(__name__)


def _refuse(constant: str) -> None:
    """Refuses NaN and infinity, which no run writes into its metrics."""
    raise ValueError(f"it holds {constant}")


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run, read from its folder.

    Attributes:
        path: The run's folder.
        config: The config that the run was trained with.
        history: One row per epoch; its columns are `COLUMNS`.
        metrics: The final numbers, as in `metrics.json`.
    """

    path: Path
    config: Config
    history: tuple[Row, ...]
    metrics: dict[str, Any]

    @classmethod
    def load(cls, path: Path | str) -> "Run":
        """Reads a run's folder.

        Raises:
            CorruptFileError: A file is missing or damaged, or the run has not finished.
        """
        path = as_path(path, "path")
        config = run_folder.read_config(path)
        if not (path / METRICS).is_file():
            raise CorruptFileError(
                f"The run {path} has not finished; resume it: "
                f"kerasnorm fit --resume {in_command(path)}"
            )
        for name in (run_folder.ENVIRONMENT, run_folder.HISTORY, METRICS):
            check_file(path / name)
        history = tuple(run_folder.read_history(path / run_folder.HISTORY))
        try:
            metrics = json.loads(read_text(path / METRICS), parse_constant=_refuse)
            missing = {"class_names", "confusion", "misclassified", "test_accuracy"} - {*metrics}
            if missing:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            for name in ("test_accuracy", "val_accuracy"):
                share = metrics.get(name)
                is_left_out = share is None and name == "val_accuracy"
                if not is_left_out and not (is_number(share) and 0 <= share <= 1):
                    raise ValueError(f"its {name} is {share!r}, no share from 0 to 1")
        except (OSError, ValueError, TypeError) as error:
            raise CorruptFileError(f"{path / METRICS} is damaged: {error}") from None
        return cls(path, config, history, metrics)

    def model(self) -> "keras.Model":
        """Returns the trained model, in float32 and of stock Keras layers."""
        return load_model(self.path)

    def __repr__(self) -> str:
        config, accuracy = self.config, in_percent(self.metrics["test_accuracy"])
        what = f"{config.model.title} on {config.data.data}, {config.train.backend}"
        return f"Run({str(self.path)!r}: {what}, test accuracy {accuracy} %)"

    def saved_model(self) -> SavedModel:
        """Returns the trained model with its metadata.

        Raises:
            CorruptFileError: Its file is missing or damaged.
            MissingPackageError: No backend is installed.
        """
        runtime.import_keras(runtime.preferred(self.config.train.backend))
        return open_model(self.path)

    def evaluate(
        self, data: str | None = None, split: str = "test", resize: str | None = None
    ) -> Scores:
        """Returns the accuracy and the loss of the trained model.

        Args:
            data: Name or path of the data; by default those that the run was trained on.
            split: "test", "validation", "train", or "all".
            resize: How images of another size are resized: "stretch", "crop" or "pad"; by default
                as when the model was trained.

        Raises:
            DataError: The images do not fit the model, its classes have other names, or there is
                no such split.
        """
        saved = self.saved_model()
        images = images_of(saved, data, split, resize)
        return score(saved.predict(images.images), images.labels)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the probability of each class, shape (N, classes), for raw images.

        Args:
            images: Raw pixels, 0 to 255, shape (N, H, W, C), of the size that the model was
                trained on.

        Raises:
            DataError: They are not, or look like pixels that were scaled to 0 to 1.
        """
        saved = self.saved_model()
        shape = np.shape(images)
        if shape[1:] != saved.image_shape:
            text = ", ".join(str(size) for size in saved.image_shape)
            received, advice = described(images), "A single image is images[None]"
            raise unexpected("images", f"an array of shape (N, {text})", received, advice)
        pixels = to_pixels(np.asarray(images), "images")
        if saved.wants_equalized:
            pixels = equalize(pixels)
        return np.exp(log_softmax(saved.predict(pixels)))

    def export(self, *formats: str, out: Path | str | None = None) -> "list[Export]":
        """Writes the model in other formats, each checked in its own runtime.

        Args:
            *formats: Names of formats, such as "onnx" and "litert".
            out: Folder for the files; by default `exports` in the run's folder.

        Raises:
            ConfigError: A format is unknown.
            KerasnormError: An export differs from the Keras model, or cannot be written.
            MissingPackageError: A package is missing; the message names those of all formats.
        """
        check_formats(formats)
        saved = self.saved_model()
        from kerasnorm.formats.export import Exporter

        folder = self.path / "exports" if out is None else Path(out)
        with Exporter(saved, folder, float(self.metrics["test_accuracy"])) as exporter:
            return [exporter.export(name) for name in formats]

    def plot(self, out: Path | str | None = None) -> list[Path]:
        """Draws the run's figures; returns their paths.

        Args:
            out: Folder for the figures; by default `plots` in the run's folder.
        """
        from kerasnorm.plots import draw_run

        return draw_run(self, self.test_images(), None if out is None else Path(out))

    @cached_property
    def content(self) -> Content | None:
        """What its data held; None for a run of an earlier version, which did not record it."""
        return run_folder.read_content(self.path)

    def dataset(self, load: Callable[[DataConfig, int], Dataset] = prepare) -> Dataset:
        """Returns the data that the run was trained and tested on.

        Args:
            load: Loads data, given a config and a seed.

        Raises:
            DataError: The data are missing or damaged, or are not those that the run saw.
        """
        dataset = load(self.config.data, self.config.train.seed)
        if differences := self._differences(dataset):
            raise run_folder.other_data(self.path, dataset, differences)
        return dataset

    @property
    def plots_folder(self) -> Path:
        """The folder of its figures, which may not have been drawn."""
        return self.path / run_folder.PLOTS

    def test_images(self, load: Callable[[DataConfig, int], Dataset] = prepare) -> Images | None:
        """Returns the images of `dataset`'s test set; None, after a warning, without the data."""
        try:
            return self.dataset(load).test.images
        except DataError as error:
            logger.warning(f"{error} The figure of misclassified images is left as it is.")
            return None

    def _differences(self, dataset: Dataset) -> list[str]:
        if self.content is not None:
            return self.content.differences(dataset.content)
        # An earlier version recorded what can be told from the results.
        metrics, labels = self.metrics, dataset.test.labels
        if metrics["class_names"] != list(dataset.class_names):
            return ["other classes"]
        if [sum(row) for row in metrics["confusion"]] != [*dataset.class_counts["test"]]:
            return ["other numbers of test images"]
        same = all(
            labels[mistake["index"]] == mistake["true"] for mistake in metrics["misclassified"]
        )
        return [] if same else ["test images in another order"]
