"""Networks from inside."""

import itertools
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.gradients import parameter_gradients
from helpers.tiny import config, dataset, train

from kerasnorm.analysis.statistics import (
    LayerStatistics,
    NetworkStatistics,
    Taps,
    epochs_figure,
    layers_figure,
    statistics,
    weight_histogram,
    weights_figure,
    weights_table,
)
from kerasnorm.data import Split
from kerasnorm.inspection.graph import kernels
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


@pytest.mark.backend("any", long_on="tensorflow")
def test_a_dead_channel_is_seen():
    engine, taps, rows = measured("none", residual=False, activation="relu")
    assert rows[0].dead_share == 0
    kernel = engine.model.get_layer("convblock1_conv1").kernel
    array = keras.ops.convert_to_numpy(kernel.value).copy()
    array[..., 0] = 0
    kernel.assign(array)
    assert taps.measure(dataset().train, 0)[0].dead_share == 0.25


@pytest.mark.backend("torch")  # TensorFlow convolves channels first on GPUs only
def test_channels_are_those_of_the_convolution_where_they_come_first():
    pixels = keras.Input((8, 8, 3))
    x = keras.layers.Permute((3, 1, 2))(pixels)
    x = keras.layers.Conv2D(4, 3, data_format="channels_first", name="conv")(x)
    x = keras.layers.GlobalAveragePooling2D(data_format="channels_first")(keras.layers.ReLU()(x))
    model = keras.Model(pixels, keras.layers.Dense(2)(x))
    bias = model.get_layer("conv").bias
    bias.assign([-1e6, 1e6, -1e6, -1e6])  # one of four channels lives
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    (row,) = Taps(model).measure(Split(images, np.arange(6, dtype=np.int32) % 2), 0)
    assert (row.zero_share, row.dead_share) == (0.75, 0.75)


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


@pytest.mark.backend("any", long_on="tensorflow")
def test_a_kernel_of_zeros_has_no_update_ratio_and_is_near_0():
    """As that of a residual branch which starts as nothing: 0 to something is no ratio."""
    engine, taps, _ = measured("none")
    kernel = engine.model.get_layer("convblock1_conv1").kernel
    trained = keras.ops.convert_to_numpy(kernel.value).copy()
    kernel.assign(np.zeros_like(trained))
    before = taps.weights()
    kernel.assign(trained)
    rows = taps.measure(dataset().train, 1, before)
    assert np.isnan(rows[0].update_ratio)
    assert [row.update_ratio for row in rows[1:]] == [0] * 9
    assert weight_histogram([np.zeros((3, 3, 2, 2)), np.ones(4)], 1.0).sparsity == 0.9
    assert weight_histogram([np.zeros(4)], 0.0).sparsity == 1


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


def block(shape, name, layer_name="conv"):
    """A model of a convolution, a norm and an activation."""
    layers, start = keras.layers, keras.Input(shape)
    x = layers.Conv2D(4, 3, padding="same", name=layer_name)(start)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    return keras.Model(start, x, name=name)


@pytest.mark.backend("any")
@pytest.mark.parametrize("layer_name", ["conv", "convblock1_conv1"])
def test_layers_of_one_name_in_several_models_each_have_their_row(layer_name):
    """Also a name of the built-in network, whose layers have short labels."""
    pixels, names = keras.Input((8, 8, 3)), ("block1", "block2", "block3")
    x = pixels
    for name in names:
        x = block(x.shape[1:], name, layer_name)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(pixels, keras.layers.Dense(6)(x))
    convolutions = [model.get_layer(name).get_layer(layer_name) for name in names]
    for factor, layer in zip((1, 2, 4), convolutions, strict=True):
        layer.kernel.assign(factor * layer.kernel.value)
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    taps = Taps(model)
    rows = taps.measure(Split(images, np.arange(6, dtype=np.int32)), 0, taps.weights())
    assert [row.layer for row in rows] == [f"{name}/{layer_name}" for name in names]
    assert [layer.name for layer in convolutions] == [layer_name] * 3

    def loss():
        logits = model(images.astype(np.float32), training=True)
        found = keras.ops.sparse_categorical_crossentropy(np.arange(6), logits, from_logits=True)
        return keras.ops.mean(found)

    gradients = parameter_gradients(loss, [layer.kernel for layer in convolutions])
    wanted = [np.linalg.norm(one) for one in gradients]
    assert np.allclose([row.gradient_norm for row in rows], wanted, rtol=1e-3)
    assert np.allclose(
        [row.weight_norm for row in rows],
        [np.linalg.norm(layer.get_weights()[0]) for layer in convolutions],
    )
    x = images.astype(np.float32)
    for row, name in zip(rows, names, strict=True):
        kernel, bias = model.get_layer(name).get_layer(layer_name).get_weights()
        kernel = keras.ops.convert_to_tensor(kernel)
        before = keras.ops.convert_to_numpy(keras.ops.conv(x, kernel, padding="same")) + bias
        x = (before - before.mean((0, 1, 2))) / np.sqrt(before.var((0, 1, 2)) + 1e-3)
        assert np.isclose(row.activation_std, x.std(), rtol=1e-3)
        assert np.isclose(row.zero_share, (x <= 0).mean(), atol=0.01)
        x = np.maximum(x, 0)


