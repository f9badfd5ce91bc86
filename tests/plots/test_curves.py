"""The curves show the numbers of the history."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from helpers.drawn import legend_texts, make_run, words, written
from hypothesis import given
from hypothesis import strategies as st

from kerasnorm.engines.schedule import learning_rates
from kerasnorm.norms import NORMS
from kerasnorm.plots.curves import (
    accuracy_figure,
    learning_rate_figure,
    loss_figure,
    spread_labels,
)


@pytest.mark.parametrize("measure", ["accuracy", "loss"])
def test_curves_are_the_history(measure):
    runs = [make_run("bn"), make_run("gn", level=0.1)]
    draw = {"accuracy": accuracy_figure, "loss": loss_figure}[measure]
    picture = draw(runs)
    factor = 100 if measure == "accuracy" else 1
    assert [axes.get_title() for axes in picture.figure.axes] == [
        f"TRAINING {measure.upper()}",
        f"TEST {measure.upper()}",
    ]
    for axes, part in zip(picture.figure.axes, ("train", "test"), strict=True):
        low, high = axes.get_ylim()
        for line, run in zip(axes.lines, runs, strict=True):
            expected = [factor * row[f"{part}_{measure}"] for row in run.history]
            np.testing.assert_allclose(line.get_ydata(), expected)
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4, 5])
            assert line.get_color() == NORMS[run.config.model.norm].color
            assert low <= min(expected) <= max(expected) <= high
    assert legend_texts(picture) == ["BN", "GN"]
    assert written(picture).width == 1200
    ends = {"accuracy": "BN 67.0 %; GN 77.0 %", "loss": "BN 1.330 nats; GN 1.230 nats"}[measure]
    assert f"Test {measure} after the last epoch: {ends}." in words(picture)[2]


def test_the_last_values_stand_beside_the_curves():
    picture = accuracy_figure([make_run("bn"), make_run("gn", level=0.1)])
    assert [text.get_text() for text in picture.figure.axes[1].texts] == ["67.0", "77.0"]
    assert [text.get_color() for text in picture.figure.axes[1].texts] == [
        NORMS["bn"].color,
        NORMS["gn"].color,
    ]
    picture = loss_figure([make_run("bn"), make_run("gn")])
    assert [text.get_text() for text in picture.figure.axes[0].texts] == ["1.350", "1.350"]


def test_validation_is_dashed_in_the_test_panel_only():
    run = make_run(validation=True)
    picture = accuracy_figure([run, make_run("bn")])
    training, test = picture.figure.axes
    assert len(training.lines) == 2
    dashed = [line for line in test.lines if line.is_dashed()]
    assert all(np.isnan(line.get_ydata()).all() for line in dashed[1:])
    expected = [100 * row["val_accuracy"] for row in run.history]
    np.testing.assert_allclose(dashed[0].get_ydata(), expected)
    assert dashed[0].get_color() == NORMS["gn"].color
    assert legend_texts(picture) == ["GN", "BN", "validation"]


def test_two_norms_of_the_user_that_share_a_color_are_told_apart():
    by_color = {}
    for name in (f"mine:Norm{number}" for number in range(20)):
        by_color.setdefault(NORMS[name].color, []).append(name)
    first, second = max(by_color.values(), key=len)[:2]
    lines = accuracy_figure([make_run(first), make_run(second)]).figure.axes[0].lines
    assert lines[0].get_color() != lines[1].get_color()
    assert lines[0].get_marker() != lines[1].get_marker()


def test_runs_of_one_norm_have_shades_of_its_color_and_markers():
    runs = [make_run("bn", seed=seed) for seed in range(20)]
    lines = accuracy_figure(runs).figure.axes[0].lines
    assert lines[0].get_color() == NORMS["bn"].color == "#0072B2"
    assert lines[-1].get_color() == "#003959"  # half of red 0, green 114 and blue 178
    assert len({line.get_color() for line in lines}) == len(runs)
    assert lines[0].get_marker() != lines[1].get_marker()


def test_a_loss_that_exploded_is_written_in_short():
    runs = [make_run("bn"), make_run("gn")]
    rows = [*runs[0].history[:-1], runs[0].history[-1] | {"test_loss": 1.23e21}]
    picture = loss_figure([dataclasses.replace(runs[0], history=tuple(rows)), runs[1]])
    axes = picture.figure.axes[1]
    assert sorted(text.get_text() for text in axes.texts) == ["1.2e+21", "1.330"]
    assert all(text.xy[1] <= axes.get_ylim()[1] < 10 for text in axes.texts)
    assert "BN 1.2e+21 nats; GN 1.330 nats" in picture.alt
    written(picture)


@pytest.mark.parametrize("count", [1, 3, 36])
def test_any_number_of_runs_can_be_drawn(count):
    runs = [make_run(tuple(NORMS)[i % 3], seed=i, epochs=1 + i % 4) for i in range(count)]
    picture = accuracy_figure(runs)
    assert written(picture).width == 1200
    assert written(learning_rate_figure(runs)).width == 1200


@pytest.mark.parametrize("others", [0, 3], ids=["alone", "beside longer runs"])
@pytest.mark.parametrize(
    ("draw", "name"),
    [(accuracy_figure, "accuracy"), (loss_figure, "loss")],
    ids=["accuracy", "loss"],
)
def test_the_curves_and_bands_of_an_epoch_alone_are_levels(draw, name, others):
    run = make_run(epochs=1, validation=True)
    half = [dict.fromkeys(run.history[0], 0.01)]
    runs = [run, *(make_run("bn", seed=seed) for seed in range(others))]
    picture = draw(runs, spreads=[half])
    factor = 100 if name == "accuracy" else 1
    training, test = picture.figure.axes
    curves = [(training.lines[0], "train"), (test.lines[0], "test"), (test.lines[1], "val")]
    for line, part in curves:
        first, last = line.get_xdata()
        assert first < 1 < last
        assert [*line.get_ydata()] == pytest.approx(2 * [factor * run.history[0][f"{part}_{name}"]])
    assert test.lines[1].is_dashed()
    for axes, part in ((training, "train"), (test, "test")):
        [band] = axes.collections
        value = run.history[0][f"{part}_{name}"]
        edges = band.get_paths()[0].get_extents()
        ends = [factor * (value - 0.01), factor * (value + 0.01)]
        assert [edges.y0, edges.y1] == pytest.approx(ends)
        assert edges.width > 0
    written(picture)


@pytest.mark.parametrize(("draw", "most"), [(accuracy_figure, 100), (loss_figure, np.inf)])
def test_bands_end_where_no_value_can_be(draw, most):
    run = make_run()
    wide = [dict.fromkeys(row, 9.0) for row in run.history]
    for axes in draw([run], spreads=[wide]).figure.axes:
        box = axes.collections[0].get_paths()[0].get_extents()
        assert box.y0 == 0
        assert box.y1 == pytest.approx(min(most, box.y1))
    assert box.y1 > 9


def test_the_rate_of_a_step_alone_is_visible():
    run = make_run(epochs=1)
    run.metrics["steps_per_epoch"] = 1
    assert learning_rate_figure([run]).figure.axes[0].lines[0].get_marker() == "."


def test_a_run_without_epochs_gives_empty_panels():
    written(loss_figure([dataclasses.replace(make_run(), history=())]))


def test_a_spike_or_nan_does_not_squeeze_the_other_losses():
    run = make_run(epochs=9)
    rows = list(run.history)
    rows[3] = rows[3] | {"test_loss": 500.0}
    rows[8] = rows[8] | {"test_loss": float("nan")}
    picture = loss_figure([dataclasses.replace(run, history=tuple(rows))])
    assert picture.figure.axes[1].get_ylim()[1] < 10
    assert not picture.figure.axes[1].texts
    written(picture)


class TestSpreadLabels:
    values = st.lists(st.floats(0, 100), max_size=12).map(sorted)

    @given(values)
    def test_stand_apart_in_order_and_inside(self, values):
        placed = spread_labels(values, 5.0, 0.0, 100.0)
        assert len(placed) == len(values)
        assert all(b - a >= 5.0 - 1e-6 for a, b in pairwise(placed))
        assert all(-1e-6 <= place <= 100 + 1e-6 for place in placed)

    @given(values)
    def test_what_is_apart_stays(self, values):
        apart = [20.0 * i + value / 10 for i, value in enumerate(values)]
        assert spread_labels(apart, 5.0, 0.0, 300.0) == pytest.approx(apart)


class TestLearningRate:
    def test_the_curve_is_the_schedule(self):
        run = make_run("bn")
        picture = learning_rate_figure([run])
        (line,) = picture.figure.axes[0].lines
        np.testing.assert_array_equal(line.get_ydata(), learning_rates(run.config.train, 35))
        assert line.get_color() == NORMS["bn"].color
        assert 0 < line.get_xdata()[0] < line.get_xdata()[-1] < 5
        written(picture)

    @pytest.mark.parametrize("schedule", ["onecycle", "constant"])
    def test_the_curve_of_a_run_that_was_stopped_ends_with_it(self, schedule):
        run = make_run("bn", schedule=schedule, learning_rate=0.01)
        planned = learning_rates(run.config.train, 35)
        picture = learning_rate_figure([dataclasses.replace(run, history=run.history[:3])])
        (axes,) = picture.figure.axes
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), planned[:21])
        assert axes.get_xlim() == (0, 3)
        assert picture.alt.endswith(f" {planned[:21].max():g}.")

    def test_a_constant_rate_that_a_callback_changed_is_drawn_as_it_was(self):
        run = make_run("bn", epochs=3, schedule="constant", learning_rate=0.01)
        lrs = (0.01, 0.01, 0.001)
        rows = tuple(row | {"lr": lr} for row, lr in zip(run.history, lrs, strict=True))
        picture = learning_rate_figure([run, dataclasses.replace(run, history=rows)])
        plain, changed = picture.figure.axes[0].lines
        np.testing.assert_array_equal(plain.get_ydata(), [0.01] * 21)
        np.testing.assert_array_equal(changed.get_ydata(), [0.01] * 14 + [0.001] * 7)

    def test_runs_that_share_a_schedule_share_a_curve(self):
        same = {"learning_rate": 0.01}
        runs = [make_run("bn", **same), make_run("gn", **same), make_run("ln", schedule="constant")]
        picture = learning_rate_figure(runs)
        assert len(picture.figure.axes[0].lines) == 2
        assert legend_texts(picture) == ["BN · GN", "LN"]
        assert picture.figure.axes[0].lines[1].get_color() == NORMS["ln"].color
