"""Studies that really train: kept, resumed, interrupted, killed; on this machine and on Dask."""

import base64
import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html import unescape
from pathlib import Path

import keras
import pytest
from helpers import tiny
from helpers.coarse import coarse_figures  # noqa: F401
from helpers.command import call
from helpers.forked import PYTHON
from helpers.networks import Twice, write_network
from helpers.studies import make_run, place
from hostile import changed_data
from keras import layers
from PIL import Image

import kerasnorm
from kerasnorm.cli import studies
from kerasnorm.config import resolve
from kerasnorm.errors import ConfigError, CorruptFileError, DataError, RunFolderError
from kerasnorm.study import execution, folder, study
from kerasnorm.study.folder import PlannedRun, State
from kerasnorm.study.plan import StudyPlan, run_name
from kerasnorm.study.probe import Probe
from kerasnorm.study.summary import summarize

TINY = (
    *("--data", "shapes", "--train-size", "60", "--test-size", "20", "--batch-size", "16"),
    *("--widths", "4,4,4,4,4,4,4,4,4,4", "--backend", "torch"),
)
PATIENCE = 240.0  # seconds, on a busy machine


def command(*words, python=None):
    return [python or sys.executable, "-m", "kerasnorm", *map(str, words)]


def rows(path):
    try:
        with path.open() as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study of bn and gn, one seed, with its JSON."""
    path = tmp_path_factory.mktemp("studies") / "small"
    words = ("--norm", "bn", "--norm", "gn", "--epochs", "2", "--jobs", "2", "--json")
    out, err = call("compare", *TINY, *words, "--seeds", "1", "--out", path)
    return path, words, json.loads(out), err


def test_a_study_leaves_runs_tables_figures_and_report(trained):
    path, _, document, err = trained
    assert {run["state"] for run in document["runs"]} == {"finished"}
    assert "bn-torch-s0  done" in err
    names = {item.name for item in path.iterdir()} - {".lock"}
    assert names == {"study.toml", "runs", "runs.csv", "summary.csv", "summary.json", "figures",
                     "report.html"}  # fmt: skip
    for run in (path / "runs").iterdir():
        assert {item.name for item in run.iterdir()} - {".lock"} == {
            "config.toml",
            "environment.json",
            "history.csv",
            "manifest.json",
            "metrics.json",
            "model.keras",
        }
    figures = {item.name for item in (path / "figures").iterdir()}
    assert figures >= {"accuracy.png", "loss.png", "final.png", "misclassified-bn.png"}
    command_line = json.loads((path / "runs/bn-torch-s0/environment.json").read_text())
    assert command_line["command_line"][:3] == ["kerasnorm", "fit", "--resume"]
    assert rows(path / "runs.csv")[0]["run"] == "bn-torch-s0"


@pytest.mark.long
def test_the_same_command_keeps_what_is_finished_and_redoes_what_is_broken(trained):
    path, words, first, _ = trained
    kept = path / "runs" / "bn-torch-s0" / "history.csv"
    before = kept.read_bytes()
    broken = path / "runs" / "gn-torch-s0"
    (broken / "metrics.json").unlink()
    (broken / "history.csv").write_text("nonsense")
    (broken / "checkpoints" / "epoch-001").mkdir(parents=True)  # with nothing in it
    out, err = call("compare", *TINY, *words, "--seeds", "1", "--out", path)
    assert "2 runs, 1 of them finished before" in err
    assert kept.read_bytes() == before
    again = json.loads(out)
    scores = [[run["test_accuracy"] for run in document["runs"]] for document in (first, again)]
    assert scores[0] == scores[1]
    out, _ = call("compare", "--resume", path, "--json", "--quiet")
    assert json.loads(out)["runs"] == again["runs"]


def test_a_dry_run_lists_runs_and_their_time_and_trains_nothing(trained):
    path, words, _, _ = trained
    words = (*TINY, *words, "--seeds", "2", "--dry-run")
    plan = json.loads(call("compare", *words, "--out", path)[0])
    assert [(run["run"], run["finished"], run["rate_from"]) for run in plan["runs"]] == [
        ("bn-torch-s0", True, ""),
        ("bn-torch-s1", False, "runs"),
        ("gn-torch-s0", True, ""),
        ("gn-torch-s1", False, "runs"),
    ]
    assert plan["at_a_time"] == 2
    assert plan["seconds"] > 0
    assert len(list((path / "runs").iterdir())) == 2
    fresh = (*TINY, "--norm", "rms", "--seeds", "1", "--dry-run", "--out", path.parent / "new")
    assert "measured" in call("compare", *fresh)[0]
    assert not (path.parent / "new").exists()


@pytest.mark.long
def test_a_report_is_rebuilt(trained):
    path = trained[0]
    before = (path / "summary.json").read_text()
    for name in ("report.html", "summary.json"):
        (path / name).unlink()
    assert call("report", path)[0].strip() == str(path / "report.html")
    assert (path / "summary.json").read_text() == before
    assert "<!DOCTYPE html>" in (path / "report.html").read_text()[:20]
    target = path.parent / "one.html"
    call("report", path / "runs" / "bn-torch-s0", "--out", target)
    assert "bn-torch-s0" in target.read_text()


@pytest.mark.long
def test_the_effects_of_an_ablation_are_reported(tmp_path):
    """Of runs that were trained elsewhere: what is printed, written, drawn and rebuilt."""
    path = tmp_path / "ablation"
    words = (*TINY, "--recipe", "era8", "--norm", "gn", "--seeds", "2", "--vary", "optimizer=sgd",
             "--vary", "groups=2", "--one-at-a-time", "--out", str(path))  # fmt: skip
    context = studies.compare.make_context("compare", list(words))
    plan = studies._plan(context.params)
    scores = {"{}": 0.8, "{'optimizer': 'sgd'}": 0.7, "{'groups': 2}": 0.85}
    for config, change in zip(plan.configs().values(), plan.changes().values(), strict=True):
        home = path / "runs" / run_name(config, change)
        place(home, config)
        metrics = json.loads((home / "metrics.json").read_text())
        metrics["test_accuracy"] = scores[repr(change)] + 0.01 * config.train.seed
        (home / "metrics.json").write_text(json.dumps(metrics))
    text, err = call("compare", *words)
    assert "6 runs, 6 of them finished before" in err
    assert "Ablation effects" in text
    assert "Differences" not in text
    written = (path / "summary.json").read_text()
    effects = json.loads(written)["ablation_effects"]
    found = [(item["field"], item["value"], item["n"]) for item in effects]
    assert found == [("optimizer", "sgd", 2), ("groups", 2, 2)]
    assert effects[0]["mean"] == pytest.approx(-0.1)
    assert (path / "figures/ablation.png").is_file()
    (path / "summary.json").unlink()
    call("report", path)
    assert (path / "summary.json").read_text() == written
    call("report", path, "--out", tmp_path / "one.html")
    for html in (path / "report.html", tmp_path / "one.html"):
        assert "<caption>Ablation effects</caption>" in html.read_text()
    assert "--one-at-a-time" in (path / "report.html").read_text()


@pytest.mark.long
def test_a_diverged_run_is_reported_and_the_others_are_kept(tmp_path):
    words = (*TINY, "--epochs", "1", "--optimizer", "sgd", "--schedule", "constant",
             "--vary", "learning_rate=0.01,1e30", "--norm", "none", "--seeds", "1")  # fmt: skip
    out, err = call("compare", *words, "--out", tmp_path / "s", code=4)
    assert "1 of 2 runs failed" in err
    assert "smaller --learning-rate" in err
    assert [row["state"] for row in rows(tmp_path / "s/runs.csv")] == ["finished", "failed"]
    [failure] = json.loads((tmp_path / "s/summary.json").read_text())["failures"]
    assert (failure["norm"], failure["count"], failure["planned"]) == ("none", 1, 1)
    assert failure["fields"] == {"learning_rate": 1e30}
    for text in (out, (tmp_path / "s/report.html").read_text()):
        assert "failed in 1 of 1 runs: " in text
        assert "1 of 1" in text
    # Later reports tell of it too, and a resumed study tries it again.
    written = {name: (tmp_path / "s" / name).read_text() for name in ("runs.csv", "summary.json")}
    call("report", tmp_path / "s")
    call("plot", tmp_path / "s")
    assert {name: (tmp_path / "s" / name).read_text() for name in written} == written
    call("report", tmp_path / "s", "--out", tmp_path / "one.html")
    for report in (tmp_path / "s/report.html", tmp_path / "one.html"):
        assert "failed in 1 of 1 runs: " in report.read_text()
    _, err = call("compare", "--resume", tmp_path / "s", code=4)
    assert "1 of 2 runs failed" in err


@pytest.mark.long
def test_the_best_run_is_that_of_the_best_group_by_validation(tmp_path):
    path = tmp_path / "study"
    words = (*TINY, "--norm", "bn", "--norm", "gn", "--seeds", "2", "--out", str(path))
    plan = studies._plan(studies.compare.make_context("compare", list(words)).params)
    # gn is better on the validation images, bn on the test images; seed 1 is gn's better one.
    scores = {("bn", 0): (0.5, 0.9), ("bn", 1): (0.8, 0.9)}
    scores |= {("gn", 0): (0.7, 0.6), ("gn", 1): (0.75, 0.6)}
    for config, change in zip(plan.configs().values(), plan.changes().values(), strict=True):
        home = path / "runs" / run_name(config, change)
        place(home, config)
        metrics = json.loads((home / "metrics.json").read_text())
        found = scores[config.model.norm, config.train.seed]
        metrics["val_accuracy"], metrics["test_accuracy"] = found
        (home / "metrics.json").write_text(json.dumps(metrics))
    text, _ = call("compare", *words)
    assert "Ranked and compared by accuracy on the validation split" in text
    assert f"kerasnorm export {path} --best" in text
    assert study.best_run(path).path.name == "gn-torch-s1"
    assert str(path / "runs") in call("evaluate", path, code=2)[1]
    _, err = call("evaluate", path, "--best", code=5)  # it was never trained: it has no model
    where = "the best seed of GN, which has the highest mean validation accuracy, 72.50 %."
    assert f"gn-torch-s1, 75.00 %, is {where}" in err
    figures = call("plot", path)[0].split()
    assert str(path / "figures" / "final.png") in figures
    # The same from Python: all runs are finished, so nothing is trained.
    fixed = {**plan.fixed}
    outcome = kerasnorm.compare(("bn", "gn"), seeds=2, out=path, **fixed)
    assert repr(outcome) == f"Outcome({str(path)!r}, 4 kept)"
    assert [row[:2] for row in outcome.table().rows] == [
        ("BN", "65.00 ± 21.21"),
        ("GN", "72.50 ± 3.54 *"),
    ]
    assert outcome.best().path.name == "gn-torch-s1"
    assert str(outcome).startswith("Matched arms: ")
    # A run of gn is lost: the other one alone does not make gn the best.
    (path / "runs" / "gn-torch-s0" / "metrics.json").unlink()
    _, err = call("evaluate", path, "--best", code=5)
    assert "groups with fewer seeds than the others are left out: GN." in err
    assert "bn-torch-s1, 80.00 %" in err
    for argument, value in (("norm", "bn"), ("backend", "torch"), ("seed", 1)):
        with pytest.raises(ConfigError, match=f"among {argument}s"):
            kerasnorm.compare(("bn",), **{argument: value})


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_study_leaves_no_process(tmp_path, number):
    words = (*TINY, "--epochs", "300", "--norm", "gn", "--seeds", "1", "--out", tmp_path / "s")
    history = tmp_path / "s/runs/gn-torch-s0/history.csv"
    line = command("compare", *words, python=PYTHON)
    with subprocess.Popen(line, stderr=subprocess.PIPE) as process:
        wait_for(lambda: len(rows(history)) > 1)
        process.send_signal(number)
        process.wait(60)
    assert process.returncode == (143 if number == signal.SIGTERM else -9)
    settled = []

    def is_still():  # no run process continues to train
        settled.append(len(rows(history)))
        time.sleep(1.5)
        return settled[-1] == len(rows(history))

    wait_for(is_still)
    assert len(rows(history)) < 300
    assert (tmp_path / "s/runs/gn-torch-s0/checkpoints").is_dir()
    assert not (tmp_path / "s/.stop").exists()


@contextlib.contextmanager
def dask_process(kind, folder, *words):
    """A Dask scheduler or worker in a process of its own; yields the process."""
    line = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *words,
            "--scheduler-file", str(folder / "scheduler.json"), "--no-dashboard"]  # fmt: skip
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_another_dask_worker_resumes_the_run_of_a_killed_one(tmp_path):
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    one = ("--nworkers", "1", "--nthreads", "1", "--no-nanny", "--resources", "GPU=1")
    words = (*TINY, "--epochs", "25", "--norm", "gn", "--seeds", "1", "--out", tmp_path / "s")
    history = tmp_path / "s/runs/gn-torch-s0/history.csv"
    with dask_process("scheduler", tmp_path, "--port", "0", "--host", "127.0.0.1"):
        wait_for(lambda: file.exists() and file.read_text())
        address = json.loads(file.read_text())["address"]
        with dask_process("worker", tmp_path, *one, "--name", "first") as first:
            line = command("compare", *words, "--scheduler", address, "--json")
            with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                wait_for(lambda: len(rows(history)) > 1)
                with dask_process("worker", tmp_path, *one, "--name", "second"):
                    before = rows(history)
                    first.kill()
                    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err.decode()
    assert json.loads(out)["runs"][0]["state"] == "finished"
    after = rows(history)
    assert len(after) == 25
    # Times never repeat: these epochs were not trained again.
    assert after[: len(before)] == before
    assert len(before) < 25


MISTAKES = [
    (("compare", "--vary", "batch_sise=3"), 2, "batch_size"),
    (("compare", "--vary", "epochs=1,2", "--epochs", "3"), 2, "either --epochs or --vary"),
    (("compare", "--one-at-a-time"), 2, "--vary"),
    (("compare", "--resume", ".", "--one-at-a-time"), 2, "leave out --one-at-a-time"),
    (("compare", "--norm", "batch"), 2, "'bn', 'gn'"),
    (("compare", "--jobs", "0"), 2, "jobs"),
    (("compare", "--resume", ".", "--seeds", "2"), 2, "leave out --seeds"),
    (("compare", "--resume", "."), 5, "not the folder of a study"),
    (("compare", "--vary", "groups=3,4", *TINY[:2]), 2, "divisor"),
    (("compare", *TINY, "--scheduler", "tcp://127.0.0.1:9", "--out", "s"), 2, "scheduler"),
    (("compare", "--batch-size", "8", "--batch-size", "9"), 2, "--vary batch_size=8,9"),
    (("compare", "--batch-size=8,9"), 2, "--vary batch_size=8,9"),
    (("compare", "--norm", "bn,gn"), 2, "--norm bn --norm gn"),
    (("compare", "--linear-rate"), 2, "--rate-scaling linear"),
    (("evaluate", ".", "--best"), 2, "expected the folder of a study"),
    (("report", "."), 5, "no run's folder"),
]


@pytest.mark.parametrize(("words", "code", "named"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_gets_one_clear_message(tmp_path, monkeypatch, words, code, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execution, "CONNECT_TIMEOUT", "1s")
    _, err = call(*words, code=code)
    assert named in err


BEST = Path(__file__).parents[2] / "results/best"


def absent(config, seed):
    raise DataError("cifar10 is not here.")


@pytest.mark.long
def test_a_report_without_the_data_keeps_the_images_that_it_cannot_draw(tmp_path, monkeypatch):
    path = tmp_path / "best"
    shutil.copytree(BEST, path)
    before = {file.name: file.read_bytes() for file in (path / "figures").iterdir()}
    monkeypatch.setattr("kerasnorm.study.study.prepare", absent)
    _, err = call("report", path)
    assert "The figure of misclassified images is left as it is." in err
    after = {file.name: file.read_bytes() for file in (path / "figures").iterdir()}
    assert after.keys() == before.keys()
    kept = [name for name in after if name.startswith("misclassified")]
    assert len(kept) == 3
    html = (path / "report.html").read_text()
    for name in kept:
        assert after[name] == before[name]
        assert base64.b64encode(before[name]).decode() in html


def test_a_batch_larger_than_the_training_set_is_refused_before_any_run(tmp_path):
    held_out = {"train_size": 80, "validation": 16}  # the images that are left are trained on
    for sizes in ({"train_size": 64}, held_out):
        for options in ({"batch_size": 65}, {"vary": {"batch_size": (8, 65)}}):
            with pytest.raises(ConfigError, match=r"at most the 64 training images.*batch_size=65"):
                kerasnorm.compare(("bn",), out=tmp_path / "s", data="shapes", **sizes, **options)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("words", [["--precision", "auto"], ["--vary", "precision=float32,auto"]])
def test_a_precision_that_each_device_would_choose_is_refused(words, tmp_path):
    _, err = call("compare", *words, "--data", "shapes", "--out", tmp_path / "study", code=2)
    assert "precision: expected 'float32' or 'mixed_bfloat16', since only fit chooses" in err
    assert not (tmp_path / "study").exists()


def test_missing_data_are_refused_before_any_run(tmp_path):
    words = ("--data", tmp_path / "missing", *TINY[2:], "--norm", "bn", "--seeds", "1")
    _, err = call("compare", *words, "--out", tmp_path / "study", code=3)
    assert "no such file" in err
    assert not any((tmp_path / "study/runs").iterdir())


@pytest.mark.long
def test_changed_data_are_refused_before_any_run(tmp_path):
    data = changed_data.write(tmp_path / "d")
    words = ("--data", data, "--norm", "bn", "--epochs", "1", "--backend", "torch", *TINY[6:10],
             "--out", tmp_path / "study")  # fmt: skip
    call("compare", *words, "--seeds", "1")
    (data / "test/dog/0.png").unlink()
    _, err = call("compare", *words, "--seeds", "2", code=3)
    assert "bn-torch-s0: expected the data that it was trained on" in err
    assert "11 test images instead of 12" in err
    assert len(list((tmp_path / "study/runs").iterdir())) == 1


@pytest.mark.long
def test_a_study_is_extended_after_its_data_were_moved(tmp_path, monkeypatch):
    """Started with a relative place, in a folder whose name has spaces, then moved and resumed."""
    changed_data.write(tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    words = ("--norm", "bn", "--epochs", "1", "--backend", "torch", *TINY[6:10])
    call("compare", "--data", "d/", *words, "--seeds", "1", "--out", "my study")
    (tmp_path / "d").rename(tmp_path / "my data")
    monkeypatch.chdir(tmp_path.parent)
    out, err = call("compare", "--resume", tmp_path / "my study", "--data", tmp_path / "my data",
                    "--json")  # fmt: skip
    assert "1 run, 1 of them finished before" in err
    assert [group["seeds"] for group in json.loads(out)["groups"]] == [[0]]
    out, err = call("compare", "--data", tmp_path / "my data", *words, "--seeds", "2", "--out",
                    tmp_path / "my study", "--json")  # fmt: skip
    assert "2 runs, 1 of them finished before" in err
    assert [group["seeds"] for group in json.loads(out)["groups"]] == [[0, 1]]
    html = unescape((tmp_path / "my study/report.html").read_text())
    lines = [
        shlex.split(line) for line in re.findall("kerasnorm (?:compare|report|fit) [^<]*", html)
    ]
    assert len(lines) == 3
    assert ["kerasnorm", "report", str(tmp_path / "my study")] in lines
    for line in lines:
        places = [word for word in line if word.startswith(str(tmp_path))]
        assert places
        assert all("my study" in place or "my data" in place for place in places)


def test_varied_data_are_not_named_again(tmp_path):
    words = ("--vary", f"data=shapes,{tmp_path / 'e'}", "--norm", "bn", "--seeds", "1")
    call("sweep", *words, "--backend", "torch", "--out", tmp_path / "study", code=3)
    _, err = call("compare", "--resume", tmp_path / "study", "--data", "shapes", code=2)
    assert "the study varies its data" in err


def test_a_folder_of_images_is_read_once(tmp_path, monkeypatch):
    """It has no test set of its own: of ten images per class, two are tests, two validation."""
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(10):
            image = Image.new("RGB", (8, 8), (number, 0, 0))
            image.save(tmp_path / "data" / name / f"{number}.png")
    read = []
    prepare = study.prepare
    monkeypatch.setattr(study, "prepare", lambda *args: read.append(args) or prepare(*args))
    describe = study.describer()
    fixed = {"data": str(tmp_path / "data"), "preprocessing": "equalize"}
    asked = StudyPlan(norms=("bn", "gn"), backends=("torch",), seeds=(0, 1), fixed=fixed)
    plan = study.completed(asked, describe)
    assert plan.fixed["validation"] == 4
    runs = folder.survey(tmp_path / "study", plan)
    study.check_content(runs, describe)
    assert len(runs) == 4
    assert len(read) == 1
    assert describe(runs[0].config.data).train.images.nbytes == 0


def test_data_that_only_the_workers_have_are_left_to_them(tmp_path, caplog):
    """The client of a Dask scheduler may be a machine without the data."""
    plan = StudyPlan(norms=("bn",), backends=("torch",), seeds=(0,),
                     fixed={"data": str(tmp_path / "missing")})  # fmt: skip
    runs = folder.survey(tmp_path / "study", plan)
    study.check_content(runs, study.describer(), is_remote=True)
    assert "The workers must have them." in caplog.text
    with pytest.raises(DataError, match="no such file"):
        study.check_content(runs, study.describer())


class InThisProcess:
    """Answers as the process of `kerasnorm.study.probe` does, without its start."""

    def __init__(self, module):
        self.ask = Probe().answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_a_network_that_cannot_be_made_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "JsonProcess", InThisProcess)
    file = tmp_path / "nets.py"
    file.write_text(
        "import keras\n"
        "def build(input_shape, classes):\n"
        "    pixels = keras.Input(input_shape)\n"
        "    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(pixels))\n"
        "    return keras.Model(pixels, keras.layers.Dense(classes)(x))\n"
    )
    plan = StudyPlan(
        norms=("keep", "gn"),
        backends=(keras.backend.backend(),),
        seeds=(0, 1),
        fixed={
            "network": f"{file}:build",
            "data": "shapes",
            "train_size": 20,
            "test_size": 20,
            "batch_size": 20,
        },
    )
    with pytest.raises(ConfigError, match="expected a network with normalization layers"):
        study.run_study(plan, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_instance_norms_are_said_before_a_run_is_trained(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(study, "JsonProcess", InThisProcess)
    write_network(tmp_path / "net.keras", layers.ReLU())
    fixed = {"network": str(tmp_path / "net.keras"), "data": "shapes", "train_size": 20,
             "test_size": 20, "batch_size": 20, "backend": keras.backend.backend()}  # fmt: skip
    kept = resolve(fixed | {"norm": "keep"})
    wide = resolve(fixed | {"norm": "gn", "group_size": 2})
    single = resolve(fixed | {"norm": "gn"})
    study.check_networks([kept, wide], study.describer())
    assert "instance" not in caplog.text
    study.check_networks([single], study.describer())
    assert "each group is one channel, which is instance normalization" in caplog.text


@pytest.mark.parametrize("recipe", ["era8", "best"])
@pytest.mark.parametrize("norm", [{"norm": "in"}, {"norm": "gn", "group_size": 1}], ids=str)
def test_instance_norms_without_effect_are_said_before_a_run_is_trained(
    recipe, norm, monkeypatch, caplog
):
    monkeypatch.setattr(study, "JsonProcess", InThisProcess)
    fixed = {"data": "shapes", "train_size": 20, "test_size": 20, "batch_size": 20}
    fixed |= {"recipe": recipe, "backend": keras.backend.backend()} | norm
    study.check_networks([resolve(fixed)], study.describer())
    # Norms stand behind the activations in era8 alone.
    assert ("the same for every image" in caplog.text) == (recipe == "era8")


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "lnc", "rms", "none"])
def test_a_network_without_instance_norms_is_not_made_before_a_study(norm, monkeypatch):
    monkeypatch.setattr(study, "JsonProcess", failing(AssertionError("a process")))
    fixed = {"data": "shapes", "train_size": 20, "test_size": 20, "batch_size": 20}
    study.check_networks([resolve(fixed | {"norm": norm})], study.describer())


UNUSABLE = {
    "moved": lambda path: path.unlink(),
    "elsewhere": lambda path: os.chdir(path.parent / "study"),
    "damaged": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "untrusted": lambda path: write_network(path, Twice()),
    "of other images": lambda path: keras.Sequential(
        [keras.Input((8, 8, 3)), layers.BatchNormalization(), layers.Flatten(), layers.Dense(10)]
    ).save(path),
}


def begun_study(path, monkeypatch):
    """A study of a network in a file: a finished run, and one that has begun; returns its plan."""
    monkeypatch.setattr(study, "JsonProcess", InThisProcess)
    monkeypatch.chdir(path)
    write_network(path / "net.keras")
    fixed = {name: value for name, value in tiny.TINY.items() if name != "widths"}
    plan = StudyPlan(
        norms=("keep",),
        backends=(keras.backend.backend(),),
        seeds=(0, 1),
        fixed=fixed | {"network": "net.keras"},
    )
    with folder.opened(path / "study", plan):
        for number, config in enumerate(plan.configs().values()):
            place(path / "study/runs" / str(number), config, finished=number == 0)
    checkpoint = path / "study/runs/1/checkpoints/epoch-001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.npz").write_text("what was trained")
    return plan


def contents(path):
    """The files of a study, byte by byte."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name != ".lock"]
    return {file.relative_to(path): file.read_bytes() for file in files}


