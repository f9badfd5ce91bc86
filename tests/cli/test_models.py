"""Commands on models and data that were moved, changed, or name their classes otherwise."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from helpers import tiny
from helpers.command import call
from hostile import changed_data
from PIL import Image

OPTIONS = {"train_size": 0, "test_size": 0, "batch_size": 4, "norm": "gn", "epochs": 12}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the data "d" and a run that learned something of them."""
    folder = tmp_path_factory.mktemp("trained")
    data = changed_data.write(folder / "d")
    done = tiny.train(tiny.config(**OPTIONS, data=str(data)), out=folder / "run")
    assert done.metrics["test_accuracy"] >= 0.5
    return folder


def accuracy(*words):
    out, err = call("evaluate", *words, "--json")
    return json.loads(out)["accuracy"], err


@pytest.mark.backend("any", slow_on="tensorflow")
@pytest.mark.parametrize("other", changed_data.CLASS_NAMES, ids=lambda item: item.name)
@pytest.mark.long
def test_classes_are_matched_by_name(tmp_path, trained, other):
    """The folders hold the same images for the same label, so equal names give equal scores."""
    place = other.make(tmp_path)
    words = (trained / "run", "--data", place)
    if not other.expected:
        assert accuracy(*words)[0] == accuracy(trained / "run")[0]
        return
    _, err = call("evaluate", *words, code=3)
    assert other.expected in err
    assert "expected its 4 classes a b, crème, dog, ear" in err


@pytest.mark.long
def test_classes_in_another_order_are_mapped(tmp_path, trained):
    """A model whose outputs are in another order than its folders, as its metadata say."""
    import keras

    expected, _ = accuracy(trained / "run")
    order = [2, 0, 3, 1]
    model = keras.saving.load_model(trained / "run/model.keras", compile=False)
    dense = keras.layers.Dense(4, use_bias=False)
    permuted = keras.Model(model.inputs, dense(model.outputs[0]))
    dense.set_weights([np.eye(4, dtype="float32")[:, order]])
    path = tmp_path / "permuted.keras"
    permuted.save(path)
    names = [changed_data.CLASSES[label] for label in order]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("kerasnorm.json", json.dumps({"class_names": names}))
    assert accuracy(path, "--data", trained / "d")[0] == expected
    mistakes, _ = call("misclassified", path, "--data", trained / "d", "--json")
    originals, _ = call("misclassified", trained / "run", "--json")
    first, second = ({m["index"] for m in json.loads(text)} for text in (mistakes, originals))
    assert first == second


def test_numbered_classes_are_matched_by_their_order_and_it_is_said(tmp_path, trained):
    expected, _ = accuracy(trained / "run")
    arrays = {}
    for half in ("train", "test"):
        paths = sorted((trained / "d" / half).rglob("*.png"))
        arrays[f"x_{half}"] = np.stack([np.array(Image.open(path)) for path in paths])
        names = [path.parent.name for path in paths]
        arrays[f"y_{half}"] = np.array([changed_data.CLASSES.index(name) for name in names])
    np.savez(tmp_path / "d.npz", **arrays)
    found, err = accuracy(trained / "run", "--data", tmp_path / "d.npz")
    assert found == expected
    assert "numbers its classes; they are matched by their order" in err


@pytest.mark.long
def test_evaluate_says_that_a_runs_data_have_changed_or_where_to_name_them(tmp_path):
    data = changed_data.write(tmp_path / "d")
    tiny.train(tiny.config(**OPTIONS | {"epochs": 1}, data=str(data)), out=tmp_path / "run")
    assert "has changed" not in accuracy(tmp_path / "run")[1]
    (data / "test/dog/0.png").unlink()
    assert "11 test images instead of 12" in accuracy(tmp_path / "run")[1]
    data.rename(tmp_path / "new place")
    for words in (("evaluate", tmp_path / "run"), ("fit", "--resume", tmp_path / "run")):
        if words[0] == "fit":
            (tmp_path / "run/metrics.json").unlink()  # a finished run needs no data
        _, err = call(*words, code=3)
        assert f"trained on in {data}. Received: no such file or folder" in err
        assert "if they were moved, name their place: --data." in err
    again = ("fit", "--resume", tmp_path / "run", "--data", tmp_path / "new place")
    assert "11 test images instead of 12" in call(*again, code=3)[1]
    changed_data.write(tmp_path / "restored")
    call(*again[:-1], tmp_path / "restored")
    assert "has changed" not in accuracy(tmp_path / "run")[1]


@pytest.mark.long
@pytest.mark.parametrize("change", ["removed", "changed", "moved away"])
def test_plot_leaves_the_images_of_other_data_as_they_are(tmp_path, trained, change):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    tiny.train(resume=tmp_path / "run", data=str(tmp_path / "d"))
    call("plot", tmp_path / "run")
    picture = tmp_path / "run/plots/misclassified.png"
    picture.write_bytes(before := b"as it was")
    if change == "moved away":
        (tmp_path / "d").rename(tmp_path / "e")
    elif change == "removed":
        for path in (tmp_path / "d/test").glob("*/[12].png"):
            path.unlink()
    else:
        Image.new("RGB", (8, 8)).save(tmp_path / "d/test/dog/0.png")
    out, err = call("plot", tmp_path / "run")
    assert "is left as it is" in err
    assert "misclassified.png" not in out
    assert picture.read_bytes() == before
