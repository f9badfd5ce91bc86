"""The confusion matrix and the misclassified images show what a run measured."""

import dataclasses

import numpy as np
import pytest
from helpers.drawn import NAMES, entries, images, make_run, words, written

from kerasnorm.plots.images import confusion_figure, misclassified_figure


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

    def test_many_classes_have_no_text(self):
        run = make_run()
        metrics = run.metrics | {"confusion": np.eye(100).tolist(), "class_names": ["x"] * 100}
        picture = confusion_figure(dataclasses.replace(run, metrics=metrics))
        assert not picture.figure.axes[0].texts
        written(picture)

    def test_odd_class_names(self):
        names = ["$broken", "猫", "a name that is longer than anyone would like"]
        run = make_run()
        run.metrics["class_names"] = names
        picture = confusion_figure(run)
        texts = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
        assert texts == ["$broken", "猫", "a name that is …"]
        written(picture)


class TestMisclassified:
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
