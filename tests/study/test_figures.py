"""The pictures of a study: what they show equals the summary's numbers."""

import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers.coarse import coarse_figures  # noqa: F401
from helpers.studies import RUNS, ablation_runs, make_run, summarize_ablation
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

from kerasnorm.norms import NORMS
from kerasnorm.plots.style import text_width
from kerasnorm.study.figures import (
    against_figure,
    curves_figure,
    draw_study,
    effects_figure,
    file_name,
    final_figure,
    numeric_axes,
)
from kerasnorm.study.plan import StudyPlan
from kerasnorm.study.sentences import sentences
from kerasnorm.study.summary import summarize
from kerasnorm.study.tables import effect_table, group_table


def sweep(**fields):
    runs = [
        make_run(0.5 + 0.01 * np.log2(b) + 0.01 * seed, norm=n, batch_size=b, seed=seed, **fields)
        for n in ("bn", "gn")
        for b in (2, 8, 32)
        for seed in (0, 1)
    ]
    return summarize(runs, ("batch_size",))


@pytest.mark.parametrize("measure", ["accuracy", "loss"])
def test_curves_are_means_with_their_std_shaded(tmp_path, measure):
    summary = summarize(RUNS)
    groups, picture = summary.groups, curves_figure(summary, measure)
    figure = picture.figure
    axes = figure.axes[1]
    bn = next(line for line in axes.lines if to_hex(line.get_color()) == NORMS["bn"].color.lower())
    final = np.mean([run.history[-1][f"test_{measure}"] for run in groups[0].runs.values()])
    assert np.isclose(bn.get_ydata()[-1], final * (100 if measure == "accuracy" else 1))
    shades = [c for c in axes.collections if isinstance(c, PolyCollection)]
    assert len(shades) == 3  # the group of one seed has none
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["BN (n 3)", "GN (n 3)", "LN, affine element (n 2)", "LN, affine channel (n 1)"]
    assert picture.save(tmp_path) == tmp_path / f"{measure}.png"


def test_the_final_figure_has_a_dot_for_every_seed():
    runs = [make_run(a, norm="bn", epochs=20, seed=s) for s, a in enumerate((0.81, 0.83))]
    figure = final_figure(summarize(runs)).figure
    points = sorted(x for line in figure.axes[0].lines if line.get_marker() == "o"
                    for x in line.get_xdata())  # fmt: skip
    assert np.allclose(points, [81, 83])
    diamonds = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert np.allclose(diamonds, [81.9])
    assert "published" in figure.axes[0].get_xlabel()


@pytest.mark.parametrize("accuracies", [(0.81,), (0.81, 0.81), (0.81, 0.83)])
def test_the_final_figure_names_an_interval_where_it_draws_one(accuracies):
    runs = [make_run(a, norm="bn", seed=s) for s, a in enumerate(accuracies)]
    label = final_figure(summarize(runs)).figure.axes[0].get_xlabel()
    assert ("95 % interval" in label) == (len({*accuracies}) > 1)


def test_error_is_shown_against_the_batch_size():
    found = sweep()
    assert numeric_axes(found) == ["batch_size"]
    axes = against_figure(found, "batch_size").figure.axes[0]
    assert axes.get_title() == "TEST ERROR AGAINST BATCH SIZE"
    means = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert len(means) == 2
    assert np.allclose(means[0].get_ydata(), [48.5, 46.5, 44.5])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "8", "32"]


def test_a_norm_that_does_not_read_the_field_is_a_level_line():
    runs = [make_run(0.5 + g / 100, norm="gn", groups=g) for g in (1, 2, 4, 16)]
    axes = against_figure(summarize([*runs, make_run(0.6, norm="bn")]), "groups").figure.axes[0]
    assert axes.get_title() == "TEST ACCURACY AGAINST GROUPS"
    level = [line for line in axes.lines if to_hex(line.get_color()) == NORMS["bn"].color.lower()]
    assert np.allclose(level[0].get_ydata(), [60, 60])
    assert np.allclose(level[0].get_xdata(), [1, 16])


