"""Groups, paired differences and published numbers, from runs that were never trained."""

import csv
import json
import math
from pathlib import Path

import pytest
from helpers.studies import RUNS, STAR, make_run, star_runs, summarize_star

from kerasnorm.config import published, resolve
from kerasnorm.study import findings, sheets
from kerasnorm.study.board import DONE, FAILED, Entry
from kerasnorm.study.folder import Job
from kerasnorm.study.labels import group_label
from kerasnorm.study.summary import summarize, to_dict


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
    assert pairs["bn", "ln", "channel"].spread.std is None
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
    grid = findings.published_table(summarize(runs))
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


def test_a_lever_is_one_field_against_the_base_seed_by_seed():
    found = summarize_star()
    assert found.axes == ("optimizer", "dropout", "groups")
    assert [(g.norm, dict(g.fields)) for g in found.bases] == [("bn", {}), ("gn", {})]
    levers = {(lever.norm, lever.field, lever.value): lever for lever in found.levers}
    assert len(found.levers) == len(levers) == 4 + 5
    sgd = levers["bn", "optimizer", "sgd"]
    assert (sgd.base_value, sgd.seeds, sgd.measure) == ("adamw", (0, 1, 2), "test_accuracy")
    assert sgd.base is found.groups[0]
    assert sgd.differences == pytest.approx([-0.004, -0.002, -0.003])
    # std 0.001 of three, t(2) = 4.303: the interval is -0.003 -+ 4.303 * 0.001 / sqrt(3)
    assert sgd.spread.mean == pytest.approx(-0.003)
    assert sgd.spread.low == pytest.approx(-0.003 - 0.0024842, abs=1e-6)
    assert sgd.spread.high == pytest.approx(-0.003 + 0.0024842, abs=1e-6)
    assert sgd.is_clear
    assert not levers["bn", "dropout", 0.1].is_clear
    assert levers["gn", "optimizer", "sgd"].measure == "val_accuracy"
    assert levers["gn", "optimizer", "sgd"].spread.mean == pytest.approx(0.2)


def test_levers_stand_norm_by_norm_the_largest_first():
    found = summarize_star()
    assert [(lever.norm, lever.field) for lever in found.levers] == [
        *[("bn", "dropout")] * 3,
        ("bn", "optimizer"),
        ("gn", "optimizer"),
        *[("gn", "dropout")] * 3,
        ("gn", "groups"),
    ]
    grid = findings.lever_table(found)
    assert grid.rows[3] == (
        *("BN", "optimizer (test accuracy)", "adamw", "sgd", "3"),
        *("81.00", "80.70", "-0.30", "-0.55 to -0.05", "yes"),
    )
    assert grid.rows[4] == (
        *("GN", "optimizer (validation accuracy)", "adamw", "sgd", "3"),
        *("90.00", "110.00", "+20.00", "+20.00 to +20.00", "yes"),
    )
    assert "validation accuracy or test accuracy" in grid.notes[0]
    alone = findings.lever_table(
        summarize_star([r for r in star_runs() if r.config.model.norm == "bn"])
    )
    assert alone.rows[3][1] == "optimizer"
    assert "means of test accuracy" in alone.notes[0]


def test_a_lever_needs_a_base_and_a_common_seed():
    runs = list(star_runs())
    is_base = [not change for change in STAR.changes().values()]
    lost = [(base and run.config.model.norm == "bn") or run.config.train.seed == 1
            for run, base in zip(runs, is_base, strict=True)]  # fmt: skip
    half = [run for run, is_lost in zip(runs, lost, strict=True) if not is_lost]
    levers = summarize_star(half).levers
    assert {lever.norm for lever in levers} == {"gn"}
    assert {lever.seeds for lever in levers} == {(0, 2)}
    rest = [run for run, base in zip(runs, is_base, strict=True)
            if run.config.train.seed == (0 if base else 2)]  # fmt: skip
    assert summarize_star(rest).levers == ()
    without = [run for run, base in zip(runs, is_base, strict=True) if not base]
    found = summarize_star(without)
    assert found.bases == found.groups
    assert summarize(runs).levers == ()


def test_norms_of_a_star_are_compared_where_they_change_the_same():
    found = summarize_star()
    pairs = [(d.first.norm, d.second.norm, dict(d.first.fields)) for d in found.differences]
    assert pairs[0] == ("bn", "gn", {})
    assert len(pairs) == 1 + 4
    assert all(d.first.fields == d.second.fields for d in found.differences)
    texts = findings.sentences(found)
    assert texts[0].startswith("BN is 10.00 points above GN (")
    clear = [item for item in found.levers if item.is_clear]
    assert texts[-1] == "2 more stand in the tables."
    assert [", not clear" in text for text in texts[1:-1]] == sorted(
        not item.is_clear for item in found.levers
    )[:7]
    first = max(clear, key=lambda item: abs(item.spread.mean))
    points = f"{100 * first.spread.mean:+.2f} points of {findings.MEASURES[first.measure]} ("
    assert points in texts[1]


def test_a_star_is_written_down(tmp_path):
    found = summarize_star()
    document = to_dict(found)
    assert document["groups"][0]["norm"] == "bn"
    assert "optimizer" not in document["groups"][0]
    lever = document["levers"][3]
    assert {name: lever[name] for name in ("norm", "field", "base", "value", "measure", "n")} == {
        "norm": "bn",
        "field": "optimizer",
        "base": "adamw",
        "value": "sgd",
        "measure": "test_accuracy",
        "n": 3,
    }
    assert "minus base" in document["definitions"]["levers"]
    sheets.write(tmp_path, [], found.axes, found)
    assert json.loads((tmp_path / "summary.json").read_text()) == document
    with (tmp_path / "summary.csv").open() as file:
        first, second, *_ = csv.DictReader(file)
    assert list(first)[:6] == ["norm", "backend", "optimizer", "dropout", "groups", "n"]
    assert (first["optimizer"], first["dropout"], first["groups"]) == ("adamw", "0.0", "")
    assert second["groups"] == "0"


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
