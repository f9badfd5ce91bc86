"""Means and t-intervals, against tabled quantiles and laws."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasnorm.study.interval import interval, t_distribution, t_quantile

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
    found = interval([0.81, 0.83])
    assert found.n == 2
    assert math.isclose(found.mean, 0.82)
    assert math.isclose(found.std, 0.02 / math.sqrt(2))
    assert math.isclose(found.high - 0.82, 12.7062047 * 0.01, rel_tol=1e-6)
    assert math.isclose(found.high - found.mean, found.mean - found.low)


def test_one_value_has_no_interval_and_none_is_an_error():
    alone = interval([0.5])
    assert (alone.n, alone.mean, alone.std, alone.low, alone.high) == (1, 0.5, None, None, None)
    with pytest.raises(ValueError, match="at least one"):
        interval([])
