"""The numbers in the README and the guide are those of the committed results, file by file.

Each claim names its page and the summary that it rests on; its text is made from the rows.
"""

import csv
import json
import math
import tomllib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from scipy import optimize, stats

ROOT = Path(__file__).parent.parent
RESNET20 = "docs/examples/resnet20.py:build"
OWN = ("torch", "native")  # the engine of kerasnorm in a race
README, GUIDE, RESULTS = "README.md", "docs/guide/README.md", "docs/results.md"


class Claim(NamedTuple):
    """A claim: its page, its study, the rows that it uses by a name of its own, and its text."""

    page: str
    study: str
    rows: dict[str, dict[str, Any]]
    text: str


def words_of(page):
    """Returns a page with single spaces between its words, wherever its lines break."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def summary_of(study):
    return json.loads((ROOT / "results" / study / "summary.json").read_text())


ROW = "{r.test:.2f} ± {r.test_std:.2f}** | {r.n} | {r.train:.2f} ± {r.train_std:.2f} | {r.size:,} |"
THREE = {norm: {"norm": norm} for norm in ("bn", "gn", "ln")}
GROUPS = {f"g{n}": {"norm": "gn", "groups": n} for n in (1, 2, 4, 8, 16)}
KERNELS = {
    f"{norm}{name}": {"norm": norm, "weight_standardization": value}
    for norm in ("bn", "gn", "ln")
    for name, value in (("plain", False), ("standard", True))
}
MATCHED = (
    "| {name} | "
    + " | ".join(
        f"{{{{{{key}}{kind}.test:.2f}}}} ± {{{{{{key}}{kind}.test_std:.2f}}}}"
        for kind in ("plain", "standard")
    )
    + " |"
)
CLAIMS = [
    *(Claim(README, "best", {"r": row}, ROW) for row in THREE.values()),
    Claim(GUIDE, "best", THREE, "{bn.test:.2f}, {gn.test:.2f} and {ln.test:.2f} %, mean of three"),
    Claim(
        RESULTS,
        "era8",
        THREE | {"ln": {"norm": "ln", "ln_affine": "element"}},
        "gives {bn.test:.2f}, {gn.test:.2f} and {ln.test:.2f}",
    ),
    Claim(
        RESULTS,
        "backends",
        {norm: {"norm": norm, "backend": "tensorflow"} for norm in THREE},
        "**TensorFlow** gives {bn.test:.2f}, {gn.test:.2f} and {ln.test:.2f} with one seed",
    ),
    Claim(
        GUIDE,
        "groups",
        GROUPS,
        "{g1.test:.1f}, {g2.test:.1f}, {g4.test:.1f}, {g8.test:.1f} and {g16.test:.1f} % with 1",
    ),
    Claim(
        GUIDE,
        "batch-size-sqrt",
        {norm: {"norm": norm} for norm in ("bn", "gn")},
        "`bn` has {bn.test:.1f} and `gn` {gn.test:.1f} %",
    ),
    *(
        Claim(README, "matched", KERNELS, MATCHED.format(name=name, key=key))
        for name, key in (("Batch", "bn"), ("Group", "gn"), ("Layer", "ln"))
    ),
]


def rows_of(claim):
    """Returns the rows of a claim, accuracies in percent, under the claim's names."""
    document = summary_of(claim.study)
    found = {}
    for name, wanted in claim.rows.items():
        matching = [g for g in document["groups"] if wanted.items() <= g.items()]
        if "backend" not in wanted:
            matching = [g for g in matching if g["backend"] == "torch"]
        (group,) = matching
        test, train = group["test_accuracy"], group["train_accuracy"]
        found[name] = SimpleNamespace(
            test=100 * test["mean"],
            test_std=100 * (test["std"] or 0),
            train=100 * train["mean"],
            train_std=100 * (train["std"] or 0),
            n=test["n"],
            size=group["parameters"],
        )
    return found


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: f"{c.study}-{c.text[:20]}")
def test_a_claim_is_what_its_rows_say(claim):
    text = claim.text.format(**rows_of(claim))
    page = words_of(claim.page)
    assert " ".join(text.split()) in page


