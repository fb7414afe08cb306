"""Scores of a classifier on a fixed evaluation set, each with a 95 % bootstrap interval.

Intervals (:mod:`dpeq.evaluation.bootstrap`) speak of the sampling of evaluation cases only. They treat cases, or their
owners, as independent, do not cover the luck of the training run (seed, noise), and collapse to a point where a score
is exactly 0 or 1. All scores of a set are drawn from the same resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix

from dpeq.evaluation.bootstrap import LEVEL, bootstrap, clusters_of
from dpeq.evaluation.calibration import Calibration
from dpeq.evaluation.inputs import checked
from dpeq.evaluation.operating import OperatingPoints, Threshold, rates
from dpeq.evaluation.ranking import Ranking, precision_recall, roc

__all__ = ["evaluate_predictions"]

Array = NDArray[np.float64]


def evaluate_predictions(
    probabilities: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    *,
    owners: ArrayLike | None = None,
    thresholds: Sequence[Threshold] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores ``probabilities`` [N, K] against ``labels`` [N] in 0..K-1; returns a JSON-ready dict.

    ``owners`` [N] says to whom each case belongs, when several may belong to one; cases are independent by default.
    ``thresholds`` are what :func:`~dpeq.evaluation.operating.choose_thresholds` chose on a validation set; if None,
    they are chosen on this very set, and the operating points say so.

    Every score is ``{"value", "low", "high"}``, or None where it is 0/0 (the precision of a class that is never
    answered). What the dict holds:

    - ``auc``, with K = 2 of class 1; with K > 2 the plain mean of the one-versus-rest AUCs (as MedMNIST reports).
    - ``accuracy`` and ``balanced_accuracy`` of the most probable class.
    - ``brier``: the mean squared error of the probability of class 1 (K = 2) or summed over classes (K > 2, 0 to 2).
    - ``average_precision``: averaged over classes as the AUC is.
    - ``ece`` and ``calibration``: see :mod:`dpeq.evaluation.calibration`; bins without a case are left out.
    - ``recall``: one interval per class (sensitivity of class 1 and specificity, when K = 2).
    - ``by_class``: each class against all others; sensitivity, specificity and precision of the most probable class.
    - ``operating_points``: see :mod:`dpeq.evaluation.operating`; none for more than 10 classes.
    - ``majority_accuracy``: of always answering the most frequent class of this very set;
      ``majority_average_precision``: of one score for all cases, which is the prevalence of class 1, or the mean
      prevalence.
    - ``roc``, ``precision_recall``: curves of at most 200 points, of class 1 (K = 2) or a list with one per class.
    - ``confusion`` [K][K], rows by truth; ``absent_classes``: without a case here, left out of means and lists.

    Raises :class:`DataError` for an empty set, a set with a single class, or rows that are not probabilities.
    """
    proba, truth, names = checked(probabilities, labels, classes)
    n, k = proba.shape
    present = np.unique(truth).tolist()
    scored = [1] if k == 2 else list(range(len(present)))  # positions in ``present`` of the classes in the means
    answer = proba.argmax(axis=1)
    correct = (answer == truth).astype(np.float64)
    brier_terms = _brier_terms(proba, truth)
    member = np.stack([truth == c for c in present])
    answered = np.stack([answer == c for c in present])
    rankings = [Ranking(proba[:, c], truth == c) for c in present]
    calibration = Calibration(proba, truth)
    operating = OperatingPoints(proba, truth, names, thresholds)

    def scores(weights: Array) -> dict[str, Array]:
        total = weights.sum(axis=1)
        areas = np.stack([ranking.areas(weights) for ranking in rankings], axis=-1)  # [2, B, classes]
        by_class = rates(weights, answered, member)[..., :3]  # sensitivity, specificity, precision
        return {
            "auc": areas[0][:, scored].mean(axis=1),
            "accuracy": weights @ correct / total,
            "balanced_accuracy": by_class[..., 0].mean(axis=1),
            "brier": weights @ brier_terms / total,
            "average_precision": areas[1][:, scored].mean(axis=1),
            "by_class": np.concatenate([np.moveaxis(areas, 0, -1), by_class], axis=-1),
            **calibration.scores(weights),
            **operating.scores(weights),
        }

    clusters = clusters_of(owners, n)
    found = bootstrap(scores, truth, clusters, n_bootstrap, seed)
    counts = np.bincount(truth, minlength=k)
    of_class = ("auc", "average_precision", "sensitivity", "specificity", "precision")
    by_class = [
        {"class": names[c], "n": int(counts[c]), **{key: found.get("by_class", i, j) for j, key in enumerate(of_class)}}
        for i, c in enumerate(present)
    ]
    curves = [present[i] for i in scored]
    out: dict[str, Any] = {"n": n, "classes": list(names)}
    for key in ("auc", "accuracy", "balanced_accuracy", "brier", "average_precision", "ece"):
        out[key] = found.get(key)
    out["recall"] = [{"class": row["class"], "n": row["n"], **row["sensitivity"]} for row in by_class]
    out["by_class"] = by_class
    out["operating_points"] = operating.to_list(found)
    out["calibration"] = calibration.to_dict(found, names[1])
    out["majority_accuracy"] = float(counts.max() / n)
    out["majority_average_precision"] = float(np.mean([counts[c] / n for c in curves]))
    out["confusion"] = confusion_matrix(truth, answer, labels=range(k)).tolist()
    for name, curve in (("roc", roc), ("precision_recall", precision_recall)):
        drawn = [{"class": names[c], **curve(truth == c, proba[:, c])} for c in curves]
        out[name] = {key: drawn[0][key] for key in drawn[0] if key != "class"} if k == 2 else drawn
    out["absent_classes"] = [names[c] for c in range(k) if c not in present]
    resampled = {"stratified_by": "class"} if clusters is None else {"owners": int(clusters.max()) + 1}
    out["bootstrap"] = {"resamples": n_bootstrap, "seed": seed, "level": LEVEL, **resampled}
    return out


def _brier_terms(proba: Array, truth: NDArray[np.int64]) -> Array:
    if proba.shape[1] == 2:
        return (proba[:, 1] - truth) ** 2
    return ((proba - np.eye(proba.shape[1])[truth]) ** 2).sum(axis=1)
