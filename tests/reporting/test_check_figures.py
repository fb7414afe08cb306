"""Every figure of a report, changed one at a time: each change is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dpeq.evaluation.metrics import evaluate_predictions
from dpeq.privacy import accounting
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.check import Disagreement, check_contents
from dpeq.reporting.check_utility import check_utility
from dpeq.reporting.guarantee import readers, spent
from dpeq.reporting.model import build_report
from dpeq.reporting.risks import risk_from_dict


def figures(part: Any, *path: str | int) -> Iterator[tuple[str | int, ...]]:
    """Paths of all numbers and truth values below ``part``."""
    if isinstance(part, dict | list):
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            yield from figures(value, *path, key)
    elif isinstance(part, bool | int | float) or part == "inf":
        yield path


def changed(value: Any, factor: float) -> Any:
    if isinstance(value, bool):
        return not value
    if value == "inf":
        return 5.0
    if isinstance(value, int):
        return value + (1 if factor > 1 else -1)
    return value * factor if value else abs(factor - 1)


def survivors(report: dict[str, Any], paths: list[tuple[str | int, ...]], factor: float) -> list[Any]:
    """The changes that a check lets pass."""
    left = []
    for path in paths:
        place = report
        for key in path[:-1]:
            place = place[key]
        kept = place[path[-1]]
        if isinstance(kept, float) and 0 < kept < 1e-10:
            continue  # rounding may change it as much
        place[path[-1]] = changed(kept, factor)
        try:
            check_contents(report)
            left.append((*path, kept))
        except Disagreement:
            pass
        place[path[-1]] = kept
    return left


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_no_figure_of_the_guarantee_can_be_changed(report, factor):
    report = copy.deepcopy(report)
    parts = ("guarantee", "risk", "accountants", "epsilon_curve")
    # A hundred points of a curve are refused for the same reason; every fourth will do.
    paths = [p for part in parts for p in figures(report[part], part) if not (len(p) == 4 and p[2] % 4)]  # type: ignore[operator]
    assert len(paths) > 150
    with accounting.session():
        check_contents(report)
        assert survivors(report, paths, factor) == []


@pytest.mark.parametrize(
    ("path", "kinder"),
    [
        (("risk", "hit_rates", 0, "hits"), 1 - 1e-4),
        (("risk", "posteriors", 1, "usually"), 1 - 1e-4),
        (("risk", "profile", 20, 1), 1 - 1e-4),
        (("risk", "trade_off", 20, 1), 1 + 1e-4),
        (("epsilon_curve", 5, 1), 1 - 1e-4),
    ],
)
def test_a_bound_may_be_a_little_above_the_truth_and_never_below(report, path, kinder):
    """Releases of an accountant differ in last digits; only one side of that is safe to let pass."""
    report = copy.deepcopy(report)
    place = report
    for key in path[:-1]:
        place = place[key]
    truth = place[path[-1]]
    place[path[-1]] = truth * kinder
    with pytest.raises(Disagreement, match="when computed anew"):
        check_contents(report)
    place[path[-1]] = truth * (2 - kinder)
    restate(report)  # a rounded figure may move with it
    assert check_contents(report)


def restate(report: dict[str, Any]) -> None:
    plan = PrivacyPlan.from_dict(report["plan"])
    report["guarantee"].update(readers(plan, spent(plan, plan.steps), risk_from_dict(report["risk"])))


def test_a_processor_that_rounds_otherwise_is_no_forger(report):
    """mu and the profile reach to deltas of 1e-10, of which rounding is a thousandth."""
    report = copy.deepcopy(report)
    risk = report["risk"]
    points, deltas = (np.array(column) for column in zip(*risk["profile"], strict=True))
    asked = points * (1 - 1e-5)
    drawn = np.exp(np.interp(asked, points, np.log(deltas))) + 5e-13
    risk["profile"] = [list(pair) for pair in zip(asked.tolist(), drawn.tolist(), strict=True)]
    with accounting.session():
        check_contents(report)
        risk["profile"] = [list(pair) for pair in zip(asked.tolist(), (drawn * (1 - 1e-3)).tolist(), strict=True)]
        with pytest.raises(Disagreement, match="risk/profile/"):
            check_contents(report)
        risk["profile"] = [[0.99 * epsilon, delta] for epsilon, delta in zip(points, deltas, strict=True)]
        with pytest.raises(Disagreement, match="risk/profile/"):
            check_contents(report)


def test_the_curves_of_many_cases_are_thinned():
    """Where precision jumps at the first cases, a thinned curve has far fewer than 200 points."""
    rng = np.random.default_rng(3)
    labels = (np.arange(624) >= 234).astype(int)
    score = 1 / (1 + np.exp(-(rng.normal(size=624) + 3 * (labels - 0.4))))
    order = np.argsort(-score)
    score[order[1]], labels[order[0]], labels[order[1]] = score[order[0]] - 1e-9, 1, 0
    utility = evaluate_predictions(np.stack([1 - score, score], 1), labels, ("a", "b"), n_bootstrap=100)
    assert len(utility["precision_recall"]["recall"]) < 190
    check_utility(utility, "test")


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_no_figure_of_a_group_of_images_can_be_changed(image_run, factor):
    report = build_report(image_run, images_per_patient=3)
    paths = [p for p in figures(report["group_risk"], "group_risk") if not (len(p) == 4 and p[2] % 8)]  # type: ignore[operator]
    assert survivors(report, paths, factor) == []


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_no_figure_of_an_open_report_can_be_changed(open_report, factor):
    report = copy.deepcopy(open_report)
    assert survivors(report, list(figures(report["guarantee"], "guarantee")), factor) == []


def three_classes() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], [30, 40, 50])
    score = np.exp(rng.normal(size=(120, 4)) + 1.5 * np.eye(4)[labels])
    return evaluate_predictions(score / score.sum(1, keepdims=True), labels, list("abcd"), n_bootstrap=20)


@pytest.mark.parametrize("factor", [0.98, 1.02])
@pytest.mark.parametrize("classes", [2, 4])
def test_no_score_that_counts_fix_can_be_changed(report, classes, factor):
    utility = copy.deepcopy(report["utility"]) if classes == 2 else three_classes()
    check_utility(utility, "test")
    free = {"low", "high", "brier", "ece", "bootstrap", "threshold", "roc", "precision_recall", "predicted"}
    paths = [
        path
        for path in figures(utility)
        if not free.intersection(map(str, path)) and not ("average_precision" in path and path[:2] == ("by_class", 0))
    ]
    left = []
    for path in paths:
        place = utility
        for key in path[:-1]:
            place = place[key]
        kept = place[path[-1]]
        place[path[-1]] = changed(kept, factor)
        try:
            check_utility(utility, "test")
            left.append((*path, kept))
        except Disagreement:
            pass
        place[path[-1]] = kept
    assert left == []
    assert len(paths) > 60


def test_intervals_bins_and_curves_must_be_possible(report):
    def refuse(reason, change):
        utility = copy.deepcopy(report["utility"])
        change(utility)
        with pytest.raises(Disagreement, match=reason):
            check_utility(utility, "test")

    refuse("interval of brier", lambda u: u["brier"].update(low=0.9))
    refuse(
        "interval of operating_points/1/sensitivity", lambda u: u["operating_points"][1]["sensitivity"].update(high=0)
    )
    refuse("row and a column", lambda u: u["confusion"].pop())
    refuse("classes without a case", lambda u: u["absent_classes"].append("normal"))
    refuse("ROC curve", lambda u: u["roc"]["tpr"].reverse())
    refuse("run up to recall 1", lambda u: u["precision_recall"]["recall"].reverse())
    refuse("average_precision and the", lambda u: u["precision_recall"].update(precision=[0.9] * 199))
    refuse("outside its bin", lambda u: u["calibration"]["bins"][3].update(predicted=0.9))
    refuse("ece and the bins", lambda u: u["ece"].update(value=u["ece"]["value"] - 0.04, low=0.0))
    refuse("ece and the bins", lambda u: u["ece"].update(value=u["ece"]["value"] + 0.04, high=1.0))
    refuse("is missing", lambda u: u["operating_points"][1].update(sensitivity=None))
    refuse(
        "predictive value .* should be given", lambda u: u["operating_points"][1].update(positive_predictive_value=None)
    )
    refuse("no class for", lambda u: u["operating_points"][1].update({"class": "lupus"}))
    groups = [{"value": "F", "n": 600, "accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}]
    refuse("add up", lambda u: u.update(subgroups=[{"attribute": "sex", "groups": groups, "withheld": 20}]))
    groups[0]["n"], groups[0]["accuracy"]["value"] = 604, 0.501
    refuse("no share", lambda u: u.update(subgroups=[{"attribute": "sex", "groups": groups, "withheld": 20}]))