def run_of(study, name):
    """Returns the config and the test accuracy, in percent, of a run of a study."""
    folder = ROOT / "results" / study / "runs" / name
    metrics = json.loads((folder / "metrics.json").read_text())
    config = tomllib.loads((folder / "config.toml").read_text())
    return config["train"], 100 * metrics["test_accuracy"]


def test_the_accuracies_at_each_batch_size_are_those_of_the_studies():
    ahead = {}
    guide, readme = words_of(GUIDE), words_of(README)
    for size in (2, 4, 8, 16, 32, 64, 128, 256, 512):
        study = "batch-size-smallest" if size < 8 else "batch-size-full"
        bn, gn = (
            [run_of(study, f"{norm}-torch-batch_size-{size}-s{seed}") for seed in (0, 1)]
            for norm in ("bn", "gn")
        )
        ((epochs, rate),) = {(c["epochs"], c["learning_rate"]) for c, _ in bn + gn}
        first, second = (np.array([accuracy for _, accuracy in runs]) for runs in (bn, gn))
        seeds = ", ".join(f"{points:.1f}" for points in first - second)
        row = f"| {size} | {epochs} | {rate:.4f} | {first.mean():.1f} | {second.mean():.1f} |"
        assert f"{row} {seeds} |" in guide
        ahead[size] = (first - second).mean()
    for study in ("batch-size-smallest", "batch-size-full"):
        assert {one["verdict"] for one in summary_of(study)["differences"]} == {"no verdict"}
    assert [size for size, points in ahead.items() if points < 0] == [2]
    assert f"in batches of 2 `gn` is {-ahead[2]:.1f} points ahead" in guide
    text = "`bn` is {:.1f} points ahead in batches of 4 and {:.1f} in batches of 8"
    assert text.format(ahead[4], ahead[8]) in guide
    assert f"ahead by {-ahead[2]:.1f} points in batches of 2 (two seeds)" in readme
    assert f"in batches of 4 by {ahead[4]:.1f} points" in readme


def test_what_other_widths_gain_is_what_was_measured():
    found, text = summary_of("widths"), words_of(RESULTS)
    ours, *others = (100 * group["val_accuracy"]["mean"] for group in found["groups"])
    assert f"`gn` has {ours:.2f} % (validation, three seeds)" in text
    gains = [100 * change[part] for change in found["changes"] for part in ("mean", "low", "high")]
    claim = "{:.2f} points, corrected interval {:.2f} to {:.2f}, and {:.2f}, {:.2f} to {:.2f}"
    assert claim.format(*gains) in text
    for group, other in zip(found["groups"][1:], others, strict=True):
        assert f"{other:.2f} % with {', '.join(map(str, group['widths']))}" in text
    assert {change["verdict"] for change in found["changes"]} == {"not significant"}
    assert {tuple(group["seeds"]) for group in found["groups"]} == {(0, 1, 2)}


def test_what_the_mean_of_two_poolings_gains_is_what_was_measured():
    found, text = summary_of("pooling"), words_of(RESULTS)
    [change], groups = found["changes"], found["groups"]
    assert [group["pooling"] for group in groups] == ["max", "mean"]
    assert {tuple(group["seeds"]) for group in groups} == {(0, 1, 2)}
    first, second = (100 * group["val_accuracy"]["mean"] for group in groups)
    assert f"`gn` goes from {first:.2f} to {second:.2f} % (validation, three seeds)" in text
    assert change["verdict"] == "not significant"
    gain = [100 * change[part] for part in ("mean", "low", "high")]
    claim = "not significant: {:.2f} points, corrected interval {:.2f} to {:.2f}; on the test"
    first, second = (100 * group["test_accuracy"]["mean"] for group in groups)
    assert f"{claim.format(*gain)} images it is {second - first:.2f}" in text


