"""The four ways of input preprocessing, and what they promise."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers.drawn import images, words, written
from helpers.tiny import TINY, config
from hypothesis import given
from hypothesis import strategies as st

import kerasnorm
from kerasnorm.analysis.inputs import (
    PREPROCESSINGS,
    augmentation_figure,
    augmented_views,
    histogram_figure,
    input_figures,
    inputs_table,
    level_edges,
    preprocess,
)
from kerasnorm.config import DataConfig
from kerasnorm.data import prepare
from kerasnorm.data.dataset import Split
from kerasnorm.data.preprocessing import equalize
from kerasnorm.tables import to_text

SEEDS = st.integers(0, 2**32 - 1)


def normal_images(seed, shape=(3, 16, 16, 2)):
    rng = np.random.Generator(np.random.PCG64(seed))
    return np.clip(rng.normal(90, 40, shape), 0, 255).astype(np.uint8)


@given(SEEDS)
def test_standardized_channels_have_mean_0_and_std_1(seed):
    preprocessed = preprocess(normal_images(seed), "standardize")
    assert np.allclose(preprocessed.mean((0, 1, 2)), 0, atol=1e-12)
    assert np.allclose(preprocessed.std((0, 1, 2)), 1, atol=1e-12)


@given(SEEDS)
def test_standardizing_keeps_the_shape_of_the_histogram_and_equalizing_does_not(seed):
    raw = normal_images(seed).astype(np.float64)
    standardized = preprocess(normal_images(seed), "standardize")
    assert np.isclose(np.corrcoef(raw[..., 0].ravel(), standardized[..., 0].ravel())[0, 1], 1)
    equalized = preprocess(normal_images(seed), "equalize")
    assert np.corrcoef(raw[..., 0].ravel(), equalized[..., 0].ravel())[0, 1] < 0.999


@given(SEEDS)
def test_equalized_histograms_are_flat(seed):
    """Each level's share of pixels up to it is its share of 255, to the width of one old level."""
    raw = normal_images(seed)
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
    raw = normal_images(0)
    assert np.allclose(preprocess(raw, "scale"), raw / 255)
    assert np.allclose(preprocess(raw, "none"), raw)


@pytest.mark.long
@pytest.mark.parametrize("train", [False, True])
def test_the_answer_shows_all_four_and_trains_if_asked(train, tmp_path):
    answer = kerasnorm.inputs(**TINY, norm="bn", train=train)
    assert [one.preprocessing for one in answer.data] == list(PREPROCESSINGS)
    assert set(answer.figures) == {"preprocessing"} | (
        {"preprocessing-training"} if train else set()
    )
    assert {len(one.history) for one in answer.data} == {2 if train else 0}
    table = to_text(inputs_table(answer.data))
    assert ("train loss" in table) == train
    assert len(answer.save(tmp_path)) == len(answer.figures)


