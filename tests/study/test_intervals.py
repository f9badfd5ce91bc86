"""Intervals and corrected comparisons against printed tables and worked examples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kerasnorm.study.intervals import Interval, Verdict, compare, image_error

# Two-sided 95 % points of Student's t, as every statistics book prints them.
TABLED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042}
SAMPLES = st.lists(
    st.lists(st.floats(-0.125, 0.125, width=32), min_size=1, max_size=5), min_size=1, max_size=6
)


@pytest.mark.parametrize(("freedom", "quantile"), TABLED.items())
def test_half_the_interval_is_a_tabled_quantile_times_the_standard_error(freedom, quantile):
    values = [0.0] * freedom + [1.0]
    found = Interval.of(values)
    error = found.std / math.sqrt(freedom + 1)
    assert round((found.high - found.mean) / error, 3) == quantile
    assert math.isclose(found.high - found.mean, found.mean - found.low)


def test_an_interval_has_mean_and_std():
    found = Interval.of([0.81, 0.83])
    assert found.n == 2
    assert math.isclose(found.mean, 0.82)
    assert math.isclose(found.std, 0.02 / math.sqrt(2))
    assert math.isclose(found.high - 0.82, 12.7062047 * 0.01, rel_tol=1e-6)


def test_one_value_has_no_interval_and_none_is_an_error():
    alone = Interval.of([0.5])
    assert (alone.n, alone.mean, alone.std, alone.low, alone.high) == (1, 0.5, None, None, None)
    with pytest.raises(ValueError, match="at least one"):
        Interval.of([])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_an_interval_of_shares_ends_at_0_and_1(values):
    """Where it is cut off it is the one of scipy that is shorter."""
    cut, whole = Interval.of(values, within=(0.0, 1.0)), Interval.of(values)
    assert (cut.n, cut.mean, cut.std) == (whole.n, whole.mean, whole.std)
    assert (cut.low is None) == (whole.low is None)
    if cut.low is not None:
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        ends = stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
        assert [cut.low, cut.high] == pytest.approx(np.clip(ends, 0, 1), abs=1e-9)


def spread(mean: float, std: float) -> list[float]:
    """Three values of this mean and sample standard deviation."""
    return [mean - std, mean, mean + std]


def t_of(p: float) -> float:
    """The t whose two-sided p with 2 degrees of freedom is p, by its closed form."""
    inside = 1 - p  # = t / sqrt(t^2 + 2)
    return inside * math.sqrt(2 / (1 - inside**2))


def test_the_levels_are_those_of_holms_procedure():
    # Holm 1979: p = 0.01, 0.04, 0.03 are compared with 0.05 / 3, 0.05 / 1 and 0.05 / 2.
    samples = [spread(0.01 * t_of(p) / math.sqrt(3), 0.01) for p in (0.01, 0.04, 0.03)]
    first, second, third = compare(samples)
    assert [one.p for one in (first, second, third)] == pytest.approx([0.03, 0.06, 0.06], rel=1e-6)
    assert first.interval.is_clear
    # 0.03 > 0.025 ends the procedure: 0.04 is not significant though it is below 0.05.
    assert not third.interval.is_clear
    assert not second.interval.is_clear
    half = (third.interval.high - third.interval.low) / 2
    assert half == pytest.approx(t_of(0.025) * 0.01 / math.sqrt(3), rel=1e-6)


def test_one_comparison_is_not_corrected():
    [one] = compare([[0.01, 0.02, 0.04]])
    assert one.interval == Interval.of([0.01, 0.02, 0.04])


@given(SAMPLES)
def test_an_interval_excludes_zero_if_and_only_if_p_is_at_most_5_percent(samples):
    for values, one in zip(samples, compare(samples), strict=True):
        assert one.interval.n == len(values)
        if one.p is None:
            assert len(values) < 3 or max(values) - min(values) < 1e-12
            assert (one.interval.low, one.interval.high) == (None, None)
        elif abs(one.p - 0.05) > 1e-9 and one.interval.std > 1e-9:
            assert one.interval.is_clear == (one.p < 0.05)


@given(SAMPLES)
def test_a_further_comparison_narrows_no_interval(samples):
    before = compare(samples)
    after = compare([*samples, [0.0, 0.1, -0.1]])
    for one, other in zip(before, after, strict=False):
        assert other.p is None or other.p >= one.p - 1e-12
        if other.interval.low is not None:
            assert other.interval.low <= one.interval.low + 1e-12


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.02], Verdict.TOO_FEW),
        ([0.02, 0.02], Verdict.TOO_FEW),
        ([0.02, 0.021, 0.022], Verdict.DIFFERENT),
        ([0.002, 0.0021, 0.0022], Verdict.EQUIVALENT),  # significant, but too small to matter
        ([-0.0005, 0.0, 0.0005], Verdict.EQUIVALENT),
        ([-0.02, 0.0, 0.02], Verdict.OPEN),
        ([0.02, 0.02, 0.02], Verdict.TOO_FEW),
        ([0.0, 0.0, 0.0], Verdict.TOO_FEW),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(values, verdict):
    [one] = compare([values])
    assert one.verdict(0.005) is verdict


@given(
    correct=st.lists(st.integers(0, 10), min_size=2, max_size=10),
    more=st.integers(-3, 3),
    images=st.sampled_from([13, 60, 10_000]),
    margin=st.sampled_from([0.005, 0.5]),
)
def test_the_same_difference_on_every_seed_is_no_finding(correct, more, images, margin):
    """Accuracies are whole numbers of images, which floating point does not subtract exactly."""
    same = [(number + more) / images - number / images for number in correct]
    other = [0.01, 0.02, 0.04]
    found, beside = compare([same, other])
    assert found.verdict(margin) is Verdict.TOO_FEW
    assert found.p is None
    assert found.interval == Interval(len(same), found.interval.mean, 0.0)
    assert math.isclose(found.interval.mean, more / images, abs_tol=1e-12)
    assert beside == compare([other])[0]


@given(SAMPLES, st.lists(st.floats(-0.1, 0.1), min_size=1, max_size=2))
def test_what_gets_no_verdict_costs_the_others_nothing(samples, few):
    """Too few differences are not tested, so that no other is corrected for them."""
    *others, last = compare([*samples, few])
    assert others == compare(samples)
    assert (last.p, last.interval.low, last.verdict(1.0)) == (None, None, Verdict.TOO_FEW)


@given(SAMPLES, st.sampled_from([0.0, 0.005, 0.05]))
def test_equivalent_is_what_lies_within_the_margin_corrected_for_all(samples, margin):
    """By hand: mean ± t(1 - 2.5 % / m, n - 1) * std / sqrt(n) for all m that are tested."""
    found = compare(samples)
    count = sum(len(values) > 2 and max(values) - min(values) >= 1e-12 for values in samples)
    for values, one in zip(samples, found, strict=True):
        n = len(values)
        if n < 3 or max(values) - min(values) < 1e-12:
            assert one.verdict(margin) is Verdict.TOO_FEW
            continue
        half = stats.t.ppf(1 - 0.025 / count, n - 1) * stats.sem(values)
        farthest = max(half - np.mean(values), np.mean(values) + half)
        if abs(farthest - margin) > 1e-9:
            assert (one.verdict(margin) is Verdict.EQUIVALENT) == (farthest < margin)


@pytest.mark.parametrize(
    ("differences", "seeds"),
    [(1, 3), (6, 10), *(pytest.param(10, n, marks=pytest.mark.long) for n in (10, 100))],
)
def test_differences_as_large_as_the_margin_are_seldom_called_equivalent(differences, seeds):
    """At most 5 % for all together: one in twenty, three standard errors of 400 draws above."""
    rng = np.random.default_rng(1)
    std = 0.005 * (1.0 if seeds > 10 else 0.5)
    draws = rng.normal(0.005, std, (400, differences, seeds))
    wrong = [
        any(one.verdict(0.005) is Verdict.EQUIVALENT for one in compare(draw.tolist()))
        for draw in draws
    ]
    assert np.mean(wrong) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_a_wider_margin_makes_more_differences_equivalent():
    [one] = compare([[0.02, 0.021, 0.022]])
    assert one.verdict(0.03) is Verdict.EQUIVALENT


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_error_by_the_images_ends_where_their_share_would_be_1_96_errors_away(images, part):
    """Wilson's ends: the true shares x of which the share p is 1.96 standard errors away."""
    share = round(part * images) / images
    error = image_error(share, images)
    ends = [end for end in (share - error, share + error) if -1e-9 <= end <= 1 + 1e-9]
    differences = [
        abs(end - share) - stats.norm.ppf(0.975) * math.sqrt(abs(end * (1 - end)) / images)
        for end in ends
    ]
    assert min(map(abs, differences)) < 1e-9


@pytest.mark.parametrize(("images", "error"), [(50, 0.07135), (10_000, 0.000384)])
def test_no_error_on_some_images_is_none_on_all(images, error):
    """Of n images without an error: z^2 / (n + z^2)."""
    assert image_error(1.0, images) == pytest.approx(error, rel=1e-3)
    assert image_error(0.0, images) == pytest.approx(error, rel=1e-3)