def test_what_bn_gains_by_recalibration_is_what_was_measured():
    means = {}
    for size in (2, 4, 8, 16, 32, 64, 128, 256, 512):
        runs = [
            json.loads(
                (ROOT / f"results/recalibrated/bn-torch-batch_size-{size}-s{seed}.json").read_text()
            )
            for seed in (0, 1)
        ]
        means[size] = [
            np.mean([100 * run[when]["accuracy"] for run in runs]) for when in ("before", "after")
        ]
        if size == 2:
            low, high = sorted(
                100 * (run["after"]["accuracy"] - run["before"]["accuracy"]) for run in runs
            )
    gains = {size: after - before for size, (before, after) in means.items()}
    guide = words_of(GUIDE)
    text = "they raise batches of 2 to {:.1f} %, by {:.1f} of the {:.1f} points that separate them"
    assert text.format(means[2][1], gains[2], means[4][0] - means[2][0]) in guide
    assert f"({low:.1f} on one seed, {high:.1f} on the other)" in guide
    found = summary_of("batch-size-smallest")["groups"]
    (gn,) = (g for g in found if g["norm"] == "gn" and g["batch_size"] == 2)
    lead = 100 * gn["test_accuracy"]["mean"] - means[2][1]
    assert f"`gn` then still leads by {lead:.1f}." in guide
    training = [
        100 * group["train_accuracy"]["mean"]
        for size in (2, 4)
        for group in found
        if group["norm"] == "bn" and group["batch_size"] == size
    ]
    assert "is {:.1f} % in batches of 2 and {:.1f} % in batches of 4".format(*training) in guide
    assert max(abs(gain) for size, gain in gains.items() if size > 2) < gains[2]


def effects(study, **wanted):
    document = summary_of(study)
    return next(e for e in document["ablation_effects"] if wanted.items() <= e.items())


def test_the_effects_of_weight_standardization_are_those_of_the_ablation():
    losses = []
    for norm, value in (("gn", False), ("bn", True)):
        first = {"norm": norm, "backend": "torch", "weight_standardization": value}
        effect = effects("ablation", field="weight_standardization", first=first)
        assert effect["n"] == 2
        losses.append(-100 * effect["mean"])
    guide, readme = words_of(GUIDE), words_of(README)
    assert f"with it `gn` is ahead by {losses[0]:.1f} points after 8 epochs of 10,000" in guide
    assert f"{losses[1]:.1f} points behind after 8 epochs of 10,000 images" in guide
    found = rows_of(Claim(GUIDE, "matched", KERNELS, ""))
    for norm in ("gn", "bn"):
        with_it, without = found[f"{norm}standard"].test, found[f"{norm}plain"].test
        assert f"{with_it:.2f} % with it and {without:.2f} % without" in guide
    behind = found["gnplain"].test - found["gnstandard"].test
    assert (
        f"ahead by {losses[0]:.1f} points after 8 epochs of 10,000 images, and behind by "
        f"{behind:.1f} after 20 of all"
    ) in readme


def test_the_interval_of_the_first_difference_is_that_of_the_study():
    document = summary_of("best")
    found = next(d for d in document["differences"] if d["first"]["norm"] == "bn")
    low, mean, high = (100 * found[name] for name in ("low", "mean", "high"))
    assert found["verdict"] == "not significant"
    guide, readme = words_of(GUIDE), words_of(README)
    assert "accuracy of `bn` minus `gn`, and minus `ln` | 3 | not shown" in guide
    # Half the width with three seeds, and with more that spread as much.
    half, spread, level = (high - low) / 2, 100 * found["std"], 0.975
    assert stats.t.ppf(1 - (1 - level) / 2, 2) * spread / math.sqrt(3) == pytest.approx(half)
    five, eight = (stats.t.ppf(1 - (1 - level) / 2, n - 1) * spread / math.sqrt(n) for n in (5, 8))
    text = f"is {mean:.2f} ± {half:.1f} points; runs that spread as much give ± {five:.1f} with"
    assert f"{text} five seeds and ± {eight:.1f} with eight" in readme
    # The true differences that are found with a probability of 80 %: noncentral t distribution.
    found = []
    for n in (3, 5, 8, 2):
        t = stats.t.ppf(1 - (1 - level) / 2, n - 1)
        least = t * spread / math.sqrt(n)
        power = partial(lambda d, t, n: stats.nct.sf(t, n - 1, d / spread * n**0.5) - 0.8, t=t, n=n)
        found.append(optimize.brentq(power, least, 1.6 * least))
    text = "is {:.1f} points with three seeds, {:.1f} with five and {:.1f} with eight. With two"
    assert f"(std {spread:.2f})" in guide
    assert text.format(*found) in guide
    assert f"it would have to be {found[3]:.1f} points" in guide
    (others,) = (d for d in document["differences"] if d["first"]["norm"] == "gn")
    assert others["verdict"] == "equivalent"


