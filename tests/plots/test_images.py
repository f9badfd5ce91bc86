"""The confusion matrix and the misclassified images show what a run measured."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from helpers.drawn import NAMES, entries, images, make_run, words, written
from matplotlib.backends.backend_agg import FigureCanvasAgg

from kerasnorm.plots.images import confusion_figure, misclassified_figure, mistakes_figure


def with_classes(counts):
    run = make_run()
    names = [f"class {n}" for n in range(len(counts))]
    metrics = run.metrics | {"confusion": counts.tolist(), "class_names": names}
    return dataclasses.replace(run, metrics=metrics)


class TestConfusion:
    def test_counts_are_text_and_rows_are_shares(self):
        picture = confusion_figure(make_run())
        axes = picture.figure.axes[0]
        assert " ".join(text.get_text() for text in axes.texts) == "8 1 1 0 10 0 0 0 0"
        shares = np.asarray(axes.images[0].get_array())
        np.testing.assert_allclose(shares, [[80, 10, 10], [0, 100, 0], [0, 0, 0]])
        assert [label.get_text() for label in axes.get_xticklabels()] == NAMES
        assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
        assert written(picture).width == 1200

    @pytest.mark.parametrize("classes", [21, 100])
    def test_many_classes_have_whole_numbers_and_no_text(self, classes):
        axes = confusion_figure(with_classes(np.eye(classes))).figure.axes[0]
        assert not axes.texts
        assert axes.images[0].get_array().shape == (classes, classes)
        for ticks in (axes.get_xticks(), axes.get_yticks()):
            assert len(ticks) > 4
            assert all(tick == int(tick) for tick in ticks)

    def test_a_cell_counts_several_of_very_many_classes(self):
        counts = np.zeros((250, 250))
        counts[0, 0], counts[2, 1], counts[1, 5] = 1, 2, 1  # the first three classes are a row
        counts[249, 249] = 4
        picture = confusion_figure(with_classes(counts))
        axes = picture.figure.axes[0]
        shares = np.asarray(axes.images[0].get_array())
        assert shares.shape == (84, 84)
        np.testing.assert_allclose(shares[0, :3], [75, 25, 0])
        assert shares[83, 83] == 100
        assert axes.get_xlabel() == "predicted class, 3 in each cell"
        assert "3 in each cell" in picture.caption
        assert axes.images[0].get_extent() == [-0.5, 251.5, 251.5, -0.5]
        written(picture)

    def test_it_says_of_which_run_it_is(self):
        run = make_run("bn", seed=4)
        assert confusion_figure(run).figure.get_suptitle().endswith("90.00 % right\nBN, seed 4")
        assert mistakes_figure(run, images()).title == "Misclassified test images of BN, seed 4"

    def test_odd_class_names(self):
        names = ["$broken", "猫", "a name that is longer than anyone would like"]
        run = make_run()
        run.metrics["class_names"] = names
        picture = confusion_figure(run)
        texts = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
        assert texts == ["$broken", "猫", "a name tha…ould like"]
        written(picture)


class TestMisclassified:
    def test_long_names_stay_distinct_and_captions_touch_nothing(self):
        names = [f"{'W' * 116}{n:04}" for n in range(3)]
        figure = misclassified_figure(images(), entries(10), names).figure
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        for row in (figure.axes[:5], figure.axes[5:]):
            boxes = [axes.title.get_window_extent(renderer) for axes in row]
            assert boxes[0].x0 >= 0
            assert boxes[-1].x1 <= figure.bbox.width
            assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
        assert figure.axes[0].get_title() == "true WWWW…0000\n→ WWWW…0001 99 %"

    @pytest.mark.parametrize("count", [1, 3, 10])
    def test_each_entry_has_its_image_and_caption(self, count):
        pixels = images()
        picture = misclassified_figure(pixels, entries(count), NAMES, "MISCLASSIFIED: GN")
        shown = [axes for axes in picture.figure.axes if axes.images]
        assert len(shown) == count
        assert len(picture.figure.axes) == (10 if count > 5 else 5)
        for axes, entry in zip(shown, entries(count), strict=True):
            np.testing.assert_array_equal(axes.images[0].get_array(), pixels[entry["index"]])
            assert axes.images[0].get_interpolation() == "nearest"
        assert shown[0].get_title() == "true cat\n→ dog 99 %"
        assert picture.figure.get_suptitle() == "MISCLASSIFIED: GN"
        assert f"{count} misclassified test images" in words(picture)[2]
        assert written(picture).width == 1200

    def test_none_says_so(self):
        picture = misclassified_figure(images(), [], NAMES)
        assert "No test image was misclassified." in [
            text.get_text() for text in picture.figure.texts
        ]
        written(picture)

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_colors_and_grays_are_true(self, channels):
        pixels = np.zeros((12, 6, 9, channels), np.uint8)
        pixels[11, ..., 0] = 128
        picture = misclassified_figure(pixels, entries(1), NAMES)
        picture = written(picture).convert("RGB")
        expected = (128, 0, 0) if channels >= 3 else (128, 128, 128)
        colors = picture.getcolors(maxcolors=1 << 24)
        assert max(n for n, color in colors if color == expected) > 10_000
