"""Pairs of two lists' values, few of them in the default suite."""

import pytest


def pairs(first, second):
    """All pairs of two lists' values; those that repeat values of both are long."""
    first, second = list(first), list(second)
    usual = {(i % len(first), i % len(second)) for i in range(max(len(first), len(second)))}
    return [
        pytest.param(a, b, marks=() if (i, j) in usual else pytest.mark.long)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]