class LastWeights(keras.callbacks.Callback):
    """Copies the weights at the end of a training."""

    def on_train_end(self, logs=None):
        self.weights = self.model.get_weights()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs by norm, each with copies of the weights at the end of its training."""
    found = {}
    for norm in ("bn", "gn"):
        last, out = LastWeights(), tmp_path_factory.mktemp("trained") / norm
        found[norm] = train(config(norm=norm), out=out, callbacks=[last]), last.weights
    return found


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_the_weights_are_all_kernels_that_were_trained(trained, norm):
    """With gn the kernels are standardized: those in the run's model are others."""
    done, weights = trained[norm]
    (found,) = statistics([done], train_size=32, epochs=1, images=8).data
    kernels = [array.astype(np.float64).ravel() for array in weights if array.ndim == 4]
    assert len(kernels) == 11  # ten of four channels, the first of three, and that of the classes
    flat = np.concatenate(kernels)
    assert flat.size == 9 * (3 * 4 + 7 * 4 * 4) + 2 * 4 * 4 + 4 * 10
    assert np.isclose(found.weights.norm, np.sqrt(flat @ flat))
    assert np.isclose(found.weights.std, flat.std())
    small = [int((np.abs(kernel) < np.abs(kernel).max() / 1000).sum()) for kernel in kernels]
    assert np.isclose(found.weights.sparsity, sum(small) / flat.size)
    table = weights_table([found])
    assert table.rows[0][1] == f"{np.sqrt(flat @ flat):.2f}"
    assert len(table.notes) == 1


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.long
def test_standardized_kernels_that_are_lost_are_left_out(trained, tmp_path, is_there):
    """A checkpoint is gone, or is not that of the model."""
    done, _ = trained["gn"]
    path = tmp_path / "run"
    shutil.copytree(done.path, path)
    if is_there:
        (newest,) = [name for name in (path / "checkpoints").iterdir() if "002" in name.name]
        shutil.rmtree(newest)
    else:
        shutil.rmtree(path / "checkpoints")
    answer = statistics([path, trained["bn"][0]], train_size=32, epochs=1, images=8)
    lost, kept = answer.data
    assert lost.weights is None
    assert kept.weights is not None
    rows = weights_table(answer.data).rows
    assert rows[0][1:4] == ("-", "-", "-")
    assert rows[0][5] == f"{100 * done.metrics['test_accuracy']:.2f}"
    assert "no checkpoint" in weights_table(answer.data).notes[1]
    (picture,) = [picture for picture in answer.pictures if picture.name == "weights"]
    assert "no checkpoint" in picture.caption
    assert len(picture.figure.axes[0].patches) == 1
    assert not weights_figure([lost]).figure.axes[0].patches
    assert answer.document()[0]["weights"] is None


def test_every_kernel_of_an_application_counts():
    options = {"weights": None, "input_shape": (32, 32, 3), "classes": 10}
    model = keras.applications.MobileNet(**options, alpha=0.25)
    found = kernels(model)
    # Its 27 convolutions, the first, 13 depthwise ones and 13 of 1x1, and that of the classes.
    assert len(found) == 28
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    others = sum(layer.count_params() for layer in norms) + 10  # and the biases of the classes
    assert sum(int(np.prod(kernel.shape)) for _, kernel in found) == model.count_params() - others


def test_a_histogram_counts_the_weights_between_its_edges_once():
    kernels = [np.array([0.0, 1e-9, 0.5, -2.0]), np.array([[0.01, 0.02]])]
    found = weight_histogram(kernels, 1.0)
    assert np.isclose(found.share.sum(), 5 / 6)
    assert np.isclose(found.sparsity, 2 / 6)
    assert found.share[0] == found.share[-1] == 0  # what lies beyond makes no spike at the ends
