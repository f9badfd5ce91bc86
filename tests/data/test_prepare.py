"""From a data config to images, and to what the model's input does to them."""

import numpy as np
import pytest

from kerasnorm.config import DataConfig
from kerasnorm.data.prepare import equalized, input_statistics, prepare
from kerasnorm.data.preprocessing import equalize
from kerasnorm.data.shapes import shapes

CONFIG = {"data": "shapes", "train_size": 100, "test_size": 20}


def test_the_validation_split_is_stratified_disjoint_and_a_function_of_the_seed():
    first, again, other = (prepare(DataConfig(**CONFIG, validation=30), seed) for seed in (0, 0, 1))
    assert len(first.train) == 70
    assert np.bincount(first.validation.labels).tolist() == [3] * 10
    assert np.array_equal(first.validation.images, again.validation.images)
    assert not np.array_equal(first.validation.images, other.validation.images)
    everything = {image.tobytes() for image in shapes(100, 20).train.images}
    parts = [{image.tobytes() for image in part.images} for part in (first.train, first.validation)]
    assert parts[0] | parts[1] == everything
    assert not parts[0] & parts[1]


def test_equalization_reaches_every_split():
    raw = prepare(DataConfig(**CONFIG, validation=30), 0)
    preprocessed = prepare(DataConfig(**CONFIG, validation=30, preprocessing="equalize"), 0)
    for name, split in raw.splits.items():
        assert np.array_equal(preprocessed.splits[name].images, equalize(split.images))
    assert "equalized" in equalized(raw).source


@pytest.mark.parametrize(("preprocessing", "high"), [("scale", 1.0), ("none", 255.0)])
def test_scale_leaves_0_to_1_and_none_leaves_the_pixels(preprocessing, high):
    images = shapes(20, 10).train.images
    mean, std = input_statistics(preprocessing, images)
    preprocessed = (images / 255 - mean) / std
    assert np.allclose(preprocessed, images / 255 * high)


def test_standardized_pixels_have_mean_0_and_sd_1():
    images = shapes(50, 10).train.images
    mean, std = input_statistics("standardize", images)
    preprocessed = (images / 255 - mean) / std
    assert np.allclose(preprocessed.mean(axis=(0, 1, 2)), 0, atol=1e-9)
    assert np.allclose(preprocessed.std(axis=(0, 1, 2)), 1, atol=1e-9)


def test_a_constant_channel_does_not_divide_by_zero():
    images = np.full((4, 5, 5, 1), 9, np.uint8)
    mean, std = input_statistics("standardize", images)
    assert (mean, std) == (9 / 255, 1)
