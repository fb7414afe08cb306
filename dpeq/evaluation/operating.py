"""Operating points: from which probability on a case is called positive, and what follows.

Thresholds are chosen on the validation set and applied to the test set: a threshold that is chosen on the set it is
judged by flatters. Intervals hold for the threshold as it is; they do not cover the luck of choosing it. Predictive
values hold for the prevalence of the set alone; where a disease is rarer, fewer positive calls are right.

A threshold is the probability of a case of the validation set, rounded down to three digits before anything is counted:
the exact number would tell that case to whoever has the weights and its image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpeq.evaluation.bootstrap import Bootstrapped
from dpeq.evaluation.inputs import checked

__all__ = ["MOST_CLASSES", "OperatingPoints", "Threshold", "choose_thresholds"]

MOST_CLASSES = 10
"""With more classes than these there are no operating points."""

_RATES = ("sensitivity", "specificity", "positive_predictive_value", "negative_predictive_value")
_GRID = np.arange(1001) / 1000  # of thresholds
_WANTED = 95  # per cent, of sensitivity or specificity

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Threshold:
    """A case whose probability of class ``positive`` is at least ``value`` is called positive.

    Attributes:
        name: of the operating point.
        rule: how the value was chosen, without the set that it was chosen on.
        positive: index of the class.
        value: of its probability.
    """

    name: str
    rule: str
    positive: int
    value: float


def choose_thresholds(probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> tuple[Threshold, ...]:
    """Thresholds of three digits by ``probabilities`` ``[N, K]`` and ``labels`` ``[N]`` of a validation set.

    With two classes, of the probability of class 1: the largest value of Youden's J (sensitivity + specificity - 1; of
    equal ones the highest threshold), the highest threshold with a sensitivity of at least 0.95, and the lowest with
    such a specificity; the last is left out where it would call nobody positive. With more classes, the largest J of
    each class against all others. A class that has no case in the set has no threshold.

    Raises :class:`DataError` as :func:`~dpeq.evaluation.metrics.evaluate_predictions` does.
    """
    proba, truth, names = checked(probabilities, labels, classes)
    if len(names) > MOST_CLASSES:
        return ()
    found: list[Threshold] = []
    for c in [1] if len(names) == 2 else np.unique(truth).tolist():
        thresholds, true, false = _counts(_rounded(proba[:, c]), truth == c)
        positives, negatives = int(true[-1]), int(false[-1])
        youden = int(np.argmax(true * negatives - false * positives))  # whole numbers: ties are ties
        rule = "threshold with the largest Youden's J (sensitivity + specificity - 1)"
        found.append(Threshold("Youden's J", rule, c, float(thresholds[youden])))
        if len(names) > 2:
            continue
        sensitive = int(np.argmax(100 * true >= _WANTED * positives))
        rule = "highest threshold with a sensitivity of at least 0.95"
        found.append(Threshold("sensitivity at least 0.95", rule, c, float(thresholds[sensitive])))
        specific = np.flatnonzero(100 * (negatives - false) >= _WANTED * negatives)
        if len(specific):
            rule = "lowest threshold with a specificity of at least 0.95"
            found.append(Threshold("specificity at least 0.95", rule, c, float(thresholds[specific[-1]])))
    return tuple(found)


def _rounded(scores: Array) -> Array:
    """Down to three digits: a score reaches a threshold of three digits if and only if the rounded one does."""
    return _GRID[np.searchsorted(_GRID, scores, side="right") - 1]


def _counts(scores: Array, positive: NDArray[np.bool_]) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """Falling thresholds, and how many positive and negative cases each calls positive."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.flatnonzero(np.concatenate((ordered[1:] != ordered[:-1], [True])))  # last case of each tie
    true = np.cumsum(positive[order].astype(np.int64))[last]
    return ordered[last], true, last + 1 - true


class OperatingPoints:
    """What thresholds come to on one set of cases, for many weightings of them.

    Args:
        proba: ``[N, K]``.
        truth: ``[N]``.
        thresholds: of another set; None chooses them on this very one.
    """

    def __init__(
        self, proba: Array, truth: NDArray[np.int64], names: tuple[str, ...], thresholds: Sequence[Threshold] | None
    ) -> None:
        where = "on this very set, which flatters" if thresholds is None else "on the validation set"
        chosen = choose_thresholds(proba, truth, names) if thresholds is None else thresholds
        self._told: list[dict[str, Any]] = []
        called, positive = [], []
        if len(names) == 2:
            rule = f"the more probable class is the answer; a tie goes to {names[0]}"
            self._told.append({"name": "most probable class", "rule": rule, "class": names[1], "threshold": 0.5})
            called.append(proba.argmax(axis=1) == 1)
            positive.append(truth == 1)
        for one in chosen:
            rule = f"{one.rule} {where}"
            self._told.append(
                {"name": one.name, "rule": rule, "class": names[one.positive], "threshold": float(one.value)}
            )
            called.append(proba[:, one.positive] >= one.value)
            positive.append(truth == one.positive)
        shape = (len(called), len(truth))
        self._called, self._positive = (np.array(rows, dtype=bool).reshape(shape) for rows in (called, positive))

    def scores(self, weights: Array) -> dict[str, Array]:
        """``[B, N]`` counts per case to ``operating`` ``[B, points, 4]``, NaN where one is 0/0."""
        return {"operating": rates(weights, self._called, self._positive)}

    def to_list(self, found: Bootstrapped) -> list[dict[str, Any]]:
        return [
            {**told, **{rate: found.get("operating", i, j) for j, rate in enumerate(_RATES)}}
            for i, told in enumerate(self._told)
        ]


def rates(weights: Array, called: NDArray[np.bool_], positive: NDArray[np.bool_]) -> Array:
    """Sensitivity, specificity, positive and negative predictive value ``[B, M, 4]``; NaN for 0/0.

    Args:
        weights: ``[B, N]``, counts per case.
        called: ``[M, N]``, whether each of M rules calls a case positive.
        positive: ``[M, N]``, whether it is.
    """

    def count(cases: NDArray[np.bool_]) -> Array:
        return weights @ cases.T.astype(np.float64)

    true, right = count(called & positive), count(~called & ~positive)
    parts = np.stack([true, right, true, right], axis=2)
    wholes = np.stack([count(positive), count(~positive), count(called), count(~called)], axis=2)
    return np.divide(parts, wholes, out=np.full_like(parts, np.nan), where=wholes > 0)
