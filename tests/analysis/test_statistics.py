"""Networks from inside."""

import itertools
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.tiny import config, dataset

from kerasnorm.analysis.statistics import (
    LayerStatistics,
    NetworkStatistics,
    Taps,
    epochs_figure,
    layers_figure,
    weight_histogram,
)
from kerasnorm.data import Split
from kerasnorm.training.fit import make_engine

LABELS = ["C1", "C2", "c3", "C3", "C4", "C5", "c6", "C7", "C8", "C9"]


def measured(norm, **overrides):
    engine = make_engine(config(norm=norm, **overrides), dataset())
    taps = Taps(engine.model)
    before = {name: array.copy() for name, array in engine.state().items()}
    rows = taps.measure(dataset().train, 0)
    after = engine.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    return engine, taps, rows


@pytest.mark.parametrize("norm", ["bn", "gn", "none"])
@pytest.mark.parametrize("order", ["conv-norm-act", "conv-act-norm"])
def test_a_row_for_each_convolution(norm, order):
    _, _, rows = measured(norm, order=order)
    assert [row.layer for row in rows] == LABELS
    assert all(np.isnan(row.update_ratio) for row in rows)
    assert all(0 <= row.dead_share <= row.zero_share <= 1 for row in rows)
    assert all(row.gradient_norm >= 0 and row.weight_norm > 0 for row in rows)


def test_bn_before_the_activation_gives_it_mean_0_and_std_1():
    _, _, rows = measured("bn", order="conv-norm-act")
    assert np.allclose([row.activation_mean for row in rows], 0, atol=1e-3)
    assert np.allclose([row.activation_std for row in rows], 1, atol=0.02)
    _, _, rows = measured("none")
    assert max(abs(row.activation_std - 1) for row in rows) > 0.1


class OwnNorm(keras.layers.Layer):
    """A norm of the user's own."""

    def call(self, x):
        return x - keras.ops.mean(x, axis=(1, 2), keepdims=True)


@pytest.mark.backend("any")
def test_a_convolution_is_followed_to_its_activation_wherever_that_is():
    layers = keras.layers
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.SeparableConv2D(5, 3, name="separable"),
            OwnNorm(),
            layers.ELU(),
            layers.Conv2D(4, 3, padding="same", name="last"),
        ],
        name="inner",
    )
    pixels = keras.Input((8, 8, 3))
    shared = layers.Conv2D(4, 3, padding="same", activation="relu", name="fused")
    x = shared(layers.Conv2D(4, 1, name="linear")(pixels))
    x = keras.ops.relu(layers.BatchNormalization()(inner(shared(x))))
    logits = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(pixels, logits)
    model.get_layer("fused").trainable = False
    taps = Taps(model)
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    rows = taps.measure(Split(images, np.arange(6)), 0)
    assert [row.layer for row in rows] == ["fused", "inner/separable", "inner/last"]
    assert np.isnan(rows[0].gradient_norm)  # frozen
    assert rows[1].gradient_norm > 0
    one = keras.Model(pixels, model.get_layer("linear").output)(images.astype(np.float32))
    kernel, bias = (keras.ops.convert_to_tensor(w) for w in shared.get_weights())
    before = keras.ops.convert_to_numpy(keras.ops.conv(one, kernel, padding="same") + bias)
    assert np.isclose(rows[0].activation_mean, before.mean(), rtol=1e-4)
    assert np.isclose(rows[0].activation_std, before.std(), rtol=1e-4)
    assert np.isclose(rows[0].zero_share, (before <= 0).mean(), atol=1e-3)
    assert abs(rows[1].activation_mean) < 1e-4  # behind the user's norm
    assert rows[1].weight_norm == pytest.approx(
        np.linalg.norm(inner.get_layer("separable").get_weights()[1]), rel=1e-5
    )


@pytest.mark.backend("any")
def test_a_dead_channel_is_seen():
    engine, taps, rows = measured("none", residual=False, activation="relu")
    assert rows[0].dead_share == 0
    kernel = engine.model.get_layer("convblock1_conv1").kernel
    array = keras.ops.convert_to_numpy(kernel.value).copy()
    array[..., 0] = 0
    kernel.assign(array)
    assert taps.measure(dataset().train, 0)[0].dead_share == 0.25


def test_updates_are_measured_against_the_weights_before():
    engine, taps, _ = measured("gn")
    before = taps.weights()
    engine.train_epoch(0)
    rows = taps.measure(dataset().train, 1, before)
    moved = [
        np.linalg.norm(new - old) / np.linalg.norm(old)
        for new, old in zip(taps.weights(), before, strict=True)
    ]
    assert np.allclose([row.update_ratio for row in rows], moved)
    assert min(moved) > 0


def run_of(names, label="a " * 99):
    """Statistics of a run of one epoch whose layers have these names."""
    rows = [
        LayerStatistics(
            epoch, layer, 0.0, 1.0, 0.5, 0.0, 1.0, 1.0, (0.0,) * 5, 0.1 if epoch else np.nan
        )
        for epoch in (0, 1)
        for layer in names
    ]
    weights = weight_histogram([np.array([1.0, -1.0])], 1.0)
    return NetworkStatistics(Path("run"), label, "bn", rows, weights, 1.0, 0.5, 1.0, 0.5, 9, 1)


def test_one_epoch_has_whole_ticks():
    axes = epochs_figure([run_of(("C1", "C2"))]).figure.axes[2]  # the updates; none at the start
    assert [tick for tick in axes.get_xticks() if 0.5 <= tick <= 1.5] == [1]
    assert "…" in axes.get_title()


@pytest.mark.parametrize("count", [10, 100])
def test_the_names_of_layers_do_not_overlap(count):
    names = LABELS if count == 10 else [f"block_{place}_depthwise" for place in range(count)]
    runs = [run_of(names, "one"), run_of(names, "other")]
    for draw, axis in ((layers_figure, "x"), (epochs_figure, "y")):
        figure = draw(runs).figure
        figure.canvas.draw()
        texts = [
            text for text in getattr(figure.axes[0], f"get_{axis}ticklabels")() if text.get_text()
        ]
        ends = sorted(
            (getattr(box, f"{axis}0"), getattr(box, f"{axis}1"))
            for box in (text.get_window_extent() for text in texts)
        )
        assert len(ends) > 4
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
    assert texts[0].get_text() == names[0]


def test_runs_of_different_networks_each_have_their_layers():
    runs = [run_of(LABELS, "one"), run_of(["conv_a", "conv_b"], "other")]
    figure = epochs_figure(runs).figure
    for axes, names in zip(figure.axes, (LABELS, ["conv_a", "conv_b"]), strict=False):
        assert [text.get_text() for text in axes.get_yticklabels()] == names
    lines = layers_figure(runs).figure.axes[0].lines
    assert [len(line.get_xdata()) for line in lines] == [10, 2]


def test_a_histogram_counts_the_weights_between_its_edges_once():
    kernels = [np.array([0.0, 1e-9, 0.5, -2.0]), np.array([[0.01, 0.02]])]
    found = weight_histogram(kernels, 1.0)
    assert np.isclose(found.share.sum(), 5 / 6)
    assert np.isclose(found.sparsity, 2 / 6)
    assert found.share[0] == found.share[-1] == 0  # what lies beyond makes no spike at the ends
