"""Numbers that compare with nothing, and keys that stand twice, are refused by name before anything is compared."""

from __future__ import annotations

import copy
import json
import math

import pytest

from dpeq.errors import DataError
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.audit import read_audit
from dpeq.reporting.check import check_contents, check_report
from dpeq.reporting.check_privacy import Disagreement, _above, _below, _difference
from dpeq.reporting.check_utility import check_utility
from dpeq.reporting.strict import read_strict
from dpeq.reporting.summary_check import check_summary

PLACES = [
    ("guarantee", "epsilon"),
    ("guarantee", "mu"),
    ("risk", "advantage"),
    ("risk", "trade_off", 3, 1),
    ("epsilon_curve", 4, 1),
    ("accountants", "epsilon", "rdp"),
    ("utility", "brier", "high"),
]


def put(report, place, value):
    for key in place[:-1]:
        report = report[key]
    report[place[-1]] = value


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "/".join(map(str, place)))
def test_what_is_no_number_is_refused_by_name(report, tmp_path, place):
    path = tmp_path / "report.json"
    name = "/".join(map(str, place))
    for word in ("NaN", "-Infinity", "1e999"):
        changed = copy.deepcopy(report)
        put(changed, place, "WORD")
        path.write_text(json.dumps(changed).replace('"WORD"', word))
        with pytest.raises(DataError, match=f"{name} is no finite number"):
            check_report(path)
    put(changed, place, math.nan)
    with pytest.raises(Disagreement, match=f"{name} is no finite number"):
        check_contents(changed)


def test_a_key_that_stands_twice_is_refused(report, summarised, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report).replace('"mu":', '"mu": 0.1, "mu":', 1))
    with pytest.raises(DataError, match="'mu' stands in it twice"):
        check_report(path)
    summary = tmp_path / "summary.json"
    summary.write_text(json.dumps(summarised).replace('"level":', '"level": 0.9, "level":', 1))
    with pytest.raises(DataError, match="'level' stands in it twice"):
        check_summary(summary)


@pytest.mark.parametrize("place", [("privacy", "epsilon"), ("runs", 0, "spent"), ("runs", 1, "scores", "auc", "low")])
def test_a_summary_with_what_is_no_number_is_refused_by_name(summarised, tmp_path, place):
    changed = copy.deepcopy(summarised)
    put(changed, place, math.nan)
    (tmp_path / "summary.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match=f"{'/'.join(map(str, place))} is no finite number"):
        check_summary(tmp_path / "summary.json")


def test_files_that_are_no_sound_json(tmp_path, private_run):
    plan = PrivacyPlan.read(private_run / "plan.json")
    path = tmp_path / "audit.json"
    for text, reason in (
        ("9" * 400, "the whole is no finite number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"details": {"a": [1, NaN]}}', "details/a/1 is no finite number"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_strict(path)
        with pytest.raises(DataError, match=reason):
            read_audit(tmp_path, plan)
    path.write_text('{"a": [1, 2.5, true, null, "NaN"]}')
    assert read_strict(path) == {"a": [1, 2.5, True, None, "NaN"]}


def test_comparisons_alone_would_refuse_it_too(report):
    nan = math.nan
    assert _below(nan, 1.0)
    assert _above(nan, 1.0)
    assert _difference({"x": nan}, {"x": 1.0}, "risk")
    assert _difference([[0.0, nan]], [[0.0, 1.0]], "trade_off", "trade_off")
    for curve, side in (("roc", "fpr"), ("precision_recall", "recall")):
        changed = copy.deepcopy(report["utility"])
        changed[curve][side][2] = nan
        with pytest.raises(Disagreement, match=r"does not (rise|run)"):
            check_utility(changed, "test")
    changed = copy.deepcopy(report["utility"])
    changed["operating_points"][1]["sensitivity"]["value"] = nan
    with pytest.raises(Disagreement, match="test scores contradict"):
        check_utility(changed, "test")
