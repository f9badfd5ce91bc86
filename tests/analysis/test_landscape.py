"""The loss around a model: what holds at its middle, and what norms do to it."""

from itertools import pairwise

import keras
import numpy as np
import pytest
from helpers.tiny import config, dataset, train
from keras import layers, ops

from kerasnorm.analysis.landscape import (
    GradientLines,
    Landscape,
    Surface,
    advance,
    contours_figure,
    filter_axes,
    filter_direction,
    gradient_figure,
    gradient_line,
    gradient_lines,
    landscape,
    landscape_table,
    raw_kernel,
    surface,
    trained_network,
)
from kerasnorm.analysis.probe import Probe
from kerasnorm.conversion.norms import convert_norm
from kerasnorm.data.dataset import Split
from kerasnorm.engines.schedule import learning_rates
from kerasnorm.errors import DivergedError
from kerasnorm.inspection.evaluation import predict, score
from kerasnorm.layers import StandardizedConv2D, leaves, portable, standardize_kernel
from kerasnorm.training.fit import make_engine

NORMS = ("bn", "gn", "ln", "lnc", "in", "rms", "none")
IS_TORCH = keras.backend.backend() == "torch"


def slow_on_tensorflow(norm):
    return pytest.param(norm, marks=pytest.mark.backend("any", slow_on="tensorflow"))


def nothing():
    pass


def engine(norm, train=60, **overrides):
    return make_engine(config(norm=norm, **overrides), dataset(train))


def state(an_engine):
    return {name: array.copy() for name, array in an_engine.state().items()}


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("norm", NORMS if IS_TORCH else ["bn", slow_on_tensorflow("gn")])
def test_the_middle_of_the_surface_is_what_evaluate_says(norm):
    trained = engine(norm)
    trained.train_epoch(0)
    before = state(trained)
    test = dataset().test
    around = surface(trained.model, test, points=3, radius=0.5, tick=nothing)
    assert np.isclose(around.center, score(predict(trained.model, test.images), test.labels).loss)
    assert np.array_equal(around.line, around.plane[1])
    assert around.axis.tolist() == [-0.5, 0, 0.5]
    assert len(np.unique(around.plane)) > 4
    assert same(state(trained), before)


def test_a_direction_is_as_long_as_the_model_filter_by_filter():
    model = engine("bn").model
    weights, axes = Probe(model).weights(), filter_axes(model)
    for weight, direction in zip(weights, filter_direction(weights, axes, 0), strict=True):
        if weight.ndim < 2:
            assert not direction.any()
        else:
            lengths = [np.sqrt(np.square(a).sum((0, 1, 2))) for a in (weight, direction)]
            assert np.allclose(*lengths, rtol=1e-5)


# The shape of a layer's kernels in which each row is a filter, of inputs of 4x4x6.
FILTERS = {
    "convolution": (layers.Conv2D(5, 3), lambda k: k.transpose(3, 0, 1, 2).reshape(5, 54)),
    "groups": (layers.Conv2D(4, 3, groups=2), lambda k: k.transpose(3, 0, 1, 2).reshape(4, 27)),
    "depthwise": (
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        lambda k: k.transpose(2, 3, 0, 1).reshape(12, 9),
    ),
    "transposed": (
        layers.Conv2DTranspose(5, 3),
        lambda k: k.transpose(2, 0, 1, 3).reshape(5, 54),
    ),
    "separable": (
        layers.SeparableConv2D(5, 3, depth_multiplier=2),
        lambda k: k.transpose(2, 3, 0, 1).reshape(12, 9) if k.ndim == 4 and k.shape[0] == 3
        else k.reshape(12, 5).T,
    ),
    "dense": (layers.Dense(5), lambda k: k.T),
    "einsum": (
        layers.EinsumDense("bhwc,dce->bhwde", (None, None, 2, 5)),
        lambda k: k.transpose(0, 2, 1).reshape(10, 6),
    ),
    "ellipsis": (layers.EinsumDense("...x,xy->...y", 5), lambda k: k.T),
    "layer norm per element": (layers.LayerNormalization(axis=(1, 2, 3)), None),
    "PReLU": (layers.PReLU(), None),
}  # fmt: skip


@pytest.mark.backend("any")
@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_is_what_makes_one_channel(name):
    layer, rows_of = FILTERS[name]
    start = keras.Input((4, 4, 6))
    model = keras.Model(start, layer(start))
    rng = np.random.default_rng(0)
    # Each value is of a scale of its own, so that filters are of different norms along each axis.
    weights = [np.exp(rng.normal(0, 2, v.shape)).astype("f") for v in model.trainable_variables]
    directions = filter_direction(weights, filter_axes(model), 0)
    kinds = [v.name.endswith("kernel") for v in model.trainable_variables]
    assert sum(kinds) == (0 if rows_of is None else 2 if name == "separable" else 1)
    for weight, direction, is_kernel in zip(weights, directions, kinds, strict=True):
        if is_kernel:
            norms = [np.linalg.norm(rows_of(a), axis=1) for a in (weight, direction)]
            assert np.allclose(*norms, rtol=1e-5)
        else:
            assert not direction.any()


