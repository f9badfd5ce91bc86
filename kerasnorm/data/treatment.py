"""Input treatments measured on, or applied to, raw images."""

import numpy as np
from numpy.typing import NDArray


def channel_statistics(images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the mean and sd of each channel, (C,) each, pixels counted 0 to 1."""
    channels = images.shape[-1]
    levels = np.arange(256, dtype=np.float64) / 255
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(channels)])
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ levels
    return mean, np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))


def equalize(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns images (N, H, W, C) with the histogram of every image and channel made flat.

    v' = round(255 (cdf(v) - cdf_min) / (H W - cdf_min)); Gonzalez & Woods, Digital Image
    Processing, section 3.3. A constant channel stays as it is.
    """
    count, height, width, channels = images.shape
    pixels = images.transpose(0, 3, 1, 2).reshape(count * channels, height * width)
    out = np.empty_like(pixels)
    for row, values in enumerate(pixels):
        cdf = np.cumsum(np.bincount(values, minlength=256))
        low = cdf[values.min()]
        span = height * width - low
        table = np.rint((cdf - low) * (255 / span)) if span else np.arange(256)
        out[row] = table.clip(0, 255).astype(np.uint8)[values]
    return np.ascontiguousarray(out.reshape(count, channels, height, width).transpose(0, 2, 3, 1))
