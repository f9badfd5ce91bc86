"""The table of a study's runs: what matters stands on top, and nothing is taken for markup."""

import io
from pathlib import Path

from rich.console import Console

from kerasnorm.recipes import resolve
from kerasnorm.study.board import Board, line
from kerasnorm.study.folder import Job
from kerasnorm.study.runner import DONE, FAILED, KEPT, RUNNING, WAITING, Entry


def entries():
    config = resolve({"epochs": 10, "backend": "torch", "data": "shapes"})
    states = (KEPT, WAITING, RUNNING, DONE, FAILED)
    found = [Entry(Job(Path(f"run-{state}"), config, None), state) for state in states]
    found[2].epoch, found[2].test_accuracy, found[2].seconds = 4, 0.5, 62.0
    found[4].words = "a [bold] loss"
    return found


def board(**options):
    stream = io.StringIO()
    return Board(stream=stream, **options), stream


def test_the_table_orders_runs_by_what_matters():
    shown, _ = board()
    shown.start(entries())
    out = io.StringIO()
    Console(file=out, width=100).print(shown.table())
    lines = [text.split()[0] for text in out.getvalue().splitlines() if "run-" in text]
    assert lines == ["run-failed", "run-running", "run-waiting", "run-done", "run-kept"]
    assert "a [bold] loss" in out.getvalue()
    assert "4/10" in out.getvalue()
    assert "50.00" in out.getvalue()
    assert "1:02" in out.getvalue()
    assert "1 failed, 1 running, 1 waiting, 1 done, 1 kept" in out.getvalue()


def test_elsewhere_than_on_a_terminal_each_event_is_a_line():
    shown, stream = board()
    found = entries()
    shown.start(found)
    shown.changed(found[2])
    shown.tick()
    shown.finish()
    assert stream.getvalue().splitlines() == [
        "5 runs, 1 of them finished before",
        "run-running  running  epoch 4/10  test 50.00 %",
    ]
    assert line(found[4]) == "run-failed  failed  a [bold] loss"


def test_a_terminal_gets_one_live_table():
    shown, stream = board()
    stream.isatty = lambda: True
    found = entries()
    shown.start(found)
    found[1].state = RUNNING
    shown.changed(found[1])
    shown.tick()
    shown.note("something")
    shown.finish()
    assert "2 running" in stream.getvalue()
    assert "something" in stream.getvalue()


def test_quiet_is_silent():
    shown, stream = board(quiet=True)
    shown.start(entries())
    shown.changed(entries()[0])
    shown.note("something")
    shown.finish()
    assert stream.getvalue() == ""