def test_a_training_that_diverges_is_an_answer_too():
    wild = {"norm": "none", "optimizer": "sgd", "learning_rate": 1e30, "schedule": "constant"}
    answer = kerasnorm.inputs(**TINY, **wild, weight_decay=0.0, train=True)
    assert all(one.diverged for one in answer.data)
    assert "diverged" in to_text(inputs_table(answer.data))


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, 50),
        ({"validation": 20}, 50),
        ({"validation": 60}, 50),  # more than are trained on
        ({"validation": 170}, 30),
        ({"train_size": 100, "validation": 20}, 80),
    ],
)
def test_images_held_out_for_validation_are_none_of_those_trained_on(
    tmp_path, monkeypatch, options, trained
):
    rng = np.random.Generator(np.random.PCG64(0))
    pixels, labels = rng.integers(0, 256, (200, 8, 8, 3), np.uint8), np.arange(200) % 2
    np.savez(tmp_path / "d.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    found = []

    def fit(config, **_):
        found.append(len(prepare(config.data, config.train.seed).train))
        return SimpleNamespace(history=({"epoch": 1, "train_loss": 2.0, "test_accuracy": 0.1},))

    monkeypatch.setattr("kerasnorm.analysis.inputs.TRAINED", 50)
    monkeypatch.setattr("kerasnorm.analysis.inputs.fit", fit)
    answer = kerasnorm.inputs(data=str(tmp_path / "d.npz"), train=True, **options)
    assert found == [trained] * 4
    assert f", {trained} training images." in answer.pictures[-1].caption


@given(SEEDS, st.sampled_from(list(PREPROCESSINGS)))
def test_some_images_are_preprocessed_by_the_statistics_of_all(seed, name):
    raw = normal_images(seed)
    assert np.array_equal(preprocess(raw, name, np.array([0, 2])), preprocess(raw, name)[[0, 2]])


@pytest.fixture
def sorted_classes(tmp_path, monkeypatch):
    """Thirty black images, then thirty white ones, of which ten are measured at a time."""
    labels = np.repeat([0, 1], 30)
    pixels = np.broadcast_to(255 * labels[:, None, None, None], (60, 32, 32, 3)).astype(np.uint8)
    path = tmp_path / "sorted.npz"
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    monkeypatch.setattr("kerasnorm.analysis.inputs.SAMPLES", 10)
    return path


def test_images_that_come_class_by_class_are_measured_of_every_class(sorted_classes):
    found = {one.preprocessing: one for one in kerasnorm.inputs(data=str(sorted_classes)).data}
    assert np.allclose(found["none"].mean, 127.5)
    assert np.allclose(found["scale"].std, 0.5)
    assert np.allclose(found["standardize"].mean, 0)
    assert np.allclose(found["standardize"].std, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_means_and_stds_are_those_of_all_images(tmp_path, monkeypatch, channels):
    """Of which the figure shows ten."""
    rng = np.random.Generator(np.random.PCG64(channels))
    pixels = rng.integers(0, 256, (40, 32, 32, channels)) // np.arange(1, 41)[:, None, None, None]
    pixels, labels = pixels.astype(np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "d.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    monkeypatch.setattr("kerasnorm.analysis.inputs.SAMPLES", 10)
    for one in kerasnorm.inputs(data=str(tmp_path / "d.npz")).data:
        whole = preprocess(pixels, one.preprocessing)
        assert np.allclose(one.mean, whole.mean((0, 1, 2)), atol=1e-9)
        assert np.allclose(one.std, whole.std((0, 1, 2)))


@pytest.mark.long
def test_figures_of_the_input_show_every_class(sorted_classes):
    augmented, *_ = input_figures(config(data=str(sorted_classes), flip=0.5))
    raw = [axes.images[0].get_array() for axes in augmented.figure.axes[::7]]
    assert {int(np.max(image)) for image in raw} == {0, 255}
    figure = kerasnorm.inputs(data=str(sorted_classes)).figures["preprocessing"]
    samples = [axes.images[0].get_array() for axes in figure.axes[:4]]
    assert {int(np.max(image)) for image in samples} == {0, 255}


class TestPictures:
    def test_the_grid_holds_raw_and_augmented_images(self):
        raw = images(3, 8, 6)
        augmented = np.stack([raw, 255 - raw])
        picture = augmentation_figure(raw, augmented, "negative")
        panels = picture.figure.axes
        grid = np.array([axes.images[0].get_array() for axes in panels]).reshape(3, 3, 8, 6, 3)
        np.testing.assert_array_equal(grid[:, 0], raw)
        np.testing.assert_array_equal(grid[:, 2], 255 - raw)
        assert [axes.get_title() for axes in panels[:3]] == ["raw", "epoch 1", "epoch 2"]
        assert written(picture).width == 1200

    def test_views_show_each_augmentation_and_all(self):
        split = Split(images(20), np.zeros(20, np.int32))
        config = DataConfig(alternating_flip=True, translate=2, cutout=0.5, cutout_size=4)
        indices = np.array([4, 7, 9])
        views = augmented_views(split, config, indices, 4, seed=0)
        assert list(views) == ["alternating flip", "translate 2", "cutout 0.5", "recipe"]
        assert {view.shape for view in views.values()} == {(4, 3, 8, 8, 3)}
        flips = views["alternating flip"]
        np.testing.assert_array_equal(flips[0], flips[1][:, :, ::-1])
        raw = split.images[indices]
        np.testing.assert_array_equal(
            np.sort(flips.ravel()), np.sort(np.tile(raw, (4, 1, 1, 1)).ravel())
        )

    def test_histograms_count_every_pixel(self):
        raw = images(50)
        preprocessed = (raw / np.float32(255) - 0.5) / 0.25
        picture = histogram_figure(raw, preprocessed, "standardize")
        for axes, pixels in zip(picture.figure.axes, (raw, preprocessed), strict=True):
            assert len(axes.patches) == 3
            for channel, patch in enumerate(axes.patches):
                values, edges, _ = patch.get_data()
                assert values.sum() == pytest.approx(100)
                assert (
                    edges[0]
                    <= pixels[..., channel].min()
                    <= pixels[..., channel].max()
                    <= edges[-1]
                )
            mean, std = pixels[..., 0].mean(), pixels[..., 0].std()
            text = axes.get_legend().get_texts()[0].get_text()
            assert text == f"red: mean {mean:.2f}, std {std:.2f}"
        written(picture)

    def test_edges_take_whole_levels(self):
        levels = np.arange(256, dtype=np.float32) / 255 * 3.7 - 2
        edges = level_edges(levels)
        np.testing.assert_array_equal(np.histogram(levels, edges)[0], np.full(64, 4))
        np.testing.assert_array_equal(level_edges(np.array([7, 7])), [6.5, 7.5])
        assert len(level_edges(np.arange(10))) == 11

    def test_each_augmentation_has_a_file_of_its_own(self, tmp_path):
        raw = images(6, channels=1)
        pictures = [augmentation_figure(raw[:2], raw[None, :2], "flip 0.5"),
                    histogram_figure(raw, raw / 255, "scale")]  # fmt: skip
        paths = [picture.save(tmp_path / "new" / "folder") for picture in pictures]
        assert [path.name for path in paths] == ["augmentation-flip-0.5.png", "histograms.png"]
        assert all(path.is_file() for path in paths)

    def test_a_config_says_what_is_drawn(self):
        off = {"alternating_flip": False, "translate": 0, "cutout": 0.0}
        found = input_figures(config(flip=0.5, **off, preprocessing="equalize"))
        names = [picture.name for picture in found]
        assert names == ["augmentation-flip-0.5", "augmentation-recipe", "histograms"]
        assert all(words(picture) for picture in found)
