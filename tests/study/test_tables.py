"""The tables of a study."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.studies import make_run, summarize_ablation
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from kerasnorm.plots.labels import shown_fields
from kerasnorm.study.estimate import Estimate
from kerasnorm.study.figures import file_name
from kerasnorm.study.intervals import Interval, Verdict, compare
from kerasnorm.study.plan import run_name
from kerasnorm.study.sentences import sentences
from kerasnorm.study.summary import Failure, summarize
from kerasnorm.study.tables import (
    all_tables,
    answer_table,
    confused_table,
    difference_table,
    failure_table,
    group_label,
    group_table,
    judged,
    nats,
    plan_table,
    run_table,
)
from kerasnorm.tables import to_text


def many_classes(count=30, **fields):
    run = make_run(0.5, **fields)
    counts = 10 * np.eye(count, dtype=int)
    counts[3, 7], counts[20, 4], counts[4, 20] = 6, 6, 2
    names = [str(n) for n in range(count - 1)] + ["a name"]
    counts[count - 1, 0] = 30
    run.metrics.update(confusion=counts.tolist(), class_names=names)
    return run


@pytest.mark.parametrize(
    ("value", "expected"), [(0.5168, "0.517"), (1.23e21, "1.2e+21"), (99_999.0, "99999.000"),
                            (float("inf"), "inf"), (float("nan"), "nan")],
)  # fmt: skip
def test_a_loss_is_short(value, expected):
    assert nats(Interval(1, value)) == expected


@pytest.mark.parametrize("finished", [(True, True), (True, False), (False, False)])
def test_a_plan_says_where_nothing_is_left_to_train(finished, tmp_path):
    runs = [
        SimpleNamespace(name=f"bn-s{n}", finished=done or None, path=tmp_path)
        for n, done in enumerate(finished)
    ]
    text = to_text(plan_table([Estimate(run, 0.0 if run.finished else 9.0, "") for run in runs], 1))
    assert ("nothing is left to train" in text) == all(finished)
    assert ("Estimated" in text) != all(finished)


def test_of_many_classes_the_most_confused_pairs_are_listed():
    runs = [many_classes(norm=norm, seed=seed) for norm in ("bn", "gn") for seed in (1, 2)]
    table = confused_table(summarize(runs))
    assert table.rows[:4] == [
        ("BN, seed 1", "29 a name", "0", "30", "75.0"),
        ("BN, seed 1", "3", "7", "6", "37.5"),
        ("BN, seed 1", "20", "4", "6", "37.5"),
        ("BN, seed 1", "4", "20", "2", "16.7"),
    ]
    assert [row[0] for row in table.rows[4:]] == ["GN, seed 1"] * 4


def test_few_classes_have_no_such_table():
    summary = summarize([make_run(0.5, norm="bn")])
    assert "Most confused classes" not in [table.title for table in all_tables(summary)]
    summary = summarize([many_classes(norm="bn")])
    assert "Most confused classes" in [table.title for table in all_tables(summary)]


@given(st.floats(1e-6, 1.0), st.integers(1, 9), st.data())
def test_numbers_that_agree_in_many_digits_have_labels_of_their_own(first, digits, data):
    near = st.floats(first * (1 - 10.0**-digits), first * (1 + 10.0**-digits))
    rates = {min(first, 1.0), *data.draw(st.lists(near.map(lambda x: min(x, 1.0)), max_size=2))}
    runs = [make_run(0.5, norm="gn", learning_rate=rate) for rate in rates]
    summary = summarize(runs)
    for texts in (
        [group_label(group, summary) for group in summary.groups],
        [file_name(group, summary) for group in summary.groups],
        [run_name(run.config, ["learning_rate"]) for run in runs],
    ):
        assert len(set(texts)) == len(rates)


def test_short_labels_stay_short():
    rates = (0.01 * 2**0.5, 0.01)
    summary = summarize([make_run(0.5, norm="gn", learning_rate=rate) for rate in rates])
    labels = {group_label(group, summary) for group in summary.groups}
    assert labels == {"GN, learning rate 0.01", "GN, learning rate 0.0141421"}


def test_two_data_sets_are_named_in_every_table():
    runs = [
        make_run(0.5, norm=norm, data=data)
        for norm in ("bn", "gn")
        for data in ("/a/old/pets", "/a/new/pets")
    ]
    summary = summarize(runs)
    labels = [f"{n}, data {d}/pets" for n in ("BN", "GN") for d in ("old", "new")]
    assert [row[0] for row in group_table(summary).rows] == labels
    assert [row[1] for row in run_table(summary).rows] == labels
    assert answer_table(summary).columns == ("norm", ">data old/pets", ">data new/pets")
    failed = Failure("ln", "torch", {"data": "/a/old/pets"}, 1, 1, "diverged")
    failed = failure_table(type(summary)(**vars(summary) | {"failures": (failed,)}))
    assert failed.rows[0][0] == "LN, data old/pets"


def test_every_table_fits_80_columns():
    runs = [
        make_run(0.5 + 0.01 * seed, norm=norm, seed=seed, batch_size=size, dropout=0.123456789)
        for norm in ("bn", "gn", "ln")
        for size in (1, 2, 4, 8, 16, 32, 64, 128)
        for seed in (0, 1, 2)
    ]
    for table in all_tables(summarize(runs, ("batch_size", "dropout"))):
        assert max(map(len, to_text(table).splitlines())) <= 80


def test_the_table_of_runs_holds_the_accuracy_that_ranks_them():
    run = make_run(0.5, norm="bn", validation=10)
    run.metrics["val_accuracy"] = 0.625
    table = run_table(summarize([run]))
    assert table.columns[3:5] == (">validation %", ">test %")
    assert table.rows[0][3:5] == ("62.50", "50.00")
    assert ">validation %" not in run_table(summarize([make_run(0.5, norm="bn")])).columns


def test_a_path_of_data_or_of_a_network_is_as_short_as_tells_it_from_the_others():
    fields = {"network": "/models/old/net.keras", "data": "/images/pets", "groups": 4}
    others = [{"network": "/models/new/net.keras"}, {"network": "keras:VGG16"}]
    assert shown_fields(fields, others) == fields | {"network": "old/net.keras", "data": "pets"}
    assert shown_fields(others[1], [fields]) == {"network": "keras:VGG16"}


@given(
    st.lists(
        st.tuples(st.floats(-0.02, 0.02), st.floats(1e-6, 0.01), st.integers(3, 6)),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([0.0, 0.005]),
)
@example([(0.01, 0.0040261, 3)], 0.005)  # p 0.0500 and the interval from 0.00, on either side
@example([(0.01, 0.0040237, 3)], 0.005)
def test_no_rounding_contradicts_a_verdict(drawn, margin):
    samples = [[mean + std * (i - (n - 1) / 2) for i in range(n)] for mean, std, n in drawn]
    for one in compare(samples):
        _, _, ends, p, verdict = judged(one, margin)
        low, high = (float(end) for end in ends.split(" to "))
        if verdict == Verdict.DIFFERENT:
            assert low > 0 or high < 0
        elif verdict == Verdict.EQUIVALENT:
            assert -100 * margin <= low <= high <= 100 * margin
        else:
            assert low <= 0 <= high
        if p == "<0.001":
            assert one.p < 0.001
        elif abs(one.p - 0.05) > 1e-6:
            assert (float(p) < 0.05) == (one.p < 0.05)


def test_a_tiny_p_is_no_zero_and_a_tiny_end_of_an_interval_is_none():
    [one] = compare([[0.01, 0.0101, 0.0099, 0.01]])
    assert judged(one, 0.005)[3] == "<0.001"
    half = float(stats.t.ppf(0.975, 2)) / math.sqrt(3)
    [one] = compare([[half * 0.01 + 0.00003 + d for d in (-0.01, 0.0, 0.01)]])
    cells = judged(one, 0.005)
    assert cells[2].startswith("+0.003 to")
    assert cells[4] == Verdict.DIFFERENT


def test_the_note_counts_the_differences_that_are_corrected_for():
    accuracies = {"bn": (0.8, 0.82, 0.81), "gn": (0.7, 0.72, 0.71), "ln": (0.75, 0.74, 0.7)}
    runs = [
        make_run(accuracy, norm=norm, seed=seed)
        for norm, seeds in accuracies.items()
        for seed, accuracy in enumerate(seeds)
    ]
    found = summarize(runs)
    assert found.differences[0].comparison.p is None  # bn is above gn by 10 points on each seed
    note = difference_table(found).notes[0]
    assert "corrected for their number in this table, 2 (Holm)" in note
    half = stats.t.ppf(1 - 0.025 / 2, 2) * stats.sem([0.05, 0.08, 0.11])
    ends = [item.comparison.simultaneous for item in found.differences]
    assert min(abs(one.high - one.low - 2 * half) for one in ends if one.low is not None) < 1e-9


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_table_without_a_test_tells_of_no_correction(seeds):
    runs = [make_run(0.7 + seed / 100 * (norm == "bn"), norm=norm, seed=seed)
            for norm in ("bn", "gn") for seed in range(seeds)]  # fmt: skip
    note = difference_table(summarize(runs)).notes[0]
    assert note.endswith(
        "With fewer than 3 common seeds, or the same difference on each, there is no test."
    )
    assert "corrected" not in note


@given(st.floats(-0.02, 0.02), st.floats(1e-7, 0.01), st.sampled_from([0.0, 1e-6, 0.005]))
def test_a_difference_is_as_precise_as_its_interval(mean, std, margin):
    """What is different is not 0.00 points above, and nothing is -0.00."""
    [one] = compare([[mean - std, mean, mean + std]])
    _, points, ends, *_ = judged(one, margin)
    low, high = ends.split(" to ")
    assert len(points.partition(".")[2]) == len(low.partition(".")[2])
    assert float(low) <= float(points) <= float(high)
    assert not (points.startswith("-") and float(points) == 0)


def test_the_lucky_seed_of_a_group_has_no_star():
    runs = [make_run(0.5, norm=norm, seed=seed) for norm in ("bn", "gn") for seed in range(3)]
    runs.append(make_run(0.99, norm="ln", seed=1))
    assert [row[1][-1] for row in answer_table(summarize(runs)).rows] == ["*", "*", "0"]


def test_equal_means_share_the_star():
    runs = [
        make_run(accuracy, norm=norm, seed=seed)
        for norm, seeds in (("bn", (0.1, 0.2, 0.3)), ("gn", (0.3, 0.2, 0.1)), ("ln", (0.1,)))
        for seed, accuracy in enumerate(seeds)
    ]
    assert [row[1][-1] for row in answer_table(summarize(runs)).rows] == ["*", "*", "0"]


@pytest.mark.parametrize("norms", [("bn",), ("bn", "gn")])
def test_a_column_of_one_group_has_no_star(norms):
    runs = [make_run(0.5, norm=norm, batch_size=size) for norm in norms for size in (16, 32)]
    table = answer_table(summarize(runs))
    is_starred = len(norms) > 1
    assert all(("*" in cell) == is_starred for row in table.rows for cell in row[1:])
    assert ("*" in table.notes[0]) == is_starred


def test_the_first_column_of_an_ablations_answer_is_the_base():
    assert answer_table(summarize_ablation()).columns[1] == ">base"


FAILED = {
    "value": ({"batch_size": 2}, {"batch_size": 8}, "batch size"),
    "own field": ({"groups": 2}, {"groups": 4}, "groups"),
    "backend": ({"backend": "tensorflow"}, {"backend": "torch"}, "torch"),
}


@pytest.mark.parametrize(("failed", "finished", "name"), FAILED.values(), ids=FAILED)
def test_what_finished_is_told_from_what_failed_alike(failed, finished, name):
    """All runs of one value have failed, so that all that are left have the other."""
    runs = [make_run(0.5, norm="gn", seed=seed, **finished) for seed in range(3)]
    fields = {key: value for key, value in failed.items() if key != "backend"}
    failure = Failure("gn", failed.get("backend", "torch"), fields, 3, 3, "no")
    summary = dataclasses.replace(summarize(runs, tuple(fields)), failures=(failure,))
    [group] = summary.groups
    assert name in group_label(group, summary)
    label = group_label(failure, summary)
    assert label != group_label(group, summary)
    assert failure_table(summary).rows[0][0] == label
    assert any(text.startswith(f"{label} failed in 3 of 3 runs") for text in sentences(summary))
    [row] = group_table(summary).rows
    assert row[0] == group_label(group, summary)
