"""Pixel statistics, histogram equalization, and what the model's input applies."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.dataset import Dataset
from kerasnorm.data.stored import Images, chunks

_LEVELS = 256
Statistics = tuple[NDArray[np.float64], NDArray[np.float64]]  # mean and std, (C,) each


def channel_statistics(images: Images) -> Statistics:
    """Returns mean and standard deviation of each channel, (C,) each, for pixels scaled to 0…1.

    Both come from a histogram of the channel, whose sums are whole numbers: exact, without a copy
    of the data in floating point. The images are raw, (N, H, W, C). The standard deviation is that
    of the population, sqrt(E[(x - mean)²]).
    """
    channels = images.shape[-1]
    histogram = np.zeros((channels, _LEVELS), dtype=np.int64)
    for chunk in chunks(images):
        pixels = images[chunk]
        for channel in range(channels):
            values = pixels[..., channel].ravel()
            histogram[channel] += np.bincount(values, minlength=_LEVELS)
    levels = np.arange(_LEVELS, dtype=np.int64)
    count = int(histogram[0].sum())
    mean = histogram @ levels / count
    variance = (histogram * (levels - mean[:, None]) ** 2).sum(axis=1) / count
    return mean / 255, np.sqrt(variance) / 255


def input_statistics(
    preprocessing: str, images: Images, measured: Statistics | None = None
) -> Statistics:
    """Returns the means and stds, (C,) each, that the model's input applies to pixels from 0 to 1.

    `scale` leaves 0 to 1 and `none` leaves 0 to 255; otherwise they are the statistics of the
    images, `measured` here unless they are given.
    """
    channels = images.shape[-1]
    if preprocessing in ("scale", "none"):
        return np.zeros(channels), np.full(channels, 1.0 if preprocessing == "scale" else 1 / 255)
    mean, std = measured or channel_statistics(images)
    return mean, np.where(std > 0, std, 1.0)


def equalized(dataset: Dataset) -> Dataset:
    """Returns the data set with the histogram of every image and channel equalized."""
    source = f"{dataset.source}, histograms equalized"
    return dataclasses.replace(dataset.map_images(equalize), source=source)


def equalize(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns images (N, H, W, C) with the histogram of each image's channels equalized.

    A pixel of level v becomes round(255 * (cdf(v) - cdf_min) / (M - cdf_min)), where cdf(v) is
    the number of the M pixels of that image and channel with a level of at most v, and cdf_min
    that of its lowest level: the levels that occur spread over 0 to 255, in their order (Gonzalez
    and Woods, Digital Image Processing, section "Histogram equalization"; the offset by cdf_min
    maps the darkest pixel to 0). A channel of a single level is left as it is.
    """
    equalized = np.empty_like(images)
    for chunk in chunks(images):
        equalized[chunk] = _equalize_chunk(images[chunk])
    return equalized


def _equalize_chunk(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    count, height, width, channels = images.shape
    rows = np.moveaxis(images, -1, 1).reshape(count * channels, height * width)
    # One bincount for all histograms: each row counts in its own 256 places.
    places = rows + _LEVELS * np.arange(len(rows), dtype=np.int64)[:, None]
    counts = np.bincount(places.ravel(), minlength=_LEVELS * len(rows))
    cumulated = counts.reshape(len(rows), _LEVELS).cumsum(axis=1)
    lowest = np.take_along_axis(cumulated, rows.min(axis=1)[:, None].astype(np.intp), axis=1)
    span = height * width - lowest
    # Whole numbers: 255 * a / b rounded to the nearest is (510 * a + b) // (2 * b).
    scaled = (510 * (cumulated - lowest) + span) // np.maximum(2 * span, 1)
    table = np.where(span > 0, scaled, np.arange(_LEVELS)).clip(0, 255).astype(np.uint8)
    mapped = table.ravel()[places].reshape(count, channels, height, width)
    return np.moveaxis(mapped, 1, -1)
