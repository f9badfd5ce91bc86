"""The order of the images: every one once an epoch, a function of (seed, epoch)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasnorm.data import Split
from kerasnorm.data.batches import Batches
from kerasnorm.errors import ConfigError


def numbered(count):
    """A split whose image i is filled with i, so that images tell their index."""
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    return Split(images, np.arange(count, dtype=np.int32))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_holds_every_image_once_with_its_label(count, batch_size, seed, epoch):
    batches = Batches(numbered(count), min(batch_size, count), seed)
    parts = [batches.batch(epoch, step) for step in range(batches.steps)]
    labels = np.concatenate([labels for _, labels in parts])
    images = np.concatenate([images for images, _ in parts])
    assert sorted(labels) == list(range(count))
    assert np.array_equal(images[:, 0, 0, 0], labels)
    assert all(len(labels) == batches.batch_size for _, labels in parts[:-1])


def test_the_order_changes_with_epoch_and_seed_and_with_nothing_else():
    split = numbered(50)
    order = Batches(split, 10, seed=0).order(0)
    assert np.array_equal(order, Batches(split, 7, seed=0).order(0))
    assert not np.array_equal(order, Batches(split, 10, seed=0).order(1))
    assert not np.array_equal(order, Batches(split, 10, seed=1).order(0))


def test_the_order_is_the_same_in_every_release():
    # Written down once: a change here would break the repetition of published runs.
    assert Batches(numbered(8), 4, seed=0).order(0).tolist() == [1, 3, 7, 6, 0, 4, 2, 5]


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match="at most the 5 training images"):
        Batches(numbered(5), 6, 0)