@pytest.mark.parametrize("make", UNUSABLE.values(), ids=UNUSABLE)
def test_a_network_that_has_become_unusable_is_refused_before_any_run(tmp_path, monkeypatch, make):
    plan = begun_study(tmp_path, monkeypatch)
    before = contents(tmp_path / "study")
    make(tmp_path / "net.keras")
    with pytest.raises((ConfigError, CorruptFileError), match=r"net\.keras"):
        study.run_study(plan, tmp_path / "study")
    assert contents(tmp_path / "study") == before


def test_a_study_whose_runs_are_finished_needs_no_network(tmp_path, monkeypatch):
    plan = begun_study(tmp_path, monkeypatch)
    (tmp_path / "net.keras").unlink()
    outcome = study.run_study(replace(plan, seeds=(0,)), tmp_path / "study")
    assert repr(outcome).endswith("1 kept)")


def finished_study(path):
    """A plan of bn and gn whose runs are finished."""
    fixed = {"recipe": "era8", "data": "cifar10"}
    plan = StudyPlan(norms=("bn", "gn"), backends=("torch",), seeds=(0,), fixed=fixed)
    for config in plan.configs().values():
        place(path / "runs" / config.model.norm, config)
    return plan


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def test_runs_that_failed_for_one_reason_are_named_with_it():
    found = [PlannedRun(Path(f"run-{seed}"), resolve()) for seed in range(4)]
    for run, message in zip(found, ["nan", "a signal", "nan", "nan"], strict=True):
        run.state, run.exit_code, run.message = State.FAILED, 4, message
    lines = str(study.Outcome(Path("s"), found, None).failure()).splitlines()
    assert lines[0] == "4 of 4 runs failed:"
    assert lines[1:3] == ["  run-0, run-2, run-3: nan", "  run-1: a signal"]


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, ""), ({"jobs": 2}, " --jobs 2"), ({"scheduler": "tcp://h:1"}, " --scheduler tcp://h:1")],
    ids=str,
)
def test_the_command_that_resumes_a_study_trains_in_the_same_place(
    options, words, tmp_path, monkeypatch, caplog
):
    @contextlib.contextmanager
    def interrupted(_):
        def submit(folder):
            raise KeyboardInterrupt

        yield submit

    monkeypatch.setattr(study.execution, "local", interrupted)
    monkeypatch.setattr(study.execution, "dask", interrupted)
    plan = StudyPlan(norms=("gn",), backends=("torch",), seeds=(0,), fixed={"data": "shapes"})
    path = tmp_path / "my study"
    with pytest.raises(KeyboardInterrupt):
        study.run_study(plan, path, **options)
    assert f"Resume with: kerasnorm compare --resume '{path}'{words}\n" in caplog.text


