"""The pictures: what they show equals the numbers, and the files are the same every time."""

import dataclasses
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import is_color_like
from matplotlib.figure import Figure
from PIL import Image

from kerasnorm import plots
from kerasnorm.config import DataConfig, resolve
from kerasnorm.data.dataset import Split
from kerasnorm.engines.schedule import learning_rates
from kerasnorm.explain.inputs_plots import level_edges
from kerasnorm.norms import NORMS
from kerasnorm.plots.curves import spread
from kerasnorm.training.run import Run

NAMES = ["cat", "dog", "ship"]


def make_run(norm="gn", *, epochs=5, path="run", validation=False, level=0.0, **fields) -> Run:
    config = resolve(
        {"norm": norm, "data": "shapes", "backend": "torch", "epochs": epochs} | fields
    )
    rows = []
    for epoch in range(1, epochs + 1):
        accuracy = 0.4 + 0.05 * epoch + level
        row = {"epoch": float(epoch), "lr": 0.01, "seconds": 2.0, "images_per_second": 500.0}
        for part, extra in (("train", 0.0), ("test", 0.02), ("val", 0.01)):
            is_there = part != "val" or validation
            row[f"{part}_accuracy"] = accuracy + extra if is_there else None
            row[f"{part}_loss"] = 2.0 - accuracy - extra if is_there else None
        rows.append(row)
    metrics = {
        "class_names": NAMES,
        "confusion": [[8, 1, 1], [0, 10, 0], [0, 0, 0]],
        "misclassified": entries(2),
        "steps_per_epoch": 7,
        "test_accuracy": 0.9,
    }
    return Run(Path(path), config, tuple(rows), metrics)


def entries(count: int) -> list[dict[str, object]]:
    return [
        {"index": 11 - i, "true": i % 3, "predicted": (i + 1) % 3, "confidence": 0.99 - i / 100}
        for i in range(count)
    ]


def images(count=12, height=8, width=8, channels=3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, height, width, channels), np.uint8)


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.fixture
def written(tmp_path):
    """Draws a figure into a file, so that every warning of drawing is an error here."""

    def write(figure: Figure) -> Image.Image:
        plots.save(figure, tmp_path / "figure.png")
        with Image.open(tmp_path / "figure.png") as image:
            image.load()
            return image

    return write


@pytest.mark.parametrize("measure", ["accuracy", "loss"])
def test_curves_are_the_history(measure, written):
    runs = [make_run("bn"), make_run("gn", level=0.1)]
    draw = {"accuracy": plots.accuracy_figure, "loss": plots.loss_figure}[measure]
    figure = draw(runs)
    factor = 100 if measure == "accuracy" else 1
    assert [axes.get_title() for axes in figure.axes] == [
        f"TRAINING {measure.upper()}",
        f"TEST {measure.upper()}",
    ]
    for axes, part in zip(figure.axes, ("train", "test"), strict=True):
        low, high = axes.get_ylim()
        for line, run in zip(axes.lines, runs, strict=True):
            expected = [factor * row[f"{part}_{measure}"] for row in run.history]
            np.testing.assert_allclose(line.get_ydata(), expected)
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4, 5])
            assert line.get_color() == NORMS[run.config.model.norm].color
            assert low <= min(expected) <= max(expected) <= high
    assert legend_texts(figure) == ["BN", "GN"]
    assert written(figure).width == 1200


def test_the_last_values_stand_beside_the_curves():
    figure = plots.accuracy_figure([make_run("bn"), make_run("gn", level=0.1)])
    assert [text.get_text() for text in figure.axes[1].texts] == ["67.0", "77.0"]
    assert [text.get_color() for text in figure.axes[1].texts] == [
        NORMS["bn"].color,
        NORMS["gn"].color,
    ]
    figure = plots.loss_figure([make_run("bn"), make_run("gn")])
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.350", "1.350"]


def test_validation_is_dashed_in_the_test_panel_only():
    run = make_run(validation=True)
    figure = plots.accuracy_figure([run, make_run("bn")])
    training, test = figure.axes
    assert len(training.lines) == 2
    dashed = [line for line in test.lines if line.is_dashed()]
    assert all(np.isnan(line.get_ydata()).all() for line in dashed[1:])
    expected = [100 * row["val_accuracy"] for row in run.history]
    np.testing.assert_allclose(dashed[0].get_ydata(), expected)
    assert dashed[0].get_color() == NORMS["gn"].color
    assert legend_texts(figure) == ["GN", "BN", "validation"]


