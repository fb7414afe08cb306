"""Scores of a classifier on a fixed evaluation set, each with a 95 % bootstrap interval.

Point values come from scikit-learn. Intervals are percentile bootstraps over cases (Efron and Tibshirani 1993,
chapter 13), drawn separately within every class: the class counts stay as observed, so the area under the ROC curve is
defined in every resample. Where patients own several cases, whole patients are drawn instead (the cluster bootstrap;
Davison and Hinkley 1997, section 3.8), because images of one patient are no independent evidence; a resample that lacks
a class of the set is drawn again. All resamples are scored at once from their case counts.

The intervals speak of the sampling of evaluation cases only. They treat cases, or their owners, as independent, do not
cover the luck of the training run (seed, noise), and collapse to a point where a score is exactly 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score, roc_auc_score, roc_curve

from dpeq.errors import DataError

__all__ = ["ROC_POINTS", "evaluate_predictions"]

ROC_POINTS = 200
_LEVEL = 0.95
_ROW_SUM_TOLERANCE = 1e-3  # float32 softmax over many classes drifts; logits miss by far more
_CELLS = 4_000_000  # counts held at once while resampling: 32 MB, whatever the size of the evaluation set

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]


def evaluate_predictions(
    probabilities: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    *,
    owners: ArrayLike | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores ``probabilities`` [N, K] against ``labels`` [N] in 0..K-1; returns a JSON-ready dict.

    ``owners`` [N] says to whom each case belongs, when several may belong to one; cases are independent by default.

    ``auc``, ``accuracy``, ``balanced_accuracy`` and ``brier`` are ``{"value", "low", "high"}``. With K = 2 the AUC and
    the ROC curve are those of class 1; with K > 2 the AUC is the plain mean of the one-versus-rest AUCs (as MedMNIST
    reports) and ``roc`` a list with one curve per class. The Brier score is the mean squared error of the probability
    of class 1 (K = 2) or summed over classes (K > 2, range 0 to 2). ``recall`` has one interval per class (sensitivity
    of class 1 and specificity, when K = 2). ``majority_accuracy`` is the accuracy of always answering the most frequent
    class of this very set. Classes without a case are left out of the means and named in ``absent_classes``.

    Raises :class:`DataError` for an empty set, a set with a single class, or rows that are not probabilities.
    """
    proba, truth, names = _checked(probabilities, labels, classes)
    n, k = proba.shape
    present = [c for c in range(k) if np.any(truth == c)]
    scored = [1] if k == 2 else present
    predicted = proba.argmax(axis=1)
    correct = (predicted == truth).astype(np.float64)
    member = np.stack([truth == c for c in present]).astype(np.float64)  # [P, N]
    brier_terms = _brier_terms(proba, truth)

    rankings = [_Ranking(proba[:, c], truth == c) for c in scored]
    clusters = _clusters(owners, n)
    statistics: dict[str, Statistic] = {
        "auc": lambda w: np.mean([ranking.auc(w) for ranking in rankings], axis=0),
        "accuracy": lambda w: w @ correct / w.sum(axis=1),
        "balanced_accuracy": lambda w: _recalls(w, member, correct).mean(axis=1),
        "brier": lambda w: w @ brier_terms / w.sum(axis=1),
        "recall": lambda w: _recalls(w, member, correct),
    }
    values: dict[str, Any] = {
        "auc": float(np.mean([roc_auc_score(truth == c, proba[:, c]) for c in scored])),
        "accuracy": float(accuracy_score(truth, predicted)),
        "balanced_accuracy": float(recall_score(truth, predicted, labels=present, average="macro", zero_division=0)),
        "brier": float(brier_terms.mean()),
        "recall": recall_score(truth, predicted, labels=present, average=None, zero_division=0),
    }
    bounds = _percentile_bounds(statistics, truth, clusters, n_bootstrap, seed)
    out: dict[str, Any] = {"n": n, "classes": list(names)}
    for key in ("auc", "accuracy", "balanced_accuracy", "brier"):
        out[key] = _interval(values[key], *bounds[key])
    low, high = bounds["recall"]
    out["recall"] = [
        {"class": names[c], "n": int((truth == c).sum()), **_interval(values["recall"][i], low[i], high[i])}
        for i, c in enumerate(present)
    ]
    out["majority_accuracy"] = float(np.bincount(truth, minlength=k).max() / n)
    out["confusion"] = confusion_matrix(truth, predicted, labels=range(k)).tolist()
    curves = [{"class": names[c], **_roc(truth == c, proba[:, c])} for c in scored]
    out["roc"] = {"fpr": curves[0]["fpr"], "tpr": curves[0]["tpr"]} if k == 2 else curves
    out["absent_classes"] = [names[c] for c in range(k) if c not in present]
    resampled = {"stratified_by": "class"} if clusters is None else {"owners": int(clusters.max()) + 1}
    out["bootstrap"] = {"resamples": n_bootstrap, "seed": seed, "level": _LEVEL, **resampled}
    return out