@pytest.fixture(scope="module")
def standardized(tmp_path_factory):
    """A run whose kernels were standardized, and its network at the end of the training."""
    models = []
    catch = keras.callbacks.LambdaCallback(on_train_end=lambda logs: models.append(catch.model))
    done = train(config(norm="gn"), out=tmp_path_factory.mktemp("ws") / "run", callbacks=[catch])
    return done, models[0]


def mean_entropy(model, split):
    """The mean cross-entropy of a model that Keras calls, in nats, in float64."""
    logits = keras.ops.convert_to_numpy(
        keras.ops.stop_gradient(model(split.images[:].astype(np.float32), training=False))
    ).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(logits)), split.labels]
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - chosen))


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.long
def test_the_surface_is_that_of_the_network_that_was_trained(standardized):
    """Of standardized kernels the files of a run hold what they were standardized to."""
    done, network = standardized
    assert done.config.model.weight_standardization
    answer = landscape([done], steps=1, lines=1, points=3, radius=1.0, images=20)
    plane = answer.data[0].surface.plane
    test = dataset().test
    kept = [keras.ops.convert_to_numpy(v.value).copy() for v in network.trainable_variables]
    assert np.isclose(plane[1, 1], mean_entropy(network, test), rtol=1e-4)
    assert np.isclose(plane[1, 1], done.metrics["test_loss"], rtol=1e-4)
    # The directions as they are drawn, and their lengths from the kernels that were trained.
    centered = [w - w.mean((0, 1, 2)) if w.ndim == 4 else w for w in kept]
    centered[-1] = kept[-1]  # the last convolution is a plain one
    axes = [(0, 1, 2) if w.ndim == 4 else None for w in kept]
    drawn = [filter_direction(centered, axes, seed) for seed in (0, 1)]
    for b, a in ((0, 1), (-1, -1)):
        for variable, w, d, e in zip(network.trainable_variables, centered, *drawn, strict=True):
            variable.assign(w + a * d + b * e)
        assert np.isclose(plane[b + 1, a + 1], mean_entropy(network, test), rtol=1e-3)
    for variable, w in zip(network.trainable_variables, kept, strict=True):
        variable.assign(w)


@pytest.mark.parametrize("scale", [1e-4, 0.1, 1e4])
def test_a_raw_kernel_is_standardized_to_the_given_one_again(scale):
    rng = np.random.default_rng(0)
    raw = (scale * (rng.normal(size=(3, 3, 4, 6)) + 0.5)).astype(np.float32)
    raw[..., 0] = 0  # a filter without variance
    given = keras.ops.convert_to_numpy(standardize_kernel(raw))
    found = raw_kernel(given)
    again = keras.ops.convert_to_numpy(standardize_kernel(found))
    assert np.allclose(again, given, rtol=0, atol=3e-7)
    centered = raw - raw.mean((0, 1, 2), dtype=np.float64)
    if scale < 1:  # a longer filter is beyond the precision of |k|^2, which is then 1
        assert np.allclose(found, centered, rtol=0.02, atol=1e-4 * scale)