def test_runs_of_one_norm_share_the_color_and_differ_otherwise():
    runs = [make_run("bn", seed=seed) for seed in range(20)]
    lines = plots.accuracy_figure(runs).axes[0].lines
    assert {line.get_color() for line in lines} == {NORMS["bn"].color}
    looks = {(line.get_marker(), line.get_alpha()) for line in lines}
    assert len(looks) == len(runs)


def test_every_norm_has_its_own_color():
    assert all(is_color_like(norm.color) for norm in NORMS.values())
    assert len({norm.color for norm in NORMS.values()}) == len(NORMS)


@pytest.mark.parametrize("count", [1, 3, 36])
def test_any_number_of_runs_can_be_drawn(count, written):
    runs = [make_run([*NORMS][i % 3], seed=i, epochs=1 + i % 4) for i in range(count)]
    figure = plots.accuracy_figure(runs)
    assert written(figure).width == 1200
    assert written(plots.learning_rate_figure(runs)).width == 1200


def test_an_epoch_alone_is_visible(written):
    figure = plots.loss_figure([make_run(epochs=1)])
    assert figure.axes[0].lines[0].get_marker() == "."
    written(figure)


def test_a_run_without_epochs_gives_empty_panels(written):
    written(plots.loss_figure([dataclasses.replace(make_run(), history=())]))


def test_a_spike_or_nan_does_not_squeeze_the_other_losses(written):
    run = make_run(epochs=9)
    rows = list(run.history)
    rows[3] = rows[3] | {"test_loss": 500.0}
    rows[8] = rows[8] | {"test_loss": float("nan")}
    figure = plots.loss_figure([dataclasses.replace(run, history=tuple(rows))])
    assert figure.axes[1].get_ylim()[1] < 10
    assert not figure.axes[1].texts
    written(figure)


class TestLabels:
    def test_the_norm_is_enough_where_norms_differ(self):
        # The recipe differs in more than the norm here; the norm says it all.
        assert plots.run_labels([make_run(n) for n in ("bn", "gn", "none")]) == [
            "BN",
            "GN",
            "no norm",
        ]

    def test_one_run(self):
        assert plots.run_labels([make_run("ln")]) == ["LN"]
        assert plots.run_labels([]) == []

    @pytest.mark.parametrize(
        ("field", "values", "expected"),
        [
            ("seed", (0, 1), ["GN, seed 0", "GN, seed 1"]),
            ("backend", ("torch", "tensorflow"), ["GN, torch", "GN, tensorflow"]),
            ("recipe", ("best", "era8"), ["GN, best", "GN, era8"]),
            ("data", ("shapes", "/some/where/pets"), ["GN, shapes", "GN, pets"]),
            ("batch_size", (8, 32), ["GN, batch size 8", "GN, batch size 32"]),
            ("learning_rate", (0.01, 0.003), ["GN, learning rate 0.01", "GN, learning rate 0.003"]),
            ("residual", (True, False), ["GN, residual", "GN, no residual"]),
        ],
    )
    def test_what_differs_is_named(self, field, values, expected):
        runs = [make_run(**{field: value}) for value in values]
        assert plots.run_labels(runs) == expected

    def test_fields_are_combined(self):
        runs = [
            make_run(n, seed=s, batch_size=b) for n in ("bn", "gn") for s in (0, 1) for b in (2, 4)
        ]
        labels = plots.run_labels(runs)
        assert labels[0] == "BN, seed 0, batch size 2"
        assert len(set(labels)) == 8

    def test_equal_configs_fall_back_to_the_folder(self):
        runs = [make_run(path="out/a"), make_run(path="out/_b")]
        assert plots.run_labels(runs) == ["GN, a", "GN, _b"]
        runs = [make_run(path="one/a"), make_run(path="two/a")]
        assert plots.run_labels(runs) == ["GN, one/a", "GN, two/a"]

    def test_a_folder_name_is_no_mathematics(self, written):
        written(plots.loss_figure([make_run(path="$x$"), make_run(path=r"_$\broken$")]))