@pytest.mark.parametrize(
    "error", [ValueError("no glyphs"), RunFolderError("a full disk"), ConfigError("no rule")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
@pytest.mark.parametrize("step", ["study_tables.write", "draw_study", "report.render", "_layers"])
def test_what_cannot_be_written_does_not_cost_the_answer(
    tmp_path, monkeypatch, caplog, step, error
):
    plan = finished_study(tmp_path)
    monkeypatch.setattr("kerasnorm.study.study.image_source", lambda: lambda run: None)
    if step != "draw_study":
        monkeypatch.setattr(study, "draw_study", lambda *_: {})
    monkeypatch.setattr(f"kerasnorm.study.study.{step}", failing(error))
    outcome = study.run_study(plan, tmp_path)
    assert outcome.failure() is outcome.unwritten is error
    assert [group.norm for group in outcome.summary.groups] == ["bn", "gn"]
    assert "BN" in str(outcome)
    assert (tmp_path / "summary.json").exists() == (step != "study_tables.write")
    assert f"Write the rest with: kerasnorm report {tmp_path}" in caplog.text
    with pytest.raises(type(error)):  # who asks for the report alone is told
        study.rebuild_report(tmp_path)


def test_a_report_on_an_unfinished_study_counts_the_runs_that_are_not_trained(
    tmp_path, monkeypatch
):
    plan = replace(finished_study(tmp_path), seeds=(0, 1))
    with folder.opened(tmp_path, plan):
        pass
    monkeypatch.setattr(study, "draw_study", lambda *_: {})
    study.rebuild_report(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["waiting"] == 2
    text = "2 planned runs are not trained yet: the command of the study goes on with them."
    assert text in (tmp_path / "report.html").read_text()


def test_runs_on_several_data_sets_have_no_best(tmp_path):
    fixed = {"recipe": "era8"}
    plan = StudyPlan(
        norms=("bn",),
        backends=("torch",),
        seeds=(0,),
        vary={"data": ("cifar10", "cifar100")},
        fixed=fixed,
    )
    for config in plan.configs().values():
        place(tmp_path / "runs" / config.data.data, config)
    with folder.opened(tmp_path, plan):
        pass
    with pytest.raises(ConfigError, match=r"one data set, .* on cifar10 and cifar100\. Name one"):
        study.best_run(tmp_path)


HEADS = {
    "mean": lambda x: layers.Dense(3)(keras.ops.mean(x, axis=(1, 2))),
    "permute": lambda x: layers.Dense(3)(layers.Flatten()(layers.Permute((3, 1, 2))(x))),
    "attention": lambda x: layers.Dense(3)(
        layers.GlobalAveragePooling1D()(
            layers.MultiHeadAttention(1, 2)(*[layers.Reshape((-1, 4))(x)] * 2)
        )
    ),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_model_without_receptive_fields_has_a_report_without_them(tmp_path, caplog, head):
    run = make_run(0.5, norm="bn")
    place(tmp_path / "a", run.config)
    pixels = keras.Input((8, 8, 3))
    keras.Model(pixels, head(layers.Conv2D(4, 3)(pixels))).save(tmp_path / "a/model.keras")
    found = kerasnorm.Run.load(tmp_path / "a")
    assert study._layers(found) is None
    assert "The report has no table of receptive fields: " in caplog.text


def test_the_title_of_a_report_names_all_networks_and_recipes():
    runs = [make_run(0.5, norm="bn"), make_run(0.5, norm="gn")]
    assert study._title("s", summarize(runs)) == (
        "s: normalization compared on cifar10, recipe era8, matched arms"
    )
    runs = [make_run(0.5, norm="bn", recipe=recipe) for recipe in ("era8", "plain", "era8")]
    assert study._title("s", summarize(runs)) == (
        "s: normalization compared on cifar10, recipes era8 and plain"
    )
    networks = ("builtin", "keras:MobileNetV2", "a/resnet.py:make")
    runs = [make_run(0.5, norm="bn", recipe="plain", network=network) for network in networks]
    assert study._title("s", summarize(runs)) == (
        "s: normalization compared in builtin and MobileNetV2 and resnet on cifar10, recipe plain"
    )


WRONG = [
    ({"seeds": 0}, "seeds: expected a whole number of at least 1. Received: seeds=0"),
    ({"seeds": True}, "Received: seeds=True"),
    ({"seeds": 2.5}, "Received: seeds=2.5"),
    ({"seeds": (0, 1)}, r"Received: seeds=\(0, 1\)"),
    ({"norms": ()}, "norms: expected the name of at least one norm. Received: none"),
    ({"norms": "bn"}, "norms: expected several values such as .* Received: 'bn'"),
    ({"norms": None}, "norms: expected several values such as .* Received: None"),
    ({"norms": (1,)}, "norm: expected"),
    ({"norms": [["bn"]]}, "norm: expected"),
    ({"backends": "torch"}, "backends: expected several values such as .* Received: 'torch'"),
    ({"backends": ("pytorch",)}, "Unknown backend: 'pytorch'"),
    ({"arms": "both"}, "Unknown arms: 'both'. Known: matched, tuned"),
    ({"rate_scaling": "square"}, "Unknown rate_scaling: 'square'"),
    ({"margin": -1}, "margin: expected a number .* Received: margin=-1"),
    ({"margin": "1"}, "margin: expected a number .* Received: margin='1'"),
    ({"margin": float("nan")}, "margin: expected a number .* Received: margin=nan"),
    ({"jobs": 0}, "jobs: expected a whole number of at least 1. Received: jobs=0"),
    ({"vary": ["batch_size"]}, "vary: expected values by field such as"),
    ({"vary": {"batch_size": 32}}, "vary, batch_size: expected several values .* Received: 32"),
    ({"vary": {"optimizer": "sgd"}}, "vary, optimizer: expected several values .* Received: 'sgd'"),
    ({"vary": {"batch_size": ()}}, "vary: expected at least one value of batch_size. Received"),
    ({"vary": {"batch_size": ["a"]}}, "batch_size: expected a whole number"),
    ({"vary": {"batchsize": [1]}}, "batch_size"),
    ({"vary": {"norm": ("bn",)}}, "Received: vary=norm. Give norms instead"),
    ({"vary": {"backend": ("torch",)}}, "Received: vary=backend. Give backends instead"),
    ({"vary": {"seed": (0, 1)}}, "Received: vary=seed. Give seeds instead"),
    ({"vary": {"device": ("cpu",)}}, "Received: vary=device"),
    ({"vary": {"log": (("mlflow",),)}}, "Received: vary=log"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_argument_gets_one_clear_message(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    fixed = {name: value for name, value in tiny.TINY.items() if name not in ("widths", "device")}
    fixed = {name: value for name, value in fixed.items() if name not in arguments.get("vary", ())}
    with pytest.raises(ConfigError, match=message):
        kerasnorm.compare(**{"norms": ("bn",), "seeds": 1, "backends": ("torch",)} | arguments,
                          **fixed)  # fmt: skip
    assert not (tmp_path / "results").exists()


def test_the_report_of_a_study_written_elsewhere_names_the_study(tmp_path, monkeypatch):
    """Its effects, failures and margin are those of the plan, which its runs alone do not know."""
    plan = finished_study(tmp_path / "mine")
    with folder.opened(tmp_path / "mine", plan):
        pass
    before = contents(tmp_path / "mine")
    monkeypatch.setattr(study, "draw_study", lambda *_: {})
    monkeypatch.chdir(tmp_path / "mine")
    call("report", ".", "--out", "../new/one.html")
    html = (tmp_path / "new/one.html").read_text()
    assert "<code>kerasnorm report . --out ../new/one.html</code>" in html
    assert "<h1>mine: normalization compared" in html
    assert contents(tmp_path / "mine") == before
    call("report", ".")
    assert "<h1>mine: normalization compared" in Path("report.html").read_text()


def test_a_dry_run_warns_of_norms_without_effect(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "JsonProcess", InThisProcess)
    monkeypatch.setattr("kerasnorm.study.estimate._measured", lambda *_: None)
    words = ("--data", "shapes", "--train-size", "20", "--test-size", "20", "--batch-size", "20",
             "--recipe", "era8", "--norm", "in", "--backend", keras.backend.backend())  # fmt: skip
    _, err = call("compare", *words, "--seeds", "1", "--dry-run", "--out", tmp_path / "s")
    assert "the same for every image" in " ".join(err.split())
    assert not (tmp_path / "s").exists()
