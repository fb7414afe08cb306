"""Whether the scores of one set of cases agree with each other: what counts can tell without the cases.

The confusion matrix fixes accuracy, recalls, precisions and prevalences; a curve fixes the area under it, bins fix the
calibration error up to rounding, and the rates of an operating point are shares of whole numbers. Intervals are checked
to hold their values and no further, and nothing fixes the Brier score: for these the run is asked.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from dpeq.reporting.check_privacy import Disagreement

__all__ = ["check_utility"]

_EXACT = 1e-9
_THINNED = 0.01  # what an area may change when its curve is drawn with 200 points
_ROUNDED = 0.005 + 1e-9  # mean predictions of bins have two digits
_WIDTH = 1.001 / 15  # a wider bin of the calibration is of several, and says less of the error
_TIES = 1e-3  # p and 1 - p round apart, and may make ties of their own
_POINTS = 199  # cases whose curve is drawn whole for certain: 200 points, one more than there are cases

Utility = dict[str, Any]


def check_utility(utility: Utility, name: str) -> None:
    """Raises :class:`Disagreement` that names the first score of the set ``name`` that contradicts another."""
    try:
        counts = _counts(utility)
        _intervals(utility, "")
        _totals(utility, counts)
        _by_class(utility, counts)
        _operating(utility, counts)
        _curves(utility)
        _calibration(utility, counts)
        _subgroups(utility)
    except Disagreement as error:
        raise Disagreement(f"the {name} scores contradict each other: {error}") from error


def _counts(utility: Utility) -> np.ndarray[Any, np.dtype[np.int64]]:
    k = len(utility["classes"])
    if len(utility["confusion"]) != k or any(len(row) != k for row in utility["confusion"]):
        raise Disagreement("the confusion matrix does not have a row and a column for every class")
    counts = np.asarray(utility["confusion"], dtype=np.int64)
    if counts.sum() != utility["n"]:
        raise Disagreement(f"the confusion matrix counts {counts.sum()} cases of {utility['n']}")
    absent = [utility["classes"][c] for c in range(k) if not counts[c].any()]
    if utility["absent_classes"] != absent:
        raise Disagreement("the classes without a case are not those of the confusion matrix")
    return counts


def _intervals(part: Any, place: str) -> None:
    if isinstance(part, dict) and {"value", "low", "high"} <= part.keys():
        if not part["low"] <= part["value"] <= part["high"]:
            raise Disagreement(f"the interval of {place} does not hold its value")
        return
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in items:
        if isinstance(value, dict | list):
            _intervals(value, f"{place}/{key}".strip("/"))


def _totals(utility: Utility, counts: np.ndarray[Any, Any]) -> None:
    n, rows = utility["n"], counts.sum(axis=1)
    present = np.flatnonzero(rows)
    recalls = counts.diagonal()[present] / rows[present]
    scored = [1] if len(rows) == 2 else present
    _same("accuracy", utility["accuracy"]["value"], counts.trace() / n)
    _same("balanced_accuracy", utility["balanced_accuracy"]["value"], recalls.mean())
    _same("majority_accuracy", utility["majority_accuracy"], rows.max() / n)
    _same("majority_average_precision", utility["majority_average_precision"], (rows[scored] / n).mean())
    told = [(row["class"], row["n"]) for row in utility["recall"]]
    if told != [(utility["classes"][c], int(rows[c])) for c in present]:
        raise Disagreement("classes and counts of recall are not those of the confusion matrix")
    for row, recall in zip(utility["recall"], recalls, strict=True):
        _same(f"recall of {row['class']}", row["value"], recall)


def _by_class(utility: Utility, counts: np.ndarray[Any, Any]) -> None:
    n, rows, columns = utility["n"], counts.sum(axis=1), counts.sum(axis=0)
    present = np.flatnonzero(rows)
    if [(row["class"], row["n"]) for row in utility["by_class"]] != [
        (utility["classes"][c], int(rows[c])) for c in present
    ]:
        raise Disagreement("classes and counts of by_class are not those of the confusion matrix")
    for row, c in zip(utility["by_class"], present, strict=True):
        right = counts[c, c]
        others = n - rows[c]
        for key, part, whole in (
            ("sensitivity", right, rows[c]),
            ("specificity", others - columns[c] + right, others),
            ("precision", right, columns[c]),
        ):
            _share(f"{key} of {row['class']}", row[key], part, whole)
    scored = utility["by_class"][1:] if len(rows) == 2 else utility["by_class"]
    for key in ("auc", "average_precision"):
        _same(key, utility[key]["value"], float(np.mean([row[key]["value"] for row in scored])))
    if len(rows) == 2:
        one, other = (row["auc"]["value"] for row in utility["by_class"])
        _same("auc of the classes", one, other, slack=_TIES)


def _operating(utility: Utility, counts: np.ndarray[Any, Any]) -> None:
    rows = counts.sum(axis=1)
    for point in utility["operating_points"]:
        place = f"operating point {point['name']!r} of {point['class']}"
        if point["class"] not in utility["classes"]:
            raise Disagreement(f"there is no class for {place}")
        positives = int(rows[utility["classes"].index(point["class"])])
        negatives = utility["n"] - positives
        right = _whole(f"sensitivity at {place}", point["sensitivity"], positives)
        spared = _whole(f"specificity at {place}", point["specificity"], negatives)
        if point["name"] == "most probable class" and [right, spared] != [int(counts[1, 1]), int(counts[0, 0])]:
            raise Disagreement(f"{place} is not that of the confusion matrix")
        alarms = negatives - spared
        _share(f"positive predictive value at {place}", point["positive_predictive_value"], right, right + alarms)
        rest = spared + positives - right
        _share(f"negative predictive value at {place}", point["negative_predictive_value"], spared, rest)


def _curves(utility: Utility) -> None:
    """AUC is the area under the curve, average precision the sum of its steps: of class 1, or the mean over classes."""
    roc = utility["roc"] if isinstance(utility["roc"], list) else [utility["roc"]]
    steps = utility["precision_recall"]
    steps = steps if isinstance(steps, list) else [steps]
    for curve in roc:
        x, y = curve["fpr"], curve["tpr"]
        if len(x) != len(y) or [x[0], y[0], x[-1], y[-1]] != [0, 0, 1, 1] or _falls(x) or _falls(y):
            raise Disagreement("a ROC curve does not rise from (0, 0) to (1, 1)")
    for curve in steps:
        x, y = curve["recall"], curve["precision"]
        if len(x) != len(y) or x[-1] != 1 or _falls(x):
            raise Disagreement("a precision-recall curve does not run up to recall 1")
    slack = 1e-6 if utility["n"] <= _POINTS else _THINNED
    area = np.mean([_trapezoids(curve["fpr"], curve["tpr"]) for curve in roc])
    _same("auc and the ROC curve", utility["auc"]["value"], float(area), slack=slack)
    area = np.mean([np.diff(curve["recall"]) @ np.asarray(curve["precision"])[1:] for curve in steps])
    name = "average_precision and the precision-recall curve"
    _same(name, utility["average_precision"]["value"], float(area), slack=slack)


def _calibration(utility: Utility, counts: np.ndarray[Any, Any]) -> None:
    bins = [row for row in utility["calibration"]["bins"] if row["n"]]
    if sum(row["n"] for row in bins) != utility["n"]:
        raise Disagreement("the bins of the calibration do not hold all cases")
    observed = [_whole("the frequency in a bin", row["observed"], row["n"]) for row in bins]
    positives = counts.sum(axis=1)[1] if len(counts) == 2 else counts.trace()
    if sum(observed) != positives:
        raise Disagreement("the frequencies in the bins of the calibration are not those of the confusion matrix")
    if any(not row["low"] - _ROUNDED <= row["predicted"] <= row["high"] + _ROUNDED for row in bins):
        raise Disagreement("a mean prediction lies outside its bin of the calibration")
    least = most = 0.0
    for row, seen in zip(bins, observed, strict=True):
        gap, slack = abs(row["predicted"] * row["n"] - seen), _ROUNDED * row["n"]
        least += max(0.0, gap - slack)
        joined = row["high"] - row["low"] > _WIDTH  # positive and negative cases may lie in bins of their own
        most += seen * (1 - row["low"]) + (row["n"] - seen) * row["high"] if joined else gap + slack
    if not least - _EXACT <= utility["ece"]["value"] * utility["n"] <= most + _EXACT:
        raise Disagreement(f"ece and the bins: {utility['ece']['value']:.6g} cannot be")


def _subgroups(utility: Utility) -> None:
    for entry in utility.get("subgroups", ()):
        if sum(group["n"] for group in entry["groups"]) + entry["withheld"] != utility["n"]:
            raise Disagreement(f"the groups by {entry['attribute']} do not add up to all cases")
        for group in entry["groups"]:
            place = f"the accuracy of {entry['attribute']} {group['value']}"
            _whole(place, group["accuracy"], group["n"])


def _whole(name: str, score: dict[str, float] | None, of: int) -> int:
    """How many of ``of`` cases a share is; None stands for a share of nothing."""
    if score is None:
        if of:
            raise Disagreement(f"{name} is missing")
        return 0
    count = score["value"] * of
    if not math.isfinite(count) or abs(count - round(count)) > _EXACT * max(of, 1):
        raise Disagreement(f"{name} is no share of {of} cases")
    return round(count)


def _share(name: str, score: dict[str, float] | None, part: int, whole: int) -> None:
    if (score is None) != (whole == 0):
        raise Disagreement(f"{name} should {'not ' if whole == 0 else ''}be given")
    if score is not None:
        _same(name, score["value"], part / whole)


def _same(name: str, said: float, found: float, slack: float = _EXACT) -> None:
    if not math.isclose(said, found, rel_tol=0.0, abs_tol=slack):
        raise Disagreement(f"{name}: {said:.6g} and {found:.6g}")


def _trapezoids(x: list[float], y: list[float]) -> float:
    heights = np.asarray(y)
    return float(np.diff(x) @ (heights[1:] + heights[:-1]) / 2.0)


def _falls(values: list[float]) -> bool:
    return not all(b >= a for a, b in pairwise(values))
