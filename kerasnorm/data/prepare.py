"""From a data config to the images that a run trains and is judged on."""

import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import DataConfig
from kerasnorm.data.dataset import Dataset, Split
from kerasnorm.data.preprocessing import channel_statistics, equalize
from kerasnorm.data.sources import load


def prepare(config: DataConfig, seed: int) -> Dataset:
    """Returns the data set of a config: loaded, split, and equalized where that is wanted.

    Args:
        config: Source, sizes, validation and preprocessing.
        seed: Which training images are held out for validation.

    Raises:
        DataError: The data are missing, damaged or unfit.
    """
    dataset = load(config.data, train_size=config.train_size, test_size=config.test_size).hold_out(
        config.validation, seed
    )
    return equalized(dataset) if config.preprocessing == "equalize" else dataset


def equalized(dataset: Dataset) -> Dataset:
    """Returns the data set with the histogram of every image and channel equalized."""

    def preprocess(split: Split) -> Split:
        return Split(equalize(split.images), split.labels)

    held = dataset.validation
    return Dataset(
        dataset.name,
        f"{dataset.source}, histograms equalized",
        dataset.class_names,
        preprocess(dataset.train),
        preprocess(dataset.test),
        preprocess(held) if held is not None else None,
    )


def input_statistics(
    preprocessing: str, images: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the mean and std, (C,) each, pixels counted 0 to 1, that the model's input applies.

    `scale` leaves 0 to 1 and `none` leaves 0 to 255; else they are measured on the images.

    Args:
        preprocessing: One of the data config's ways of preprocessing.
        images: The training images, (N, H, W, C), already equalized where that is wanted.
    """
    channels = images.shape[-1]
    if preprocessing in ("scale", "none"):
        return np.zeros(channels), np.full(channels, 1.0 if preprocessing == "scale" else 1 / 255)
    mean, std = channel_statistics(images)
    return mean, np.where(std > 0, std, 1.0)
