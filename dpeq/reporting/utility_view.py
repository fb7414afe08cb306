"""Tables and figures about performance: scores, operating points, classes, groups of patients, symmetry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from dpeq.reporting import numbers
from dpeq.reporting.utility_plots import (
    Series,
    calibration_plot,
    confusion_plot,
    precision_recall_plot,
    roc_plot,
    score_plot,
    subgroup_plot,
)

__all__ = ["utility_view"]

Rows = list[tuple[Any, ...]]
_DRAWN = (
    ("auc", "AUC"),
    ("average_precision", "Average precision"),
    ("balanced_accuracy", "Balanced accuracy"),
    ("accuracy", "Accuracy"),
)
_LISTED = (*_DRAWN, ("brier", "Brier score (lower is better)"), ("ece", "Calibration error ECE (lower is better)"))
_OF_CLASS = ("auc", "average_precision", "sensitivity", "specificity", "precision")
_AT_POINT = ("sensitivity", "specificity", "positive_predictive_value", "negative_predictive_value")
_OF_GROUP = {
    "auc": "AUC",
    "average_precision": "Average precision",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
}
_ROC_RATES = (0.01, 0.05, 0.1, 0.2, 0.5)
_RECALLS = (0.5, 0.8, 0.9, 0.95, 0.99)


def utility_view(report: dict[str, Any]) -> dict[str, Any]:
    utility = report["utility"]
    other = report["companion"]["utility"] if report["companion"] else None
    majority = {
        "auc": 0.5,
        "average_precision": utility["majority_average_precision"],
        "balanced_accuracy": 1.0 / (len(utility["classes"]) - len(utility["absent_classes"])),
        "accuracy": utility["majority_accuracy"],
    }
    several = isinstance(utility["roc"], list)
    roc, precision_recall = _curves(utility["roc"]), _curves(utility["precision_recall"])
    return {
        "scores": [
            (name, utility[key], f"{majority[key]:.3f}" if key in majority else None, *([other[key]] if other else []))
            for key, name in _LISTED
        ],
        "curves_of": "mean over classes" if several else utility["classes"][1],
        "roc_points": [(numbers.percent(rate, 0), _sensitivity(roc, rate)) for rate in _ROC_RATES],
        "precision_points": [(numbers.percent(recall, 0), _precision(precision_recall, recall)) for recall in _RECALLS],
        "operating": [
            (
                row["name"][:1].upper() + row["name"][1:],
                *([row["class"]] if several else []),
                "–" if row["threshold"] is None else f"{row['threshold']:.3f}",
                *(row[key] for key in _AT_POINT),
            )
            for row in utility["operating_points"]
        ],
        "several_classes": several,
        "rules": {row["name"][:1].upper() + row["name"][1:]: row["rule"] for row in utility["operating_points"]},
        "by_class": [
            (row["class"], numbers.show(row["n"]), *(row[key] for key in _OF_CLASS)) for row in utility["by_class"]
        ],
        "confusion_columns": ["True class", *(f"{name}#" for name in utility["classes"]), "found#"],
        "confusion": [
            (name, *map(numbers.show, row), numbers.percent(row[i] / sum(row)) if sum(row) else None)
            for i, (name, row) in enumerate(zip(utility["classes"], utility["confusion"], strict=True))
        ],
        "calibration": [
            (f"{row['low']:.2f}–{row['high']:.2f}", numbers.show(row["n"]), f"{row['predicted']:.2f}", row["observed"])
            for row in utility["calibration"]["bins"]
        ],
        "subgroups": [_subgroup(entry, i, utility) for i, entry in enumerate(utility.get("subgroups", []), 1)],
        "symmetry_rows": _symmetry(report["symmetry"]),
        "utility_figures": _figures(report, majority, several),
        "resamples": numbers.show(utility["bootstrap"]["resamples"]),
        "resampled": _resampled(utility),
    }


def _curves(curves: Any) -> Sequence[Mapping[str, Any]]:
    return curves if isinstance(curves, list) else [curves]


def _sensitivity(curves: Sequence[Mapping[str, Any]], rate: float) -> str:
    """Mean over ``curves`` of the largest sensitivity of a threshold whose false alarm rate is at most ``rate``."""
    best = [max((b for a, b in zip(c["fpr"], c["tpr"], strict=True) if a <= rate), default=0.0) for c in curves]
    return numbers.percent(sum(best) / len(best))


def _precision(curves: Sequence[Mapping[str, Any]], recall: float) -> str:
    """Mean over ``curves`` of the largest precision of a threshold whose recall is at least ``recall``."""
    best = [
        max((b for a, b in zip(c["recall"], c["precision"], strict=True) if a >= recall), default=0.0) for c in curves
    ]
    return numbers.percent(sum(best) / len(best))


def _subgroup(entry: Mapping[str, Any], number: int, utility: Mapping[str, Any]) -> dict[str, Any]:
    groups = entry["groups"]
    title = entry["attribute_title"]
    shown = [key for key in _OF_GROUP if any(group.get(key) for group in groups)]
    drawn = subgroup_plot(title, f"subgroup-{number}", groups, utility) if groups else None
    return {
        "title": title,
        "rows": [
            (
                group["value"],
                numbers.show(group["n"]),
                numbers.show(group["patients"]),
                *(group.get(k) for k in shown),
            )
            for group in groups
        ],
        "columns": ["Group", "Cases#", "Patients#", *(f"{_OF_GROUP[key]}#" for key in shown)],
        "withheld": entry["withheld"],
        "note": entry["note"],
        "figure": Markup(drawn) if drawn else None,
    }


def _symmetry(symmetry: Mapping[str, Any] | None) -> Rows:
    if symmetry is None:
        return []
    return [
        (row["name"], numbers.scientific(row["error"]) if row["error"] else "0", numbers.percent(row["agreement"]))
        for row in symmetry["elements"]
    ]


def _figures(report: dict[str, Any], majority: Mapping[str, float], several: bool) -> dict[str, Markup]:
    utility, companion = report["utility"], report["companion"]
    series = [Series("this model", {name: utility[key] for key, name in _DRAWN})]
    if companion:
        theirs = {name: companion["utility"][key] for key, name in _DRAWN}
        series.append(Series("NON-PRIVATE", theirs, "companion"))
    flat = {name: dict.fromkeys(("value", "low", "high"), majority[key]) for key, name in _DRAWN}
    series.append(Series("most frequent class", flat, "reference"))
    roc, precision_recall = _curves(utility["roc"]), _curves(utility["precision_recall"])
    labels = [curve.get("class", utility["classes"][1]) for curve in roc]
    ending = ", averaged" if several else ""
    area = f"the area under the curve is {utility['auc']['value']:.3f}{ending}"
    average = f"the average precision is {utility['average_precision']['value']:.3f}{ending}"
    calibration = utility["calibration"]
    return {
        "scores": Markup(score_plot(series)),
        "roc": Markup(roc_plot(roc, labels, area)),
        "precision_recall": Markup(
            precision_recall_plot(precision_recall, labels, utility["majority_average_precision"], average)
        ),
        "calibration": Markup(calibration_plot(calibration["bins"], calibration["of"])),
        "confusion": Markup(confusion_plot(utility["confusion"], utility["classes"])),
    }


def _resampled(utility: dict[str, Any]) -> str:
    owners = utility["bootstrap"].get("owners")
    return "within each class" if owners is None else f"all cases of a patient together, of {owners:,} patients"