@pytest.mark.parametrize("values", [(-1, 0), (-1, 0, 4), (0, 8), (-1, 2, 16)])
def test_a_field_is_drawn_whose_values_are_not_all_above_0(values):
    """A `translate` of -1 is an eighth of the image."""
    found = summarize([make_run(0.5 + t / 100, norm="bn", translate=t) for t in values])
    assert numeric_axes(found) == ["translate"]
    (axes,) = against_figure(found, "translate").figure.axes
    means = [line for line in axes.lines if len(line.get_xdata()) == len(values)]
    assert np.allclose(means[0].get_xdata(), values)
    assert np.allclose(means[0].get_ydata(), [50 + t for t in values])


def test_words_are_no_numeric_axis():
    assert numeric_axes(summarize(RUNS)) == []
    runs = [make_run(0.5, norm="bn", residual=r) for r in (True, False)]
    assert numeric_axes(summarize(runs)) == []


@pytest.mark.long
def test_a_study_is_drawn_whole(tmp_path):
    images = np.zeros((5, 8, 8, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = draw_study(summarize(RUNS), tmp_path / "figures", lambda run: images)
    assert {path.name for path in paths} == {
        *("accuracy.png", "loss.png", "final.png"),
        *(f"{kind}-{name}.png" for kind in ("confusion", "misclassified")
          for name in ("bn", "gn", "ln-element", "ln-channel")),
    }  # fmt: skip
    names = {path.name for path in draw_study(sweep(), tmp_path / "sweep", lambda run: None)}
    assert "against-batch_size.png" in names
    assert not any("misclassified" in name for name in names)
    assert "confusion-bn-2.png" in names


@pytest.mark.long
def test_confusions_and_mistakes_say_of_which_variant_and_seed_they_are(tmp_path):
    runs = [
        make_run(0.5, norm=norm, data=data, seed=seed)
        for norm in ("bn", "gn")
        for data in ("/a/old/pets", "/a/new/pets")
        for seed in (3, 4)
    ]
    summary = summarize(runs)
    images = np.zeros((5, 8, 8, 3), np.uint8)
    found = draw_study(summary, tmp_path, lambda run: images)
    for norm in ("bn", "gn"):
        for data in ("old", "new"):
            label = f"{norm.upper()}, data {data}/pets, seed 3"
            for kind in ("confusion", "misclassified"):
                picture = found[tmp_path / f"{kind}-{norm}-{data}-pets.png"]
                assert picture.figure.get_suptitle().endswith(f"\n{label}")
                assert label in picture.title
    legend = curves_figure(summary, "loss").figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()][:2] == [
        "BN, data old/pets (n 2)",
        "BN, data new/pets (n 2)",
    ]
    names = [tick.get_text() for tick in final_figure(summary).figure.axes[0].get_yticklabels()]
    assert names == [f"{n}, data {d}/pets" for n in ("BN", "GN") for d in ("old", "new")]


@pytest.mark.long
def test_of_many_variants_the_first_of_each_norm_is_shown(tmp_path):
    runs = [make_run(0.5, norm=n, batch_size=b) for n in ("bn", "gn") for b in range(2, 9)]
    found = draw_study(summarize(runs), tmp_path, lambda run: None)
    shown = [path.stem for path in found if path.stem.startswith("confusion")]
    assert shown == ["confusion-bn-2", "confusion-gn-2"]
    assert "12 other variants" in found[tmp_path / "confusion-bn-2.png"].caption


def test_variants_differ_in_color():
    summary = sweep()
    axes = curves_figure(summary, "accuracy").figure.axes[0]
    assert len({to_hex(line.get_color()) for line in axes.lines}) == 6
    runs = [
        make_run(0.5, norm="bn", batch_size=b, dropout=d) for b in (2, 8) for d in (0.0, 0.1, 0.2)
    ]
    axes = against_figure(summarize(runs), "batch_size").figure.axes[0]
    assert len({to_hex(line.get_color()) for line in axes.lines}) == 3


def test_an_interval_stays_in_the_axes_and_an_arrow_says_that_it_goes_on():
    runs = [make_run(a, norm="bn", seed=s) for s, a in enumerate((0.5, 0.6))]  # 0 to 100
    runs += [make_run(a, norm="gn", seed=s) for s, a in enumerate((0.5, 0.5))]
    axes = final_figure(summarize(runs)).figure.axes[0]
    low, high = axes.get_xlim()
    assert 0 <= low < 50
    assert 60 < high <= 100
    assert all(low <= x <= high for line in axes.lines for x in line.get_xdata())
    arrows = [line for line in axes.lines if line.get_marker() in ("<", ">")]
    assert [(line.get_marker(), line.get_ydata()[0]) for line in arrows] == [("<", 0)]
    assert "; arrow: beyond" in axes.get_xlabel()


def test_an_interval_ends_at_100_percent():
    # By its t-interval 99.5 ± 1.24 points.
    runs = [make_run(a, norm="bn", seed=s) for s, a in enumerate((0.99, 0.995, 1.0))]
    axes = final_figure(summarize(runs)).figure.axes[0]
    line = next(line for line in axes.lines if len(line.get_xdata()) == 2)
    assert np.allclose(line.get_xdata(), [98.258, 100], atol=1e-3)
    assert "arrow" not in axes.get_xlabel()
    assert "[98.26, 100.00]" in group_table(summarize(runs)).rows[0][2]


def drawn_band(axes):
    """The lowest and the highest end of all bands in axes."""
    boxes = [c.get_paths()[0].get_extents() for c in axes.collections
             if isinstance(c, PolyCollection)]  # fmt: skip
    return min(box.y0 for box in boxes), max(box.y1 for box in boxes)


@pytest.mark.parametrize("accuracies", [(0.0, 0.0, 0.1), (0.9, 1.0, 1.0)])
@pytest.mark.parametrize("name", ["batch_size", "dropout", "groups"])
def test_bands_end_where_no_share_can_be(name, accuracies):
    """Mean and std of the three seeds go beyond."""
    values = {"batch_size": (2, 8), "dropout": (0.1, 0.2), "groups": (2, 4)}[name]
    runs = [make_run(accuracy, norm=norm, seed=seed, **{name: value}) for norm in ("bn", "gn")
            for value in values for seed, accuracy in enumerate(accuracies)]  # fmt: skip
    found = summarize(runs, (name,))
    (against,) = against_figure(found, name).figure.axes
    for axes in (against, curves_figure(found, "accuracy").figure.axes[1]):
        low, high = drawn_band(axes)
        assert 0 <= low < high <= 100


def test_intervals_that_fit_are_shown_whole():
    # Three seeds, std 1, t(2) = 4.303: 60 ± 2.48 points.
    runs = [make_run(a, norm="bn", seed=s) for s, a in enumerate((0.59, 0.60, 0.61))]
    axes = final_figure(summarize(runs)).figure.axes[0]
    line = next(line for line in axes.lines if len(line.get_xdata()) == 2)
    assert np.allclose(line.get_xdata(), [57.516, 62.484], atol=1e-3)
    assert axes.get_xlim()[0] < 57.5 < 62.5 < axes.get_xlim()[1]
    assert "arrow" not in axes.get_xlabel()


def test_ablation_effects_have_a_panel_per_norm_and_a_dot_per_seed(tmp_path):
    picture = effects_figure(summarize_ablation())
    figure = picture.figure
    assert [axes.get_title() for axes in figure.axes] == ["BN", "GN"]
    for axes, norm in zip(figure.axes, ("bn", "gn"), strict=True):
        data = [line for line in axes.lines if line.get_marker() == "o"]
        assert {to_hex(line.get_color()) for line in data} == {NORMS[norm].color.lower()}
        assert any(np.allclose(line.get_xdata(), 0) for line in axes.lines)
    bn = figure.axes[0]
    assert [text.get_text() for text in bn.get_yticklabels()][3] == "optimizer adamw → sgd"
    dots = [line for line in bn.lines if line.get_marker() == "o" and line.get_ydata()[0] == 3]
    assert np.allclose(dots[0].get_xdata(), [-0.4, -0.2, -0.3])
    assert "-0.30" in [text.get_text() for text in bn.texts]
    assert "difference in test accuracy" in figure.axes[1].get_xlabel()
    assert picture.save(tmp_path).is_file()


def test_variants_without_a_base_have_files_of_their_own():
    plan = StudyPlan(
        norms=("bn",),
        backends=("torch",),
        seeds=(0,),
        one_at_a_time=True,
        vary={"epochs": (2,), "cutout_size": (2,), "batch_size": (2,)},
        fixed={"recipe": "era8", "data": "cifar10"},
    )
    runs = [
        replace(make_run(0.5, norm="bn"), config=config)
        for config in list(plan.configs().values())[1:]
    ]
    summary = summarize(runs, tuple(plan.vary), plan)
    assert len({file_name(group, summary) for group in summary.shown_groups}) == 3


def test_the_intervals_of_effects_are_those_of_the_table():
    """An interval that is not corrected would exclude zero where the verdict is open."""
    summary = summarize_ablation()
    axes_of = dict(zip(("bn", "gn"), effects_figure(summary).figure.axes, strict=True))
    assert "corrected interval" in axes_of["gn"].get_xlabel()
    for norm, axes in axes_of.items():
        lines = [line for line in axes.lines if line.get_linewidth() == 1.2][1:]  # without the zero
        drawn = {line.get_ydata()[0]: line.get_xdata() for line in lines}
        effects = [item for item in summary.effects if item.base.norm == norm]
        for place, item in enumerate(effects):
            if len({round(value, 9) for value in item.values}) == 1:
                assert place not in drawn
                continue
            ends = 100 * np.array([item.interval.low, item.interval.high])
            assert np.allclose(drawn[place], np.clip(ends, *axes.get_xlim()))
    runs = [run for run in ablation_runs() if run.config.train.seed < 2]
    assert "interval" not in effects_figure(summarize_ablation(runs)).figure.axes[1].get_xlabel()


def test_a_ruinous_choice_leaves_the_panel_as_an_arrow():
    runs = [r for r in ablation_runs() if r.config.model.norm == "bn" and r.config.train.seed < 1]
    axes = effects_figure(summarize_ablation(runs)).figure.axes[0]
    assert "arrow" not in axes.get_xlabel()
    assert "interval" not in axes.get_xlabel()  # one seed has none
    ruined = [r for r in runs if r.config.train.optimizer == "sgd"]
    ruined[0].metrics["test_accuracy"] = 0.1
    axes = effects_figure(summarize_ablation(runs)).figure.axes[0]
    assert axes.get_xlabel().endswith("arrow: beyond")
    assert axes.get_xlim()[0] > -5
    arrows = [line for line in axes.lines if line.get_marker() == "<"]
    assert [line.get_ydata()[0] for line in arrows] == [0]
    assert "-70.00" in [text.get_text() for text in axes.texts]


@pytest.mark.long
def test_in_an_ablation_only_the_base_has_curves(tmp_path):
    found = summarize_ablation()
    names = {path.name for path in draw_study(found, tmp_path, lambda run: None)}
    assert names == {
        *("ablation.png", "accuracy.png", "loss.png", "final.png", "against-dropout.png"),
        *("confusion-bn.png", "confusion-gn.png"),
    }
    axes = against_figure(found, "dropout").figure.axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata()) == 4]
    assert len(lines) == 2
    assert np.allclose(lines[0].get_xdata(), [0, 0.1, 0.2, 0.3])
    assert np.allclose(lines[0].get_ydata(), [81, 80, 80, 80])


