"""Commands that meet odd names, files, caches and variables end well, or say what to do."""

import dataclasses
import json

import pytest
from helpers.command import call, run
from hostile.text import (
    CACHES,
    CLASSES,
    CONFIGS,
    FOLDERS,
    INPUTS,
    NAMES,
    PLACES,
    VARIABLES,
    Refused,
    class_folder,
)

from kerasnorm.config import resolve
from kerasnorm.data import load, sources
from kerasnorm.errors import RunFolderError
from kerasnorm.study import folder as studies
from kerasnorm.study.plan import StudyPlan
from kerasnorm.training.run import create_folder

pytestmark = pytest.mark.backend("any")
TRAIN = "fit --epochs 1 --batch-size 32 --widths 4,4,4,4,4,4,4,4,4,4".split()


def cases(inputs):
    """Parametrizes a test over a list of inputs."""
    return pytest.mark.parametrize(
        ("make", "expected"), [pytest.param(make, what, id=name) for name, make, what in inputs]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, with pictures and a report, on classes of all names that are accepted."""
    folder = tmp_path_factory.mktemp("names")
    for name in NAMES.values():
        class_folder(name)(folder / "data")
    call(*TRAIN, "--data", folder / "data", "--out", folder / "run", "--quiet")
    call("report", folder / "run")
    return folder


@cases(CLASSES)
def test_a_class_of_any_name_comes_back_from_the_models_file(make, expected, tmp_path, trained):
    data = make(tmp_path / "data")
    (name,) = (entry.name for entry in data.iterdir())
    if isinstance(expected, Refused):
        class_folder("other")(data)
        _, err = call(*TRAIN, "--data", data, "--out", tmp_path / "run", code=expected.code)
        assert all(text in err for text in expected.texts)
        assert not (tmp_path / "run").exists()
        return
    words = ("predict", trained / "run" / "model.keras", data / name / "0.png")
    out, _ = call(*words, "--top", len(NAMES), "--json")
    assert name in {guess["class"] for guess in json.loads(out)[0]["classes"]}


@cases(PLACES)
def test_data_and_run_in_a_folder_of_any_name(make, expected, tmp_path):
    place = make(tmp_path)
    out, _ = call(*TRAIN, "--data", place / "data", "--out", place / "run", "--json")
    path = json.loads(out)["path"]
    assert path == str(place / "run")
    for judged in (path, f"{path}/model.keras"):
        assert json.loads(call("evaluate", judged, "--json")[0])["n"] == 2
    call("report", path)
    assert call("fit", "--resume", path)[1].endswith("has finished already.\n")


@cases(FOLDERS)
def test_a_folder_that_people_call_empty_is_taken(make, expected, tmp_path):
    before = {path.name for path in make(tmp_path).iterdir()}
    config, plan = resolve({"backend": "torch"}), StudyPlan(norms=("bn",), seeds=(0,))
    if isinstance(expected, Refused):
        with pytest.raises(RunFolderError, match=expected.texts[0]):
            create_folder(tmp_path, config, "shapes")
        with pytest.raises(RunFolderError, match=expected.texts[0]), studies.opened(tmp_path, plan):
            pass
        assert {path.name for path in tmp_path.iterdir()} == before
    else:
        create_folder(tmp_path, config, "shapes")
        assert before < {path.name for path in tmp_path.iterdir()}
        (tmp_path / "config.toml").unlink()
        (tmp_path / "manifest.json").unlink()
        with studies.opened(tmp_path, plan):
            assert before < {path.name for path in tmp_path.iterdir()}


@cases(CONFIGS)
def test_a_config_as_an_editor_leaves_it(make, expected, tmp_path):
    words = ("fit", "--config", make(tmp_path), "--dry-run", "--json")
    if isinstance(expected, Refused):
        assert expected.texts[0] in call(*words, code=expected.code)[1]
    else:
        assert json.loads(call(*words)[0])["train"]["seed"] == 3


@cases(CACHES)
def test_what_is_no_data_set_does_not_stop_auto(make, expected, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("KERASNORM_CACHE", str(make(tmp_path)))
    monkeypatch.setenv("no_proxy", "*")
    official = sources.OFFICIAL["cifar10"]
    files = tuple(file._replace(urls=("http://127.0.0.1:1/",)) for file in official.files)
    changed = dataclasses.replace(official, files=files)
    monkeypatch.setitem(sources.OFFICIAL, "cifar10", changed)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert load("auto", train_size=20, test_size=10).name == "shapes"
    for text in expected.notes:
        assert sum(text in message for message in caplog.messages) == 1
    assert all(path.read_bytes() == content for path, content in kept.items())


@cases(VARIABLES)
def test_a_variable_that_nothing_reads_is_named(make, expected, tmp_path, monkeypatch):
    for name, value in make(tmp_path).items():
        monkeypatch.setenv(name, value)
    err = call("fit", "--dry-run")[1]
    assert all(text in err for text in expected.notes)
    assert bool(err) == bool(expected.notes)
    assert call("evaluate", tmp_path, "--quiet", code=5)[1].startswith("kerasnorm: ")


def test_the_log_that_a_command_writes_does_not_fill_its_folder(tmp_path):
    """The shell has opened the log in the run's folder before the command starts."""
    code = (
        "import sys, kerasnorm.files as files; from pathlib import Path\n"
        "sys.exit(not files.is_empty(Path(sys.argv[1])))"
    )
    assert run_into(tmp_path / "notes", code, tmp_path) == 0
    (tmp_path / "others").touch()
    assert run_into(tmp_path / "notes", code, tmp_path) == 1


def test_names_are_distinct():
    assert len({name for name, _, _ in INPUTS}) == len(INPUTS)
