"""Means over seeds, differences of two settings at the same seeds, and both as text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NAN = math.nan


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over seeds; NaN with too few seeds."""

    n: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class Difference:
    """Over the common seeds: the mean difference, its 95 % interval, and p of a two-sided paired t-test.

    Interval and p are NaN with fewer than two common seeds, or if all differences are equal.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float


def spread(values: Sequence[float]) -> Spread:
    n = len(values)
    return Spread(n, float(np.mean(values)) if n else NAN, float(np.std(values, ddof=1)) if n > 1 else NAN)


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference:
    """`one` minus `other`, each by seed."""
    seeds = sorted(one.keys() & other.keys())
    differences = np.array([one[seed] - other[seed] for seed in seeds])
    if len(seeds) < 2 or np.ptp(differences) < 1e-9:  # smaller than one image changes any metric: rounding
        return Difference(len(seeds), float(differences.mean()) if seeds else NAN, NAN, NAN, NAN)
    from scipy import stats

    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(0.95)
    return Difference(len(seeds), float(differences.mean()), float(low), float(high), float(test.pvalue))


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm's step-down); NaN stays NaN and is not counted."""
    order = sorted((p, index) for index, p in enumerate(values) if not math.isnan(p))
    result, worst = list(values), 0.0
    for rank, (p, index) in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * p))
        result[index] = worst
    return result


def format_spread(value: Spread, percent: bool = True) -> str:
    if not value.n:
        return "–"
    scale, digits = (100, 2) if percent else (1, 3)
    deviation = "" if math.isnan(value.deviation) else f" ± {scale * value.deviation:.{digits}f}"
    return f"{scale * value.mean:.{digits}f}{deviation}"


def format_difference(value: Difference, percent: bool = True) -> str:
    if not value.n:
        return "–"
    scale, digits = (100, 2) if percent else (1, 3)
    low, high = (f"{scale * bound:+.{digits}f}" for bound in (value.low, value.high))
    return f"{scale * value.mean:+.{digits}f}" + ("" if math.isnan(value.low) else f" ({low} to {high})")
