"""The sentences of a study."""

import dataclasses
import math

import numpy as np
import pytest
from helpers.studies import make_run

from kerasnorm.study.plan import StudyPlan
from kerasnorm.study.sentences import sentences
from kerasnorm.study.summary import Failure, summarize


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
