"""Runs while they are trained: the table puts what matters first and takes nothing for markup."""

import contextlib
import io
import json
import logging
import socket
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import tiny
from helpers.networks import Twice, write_network
from helpers.studies import place as place_run
from keras import layers
from rich.console import Console

from kerasnorm.config import resolve
from kerasnorm.errors import CorruptFileError
from kerasnorm.progress import ConsoleProgress, console_notes
from kerasnorm.study import execution, folder
from kerasnorm.study.execution import event_line, runs_table
from kerasnorm.study.folder import PlannedRun, State
from kerasnorm.study.plan import StudyPlan
from kerasnorm.tables import to_rich
from kerasnorm.training import checkpoints, run_folder
from kerasnorm.training.run_folder import Judged

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
        execution.execute(path, runs, place(), "the command", progress)
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


def test_a_failed_run_leaves_a_record_until_it_is_tried_again(tmp_path, monkeypatch):
    execute(tmp_path, io.StringIO(), monkeypatch)
    done, failed = (tmp_path / "runs" / name for name in ("gn-torch-s0", "gn-torch-s1"))
    assert not (done / folder.FAILURE).exists()
    record = json.loads((failed / folder.FAILURE).read_text())
    assert record == {"exit_code": 1, "message": "a [bold] loss"}
    monkeypatch.setattr(execution, "_train_once", lambda folder, threads, home: (143, ""))
    execution.train_in_process(failed, 1)
    assert not (failed / folder.FAILURE).exists()


def moved(home, network):
    network.rename(network.with_name("elsewhere.keras"))


def damaged(home, network):
    network.write_bytes(network.read_bytes()[:100])


def untrusted(home, network):
    write_network(network, Twice())


def replaced(home, network):
    write_network(network, layers.Conv2D(3, 1))


def edited(home, network):
    config = run_folder.read_config(home)
    (home / run_folder.MANIFEST).unlink(missing_ok=True)
    run_folder.write_config(home, config.replace(learning_rate=0.123))


def begun_run(path):
    """A run of a network in a file, after one of its three epochs; returns its folder and file."""
    network = path / "net.keras"
    write_network(network)
    fields = {name: value for name, value in tiny.TINY.items() if name != "widths"}
    config = resolve(fields | {"network": str(network), "backend": keras.backend.backend()})
    home = path / "study" / "runs" / "a"
    place_run(home, config, finished=False)
    facts = {"epoch": 1, "is_best": False, "config": run_folder.lineage(config)}
    checkpoints.save(home / run_folder.CHECKPOINTS, {"a": np.arange(3.0)}, facts)
    return home, network


def training_in(home):
    """What a run has trained, file by file."""
    files = [home / run_folder.HISTORY, *(home / run_folder.CHECKPOINTS).rglob("*")]
    return {file.relative_to(home): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize("cause", [moved, damaged, untrusted, replaced, edited])
def test_what_a_run_has_trained_is_kept_if_something_else_is_damaged(tmp_path, monkeypatch, cause):
    monkeypatch.setattr(sys, "argv", sys.argv)
    home, network = begun_run(tmp_path)
    before = training_in(home)
    assert len(before) == 4
    cause(home, network)
    with pytest.raises(CorruptFileError):
        execution.train_run({"folder": home})
    assert training_in(home) == before


def test_a_run_whose_checkpoints_are_all_damaged_starts_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", sys.argv)
    home, _ = begun_run(tmp_path)
    (home / run_folder.CHECKPOINTS / "epoch-001" / checkpoints.STATE).write_bytes(b"")
    found = []
    monkeypatch.setattr(execution, "fit", lambda **_: found.extend(home.iterdir()))
    execution.train_run({"folder": home})
    assert {path.name for path in found} - {".lock"} == {run_folder.CONFIG}
    assert "no checkpoint of this run is whole. Starting over." in capsys.readouterr().err


def test_a_run_whose_results_are_damaged_when_it_ends_has_failed(tmp_path):
    config = resolve({"norm": "bn", "data": "shapes"})
    home = tmp_path / "runs" / "bn"
    place_run(home, config)
    (home / run_folder.METRICS).write_text("{")
    run = PlannedRun(home, config)
    ending = Future()
    ending.set_result((0, ""))
    execution._record_ending(run, ending)
    assert (run.state, run.exit_code) == (State.FAILED, CorruptFileError.exit_code)
    assert "metrics.json is damaged" in run.message


@pytest.mark.parametrize(
    ("network", "norm"),
    [("net.keras", "keep"), ("mine.py:build", "keep"), ("net.keras", "mine.py:Twice")],
)
def test_a_worker_elsewhere_finds_what_is_named_from_the_folder_of_the_command(
    network, norm, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "argv", sys.argv)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_network(tmp_path / "net.keras")
    (tmp_path / "mine.py").write_text(
        "import keras\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x): return 2 * x\n"
        "def build(shape, classes):\n"
        "    return keras.saving.load_model('net.keras')\n"
    )
    fields = {name: value for name, value in tiny.TINY.items() if name != "widths"}
    fields |= {"network": network, "norm": norm, "backend": keras.backend.backend(), "epochs": 1}
    run = run_folder.create_folder(tmp_path / "runs" / "a", resolve(fields), "shapes")
    execution.train_run({"folder": run, "home": tmp_path})
    assert (run / run_folder.METRICS).is_file()


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", "AF_INET"), ("[::1]", "AF_INET6")])
def test_the_workers_of_a_host_share_its_cores(host, family, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    try:
        socket.create_server((host.strip("[]"), 0), family=getattr(socket, family)).close()
    except OSError:
        pytest.skip(f"this machine has no {host}")
    monkeypatch.setattr(execution.runtime, "cores", lambda: 12)
    monkeypatch.setattr(execution, "train_in_process", lambda path, threads, home: threads)
    options = {"processes": False, "dashboard_address": None, "threads_per_worker": 1}
    with distributed.LocalCluster(n_workers=3, host=f"tcp://{host}", **options) as cluster:
        cluster.wait_for_workers(3, timeout=30)
        with execution.dask(cluster.scheduler_address) as submit:
            assert submit(tmp_path).result() == 4
