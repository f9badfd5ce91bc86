"""What input preprocessing do to images, and to a training."""

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kerasnorm.config import Config, resolve
from kerasnorm.data.prepare import prepare
from kerasnorm.errors import CorruptFileError, DivergedError
from kerasnorm.explain.answer import Answer
from kerasnorm.explain.inputs_measure import PREPROCESSINGS, preprocess
from kerasnorm.explain.preprocessing_plots import preprocessing_figure, training_figure
from kerasnorm.progress import NullProgress, Progress
from kerasnorm.training import run
from kerasnorm.training import train as training

logger = logging.getLogger(__name__)
TRAINED = 5000  # images of a short training, where no number is given
SAMPLES = 2000  # images that statistics and histograms are made of


@dataclass(frozen=True)
class InputPreprocessing:
    """One input preprocessing of the training images.

    Attributes:
        preprocessing: none, scale, standardize or equalize.
        mean: Of each channel, after it, (C,).
        std: Likewise.
        history: Rows of a short training, [] where none was asked for or it diverged at once.
        diverged: Whether that training ended with a loss that is not finite.
    """

    preprocessing: str
    mean: Any
    std: Any
    history: Any = ()
    diverged: bool = False


def inputs(
    config: Config | None = None,
    *,
    train: bool = False,
    progress: Progress | None = None,
    **overrides: Any,
) -> Answer:
    """Treats the training images in each of the four ways, and trains on each if asked.

    standardize: (x - mean) / std of each channel over the training set, one line for all images;
    equalize: another, bent curve for each image (Gonzalez & Woods, "Histogram equalization").

    Args:
        config: A full config; None resolves one from the overrides.
        train: Train once on each, with nothing else different.
            Where no `train_size` is given, on at most 5,000 images.
        progress: Receives how far the work is; by default nothing is shown.
        **overrides: Any config field, such as data="shapes".

    Returns:
        An `Answer` whose data are a list of `InputPreprocessing`, with the figures
        `preprocessing` and, with `train`, `preprocessing-training`.

    Raises:
        DataError: The data are missing or damaged.
    """
    progress = progress or NullProgress()
    config = config.replace(**overrides) if config else resolve(overrides)
    raw = prepare(config.replace(preprocessing="none").data, config.train.seed).train.images
    if train and config.data.train_size == 0 and len(raw) > TRAINED:
        logger.info(
            f"Training on {TRAINED:,} of {len(raw):,} images; --train-size takes another number."
        )
        config = config.replace(train_size=TRAINED)
    some = raw[:SAMPLES]
    preprocessed = [preprocess(some, name) for name in PREPROCESSINGS]
    figures = {"preprocessing": preprocessing_figure(preprocessed)}
    found = [InputPreprocessing(t.preprocessing, t.mean, t.std) for t in preprocessed]
    if train:
        progress.start("trainings", len(PREPROCESSINGS))
        for place, preprocessing in enumerate(PREPROCESSINGS):
            history, diverged = _short_run(config.replace(preprocessing=preprocessing))
            found[place] = dataclasses.replace(found[place], history=history, diverged=diverged)
            progress.advance(place + 1)
        images = config.data.train_size or len(raw)
        title = f"norm {config.model.norm}, {images:,} training images"
        figures["preprocessing-training"] = training_figure(found, title)
    return Answer(found, figures)


def _short_run(config: Config) -> tuple[Sequence[run.Row], bool]:
    """Trains once; returns the history, and whether the training diverged."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        try:
            return training.fit(config, out=path).history, False
        except DivergedError:
            try:
                return run.read_history(path / run.HISTORY), True
            except CorruptFileError:  # no epoch was finished
                return (), True
