"""The four ways of input preprocessing, and what they promise."""

import numpy as np
import pytest
from helpers.tiny import TINY
from hypothesis import given
from hypothesis import strategies as st

import kerasnorm
from kerasnorm.data.preprocessing import equalize
from kerasnorm.explain import texts
from kerasnorm.explain.inputs_measure import PREPROCESSINGS, preprocess
from kerasnorm.tables import to_text

SEEDS = st.integers(0, 2**32 - 1)


def images(seed, shape=(3, 16, 16, 2)):
    rng = np.random.Generator(np.random.PCG64(seed))
    return np.clip(rng.normal(90, 40, shape), 0, 255).astype(np.uint8)


@given(SEEDS)
def test_standardized_channels_have_mean_0_and_sd_1(seed):
    preprocessed = preprocess(images(seed), "standardize")
    assert np.allclose(preprocessed.mean, 0, atol=1e-12)
    assert np.allclose(preprocessed.std, 1, atol=1e-12)


@given(SEEDS)
def test_standardizing_keeps_the_shape_of_the_histogram_and_equalizing_does_not(seed):
    raw = images(seed).astype(np.float64)
    standardized = preprocess(images(seed), "standardize").pixels
    assert np.isclose(np.corrcoef(raw[..., 0].ravel(), standardized[..., 0].ravel())[0, 1], 1)
    equalized = preprocess(images(seed), "equalize").pixels
    assert np.corrcoef(raw[..., 0].ravel(), equalized[..., 0].ravel())[0, 1] < 0.999


@given(SEEDS)
def test_equalized_histograms_are_flat(seed):
    """Each level's share of pixels up to it is its share of 255, to the width of one old level."""
    raw = images(seed)
    flat = equalize(raw)
    for before, after in zip(np.moveaxis(raw, -1, 1), np.moveaxis(flat, -1, 1), strict=True):
        for old, channel in zip(before, after, strict=True):
            levels, counts = np.unique(channel, return_counts=True)
            cumulated = counts.cumsum() / channel.size
            widest = np.unique(old, return_counts=True)[1].max() / channel.size
            assert np.abs(cumulated - levels / 255).max() <= widest + 1 / 255


def test_where_every_level_occurs_once_equalizing_changes_nothing():
    ramp = np.random.Generator(np.random.PCG64(0)).permutation(256).astype(np.uint8)
    assert np.array_equal(equalize(ramp.reshape(1, 16, 16, 1)), ramp.reshape(1, 16, 16, 1))


def test_scale_and_none_leave_0_to_1_and_0_to_255():
    raw = images(0)
    assert np.allclose(preprocess(raw, "scale").pixels, raw / 255)
    assert np.allclose(preprocess(raw, "none").pixels, raw)


@pytest.mark.parametrize("train", [False, True])
def test_the_answer_shows_all_four_and_trains_if_asked(train, tmp_path):
    answer = kerasnorm.inputs(**TINY, norm="bn", train=train)
    assert [one.preprocessing for one in answer.data] == list(PREPROCESSINGS)
    assert set(answer.figures) == {"preprocessing"} | (
        {"preprocessing-training"} if train else set()
    )
    assert {len(one.history) for one in answer.data} == {2 if train else 0}
    table = to_text(texts.inputs_table(answer.data))
    assert ("train loss" in table) == train
    assert len(answer.save(tmp_path)) == len(answer.figures)


def test_a_training_that_diverges_is_an_answer_too():
    wild = {"norm": "none", "optimizer": "sgd", "learning_rate": 1e30, "schedule": "constant"}
    answer = kerasnorm.inputs(**TINY, **wild, weight_decay=0.0, train=True)
    assert all(one.diverged for one in answer.data)
    assert "diverged" in to_text(texts.inputs_table(answer.data))
