"""The command line as its users meet it: a subprocess, its streams and its exit codes."""

import csv
import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.command import call, run, tiny_fit
from helpers.forked import PYTHON
from PIL import Image

from kerasnorm import runtime
from kerasnorm.cli import app
from kerasnorm.config import LOGGERS
from kerasnorm.errors import ConfigError, RunFolderError
from kerasnorm.formats import FORMATS
from kerasnorm.formats.archive import SavedModel
from kerasnorm.runtime import installed_backends


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny run."""
    folder = tmp_path_factory.mktemp("runs") / "gn"
    call(*tiny_fit(folder, "--norm", "gn"))
    return folder


def test_the_list_of_commands_has_a_whole_sentence_for_each():
    out, _ = call("--help")
    commands = out.split("Commands:\n")[1].splitlines()
    assert len(commands) == sum(not command.hidden for command in app.commands.values())
    assert all(line.endswith(".") and not line.endswith("...") for line in commands)


@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
def test_fit_trains_saves_and_plots_on_each_backend(tmp_path, backend):
    if backend not in installed_backends():
        pytest.skip(f"{backend} is not installed")
    words = tiny_fit(tmp_path / "run", "--norm", "bn", "--backend", backend, "--json")
    # A real process on torch, the fork of one on TensorFlow.
    python = PYTHON if backend == "torch" else sys.executable
    out, err = run(*words, "--deterministic", python=python, KERAS_BACKEND=backend)
    metrics = json.loads(out)
    assert 0 <= metrics["test_accuracy"] <= 1
    assert [line.split()[1] for line in err.splitlines() if line.startswith("epoch")] == [
        "1/2",
        "2/2",
    ]
    plots = {path.name for path in (tmp_path / "run" / "plots").iterdir()}
    assert plots == {
        "accuracy.png",
        "loss.png",
        "confusion.png",
        "misclassified.png",
        "learning_rate.png",
    }
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["backend"] == backend
    assert "--norm" in environment["command_line"]


@pytest.mark.long
def test_a_config_repeats_its_run(tmp_path, trained):
    call("fit", "--config", trained / "config.toml", "--out", tmp_path / "again", "--quiet")

    def scores(folder):
        with (folder / "history.csv").open() as file:
            return [(row["train_loss"], row["test_accuracy"]) for row in csv.DictReader(file)]

    assert scores(tmp_path / "again") == scores(trained)


@pytest.mark.long
def test_quiet_is_silent(tmp_path):
    _, err = call(*tiny_fit(tmp_path / "run", "--norm", "bn", "--quiet", "--epochs", "1"))
    assert err == ""


def test_the_environment_sets_any_field():
    fields = {"BATCH_SIZE": "32", "NORM": "in", "LOG": "tensorboard mlflow"}
    given = {f"KERASNORM_{name}": value for name, value in fields.items()}
    out, _ = run("fit", "--dry-run", "--json", **given)
    config = json.loads(out)
    assert config["train"]["batch_size"] == 32
    assert config["train"]["log"] == ["tensorboard", "mlflow"]
    assert config["model"]["norm"] == "in"


def test_a_finished_model_is_evaluated_to_its_reported_score(trained):
    scores = json.loads(call("evaluate", trained, "--json")[0])
    metrics = json.loads((trained / "metrics.json").read_text())
    assert scores["n"] == 20
    assert scores["accuracy"] == metrics["test_accuracy"]
    assert json.loads(call("evaluate", trained / "model.keras", "--json")[0]) == scores
    assert "n 60 train images" in call("evaluate", trained, "--split", "train")[0]


def test_the_other_backend_gives_the_same_score(trained):
    if "tensorflow" not in installed_backends():
        pytest.skip("tensorflow is not installed")
    here = json.loads(call("evaluate", trained, "--json")[0])
    there = json.loads(run("evaluate", trained, "--json", "--backend", "tensorflow")[0])
    assert there["accuracy"] == here["accuracy"]
    assert abs(there["loss"] - here["loss"]) < 1e-4


def test_predict_names_a_class_for_each_image(trained, tmp_path):
    Image.new("RGB", (40, 50), (200, 10, 10)).save(tmp_path / "red.png")
    answer = json.loads(call("predict", trained, tmp_path / "red.png", "--top", "10", "--json")[0])
    assert len(answer[0]["classes"]) == 10
    assert abs(sum(entry["confidence"] for entry in answer[0]["classes"]) - 1) < 1e-5
    assert "red.png" in call("predict", trained, tmp_path / "red.png")[0]


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_predict_answers_for_the_images_that_can_be_read_and_names_the_others(
    form, trained, tmp_path
):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "c"):
        Image.new("RGB", (8, 8), (200, 10, 10)).save(folder / f"{name}.png")
    whole = (folder / "a.png").read_bytes()
    damaged = {"b.png": whole[:-30], "d.png": b"", "e.jpg": b"no image"}
    for name, content in damaged.items():
        (folder / name).write_bytes(content)
    out, err = call("predict", trained, folder, *form, code=3)
    good = [str(folder / name) for name in ("a.png", "c.png")]
    named = [answer["image"] for answer in json.loads(out)] if form else out.splitlines()
    assert [line.partition(": ")[0] for line in named] == good
    *lines, last = err.splitlines()
    assert [
        name for name in damaged if sum(f"{folder / name}: " in line for line in lines) == 1
    ] == [*damaged]
    assert last == "kerasnorm: 3 of 5 images cannot be read, see above."
    for name in ("a.png", "c.png"):
        (folder / name).unlink()
    out, err = call("predict", trained, folder, *form, code=3)
    assert (out, err.splitlines()[-1]) == (
        "",
        "kerasnorm: 3 of 3 images cannot be read, see above.",
    )
    assert "see above" not in call("predict", trained, folder / "b.png", *form, code=3)[1]


def test_misclassified_lists_and_draws(trained, tmp_path):
    out, _ = call("misclassified", trained, "--json", "--out", tmp_path / "new" / "m.png")
    assert json.loads(out) == json.loads((trained / "metrics.json").read_text())["misclassified"]
    assert (tmp_path / "new" / "m.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("split", "kind"),
    [("test", "test image"), pytest.param("all", "image", marks=pytest.mark.long)],
)
def test_misclassified_names_image_files_and_says_where_there_are_none(
    cropped, tmp_path, monkeypatch, split, kind
):
    data, folder = cropped
    wanted = ["--split", split, "--out", tmp_path / "m.png"]
    answers = {}
    monkeypatch.setattr(
        SavedModel, "predict", lambda _, images: np.eye(2, dtype=np.float32)[answers["all"]]
    )
    count = 4 if split == "test" else 20
    answers["all"] = np.zeros(count, int)  # all of the second class are mistakes
    lines = call("misclassified", folder, *wanted)[0].splitlines()
    assert lines[-1] == str(tmp_path / "m.png")
    assert len(lines) - 1 == count // 2
    for line in lines[:-1]:
        named = re.fullmatch(rf"{kind} \d+, (right/\d\.png): true right, predicted left 73 %", line)
        assert (data / named[1]).is_file()
    entries = json.loads(call("misclassified", folder, *wanted, "--json")[0])
    assert all((data / entry["file"]).parent.name == "right" for entry in entries)
    truth = [("left", "right").index(Path(one).parts[-2]) for one in files(data, split)]
    answers["all"] = np.array(truth)
    lines = call("misclassified", folder, *wanted)[0].splitlines()
    assert lines == [f"None of {count} {kind}s is misclassified.", str(tmp_path / "m.png")]


def files(data, split):
    """Every fifth image of a class is a test image; all are those of training, then of the test."""
    paths = sorted(data.glob("*/*.png"))
    test = [path for place, path in enumerate(paths) if place % 5 == 4]
    return test if split == "test" else [path for path in paths if path not in test] + test


def photos(folder, size=(24, 8)):
    """Class folders of wide pictures of two sizes, whose class only their middle third tells."""
    for index, name in enumerate(("left", "right")):
        for number in range(10):
            width, height = size[0] + 3 * (number % 2), size[1] + number % 2
            image = Image.new("RGB", (width, height), (255 * (number % 3 == 0), 90, 30))
            image.paste((0, 250 * index, 20 * number), (width // 3, 0, 2 * width // 3, height))
            (folder / name).mkdir(parents=True, exist_ok=True)
            image.save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def cropped(tmp_path_factory):
    """A folder of photos, and the run of a model that was trained on them with --resize crop."""
    folder = tmp_path_factory.mktemp("cropped")
    data = photos(folder / "photos")
    words = "--epochs 1 --batch-size 4 --widths 4,4,4,4,4,4,4,4,4,4 --image-size 8,8 --resize crop"
    call("fit", "--data", data, "--out", folder / "run", *words.split())
    return data, folder / "run"


def answers(*words):
    return [entry["classes"] for entry in json.loads(call("predict", *words, "--json")[0])]


@pytest.mark.long
@pytest.mark.backend("any", slow_on="tensorflow")
def test_a_model_resizes_images_as_it_was_trained(cropped, tmp_path):
    data, path = cropped
    metrics = json.loads((path / "metrics.json").read_text())
    for words in ((), ("--data", data)):
        scores = json.loads(call("evaluate", path, *words, "--json")[0])
        assert scores["accuracy"] == metrics["test_accuracy"]
        assert scores["loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)
    picture = data / "right" / "0.png"  # 24x8, of which a crop to 8x8 is the middle third
    with Image.open(picture) as image:
        image.crop((8, 0, 16, 8)).save(tmp_path / "c.png")
        image.resize((8, 8), Image.Resampling.BILINEAR).save(tmp_path / "s.png")
    crop, stretch = (answers(path / "model.keras", tmp_path / name) for name in ("c.png", "s.png"))
    assert crop != stretch
    assert answers(path, picture) == crop
    alone = shutil.copy(path / "model.keras", tmp_path)
    assert answers(alone, picture) == crop
    assert answers(path / "model.keras", picture, "--resize", "stretch") == stretch
    assert "has changed" not in call("evaluate", path, "--resize", "stretch")[1]
    losses = {how: json.loads(call("evaluate", path, "--resize", how, "--json")[0])["loss"]
              for how in ("stretch", "crop", "pad")}  # fmt: skip
    assert len(set(losses.values())) == 3
    assert losses["crop"] == scores["loss"]


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.long
def test_all_images_of_a_folder_are_judged_and_predicted(cropped, tmp_path):
    data, path = cropped
    assert json.loads(call("evaluate", path, "--split", "all", "--json")[0])["n"] == 20
    few = tmp_path / "few"
    for name in ("left", "right"):
        (few / name).mkdir(parents=True)
        shutil.copy(data / name / "1.png", few / name)
    assert "n 2 images" in call("evaluate", path, "--data", few, "--split", "all")[0]
    assert "no class has five images" in call("evaluate", path, "--data", few, code=3)[1]
    (few / "right" / "notes.txt").write_text("x")
    out, err = call("predict", path, few)
    assert [line.split(": ")[0] for line in out.splitlines()] == [
        str(few / name / "1.png") for name in ("left", "right")
    ]
    assert "passed over" in err
    assert "(1 .txt): 1, such as right/notes.txt" in err


@pytest.mark.long
@pytest.mark.backend("any", slow_on="tensorflow")
def test_images_of_another_size_name_the_option(trained, tmp_path):
    data = photos(tmp_path / "photos")
    for words in (("data", data), ("evaluate", trained, "--data", data)):
        advice = "Give --image-size H,W, or --resize stretch for a trained model"
        assert advice in call(*words, code=3)[1]
    facts = json.loads(call("data", data, "--image-size", 6, "--resize", "pad", "--json")[0])
    assert facts["image_shape"] == [6, 6, 3]
    for index in range(10):
        (tmp_path / "ten" / str(index)).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (9, 9), (index, 9, number)).save(
                tmp_path / "ten" / str(index) / f"{number}.png"
            )
    for command in (["evaluate"], ["export", "--format", "keras", "--accuracy"]):
        words = (command[0], trained, *command[1:], "--data", tmp_path / "ten")
        assert "--resize stretch, crop or pad" in call(*words, code=3)[1]
    pixels, labels = np.zeros((20, 9, 9), np.uint8), np.arange(20) % 10
    gray = tmp_path / "gray.npz"
    np.savez(gray, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    assert "number of channels, which --resize leaves" in call(*words[:-1], gray, code=3)[1]


@pytest.mark.long
@pytest.mark.parametrize("how", ["stretch", "pad"])
def test_export_measures_its_accuracy_on_images_of_any_size(cropped, tmp_path, how):
    data, path = cropped
    model = shutil.copy(path / "model.keras", tmp_path)
    words = ("--data", data, "--resize", how, "--json")
    out, err = call("export", model, "--format", "state-dict", "--accuracy", *words)
    (done,) = json.loads(out)
    expected = json.loads(call("evaluate", model, *words)[0])["accuracy"]
    assert done["accuracy"] == done["keras_accuracy"] == expected
    assert err.count("Reading") == 1


def takes_out():
    """Names of the commands with --out, and each one's option."""
    for name, command in app.commands.items():
        for param in command.params:
            if "--out" in param.opts and name not in {"fit", "compare", "sweep"}:
                yield pytest.param(param, id=name)


