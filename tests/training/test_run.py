"""A run's folder: made once, written plainly, read with distrust."""

import json
import math
import shlex

import numpy as np
import pytest
from helpers import tiny

from kerasnorm.config import resolve
from kerasnorm.errors import ConfigError, CorruptFileError, DataError, RunFolderError
from kerasnorm.training import run, run_folder

ROW = dict.fromkeys(run_folder.COLUMNS, 0.1) | {"epoch": 1, "val_loss": None, "val_accuracy": None}
CONFIG = resolve({"norm": "bn", "backend": "torch", "seed": 4})


def test_history_comes_back_bit_by_bit(tmp_path):
    path = tmp_path / run_folder.HISTORY
    rows = [ROW, ROW | {"epoch": 2, "train_loss": 1 / 3}]
    run_folder.write_history(path, rows)
    assert run_folder.read_history(path) == rows
    assert path.read_text().splitlines()[0] == ",".join(run_folder.COLUMNS)


@pytest.mark.parametrize(
    "text", ["", "epoch,lr\n1,0.1\n", ",".join(run_folder.COLUMNS) + "\n1,x,,,,,,,,\n"]
)
def test_a_damaged_history_is_refused(tmp_path, text):
    path = tmp_path / run_folder.HISTORY
    path.write_text(text)
    if text:
        with pytest.raises(CorruptFileError, match=r"history\.csv"):
            run_folder.read_history(path)
    else:
        assert run_folder.read_history(path) == []


def test_a_new_folder_holds_the_config(tmp_path):
    path = run_folder.create_folder(tmp_path / "a b/ü", CONFIG, "shapes")
    assert run_folder.read_config(path) == CONFIG
    assert run_folder.is_run(path)


def test_default_folders_are_named_and_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [str(run_folder.create_folder(None, CONFIG, "shapes")) for _ in range(3)]
    base = "results/runs/shapes-bn-torch-s4"
    assert names == [base, f"{base}-2", f"{base}-3"]


def test_the_command_that_resumes_a_run_can_be_pasted(tmp_path):
    path = run_folder.create_folder(tmp_path / "my runs" / "it's 1", CONFIG, "shapes")
    run_folder.write_history(path / run_folder.HISTORY, [ROW])
    with pytest.raises(CorruptFileError) as error:
        run.Run.load(path)
    words = shlex.split(str(error.value).partition("resume it: ")[2])
    assert words == ["kerasnorm", "fit", "--resume", str(path)]


def test_long_names_of_data_give_folders_that_can_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [run_folder.create_folder(None, CONFIG, "d" * 240 + end) for end in "ab"]
    assert all(len(path.name) < 143 and path.name.endswith("-bn-torch-s4") for path in paths)
    assert len(set(paths)) == 2


def test_a_folder_that_holds_something_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="other files"):
        run_folder.create_folder(tmp_path, CONFIG, "shapes")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    taken = run_folder.create_folder(tmp_path / "run", CONFIG, "shapes")
    with pytest.raises(RunFolderError, match=r"another run.*--resume"):
        run_folder.create_folder(taken, CONFIG, "shapes")


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="--out"):
        run_folder.create_folder(tmp_path / "file" / "run", CONFIG, "shapes")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(CorruptFileError, match=r"no run's folder"):
        run.Run.load(tmp_path)
    path = run_folder.create_folder(tmp_path / "run", CONFIG, "shapes")
    with pytest.raises(CorruptFileError, match="not finished"):  # nor has it trained an epoch
        run.Run.load(path)
    run_folder.write_history(path / run_folder.HISTORY, [ROW])
    with pytest.raises(CorruptFileError, match="not finished"):
        run.Run.load(path)
    names = ("class_names", "confusion", "misclassified")
    whole = {name: [] for name in names} | {"test_accuracy": 0.5}
    by_hand = [
        *({"test_accuracy": value} for value in (None, math.nan, "0.5", True, 91.2, -0.1)),
        *({"val_accuracy": value} for value in (math.inf, 100)),
        {"test_loss": math.nan},
    ]
    edited = [json.dumps(whole | change) for change in by_hand]
    (path / run_folder.ENVIRONMENT).write_text("{}")
    for text in ("[]", "{}", "{", *edited):
        (path / run_folder.METRICS).write_text(text)
        with pytest.raises(CorruptFileError, match=r"metrics.json is damaged"):
            run.Run.load(path)
    (path / run_folder.METRICS).write_text(json.dumps(whole | {"val_accuracy": None}))
    assert run.Run.load(path).metrics["test_accuracy"] == 0.5
    (path / run_folder.CONFIG).write_text("norm = ")
    with pytest.raises(CorruptFileError, match="damaged"):
        run.Run.load(path)


@pytest.mark.long
def test_a_run_judges_predicts_exports_and_draws(tmp_path):
    done = tiny.train(tiny.config(norm="bn", epochs=1), out=tmp_path / "run")
    accuracy, loss = (done.metrics[f"test_{name}"] for name in ("accuracy", "loss"))
    scores = done.evaluate()
    assert scores.accuracy == accuracy
    assert np.isclose(scores.loss, loss, rtol=1e-5)
    test = done.dataset().test
    chances = done.predict(test.images)
    assert (chances.argmax(1) == test.labels).mean() == pytest.approx(accuracy)
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)
    for same in ([*test.images], test.images.astype(float)):
        np.testing.assert_array_equal(done.predict(same), chances)
    for wrong in (
        test.images[0],
        test.images[:, :-1],
        test.images[..., :1],
        test.images.swapaxes(1, 3),
        test.images / 255,
        test.images - 300.0,
        "images.npy",
    ):
        with pytest.raises(DataError, match=r"^images: expected "):
            done.predict(wrong)
    assert done.evaluate(split="train").accuracy != accuracy
    [exported] = done.export("keras", out=tmp_path / "out")
    assert exported.path.parent == tmp_path / "out"
    assert (exported.accuracy, exported.keras_accuracy) == (None, accuracy)
    assert {path.parent for path in done.plot(tmp_path / "plots")} == {tmp_path / "plots"}
    with pytest.raises(ConfigError, match="expected one of keras"):
        done.export("caffe")
    text = f"Run({str(done.path)!r}: bn on shapes, {done.config.train.backend}, test accuracy "
    assert repr(done).startswith(text)
    assert len(repr(done).splitlines()) == 1
