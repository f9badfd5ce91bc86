"""Each way of input preprocessing of the same images, and its mean and standard deviation."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.prepare import input_statistics
from kerasnorm.data.preprocessing import equalize

PREPROCESSINGS = ("none", "scale", "standardize", "equalize")


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """Images as the first convolution gets them.

    Attributes:
        preprocessing: Name, as in a run's config.
        pixels: (N, H, W, C).
        mean: Of each channel, (C,).
        std: Likewise.
    """

    preprocessing: str
    pixels: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def preprocess(images: NDArray[np.uint8], preprocessing: str) -> Preprocessed:
    """Returns raw images preprocessed as a run treats its training set.

    none: x. scale: x / 255. standardize: (x / 255 - mean) / std of each channel over all images.
    equalize: each image and channel to a flat histogram first, then the same.

    Args:
        images: Raw, uint8, (N, H, W, C); the statistics are measured on them.
        preprocessing: One of `PREPROCESSINGS`.

    >>> dark = np.array([0, 0, 0, 255], np.uint8).reshape(1, 2, 2, 1)
    >>> preprocess(dark, "scale").mean.tolist()
    [0.25]
    >>> preprocess(dark, "standardize").std.round(6).tolist()
    [1.0]
    """
    source = equalize(images) if preprocessing == "equalize" else images
    mean, std = input_statistics(preprocessing, source)
    pixels: NDArray[Any] = (source / 255 - mean) / std
    axes = (0, 1, 2)
    return Preprocessed(preprocessing, pixels, pixels.mean(axes), pixels.std(axes))
