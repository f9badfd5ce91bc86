"""Groups, paired differences and published numbers, from runs that were never trained."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
from helpers.studies import ABLATION, RUNS, ablation_runs, make_run, summarize_ablation
from hypothesis import given
from hypothesis import strategies as st

from kerasnorm.config import published, resolve
from kerasnorm.data.content import Content
from kerasnorm.errors import DataError
from kerasnorm.study import tables
from kerasnorm.study.folder import PlannedRun, State
from kerasnorm.study.summary import Interval, summarize, t_distribution, t_quantile
from kerasnorm.study.tables import group_label

# Two-sided 95 % points of Student's t, as every statistics book prints them.
TABLED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042}


@pytest.mark.parametrize(("freedom", "quantile"), TABLED.items())
def test_quantiles_are_those_of_the_tables(freedom, quantile):
    assert round(t_quantile(0.975, freedom), 3) == quantile


@given(st.floats(0.5, 0.999), st.integers(1, 60))
def test_the_quantile_inverts_the_distribution(p, freedom):
    assert math.isclose(t_distribution(t_quantile(p, freedom), freedom), p, abs_tol=1e-9)


@given(st.floats(-50, 50), st.integers(1, 40))
def test_the_distribution_is_symmetric(t, freedom):
    assert math.isclose(t_distribution(t, freedom) + t_distribution(-t, freedom), 1, abs_tol=1e-9)


def test_an_interval_has_mean_and_std():
    found = Interval.of([0.81, 0.83])
    assert found.n == 2
    assert math.isclose(found.mean, 0.82)
    assert math.isclose(found.std, 0.02 / math.sqrt(2))
    assert math.isclose(found.high - 0.82, 12.7062047 * 0.01, rel_tol=1e-6)
    assert math.isclose(found.high - found.mean, found.mean - found.low)


def test_one_value_has_no_interval_and_none_is_an_error():
    alone = Interval.of([0.5])
    assert (alone.n, alone.mean, alone.std, alone.low, alone.high) == (1, 0.5, None, None, None)
    with pytest.raises(ValueError, match="at least one"):
        Interval.of([])


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
    assert math.isclose(bn_gn.interval.mean, (0.01 + 0.012 + 0.01) / 3)
    assert bn_gn.interval.is_clear
    assert pairs["bn", "ln", "element"].seeds == (1, 2)
    assert pairs["bn", "ln", "channel"].interval.std is None
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
    table = tables.published_table(summarize(runs))
    assert table.rows[0] == ("BN", "77.05", "80.00 (n 1)", "+2.95", "81.90", "82.00 (n 1)", "+0.10")
    assert table.rows[1][2] == "-"


def test_nothing_is_published_for_a_changed_recipe():
    assert summarize([make_run(0.8, norm="bn", dropout=0.2)]).published == ()
    assert summarize([make_run(0.8, norm="bn", epochs=3)]).published == ()
    assert published("best", "cifar10") == {}
    assert set(published("era8", "cifar10")) == {"source", "epochs", "bn", "gn", "ln"}


def test_sentences_say_no_more_than_the_intervals():
    texts = tables.sentences(summarize(RUNS))
    assert texts[0].startswith("BN is 1.07 points above GN (95 % interval +0.78 to +1.35, n = 3")
    assert any("one seed, which proves nothing" in text for text in texts)
    assert all("cannot be told apart" in t or "n = 3" in t or "one seed" in t for t in texts)


def test_an_effect_is_one_field_against_the_base_seed_by_seed():
    found = summarize_ablation()
    assert found.axes == ("optimizer", "dropout", "groups")
    assert [(g.norm, dict(g.fields)) for g in found.bases] == [("bn", {}), ("gn", {})]
    effects = {(effect.base.norm, effect.field, effect.value): effect for effect in found.effects}
    assert len(found.effects) == len(effects) == 4 + 5
    sgd = effects["bn", "optimizer", "sgd"]
    assert (sgd.base_value, sgd.seeds, sgd.measure) == ("adamw", (0, 1, 2), "test_accuracy")
    assert sgd.base is found.groups[0]
    assert sgd.values == pytest.approx([-0.004, -0.002, -0.003])
    # std 0.001 of three, t(2) = 4.303: the interval is -0.003 -+ 4.303 * 0.001 / sqrt(3)
    assert sgd.interval.mean == pytest.approx(-0.003)
    assert sgd.interval.low == pytest.approx(-0.003 - 0.0024842, abs=1e-6)
    assert sgd.interval.high == pytest.approx(-0.003 + 0.0024842, abs=1e-6)
    assert sgd.interval.is_clear
    assert not effects["bn", "dropout", 0.1].interval.is_clear
    assert effects["gn", "optimizer", "sgd"].measure == "val_accuracy"
    assert effects["gn", "optimizer", "sgd"].interval.mean == pytest.approx(0.2)


def test_effects_stand_norm_by_norm_the_largest_first():
    found = summarize_ablation()
    assert [(effect.base.norm, effect.field) for effect in found.effects] == [
        *[("bn", "dropout")] * 3,
        ("bn", "optimizer"),
        ("gn", "optimizer"),
        *[("gn", "dropout")] * 3,
        ("gn", "groups"),
    ]
    table = tables.effect_table(found)
    assert table.rows[3] == (
        *("BN", "optimizer (test accuracy)", "adamw", "sgd", "3"),
        *("81.00", "80.70", "-0.30", "-0.55 to -0.05", "yes"),
    )
    assert table.rows[4] == (
        *("GN", "optimizer (validation accuracy)", "adamw", "sgd", "3"),
        *("90.00", "110.00", "+20.00", "+20.00 to +20.00", "yes"),
    )
    assert "validation accuracy or test accuracy" in table.notes[0]
    alone = tables.effect_table(
        summarize_ablation([r for r in ablation_runs() if r.config.model.norm == "bn"])
    )
    assert alone.rows[3][1] == "optimizer"
    assert "means of test accuracy" in alone.notes[0]


def test_an_effect_needs_a_base_and_a_common_seed():
    runs = list(ablation_runs())
    is_base = [not change for change in ABLATION.changes().values()]
    lost = [(base and run.config.model.norm == "bn") or run.config.train.seed == 1
            for run, base in zip(runs, is_base, strict=True)]  # fmt: skip
    half = [run for run, is_lost in zip(runs, lost, strict=True) if not is_lost]
    effects = summarize_ablation(half).effects
    assert {effect.base.norm for effect in effects} == {"gn"}
    assert {effect.seeds for effect in effects} == {(0, 2)}
    rest = [run for run, base in zip(runs, is_base, strict=True)
            if run.config.train.seed == (0 if base else 2)]  # fmt: skip
    assert summarize_ablation(rest).effects == ()
    without = [run for run, base in zip(runs, is_base, strict=True) if not base]
    found = summarize_ablation(without)
    assert found.bases == found.groups
    assert summarize(runs).effects == ()


def test_norms_of_an_ablation_are_compared_where_they_change_the_same():
    found = summarize_ablation()
    pairs = [(d.first.norm, d.second.norm, dict(d.first.fields)) for d in found.differences]
    assert pairs[0] == ("bn", "gn", {})
    assert len(pairs) == 1 + 4
    assert all(d.first.fields == d.second.fields for d in found.differences)
    texts = tables.sentences(found)
    assert texts[0].startswith("BN is 10.00 points above GN (")
    clear = [item for item in found.effects if item.interval.is_clear]
    assert texts[-1] == "The tables hold 2 more."
    assert [", not clear" in text for text in texts[1:-1]] == sorted(
        not item.interval.is_clear for item in found.effects
    )[:7]
    first = max(clear, key=lambda item: abs(item.interval.mean))
    points = f"{100 * first.interval.mean:+.2f} points of {tables.ACCURACIES[first.measure]} ("
    assert points in texts[1]


def test_an_ablation_is_written_down(tmp_path):
    found = summarize_ablation()
    document = found.to_dict()
    assert document["groups"][0]["norm"] == "bn"
    assert "optimizer" not in document["groups"][0]
    effect = document["ablation_effects"][3]
    assert {name: effect[name] for name in ("norm", "field", "base", "value", "measure", "n")} == {
        "norm": "bn",
        "field": "optimizer",
        "base": "adamw",
        "value": "sgd",
        "measure": "test_accuracy",
        "n": 3,
    }
    assert "minus base" in document["definitions"]["ablation_effects"]
    tables.write(tmp_path, [], found)
    assert json.loads((tmp_path / "summary.json").read_text()) == document
    with (tmp_path / "summary.csv").open() as file:
        first, second, *_ = csv.DictReader(file)
    assert list(first)[:6] == ["norm", "backend", "optimizer", "dropout", "groups", "n"]
    assert (first["optimizer"], first["dropout"], first["groups"]) == ("adamw", "0.0", "")
    assert second["groups"] == "0"


def test_the_tables_hold_every_run_and_group(tmp_path):
    found = summarize(RUNS)
    planned = [PlannedRun(run.path, run.config, run, State.DONE, 3, 0.8) for run in RUNS]
    broken = resolve({"norm": "rms", "data": "cifar10", "backend": "torch"})
    planned.append(
        PlannedRun(Path("rms"), broken, state=State.FAILED, exit_code=4, message="a loss, lost")
    )
    tables.write(tmp_path, planned, found)
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished"] * len(RUNS) + ["failed"]
    assert rows[-1]["message"] == "a loss, lost"
    with (tmp_path / "summary.csv").open() as file:
        groups = list(csv.DictReader(file))
    assert [row["n"] for row in groups] == ["3", "3", "2", "1"]
    assert float(groups[0]["test_accuracy_mean"]) == pytest.approx(0.81)
    assert groups[-1]["test_accuracy_std"] == ""
    assert json.loads((tmp_path / "summary.json").read_text()) == found.to_dict()


def content(images="a", classes=("cat", "dog")):
    checksums = {"train images": images, "train labels": "b"}
    return Content(classes, (8, 8, 3), {"train": (3, 2)}, checksums)


def run_on(folder, data, seed, **options):
    """A run whose folder says what its data held."""
    run = make_run(0.5 + seed / 10, norm="bn", seed=seed, data=str(data))
    folder.mkdir()
    document = {"data": dataclasses.asdict(content(**options))}
    (folder / "environment.json").write_text(json.dumps(document))
    return dataclasses.replace(run, path=folder)


def test_runs_on_other_data_are_not_averaged_though_their_place_is_the_same(tmp_path):
    runs = [run_on(tmp_path / "a", "/d", 0), run_on(tmp_path / "b", "/d", 1, images="c")]
    with pytest.raises(DataError, match=r"b: expected the data of .*a,.*other train images"):
        summarize(runs)
    renamed = [run_on(tmp_path / "c", "/d", 1, classes=("cat", "fox")), runs[0]]
    with pytest.raises(DataError, match="the classes cat, dog instead of cat, fox"):
        summarize(renamed)


def test_runs_on_data_that_moved_are_averaged(tmp_path):
    (tmp_path / "new").mkdir()
    places = ["/gone", tmp_path / "new", "/gone/too"]
    runs = [run_on(tmp_path / str(seed), place, seed) for seed, place in enumerate(places)]
    found = summarize(runs)
    assert [sorted(group.runs) for group in found.groups] == [[0, 1, 2]]
    assert math.isclose(found.groups[0].interval("test_accuracy").mean, 0.6)
    assert found.groups[0].first.config.data.data == str(tmp_path / "new")
    other = run_on(tmp_path / "other", "/other", 3, images="c")
    assert [sorted(group.runs) for group in summarize([*runs, other]).groups] == [[0, 1, 2], [3]]


def test_one_place_spelled_in_several_ways_is_one(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    monkeypatch.chdir(tmp_path)
    spelled = ("d", "d/", "./d", "link", str(tmp_path / "d"))
    runs = [make_run(0.5, norm="bn", seed=seed, data=d) for seed, d in enumerate(spelled)]
    assert [sorted(group.runs) for group in summarize(runs).groups] == [[0, 1, 2, 3, 4]]