@pytest.mark.long
def test_what_cannot_be_drawn_again_is_kept(tmp_path):
    images = np.zeros((5, 8, 8, 3), np.uint8)
    first = draw_study(summarize(RUNS), tmp_path, lambda run: images)
    (tmp_path / "against-dropout.png").touch()  # of an earlier plan
    (tmp_path / "misclassified-rms.png").touch()
    (tmp_path / "photo.png").touch()  # of the user
    before = {path: path.read_bytes() for path in first if "misclassified" in path.name}
    assert len(before) == 4
    again = draw_study(summarize(RUNS), tmp_path, lambda run: None)
    assert {path: path.read_bytes() for path in before} == before
    assert {*again} == {*first}
    caption = again[tmp_path / "misclassified-bn.png"].caption
    assert caption == "Drawn by an earlier report; the images are not at hand now."
    names = {path.name for path in tmp_path.iterdir()} - {path.name for path in first}
    assert names == {"misclassified-rms.png", "photo.png"}
    draw_study(summarize(RUNS), tmp_path, lambda run: images)
    names = {path.name for path in tmp_path.iterdir()} - {path.name for path in first}
    assert names == {"photo.png"}


@pytest.mark.parametrize(
    "values", [(0.0, 1e-4, 1e-3, 0.1), (0.0, 0.1, 0.5), (2, 4, 256), (0.0, 1e-6, 1.0)], ids=str
)
def test_the_values_of_an_axis_stand_apart(values):
    runs = [make_run(0.5, norm="bn", optimizer="adamw", weight_decay=v) for v in values]
    figure = against_figure(summarize(runs), "weight_decay").figure
    figure.canvas.draw()
    axes = figure.axes[0]
    assert [float(text.get_text()) for text in axes.get_xticklabels()] == list(values)
    boxes = [text.get_window_extent() for text in axes.get_xticklabels()]
    assert all(box.x1 < after.x0 for box, after in pairwise(boxes))