def test_the_worked_example_of_a_verdict_is_the_study():
    document = summary_of("best")
    with (ROOT / "results/best/runs.csv").open(newline="") as file:
        runs = {(row["norm"], int(row["seed"])): row for row in csv.DictReader(file)}
    guide = (ROOT / GUIDE).read_text(encoding="utf-8")
    spreads = {g["norm"]: 100 * g["test_accuracy"]["std"] for g in document["groups"]}
    for found in document["differences"]:
        first, second = found["first"]["norm"], found["second"]["norm"]
        apart = math.hypot(spreads[first], spreads[second])
        if (first, second) != ("bn", "ln"):
            assert f"({100 * found['std']:.2f}, against {apart:.2f}" in words_of(GUIDE)
        pairs = [
            100 * (float(runs[first, n]["test_accuracy"]) - float(runs[second, n]["test_accuracy"]))
            for n in range(3)
        ]
        mean, std = np.mean(pairs), np.std(pairs, ddof=1)
        cells = [f"`{first}` minus `{second}`", *(f"{value:+.2f}" for value in pairs)]
        cells += [f"{mean:+.2f} ± {std:.2f}", "{:+.2f} to {:+.2f}"]
        row = " | ".join([*cells, f"{found['p']:.3f}", found["verdict"]])
        assert f"| {row.format(100 * found['low'], 100 * found['high'])} |" in guide
        # Holm's procedure: the smallest p at 5 % / 3, the others at 5 % / 2, as the second fails.
        level = 0.05 / (3 if first == "gn" else 2)
        t = stats.t.ppf(1 - level / 2, 2)
        assert f"(t = {t:.2f})" in guide
        assert mean - t * std / math.sqrt(3) == pytest.approx(100 * found["low"])


def speeds(path):
    """Returns how many times as fast as each contender kerasnorm is, by backend, norm and name."""
    results = json.loads((ROOT / "results/bench" / path).read_text())["results"]
    rates = {(r["backend"], r["norm"], r["contender"]): np.array(r["train"]) for r in results}
    return {
        key: (np.median(own / rate), np.median(own) / max(rate))
        for key, rate in rates.items()
        for own in [rates[(*key[:2], "native")]]
    }


def test_the_speeds_of_the_readme_are_those_of_the_race():
    race, best = speeds("bench.json"), speeds("best/bench.json")

    loops = [name for backend, norm, name in best if norm == "bn" and name.startswith("loop")]
    assert len(loops) == 3
    fastest = [min(best["torch", norm, name][0] for name in loops) for norm in THREE]

    def of(found, backend, contender, which=0):
        return [found[backend, norm, contender][which] for norm in THREE]

    readme = words_of(README).replace("**", "")
    for name, ratios, digits in (
        ("`era8` | `model.fit` on torch", of(race, "torch", "stock"), 1),
        ("a plain PyTorch loop", of(race, "torch", "loop"), 1),
        ("without the recipe's dropout", of(race, "torch", "loop-channels-last"), 2),
        ("`era8` | `model.fit` on TensorFlow", of(race, "tensorflow", "stock"), 1),
        ("which ran at two speeds", of(race, "tensorflow", "stock", 1), 1),
        ("`best`, the default | `model.fit` on torch", of(best, "torch", "stock"), 1),
        ("the fastest of three hand-written PyTorch loops", fastest, 2),
        ("`best`, the default | `model.fit` on TensorFlow", of(best, "tensorflow", "stock"), 1),
    ):
        cells = " | ".join(f"{ratio:.{digits}f}" for ratio in ratios)
        assert f"{name} | {cells} |" in readme


