"""The console: what a person, a log file and a pipe get to read."""

import contextlib
import io
import logging
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasnorm import progress as console
from kerasnorm.cli.training import results
from kerasnorm.progress import ConsoleProgress, console_notes, in_percent
from kerasnorm.study.intervals import Interval
from kerasnorm.study.tables import percent
from kerasnorm.tables import Table
from kerasnorm.training.loop import epoch_line

TABLE = Table(("name", ">n"), [(f"row-{n}", f"[{n}]") for n in range(40)], notes=("40 rows",))
LONG = "[/oops] :smile: " + "long " * 60
logger = logging.getLogger("kerasnorm.somewhere")


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
    """A terminal of 100 columns and 25 lines."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "25")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def drive(progress: console.Progress) -> None:
    with console_notes():
        logger.info("gn on shapes, torch, cpu")
        progress.start("training", 80, 8)
        for step in range(9, 13):
            progress.advance(step, "epoch 3/20  25 images/s")
        logger.info("a note")
        progress.finish()


def test_elsewhere_only_notes_are_shown(capsys):
    drive(ConsoleProgress())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["gn on shapes, torch, cpu", "a note"]


@pytest.mark.parametrize("make", [io.StringIO, Terminal])
def test_quiet_shows_nothing(make):
    stream = make()
    progress = ConsoleProgress(quiet=True, quarters=True, stream=stream)
    drive(progress)
    progress.show(TABLE)
    assert stream.getvalue() == ""
    assert not progress.is_live


def test_a_terminal_gets_the_notes_and_a_bar(terminal):
    with contextlib.redirect_stderr(terminal):
        drive(ConsoleProgress(stream=terminal))
        assert sys.stderr is terminal
    lines = [line.strip() for line in terminal.text.split("\n")]
    for expected in ("gn on shapes, torch, cpu", "a note"):
        assert lines.count(expected) == 1
    assert any(line.startswith("training ━") for line in lines)


def test_the_bar_tells_done_time_left_and_status(terminal, clock):
    progress = ConsoleProgress(stream=terminal)
    progress.start("training", 2000, 8)
    assert "8/2,000" in terminal.text
    assert "left" not in terminal.text
    clock[0] += 10
    progress.advance(10, "epoch 3/20  25 images/s")
    assert "10/2,000 2:45:50 left  epoch 3/20  25 images/s" in terminal.text  # 2 steps took 10 s
    clock[0] += 10
    progress.advance(11, "known better", seconds_left=60.0)
    assert "11/2,000 1:00 left  known better" in terminal.text
    clock[0] += 10
    progress.advance(2000, "test 71.9 %")
    assert "2,000/2,000 test 71.9 %" in terminal.text
    progress.finish()


def test_the_bar_is_drawn_a_few_times_a_second(terminal, clock):
    progress = ConsoleProgress(stream=terminal)
    progress.start("title", 10_000)
    for step in range(9_000):
        clock[0] += 0.001
        progress.advance(step)
        progress.show(TABLE)
    assert 60 < len(re.findall(r"/10,000", terminal.text)) < 90
    progress.finish()


def test_text_is_taken_literally_and_long_lines_are_not_broken(terminal):
    progress = ConsoleProgress(stream=terminal)
    with contextlib.redirect_stderr(terminal), console_notes():
        progress.start("[bold]title[/bold] :smile:", 1)
        logger.info(LONG)
        progress.advance(1, "[red]status[/red]")
        progress.finish()
    assert "[bold]title[/bold] :smile:" in terminal.text
    assert "[red]status[/red]" in terminal.text
    assert LONG in terminal.text


def test_finish_may_come_early_and_twice(terminal):
    progress = ConsoleProgress(stream=terminal)
    progress.finish()
    progress.start("title", 1)
    progress.finish()
    progress.finish()
    shown, hidden = "\x1b[?25h", "\x1b[?25l"
    assert terminal.getvalue().rindex(shown) > terminal.getvalue().rindex(hidden)  # the cursor


def test_an_error_takes_the_bar_away_too(terminal):
    before = sys.stderr
    with contextlib.suppress(ValueError), ConsoleProgress(stream=terminal) as progress:
        progress.start("title", 1)
        assert sys.stderr is not before
        raise ValueError
    assert sys.stderr is before


@pytest.mark.parametrize("columns", ["20", "60", "300"])
def test_any_width(columns, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    progress = ConsoleProgress(stream=terminal)
    with contextlib.redirect_stderr(terminal), console_notes():
        progress.start("training", 2)
        progress.show(TABLE)
        logger.info(LONG)
        progress.finish()
    assert LONG in terminal.text


def test_a_table_is_cut_to_the_terminal_and_stays(terminal, clock):
    progress = ConsoleProgress(stream=terminal)
    progress.start("epochs", 4)
    clock[0] += 1
    progress.show(TABLE)
    first = terminal.text
    assert "row-16" in first  # of 25 lines, 17 are rows
    assert "[16]" in first
    assert "row-17" not in first
    assert "40 rows" in first
    assert "epochs ━" in first
    end = len(terminal.getvalue())
    progress.finish()
    last = terminal.getvalue()[end:]
    assert "row-0 " in last
    assert "epochs" not in last
    assert "\x1b[1A" not in last[last.index("row-0") :]  # nothing erases it


def test_quarters_are_a_line_each_where_there_is_no_terminal(clock):
    stream = io.StringIO()
    with ConsoleProgress(quarters=True, stream=stream) as progress:
        progress.start("work", 8)
        for done in range(1, 9):
            clock[0] += 10
            progress.advance(done)
    assert stream.getvalue().splitlines() == [
        "work: 2/8, 1:00 left",
        "work: 4/8, 0:40 left",
        "work: 6/8, 0:20 left",
        "work: 8/8",
    ]


def test_a_notebook_shows_the_table_and_the_bar_in_the_output_of_its_cell(monkeypatch, clock):
    display = pytest.importorskip("IPython.display")
    shown = []

    class Handle:
        def update(self, bundle, raw):
            assert raw
            shown.append(bundle)

    def show(bundle, raw, display_id):
        shown.append(bundle)
        return Handle()

    monkeypatch.setattr(display, "display", show)
    monkeypatch.setattr(console, "is_notebook", lambda: True)
    progress = console.default_progress()
    progress.start("epochs", 40)
    for done in (10, 20):
        clock[0] += 10
        progress.advance(done, "[half]")
    assert [bundle["text/plain"].split()[-1] for bundle in shown] == ["0/40", "[half]", "[half]"]
    assert "20/40 0:20 left" in shown[-1]["text/plain"]
    assert shown[-1]["text/html"].startswith("<pre>")
    clock[0] += 10
    progress.show(TABLE)
    progress.finish()
    assert "row-31" in shown[-1]["text/plain"]  # of 40 lines, 32 are rows
    assert "row-32" not in shown[-1]["text/plain"]
    assert "20/40" not in shown[-1]["text/plain"]


def test_elsewhere_nothing_is_shown_by_default(capsys):
    progress = console.default_progress()
    progress.start("training", 2)
    progress.advance(1, "status")
    progress.show(TABLE)
    progress.finish()
    assert capsys.readouterr() == ("", "")


class TestNotes:
    def test_they_go_to_the_stderr_of_the_moment_and_stop_at_the_end(self, capsys):
        package = logging.getLogger("kerasnorm")
        before = package.level, list(package.handlers), package.propagate
        with console_notes():
            logger.debug("too fine")
            logger.info("100 % literal")
            logging.getLogger("other").info("not ours")
        logger.info("too late")
        assert capsys.readouterr().err == "100 % literal\n"
        assert (package.level, package.handlers, package.propagate) == before

    def test_a_level_keeps_lower_ones_away(self, capsys):
        with console_notes(logging.ERROR):
            logger.warning("a warning")
            logger.error("an error")
        assert capsys.readouterr().err == "an error\n"

    def test_a_warning_is_printed_once_and_a_note_each_time(self, capsys):
        with console_notes():
            for _ in range(2):
                logger.warning("a warning")
                logger.info("a note")
        assert capsys.readouterr().err == "a warning\na note\na note\n"

    def test_a_library_user_gets_warnings_only(self):
        code = (
            "import logging, kerasnorm.progress;"
            "log = logging.getLogger('kerasnorm.data'); log.info('info'); log.warning('warning')"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("", "warning\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600, "1:00:00")]
)
def test_duration(seconds, text):
    assert console.duration(seconds) == text


@given(st.integers(1, 10**6), st.data(), st.integers(0, 3))
def test_a_share_is_0_or_100_percent_only_where_it_is_exactly_that(total, data, digits):
    right = data.draw(
        st.one_of(st.integers(0, total), st.sampled_from([0, min(1, total), total - 1, total]))
    )
    text, unit = in_percent(right / total, digits), Fraction(1, 10**digits)
    exact, shown = Fraction(100 * right, total), Fraction(text.lstrip("<>"))
    if text[0] in "<>":
        assert shown == (unit if text[0] == "<" else 100 - unit)
        assert 0 < exact < shown if text[0] == "<" else shown < exact < 100
    else:
        assert abs(shown - exact) <= unit / 2 + Fraction(1, 10**9)
        assert (shown in (0, 100)) == (right in (0, total))


def test_accuracies_are_written_so_in_lines_and_tables():
    row = {"epoch": 1.0, "test_loss": 0.1, "test_accuracy": 0.99996}
    assert "test 0.100 >99.9 %" in epoch_line(row, 1)
    assert "accuracy >99.99 %" in results([row | {"seconds": 1.0}], Path("run"))
    assert percent(Interval.of([1.0, 0.99998])).startswith(">99.99 ±")
    assert percent(Interval.of([1.0, 1.0])).startswith("100.00 ±")


def test_the_module_costs_nothing():
    code = (
        "import sys, kerasnorm.progress;"
        "print(*{'rich', 'keras', 'numpy', 'matplotlib'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""