class TestSpread:
    values = st.lists(st.floats(0, 100), max_size=12).map(sorted)

    @given(values)
    def test_stand_apart_in_order_and_inside(self, values):
        placed = spread(values, 5.0, 0.0, 100.0)
        assert len(placed) == len(values)
        assert all(b - a >= 5.0 - 1e-6 for a, b in pairwise(placed))
        assert all(-1e-6 <= place <= 100 + 1e-6 for place in placed)

    @given(values)
    def test_what_is_apart_stays(self, values):
        apart = [20.0 * i + value / 10 for i, value in enumerate(values)]
        assert spread(apart, 5.0, 0.0, 300.0) == pytest.approx(apart)


class TestLearningRate:
    def test_the_curve_is_the_schedule(self, written):
        run = make_run("bn")
        figure = plots.learning_rate_figure([run])
        (line,) = figure.axes[0].lines
        np.testing.assert_array_equal(line.get_ydata(), learning_rates(run.config.train, 35))
        assert line.get_color() == NORMS["bn"].color
        assert 0 < line.get_xdata()[0] < line.get_xdata()[-1] < 5
        written(figure)

    def test_runs_that_share_a_schedule_share_a_curve(self):
        same = {"learning_rate": 0.01}
        runs = [make_run("bn", **same), make_run("gn", **same), make_run("ln", schedule="constant")]
        figure = plots.learning_rate_figure(runs)
        assert len(figure.axes[0].lines) == 2
        assert legend_texts(figure) == ["BN · GN", "LN"]
        assert figure.axes[0].lines[1].get_color() == NORMS["ln"].color


class TestConfusion:
    def test_counts_are_text_and_rows_are_shares(self, written):
        figure = plots.confusion_figure(make_run())
        axes = figure.axes[0]
        assert " ".join(text.get_text() for text in axes.texts) == "8 1 1 0 10 0 0 0 0"
        shares = np.asarray(axes.images[0].get_array())
        np.testing.assert_allclose(shares, [[80, 10, 10], [0, 100, 0], [0, 0, 0]])
        assert [label.get_text() for label in axes.get_xticklabels()] == NAMES
        assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
        assert written(figure).width == 1200

    def test_many_classes_have_no_text(self, written):
        run = make_run()
        metrics = run.metrics | {"confusion": np.eye(100).tolist(), "class_names": ["x"] * 100}
        figure = plots.confusion_figure(dataclasses.replace(run, metrics=metrics))
        assert not figure.axes[0].texts
        written(figure)

    def test_odd_class_names(self, written):
        names = ["$broken", "猫", "a name that is longer than anyone would like"]
        run = make_run()
        run.metrics["class_names"] = names
        figure = plots.confusion_figure(run)
        texts = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert texts == ["$broken", "猫", "a name that is …"]
        written(figure)


class TestMisclassified:
    @pytest.mark.parametrize("count", [1, 3, 10])
    def test_each_entry_has_its_image_and_caption(self, count, written):
        pixels = images()
        figure = plots.misclassified_figure(pixels, entries(count), NAMES, "MISCLASSIFIED: GN")
        shown = [axes for axes in figure.axes if axes.images]
        assert len(shown) == count
        assert len(figure.axes) == (10 if count > 5 else 5)
        for axes, entry in zip(shown, entries(count), strict=True):
            np.testing.assert_array_equal(axes.images[0].get_array(), pixels[entry["index"]])
            assert axes.images[0].get_interpolation() == "nearest"
        assert shown[0].get_title() == "true cat\n→ dog 99 %"
        assert figure.get_suptitle() == "MISCLASSIFIED: GN"
        assert written(figure).width == 1200

    def test_none_says_so(self, written):
        figure = plots.misclassified_figure(images(), [], NAMES)
        assert "No test image was misclassified." in [text.get_text() for text in figure.texts]
        written(figure)

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_colors_and_grays_are_true(self, channels, written):
        pixels = np.zeros((12, 6, 9, channels), np.uint8)
        pixels[11, ..., 0] = 128
        figure = plots.misclassified_figure(pixels, entries(1), NAMES)
        picture = written(figure).convert("RGB")
        expected = (128, 0, 0) if channels >= 3 else (128, 128, 128)
        colors = picture.getcolors(maxcolors=1 << 24)
        assert max(n for n, color in colors if color == expected) > 10_000


