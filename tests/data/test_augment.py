"""Augmentation: its laws, and that it depends on (seed, epoch, step) alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasnorm.config import DataConfig, resolve
from kerasnorm.data.augment import Augmentation, generator, reflect, to_gray
from kerasnorm.errors import ConfigError

SHAPE = (12, 10, 3)
FILL = np.array([10.0, 20.0, 30.4])


def images(count=64, shape=SHAPE, seed=0):
    return generator(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


def augment(config, batch, epoch=0, step=0, seed=0, shape=SHAPE):
    augmentation = Augmentation(config, shape, FILL[: shape[-1]], len(batch), seed)
    return augmentation.apply(batch, augmentation.draw(np.arange(len(batch)), epoch, step))


def test_nothing_on_changes_nothing():
    batch = images()
    assert np.array_equal(augment(DataConfig(), batch), batch)


def test_a_sure_flip_mirrors_the_columns():
    batch = images()
    assert np.array_equal(augment(DataConfig(flip=1.0), batch), batch[:, :, ::-1])


def test_alternating_flip_mirrors_each_image_in_every_other_epoch():
    batch, config = images(), DataConfig(alternating_flip=True)
    epochs = [augment(config, batch, epoch) for epoch in range(3)]
    mirrored = [(epoch == batch[:, :, ::-1]).all(axis=(1, 2, 3)) for epoch in epochs]
    assert np.array_equal(mirrored[0], ~mirrored[1])
    assert np.array_equal(mirrored[0], mirrored[2])
    assert 0.25 < mirrored[0].mean() < 0.75


def test_translation_moves_every_image_within_reach_and_reflects_edges():
    batch = images()
    moved = augment(DataConfig(translate=2), batch)
    padded = np.pad(batch, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    height, width, _ = SHAPE
    crops = {
        (row, column): padded[:, row : row + height, column : column + width]
        for row in range(5)
        for column in range(5)
    }
    found = [
        next(offset for offset, crop in crops.items() if np.array_equal(crop[i], moved[i]))
        for i in range(len(batch))
    ]
    assert len(set(found)) > 15


def test_a_sure_hole_is_a_square_of_the_mean_color_inside_the_image():
    batch = np.full((32, *SHAPE), 200, np.uint8)
    holed = augment(DataConfig(cutout=1.0, cutout_size=4), batch)
    is_hole = (holed == np.array([10, 20, 30])).all(axis=-1)
    assert (is_hole.sum(axis=(1, 2)) == 16).all()
    assert (is_hole.any(axis=2).sum(axis=1) == 4).all()
    assert (holed[~is_hole] == 200).all()


def test_gray_is_the_bt601_luma():
    gray = augment(DataConfig(gray=1.0), images())
    luma = np.rint(images().astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))
    assert np.array_equal(gray, np.repeat(luma[..., None], 3, axis=-1))
    assert np.array_equal(to_gray(images(shape=(4, 4, 1))), images(shape=(4, 4, 1)))


def test_probabilities_are_met():
    config = DataConfig(flip=0.2, gray=0.15, cutout=0.5, cutout_size=4, shift_scale_rotate=0.25)
    augmentation = Augmentation(config, SHAPE, FILL, 20_000, 0)
    draws = augmentation.draw(np.arange(20_000), 0, 0)
    shares = [draws.flip, draws.gray, draws.hole[:, 0] >= 0, draws.is_affine]
    # Four sigma of a binomial share with n = 20,000 is below 0.015.
    assert np.allclose([share.mean() for share in shares], [0.2, 0.15, 0.5, 0.25], atol=0.015)


def test_the_warp_keeps_a_constant_image_and_stays_near_a_smooth_one():
    flat = np.full((16, *SHAPE), 77, np.uint8)
    config = DataConfig(shift_scale_rotate=1.0)
    assert np.array_equal(augment(config, flat), flat)
    side = 32
    ramp = np.broadcast_to(np.linspace(0, 255, side)[None, None, :, None], (16, side, side, 1))
    warped = augment(config, np.rint(ramp).astype(np.uint8), shape=(side, side, 1))
    center = warped[:, 12:20, 12:20].mean()
    assert abs(center - 127.5) < 10
    assert not np.array_equal(warped[0], warped[1])


def test_the_warp_moves_a_point_as_shift_scale_and_rotation_say():
    # One bright pixel off the center; every output must hold it within the limits of the draw.
    image = np.zeros((200, 33, 33, 1), np.uint8)
    image[:, 16, 24] = 255
    augmentation = Augmentation(
        DataConfig(shift_scale_rotate=1.0), (33, 33, 1), FILL[:1], len(image), 0
    )
    warped = augmentation.apply(image, augmentation.draw(np.arange(len(image)), 0, 0))
    total = warped.sum(axis=(1, 2, 3)).astype(float)
    rows = (warped[..., 0].sum(axis=2) @ np.arange(33)) / total - 16
    columns = (warped[..., 0].sum(axis=1) @ np.arange(33)) / total - 16
    # radius 8 * (1 ± 0.1), turned by at most 15 degrees, shifted by at most 3.3 pixels, ± 0.7 of
    # a pixel from sampling one bright pixel.
    assert (abs(rows) < 8.8 * np.sin(np.deg2rad(15)) + 3.3 + 0.7).all()
    assert (columns > 7.2 * np.cos(np.deg2rad(15)) - 3.3 - 0.7).all()
    assert (columns < 8.8 + 3.3 + 0.7).all()
    assert rows.std() > 1
    assert columns.std() > 1


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_draws_are_a_function_of_seed_epoch_and_step(seed, epoch, step):
    config = resolve({"recipe": "era8"}).data
    batch = images(8, (32, 32, 3))
    first = augment(config, batch, epoch, step, seed, (32, 32, 3))
    again = augment(config, batch, epoch, step, seed, (32, 32, 3))
    other = augment(config, batch, epoch, step + 1, seed, (32, 32, 3))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.dtype == np.uint8


@given(st.integers(-100, 100), st.integers(2, 9))
def test_reflection_agrees_with_numpy_pad(position, size):
    padded = np.pad(np.arange(size), 100, mode="reflect")
    if position < size + 100:
        assert reflect(np.array([position]), size)[0] == padded[position + 100]
    assert reflect(np.array([position]), 1)[0] == 0


@pytest.mark.parametrize(
    "config", [DataConfig(translate=10), DataConfig(cutout=0.1, cutout_size=11)]
)
def test_what_is_larger_than_the_image_is_refused(config):
    with pytest.raises(ConfigError, match="10 pixels"):
        Augmentation(config, SHAPE, FILL, 1, 0)


def test_a_shift_of_an_eighth_is_one_of_so_many_pixels():
    """Of the shorter side: 4 pixels for 32x48 images."""
    shape, fill = (32, 48, 3), np.zeros(3)
    eighth, four, three = (
        Augmentation(DataConfig(translate=reach), shape, fill, 64, 0).draw(np.arange(64), 1, 2)
        for reach in (-1, 4, 3)
    )
    assert np.array_equal(eighth.offset, four.offset)
    assert not np.array_equal(eighth.offset, three.offset)
    assert np.abs(four.offset).max() == 4
