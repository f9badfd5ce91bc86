"""The data set's own operations: stratified samples, subsets, hold-out, counts."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasnorm.data.dataset import Dataset, Split, channels_last, check, stratified_sample
from kerasnorm.errors import DataError


def numbered(labels: list[int]) -> Split:
    """A split whose images tell their place: pixel 0 holds the index."""
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Split(images, np.array(labels, np.int32))


def dataset(train: list[int], test: list[int], names: str = "abc") -> Dataset:
    return Dataset("tiny", "made up", tuple(names), numbered(train), numbered(test))


@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=200),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31 - 1),
)
def test_stratified_sample_keeps_the_shares(labels: list[int], share: float, seed: int) -> None:
    array = np.array(labels, np.int32)
    count = round(share * len(labels))
    chosen = stratified_sample(array, count, seed)

    assert len(chosen) == count
    assert np.array_equal(chosen, np.unique(chosen))
    exact = np.bincount(array, minlength=7) * count / len(array)
    assert np.all(np.abs(np.bincount(array[chosen], minlength=7) - exact) < 1)
    assert np.array_equal(chosen, stratified_sample(array, count, seed))


def test_stratified_sample_of_everything_is_everything() -> None:
    labels = np.array([0] * 7 + [1] * 11 + [2] * 3, np.int32)
    assert np.array_equal(stratified_sample(labels, 21, seed=3), np.arange(21))


def test_stratified_sample_depends_on_the_seed() -> None:
    labels = np.zeros(1000, np.int32)
    assert not np.array_equal(stratified_sample(labels, 10, 0), stratified_sample(labels, 10, 1))


def test_fewer_images_than_classes_are_of_any_classes() -> None:
    """Of classes of one size, the first ones were taken, whatever the seed."""
    labels = np.repeat(np.arange(20), 3).astype(np.int32)
    drawn = [labels[stratified_sample(labels, 5, seed)] for seed in range(40)]
    assert all(len(set(part.tolist())) == 5 for part in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=20)
    assert counts.min() > 0  # a class is left out of all 40 with probability 0.75^40 = 1e-5
    assert counts.max() < 25  # of 40, where 10 are expected: five standard deviations
    many = np.append(labels, [7, 7, 11]).astype(np.int32)  # the largest classes come first
    assert {7, 11} <= set(many[stratified_sample(many, 5, 0)].tolist())


def test_subset_takes_the_same_share_of_each_class() -> None:
    small = dataset([0, 1, 2] * 20, [0, 1, 2] * 10).subset(30, 6)
    assert small.class_counts == {"train": (10, 10, 10), "test": (2, 2, 2)}


def test_subset_of_zero_is_everything() -> None:
    whole = dataset([0, 1, 2], [0])
    assert whole.subset(0, 0).train is whole.train


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((4, 0), "train_size: expected at most the 3 images of made up. Received: train_size=4"),
        ((0, 2), "test_size: expected at most the 1 images"),
        ((2, 0), r"train_size=2, which leaves none of a\. Ask for more"),
    ],
)
def test_subset_refuses(sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataset([0, 1, 2], [0]).subset(*sizes)


def test_hold_out_parts_the_training_set() -> None:
    whole = dataset([0, 1, 2] * 10, [0])
    split = whole.hold_out(6, seed=1)

    assert split.validation is not None
    assert split.class_counts == {"train": (8, 8, 8), "validation": (2, 2, 2), "test": (1, 0, 0)}
    places = [split.train.images.ravel(), split.validation.images.ravel()]
    assert all(np.all(np.diff(place.astype(int)) > 0) for place in places)
    assert sorted(np.concatenate(places)) == list(range(30))


def test_hold_out_of_nothing_changes_nothing() -> None:
    whole = dataset([0, 1, 2], [0])
    assert whole.hold_out(0, seed=0) is whole


@pytest.mark.parametrize(
    ("count", "message"),
    [(6, "expected fewer images than the 6"), (5, r"leaves none of [abc], [abc]\. Hold out fewer")],
)
def test_hold_out_refuses(count: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataset([0, 1, 2] * 2, [0]).hold_out(count, seed=0)


def test_image_shape_and_length() -> None:
    whole = dataset([0, 1, 2], [0])
    assert whole.image_shape == (1, 1, 1)
    assert (len(whole.train), len(whole.test)) == (3, 1)


@pytest.mark.parametrize(
    "images",
    [np.zeros((3, 4, 4, 1), np.float32), np.zeros((3, 4, 4), np.uint8), np.zeros((3, 0, 4, 1))],
)
def test_check_wants_bytes_in_four_dimensions(images: np.ndarray) -> None:
    sound = dataset([0, 1, 2], [0])
    broken = dataclasses.replace(sound, train=Split(images, sound.train.labels))
    with pytest.raises(DataError, match="made up: train set: expected uint8 images of shape"):
        check(broken)
    assert check(sound).splits == sound.splits


def test_channels_last() -> None:
    planes = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    images = channels_last(planes)
    assert images.shape == (2, 4, 5, 3)
    assert images.flags.c_contiguous
    assert np.array_equal(images, planes.transpose(0, 2, 3, 1))
