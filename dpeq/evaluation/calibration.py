"""Whether predicted probabilities are frequencies: bins, and the expected calibration error.

The expected calibration error (ECE; Guo et al. 2017, section 2) is the mean over cases of the difference, in each of 15
bins of equal width, between the mean prediction and the observed frequency. With two classes the prediction is the
probability of class 1; with more it is the confidence of the answer, and the frequency is that of correct answers.

The bins that are told are wider where cases are few: while one holds fewer than :data:`LEAST_CASES`, it is joined with
its smaller neighbour, and mean predictions have two digits. A bin of one case would tell that case's prediction, and
with it the case, to whoever has the weights and its image. The ECE is that of the 15 bins.

An ECE of a finite set is never negative and so too large on average, and its bootstrap doubles that: resamples scatter
around the set as the set scatters around the truth. The percentile interval lies too high therefore; compare ECEs of
sets of one size alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpeq.evaluation.bootstrap import Bootstrapped

__all__ = ["BINS", "LEAST_CASES", "Calibration"]

BINS = 15
LEAST_CASES = 10
"""A bin that is told holds as many, unless the whole set holds fewer."""

Array = NDArray[np.float64]


class Calibration:
    """Bins of one set of cases, for many weightings of them.

    Args:
        proba: ``[N, K]``.
        truth: ``[N]``.

    Attributes:
        binary: whether the prediction is the probability of class 1.
    """

    def __init__(self, proba: Array, truth: NDArray[np.int64]) -> None:
        self.binary = proba.shape[1] == 2
        predicted = proba[:, 1] if self.binary else proba.max(axis=1)
        self._predicted = np.minimum(predicted, 1.0)  # rows may add up to a little more than 1
        self._observed = (truth if self.binary else proba.argmax(axis=1) == truth).astype(np.float64)
        self._edges = np.arange(BINS + 1) / BINS
        # Bins hold their upper edge, as Guo et al. have it; 0 belongs to the first.
        number = np.maximum(np.searchsorted(self._edges, self._predicted, side="left") - 1, 0)
        filled = np.unique(number)
        self._member = (number[:, None] == filled).astype(np.float64)  # [N, filled bins]
        self._told = _joined(filled.tolist(), self._member.sum(axis=0).astype(int).tolist())
        lowest = np.array([first for first, _, _ in self._told])
        self._of_told = np.searchsorted(lowest, number, side="right") - 1  # the told bin of each case
        self._in_told = (self._of_told[:, None] == np.arange(len(self._told))).astype(np.float64)

    def scores(self, weights: Array) -> dict[str, Array]:
        """``[B, N]`` counts per case to ``ece`` ``[B]`` and ``observed`` ``[B, told bins]``, NaN for 0/0."""
        gaps = weights @ (self._member * (self._predicted - self._observed)[:, None])
        cases = weights @ self._in_told
        positive = weights @ (self._in_told * self._observed[:, None])
        observed = np.divide(positive, cases, out=np.full_like(cases, np.nan), where=cases > 0)
        return {"ece": np.abs(gaps).sum(axis=1) / weights.sum(axis=1), "observed": observed}

    def to_dict(self, found: Bootstrapped, class_1: str) -> dict[str, Any]:
        """Bins with ``n`` cases, their mean prediction to two digits, the observed frequency with its interval."""
        bins = [
            {
                "low": float(self._edges[first]),
                "high": float(self._edges[last + 1]),
                "n": n,
                "predicted": round(float(self._predicted[self._of_told == i].mean()), 2),
                "observed": found.get("observed", i),
            }
            for i, (first, last, n) in enumerate(self._told)
        ]
        return {"of": f"probability of {class_1}" if self.binary else "confidence of the answer", "bins": bins}


def _joined(numbers: list[int], counts: list[int]) -> list[tuple[int, int, int]]:
    """First bin, last bin and cases of each bin that is told."""
    bins = [(number, number, count) for number, count in zip(numbers, counts, strict=True)]
    while len(bins) > 1 and min(count for *_, count in bins) < LEAST_CASES:
        i = min(range(len(bins)), key=lambda k: bins[k][2])
        beside = [k for k in (i - 1, i + 1) if 0 <= k < len(bins)]
        j = min(beside, key=lambda k: bins[k][2])
        (first, _, few), (_, last, more) = bins[min(i, j)], bins[max(i, j)]
        bins[min(i, j) : max(i, j) + 1] = [(first, last, few + more)]
    return bins
