"""Groups, paired differences and published numbers, from runs that were never trained."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
from helpers.studies import ABLATION, RUNS, ablation_runs, make_run, summarize_ablation
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasnorm.config import ARMS, RATE_SCALINGS, published, resolve
from kerasnorm.data.content import Content
from kerasnorm.errors import DataError
from kerasnorm.study import tables
from kerasnorm.study.folder import PlannedRun, State
from kerasnorm.study.intervals import Verdict
from kerasnorm.study.plan import StudyPlan
from kerasnorm.study.sentences import arms_sentence, sentences
from kerasnorm.study.summary import summarize
from kerasnorm.study.tables import group_label


def test_groups_differ_in_more_than_the_seed():
    found = summarize(RUNS)
    assert found.axes == ("ln_affine",)
    assert [(g.norm, dict(g.fields), sorted(g.runs)) for g in found.groups] == [
        ("bn", {}, [0, 1, 2]),
        ("gn", {}, [0, 1, 2]),
        ("ln", {"ln_affine": "element"}, [1, 2]),
        ("ln", {"ln_affine": "channel"}, [0]),
    ]
    labels = [group_label(group, found) for group in found.groups]
    assert labels == ["BN", "GN", "LN, affine element", "LN, affine channel"]


@given(st.lists(st.integers(0, 50), min_size=2, max_size=4))
@settings(max_examples=25, deadline=None)
def test_no_interval_leaves_the_values_that_there_are(correct):
    """Accuracies of a few images spread so widely that their t-intervals would."""
    runs = [make_run(n / 50, norm="bn", seed=seed) for seed, n in enumerate(correct)]
    runs += [make_run(1 - n / 50, norm="gn", seed=seed) for seed, n in enumerate(correct)]
    found = summarize(runs)
    for group in found.groups:
        for measure, most in (("test_accuracy", 1.0), ("test_loss", math.inf)):
            one = group.interval(measure)
            assert one.low is None or 0 <= one.low <= one.mean <= one.high <= most
    for item in found.differences:
        low, high = item.interval.low, item.interval.high
        assert low is None or -1 <= low <= item.interval.mean <= high <= 1


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


@pytest.mark.parametrize(("name", "values"), [("backend", ("torch", "tensorflow")),
                                              ("engine", ("native", "keras"))])  # fmt: skip
def test_several_groups_that_repeat_a_published_number_have_labels_of_their_own(name, values):
    runs = [make_run(0.8, norm=norm, **{name: v}) for norm in ("bn", "gn") for v in values]
    table = tables.published_table(summarize(runs))
    labels = [row[0] for row in table.rows if row[2] != tables.NO_VALUE]
    assert len(set(labels)) == len(labels) == 4


def test_nothing_is_published_for_a_changed_recipe():
    assert summarize([make_run(0.8, norm="bn", dropout=0.2)]).published == ()
    assert summarize([make_run(0.8, norm="bn", epochs=3)]).published == ()
    assert published("best", "cifar10") == {}
    assert set(published("era8", "cifar10")) == {"source", "epochs", "bn", "gn", "ln"}


def test_sentences_say_no_more_than_the_intervals():
    arms, measure, *texts = sentences(summarize(RUNS))
    assert arms.startswith("Matched arms")
    assert "on the test set, for want of a validation split" in measure
    # Two differences of two common seeds have no verdict, and two of one seed no interval.
    assert texts[0].startswith("BN is 1.07 points above GN (3 common seeds, corrected interval")
    assert all(", no verdict (" in text for text in texts[1:])
    assert sum("(1 common seed)" in text for text in texts) == 2


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
    # std 0.001 of three: t = -0.003 / 0.001 * sqrt(3), two-sided p with 2 degrees of freedom.
    assert sgd.interval.mean == pytest.approx(-0.003)
    p = 1 - 5.196152 / math.sqrt(5.196152**2 + 2)
    # Of the nine effects five, all of gn, have smaller p values: Holm multiplies by 9 - 5.
    assert sgd.comparison.p == pytest.approx(4 * p, rel=1e-4)
    assert not sgd.interval.is_clear  # 0.035 alone would have been significant
    assert effects["gn", "optimizer", "sgd"].interval.mean == pytest.approx(0.1)


def uneven_ablation():
    """The runs of the ablation, with differences to gn, and by sgd, that the seeds do not share."""
    for run in ablation_runs():
        if run.config.model.norm == "gn":
            step = 0.002 if run.config.train.optimizer == "sgd" else 0.001
            run.metrics["test_accuracy"] += step * (run.config.train.seed - 1)
        yield run


def test_effects_stand_norm_by_norm_the_largest_first():
    found = summarize_ablation(list(uneven_ablation()))
    assert [(effect.base.norm, effect.field) for effect in found.effects] == [
        *[("bn", "dropout")] * 3,
        ("bn", "optimizer"),
        ("gn", "optimizer"),
        *[("gn", "dropout")] * 3,
        ("gn", "groups"),
    ]
    table = tables.effect_table(found)
    assert table.rows[3] == (
        *("BN", "optimizer", "adamw", "sgd", "81.00", "80.70", "3", "-0.30"),
        *("-0.98 to +0.38", "0.140", "not significant"),
    )
    assert table.rows[4] == (
        *("GN", "optimizer", "adamw", "sgd", "71.00", "81.00", "3", "+10.00"),
        *("+9.27 to +10.73", "<0.001", "different"),
    )
    assert table.rows[8] == (  # one point less on every seed
        *("GN", "groups", "0", "2", "71.00", "70.00", "3", "-1.00"),
        *("-", "-", "no verdict"),
    )
    assert "means of test accuracy" in table.notes[0]
    alone = tables.effect_table(
        summarize_ablation([r for r in ablation_runs() if r.config.model.norm == "gn"])
    )
    assert "means of validation accuracy" in alone.notes[0]


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
    found = summarize_ablation(list(uneven_ablation()))
    pairs = [(d.first.norm, d.second.norm, dict(d.first.fields)) for d in found.differences]
    assert pairs[0] == ("bn", "gn", {})
    assert len(pairs) == 1 + 4
    assert all(d.first.fields == d.second.fields for d in found.differences)
    texts = sentences(found)
    assert texts[2].startswith("BN is 10.00 points above GN (")
    different = [item for item in found.effects if found.verdict(item) is Verdict.DIFFERENT]
    assert texts[-1] == "The tables hold 2 more."
    first = max(different, key=lambda item: abs(item.interval.mean))
    assert f"{100 * first.interval.mean:+.2f} points (" in texts[3]
    assert [", not significant" in text for text in texts[3:-1]] == [False] * len(different) + [
        True
    ] * (7 - len(different))


def test_an_ablation_is_written_down(tmp_path):
    found = summarize_ablation()
    document = found.to_dict()
    assert document["groups"][0]["norm"] == "bn"
    assert "optimizer" not in document["groups"][0]
    effect = document["ablation_effects"][3]
    assert {name: effect[name] for name in ("field", "base", "value", "measure", "n")} == {
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


def test_fields_that_differ_between_the_norms_are_said():
    assert summarize(RUNS).unmatched == {}
    runs = [make_run(0.5, norm="bn"), make_run(0.5, norm="gn", dropout=0.3, groups=2)]
    runs.append(make_run(0.5, norm="ln", dropout=0.3))
    found = summarize(runs)
    assert found.unmatched == {"dropout": {"bn": 0.01, "gn": 0.3, "ln": 0.3}}
    sentence = sentences(found)[0]
    assert sentence == ("The arms differ in more than the norm: dropout (BN 0.01; GN, LN 0.3).")
    assert found.to_dict()["unmatched"] == found.unmatched
    assert not arms_sentence(summarize(runs[:1]))


@pytest.mark.parametrize("one_at_a_time", [True, False])
def test_norms_whose_varied_field_differs_in_the_base_are_not_matched(one_at_a_time):
    """Tuned arms of the recipe best: bn without, gn with weight standardization."""
    plan = StudyPlan(
        norms=("bn", "gn"),
        backends=("torch",),
        seeds=(0, 1, 2),
        arms="tuned",
        one_at_a_time=one_at_a_time,
        vary={"weight_standardization": (False, True)},
        fixed={"recipe": "best", "data": "cifar10"},
    )
    runs = [
        dataclasses.replace(make_run(0.5, norm=config.model.norm), config=config)
        for config in plan.configs().values()
    ]
    found = summarize(runs, tuple(plan.vary), plan if one_at_a_time else None)
    differ = {"weight_standardization": {"bn": False, "gn": True}} if one_at_a_time else {}
    assert found.unmatched == differ
    assert found.following == {}


VARIED = {
    "batch_size": (32, 128),
    "optimizer": ("adam", "sgd"),
    "learning_rate": (0.001, 0.01),
    "groups": (2, 4),
}
OWN_OF_GN = ("groups", "group_size")


@settings(max_examples=30)
@given(
    names=st.lists(st.sampled_from(sorted(VARIED)), min_size=1, unique=True),
    one_at_a_time=st.booleans(),
    arms=st.sampled_from(ARMS),
    scaling=st.sampled_from(RATE_SCALINGS),
)
def test_every_field_that_changes_is_named(names, one_at_a_time, arms, scaling):
    """Of two groups that are compared, the fields that differ are in labels or in sentences."""
    plan = StudyPlan(
        norms=("bn", "gn"),
        backends=("torch",),
        seeds=(0,),
        arms=arms,
        rate_scaling=scaling,
        one_at_a_time=one_at_a_time,
        vary={name: VARIED[name] for name in names},
        fixed={"recipe": "best", "data": "cifar10"},
    )
    runs = [
        dataclasses.replace(make_run(0.5, norm=config.model.norm), config=config)
        for config in plan.configs().values()
    ]
    found = summarize(runs, tuple(plan.vary), plan if one_at_a_time else None)
    for item in (*found.differences, *found.changes, *found.effects):
        first, second = (group.first.config.to_dict() for group in (item.first, item.second))
        known = {"norm", *item.first.fields, *item.second.fields, *found.following}
        known |= {*found.unmatched} if item.first.norm != item.second.norm else set()
        for section in ("model", "data", "train"):
            for name, value in first[section].items():
                if item.first.norm == item.second.norm or name not in OWN_OF_GN:
                    assert value == second[section][name] or name in known, name


def test_values_of_a_field_are_compared_within_each_norm():
    accuracies = {2: (0.5, 0.51, 0.52), 8: (0.6, 0.612, 0.62), 32: (0.7, 0.71, 0.722)}
    runs = [
        make_run(accuracy, norm=norm, batch_size=size, seed=seed)
        for norm in ("bn", "gn")
        for size, seeds in accuracies.items()
        for seed, accuracy in enumerate(seeds)
    ]
    found = summarize(runs, ("batch_size",))
    changes = [(d.first.norm, *(g.fields["batch_size"] for g in (d.first, d.second)))
               for d in found.changes]  # fmt: skip
    assert changes == [("bn", 8, 2), ("bn", 32, 2), ("gn", 8, 2), ("gn", 32, 2)]
    assert found.changes[0].interval.mean == pytest.approx(0.302 / 3)
    answer = tables.answer_table(found)
    assert answer.columns == ("norm", ">batch size 2", ">batch size 8", ">batch size 32")
    assert [row[0] for row in answer.rows] == ["BN", "GN"]
    assert answer.rows[1][1].startswith("51.00 ± 1.00")


def test_groups_are_ranked_on_validation_where_all_have_it():
    runs = [make_run(0.5 + seed / 100, norm=norm, seed=seed) for norm in ("bn", "gn")
            for seed in (0, 1, 2)]  # fmt: skip
    assert summarize(runs).measure == "test_accuracy"
    for run in runs:
        run.metrics["val_accuracy"] = 0.9 if run.config.model.norm == "gn" else 0.8
    found = summarize(runs)
    assert (found.measure, found.best.norm) == ("val_accuracy", "gn")
    [difference] = found.differences
    assert difference.interval.mean == pytest.approx(-0.1)
    table = tables.difference_table(found)
    assert table.columns[-1] == ">difference in test"
    assert table.rows[0][-1] == "+0.00"
    assert "points of validation accuracy" in table.notes[0]
    del runs[0].metrics["val_accuracy"]
    assert summarize(runs).measure == "test_accuracy"


def test_the_lucky_seed_of_a_norm_whose_other_runs_failed_is_not_the_best():
    runs = [make_run(0.7 + seed / 100, norm="bn", seed=seed) for seed in range(3)]
    runs += [make_run(0.6, norm="gn", seed=seed) for seed in range(3)]
    lucky = make_run(0.99, norm="ln", seed=1)
    assert summarize([lucky, *runs]).best.norm == "bn"
    assert summarize([lucky, *runs[1:2]]).best.norm == "ln"  # one seed each


def test_a_run_that_is_there_twice_is_named(caplog):
    runs = [make_run(0.5 + seed / 100, norm="bn", seed=seed) for seed in range(3)]
    again = dataclasses.replace(runs[1], path=Path("other/bn-s1"))
    assert len(summarize([*runs, runs[1]]).runs) == 3  # the same folder, named twice
    assert not caplog.records
    found = summarize([*runs, again])
    assert found.groups[0].runs[1].path == again.path
    assert [record.getMessage() for record in caplog.records] == [
        f"{runs[1].path} is left out: {again.path} is the same run again."
    ]


def test_the_margin_decides_what_is_equivalent():
    narrow, wide = (summarize(RUNS, margin=margin) for margin in (0.005, 0.05))
    assert narrow.verdict(narrow.differences[0]) is Verdict.DIFFERENT
    assert wide.verdict(wide.differences[0]) is Verdict.EQUIVALENT
    text = next(text for text in sentences(wide) if "BN and GN" in text)
    assert "equivalent for practice, within 5 points: +1.07" in text


def test_a_size_of_groups_is_not_named_where_their_number_overrules_it():
    plan = StudyPlan(
        norms=("bn", "gn"),
        backends=("torch",),
        seeds=(0,),
        vary={"groups": (0, 2), "group_size": (2, 4)},
        fixed={"recipe": "era8", "data": "cifar10"},
    )
    runs = [
        dataclasses.replace(make_run(0.5, norm="bn"), config=c) for c in plan.configs().values()
    ]
    found = summarize(runs, tuple(plan.vary))
    assert [group_label(group, found) for group in found.groups] == [
        "BN",
        "GN, groups 0, group size 2",
        "GN, groups 0, group size 4",
        "GN, groups 2",
    ]
    assert [row["group_size"] for row in tables.summary_rows(found)] == ["", 2, 4, ""]