def test_the_conversions_of_the_guide_are_those_that_were_measured():
    rows = {}
    for name in ("fold", "gn32"):
        with (ROOT / f"results/convert/{name}.csv").open(newline="") as file:
            rows[name] = [row for row in csv.DictReader(file) if not row["refused"]]
    folds = {row["network"]: (int(row["folded"]), int(row["norms"])) for row in rows["fold"]}
    some = {name: counts for name, counts in folds.items() if counts[0] < counts[1]}
    exact, rough = (
        max(float(row[key]) for row in rows["fold"])
        for key in ("difference_in_float64", "difference")
    )
    changes = [float(row["difference"]) for row in rows["gn32"]]
    growth = max(
        int(row["multiply_adds_after"]) / int(row["multiply_adds_before"]) for row in rows["gn32"]
    )
    guide = words_of(GUIDE)
    count = len(rows["gn32"])
    for text in (
        f"in {len(folds) - len(some)} of {len(folds)} networks of `keras.applications` with batch",
        ", ".join(f"in {name} {done} of {norms}" for name, (done, norms) in some.items()),
        f"at most {exact:.0e} of the largest in float64".replace("e-0", "e-"),
        f"float64, {rough:.1e} in float32".replace("e-0", "e-"),
        f"All {count} networks of `keras.applications` with norms that were tried convert",
        f"multiply-adds grow by at most {100 * (growth - 1):.1f} %",
        f"outputs change by {min(changes):.1f} to {max(changes):.1f} times the largest output",
    ):
        assert text in guide


def test_a_converted_model_has_the_accuracy_that_was_measured():
    before = rows_of(Claim(GUIDE, "best", THREE, ""))["bn"].test
    ends = {}
    for groups in (2, 32):
        found = [
            json.loads((ROOT / f"results/convert/bn-torch-s{seed}-gn{groups}.json").read_text())
            for seed in (0, 1, 2)
        ]
        assert {one["n"] for one in found} == {10_000}
        accuracies = [100 * one["accuracy"] for one in found]
        ends[groups] = f"between {min(accuracies):.1f} and {max(accuracies):.1f} %"
    guide, readme = words_of(GUIDE), words_of(README)
    text = f"fall from {before:.1f} % to {ends[2]} with 2 groups, and to {ends[32]} with 32"
    assert text in guide
    assert f"fall from {before:.1f} % to {ends[2].split()[3]} % or less" in readme


def test_the_costs_of_the_guide_are_those_of_the_race():
    def own(study):
        results = json.loads((ROOT / "results" / study / "bench.json").read_text())["results"]
        found = {r["norm"]: r for r in results if (r["backend"], r["contender"]) == OWN}
        return [found[norm] for norm in THREE]

    era8, guide = own("bench"), words_of(GUIDE)
    train, predict = ([one[what] for one in era8] for what in ("train", "predict"))
    assert max(min(one) for one in train) < min(max(one) for one in train)  # the ranges overlap
    bn, gn, ln = predict
    assert max(gn) < min(bn + ln)
    for rates, text in (
        (train, "{:,.0f}, {:,.0f} and {:,.0f} images per second in training"),
        (predict, "{:,.0f}, {:,.0f} and {:,.0f} in prediction, where"),
        (
            [one["predict"] for one in own("bench/best")],
            "With `best` prediction runs at {:,.0f}, {:,.0f} and {:,.0f}",
        ),
        ([one["peak_mib"] for one in era8], "peak memory {:.0f}, {:.0f} and {:.0f} MiB"),
    ):
        assert text.format(*(np.median(one) for one in rates)) in guide


