"""Single image files: opened with distrust, and brought to the shape that a model takes."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kerasnorm.data.checks import parsing
from kerasnorm.errors import ConfigError, DataError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Pillow opens others too, some by starting programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
_DEEP_MODES = ("I", "F")


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Opens an image of 8 bits a channel, with Pillow's warnings of bombs as errors.

    Raises:
        DataError: The file is missing, damaged, too large, deeper, or of another format.
    """
    expected = "an image, PNG, JPEG, BMP, GIF or WebP, of a usual size"
    with parsing(path, expected), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=_FORMATS) as image:
            if image.mode in _DEEP_MODES or image.mode.startswith("I;"):
                raise DataError(
                    f"{path}: expected 8 bits a channel. Received: mode {image.mode}. "
                    "Convert it to 8 bits."
                )
            yield image


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Returns the image in one of the modes L, RGB or RGBA."""
    # By way of RGBA: a palette with transparency has no direct way to RGB.
    plain = image.convert("RGBA") if image.mode == "P" else image
    return plain.convert(mode)


def read_picture(path: Path, image_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Returns an image file as raw pixels (H, W, C), resized (bilinear) where it must be.

    Args:
        path: A PNG, JPEG, BMP, GIF or WebP file.
        image_shape: (H, W, C) to bring it to; C is 1 (gray), 3 (RGB) or 4 (RGBA).

    Raises:
        DataError: The file is missing or no such image.
        ConfigError: No picture has that many channels.
    """
    height, width, channels = image_shape
    if channels not in MODES:
        raise ConfigError(
            f"Pictures have 1, 3 or 4 channels. Received: a model of {channels} channels"
        )
    with opened(path) as image:
        pixels = in_mode(image, MODES[channels])
        if pixels.size != (width, height):
            pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(pixels, np.uint8).reshape(image_shape)
