"""The curve of an attack in a report, checked against its counts, for curves drawn whole and thinned."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from made_audits import part, step_audit, training_of
from sklearn.metrics import roc_curve

from dpeq.privacy.audit.counts import rate_high, rate_low
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.check_attack import _check_threshold, _hits_at
from dpeq.reporting.check_audit import check_audits
from dpeq.reporting.check_privacy import Disagreement


def test_hits_of_a_curve_drawn_whole_are_those_of_some_threshold():
    """Against every threshold there is, also those that the curve leaves out between equal steps."""
    random = np.random.default_rng(2)
    for _ in range(300):
        judged, levels = int(random.integers(4, 40)), int(random.integers(1, 9))
        members = np.arange(judged) < random.integers(1, judged)
        scores = random.integers(0, levels, judged) + random.integers(0, 2) * members
        x, y, _ = roc_curve(members, scores)
        others = int((~members).sum())
        points = [(round(a * others), round(t * members.sum())) for a, t in zip(x, y, strict=True)]
        for passing in range(others):
            threshold = np.sort(scores[~members])[::-1][passing]
            found = _hits_at(points, passing)
            assert int((scores[members] > threshold).sum()) in found
            assert len(found) == 1 or any(b[0] > a[0] and b[1] > a[1] for a, b in pairwise(points))
    assert _hits_at([(0, 0), (4, 8), (9, 9)], 3) == {0, 4, 6}  # in one step, in two, in four


def test_audits_of_any_chance_pass(open_run):
    """Curves with many equal scores, few members, and none at a rate: drawn whole, and thinned."""
    open_plan, random, drawn = PrivacyPlan.read(open_run / "plan.json"), np.random.default_rng(1), set()
    for judged, levels in ((12, 3), (50, 4), (300, 20), (300, 2), (1000, 100), (5000, 100000)) * 4:
        scores, members = random.integers(0, levels, judged).astype(float), np.arange(judged) % 3 == 0
        audit = {"name": "x", **json.loads(training_of(open_plan, scores + members, members))}
        check_audits(part([audit]), open_plan)
        drawn.add(len(audit["attack"]["roc"]) < 200)
    assert drawn == {True, False}


def test_counts_of_another_step_do_not_fit_the_curve(plan):
    """With all that follows from them: the curve alone knows better, drawn whole and thinned."""
    for repetitions, drawn_whole in ((2000, False), (150, True)):
        true, other = (
            {"name": "step", **json.loads(step_audit(plan, repetitions, louder=louder))} for louder in (1.0, 0.9)
        )
        assert (len(true["attack"]["roc"]) < 200) is drawn_whole
        forged = true | {key: other[key] for key in ("epsilon_lower", "details")}
        check_audits(part([true]), plan)
        with pytest.raises(Disagreement, match="step/attack/roc does not pass through the"):
            check_audits(part([forged]), plan)


def test_a_threshold_lies_on_a_curve_that_is_drawn_whole():
    attack = {"members": 4, "others": 4, "roc": [[0, 0], [0.5, 1], [1, 1]]}
    for alarms, misses, on in ((0, 4, True), (1, 2, True), (2, 0, True), (3, 0, True), (1, 3, False), (1, 1, False)):
        details = {"false_alarms": alarms, "misses": misses}
        if on:
            _check_threshold(attack, details, "x")
            continue
        with pytest.raises(Disagreement, match=f"x/roc does not pass through the {alarms} false alarms"):
            _check_threshold(attack, details, "x")


def test_a_threshold_lies_on_an_upright_part_and_not_below_it():
    attack = {"members": 4, "others": 4, "roc": [[0, 0], [0.5, 0.5], [0.5, 1], [1, 1]]}
    for misses in (2, 1, 0):
        _check_threshold(attack, {"false_alarms": 2, "misses": misses}, "x")
    with pytest.raises(Disagreement, match="x/roc does not pass through the 2 false alarms and 1 hits"):
        _check_threshold(attack, {"false_alarms": 2, "misses": 3}, "x")


def test_a_curve_drawn_whole_leaves_hits_no_room(open_run):
    """Where many share a score, so that the curve jumps over the rate."""
    open_plan, members = PrivacyPlan.read(open_run / "plan.json"), np.arange(60) % 2 == 0
    scores = np.random.default_rng(4).integers(0, 3, 60).astype(float)
    audit = {"name": "x", **json.loads(training_of(open_plan, scores, members))}
    attack = audit["attack"]
    row, n = attack["hit_rates"][1], attack["members"]
    assert row["hits"] == 0 < attack["roc"][1][0]
    check_audits(part([audit]), open_plan)
    row |= {"hits": 1 / n, "low": float(rate_low(1, n, 0.975)), "high": float(rate_high(1, n, 0.975))}
    with pytest.raises(Disagreement, match=r"x/attack/hit_rates/1/hits is .*, and not so on the curve"):
        check_audits(part([audit]), open_plan)
