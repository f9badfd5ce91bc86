"""Means with their t-intervals, and comparisons that are corrected for their number.

Several differences that are each judged at 95 % give a false finding more often than one time in
twenty. Holm's step-down procedure keeps that chance for all of them together at 5 %.
Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Statist. 6.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

LEVEL = 0.95  # confidence level of every interval that is not corrected
LEAST_SEEDS = 3  # fewer common seeds give numbers, but no verdict
SHARES, DIFFERENCES = (0.0, 1.0), (-1.0, 1.0)  # ranges of accuracies, and of their differences
ROUNDING = 1e-12  # values that differ by less are the same: only floating point tells them apart
MARGIN = 0.005  # share of 1 within which two accuracies are equivalent for practice, by default


@dataclass(frozen=True)
class Interval:
    """The mean of a handful of measurements and its t-interval.

    Measurements that are all the same have no interval. An accuracy is a multiple of one image, so
    that a spread of 0 only says that the real one is too small for the number of test images; an
    interval of width 0 would claim certainty.

    Attributes:
        n: Number of measurements.
        mean: Mean of the measurements.
        std: Sample standard deviation (n - 1); None for one measurement.
        low: Lower end of the t-interval of the mean; None for one measurement, or the same ones.
        high: Upper end of that interval; None for one measurement, or the same ones.
    """

    n: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(
        cls,
        values: Sequence[float],
        level: float = LEVEL,
        within: tuple[float, float] = (-math.inf, math.inf),
    ) -> "Interval":
        """Returns n, mean, std and the interval mean ± t(n - 1) * std / sqrt(n).

        The interval is cut off at the ends of the range `within`, outside of which no value can
        be: it covers the true mean as often as before, because that is never outside either.

        Raises:
            ValueError: There are no values.
        """
        if not values:
            raise ValueError("Interval.of: expected at least one value. Received: none")
        n, mean = len(values), statistics.fmean(values)
        if n < 2:
            return cls(n, mean)
        if max(values) - min(values) < ROUNDING:
            return cls(n, mean, 0.0)
        from scipy.special import stdtrit  # scipy.stats takes a second to import

        std = statistics.stdev(values)
        half = float(stdtrit(n - 1, (1 + level) / 2)) * std / math.sqrt(n)
        return cls(n, mean, std, max(mean - half, within[0]), min(mean + half, within[1]))

    @property
    def is_clear(self) -> bool:
        """Whether there is an interval that does not contain zero."""
        low, high = self.low, self.high
        return low is not None and high is not None and (low > 0 or high < 0)

    def is_within(self, margin: float) -> bool:
        """Says whether there is an interval that lies inside ± margin."""
        low, high = self.low, self.high
        return low is not None and high is not None and max(-low, high) <= margin


class Verdict(StrEnum):
    """What the differences of some common seeds say about two groups."""

    TOO_FEW = "no verdict"
    DIFFERENT = "different"
    EQUIVALENT = "equivalent"
    OPEN = "not significant"


@dataclass(frozen=True)
class Comparison:
    """One of several mean differences, judged together with the others.

    Attributes:
        interval: Mean difference with its t-interval, at the confidence level of its step of
            Holm's procedure. It excludes zero if, and only if, the difference is significant.
        p: Holm's adjusted p value of the paired t-test; None, and no interval, where there is no
            test: for fewer than `LEAST_SEEDS` differences, and for several that are all the same,
            whose spread is not known.
        simultaneous: The t-interval at the level 5 % / number of tests. A step of Holm's
            procedure allows for the false differences that are still possible, not for false
            equivalences: of ten differences as large as the margin, the intervals of the steps find
            one equivalent up to every fifth time.
    """

    interval: Interval
    p: float | None
    simultaneous: Interval

    def verdict(self, margin: float = MARGIN) -> Verdict:
        """Returns what the data say: nothing without a test."""
        if self.p is None:
            return Verdict.TOO_FEW
        if self.simultaneous.is_within(margin):
            return Verdict.EQUIVALENT
        return Verdict.DIFFERENT if self.interval.is_clear else Verdict.OPEN


def compare(samples: Sequence[Sequence[float]]) -> list[Comparison]:
    """Returns the comparison of each sample of paired differences with zero, in their order.

    The p values are sorted; the k-th smallest of m is judged at the level 5 % / (m - k + 1), and
    all that follow the first one that is not significant at the level of that one. Only samples
    that are tested count among the m: what gets no verdict cannot be a false finding.

    Args:
        samples: Differences of paired accuracies, as shares of 1, one sequence per comparison.
    """
    intervals = [replace(Interval.of(values), low=None, high=None) for values in samples]
    found = [
        Comparison(one, _p(values), one) for one, values in zip(intervals, samples, strict=True)
    ]
    tested = [index for index, one in enumerate(found) if one.p is not None]
    adjusted, compared_with = 0.0, len(tested)
    for rank, index in enumerate(sorted(tested, key=lambda index: found[index].p or 0.0)):
        if adjusted <= 1 - LEVEL:
            compared_with = len(tested) - rank
        adjusted = min(1.0, max(adjusted, (len(tested) - rank) * (found[index].p or 0.0)))
        interval, simultaneous = (
            Interval.of(samples[index], 1 - (1 - LEVEL) / count, DIFFERENCES)
            for count in (compared_with, len(tested))
        )
        found[index] = Comparison(interval, adjusted, simultaneous)
    return found


def _p(values: Sequence[float]) -> float | None:
    """Returns the p value of the two-sided t-test that the mean is zero.

    It is None for fewer than `LEAST_SEEDS` values, and for several that are all the same: on ten
    test images, one image more with each of three seeds is no proof that two groups differ, and the
    same number of images no proof that they are equivalent.
    """
    found = Interval.of(values)
    if found.n < LEAST_SEEDS or not found.std:
        return None
    from scipy.special import stdtr

    t = found.mean / (found.std / math.sqrt(found.n))
    return 2.0 * float(stdtr(found.n - 1, -abs(t)))


def image_error(share: float, images: int) -> float:
    """Returns by how much a share of some images may miss that of all images, by chance (95 %).

    It is the distance to the farther end of the Wilson score interval.
    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference",
    J. Am. Stat. Assoc. 22.
    """
    z = statistics.NormalDist().inv_cdf(0.5 + LEVEL / 2)
    whole = 1 + z**2 / images
    middle = (share + z**2 / (2 * images)) / whole
    half = z * math.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2) / whole
    return abs(middle - share) + half
