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
from kerasnorm.study.plan import StudyPlan, run_name
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
    sentences,
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


def test_a_matched_study_says_which_values_tuned_arms_would_have():
    runs = [
        make_run(0.5, norm=norm, recipe="best", weight_standardization=False)
        for norm in ("bn", "gn")
    ]
    text = sentences(summarize(runs))[0]
    assert "--arms tuned takes: weight standardization (BN false; GN true)." in text
    runs = [make_run(0.5, norm=norm, recipe="era8") for norm in ("bn", "gn")]
    assert "--arms tuned" not in sentences(summarize(runs))[0]


def test_moving_statistics_that_are_still_initial_are_named_once_with_their_groups():
    runs = [make_run(0.5, norm=norm, seed=seed) for norm in ("bn", "gn") for seed in (0, 1)]
    assert not any("moving statistics" in text for text in sentences(summarize(runs)))
    runs[0].metrics["initial_statistics"] = 0.2
    runs[1].metrics["initial_statistics"] = 0.35
    (text,) = [text for text in sentences(summarize(runs)) if "moving statistics" in text]
    assert "the accuracy at inference suffers: BN 35 %." in text
    assert "kerasnorm recalibrate" in text
    rows = summarize(runs).to_dict()["groups"]
    assert [row.get("initial_statistics") for row in rows] == [0.35, None]


def test_images_of_both_training_and_test_set_are_named_once():
    runs = [make_run(0.5, norm=norm, seed=seed) for norm in ("bn", "gn") for seed in (0, 1)]
    assert not any("same pixels" in text for text in sentences(summarize(runs)))
    runs[0].metrics["leaked_images"] = {"test": 12}
    runs[3].metrics["leaked_images"] = {"validation": 3, "test": 12}
    (text,) = [text for text in sentences(summarize(runs)) if "same pixels" in text]
    assert "12 test and 3 validation images have the same pixels as a training image" in text


def test_group_norms_that_are_instance_norms_are_counted():
    runs = [make_run(0.5, norm=norm, seed=seed) for norm in ("bn", "gn") for seed in (0, 1)]
    for run in runs[2:]:
        run.metrics["instance_norms"] = [0, 19]
    assert not any("instance" in text for text in sentences(summarize(runs)))
    for run in runs[2:]:
        run.metrics["instance_norms"] = [13, 19]
    (text,) = [text for text in sentences(summarize(runs)) if "instance" in text]
    assert text.endswith("are instance normalization: GN in 13 of 19 norms.")


def test_batch_sizes_that_vary_say_how_many_steps_they_take():
    runs = [make_run(0.5, norm=n, batch_size=size) for n in ("bn", "gn") for size in (8, 32, 128)]
    for run in runs:  # 200 images: the last batch may hold fewer
        run.metrics["steps_per_epoch"] = math.ceil(200 / run.config.train.batch_size)
    (text,) = [text for text in sentences(summarize(runs)) if "fewer steps" in text]
    assert "an epoch has 25 in batches of 8 and 2 in batches of 128." in text
    one = [make_run(0.5, norm=norm, batch_size=8) for norm in ("bn", "gn")]
    assert not [text for text in sentences(summarize(one)) if "fewer steps" in text]


def test_fields_that_follow_a_varied_one_are_said_with_their_values():
    runs = [make_run(0.5, norm="bn", batch_size=b, learning_rate=b / 1000) for b in (2, 8)]
    found = summarize(runs)
    text = "Together with what was varied (batch size), these change: learning rate (0.002, 0.008)."
    assert text in sentences(found)
    assert found.to_dict()["following"] == {"learning_rate": [0.002, 0.008]}
    assert not [text for text in sentences(summarize(runs[:1])) if "Together" in text]


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


def test_a_sentence_rounds_no_difference_to_zero():
    accuracies = {"bn": (0.80001, 0.810011, 0.820012), "gn": (0.8, 0.81, 0.82)}
    runs = [make_run(a, norm=norm, seed=seed)
            for norm, seeds in accuracies.items() for seed, a in enumerate(seeds)]  # fmt: skip
    text = sentences(summarize(runs, margin=0.0))[-1]
    assert text.startswith("BN is 0.0011 points above GN (3 common seeds, corrected interval +0.00")