def test_the_numbers_of_a_figure_are_rounded_as_those_of_its_table():
    """Means of two seeds on 10,000 images lie halfway between two numbers every other time."""
    runs = [
        make_run(count / 10_000, norm=norm, seed=seed)
        for norm, counts in {"bn": (7042, 7041), "gn": (5709, 5710), "ln": (8255, 8256)}.items()
        for seed, count in enumerate(counts)
    ]
    summary = summarize(runs)
    drawn = [text.get_text() for text in final_figure(summary).figure.axes[0].texts]
    assert drawn == [row[2].split()[0] for row in group_table(summary).rows]
    summary = summarize_ablation()
    axes = effects_figure(summary).figure.axes
    drawn = [text.get_text() for panel in axes for text in panel.texts]
    assert drawn == [row[7] for row in effect_table(summary).rows]


def test_dots_at_the_ends_of_the_axis_are_whole():
    accuracies = {"bn": (1.0, 1.0, 0.98), "ln": (0.0, 0.0, 0.02)}
    runs = [make_run(a, norm=n, seed=s) for n, found in accuracies.items()
            for s, a in enumerate(found)]  # fmt: skip
    axes = final_figure(summarize(runs)).figure.axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [sorted(line.get_xdata()) for line in dots] == [[98, 100, 100], [0, 0, 2]]
    assert not any(line.get_clip_on() for line in dots)


def test_long_values_that_begin_alike_are_told_apart():
    """All ten widths fit into no label, but what differs must be seen."""
    base = (16, 16, 12, 32, 32, 32, 16, 32, 32, 32)
    plan = StudyPlan(
        norms=("bn",),
        backends=("torch",),
        seeds=(0,),
        one_at_a_time=True,
        vary={"widths": ((*base[:-1], 64), (*base[:-1], 48), (*base[:5], 48, *base[6:]))},
        fixed={"recipe": "best", "data": "cifar10", "widths": base},
    )
    run = make_run(0.5, norm="bn")
    runs = [replace(run, config=config) for config in plan.configs().values()]
    summary = summarize(runs, tuple(plan.vary), plan)
    [axes] = effects_figure(summary).figure.axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert len(set(labels)) == 3
    assert max(map(text_width, labels)) <= 3.1  # inches, of eight
    effects = [text for text in sentences(summary) if "widths" in text]
    assert len(effects) == len({text.partition(":")[0] for text in effects}) == 3
