"""Corruptions of images in five severities, as in CIFAR-10-C.

Formulas and strengths are those of `make_cifar_c.py` in github.com/hendrycks/robustness, the code
of Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", arXiv 1903.12261. They hold for images of any size and number of channels; the
paper has other strengths for ImageNet. Like that code, the functions drop the fractions of the
changed pixels. NumPy and SciPy compute them, so that every backend sees the same pixels.

To add a corruption, add its record to `CORRUPTIONS`. Importing this module needs no NumPy, because
`kerasnorm --help` lists the names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.float64]  # 0 to 255, shape (N, H, W, C)

LEVELS = 255


@dataclass(frozen=True)
class Corruption:
    """A way to spoil images."""

    name: str  # short name, which `--corruption` takes
    title: str  # name in figures and tables
    strengths: tuple[float, ...]  # strength of severity 1 to 5
    # Takes pixels, a strength and a random generator, and returns pixels, which may lie beyond 0 to
    # 255.
    change: "Callable[[Pixels, float, np.random.Generator], Pixels]"

    def __call__(
        self, images: "NDArray[np.uint8]", severity: int, rng: "np.random.Generator"
    ) -> "NDArray[np.uint8]":
        """Returns corrupted images.

        Severity 0 returns the images (N, H, W, C) as they are. What is random is drawn from `rng`.
        """
        if severity == 0:
            return images
        from kerasnorm.data.stored import chunks

        found = images.copy()
        for chunk in chunks(images):
            pixels = images[chunk].astype("float64")
            changed = self.change(pixels, self.strengths[severity - 1], rng)
            found[chunk] = changed.clip(0, LEVELS)
        return found


def gaussian_noise(pixels: "Pixels", std: float, rng: "np.random.Generator") -> "Pixels":
    """Returns x + 255 * std * z, with z drawn from the standard normal distribution."""
    return pixels + rng.normal(scale=LEVELS * std, size=pixels.shape)


def gaussian_blur(pixels: "Pixels", sigma: float, _: "np.random.Generator") -> "Pixels":
    """Returns images under a Gaussian of `sigma` pixels, cut at 4 sigma; edges are repeated."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(pixels, (0, sigma, sigma, 0), mode="nearest", truncate=4.0)


def contrast(pixels: "Pixels", share: float, _: "np.random.Generator") -> "Pixels":
    """Returns mean + share * (x - mean), with the mean of each channel of each image."""
    mean = pixels.mean(axis=(1, 2), keepdims=True)
    return mean + share * (pixels - mean)


def brightness(pixels: "Pixels", more: float, _: "np.random.Generator") -> "Pixels":
    """Returns images with V of HSV raised to min(V + more, 1), with V from 0 to 1.

    V is the largest channel, and hue and saturation stay: all channels are multiplied by the new V
    divided by the old one. A black pixel has no hue and becomes gray.
    """
    value = pixels.max(axis=-1, keepdims=True)
    black = value == 0
    brighter = (value + LEVELS * more).clip(max=LEVELS)
    return (pixels + black) * brighter / (value + black)


CORRUPTIONS = {
    one.name: one
    for one in (
        Corruption(
            "gaussian-noise", "Gaussian noise", (0.04, 0.06, 0.08, 0.09, 0.1), gaussian_noise
        ),
        Corruption("gaussian-blur", "Gaussian blur", (0.4, 0.6, 0.7, 0.8, 1.0), gaussian_blur),
        Corruption("contrast", "contrast", (0.75, 0.5, 0.4, 0.3, 0.15), contrast),
        Corruption("brightness", "brightness", (0.05, 0.1, 0.15, 0.2, 0.3), brightness),
    )
}
SEVERITIES = (1, 2, 3, 4, 5)
