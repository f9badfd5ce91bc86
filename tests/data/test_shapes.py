"""The generated data set: deterministic, balanced, independent of the count, not degenerate."""

import numpy as np
import pytest

from kerasnorm.data.shapes import FIGURES, shapes


@pytest.fixture(scope="module")
def drawn():
    return shapes(train=1000, test=250)


def test_layout(drawn) -> None:
    assert drawn.image_shape == (32, 32, 3)
    assert drawn.train.images.dtype == np.uint8
    assert drawn.train.images.flags.c_contiguous
    assert drawn.train.labels.dtype == np.int32
    assert drawn.class_names == tuple(FIGURES)
    assert len(FIGURES) == 10
    assert drawn.class_counts == {"train": (100,) * 10, "test": (25,) * 10}
    assert drawn.name == "shapes"
    assert "seed 0" in drawn.source


def test_the_same_seed_draws_the_same(drawn) -> None:
    again = shapes(train=1000, test=250)
    assert np.array_equal(again.train.images, drawn.train.images)
    assert np.array_equal(again.test.labels, drawn.test.labels)


def test_seeds_and_splits_differ(drawn) -> None:
    other = shapes(train=100, test=10, seed=1)
    assert not np.array_equal(other.train.images, drawn.train.images[:100])
    assert not np.array_equal(drawn.train.images[:250], drawn.test.images)


def test_the_first_images_do_not_depend_on_the_count(drawn) -> None:
    few = shapes(train=123, test=7)
    assert np.array_equal(few.train.images, drawn.train.images[:123])
    assert np.array_equal(few.train.labels, drawn.train.labels[:123])
    assert np.array_equal(few.test.images, drawn.test.images[:7])


def test_each_ten_in_a_row_hold_every_class(drawn) -> None:
    rows = np.sort(drawn.train.labels.reshape(-1, 10), axis=1)
    assert np.array_equal(rows, np.tile(np.arange(10), (100, 1)))


def test_no_image_twice(drawn) -> None:
    flat = np.concatenate([drawn.train.images, drawn.test.images]).reshape(1250, -1)
    assert len(np.unique(flat, axis=0)) == 1250


def test_pixels_use_the_range(drawn) -> None:
    mean = drawn.train.images.mean(axis=(0, 1, 2)) / 255
    std = drawn.train.images.std(axis=(0, 1, 2)) / 255
    assert np.all(np.abs(mean - 0.5) < 0.05)
    assert np.all((std > 0.15) & (std < 0.35))
    assert drawn.train.images.std(axis=(1, 2)).max(axis=1).min() > 2


@pytest.mark.parametrize("size", [8, 28, 48])
def test_other_sizes(size: int) -> None:
    small = shapes(train=20, test=10, size=size)
    assert small.image_shape == (size, size, 3)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_fill_the_unit_disc_and_no_more(name: str) -> None:
    axis = np.linspace(-1.5, 1.5, 301, dtype=np.float32)
    x, y = np.broadcast_arrays(axis[None, :], axis[:, None])
    inside = FIGURES[name](x, y) < 0
    radius = np.hypot(x, y)[inside].max()
    assert 0.75 < radius < 1.05
    assert 0.1 < inside.mean() * 9 / np.pi < 0.7
    assert not inside[[0, -1]].any()
    assert not inside[:, [0, -1]].any()


def test_figures_differ() -> None:
    axis = np.linspace(-1, 1, 65, dtype=np.float32)
    x, y = np.broadcast_arrays(axis[None, :], axis[:, None])
    masks = [figure(x, y) < 0 for figure in FIGURES.values()]
    for place, mask in enumerate(masks):
        for other in masks[:place]:
            assert (mask != other).mean() > 0.03


def test_colors_alone_say_something_and_settle_nothing(drawn) -> None:
    # By the nearest class mean of the average color: better than chance (10 %), far from right.
    color = drawn.train.images.mean(axis=(1, 2))
    means = np.stack([color[drawn.train.labels == k].mean(axis=0) for k in range(10)])
    test = drawn.test.images.mean(axis=(1, 2))
    guess = ((test[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert 0.2 < (guess == drawn.test.labels).mean() < 0.45
