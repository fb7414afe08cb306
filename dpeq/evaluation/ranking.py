"""How well one score puts the cases of one class before all others: areas under curves, and the curves themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

__all__ = ["CURVE_POINTS", "Ranking", "precision_recall", "roc"]

CURVE_POINTS = 200

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Ranking:
    """Areas of one score for many weightings of the same cases.

    Args:
        scores: ``[N]``.
        positive: ``[N]``, whether a case is of the class; at least one is, and at least one is not.
    """

    def __init__(self, scores: Array, positive: Mask) -> None:
        order = np.argsort(scores, kind="stable")
        ordered = scores[order]
        starts = np.concatenate(([True], ordered[1:] != ordered[:-1]))  # first case of each tie
        self._order = order
        self._positive = positive[order].astype(np.float64)
        self._starts = None if starts.all() else np.flatnonzero(starts)

    def areas(self, weights: Array) -> tuple[Array, Array]:
        """``weights`` ``[B, N]``, counts per case, to AUC ``[B]`` and average precision ``[B]``.

        The AUC is the Mann-Whitney count with half a point for ties. The average precision is the sum over thresholds
        of precision times the recall gained there, without interpolation, as scikit-learn defines it; cases with one
        score pass a threshold together.
        """
        both = weights.take(self._order, axis=1)
        positive = both * self._positive
        if self._starts is not None:
            both = np.add.reduceat(both, self._starts, axis=1)
            positive = np.add.reduceat(positive, self._starts, axis=1)
        total, positives = both.sum(axis=1), positive.sum(axis=1)
        # Of what lies below each score: all cases and positive ones.
        all_below, positive_below = np.cumsum(both, axis=1) - both, np.cumsum(positive, axis=1) - positive
        negative = both - positive
        won = (positive * (all_below - positive_below + 0.5 * negative)).sum(axis=1)
        auc = won / (positives * (total - positives))
        called = total[:, None] - all_below  # by a threshold at each score
        found = positives[:, None] - positive_below
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        return auc, (positive * precision).sum(axis=1) / positives


def roc(positive: Mask, scores: Array) -> dict[str, list[float]]:
    """ROC curve with at most :data:`CURVE_POINTS` points, spread evenly along its length; both end points are kept."""
    fpr, tpr, _ = roc_curve(positive, scores)
    return dict(zip(("fpr", "tpr"), _thin(fpr, tpr), strict=True))


def precision_recall(positive: Mask, scores: Array) -> dict[str, list[float]]:
    """Precision by rising recall, thinned likewise; it begins at recall 0, where precision is set to 1."""
    precision, recall, _ = precision_recall_curve(positive, scores)
    return dict(zip(("recall", "precision"), _thin(recall[::-1], precision[::-1]), strict=True))


def _thin(x: Array, y: Array) -> tuple[list[float], list[float]]:
    if len(x) > CURVE_POINTS:
        along = np.concatenate(([0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))))
        keep = np.unique(np.searchsorted(along, np.linspace(0.0, along[-1], CURVE_POINTS)))
        keep[0], keep[-1] = 0, len(x) - 1
        x, y = x[keep], y[keep]
    return [float(v) for v in x], [float(v) for v in y]