@pytest.mark.parametrize("option", [*takes_out()])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(option, tmp_path):
    """`fit` and `compare`, whose folder may be there, have checks of their own."""
    (tmp_path / "file").write_text("x")
    name = f"out{option.type.suffix}"
    good = tmp_path / "new" / "folder" / name
    assert option.type.convert(str(good), option, None) == good
    for bad in (tmp_path / "file" / name, tmp_path / "file" / "new" / name):
        message = f"{bad}: {tmp_path / 'file'} is a file.*Choose another --out"
        with pytest.raises(RunFolderError, match=message):
            option.type.convert(str(bad), option, None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("option", [p for p in takes_out() if p.values[0].type.file_okay])
@pytest.mark.parametrize("name", ["out", "out.jpg", "out.pdf", "out.h5", "out.png.svg", ".png"])
def test_a_file_of_another_kind_than_the_command_writes_is_refused(option, name, tmp_path):
    assert option.type.suffix in {".png", ".html", ".keras"}
    with pytest.raises(ConfigError, match=rf"^--out: expected a \{option.type.suffix} file\."):
        option.type.convert(str(tmp_path / name), option, None)


MEASURING = [
    ("explain", "in", "--no-cost"),
    ("misclassified", "RUN"),
    ("robustness", "RUN", "--images", 10, "--corruption", "contrast"),
    ("statistics", "RUN", "--images", 10),
    ("landscape", "RUN", "--steps", 1, "--lines", 1, "--points", 3, "--images", 10),
]


@pytest.mark.parametrize(
    ("words", "is_json"),
    [
        pytest.param(
            *(words, is_json),
            marks=() if (words[0], is_json) == ("misclassified", True) else pytest.mark.long,
        )
        for words in MEASURING
        for is_json in (False, True)
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else None,
)
def test_what_was_measured_is_printed_where_the_disk_is_full(
    words, is_json, trained, tmp_path, monkeypatch
):
    out = tmp_path / ("out.png" if words[0] == "misclassified" else "out")
    words = [*(trained if word == "RUN" else word for word in words), "--out", out]
    words += ["--json"] * is_json

    def measured():
        printed = call(*words, code=code)[0]
        if is_json:
            document = json.loads(printed)
            return document if isinstance(document, list) else document["data"]
        return [line for line in printed.splitlines() if not line.startswith(str(tmp_path))]

    code = 0
    expected = measured()
    code = 6
    shutil.rmtree(out) if out.is_dir() else out.unlink()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kerasnorm.files.fsync", full)
    assert measured() == expected != []
    _, err = call(*words, code=code)
    assert re.search(
        rf"Cannot write {out}\S*: No space left on device\. It needs [\d,]+ bytes", err
    )


@pytest.mark.parametrize("command", ["robustness", "statistics", "landscape"])
def test_commands_on_runs_name_those_of_a_study(command, tmp_path):
    (tmp_path / "study.toml").write_text("")
    _, err = call(command, tmp_path, code=2)
    assert err == f"kerasnorm: {tmp_path} is a study: name its runs, such as {tmp_path}/runs/*.\n"


@pytest.mark.long
def test_plot_redraws_one_run_and_overlays_several(trained, tmp_path):
    out, _ = call("plot", trained)
    assert {Path(line).name for line in out.splitlines()} >= {"accuracy.png", "misclassified.png"}
    out, _ = call("plot", trained, trained, "--out", tmp_path, "--json")
    assert {Path(path).name for path in json.loads(out)} >= {"accuracy.png", "loss.png"}


@pytest.mark.long
def test_inputs_draws_samples_and_histograms(tmp_path):
    out, _ = call("inputs", "--data", "shapes", "--train-size", 40, "--test-size", 10,
                 "--recipe", "era8", "--out", tmp_path)  # fmt: skip
    names = {Path(line).name for line in out.splitlines()}
    assert "histograms.png" in names
    assert any(name.startswith("augmentation-cutout") for name in names)


def test_summary_and_receptive_field_print_tables_and_json(trained):
    layers = json.loads(call("summary", "--norm", "bn", "--recipe", "era8", "--json")[0])
    assert set(layers[0]) == {
        "name",
        "is_bound",
        "is_shared",
        "type",
        "output_shape",
        "parameters",
        "receptive_field",
        "jump",
    }
    assert sum(layer["parameters"] for layer in layers) == 50_256
    fields = [row["receptive_field"] for row in json.loads(call("receptive-field", "--json")[0])]
    assert fields == [3, 5, 5, 6, 10, 14, 18, 18, 20, 28, 36, 44, 72, 72]
    assert "1 -> 3" in call("receptive-field", "gn")[0]
    assert "32 -> 32" in call("receptive-field", trained / "model.keras")[0]


def test_summary_and_receptive_field_take_the_same_models(trained, tmp_path):
    code = tmp_path / "net.py"
    code.write_text(
        "from kerasnorm import build_model\n"
        "def net(shape, classes):\n"
        "    return build_model('bn', input_shape=shape, classes=classes)\n"
    )
    for target in (trained, trained / "model.keras", "gn", f"{code}:net"):
        found = [json.loads(call(name, target, "--json")[0])
                 for name in ("summary", "receptive-field")]  # fmt: skip
        rows, fields = ({row["name"]: row["receptive_field"] for row in rows} for rows in found)
        assert fields.items() <= rows.items()
        assert fields["fc1"] == 72
    for name in ("summary", "receptive-field"):
        assert "Did you mean gn" in call(name, "gnn", code=2)[1]
    assert "--norm: leave it out" in call("summary", trained, "--norm", "gn", code=2)[1]
    assert f"{trained}/model.keras" in call("summary", "--network", trained, code=2)[1]


@pytest.mark.long
def test_data_and_doctor_describe_what_is_there(tmp_path):
    facts = json.loads(call("data", "shapes", "--json")[0])
    counts = {split: sum(classes.values()) for split, classes in facts["class_counts"].items()}
    assert counts == {"train": 5_000, "test": 1_000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERASNORM_CACHE", str(tmp_path))
        assert str(tmp_path) in call("data")[0]
    report = json.loads(run("doctor", "--json")[0])
    assert report["backends"]["torch"].startswith("CPU") or "GPU" in str(report)
    assert {*report["formats"]} == {*FORMATS}
    assert report["formats"]["keras"] == "ready"
    assert {*report["loggers"]} == {*LOGGERS}
    assert report["compiler"] == (shutil.which("g++") or shutil.which("clang++"))


def test_doctor_says_what_a_missing_compiler_costs(monkeypatch):
    monkeypatch.setattr(runtime, "probe", lambda backend: "not asked")
    monkeypatch.setenv("PATH", "")
    assert "none: training on CPUs is slower without g++ or clang++" in call("doctor")[0]


@pytest.mark.long
def test_a_model_goes_out_as_pytorch_weights_and_comes_in_again(trained, tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    words = ("--format", "state-dict", "--out", tmp_path)
    assert "Exports" in call("export", trained, *words)[0]
    out, _ = call("export", trained, *words, "--accuracy", "--json")
    done = json.loads(out)[0]
    assert done["max_difference"] < 1e-3
    torch.save(safetensors.load_file(done["path"]), tmp_path / "weights.pth")
    words = ("--norm", "gn", "--no-weight-standardization", "--out", tmp_path / "back.keras")
    facts = json.loads(call("import-torch", tmp_path / "weights.pth", *words, "--json")[0])
    assert len(facts["matched"]) == 11 + 2 * 10
    scores = json.loads(call("evaluate", trained, "--json")[0])
    assert json.loads(call("evaluate", done["path"], "--json")[0]) == pytest.approx(scores)
    assert (done["accuracy"], done["keras_accuracy"]) == (scores["accuracy"],) * 2


MISTAKES = [
    (("fit", "--norm", "batch"), 2, "'bn', 'gn'"),
    (("fit", "--recipe", "nope"), 2, "'best', 'era8'"),
    (("fit", "--backend", "mxnet"), 2, "'torch', 'tensorflow'"),
    (("bench", "--precision", "auto", "--norm", "bn"), 2, "since only fit chooses"),
    (("fit", "--nonsense"), 2, "--nonsense"),
    (("fit", "--epochs", "-3"), 2, "epochs"),
    (("fit", "--groups", "5", "--data", "shapes", "--train-size", "20", "--batch-size", "10"), 2,
     "1, 2, 4, 8, 16"),
    (("fit", "--data", "shapes", "--train-size", "20"), 2, "batch_size"),
    (("fit", "--device", "gpu", "--data", "shapes"), 2, "--device cpu"),
    (("fit", "--config", "missing.toml"), 2, "missing.toml"),
    (("fit", "--data", "missing/folder"), 3, "missing/folder"),
    (("evaluate", "missing.keras"), 5, "missing.keras"),
    (("evaluate", "."), 5, "model.keras"),
    (("plot", "."), 5, "no run's folder"),
    (("receptive-field", "missing.keras"), 5, "missing.keras"),
    (("summary", "--widths", "1,2"), 2, "10 numbers"),
    (("summary", "--widths", "a,b"), 2, "commas"),
    (("summary", "--image-shape", "3,3,3"), 2, "at least 4"),
    (("data", "nothing-here"), 3, "nothing-here"),
    (("predict", "missing.keras", "a.png"), 5, "missing.keras"),
    (("nonsense",), 2, "No such command"),
    (("receptive-field", "gnn"), 2, "Did you mean gn"),
    (("export", "missing.keras", "--format", "keras"), 5, "missing.keras"),
    (("export", "missing.keras", "--format", "caffe"), 2, "'saved-model', 'onnx'"),
    (("export", "missing.keras", "--format", "keras", "--quantize", "int8"), 2, "--format litert"),
    (("evaluate", "missing.tflite"), 5, "missing.tflite"),
    (("evaluate", "missing.onnx", "--backend", "torch"), 2, "runs in onnxruntime"),
    (("import-torch", "missing.pth", "--norm", "bn", "--out", "m.keras"), 5, "missing.pth"),
    (("import-torch", "missing.pth", "--norm", "bn", "--out", "m.h5"), 2, "m.h5"),
    (("import-torch", "a.pth", "--widths", "1,2", "--out", "m.keras"), 2, "from the tensors"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "named"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_gets_one_clear_message_and_leaves_nothing(
    tmp_path, monkeypatch, words, code, named
):
    monkeypatch.chdir(tmp_path)
    _, err = call(*words, code=code)
    assert named in err
    assert len(err.splitlines()) <= 4
    assert list(tmp_path.iterdir()) == []


def test_a_missing_backend_exits_with_7_and_the_pip_command(tmp_path):
    code = (
        "import sys\n"
        "from kerasnorm import runtime, cli\n"
        "runtime.installed_backends = lambda: ('torch',)\n"
        "sys.argv = ['kerasnorm', 'fit', '--backend', 'tensorflow', '--data', 'shapes']\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 7
    assert "pip install 'kerasnorm[tensorflow]'" in done.stderr


def test_a_taken_folder_exits_with_6_and_is_kept(trained):
    before = sorted(path.name for path in trained.iterdir())
    _, err = call(*tiny_fit(trained, "--norm", "bn"), code=6)
    assert "already holds another run" in err
    assert sorted(path.name for path in trained.iterdir()) == before


def test_divergence_exits_with_4(tmp_path):
    words = ("--norm", "none", "--optimizer", "sgd", "--learning-rate", "1e30")
    _, err = call(*tiny_fit(tmp_path / "run", *words, "--schedule", "constant"), code=4)
    assert "smaller --learning-rate" in err


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_an_interrupted_run_says_how_to_go_on(tmp_path, number, code):
    words = map(str, tiny_fit(tmp_path / "run", "--epochs", "500"))
    with subprocess.Popen(
        [PYTHON, "-m", "kerasnorm", *words], stderr=subprocess.PIPE, text=True
    ) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("epoch   1"):
                process.send_signal(number)
        process.wait(60)
    assert process.returncode == code
    assert any("kerasnorm fit --resume" in line for line in lines)
    assert (tmp_path / "run" / "checkpoints" / "epoch-001").is_dir()


def test_an_output_that_cannot_be_written_exits_with_6(tmp_path):
    (tmp_path / "file").write_text("")
    words = ("--data", "shapes", "--train-size", "20", "--test-size", "10")
    _, err = call("inputs", *words, "--out", tmp_path / "file" / "sub", code=6)
    assert "file" in err
    assert len(err.splitlines()) == 1


@pytest.mark.long
def test_an_interrupted_run_ignores_the_environment_when_it_goes_on(trained, monkeypatch):
    monkeypatch.setenv("KERASNORM_BATCH_SIZE", "7")
    monkeypatch.setenv("KERASNORM_LOG", "tensorboard")
    call("fit", "--resume", trained, "--quiet")
    assert not (trained / "tensorboard").exists()
    _, err = call("fit", "--resume", trained, "--recipe", "era8", code=2)
    assert "recipe: a resumed run keeps its config" in err


def test_a_renamed_option_names_the_new_one():
    _, stderr = call("fit", "--treatment", "scale", code=2)
    assert "--preprocessing" in stderr


def test_a_file_without_the_name_of_its_norm_says_what_to_add():
    assert "mynorm.py:MyNorm" in call("fit", "--norm", "mynorm.py", code=2)[1]
