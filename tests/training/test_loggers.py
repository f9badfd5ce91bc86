"""Loggers: what they wrote is read back, after interruptions and failures too."""

import importlib.util
import io
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import types
from collections import OrderedDict
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import tiny
from helpers.command import call
from PIL import Image

import kerasnorm
from kerasnorm import config
from kerasnorm.errors import MissingPackageError
from kerasnorm.signals import Terminated
from kerasnorm.study.plan import StudyPlan
from kerasnorm.study.study import check
from kerasnorm.training import run_folder
from kerasnorm.training.loggers import LOGGERS
from kerasnorm.training.loggers.tensorboard import EventFiles

pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")

# MLflow's store uses what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
MEASURES = [name for name in run_folder.COLUMNS if name != "epoch"]
STEPS = 4  # in an epoch of 60 images, the last of 12


def stop_in(epoch):
    """A callback that interrupts the run in an epoch, before its checkpoint."""

    def stop(index, logs):
        if index + 1 == epoch:
            raise KeyboardInterrupt

    return keras.callbacks.LambdaCallback(on_epoch_end=stop)


def test_the_config_names_the_loggers_that_there_are():
    assert tuple(LOGGERS) == config.LOGGERS


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run that was interrupted in its second epoch of three, and resumed."""
    path = tmp_path_factory.mktemp("logged") / "run"
    # The database of MLflow takes seconds to make: on one backend.
    names = LOGGERS if keras.backend.backend() == "torch" else ["tensorboard"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.raises(KeyboardInterrupt):
            tiny.train(
                tiny.config(norm="bn", epochs=3, log=[*names]), out=path, callbacks=[stop_in(2)]
            )
        return tiny.train(resume=path)


@pytest.fixture
def read(monkeypatch):
    """Reads all events in a folder with TensorBoard's own reader."""
    # With this module the reader does without TensorFlow, which it would import.
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", types.ModuleType("notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = dict.fromkeys(("scalars", "images", "histograms"), 0)
    return lambda folder: EventAccumulator(str(folder), everything).Reload()


@pytest.fixture
def one_plot(monkeypatch):
    """Draws one black picture for each run, in no time."""

    def draw(done, images):
        (done.path / run_folder.PLOTS).mkdir(exist_ok=True)
        Image.new("RGB", (4, 3)).save(done.path / run_folder.PLOTS / "black.png")

    monkeypatch.setattr("kerasnorm.plots.draw_run", draw)


