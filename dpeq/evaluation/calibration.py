"""Whether predicted probabilities are frequencies: bins, and the expected calibration error.

The expected calibration error (ECE; Guo et al. 2017, section 2) is the mean over cases of the difference, in each of 15
bins of equal width, between the mean prediction and the observed frequency. With two classes the prediction is the
probability of class 1; with more it is the confidence of the answer, and the frequency is that of correct answers.

An ECE of a finite set is never negative and so too large on average, and its bootstrap doubles that: resamples scatter
around the set as the set scatters around the truth. The percentile interval lies too high therefore; compare ECEs of
sets of one size alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpeq.evaluation.bootstrap import Bootstrapped

__all__ = ["BINS", "Calibration"]

BINS = 15

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
        self._bin = np.maximum(np.searchsorted(self._edges, self._predicted, side="left") - 1, 0)
        self._filled = np.unique(self._bin)
        self._member = (self._bin[:, None] == self._filled).astype(np.float64)  # [N, filled bins]

    def scores(self, weights: Array) -> dict[str, Array]:
        """``[B, N]`` counts per case to ``ece`` ``[B]`` and ``observed`` ``[B, filled bins]``, NaN for 0/0."""
        gaps = weights @ (self._member * (self._predicted - self._observed)[:, None])
        cases = weights @ self._member
        positive = weights @ (self._member * self._observed[:, None])
        observed = np.divide(positive, cases, out=np.full_like(cases, np.nan), where=cases > 0)
        return {"ece": np.abs(gaps).sum(axis=1) / weights.sum(axis=1), "observed": observed}

    def to_dict(self, found: Bootstrapped, class_1: str) -> dict[str, Any]:
        """Every bin that holds a case; ``n`` cases, their mean prediction, the observed frequency with its interval."""
        bins = []
        for i, number in enumerate(self._filled):
            inside = self._bin == number
            bins.append(
                {
                    "low": float(self._edges[number]),
                    "high": float(self._edges[number + 1]),
                    "n": int(inside.sum()),
                    "predicted": float(self._predicted[inside].mean()),
                    "observed": found.get("observed", i),
                }
            )
        return {"of": f"probability of {class_1}" if self.binary else "confidence of the answer", "bins": bins}