def test_runs_that_know_the_class_frequencies_alone_are_counted():
    """10 of the 30 test images of `make_run` are of one class: 1/3 is no classification."""
    runs = [make_run(a, norm="bn", seed=seed) for seed, a in enumerate((0.8, 1 / 3, 0.1))]
    runs += [make_run(0.34, norm="gn", seed=seed) for seed in range(3)]
    [text] = [text for text in sentences(summarize(runs)) if "most frequent class" in text]
    assert "test set: BN in 2 of 3 runs. Such a" in text
    assert not any("most frequent" in text for text in sentences(summarize(runs[3:])))


@pytest.mark.parametrize(
    ("has_split", "held_out", "is_same"),
    [(False, 0, True), (True, 100, False), (True, 0, True)],  # the last: a split of the data's own
)
def test_intervals_over_seeds_say_where_the_images_are_the_same(has_split, held_out, is_same):
    runs = [make_run(0.5, norm=norm, seed=seed, validation=held_out)
            for norm in ("bn", "gn") for seed in range(3)]  # fmt: skip
    for run in runs:
        run.metrics["val_accuracy"] = 0.5 if has_split else None
    texts = sentences(summarize(runs))
    assert any("not what other images would" in text for text in texts) == is_same


def test_one_group_is_not_ranked():
    runs = [make_run(0.5, norm="bn", seed=seed) for seed in range(3)]
    assert not any("winner" in text for text in sentences(summarize(runs)))


def test_what_failed_in_part_is_compared_by_the_rest_and_says_so():
    runs = [make_run(0.5 + seed / 9, norm=norm, seed=seed) for norm in ("bn", "gn")
            for seed in range(3)]  # fmt: skip
    for count, is_said in ((2, True), (5, False)):
        failure = Failure("gn", "torch", {}, count, 5, "The loss is not finite.")
        texts = sentences(dataclasses.replace(summarize(runs), failures=(failure,)))
        assert any("not finite. Its other seeds alone are compared." in t for t in texts) == is_said


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


APART = {
    "seeds": ({"seed": 0}, {"seed": 1}),
    "fields": ({"learning_rate": 0.1}, {"learning_rate": 0.2}),
}


@pytest.mark.parametrize(("first", "second"), APART.values(), ids=APART)
def test_norms_without_a_common_run_are_not_called_matched(first, second):
    runs = [make_run(0.5, norm="bn", **first), make_run(0.5, norm="gn", **second)]
    runs.append(make_run(0.5, norm="gn", **(second | {"learning_rate": 0.3})))
    text, *_ = sentences(summarize(runs))
    assert text.startswith("No norms are compared: ")
    runs.append(make_run(0.5, norm="gn", **first))
    assert not any("No norms are compared" in text for text in sentences(summarize(runs)))