def test_standardized_convolutions_are_found_in_models_in_the_model():
    start, pixels = keras.Input((16, 16, 4)), keras.Input((32, 32, 3), name="pixels")
    options = {"padding": "same", "name": "conv"}
    inner = keras.Model(start, layers.BatchNormalization()(layers.Conv2D(4, 3, **options)(start)))
    x = layers.Rescaling(1 / 255)(pixels)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, strides=2, **options)(x))
    x = inner(layers.ReLU()(x))
    model = keras.Model(pixels, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    network = convert_norm(model, "gn", groups=2, weight_standardization=True).model
    saved, test = portable(network), dataset().test
    made = trained_network(saved, network)
    kinds = [type(layer) for layer in leaves(made) if layer.name == "conv"]
    assert kinds == [StandardizedConv2D] * 2
    assert np.isclose(mean_entropy(made, test), mean_entropy(saved, test), rtol=1e-5)
    assert trained_network(saved, saved) is saved


def test_scaling_a_filter_before_a_norm_does_not_change_the_surface():
    """The point of normalizing filters: 2w computes what w does, and looks as flat."""
    net = engine("gn", weight_standardization=False, order="conv-norm-act").model
    split = dataset().test
    options = {"points": 3, "radius": 0.3, "tick": nothing}
    first = surface(net, split, **options)
    for layer in net.layers:
        if "_conv" in layer.name:
            layer.kernel.assign(8 * layer.kernel.value)
    assert np.allclose(surface(net, split, **options).plane, first.plane, rtol=1e-3)


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("norm", ["bn", "gn", slow_on_tensorflow("none")])
def test_the_line_starts_at_the_batchs_loss_and_leaves_the_net_alone(norm):
    fresh = engine(norm)
    before = state(fresh)
    images, labels = fresh.batches.batch(0, 0)
    split = Split(images, labels)
    probe = Probe(fresh.model)
    *_, length = gradient_line(probe, split, [0.0])
    losses, changes, _ = gradient_line(probe, split, [0.0, 0.01 / length**2])
    logits = fresh.model(images.astype(np.float32), training=True)
    logits = keras.ops.convert_to_numpy(keras.ops.stop_gradient(logits))
    assert np.isclose(losses[0], score(logits, labels).loss, rtol=1e-4)
    if norm != "bn":  # which measures otherwise when it is evaluated
        assert np.isclose(losses[0], score(predict(fresh.model, images), labels).loss, rtol=1e-4)
        assert same(state(fresh), before)
    assert changes[0] == 0
    # By Taylor, a small step goes down by distance * |g|^2.
    assert np.isclose(losses[0] - losses[1], 0.01, rtol=0.3)


# Ways from a layer to the output through which no gradient passes.
STOPS = {
    "stop_gradient": ops.stop_gradient,
    "comparison": lambda x: ops.cast(x > 0, "float32"),
    "rank": lambda x: ops.cast(ops.argmax(x, axis=-1, keepdims=True), "float32"),
}


@pytest.mark.backend("any")
@pytest.mark.parametrize("stop", STOPS)
def test_the_gradient_of_weights_that_none_reaches_is_0(stop):
    pixels = keras.Input((8, 8, 3))
    x = STOPS[stop](layers.Conv2D(4, 3)(pixels))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x))
    model = keras.Model(pixels, layers.Dense(3)(x))
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    labels = np.arange(6, dtype=np.int32) % 3
    loss, found = Probe(model).gradient(images, labels)
    assert [bool(part.any()) for part in found] == [False, False, True, True, True, True]
    assert [part.shape for part in found] == [tuple(v.shape) for v in model.trainable_variables]
    assert loss == pytest.approx(score(predict(model, images), labels).loss, rel=1e-5)


def test_a_probe_puts_moving_statistics_back():
    fresh = engine("bn")
    before = state(fresh)
    Probe(fresh.model).gradient(*fresh.batches.batch(0, 0))
    assert same(state(fresh), before)


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("norm", ["bn", "gn"] if IS_TORCH else ["bn"])
def test_training_in_windows_is_training(norm):
    whole, parts = engine(norm), engine(norm)
    for epoch in (0, 1):
        whole.train_epoch(epoch)
    for start, count in ((0, 3), (3, 2), (5, 3)):  # four steps an epoch
        advance(parts, parts.batches, start, count)
    a, b = whole.state(), parts.state()
    assert all(np.allclose(a[name], b[name], rtol=1e-4, atol=1e-5) for name in a)


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("kind", ["native", "keras"])
@pytest.mark.parametrize("schedule", ["triangular", "constant"])
@pytest.mark.parametrize(("start", "count", "bad"), [(0, 3, 2), (2, 6, 5), (5, 3, 7)])
def test_a_window_that_diverges_names_the_epoch_step_and_rate_of_the_run(
    kind, schedule, start, count, bad
):
    """The images of one step, of four in an epoch, make the loss infinite."""
    windowed = engine("none", engine=kind, schedule=schedule, epochs=3)
    assert windowed.batches.steps == 4

    class Poisoned(type(windowed.batches)):
        def batch(self, epoch, step, order=None, part=None):
            images, labels = super().batch(epoch, step, order, part)
            is_bad = epoch * 4 + step == bad
            return np.full_like(images, 255) if is_bad else images // 255, labels

    windowed.batches.__class__ = Poisoned
    first = windowed.model.get_layer("convblock1_conv1")
    first.kernel.assign(np.full(first.kernel.shape, 1e36))
    with pytest.raises(DivergedError) as caught:
        advance(windowed, windowed.batches, start, count)
    text = str(caught.value)
    epoch, step = divmod(bad, 4)
    rate = learning_rates(windowed.config, 12)[bad]
    assert f"at epoch {epoch + 1}, step {step + 1}, at a learning rate of {rate:.6g} (" in text