def scalars(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def columns(history):
    """Maps each measure that a run has to its step and value by epoch."""
    found = {name: [(row["epoch"], row[name]) for row in history] for name in MEASURES}
    return {name: pairs for name, pairs in found.items() if pairs[0][1] is not None}


@pytest.mark.long
@pytest.mark.backend("any", long_on="tensorflow")
def test_tensorboard_has_each_epoch_and_step_of_a_resumed_run_once(logged, read):
    events = read(logged.path / "tensorboard")
    epochs = columns(logged.history)
    tags = {f"epoch/{name}" for name in epochs} | {"step/loss", "step/lr"}
    assert {*events.Tags()["scalars"]} == tags
    for name, pairs in epochs.items():
        np.testing.assert_allclose(scalars(events, f"epoch/{name}"), pairs, rtol=1e-6)
    losses, rates = scalars(events, "step/loss"), scalars(events, "step/lr")
    assert [step for step, _ in losses] == [step for step, _ in rates] == [*range(1, 13)]
    by_epoch = np.reshape([loss for _, loss in losses], (3, STEPS))
    means = np.average(by_epoch, axis=1, weights=[16, 16, 16, 12])
    np.testing.assert_allclose(means, [row["train_loss"] for row in logged.history], rtol=1e-5)
    assert len({*by_epoch.ravel()}) == 12
    last = [rate for _, rate in rates[STEPS - 1 :: STEPS]]
    np.testing.assert_allclose(last, [row["lr"] for row in logged.history], rtol=1e-6)


@pytest.mark.usefixtures("heeds_sigint")
@pytest.mark.parametrize(
    "place", ["checkpoints.save", "run_folder.write_history", "Training._details"]
)
def test_an_epoch_that_is_saved_is_logged_with_its_steps_before_a_signal_ends_the_run(
    place, tmp_path, read, monkeypatch
):
    target = f"kerasnorm.training.loop.{place}"
    original = pkgutil.resolve_name(target.replace(".loop.", ".loop:"))

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(target, interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny.train(tiny.config(log=["tensorboard"]), out=tmp_path / "run")
    events = read(tmp_path / "run/tensorboard")
    for name in ("loss", "lr"):
        assert [step for step, _ in scalars(events, f"step/{name}")] == [1, 2, 3, 4]
    assert any(tag.startswith("weights/") for tag in events.Tags()["histograms"])


@pytest.mark.backend("any", long_on="tensorflow")
def test_tensorboard_has_the_weights_and_the_plots(logged, read):
    events = read(logged.path / "tensorboard")
    weights = {v.path: keras.ops.convert_to_numpy(v) for v in logged.model().weights}
    assert {*events.Tags()["histograms"]} == {f"weights/{path}" for path in weights}
    for path, values in weights.items():
        found = events.Histograms(f"weights/{path}")
        assert [event.step for event in found] == [1, 2, 3]
        last = found[-1].histogram_value
        assert last.num == sum(last.bucket) == values.size
        np.testing.assert_allclose(last.sum, values.sum(dtype=float), rtol=1e-5, atol=1e-6)
        below = [(values < edge).sum() for edge in last.bucket_limit[:-1]]
        np.testing.assert_array_equal(np.cumsum(last.bucket)[:-1], below)
    plots = {path.stem: path for path in (logged.path / run_folder.PLOTS).iterdir()}
    assert {"confusion", "misclassified"} <= plots.keys()
    for name, path in plots.items():
        (event,) = events.Images(f"plots/{name}")
        assert event.step == 3
        with Image.open(io.BytesIO(event.encoded_image_string)) as one, Image.open(path) as other:
            assert one.size == other.size == (event.width, event.height)
            np.testing.assert_array_equal(one, other)


@pytest.mark.backend("torch")
def test_mlflow_has_the_config_the_epochs_and_the_files_of_a_resumed_run_once(logged):
    client = mlflow.MlflowClient(f"sqlite:///{logged.path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("kerasnorm")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    params = found.data.params
    assert params.keys() == logged.config.fields.keys()
    assert (params["norm"], params["widths"], params["residual"]) == ("bn", "4," * 9 + "4", "true")
    epochs = columns(logged.history)
    assert found.data.metrics.keys() == epochs.keys()
    for name, pairs in epochs.items():
        history = client.get_metric_history(found.info.run_id, name)
        assert [(metric.step, metric.value) for metric in history] == pairs
    names = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert names == {
        run_folder.CONFIG,
        run_folder.HISTORY,
        run_folder.METRICS,
        run_folder.MODEL,
        run_folder.PLOTS,
    }
    place = Path(found.info.artifact_uri.removeprefix("file://"))
    assert (place / run_folder.MODEL).read_bytes() == (logged.path / run_folder.MODEL).read_bytes()
    assert {path.name for path in (place / run_folder.PLOTS).iterdir()} >= {"confusion.png"}


@pytest.mark.backend("torch")
@pytest.mark.parametrize("name", ["copy", "an ünusual name"])
def test_mlflow_keeps_the_artifacts_in_the_folder_of_a_run_that_was_moved(
    name, logged, tmp_path, one_plot, monkeypatch
):
    # What MLflow remembers of a run, which another process does not.
    memory = "mlflow.tracking._tracking_service.utils._artifact_repos_cache"
    monkeypatch.setattr(memory, OrderedDict())
    moved = shutil.copytree(logged.path, tmp_path / name)
    shutil.rmtree(moved / "mlflow/artifacts")
    theirs = {path: path.stat().st_mtime_ns for path in (logged.path / "mlflow").rglob("*.keras")}
    tiny.train(resume=moved)
    (model,) = (moved / "mlflow").rglob("*.keras")
    assert model.read_bytes() == (moved / run_folder.MODEL).read_bytes()
    assert theirs == {path: path.stat().st_mtime_ns for path in theirs}
    client = mlflow.MlflowClient(f"sqlite:///{moved}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("kerasnorm")
    assert experiment.artifact_location == (moved / "mlflow/artifacts").as_uri()
    (found,) = client.search_runs([experiment.experiment_id])
    assert run_folder.MODEL in {item.path for item in client.list_artifacts(found.info.run_id)}


@pytest.mark.backend("torch")
def test_mlflow_uses_the_store_and_the_experiment_of_the_user(
    logged, tmp_path, monkeypatch, one_plot
):
    store = f"sqlite:///{logged.path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    client = mlflow.MlflowClient(store)
    client.create_experiment("theirs", (tmp_path / "artifacts").as_uri())
    tiny.train(tiny.config(epochs=1, log=["mlflow"]), out=tmp_path / "mine")
    (found,) = client.search_runs([client.get_experiment_by_name("theirs").experiment_id])
    assert found.info.run_name == "mine"
    assert [path.name for path in (tmp_path / "mine/mlflow").iterdir()] == ["run.json"]
    assert len([*(tmp_path / "artifacts").iterdir()]) == 1


@pytest.mark.backend("torch")
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt, "KILLED"),
        pytest.param(Terminated, "KILLED", marks=pytest.mark.long),
        (ArithmeticError, "FAILED"),
    ],
)
def test_mlflow_tells_which_runs_were_stopped_and_which_are_running(
    error, status, logged, tmp_path, monkeypatch, one_plot
):
    store = f"sqlite:///{logged.path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    client, statuses = mlflow.MlflowClient(store), []

    def act(index, logs, error=None):
        found = json.loads((tmp_path / "run/mlflow/run.json").read_text())
        statuses.append(client.get_run(found["run"]).info.status)
        if error is not None:
            raise error

    stop = keras.callbacks.LambdaCallback(on_epoch_end=partial(act, error=error()))
    with pytest.raises(error):
        tiny.train(tiny.config(epochs=1, log=["mlflow"]), out=tmp_path / "run", callbacks=[stop])
    act(0, {})
    see = keras.callbacks.LambdaCallback(on_epoch_end=act)
    tiny.train(resume=tmp_path / "run", callbacks=[see])
    act(0, {})
    assert statuses == ["RUNNING", status, "RUNNING", "FINISHED"]


def rows(*accuracies):
    row = dict.fromkeys(run_folder.COLUMNS)
    return [row | {"epoch": n, "test_accuracy": a} for n, a in enumerate(accuracies, 1)]


def test_event_files_follow_the_history(tmp_path, read):
    """A log may be behind its checkpoints, or ahead of the newest one that is whole."""
    log = EventFiles(tmp_path, tiny.config())

    def held():
        return scalars(read(tmp_path / "tensorboard"), "epoch/test_accuracy")

    log.write(rows(0.25, 0.5))
    assert held() == [(1, 0.25), (2, 0.5)]
    (tmp_path / "tensorboard/.events.out.tfevents.000003.1234.tmp").write_bytes(b"half")
    log.write(rows(0.25))
    assert held() == [(1, 0.25)]
    log.write(rows(0.25, 0.75, 1.0))
    assert held() == [(1, 0.25), (2, 0.75), (3, 1.0)]


def test_a_log_that_fails_is_one_warning_and_is_completed_at_the_end(
    tmp_path, caplog, read, one_plot
):
    path = run_folder.create_folder(tmp_path / "run", tiny.config(log="tensorboard"), "shapes")
    (path / "tensorboard").write_text("in the way")
    clear = keras.callbacks.LambdaCallback(
        on_train_end=lambda logs: (path / "tensorboard").unlink()
    )
    done = tiny.train(resume=path, callbacks=[clear])
    warned = [text for text in caplog.messages if "--log tensorboard failed" in text]
    assert len(warned) == 1
    assert "and the run goes on: FileExistsError" in warned[0]
    found = scalars(read(path / "tensorboard"), "epoch/train_loss")
    np.testing.assert_allclose(found, columns(done.history)["train_loss"], rtol=1e-6)


def test_a_finished_run_can_be_given_a_log(tmp_path, read, one_plot):
    done = tiny.train(tiny.config(epochs=1), out=tmp_path / "run")
    before = (done.path / run_folder.MODEL).stat().st_mtime_ns
    again = tiny.train(resume=done.path, log=["tensorboard"])
    assert again.config.train.log == ("tensorboard",)
    assert (done.path / run_folder.MODEL).stat().st_mtime_ns == before
    events = read(done.path / "tensorboard")
    (pair,) = scalars(events, "epoch/test_accuracy")
    assert pair == pytest.approx((1, done.history[0]["test_accuracy"]))
    assert events.Tags()["images"] == ["plots/black"]


def test_a_process_that_is_not_the_first_writes_no_log(tmp_path, monkeypatch):
    from kerasnorm.process_group import ProcessGroup

    monkeypatch.setattr(ProcessGroup, "is_first", False)
    with pytest.raises(kerasnorm.errors.CorruptFileError, match="not finished"):
        tiny.train(tiny.config(epochs=1, log="tensorboard"), out=tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} & {*LOGGERS} == set()


def test_a_missing_package_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'kerasnorm\[mlflow\]'"):
        tiny.train(tiny.config(log=["mlflow"]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    backend = keras.backend.backend()
    plan = StudyPlan(norms=("bn",), backends=(backend,), seeds=(0,), fixed={"log": ["mlflow"]})
    monkeypatch.setattr("kerasnorm.runtime.check_installed", lambda name: None)
    with pytest.raises(MissingPackageError, match="for --log mlflow"):
        check(plan)


def test_event_files_are_written_without_tensorflow(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from kerasnorm.training.loggers.tensorboard import EventFiles\n"
        "EventFiles(Path(sys.argv[1]), None).write([{'epoch': 1, 'test_loss': 2.0}])\n"
        "assert not {'tensorflow', 'torch', 'keras'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == [
        "events.out.tfevents.000001"
    ]


@pytest.mark.slow
def test_the_runs_of_a_study_are_logged(tmp_path, read):
    words = ("--norm", "bn", "--seeds", "1", "--epochs", "1", "--data", "shapes", "--widths",
             "4,4,4,4,4,4,4,4,4,4", "--train-size", "60", "--test-size", "20", "--batch-size", "16",
             "--backend", keras.backend.backend(), "--out", tmp_path)  # fmt: skip
    call("compare", *words, "--log", "tensorboard")
    (folder,) = (tmp_path / "runs").iterdir()
    assert [step for step, _ in scalars(read(folder / "tensorboard"), "epoch/lr")] == [1]
    call("compare", *words)  # a log makes no other study
    assert len([*(tmp_path / "runs").iterdir()]) == 1


PAGE = (Path(__file__).parents[2] / "docs/logging.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_logs_every_epoch(monkeypatch):
    """It runs, with stand-ins for the service and for the training."""
    logged = []
    wandb = types.ModuleType("wandb")
    wandb.init = wandb.finish = lambda **options: None
    wandb.log = lambda values, step: logged.append((step, values))
    wandb.log_artifact = lambda path, **options: logged.append((options["type"], path))

    def fit(*, callbacks, out, **options):
        for epoch in range(2):
            callbacks[0].on_epoch_end(epoch, {"loss": 0.5})
        return types.SimpleNamespace(path=Path(out))

    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(kerasnorm, "fit", fit)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    model = ("model", Path("runs/gn-s0/model.keras"))
    assert logged == [(1, {"loss": 0.5}), (2, {"loss": 0.5}), model]