def test_the_speeds_of_other_networks_are_those_of_the_race():
    page = (ROOT / "docs/your-network.md").read_text(encoding="utf-8")
    with (ROOT / "results/bench/networks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 28
    for torch, tensorflow in zip(rows[::2], rows[1::2], strict=True):
        assert torch["network"] == tensorflow["network"]
        name = torch["network"].removeprefix("keras:").replace(RESNET20, "ResNet-20")
        cells = [
            "{ratio} ({least} to {largest})".format(**row) if row["ratio"] else "not built by Keras"
            for row in (torch, tensorflow)
        ]
        starts = (f"| {name} |", f"| {name},")
        (line,) = (line for line in page.splitlines() if line.startswith(starts))
        assert line.endswith(f" | {cells[0]} | {cells[1]} |")


def test_the_accuracies_of_resnet20_are_those_of_its_studies():
    found = {}
    for study in ("resnet20", "resnet20-group-size", "resnet20-standardized"):
        document = summary_of(study)
        found |= {(study, group["norm"]): group for group in document["groups"]}
        assert {item["verdict"] for item in document["differences"]} <= {"no verdict"}
    bn, gn, ln, frn = (
        found["resnet20", name] for name in ("bn", "gn", "ln", "docs/examples/frn.py:FRN")
    )
    eight = found["resnet20-group-size", "gn"]
    standardized = found["resnet20-standardized", "gn"]
    assert {group["val_accuracy"]["n"] for group in found.values()} == {2}
    page, guide = words_of("docs/your-network.md"), words_of(GUIDE)
    rows = {
        "| `bn`": bn,
        "| `gn`, 32 groups: instance normalization in 13 of 19 norms": gn,
        "| `gn`, 32 groups, weight standardization": standardized,
        "| `gn`, groups of 8 channels": eight,
        "| `ln`": ln,
        "| `frn`": frn,
    }
    for start, group in rows.items():
        cells = [
            "{mean:.2f} ± {std:.2f}".format(
                **{key: 100 * group[name][key] for key in ("mean", "std")}
            )
            for name in ("val_accuracy", "test_accuracy")
        ]
        assert f"{start} | {cells[0]} | {cells[1]} |" in page
    bn, gn, eight, standardized = (
        100 * group["val_accuracy"]["mean"] for group in (bn, gn, eight, standardized)
    )
    assert f"`bn` is {bn - gn:.1f} points of validation accuracy ahead of `gn` after five" in guide
    assert f"32 groups are {gn - eight:.1f} points ahead of groups of eight channels" in guide
    assert f"and by {standardized - gn:.1f} in ResNet-20 after five" in guide


def test_the_accuracies_of_resnet20_after_20_epochs_are_those_of_its_study():
    groups = {group["norm"]: group for group in summary_of("resnet20-full")["groups"]}
    test = [100 * groups[norm]["test_accuracy"]["mean"] for norm in ("bn", "gn", "ln")]
    text = "test accuracies are {:.2f} % with `bn`, {:.2f} with `gn` and {:.2f} with `ln` (one seed"
    assert text.format(*test) in words_of("docs/your-network.md")
    bn, gn = (100 * groups[norm]["val_accuracy"]["mean"] for norm in ("bn", "gn"))
    assert f"and {bn - gn:.1f} after 20 (one seed)" in words_of(GUIDE)


def test_the_accuracies_of_resnet20_in_batches_of_four_are_those_of_its_study():
    document = summary_of("resnet20-batch4")
    assert {item["verdict"] for item in document["differences"]} == {"no verdict"}
    found = {group["norm"]: 100 * group["test_accuracy"]["mean"] for group in document["groups"]}
    bn, gn, ln, frn = (
        f"{found[norm]:.1f}" for norm in ("bn", "gn", "ln", "docs/examples/frn.py:FRN")
    )
    page = words_of("docs/your-network.md")
    text = f"{bn} % with `bn`, {gn} with `gn`, {ln} with `ln` and {frn} with `frn` (two seeds"
    assert text in page


def test_32_groups_are_instance_normalization_in_13_norms_of_resnet20():
    path = ROOT / "results/resnet20/runs/resnet20-gn-torch-s0/model.keras"
    layers = keras.saving.load_model(path, compile=False).layers
    norms = [one for one in layers if isinstance(one, keras.layers.GroupNormalization)]
    assert sum(one.groups == one.gamma.shape[0] for one in norms) == 13
    assert len(norms) == 19


CORRUPTIONS = {
    "noise": "gaussian-noise",
    "blur": "gaussian-blur",
    "contrast": "contrast",
    "brightness": "brightness",
}


def losses_of(study):
    """Returns the points that each model loses to each corruption, and on average: by norm."""
    document = json.loads((ROOT / "results" / study / "robustness.json").read_text())
    found = {}
    for group in document:
        lost = {
            name: np.array(
                [
                    100 * (model["clean"] - np.mean([*model["corrupted"][key].values()]))
                    for model in group["models"]
                ]
            )
            for name, key in CORRUPTIONS.items()
        }
        found[group["norm"]] = lost | {"all four": np.mean([*lost.values()], axis=0)}
    return found


def test_the_losses_to_each_corruption_are_those_of_the_measurements():
    best, plain = losses_of("robustness"), losses_of("robustness-matched")
    guide = words_of(GUIDE)
    for name in (*CORRUPTIONS, "all four"):
        cells = [f"{best[norm][name].mean():.1f}" for norm in THREE]
        cells.append(", ".join(f"{d:.1f}" for d in best["bn"][name] - best["gn"][name]))
        cells += [f"{plain[norm][name].mean():.1f}" for norm in THREE]
        assert f"| {name} | {' | '.join(cells)} |" in guide
    noise = best["bn"]["noise"] - best["gn"]["noise"]
    assert min(noise) < 0 < max(noise)
    low, high = stats.ttest_1samp(noise, 0).confidence_interval()
    assert low < 0 < high  # without any correction
    difference = plain["bn"]["noise"].mean() - plain["gn"]["noise"].mean()
    assert f"changes its sign from seed to seed, and is {difference:.1f} points" in guide


def test_the_losses_on_corrupted_images_are_those_of_the_measurement():
    document = json.loads((ROOT / "results/robustness/robustness.json").read_text())
    found = {group["norm"]: group for group in document}
    assert {*found} == {"bn", "gn", "ln"}
    assert {len(group["models"]) for group in document} == {3}
    assert {model["images"] for group in document for model in group["models"]} == {10_000}
    faded = {norm: 100 * found[norm]["corrupted"]["contrast"]["5"]["mean"] for norm in found}
    bn = {name: 100 * found["bn"][name]["mean"] for name in ("clean", "mixed", "one_class")}
    for name in ("contrast", "gaussian-blur"):
        mildest = [100 * group["corrupted"][name]["1"]["mean"] for group in document]
        assert max(mildest) - min(mildest) < 1
    for norm in ("gn", "ln"):
        clean, mixed, one_class = (found[norm][name]["mean"] for name in bn)
        assert clean == mixed == one_class
    blurred = {norm: 100 * found[norm]["corrupted"]["gaussian-blur"]["5"]["mean"] for norm in found}
    contrast = "`bn` classifies {bn:.1f} % correctly, `gn` {gn:.1f} and `ln` {ln:.1f} %"
    batches = "`bn` keeps {mixed:.1f} of {clean:.1f} % in mixed batches and "
    guide, readme = words_of(GUIDE), words_of(README)
    assert contrast.format(**faded) in readme
    more = {}
    for norm in ("gn", "ln"):
        interval = found["bn"]["differences"][found[norm]["label"]]["interval"]
        more[norm] = {part: f"{100 * interval[part]:.1f}" for part in ("mean", "low", "high")}
    first, second = more["gn"], more["ln"]
    assert (
        f"`bn` loses {first['mean']} points more than `gn` (three seeds, corrected interval "
        f"{first['low']} to {first['high']})"
    ) in readme
    for text in (
        (
            f"{first['mean']} points more than `gn` (corrected interval {first['low']} to "
            f"{first['high']}) and {second['mean']} more than `ln` ({second['low']} to "
            f"{second['high']})"
        ),
        "(severity 5) " + contrast.format(**faded),
        "At the strongest blur it is {bn:.1f} % against {gn:.1f} and {ln:.1f} %".format(**blurred),
        f"over four corruptions `bn` loses {first['mean']} points more than `gn`, three seeds",
        f"shown: +{first['mean']} and +{second['mean']}, intervals above zero",
        (batches + "{one_class:.1f} % in batches of one class").format(**bn),
    ):
        assert text in guide
