"""Groups, paired differences and published numbers, from runs that were never trained."""

import csv
import json
import math
from pathlib import Path

import pytest

from kerasnorm import findings
from kerasnorm.plots.labels import group_label
from kerasnorm.recipes import published, resolve
from kerasnorm.run import Run
from kerasnorm.study import sheets
from kerasnorm.study.folder import Job
from kerasnorm.study.runner import DONE, FAILED, Entry
from kerasnorm.study.summary import summarize, to_dict


def make_run(accuracy, **fields) -> Run:
    config = resolve({"data": "cifar10", "backend": "torch", "recipe": "era8"} | fields)
    rows = [
        {"epoch": float(e), "lr": 0.01, "seconds": 2.0, "images_per_second": 500.0,
         "val_loss": None, "val_accuracy": None}
        | {f"{part}_accuracy": accuracy * e / 3 for part in ("train", "test")}
        | {f"{part}_loss": 3 - accuracy * e / 3 for part in ("train", "test")}
        for e in (1, 2, 3)
    ]  # fmt: skip
    metrics = {
        "class_names": ["cat", "dog", "ship"],
        "confusion": [[8, 1, 1], [0, 10, 0], [0, 0, 10]],
        "misclassified": [{"index": 1, "true": 0, "predicted": 1, "confidence": 0.9}],
        "test_accuracy": accuracy,
        "train_accuracy": accuracy - 0.02,
        "test_loss": 1 - accuracy,
        "train_loss": 1.0,
        "parameters": 123,
        "steps_per_epoch": 7,
        "seconds": 6.0,
        "data": {"name": "cifar10"},
    }
    model = config.model
    path = Path(f"{model.norm}-{model.ln_affine}-s{config.train.seed}")
    return Run(path, config, tuple(rows), metrics)


RUNS = [
    *(make_run(a, norm="bn", seed=s) for s, a in enumerate((0.80, 0.82, 0.81))),
    *(make_run(a, norm="gn", seed=s) for s, a in enumerate((0.79, 0.808, 0.80))),
    *(make_run(a, norm="ln", seed=s, ln_affine="element") for s, a in ((1, 0.78), (2, 0.79))),
    make_run(0.77, norm="ln", seed=0),
]


def test_groups_differ_in_more_than_the_seed():
    found = summarize(RUNS)
    assert found.axes == ("ln_affine",)
    assert [(g.norm, dict(g.fields), sorted(g.runs)) for g in found.groups] == [
        ("bn", {}, [0, 1, 2]),
        ("gn", {}, [0, 1, 2]),
        ("ln", {"ln_affine": "element"}, [1, 2]),
        ("ln", {"ln_affine": "channel"}, [0]),
    ]
    labels = [group_label(group, found.groups) for group in found.groups]
    assert labels == ["BN", "GN", "LN, affine element", "LN, affine channel"]


def test_differences_are_paired_over_common_seeds():
    pairs = {
        (d.first.norm, d.second.norm, d.second.fields.get("ln_affine")): d
        for d in summarize(RUNS).differences
    }
    bn_gn = pairs["bn", "gn", None]
    assert bn_gn.seeds == (0, 1, 2)
    assert math.isclose(bn_gn.spread.mean, (0.01 + 0.012 + 0.01) / 3)
    assert bn_gn.is_clear
    assert pairs["bn", "ln", "element"].seeds == (1, 2)
    assert pairs["bn", "ln", "channel"].spread.sd is None
    assert ("ln", "ln", "channel") not in pairs  # they have no seed in common


def test_backends_are_compared_norm_by_norm():
    other = [make_run(0.8, norm="bn", seed=0, backend="tensorflow")]
    pairs = [(d.first.norm, d.second.norm, d.second.backend)
             for d in summarize(RUNS + other).differences]  # fmt: skip
    assert ("bn", "bn", "tensorflow") in pairs
    assert ("gn", "bn", "tensorflow") not in pairs


def test_values_are_compared_where_other_fields_agree():
    runs = [make_run(0.5 + b / 100, norm=n, batch_size=b) for n in ("bn", "gn") for b in (2, 8)]
    found = summarize(runs)
    assert found.axes == ("batch_size",)
    assert [(d.first.shared, d.second.shared) for d in found.differences] == [
        ({"batch_size": 2}, {"batch_size": 2}),
        ({"batch_size": 8}, {"batch_size": 8}),
    ]


def test_a_field_that_follows_from_another_is_no_axis():
    runs = [make_run(0.5, norm="bn", batch_size=b, learning_rate=b / 1000) for b in (2, 8)]
    assert summarize(runs).axes == ("batch_size",)


def test_published_numbers_stand_beside_the_runs_that_repeat_them():
    runs = [make_run(a, norm=n, epochs=20) for n, a in (("bn", 0.82), ("ln", 0.8))]
    runs.append(make_run(0.79, norm="ln", ln_affine="element"))
    found = {(p.norm, p.fields.get("ln_affine")): p for p in summarize(runs).published}
    assert found["bn", None].values["test_accuracy"] == 0.8190
    assert found["bn", None].group.norm == "bn"
    assert found["gn", None].group is None
    assert found["ln", "element"].group.fields == {"ln_affine": "element"}
    grid = findings.published_grid(summarize(runs))
    assert grid.rows[0] == ("BN", "77.05", "80.00 (n 1)", "+2.95", "81.90", "82.00 (n 1)", "+0.10")
    assert grid.rows[1][2] == "-"


def test_nothing_is_published_for_a_changed_recipe():
    assert summarize([make_run(0.8, norm="bn", dropout=0.2)]).published == ()
    assert summarize([make_run(0.8, norm="bn", epochs=3)]).published == ()
    assert published("best", "cifar10") == {}
    assert set(published("era8", "cifar10")) == {"source", "epochs", "bn", "gn", "ln"}


def test_sentences_say_no_more_than_the_intervals():
    texts = findings.sentences(summarize(RUNS))
    assert texts[0].startswith("BN is 1.07 points above GN (95 % interval +0.78 to +1.35, n = 3")
    assert any("one seed, so nothing follows" in text for text in texts)
    assert all("cannot be told apart" in t or "n = 3" in t or "one seed" in t for t in texts)


def test_the_sheets_hold_every_run_and_group(tmp_path):
    found = summarize(RUNS)
    entries = [Entry(Job(run.path, run.config, run), DONE, 3, 0.8) for run in RUNS]
    broken = resolve({"norm": "rms", "data": "cifar10", "backend": "torch"})
    entries.append(Entry(Job(Path("rms"), broken, None), FAILED, code=4, words="a loss, lost"))
    sheets.write(tmp_path, entries, found.axes, found)
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished"] * len(RUNS) + ["failed"]
    assert rows[-1]["message"] == "a loss, lost"
    with (tmp_path / "summary.csv").open() as file:
        groups = list(csv.DictReader(file))
    assert [row["n"] for row in groups] == ["3", "3", "2", "1"]
    assert float(groups[0]["test_accuracy_mean"]) == pytest.approx(0.81)
    assert groups[-1]["test_accuracy_sd"] == ""
    assert json.loads((tmp_path / "summary.json").read_text()) == to_dict(found)