class _Ranking:
    """AUC of one score for many weightings of the same cases: the Mann-Whitney count, with half a point for ties."""

    def __init__(self, scores: Array, positive: NDArray[np.bool_]) -> None:
        order = np.argsort(scores, kind="stable")
        ordered = scores[order]
        self._order = order
        self._positive = positive[order].astype(np.float64)
        self._starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))  # first case of each tie

    def auc(self, weights: Array) -> Array:
        """``weights`` [B, N] counts per case -> AUC [B]."""
        ordered = weights[:, self._order]
        positive = np.add.reduceat(ordered * self._positive, self._starts, axis=1)
        negative = np.add.reduceat(ordered * (1.0 - self._positive), self._starts, axis=1)
        below = np.cumsum(negative, axis=1) - 0.5 * negative
        return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def _recalls(weights: Array, member: Array, correct: Array) -> Array:
    """``weights`` [B, N] counts per case -> share of correct answers in each class [B, P]."""
    return (weights @ (member * correct).T) / (weights @ member.T)


def _clusters(owners: ArrayLike | None, n: int) -> NDArray[np.int64] | None:
    """Owners numbered 0..; None where every case is alone."""
    if owners is None:
        return None
    names, numbers = np.unique(np.asarray(owners), return_inverse=True)
    if numbers.shape != (n,):
        raise ValueError(f"owners of shape {np.shape(owners)} for {n} cases")
    return None if len(names) == n else numbers.astype(np.int64)


def _resamples(
    truth: NDArray[np.int64], clusters: NDArray[np.int64] | None, n_bootstrap: int, seed: int
) -> Iterator[Array]:
    """Yields blocks [b, N] of how often each case is drawn."""
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


def _percentile_bounds(
    statistics: dict[str, Statistic],
    truth: NDArray[np.int64],
    clusters: NDArray[np.int64] | None,
    n_bootstrap: int,
    seed: int,
) -> dict[str, Array]:
    if n_bootstrap < 1:
        raise ValueError("n_bootstrap must be at least 1")
    drawn: dict[str, list[Array]] = {key: [] for key in statistics}
    for weights in _resamples(truth, clusters, n_bootstrap, seed):
        for key, statistic in statistics.items():
            drawn[key].append(statistic(weights))
    tail = (1.0 - _LEVEL) / 2.0
    return {key: np.quantile(np.concatenate(parts), (tail, 1.0 - tail), axis=0) for key, parts in drawn.items()}


def _interval(value: float, low: float, high: float) -> dict[str, float]:
    # Rounding noise must push neither the point out of an interval that has collapsed onto it nor a score past 0 or 1.
    value = _unrounded(value)
    return {"value": value, "low": _unrounded(min(low, value)), "high": _unrounded(max(high, value))}


def _unrounded(score: float) -> float:
    return float(np.clip(score, 0.0, 1.0)) if -1e-9 < score < 1 + 1e-9 else float(score)


def _brier_terms(proba: Array, truth: NDArray[np.int64]) -> Array:
    if proba.shape[1] == 2:
        return (proba[:, 1] - truth) ** 2
    return ((proba - np.eye(proba.shape[1])[truth]) ** 2).sum(axis=1)


def _roc(positive: NDArray[np.bool_], scores: Array) -> dict[str, list[float]]:
    """ROC curve with at most :data:`ROC_POINTS` points, spread evenly along its length; both end points are kept."""
    fpr, tpr, _ = roc_curve(positive, scores)
    if len(fpr) > ROC_POINTS:
        along = fpr + tpr
        keep = np.unique(np.searchsorted(along, np.linspace(along[0], along[-1], ROC_POINTS)))
        keep[0], keep[-1] = 0, len(fpr) - 1
        fpr, tpr = fpr[keep], tpr[keep]
    return {"fpr": [float(v) for v in fpr], "tpr": [float(v) for v in tpr]}


def _checked(
    probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str]
) -> tuple[Array, NDArray[np.int64], tuple[str, ...]]:
    proba = np.asarray(probabilities, dtype=np.float64)
    raw = np.asarray(labels)
    names = tuple(str(name) for name in classes)
    if raw.ndim != 1 or raw.size == 0:
        raise DataError("The evaluation set is empty (or its labels are not a flat list); give it at least one case.")
    if proba.ndim != 2 or proba.shape[0] != raw.size:
        raise DataError(f"Predictions of shape {proba.shape} do not fit {raw.size} labels; one row per case is needed.")
    if len(names) < 2 or proba.shape[1] != len(names) or len(set(names)) != len(names):
        raise DataError(
            f"Predictions have {proba.shape[1]} columns for the classes {list(names)}; "
            "one column per class and at least two different classes are needed."
        )
    truth = raw.astype(np.int64)
    if not np.array_equal(truth, raw) or truth.min() < 0 or truth.max() >= len(names):
        raise DataError(f"Labels must be whole numbers from 0 to {len(names) - 1}, the positions in {list(names)}.")
    if not np.all(np.isfinite(proba)):
        raise DataError("Some predictions are not finite numbers; the network has diverged, lower its learning rate.")
    if proba.min() < 0.0 or np.any(np.abs(proba.sum(axis=1) - 1.0) > _ROW_SUM_TOLERANCE):
        raise DataError("Some rows of the predictions are not probabilities; apply softmax to the network's outputs.")
    if len(np.unique(truth)) < 2:
        raise DataError(
            f"The evaluation set has cases of {names[int(truth[0])]!r} alone, where no AUC exists; add another class."
        )
    return proba, truth, names
