"""From a data config to the images that a run trains and is judged on."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import DataConfig
from kerasnorm.data.dataset import Dataset, Split
from kerasnorm.data.preprocessing import channel_statistics, equalize
from kerasnorm.data.sources import load


def prepare(config: DataConfig, seed: int, notify: Callable[[str], None]) -> Dataset:
    """Returns the data set of a config: loaded, split, and equalized where that is wanted.

    Args:
        config: Source, sizes, validation and treatment.
        seed: Which training images are held out for validation.
        notify: Is told, in a line, what the user should know.

    Raises:
        DataError: The data are missing, damaged or unfit.
    """
    dataset = load(
        config.data, train_size=config.train_size, test_size=config.test_size, notify=notify
    ).hold_out(config.validation, seed)
    return equalized(dataset) if config.treatment == "equalize" else dataset


def equalized(dataset: Dataset) -> Dataset:
    """Returns the data set with the histogram of every image and channel equalized."""

    def treat(split: Split) -> Split:
        return Split(equalize(split.images), split.labels)

    held = dataset.validation
    return Dataset(
        dataset.name,
        f"{dataset.source}, histograms equalized",
        dataset.class_names,
        treat(dataset.train),
        treat(dataset.test),
        treat(held) if held is not None else None,
    )


def input_statistics(
    treatment: str, images: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the mean and sd, (C,) each, pixels counted 0 to 1, that the model's input applies.

    `scale` leaves 0 to 1 and `none` leaves 0 to 255; else they are measured on the images.

    Args:
        treatment: One of the data config's treatments.
        images: The training images, (N, H, W, C), already equalized where that is wanted.
    """
    channels = images.shape[-1]
    if treatment in ("scale", "none"):
        return np.zeros(channels), np.full(channels, 1.0 if treatment == "scale" else 1 / 255)
    mean, sd = channel_statistics(images)
    return mean, np.where(sd > 0, sd, 1.0)
