"""Commands that meet odd names, files, caches and variables end well, or say what to do."""

import dataclasses
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout

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

from kerasnorm.cli import app, main
from kerasnorm.config import resolve
from kerasnorm.data import load, sources
from kerasnorm.errors import RunFolderError
from kerasnorm.study import folder as studies
from kerasnorm.study.plan import StudyPlan
from kerasnorm.training.run_folder import create_folder

pytestmark = pytest.mark.backend("any", slow_on="tensorflow")
# One group: two values alone would be +1 and -1 after each norm, however close they were.
TRAIN = [
    *("fit", "--epochs", "1", "--batch-size", "8", "--groups", "1"),
    *("--widths", "4,4,4,4,4,4,4,4,4,4"),
]


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


@pytest.fixture(scope="module")
def predicted(trained):
    """The names of the classes that the model's file gives an image of each class, by its path."""
    pictures = sorted((trained / "data").glob("*/0.png"))
    words = ("predict", trained / "run" / "model.keras", *pictures)
    answers = json.loads(call(*words, "--top", len(NAMES), "--json")[0])
    return {answer["image"]: {guess["class"] for guess in answer["classes"]} for answer in answers}


@pytest.mark.long
@cases(CLASSES)
def test_a_class_of_any_name_comes_back_from_the_models_file(
    make, expected, tmp_path, trained, predicted
):
    data = make(tmp_path / "data")
    (name,) = (entry.name for entry in data.iterdir())
    if isinstance(expected, Refused):
        class_folder("other")(data)
        _, err = call(*TRAIN, "--data", data, "--out", tmp_path / "run", code=expected.code)
        assert all(text in err for text in expected.texts)
        assert not (tmp_path / "run").exists()
        return
    assert name in predicted[str(trained / "data" / name / "0.png")]


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(make, what, id=name, marks=() if "\\" in name else pytest.mark.slow)
        for name, make, what in PLACES
    ],
)
def test_data_and_run_in_a_folder_of_any_name(make, expected, tmp_path):
    place = make(tmp_path)
    out, _ = call(*TRAIN, "--data", place / "data", "--out", place / "run", "--json")
    path = json.loads(out)["path"]
    assert path == str(place / "run")
    for judged in (path, f"{path}/model.keras"):
        assert json.loads(call("evaluate", judged, "--json")[0])["n"] == 2
    call("report", path)
    assert "has finished already.\n" in call("fit", "--resume", path)[1]


@cases(FOLDERS)
def test_a_folder_that_people_call_empty_is_taken(make, expected, tmp_path):
    before = {path.name for path in make(tmp_path).iterdir()}
    config, plan = (
        resolve({"backend": "torch"}),
        StudyPlan(norms=("bn",), backends=("torch",), seeds=(0,)),
    )
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
    quiet = call("fit", "--resume", tmp_path / "missing", "--quiet", code=2)[1]
    assert quiet.startswith("kerasnorm: ")


class Stream(io.TextIOWrapper):
    """A standard stream of an encoding that lacks most letters."""

    def __init__(self, encoding, errors="strict"):
        super().__init__(io.BytesIO(), encoding=encoding, errors=errors)

    def content(self):
        self.flush()
        return self.buffer.getvalue()


SMALL = ["--train-size", "40", "--test-size", "10", "--data", "shapes", "--epochs", "1"]
COMMANDS = {
    "fit": ["--resume", "RUN"],
    "compare": ["--norm", "bn", "--seeds", "1", *TRAIN[1:], "--data", "DATA", "--out", "OUT"],
    "plot": ["RUN"],
    "report": ["RUN"],
    "evaluate": ["RUN"],
    "predict": ["RUN", "PICTURE"],
    "misclassified": ["RUN", "--out", "OUT.png"],
    "summary": ["--norm", "gn"],
    "receptive-field": ["RUN"],
    "explain": ["gn", "--no-cost", "--out", "OUT"],
    "landscape": ["RUN", "--steps", "1", "--lines", "1", "--points", "3", "--out", "OUT"],
    "statistics": ["RUN", "--images", "8", "--out", "OUT"],
    "robustness": ["RUN", "--severity", "5", "--out", "OUT"],
    "inputs": ["--data", "DATA", "--out", "OUT"],
    "export": ["RUN", "--format", "keras", "--format", "state-dict", "--out", "OUT"],
    "import-torch": ["WEIGHTS", "--no-weight-standardization", "--out", "OUT.keras",
                     "--image-size", "6,6",
                     "--class-names", ",".join(f"日{number}" for number in NAMES)],
    "convert": ["RUN", "--norm", "lnc", "--out", "OUT.keras"],
    "recalibrate": ["NORMED", "--data", "DATA", "--images", "8", "--out", "OUT.keras"],
    "bench": ["--images", "20", "--rounds", "1", "--batch-size", "10", "--contender", "native"],
    "data": ["DATA"],
    "doctor": [],
}  # fmt: skip
# They start processes or train, for a few lines that are printed as those of the others are.
HEAVY = {"bench", "compare", "doctor", "inputs", "landscape", "robustness", "statistics"}
LIGHT = {"fit", "evaluate", "predict", "misclassified", "summary", "receptive-field", "data"}


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in COMMANDS],
)
def test_no_command_ends_at_a_letter_that_stdout_lacks(name, trained, tmp_path, monkeypatch):
    places = {
        "RUN": trained / "run",
        "DATA": trained / "data",
        "PICTURE": trained / "data" / "日本語" / "0.png",
        "OUT": tmp_path / "ü日",
        "WEIGHTS": tmp_path / "weights.pth",
        "NORMED": tmp_path / "bn.keras",
    }
    words = [name, *COMMANDS[name]]
    for word, place in places.items():
        words = [text.replace(word, str(place)) for text in words]
    if name == "import-torch":
        out = tmp_path / "exports"
        call("export", trained / "run", "--format", "state-dict", "--out", out)
        torch, safetensors = map(pytest.importorskip, ("torch", "safetensors.torch"))
        (path,) = out.glob("*.safetensors")
        torch.save(safetensors.load_file(path), places["WEIGHTS"])
    if name == "recalibrate":
        call("convert", trained / "run", "--norm", "bn", "--out", places["NORMED"])
    monkeypatch.setattr(sys, "argv", ["kerasnorm", *words])
    for encoding in ("cp1252", "ascii") if name in LIGHT else ("cp1252",):
        out, err = Stream(encoding), Stream(encoding, "backslashreplace")
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, err.content()
        assert b"Traceback" not in err.content()
        if name in LIGHT - {"fit", "summary", "receptive-field"}:
            monkeypatch.setattr(sys, "argv", ["kerasnorm", *words, "--json"])
            with redirect_stdout(out := Stream(encoding)), pytest.raises(SystemExit):
                main()
            assert json.loads(out.content().decode(encoding))
            monkeypatch.setattr(sys, "argv", ["kerasnorm", *words])


def test_every_command_is_tried():
    assert set(COMMANDS) == {name for name, one in app.commands.items() if not one.hidden}


@pytest.mark.long
def test_a_process_whose_encoding_lacks_the_letters(trained):
    picture = trained / "data" / "日本語" / "0.png"
    words = ("predict", trained / "run", picture, "--top", len(NAMES), "--json")
    out, _ = run(*words, PYTHONIOENCODING="ascii:strict")
    (answer,) = json.loads(out)
    assert answer["image"] == str(picture)
    assert {guess["class"] for guess in answer["classes"]} == {*NAMES.values()}


def test_names_are_distinct():
    assert len({name for name, _, _ in INPUTS}) == len(INPUTS)
