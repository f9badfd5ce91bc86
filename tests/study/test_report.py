"""`report.html`: whole, escaped, small, and without an error in a browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.studies import RUNS, make_run, summarize_ablation

from kerasnorm.study import report
from kerasnorm.study.figures import draw_study
from kerasnorm.study.summary import summarize
from kerasnorm.study.tables import environment_rows
from kerasnorm.tables import Table

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)  # fmt: skip
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--enable-logging=stderr",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
UNTRUSTED = '<script>document.title = "broken into"</script>'


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.tags, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("img", "meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The report of a study with published numbers and an untrusted title."""
    runs = [*RUNS, *(make_run(0.81, norm="bn", seed=s) for s in (7, 8))]
    summary = summarize(runs)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    pictures = draw_study(summary, tmp_path_factory.mktemp("figures"), lambda run: images)
    layers = Table(("layer", ">field"), [("C1", "3")], title="Receptive field of bn")
    commands = {"The study:": "kerasnorm compare --out 'a b'"}
    return report.render(f"study {UNTRUSTED} {'x' * 120}", summary, pictures, commands, layers)


def test_it_holds_everything_in_one_file(html):
    page = Page(html)
    assert page.open == []
    assert "script" not in page.tags
    sources = re.findall(r'(?:src|href)="([^"#]+)', html)
    assert {source.partition(",")[0] for source in sources} == {"data:image/png;base64", "data:"}
    assert "url(" not in html
    assert len(html.encode()) < 5_000_000
    for text in ("Published and ours", "81.90", "Receptive field of bn", "kerasnorm compare",
                 "prefers-color-scheme: dark", 'name="viewport"'):  # fmt: skip
        assert text in html


def test_every_picture_is_told_in_words(html):
    images = Page(html).images
    assert len(images) == 11
    assert all(len(image["alt"]) > 40 for image in images)
    assert "BN 81.00 ± 0.71 %" in images[0]["alt"]


@pytest.mark.long
def test_ablation_effects_are_a_table_and_a_picture_in_words(tmp_path):
    summary = summarize_ablation()
    pictures = draw_study(summary, tmp_path, lambda run: None)
    text = report.render("an ablation", summary, pictures, {}, None)
    assert "<caption>Ablation effects</caption>" in text
    assert "One field changed alone" in text
    first = Page(text).images[0]["alt"]
    assert first.startswith("What one choice changed alone does to")
    assert "BN optimizer adamw → sgd -0.30" in first


def test_what_comes_from_outside_is_escaped(html):
    assert UNTRUSTED not in html
    assert "&lt;script&gt;" in html


@pytest.mark.long
def test_pictures_beyond_the_budget_are_named(html, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_BYTES", 150_000)
    summary = summarize(RUNS)
    pictures = draw_study(summary, tmp_path, lambda run: None)
    text = report.render("small", summary, pictures, {}, None)
    assert "Left out to keep this file small" in text
    assert len(Page(text).images) < len(pictures)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_an_error_and_without_sideways_scrolling(html, tmp_path, width):
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    # A window is never as narrow as a phone; a frame is. The report's policy forbids scripts, so
    # that the frame's document is measured from outside.
    (tmp_path / "frame.html").write_text(
        f"<iframe src='report.html' style='width:{width}px;height:800px'></iframe><script>"
        "onload = () => { const page = frames[0].document.documentElement;"
        "const all = s => [...frames[0].document.querySelectorAll(s)];"
        "const wide = all('.wide').filter(box => box.scrollWidth > box.clientWidth);"
        "const style = box => frames[0].getComputedStyle(box).backgroundImage;"
        "document.title = ['widths', page.scrollWidth, page.clientWidth,"
        "all('img').every(i => i.naturalWidth > 500 && i.width > 700),"
        "wide.length, wide.every(box => style(box).includes('gradient')),"
        "all('.hint').filter(hint => hint.offsetHeight > 0).length,"
        "all('img').length, Math.max(...all('th').map(th => th.offsetHeight))].join(' ') }</script>"
    )
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         "--allow-file-access-from-files", (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    found = re.search(
        r"<title>widths (\d+) (\d+) true (\d+) true (\d+) (\d+) (\d+)</title>", done.stdout
    )
    assert found, done.stdout[:500]
    scrolled, shown, wide, hints, pictures, highest = map(int, found.groups())
    assert scrolled <= shown <= width
    is_phone = width < 700
    assert highest < 100  # no heading is broken letter by letter
    assert hints == (pictures if is_phone else 0)
    assert (wide > pictures) == is_phone  # tables too


def test_the_environment_names_each_value_once(tmp_path):
    first, second = RUNS[:2]
    assert environment_rows([first, second]) == []
    home = Path(__file__).parents[2] / "results" / "era8" / "runs" / "gn-s0"
    run = type(first)(home, first.config, first.history, first.metrics)
    rows = dict(environment_rows([run, run]))
    assert rows["keras"] == "3.15.1"
    assert rows["device"] == "CPU, 1 thread"
