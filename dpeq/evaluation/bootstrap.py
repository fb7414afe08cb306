"""Intervals of any scores that are functions of how often each case is drawn, all from the same resamples.

Percentile bootstraps over cases (Efron and Tibshirani 1993, chapter 13), drawn separately within every class: the class
counts stay as observed, so the area under the ROC curve is defined in every resample. Where patients own several cases,
whole patients are drawn instead (the cluster bootstrap; Davison and Hinkley 1997, section 3.8), because images of one
patient are no independent evidence; a resample that lacks a class of the set is drawn again. All resamples are scored
at once from their case counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["LEVEL", "Bootstrapped", "Interval", "bootstrap", "clusters_of", "interval", "resamples"]

LEVEL = 0.95
_CELLS = 4_000_000  # counts held at once while resampling: 32 MB, whatever the size of the evaluation set

Array = NDArray[np.float64]
Interval = dict[str, float]
Scores = Callable[[Array], dict[str, Array]]
"""``[B, N]``, how often each case is drawn, to scores ``[B, ...]`` by name; NaN where one is not defined."""


@dataclass(frozen=True)
class Bootstrapped:
    """Scores by name with the bounds of their intervals.

    Attributes:
        values: ``[...]``, of the set as it is.
        bounds: ``[2, ...]``, low and high.
    """

    values: dict[str, Array]
    bounds: dict[str, Array]

    def get(self, name: str, *index: int) -> Interval | None:
        """One score with its interval; None where the set, or every resample, leaves it undefined (0/0)."""
        value = float(self.values[name][index])
        low, high = (float(bound[index]) for bound in self.bounds[name])
        return None if np.isnan([value, low, high]).any() else interval(value, low, high)


def bootstrap(
    scores: Scores, truth: NDArray[np.int64], clusters: NDArray[np.int64] | None, n_bootstrap: int, seed: int
) -> Bootstrapped:
    """The scores of the cases as they are, and their percentiles over resamples.

    Args:
        truth: ``[N]``, the class of each case.
        clusters: of :func:`clusters_of`.

    A score that some resamples leave undefined has the percentiles of the others.
    """
    if n_bootstrap < 1:
        raise ValueError("n_bootstrap must be at least 1")
    values = {name: value[0] for name, value in scores(np.ones((1, len(truth)))).items()}
    drawn: dict[str, list[Array]] = {name: [] for name in values}
    for weights in resamples(truth, clusters, n_bootstrap, seed):
        for name, score in scores(weights).items():
            drawn[name].append(score)
    return Bootstrapped(values, {name: _percentiles(np.concatenate(parts)) for name, parts in drawn.items()})


def resamples(
    truth: NDArray[np.int64], clusters: NDArray[np.int64] | None, n_bootstrap: int, seed: int
) -> Iterator[Array]:
    """Yields blocks ``[b, N]`` of how often each case is drawn."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(truth == c) for c in np.unique(truth)]
    block = max(1, min(n_bootstrap, _CELLS // len(truth)))
    left = n_bootstrap
    while left > 0:
        rows = min(block, left)
        if clusters is None:
            counts = np.empty((rows, len(truth)))
            for cases in members:  # the count of every class is the observed one
                counts[:, cases] = rng.multinomial(len(cases), np.full(len(cases), 1.0 / len(cases)), size=rows)
        else:
            owners = int(clusters.max()) + 1
            counts = rng.multinomial(owners, np.full(owners, 1.0 / owners), size=rows).astype(np.float64)[:, clusters]
            counts = counts[np.all([counts[:, cases].any(axis=1) for cases in members], axis=0)]
        left -= len(counts)
        yield counts


def clusters_of(owners: ArrayLike | None, n: int) -> NDArray[np.int64] | None:
    """Owners numbered 0.., for each of ``n`` cases; None where every case is alone."""
    if owners is None:
        return None
    names, numbers = np.unique(np.asarray(owners), return_inverse=True)
    if numbers.shape != (n,):
        raise ValueError(f"owners of shape {np.shape(owners)} for {n} cases")
    return None if len(names) == n else numbers.astype(np.int64)


def interval(value: float, low: float, high: float) -> Interval:
    """The point lies in its interval, also where rounding, or the bias of an estimator, would put it outside."""
    value = _unrounded(value)
    return {"value": value, "low": _unrounded(min(low, value)), "high": _unrounded(max(high, value))}


def _unrounded(score: float) -> float:
    """Rounding noise must push no score past 0 or 1."""
    return float(np.clip(score, 0.0, 1.0)) if -1e-9 < score < 1 + 1e-9 else float(score)


def _percentiles(drawn: Array) -> Array:
    """``[B, ...]`` -> ``[2, ...]``; NaN where all are."""
    tail = (1.0 - LEVEL) / 2.0
    defined = ~np.isnan(drawn)
    if defined.all():
        return np.quantile(drawn, (tail, 1.0 - tail), axis=0)
    somewhere = defined.any(axis=0)
    filled = np.where(somewhere, drawn, 0.0)  # a column without a number would be warned of
    return np.where(somewhere, np.nanquantile(filled, (tail, 1.0 - tail), axis=0), np.nan)
