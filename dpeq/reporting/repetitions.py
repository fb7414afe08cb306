"""Means over repetitions of a training, and how sure they are.

Intervals are Student's t for a mean, and Welch's for the difference of two means, whose runs may scatter differently.
Both speak of the luck of training (noise, sampling, initial weights) on one test set, not of the choice of its cases.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student

__all__ = ["LEVEL", "difference_of_means", "mean_of"]

LEVEL = 0.95
Interval = dict[str, float | None]


def mean_of(values: Sequence[float]) -> Interval:
    """``{"mean", "low", "high"}`` of scores in 0..1; no interval for a single run, or runs that are all equal.

    Student's t with n - 1 degrees of freedom, clipped to 0..1, where every score lies. Two equal runs would give an
    interval of no width, which claims more than they show.
    """
    mean = statistics.fmean(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    if spread == 0.0:
        return {"mean": mean, "low": None, "high": None}
    half = _quantile(len(values) - 1) * spread / math.sqrt(len(values))
    return {"mean": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}


def difference_of_means(a: Sequence[float], b: Sequence[float]) -> Interval:
    """``{"mean", "low", "high"}`` of mean(a) - mean(b); no interval unless both have two runs and some scatter.

    Welch's interval, with the Welch-Satterthwaite degrees of freedom, clipped to -1..1 (Welch 1947, Biometrika 34:28).
    """
    difference = statistics.fmean(a) - statistics.fmean(b)
    nothing: Interval = {"mean": difference, "low": None, "high": None}
    if min(len(a), len(b)) < 2:
        return nothing
    u, v = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    if u + v == 0.0:
        return nothing
    freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    half = _quantile(freedom) * math.sqrt(u + v)
    return {"mean": difference, "low": max(-1.0, difference - half), "high": min(1.0, difference + half)}


def _quantile(freedom: float) -> float:
    return float(student.ppf(0.5 + LEVEL / 2, freedom))
