"""`kerasnorm convert` and `kerasnorm recalibrate`, on the model of a tiny run."""

import json
import re
from unittest import mock

import keras
import numpy as np
import pytest
from helpers import tiny
from helpers.command import call
from helpers.norm_nets import drawn
from keras import layers

from kerasnorm.data import prepare
from kerasnorm.data.shapes import FIGURES
from kerasnorm.errors import ConfigError, CorruptFileError, RunFolderError
from kerasnorm.formats.archive import open_archive, save_model
from kerasnorm.layers import StandardizedConv2D
from kerasnorm.network import build


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    config = tiny.config(norm="bn")
    model = build(
        config.model, input_shape=(32, 32, 3), classes=10, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    path = tmp_path_factory.mktemp("models") / "bn.keras"
    save_model(drawn(model), path, {"config": config.to_dict(), "class_names": list(FIGURES)})
    return path


def test_convert_writes_a_model_with_the_same_metadata(saved, tmp_path):
    out = tmp_path / "new" / "gn.keras"
    words = ["--norm", "gn", "--group-size", 2, "--weight-standardization", "--out", out]
    text, _ = call("convert", saved, *words)
    assert re.search(r"convblock1_norm1 +Batch -> Group +2 of 2", text)
    assert "Not standardized: 1 Conv2D (no norm behind it), such as fc1." in text
    _, model, metadata = open_archive(out)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert (kinds.count("GroupNormalization"), kinds.count("BatchNormalization")) == (10, 0)
    assert sum(isinstance(layer, StandardizedConv2D) for layer in model.layers) == 10
    _, old, before = open_archive(saved)
    assert metadata.pop("conversions") == [
        {"norm": "gn", "group_size": 2, "weight_standardization": True}
    ]
    assert metadata == before
    kernel = model.get_layer("convblock1_conv1").kernel.numpy()
    assert np.array_equal(kernel, old.get_layer("convblock1_conv1").kernel.numpy())


@pytest.mark.long
def test_convert_folds_and_freezes(saved, tmp_path):
    out = tmp_path / "folded.keras"
    document = json.loads(call("convert", saved, "--fold", "--out", out, "--json")[0])
    assert {layer["after"] for layer in document["layers"]} == {"folded"}
    assert document["preserves"]
    assert document["difference"] <= 1e-5
    assert len(document["milliseconds"]) == 2
    assert document["path"] == str(out)
    frozen = tmp_path / "frozen.keras"
    assert "10 batch norms frozen" in call("convert", saved, "--freeze-bn", "--out", frozen)[0]
    layer = open_archive(frozen)[1].get_layer("convblock1_norm1")
    assert not layer.trainable


def test_recalibrate_prints_the_accuracy_before_and_after(saved, tmp_path):
    out = tmp_path / "measured.keras"
    words = ["--images", 100, "--batch-size", 25, "--out", out, "--json"]
    with mock.patch("kerasnorm.training.images.prepare", wraps=prepare) as read:
        text, notes = call("recalibrate", saved, *words)
    assert read.call_count == 1
    document = json.loads(text)
    assert "There are 60 training images; all of them are measured." in notes
    assert (document["images"], document["n"]) == (60, 20)
    scores = json.loads(call("evaluate", out, "--json")[0])
    assert scores["loss"] == pytest.approx(document["after"]["loss"], rel=1e-4)
    assert document["before"]["loss"] != document["after"]["loss"]
    assert open_archive(out)[2]["conversions"] == [{"recalibrated_on": 60}]


@pytest.mark.parametrize(
    ("words", "message", "error"),
    [
        ([], "Nothing to do", ConfigError),
        (["--groups", 2], "only gn reads them", ConfigError),
        (["--norm", "gn", "--groups", 3], "groups: expected a number that divides", ConfigError),
        (["--norm", "gn", "--fold"], "--fold: expected the batch norms", ConfigError),
        (["--norm", "gn", "--freeze-bn"], "--norm gn, which leaves none", ConfigError),
        (["--norm", "none", "--freeze-bn"], "--norm none, which leaves none", ConfigError),
        (["--fold", "--freeze-bn"], "--fold, which leaves none", ConfigError),
        (["--norm", "gnn"], "gnn", ConfigError),
        (["--norm", "nothing.there:Norm"], "importing nothing.there raised", ConfigError),
        (["--norm", "gn", "--out", "new.h5"], "expected a .keras file", ConfigError),
        (["--norm", "gn", "--out", __file__], "expected a .keras file", ConfigError),
    ],
)
def test_convert_says_what_is_wrong_in_one_line(
    saved, tmp_path, monkeypatch, words, message, error
):
    monkeypatch.chdir(tmp_path)
    _, text = call("convert", saved, *words, code=error.exit_code)
    assert message in text
    assert len(text.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_files_that_are_no_model_or_exist_already(saved, tmp_path):
    code = RunFolderError.exit_code
    for command in (["convert", saved, "--fold"], ["recalibrate", saved]):
        assert "exists already" in call(*command, "--out", saved, code=code)[1]
    other = tmp_path / "other.keras"
    other.write_bytes(b"no model")
    call("convert", other, "--norm", "gn", code=CorruptFileError.exit_code)
    call("convert", tmp_path / "none.keras", "--norm", "gn", code=CorruptFileError.exit_code)


@pytest.mark.parametrize(
    "words",
    [["convert", "--norm", "gn"], ["convert", "--fold"], ["convert", "--freeze-bn"],
     ["recalibrate", "--data", "no such data"]],
)  # fmt: skip
def test_a_network_without_norms_is_named_by_its_file_before_data_are_read(tmp_path, words):
    path = tmp_path / "plain.keras"
    pixels = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(pixels))
    keras.Model(pixels, layers.Dense(10)(x)).save(path)  # Keras calls it functional_N
    command, *options = words
    _, text = call(command, path, *options, code=ConfigError.exit_code)
    assert text.splitlines()[-1].startswith(f"kerasnorm: {path}: ")
    assert "functional" not in text