@pytest.mark.parametrize("flat", [[], [1], [0, 2], [0, 1, 2]])
def test_where_the_gradient_is_0_the_smoothness_is_not_defined(tmp_path, flat):
    norms, losses = np.array([2.0, 0.5, 1.0]), np.ones((3, 3))
    changes = np.array([[0.0, 1.0, 4.0], [0.0, 2.0, 1.0], [0.0, 0.3, 0.4]])
    norms[flat], changes[flat] = 0.0, 0.0
    lines = GradientLines(np.arange(3), np.array([0.0, 0.5, 1.0]), losses, changes, norms)
    expected = np.array([2.0, 8.0, 0.6])  # by hand: max(1 / 1, 4 / 2), max(2 / 0.25, 1 / 0.5), …
    expected[flat] = np.nan
    np.testing.assert_allclose(lines.smoothness, expected)
    plane = np.ones((3, 3))
    found = [
        Landscape(tmp_path, "GN", "gn", lines, Surface(np.arange(3.0) - 1, plane[0], plane, 5))
    ]
    defined = sorted(expected[~np.isnan(expected)])
    cell = landscape_table(found).rows[0][3]
    assert cell == (f"{np.median(defined):.4g}" if defined else "-")
    drawn = gradient_figure(found).figure.axes[2].lines[0].get_ydata()
    assert np.sort(drawn).tolist() == pytest.approx(defined)


@pytest.mark.parametrize("bad", [[0], [1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("columns", [[2], [1, 2]])
def test_a_line_on_which_the_network_overflows_has_no_finite_range(tmp_path, bad, value, columns):
    """A median over the lines is that of numbers, of which infinity is the largest."""
    losses, changes = np.array([[1.0, 2.0, 4.0]] * 3), np.array([[0.0, 1.0, 3.0]] * 3)
    places = np.ix_(bad, columns)
    losses[places] = changes[places] = value
    lines = GradientLines(np.arange(3), np.array([0.0, 0.5, 1.0]), losses, changes, np.ones(3))
    for found, whole in ((lines.loss_range, 2), (lines.change, 3), (lines.smoothness, 3)):
        assert found.tolist() == [np.inf if line in bad else whole for line in range(3)]
    plane = np.ones((3, 3))
    around = Surface(np.arange(3.0) - 1, plane[0], plane, 5)
    cells = landscape_table([Landscape(tmp_path, "GN", "gn", lines, around)]).rows[0]
    assert cells[1] == ("2" if len(bad) == 1 else "inf")


def test_a_surface_on_which_the_network_overflows_says_so():
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(9),
                              layers.Dense(9, "relu"), layers.Dense(2)])  # fmt: skip
    model.set_weights([weight + np.float32(1e12) for weight in model.get_weights()])
    images, labels = np.full((6, 4, 4, 1), 255, np.uint8), np.arange(6, dtype=np.int32) % 2
    found = surface(model, Split(images, labels), points=3, radius=1.0, tick=nothing)
    assert not np.isnan(found.plane).any()
    assert found.plane.max() == np.inf


@pytest.mark.long
def test_without_a_norm_the_loss_along_the_gradient_ranges_wider():
    rough, smooth = (
        gradient_lines(e, e.batches, steps=12, lines=4, rate=0.1, tick=nothing)
        for e in (
            engine(norm, train=240, widths=[16] * 10, learning_rate=0.001, batch_size=60)
            for norm in ("none", "bn")
        )
    )
    assert rough.steps.tolist() == smooth.steps.tolist() == [0, 3, 6, 9]
    for name in ("loss_range", "change", "smoothness"):
        assert np.median(getattr(rough, name)) > np.median(getattr(smooth, name)), name


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("radius", [1.0, 0.125])
def test_the_numbers_below_contours_do_not_touch(tmp_path, count, radius):
    axis = np.linspace(-radius, radius, 5)
    plane = 1 + axis[:, None] ** 2 + axis**2
    around = Surface(axis, plane[2], plane, 5)
    lines = GradientLines(*[np.ones(2)] * 2, *[np.ones((2, 2))] * 2, np.ones(2))
    found = [Landscape(tmp_path, f"GN {place}", "gn", lines, around) for place in range(count)]
    figure = contours_figure(found).figure
    figure.canvas.draw()
    panels = figure.axes[:count]
    boxes = [text.get_window_extent() for axes in panels for text in axes.get_xticklabels()]
    rows = {box.y0 for box in boxes}
    for row in rows:
        ends = sorted((box.x0, box.x1) for box in boxes if box.y0 == row and box.width > 1)
        assert all(end < start for (_, end), (start, _) in pairwise(ends))
