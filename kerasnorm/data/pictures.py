"""Single image files, brought to the shape that a model takes."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kerasnorm.errors import ConfigError, DataError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def read_picture(path: Path, image_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Returns an image file as raw pixels (H, W, C), resized (bilinear) where it must be.

    Args:
        path: A file of any format that Pillow reads.
        image_shape: (H, W, C) to bring it to; C is 1 (gray), 3 (RGB) or 4 (RGBA).

    Raises:
        DataError: The file is missing or no image.
        ConfigError: No picture has that many channels.
    """
    height, width, channels = image_shape
    if channels not in MODES:
        raise ConfigError(
            f"Pictures have 1, 3 or 4 channels. Received: a model of {channels} channels"
        )
    try:
        with Image.open(path) as picture:
            pixels = picture.convert(MODES[channels])
    except FileNotFoundError:
        raise DataError(f"There is no image file {path}.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no image that can be read: {error}") from None
    if pixels.size != (width, height):
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(pixels, np.uint8).reshape(image_shape)
