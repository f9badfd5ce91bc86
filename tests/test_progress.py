"""The console: what a person, a log file and a pipe get to read."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kerasnorm import progress as console
from kerasnorm.progress import Counter

ROW = {
    "epoch": 3.0,
    "train_loss": 0.8421,
    "train_accuracy": 0.631,
    "val_loss": None,
    "val_accuracy": None,
    "test_loss": 0.7909,
    "test_accuracy": 0.719,
    "lr": 0.008,
    "seconds": 41.23,
    "images_per_second": 1212.7,
}
LINE = "epoch  3/20  train 0.842 63.1 %  test 0.791 71.9 %  lr 0.0080  41.2 s  1213 images/s"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """What was written, without the control sequences, a drawing a line."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue()).replace("\r", "\n")


@pytest.fixture
def clock(monkeypatch):
    """The time, in seconds, as the console sees it: a list of one number."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def drive(progress: console.Progress) -> None:
    progress.start("gn on shapes, torch, cpu", 20, 4, 500, 2)
    for step in range(4):
        progress.batch(2, step)
    progress.note("a note")
    progress.epoch(ROW)
    progress.finish()


def test_elsewhere_an_epoch_is_a_line():
    stream = io.StringIO()
    drive(console.Progress(stream=stream))
    assert stream.getvalue() == f"gn on shapes, torch, cpu\na note\n{LINE}\n"


def test_the_stream_is_stderr(capsys):
    drive(console.Progress())
    console.note("another")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["gn on shapes, torch, cpu", "a note", LINE, "another"]


@pytest.mark.parametrize("make", [io.StringIO, Terminal])
def test_quiet_says_nothing(make):
    stream = make()
    drive(console.Progress(quiet=True, stream=stream))
    assert stream.getvalue() == ""


def test_a_terminal_gets_the_lines_and_a_bar(terminal):
    drive(console.Progress(stream=terminal))
    lines = [line.strip() for line in terminal.text.split("\n")]
    for expected in ("gn on shapes, torch, cpu", "a note", LINE):
        assert lines.count(expected) == 1
    assert any(line.startswith("epoch 3/20 ━") for line in lines)


def test_the_bar_tells_rate_time_left_and_accuracy(terminal, clock):
    progress = console.Progress(stream=terminal)
    progress.start("title", 20, 4, 500, 2)
    clock[0] += 10
    progress.batch(2, 1)
    assert "2/4 25 images/s  5:50 left" in terminal.text  # 2 of 72 steps took 10 s
    clock[0] += 10
    progress.batch(2, 3)
    progress.epoch(ROW)
    clock[0] += 5
    progress.batch(3, 0)
    assert "epoch 4/20" in terminal.text
    assert "1/4 25 images/s  5:35 left  test 71.9 %" in terminal.text
    progress.finish()


def test_the_bar_is_drawn_a_few_times_a_second(terminal, clock):
    progress = console.Progress(stream=terminal)
    progress.start("title", 1, 10_000, 10_000, 0)
    for step in range(9_000):
        clock[0] += 0.001
        progress.batch(0, step)
    assert 60 < len(re.findall(r"/10000", terminal.text)) < 90
    progress.finish()


def test_text_is_taken_literally(terminal):
    progress = console.Progress(stream=terminal)
    progress.start("[bold]title[/bold] :smile:", 1, 1, 1, 0)
    progress.note("[/oops] " + "long " * 60)
    progress.finish()
    assert "[bold]title[/bold] :smile:" in terminal.text
    assert "[/oops] " + "long " * 60 in terminal.text


def test_finish_may_come_early_and_twice(terminal):
    progress = console.Progress(stream=terminal)
    progress.finish()
    progress.start("title", 1, 1, 1, 0)
    progress.finish()
    progress.finish()
    shown, hidden = "\x1b[?25h", "\x1b[?25l"
    assert terminal.getvalue().rindex(shown) > terminal.getvalue().rindex(hidden)  # the cursor


@pytest.mark.parametrize("columns", ["20", "60", "300"])
def test_any_width(columns, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    drive(console.Progress(stream=terminal))
    assert LINE in terminal.text


class TestEpochLine:
    def test_validation_is_shown_where_it_exists(self):
        row = ROW | {"val_loss": 0.81, "val_accuracy": 0.7}
        assert "  val 0.810 70.0 %  test" in console.epoch_line(row, 20)

    @pytest.mark.parametrize("lr", [(0.01, "0.010"), (4e-7, "4.0e-07"), (0.0, "0.0")])
    def test_small_rates_stay_legible(self, lr):
        assert f"  lr {lr[1]}  " in console.epoch_line(ROW | {"lr": lr[0]}, 20)

    def test_nan_and_missing_values(self):
        row = dict.fromkeys(ROW, None) | {"epoch": 1.0}
        assert console.epoch_line(row, 5) == "epoch 1/5"
        assert "train nan" in console.epoch_line(ROW | {"train_loss": float("nan")}, 5)


class TestResults:
    def test_the_last_epoch_counts(self, capsys):
        first = ROW | {"epoch": 2.0, "test_accuracy": 0.99}
        console.print_results([first, ROW], Path("results") / "runs")
        out, err = capsys.readouterr()
        assert err == ""
        assert out.splitlines() == [
            "train      accuracy  63.10 %   loss 0.8421",
            "test       accuracy  71.90 %   loss 0.7909",
            "trained    2 epochs in 1:22",
            f"folder     {Path('results') / 'runs'}",
        ]

    def test_validation_and_empty_history(self):
        row = ROW | {"val_loss": 0.81, "val_accuracy": 1.0}
        assert "validation accuracy 100.00 %   loss 0.8100" in console.results([row], Path("x"))
        assert console.results([], Path("x")).splitlines()[0] == "trained    0 epochs in 0:00"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600, "1:00:00")]
)
def test_duration(seconds, text):
    assert console.duration(seconds) == text


def test_the_module_costs_nothing():
    code = (
        "import sys, kerasnorm.progress;"
        "print(*{'rich', 'keras', 'numpy', 'matplotlib'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def test_a_counter_says_each_quarter_once():
    stream = io.StringIO()
    with Counter("work", stream=stream) as counter:
        for done in range(1, 9):
            counter(done, 8)
        counter.note("a note")
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines[:4]] == [f"work: {n}/8" for n in (2, 4, 6, 8)]
    assert lines[4:] == ["a note"]


def test_a_counter_draws_a_bar_on_a_terminal_and_takes_it_away():
    stream = Terminal()
    with Counter("work", stream=stream) as counter:
        counter(1, 2)
        counter.note("a note")
    assert "1/2" in stream.text
    assert "left" in stream.text
    assert "a note" in stream.text


def test_a_quiet_counter_is_silent():
    stream = Terminal()
    with Counter("work", quiet=True, stream=stream) as counter:
        counter(1, 1)
        counter.note("a note")
    assert stream.getvalue() == ""
