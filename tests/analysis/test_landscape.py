"""The loss around a model: what holds at its middle, and what norms do to it."""

import keras
import numpy as np
import pytest
from helpers.tiny import config, dataset

from kerasnorm.analysis.landscape import (
    advance,
    filter_direction,
    gradient_line,
    gradient_lines,
    surface,
)
from kerasnorm.analysis.probe import Probe
from kerasnorm.data.dataset import Split
from kerasnorm.inspection.evaluation import predict, score
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


@pytest.mark.backend("any")
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
    weights = Probe(engine("bn").model).weights()
    for weight, direction in zip(weights, filter_direction(weights, 0), strict=True):
        if weight.ndim < 2:
            assert not direction.any()
        else:
            lengths = [np.sqrt(np.square(a).sum((0, 1, 2))) for a in (weight, direction)]
            assert np.allclose(*lengths, rtol=1e-5)


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


@pytest.mark.backend("any")
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


def test_a_probe_puts_moving_statistics_back():
    fresh = engine("bn")
    before = state(fresh)
    Probe(fresh.model).gradient(*fresh.batches.batch(0, 0))
    assert same(state(fresh), before)


@pytest.mark.backend("any")
@pytest.mark.parametrize("norm", ["bn", "gn"] if IS_TORCH else ["bn"])
def test_training_in_windows_is_training(norm):
    whole, parts = engine(norm), engine(norm)
    for epoch in (0, 1):
        whole.train_epoch(epoch)
    for start, count in ((0, 3), (3, 2), (5, 3)):  # four steps an epoch
        advance(parts, parts.batches, start, count)
    a, b = whole.state(), parts.state()
    assert all(np.allclose(a[name], b[name], rtol=1e-4, atol=1e-5) for name in a)


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
