"""The questions about finished runs, by the API and by the command line."""

import json

import numpy as np
import pytest
from helpers.coarse import coarse_figures  # noqa: F401
from helpers.command import call, tiny_fit

import kerasnorm
from kerasnorm.errors import ConfigError, CorruptFileError

SMALL = ["--steps", "4", "--lines", "2", "--points", "3", "--images", "20"]


def trained(path, norm, *words):
    call(*tiny_fit(path, "--norm", norm, "--learning-rate", "0.001", "--quiet", *words))
    return path


@pytest.fixture(scope="module")
def bn(tmp_path_factory):
    """A tiny run with batch normalization."""
    return trained(tmp_path_factory.mktemp("runs") / "bn", "bn")


@pytest.fixture(scope="module")
def runs(bn):
    """The same, one without norm, and one with L1."""
    none = trained(bn.with_name("none"), "none")
    return {"bn": bn, "none": none, "bn-l1": trained(bn.with_name("bn-l1"), "bn", "--l1", "0.01")}


@pytest.mark.long
def test_landscape_prints_draws_and_agrees_with_evaluate(runs, tmp_path):
    words = ["landscape", runs["bn"], runs["none"], *SMALL, "--out", tmp_path, "--json"]
    out, err = call(*words)
    document = json.loads(out)
    first, second = document["data"]
    assert (first["label"], second["label"]) == ("BN", "no norm")
    assert first["surface"]["axis"] == second["surface"]["axis"]
    middle = first["surface"]["plane"][1][1]
    assert np.isclose(middle, json.loads(call("evaluate", runs["bn"], "--json")[0])["loss"])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"gradient.png", "line.png", "contours.png", "surface.png"}
    assert "landscape: 10/10" in err


@pytest.mark.long
def test_landscape_prints_a_table(bn, tmp_path):
    out, err = call("landscape", bn, *SMALL, "--out", tmp_path, "--quiet")
    assert "range of loss" in out
    assert err == ""


@pytest.mark.long
def test_statistics_repeats_a_run_and_compares_a_sweep(runs, tmp_path):
    words = ["statistics", runs["bn"], runs["bn-l1"], runs["none"], "--images", 20]
    document = json.loads(call(*words, "--out", tmp_path, "--json", "--train-size", 0)[0])
    plain, sparse, none = document["data"]
    assert sparse["label"] == "BN, l1 0.01"
    assert sparse["weights"]["norm"] < plain["weights"]["norm"]
    for one, name in ((plain, "bn"), (none, "none")):
        metrics = json.loads((runs[name] / "metrics.json").read_text())
        assert np.isclose(one["test_accuracy"], metrics["test_accuracy"])
        assert np.isclose(one["test_loss"], metrics["test_loss"], rtol=1e-4)
        assert len(one["layers"]) == 10 * 3  # before, and after each of two epochs
        assert one["layers"][0]["update_ratio"] is None
    # The whole run was repeated: it ends with the run's own weights.
    last = {row["layer"]: row["weight_norm"] for row in plain["layers"] if row["epoch"] == 2}
    model = kerasnorm.load_model(runs["bn"])
    kernel = np.asarray(model.get_layer("convblock1_conv1").get_weights()[0])
    assert np.isclose(last["C1"], np.linalg.norm(kernel), rtol=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {"layers.png", "epochs.png", "weights.png"}


def test_statistics_prints_two_tables(bn, tmp_path):
    words = ["--train-size", 20, "--epochs", 1, "--images", 10, "--out", tmp_path]
    out, err = call("statistics", bn, *words)
    assert "update/weight" in out
    assert "repeated on 20 images for 1 epoch" in out.replace("\n", " ")
    assert "near 0 (%)" in out
    assert "statistics: 1/1" in err


def test_explain_prints_and_draws(tmp_path):
    out, _ = call("explain", "gn", "--no-cost", "--out", tmp_path)
    assert "C3 ######   C3 ......" in out
    assert (tmp_path / "gn.png").is_file()
    document = json.loads(call("explain", "bn", "--no-cost", "--json", "--out", tmp_path)[0])
    assert document["data"]["batch_of_one"]["survives_one_pixel"] is False


@pytest.mark.long
def test_inputs_trains_on_each_preprocessing(tmp_path):
    tiny = [
        "--data",
        "shapes",
        "--train-size",
        "60",
        "--test-size",
        "20",
        "--batch-size",
        "20",
        "--epochs",
        "1",
    ]
    out, err = call("inputs", *tiny, "--norm", "rms", "--train", "--out", tmp_path, "--json")
    document = json.loads(out)
    assert [len(one["history"]) for one in document["data"]] == [1] * 4
    assert (tmp_path / "preprocessing-training.png").is_file()
    assert "trainings: 4/4" in err


def test_mistakes_get_one_clear_message(bn, tmp_path):
    with pytest.raises(ConfigError, match="at least one finished run"):
        kerasnorm.landscape([])
    with pytest.raises(ConfigError, match="odd"):
        kerasnorm.landscape([bn], points=4)
    with pytest.raises(CorruptFileError, match="no run's folder"):
        kerasnorm.statistics([tmp_path])
    for words, code, named in (
        (("explain", "none"), 2, "'bn', 'gn'"),
        (("landscape", bn, "--points", 4), 2, "odd"),
        (("landscape", tmp_path), 5, "no run's folder"),
        (("statistics",), 2, "RUN"),
        (("landscape", bn, "--rate", 0), 2, "rate"),
    ):
        _, err = call(*words, code=code)
        assert named in err
