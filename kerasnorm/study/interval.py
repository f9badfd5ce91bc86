"""The mean over a handful of seeds and its 95 % interval by Student's t."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95  # confidence level of every interval


@dataclass(frozen=True)
class Interval:
    """The mean of a handful of measurements and its 95 % interval.

    Attributes:
        n: Number of measurements.
        mean: Mean of the measurements.
        std: Sample standard deviation (n - 1); None for one measurement.
        low: Lower end of the 95 % t-interval of the mean; None for one measurement.
        high: Upper end of that interval; None for one measurement.
    """

    n: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether there is an interval that does not contain zero."""
        low, high = self.low, self.high
        return low is not None and high is not None and (low > 0 or high < 0)


def interval(values: Sequence[float]) -> Interval:
    """Returns n, mean, std and the 95 % interval mean ± t(n - 1) * std / sqrt(n).

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("interval: expected at least one value. Received: none")
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Interval(n, mean)
    std = statistics.stdev(values)
    half = t_quantile(0.5 + LEVEL / 2, n - 1) * std / math.sqrt(n)
    return Interval(n, mean, std, mean - half, mean + half)


def t_distribution(t: float, freedom: int) -> float:
    """Returns P(T <= t) of Student's t with a whole number of degrees of freedom.

    Source: Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(t, math.sqrt(freedom))
    cos2 = math.cos(angle) ** 2
    term = math.cos(angle) if freedom % 2 else 1.0
    total = 0.0
    for k in range(1 + freedom % 2, freedom, 2):
        total += term
        term *= cos2 * k / (k + 1)
    inside = math.sin(angle) * total
    if freedom % 2:
        inside = 2 / math.pi * (angle + inside)
    return 0.5 + inside / 2


def t_quantile(p: float, freedom: int) -> float:
    """Returns the t with P(T <= t) = p, for p from 0.5 up to 1, by bisection."""
    low, high = 0.0, 1.0
    while t_distribution(high, freedom) < p:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_distribution(middle, freedom) < p else (low, middle)
    return high
