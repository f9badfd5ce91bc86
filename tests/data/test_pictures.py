"""Single pictures, brought to a model's shape."""

import numpy as np
import pytest
from PIL import Image

from kerasnorm.data.pictures import read_picture
from kerasnorm.errors import ConfigError, DataError


def test_a_picture_of_the_right_size_keeps_its_pixels(tmp_path):
    pixels = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png", (5, 4, 3)), pixels)


def test_other_sizes_and_modes_are_converted(tmp_path):
    Image.new("RGBA", (50, 40), (255, 0, 0, 255)).save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png", (8, 6, 3)) == [255, 0, 0]).all()
    assert read_picture(tmp_path / "a.png", (8, 6, 1)).shape == (8, 6, 1)


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(DataError, match="expected an image"):
        read_picture(tmp_path / "a.png", (8, 6, 3))
    with pytest.raises(DataError, match=r"b\.png"):
        read_picture(tmp_path / "b.png", (8, 6, 3))
    with pytest.raises(ConfigError, match="5 channels"):
        read_picture(tmp_path / "a.png", (8, 6, 5))


def test_deep_pictures_and_other_formats_are_refused(tmp_path):
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="8 bits"):
        read_picture(tmp_path / "deep.png", (8, 6, 1))
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")
    with pytest.raises(DataError, match="expected an image"):
        read_picture(tmp_path / "a.eps", (8, 6, 1))
