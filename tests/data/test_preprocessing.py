"""Pixel statistics, equalization and the input's statistics, against the plain formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kerasnorm.data import stored
from kerasnorm.data.preprocessing import (
    channel_statistics,
    equalize,
    input_statistics,
)
from kerasnorm.data.shapes import shapes

images = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=4, max_dims=4, max_side=5), elements=st.integers(0, 255)
)


def equalized_channel(pixels: np.ndarray) -> np.ndarray:
    """One image's channel, level by level, by the formula."""
    cdf = np.array([(pixels <= level).sum() for level in range(256)])
    lowest = cdf[pixels.min()]
    if lowest == pixels.size:
        return pixels
    exact = 255 * (cdf[pixels] - lowest) / (pixels.size - lowest)
    return np.floor(exact + 0.5).astype(np.uint8)


@given(images)
def test_statistics_are_those_of_numpy(pixels: np.ndarray) -> None:
    mean, std = channel_statistics(pixels)
    scaled = pixels.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 1, 2)), rtol=0, atol=1e-12)


def test_statistics_of_a_constant_channel_are_exact() -> None:
    pixels = np.full((50, 32, 32, 3), [0, 77, 255], np.uint8)
    mean, std = channel_statistics(pixels)
    assert mean.tolist() == [0, 77 / 255, 1]
    assert std.tolist() == [0, 0, 0]


@settings(max_examples=25)
@given(images)
def test_equalize_is_the_formula(pixels: np.ndarray) -> None:
    result = equalize(pixels)
    assert result.dtype == np.uint8
    for image, expected in zip(result, pixels, strict=True):
        for channel in range(pixels.shape[-1]):
            assert np.array_equal(image[..., channel], equalized_channel(expected[..., channel]))


@given(images)
def test_equalize_keeps_the_order_and_fills_the_range(pixels: np.ndarray) -> None:
    rows = np.moveaxis(pixels, -1, 1).reshape(len(pixels) * pixels.shape[-1], -1)
    mapped = np.moveaxis(equalize(pixels), -1, 1).reshape(rows.shape)
    for before, after in zip(rows, mapped, strict=True):
        order = np.argsort(before, kind="stable")
        assert np.all(np.diff(after[order].astype(int)) >= 0)
        assert np.array_equal(np.diff(before[order]) > 0, np.diff(after[order]) > 0)
        if len(np.unique(before)) > 1:
            assert (after.min(), after.max()) == (0, 255)


def test_equalizing_leaves_one_level_alone() -> None:
    flat = np.full((2, 4, 4, 3), 9, np.uint8)
    assert np.array_equal(equalize(flat), flat)


@pytest.mark.parametrize("chunk", [1, 100, 4 * 2**20])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.Generator(np.random.PCG64([1]))
    pixels = rng.integers(0, 256, (7, 6, 5, 2), dtype=np.uint8)
    mean, std = channel_statistics(pixels)
    whole = equalize(pixels)
    monkeypatch.setattr(stored, "CHUNK", chunk)
    assert np.array_equal(equalize(pixels), whole)
    assert np.array_equal(channel_statistics(pixels), (mean, std))


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