@pytest.mark.parametrize(("images", "error"), [(50, 12.0), (10_000, 0.79)])
def test_the_number_of_images_says_how_far_their_accuracy_may_be_from_that_of_others(images, error):
    runs = [make_run(0.8, norm=norm, seed=seed) for norm in ("bn", "gn") for seed in (0, 1)]
    for run in runs:
        run.metrics["confusion"] = [[images // 2, 0], [0, images // 2]]
    [text] = [text for text in sentences(summarize(runs)) if "by chance alone" in text]
    number = float(text.split(" points")[-2].split()[-1])
    assert f"There are {images:,} test images: " in text
    assert "an accuracy of 80.00 % on them may miss that on all such images by" in text
    assert number == pytest.approx(error, rel=0.1)  # 1.96 * sqrt(0.8 * 0.2 / n), one-sided skew
    rng = np.random.Generator(np.random.PCG64(images))
    shares = rng.binomial(images, 0.8, (2, 100_000)) / images
    assert np.mean(100 * np.abs(shares[0] - 0.8) > number) < 0.06
    assert np.mean(100 * np.abs(shares[0] - shares[1]) > number) > 0.1  # as many other images
    apart = [make_run(0.8, norm=n, seed=s, data=n) for n in ("bn", "gn") for s in (0, 1)]
    assert not any("the same images" in text for text in sentences(summarize(apart)))
    runs[0].metrics["confusion"] = [[1, 0], [0, 1]]
    assert not any("by chance alone" in text for text in sentences(summarize(runs)))


@pytest.mark.parametrize("held_out", [0, 100])
@pytest.mark.parametrize("norms", [("bn",), ("bn", "gn")])
@pytest.mark.parametrize("places", [("cifar10",), ("cifar10", "/images/pets")])
@pytest.mark.parametrize("has_split", [False, True])
def test_a_study_always_says_how_far_off_its_test_accuracy_may_be(
    held_out, norms, places, has_split
):
    """Where half of n images are classified, Wilson's interval is ± 1.96 / 2 / sqrt(n + 1.96^2)."""
    counts = {"cifar10": 10_000, "/images/pets": 200}
    runs = [make_run(0.5, norm=norm, seed=seed, data=place, validation=held_out)
            for norm in norms for seed in range(3) for place in places]  # fmt: skip
    for run in runs:
        run.metrics["confusion"] = [[counts[run.config.data.data], 0], [0, 0]]
        run.metrics["val_accuracy"] = 0.25 if has_split else None
        run.metrics["images"] = {"validation": 50}
    text = " ".join(sentences(summarize(runs)))
    for place in places:
        of = f" of {place.rpartition('/')[2]}" if len(places) > 1 else ""
        off = 98 / math.sqrt(counts[place] + 1.96**2)
        assert (
            f"There are {counts[place]:,} test images{of}: by chance alone, an accuracy of 50.00 % "
            f"on them may miss that on all such images by {off:.2f} points."
        ) in text
    assert ("50 validation images" in text) == (has_split and not held_out)


ELSEWHERE = {
    "data": [{"data": "cifar10"}, {"data": "/images/pets"}],
    "test size": [{"test_size": 100}, {"test_size": 200}],
}


@pytest.mark.parametrize("how", ["by norm", "by batch size", "by recipe", "alone", "ablation"])
@pytest.mark.parametrize("fields", ELSEWHERE.values(), ids=ELSEWHERE)
def test_runs_that_are_tested_on_other_images_are_not_compared(fields, how):
    """Whatever else tells them apart."""
    also = {
        "by norm": [{"norm": "bn"}, {"norm": "gn"}],
        "by batch size": [{"batch_size": 8}, {"batch_size": 16}],
        "by recipe": [{"recipe": "era8"}, {"recipe": "best"}],
    }.get(how, [{}, {}])
    each = [{"norm": "bn", **f, **a} for f, a in zip(fields, also, strict=True)]
    runs = [make_run(0.1 + n / 2 + seed**2 / 100, seed=seed, **one)
            for n, one in enumerate(each) for seed in range(3)]  # fmt: skip
    plan = None
    if how == "ablation":
        [(name, (first, second))] = {n: [f[n] for f in fields] for n in fields[0]}.items()
        fixed = {"recipe": "era8", "data": "cifar10", name: first}
        plan = StudyPlan(norms=("bn",), backends=("torch",), seeds=(0, 1, 2), fixed=fixed,
                         vary={name: (second,)}, one_at_a_time=True)  # fmt: skip
    found = summarize(runs, tuple(plan.vary) if plan else (), plan)
    assert [len(group.runs) for group in found.groups] == [3, 3]
    assert (found.differences, found.changes, found.effects) == ((), (), ())
    texts = sentences(found)
    shown = "data (cifar10, pets)" if "data" in fields[0] else "test size (100, 200)"
    assert f"Runs that differ in {shown} are not compared" in " ".join(texts)
    assert not any(word in text for text in texts for word in ("points above", "winner", "*"))


PLACES = ["cifar10", "shapes"]


def test_norms_are_compared_on_each_data_set():
    runs = [make_run(0.5 + seed**n / 100, norm=norm, seed=seed, data=place) for place in PLACES
            for n, norm in enumerate(("bn", "gn")) for seed in range(3)]  # fmt: skip
    found = summarize(runs, ("data",))
    assert [item.first.shared["data"] for item in found.differences] == PLACES
    assert found.changes == ()
    assert "All seeds are judged on the same images" in " ".join(sentences(found))
