"""Colors and PNG files."""

import io
import subprocess
import sys

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from helpers.drawn import make_run, written
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import is_color_like
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text
from PIL import Image

from kerasnorm.norms import NORMS
from kerasnorm.plots import style
from kerasnorm.plots.curves import loss_figure
from kerasnorm.plots.style import (
    Picture,
    draw_legend,
    fallback_fonts,
    fit,
    log_ticks,
    new_figure,
    shade,
    text_width,
)


def test_every_norm_has_its_own_color():
    assert all(is_color_like(norm.color) for norm in NORMS.values())
    assert len({norm.color for norm in NORMS.values()}) == len(NORMS)


class TestFit:
    def test_widths_are_those_that_are_drawn(self):
        figure = new_figure(1.0)
        renderer = FigureCanvasAgg(figure).get_renderer()
        for text in ("W" * 20, "i" * 20, "a_class-name 0.5, ±"):
            drawn = figure.text(0, 0, text, fontsize=8.5).get_window_extent(renderer)
            assert text_width(text, 8.5) == pytest.approx(drawn.width / figure.dpi, rel=0.03)

    def test_the_middle_is_left_out(self):
        assert fit(["short", "first_of_many_letters_a"], 1.0) == ["short", "first_of…tters_a"]
        assert fit(["x" * 5000], 100.0)[0] == f"{'x' * 100}…{'x' * 100}"

    def test_texts_that_would_look_the_same_are_numbered(self):
        texts = [f"the_same_start_{n}_and_the_same_end" for n in range(3)]
        short = fit(["bird", *texts], 1.0)
        assert short == ["bird", "the_s…e_end #1", "the_s…e_end #2", "the_s…e_end #3"]
        assert all(text_width(text) <= 1.0 for text in short)

    def test_a_legend_of_long_labels_stays_in_the_figure(self):
        figure = new_figure(3.0)
        labels = [f"{'W' * 120}{n}" for n in range(3)] + ["BN"]
        draw_legend(figure, [{"color": "red"}] * 4, labels, 4)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        box = figure.legends[0].get_window_extent(renderer)
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert len({text.get_text() for text in figure.legends[0].get_texts()}) == 4

    def test_a_shade_is_the_color_itself_or_darker(self):
        assert [shade("#ff8040", place, 3) for place in range(3)] == [
            "#ff8040",
            "#bf6030",  # three quarters of 255, 128 and 64
            "#804020",
        ]


class TestFiles:
    def test_files_say_nothing_of_who_and_when(self, tmp_path):
        with Image.open(loss_figure([make_run()]).save(tmp_path)) as image:
            assert image.format == "PNG"
            assert image.width == 1200
            assert set(image.info) <= {"dpi"}

    def test_a_picture_names_its_file(self, tmp_path):
        picture = Picture("name", new_figure(1.0), "Title", "Caption.", "Alt.")
        path = picture.save(tmp_path / "new" / "folder")
        assert path == tmp_path / "new" / "folder" / "name.png"
        assert path.read_bytes().startswith(b"\x89PNG")

    def test_a_failed_drawing_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(b"old")
        broken = Figure()
        broken.text(0.5, 0.5, r"$\broken$")
        with pytest.raises(ValueError, match="broken"):
            Picture("a", broken, "", "", "").save(tmp_path)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


def test_neither_pyplot_nor_keras_is_imported():
    code = (
        "import sys, kerasnorm.plots as p; p.learning_rate_figure([]);"
        "print(*{'keras', 'torch', 'tensorflow', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def pixels(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    with Image.open(file) as image:
        return np.asarray(image.convert("L"))


class TestTextIsLiteral:
    @pytest.mark.parametrize("text", ["$a$ and $b$", r"$\frac{$", "a_b^{c", r"\$5", "100 % {x}"])
    def test_wherever_it_stands(self, text):
        """Drawn as by matplotlib itself where it is told to take each text as it is."""
        ours, plain = new_figure(4.0), Figure(figsize=(8.0, 4.0), dpi=150, layout="constrained")
        plain.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        for figure in (ours, plain):
            axes = figure.subplots()
            axes.plot([0, 1], [0, 1], label=text)
            axes.set_xticks([0.25, 0.5], [text, text])
            axes.set_xlabel(text)
            axes.set_title(text)
            axes.text(0.2, 0.7, text)
            axes.annotate(text, (0.5, 0.2))
            axes.legend()
            figure.suptitle(text)
        for one in plain.findobj(Text):
            one.set_parse_math(False)
        assert np.array_equal(pixels(ours), pixels(plain))

    def test_a_path_that_is_no_text_is_drawn(self):
        figure = new_figure(1.0)
        figure.text(0.1, 0.5, "a\udcff$")
        assert pixels(figure).min() < 128

    @pytest.mark.parametrize(("low", "high"), [(1e-3, 1e4), (1.0, 20.0), (0.5, 4000.0)])
    def test_ticks_hold_no_markup(self, low, high):
        figure = new_figure(3.0)
        axes = figure.subplots()
        axes.plot([low, high])
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
        pixels(figure)
        shown = [label.get_text() for label in axes.get_yticklabels(which="both")]
        values = axes.get_yticks().tolist()
        assert not any("$" in text for text in shown)
        digits = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
        for text, value in zip(shown, values, strict=False):
            base, exponent = text[:2], text[2:].translate(digits)
            is_power = text != text.translate(digits)
            assert (10.0 ** int(exponent) if is_power else float(text)) == pytest.approx(value)
            assert base == "10" or not is_power


@pytest.fixture
def square_font(tmp_path):
    """A font that is installed while the test runs, in which 日 is a filled square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord("日"): "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Only Squares", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=1000, usWeightClass=400)
    builder.setupPost()
    path = tmp_path / "squares.ttf"
    builder.save(path)
    before = list(fontManager.ttflist)
    fontManager.addfont(path)
    fallback_fonts.cache_clear()
    yield
    fontManager.ttflist[:] = before
    fallback_fonts.cache_clear()


class TestLettersOfOtherScripts:
    def test_an_installed_font_that_has_them_is_found(self, square_font, caplog):
        assert fallback_fonts(frozenset("日 ab\n")) == ("Only Squares",)
        assert fallback_fonts(frozenset("größer, Ω, عربي")) == ()
        figure = new_figure(1.0)
        figure.text(0.1, 0.2, "日", fontsize=40)
        written(Picture("a", figure, "", "", ""))
        assert caplog.messages == []
        # 40 points are 44 pixels at 80 per inch, all of them ink.
        assert np.count_nonzero(pixels(figure) < 50) == pytest.approx(44.4**2, rel=0.05)

    def test_letters_that_no_font_has_are_said_once(self, caplog, monkeypatch):
        few = [entry for entry in fontManager.ttflist if entry.name.startswith("DejaVu")]
        monkeypatch.setattr(fontManager, "ttflist", few)
        style._warn_of_missing_letters.cache_clear()
        fallback_fonts.cache_clear()
        for text in ("日本", "語", "語"):
            figure = new_figure(1.0)
            figure.text(0.1, 0.5, text)
            written(Picture("a", figure, "", "", ""))
        assert len(caplog.messages) == 1
        assert "Install a font" in caplog.messages[0]
        fallback_fonts.cache_clear()