class TestInputs:
    def test_the_grid_holds_raw_and_augmented_images(self, written):
        raw = images(3, 8, 6)
        augmented = np.stack([raw, 255 - raw])
        figure = plots.augmentation_figure(raw, augmented, "AUGMENTATION: negative")
        grid = np.array([axes.images[0].get_array() for axes in figure.axes]).reshape(3, 3, 8, 6, 3)
        np.testing.assert_array_equal(grid[:, 0], raw)
        np.testing.assert_array_equal(grid[:, 2], 255 - raw)
        assert [axes.get_title() for axes in figure.axes[:3]] == ["raw", "epoch 1", "epoch 2"]
        assert written(figure).width == 1200

    def test_views_show_each_augmentation_and_all(self):
        split = Split(images(20), np.zeros(20, np.int32))
        config = DataConfig(alternating_flip=True, translate=2, cutout=0.5, cutout_size=4)
        indices = np.array([4, 7, 9])
        views = plots.augmented_views(split, config, indices, 4, seed=0)
        assert list(views) == ["alternating flip", "translate 2", "cutout 0.5", "recipe"]
        assert {view.shape for view in views.values()} == {(4, 3, 8, 8, 3)}
        flips = views["alternating flip"]
        np.testing.assert_array_equal(flips[0], flips[1][:, :, ::-1])
        raw = split.images[indices]
        np.testing.assert_array_equal(
            np.sort(flips.ravel()), np.sort(np.tile(raw, (4, 1, 1, 1)).ravel())
        )

    def test_histograms_count_every_pixel(self, written):
        raw = images(50)
        preprocessed = (raw / np.float32(255) - 0.5) / 0.25
        figure = plots.histogram_figure(raw, preprocessed, "standardize")
        for axes, pixels in zip(figure.axes, (raw, preprocessed), strict=True):
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
        written(figure)

    def test_edges_take_whole_levels(self):
        levels = np.arange(256, dtype=np.float32) / 255 * 3.7 - 2
        edges = level_edges(levels)
        np.testing.assert_array_equal(np.histogram(levels, edges)[0], np.full(64, 4))
        np.testing.assert_array_equal(level_edges(np.array([7, 7])), [6.5, 7.5])
        assert len(level_edges(np.arange(10))) == 11

    def test_files(self, tmp_path):
        raw = images(6, channels=1)
        paths = plots.draw_inputs(
            tmp_path / "new" / "folder", raw, {"flip 0.5": raw[None, :2]}, raw / 255, "scale"
        )
        assert [path.name for path in paths] == ["augmentation-flip-0.5.png", "histograms.png"]
        assert all(path.is_file() for path in paths)


class TestFiles:
    def test_a_run_gets_its_pictures_the_same_each_time(self, tmp_path):
        run = make_run(path=str(tmp_path))
        names = ["accuracy", "loss", "learning_rate", "confusion", "misclassified"]
        paths = plots.draw_run(run, images())
        assert paths == [tmp_path / "plots" / f"{name}.png" for name in names]
        first = [path.read_bytes() for path in paths]
        assert [path.read_bytes() for path in plots.draw_run(run, images())] == first
        assert set((tmp_path / "plots").iterdir()) == set(paths)

    def test_without_images_and_elsewhere(self, tmp_path):
        run = make_run("bn", path=str(tmp_path / "bn"))
        paths = plots.draw_run(run, folder=tmp_path / "new" / "one")
        names = ["accuracy.png", "loss.png", "learning_rate.png", "confusion.png"]
        assert paths == [tmp_path / "new" / "one" / name for name in names]
        assert not (tmp_path / "bn").exists()

    def test_several_runs_are_overlaid(self, tmp_path):
        paths = plots.draw_runs([make_run("bn"), make_run("gn")], tmp_path / "both")
        assert [path.name for path in paths] == ["accuracy.png", "loss.png", "learning_rate.png"]
        assert all(path.is_file() for path in paths)

    def test_files_say_nothing_of_who_and_when(self, tmp_path):
        plots.save(plots.loss_figure([make_run()]), tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            assert image.format == "PNG"
            assert image.width == 1200
            assert set(image.info) <= {"dpi"}

    def test_a_failed_drawing_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(b"old")
        broken = Figure()
        broken.text(0.5, 0.5, r"$\broken$")
        with pytest.raises(ValueError, match="broken"):
            plots.save(broken, path)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


def test_neither_pyplot_nor_keras_is_imported():
    code = (
        "import sys, kerasnorm.plots as p; p.learning_rate_figure([]);"
        "print(*{'keras', 'torch', 'tensorflow', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""
