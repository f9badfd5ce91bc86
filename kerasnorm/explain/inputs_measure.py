"""The four input treatments of the same images, and what each does to mean and deviation."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.prepare import input_statistics
from kerasnorm.data.preprocessing import equalize

TREATMENTS = ("none", "scale", "standardize", "equalize")


@dataclass(frozen=True, eq=False)
class Treated:
    """Images as the first convolution gets them.

    Attributes:
        treatment: Name, as in a run's config.
        pixels: (N, H, W, C).
        mean: Of each channel, (C,).
        sd: Likewise.
    """

    treatment: str
    pixels: NDArray[np.float64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]


def treat(images: NDArray[np.uint8], treatment: str) -> Treated:
    """Returns raw images treated as a run treats its training set.

    none: x. scale: x / 255. standardize: (x / 255 - mean) / sd of each channel over all images.
    equalize: each image and channel to a flat histogram first, then the same.

    Args:
        images: Raw, uint8, (N, H, W, C); the statistics are measured on them.
        treatment: One of `TREATMENTS`.

    >>> dark = np.array([0, 0, 0, 255], np.uint8).reshape(1, 2, 2, 1)
    >>> treat(dark, "scale").mean.tolist(), treat(dark, "standardize").sd.round(6).tolist()
    ([0.25], [1.0])
    """
    source = equalize(images) if treatment == "equalize" else images
    mean, sd = input_statistics(treatment, source)
    pixels: NDArray[Any] = (source / 255 - mean) / sd
    axes = (0, 1, 2)
    return Treated(treatment, pixels, pixels.mean(axes), pixels.std(axes))
