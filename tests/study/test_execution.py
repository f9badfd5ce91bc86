"""Runs while they are trained: the table puts what matters first and takes nothing for markup."""

import contextlib
import io
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from kerasnorm.config import resolve
from kerasnorm.progress import ConsoleProgress, console_notes
from kerasnorm.study import execution, folder
from kerasnorm.study.execution import event_line, runs_table
from kerasnorm.study.folder import PlannedRun, State
from kerasnorm.study.plan import StudyPlan
from kerasnorm.tables import to_rich
from kerasnorm.training.run import Judged

STATES = (State.KEPT, State.WAITING, State.RUNNING, State.DONE, State.FAILED)


def planned_runs():
    config = resolve({"epochs": 10, "backend": "torch", "data": "shapes"})
    found = [PlannedRun(Path(f"run-{state}"), config, state=state) for state in STATES]
    found[2].epoch, found[2].judged, found[2].seconds = 4, Judged("validation", 0.5), 62.0
    found[4].message = "a [bold] loss"
    return found


def test_the_table_orders_runs_by_what_matters():
    out = io.StringIO()
    left = {"run-running": 93.0}
    Console(file=out, width=100).print(to_rich(runs_table(planned_runs(), 75.0, left), 100))
    lines = [text.split()[:2] for text in out.getvalue().splitlines() if "run-" in text]
    assert lines == [
        ["5/5", "run-failed"],
        ["3/5", "run-running"],
        ["2/5", "run-waiting"],
        ["4/5", "run-done"],
        ["1/5", "run-kept"],
    ]
    assert "1:33" in out.getvalue()
    assert "a [bold] loss" in out.getvalue()
    assert "4/10" in out.getvalue()
    assert "validation %" in out.getvalue()
    assert "50.00" in out.getvalue()
    assert "1:02" in out.getvalue()
    assert "1 failed, 1 running, 1 waiting, 1 done, 1 kept, 1:15 elapsed" in out.getvalue()


def test_failed_runs_are_red():
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system="standard")
    console.print(to_rich(runs_table(planned_runs(), 0.0, {}), 100))
    (failed,) = [text for text in out.getvalue().splitlines() if "run-failed" in text]
    assert "\x1b[31m" in failed


def test_an_event_is_a_line():
    found = planned_runs()
    assert event_line(found[2]) == "run-running  running  epoch 4/10  validation 50.0 %"
    line = "run-running  running  epoch 4/10  validation 50.0 %  1:33 left  study 5:00 left"
    assert event_line(found[2], 93.0, 300.0) == line
    assert event_line(found[3], 0.0, 300.0) == "run-done  done  study 5:00 left"
    assert event_line(found[4]) == "run-failed  failed  a [bold] loss"


def test_only_open_runs_have_epochs_left():
    assert [run.epochs_left for run in planned_runs()] == [0, 10, 6, 0, 0]


@contextlib.contextmanager
def place():
    """A machine on which the run of the first seed works, and the others fail."""

    def work(path):
        return (0, "") if path.name.endswith("s0") else (1, "a [bold] loss")

    with ThreadPoolExecutor(1) as executor:
        yield lambda folder: executor.submit(work, folder)


def execute(path, stream, monkeypatch, **options):
    monkeypatch.setattr(execution, "REFRESH", 0.01)
    monkeypatch.setenv("COLUMNS", "100")
    plan = StudyPlan(norms=("gn",), backends=("torch",), seeds=(0, 1), fixed={"data": "shapes"})
    progress = ConsoleProgress(stream=stream, **options)
    with contextlib.redirect_stderr(stream), console_notes():
        runs = folder.survey(path, plan)
        execution.execute(path, runs, place(), progress)
    assert [run.state for run in runs] == [State.DONE, State.FAILED]
    return stream.getvalue()


def test_elsewhere_than_on_a_terminal_each_event_is_a_line(tmp_path, monkeypatch):
    assert execute(tmp_path, io.StringIO(), monkeypatch).splitlines() == [
        "2 runs, 0 of them finished before",
        "run 1/2  gn-torch-s0  done",
        "run 2/2  gn-torch-s1  failed  a [bold] loss",
    ]


def test_a_terminal_gets_one_live_table(tmp_path, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    events = logging.getLogger(execution.EVENTS)
    events.setLevel(logging.WARNING)  # as the command does on a terminal
    try:
        shown = execute(tmp_path, stream, monkeypatch)
    finally:
        events.setLevel(logging.NOTSET)
    assert "2 runs, 0 of them finished before" in shown
    assert "1 failed, 1 done" in shown
    assert "failed: a [bold] loss" in shown
    assert "gn-torch-s1  failed  a [bold] loss" not in shown  # the line of the event


def test_quiet_shows_no_table(tmp_path, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    assert "elapsed" not in execute(tmp_path, stream, monkeypatch, quiet=True)
