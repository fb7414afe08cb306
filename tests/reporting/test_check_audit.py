"""Audits in a report, computed anew: whatever in them follows from the plan or from their own counts must do so."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from made_audits import put_audit, step_audit, training_audit, training_of
from sklearn.metrics import roc_curve

from dpeq.privacy.audit.counts import rate_high, rate_low
from dpeq.privacy.audit.result import METHODS
from dpeq.privacy.audit.steps import STEP
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.audit import hide_units, refuted
from dpeq.reporting.audit_form import kind_of, said_of
from dpeq.reporting.check import check_report
from dpeq.reporting.check_attack import _check_threshold, _hits_at
from dpeq.reporting.check_audit import check_audits
from dpeq.reporting.check_privacy import Disagreement
from dpeq.reporting.model import build_report

AUDITS = ("one-run", "shadow", "step", "step-coins")


def part(audits):
    """What a report has about them."""
    trainings = sum(audit["details"].get("trainings", 0) for audit in audits)
    return {"audits": audits, "audit_trainings": trainings, "unfinished_audits": []}


@pytest.fixture(scope="module")
def plan(private_run):
    return PrivacyPlan.read(private_run / "plan.json")


@pytest.fixture(scope="module")
def audits(plan):
    written = {
        "one-run": training_audit(plan, 1.5),
        "shadow": training_audit(plan, 0.5, judged=60, kind="member", shadows=8),
        "step": step_audit(plan),
        "step-coins": step_audit(plan, certain=False),
    }
    return [{"name": name, **json.loads(text)} for name, text in sorted(written.items())]


def at(audits, name):
    return audits[AUDITS.index(name)]


def test_true_audits_pass_alone_in_a_report_and_beside_their_run(audits, plan, make_run, tmp_path):
    assert [audit["name"] for audit in audits] == list(AUDITS)
    assert len(at(audits, "one-run")["attack"]["roc"]) == 200  # thinned
    assert len(at(audits, "shadow")["attack"]["roc"]) < 60  # drawn whole
    assert check_audits(part(audits), plan) == [
        "Limits, intervals and areas of its audits follow from the plan and from their counts, computed anew."
    ]
    assert check_audits(part([]), plan) == []
    run = make_run()
    for audit in audits:
        put_audit(run, audit["name"], json.dumps({key: value for key, value in audit.items() if key != "name"}))
    path = tmp_path / "report.json"
    path.write_text(json.dumps(build_report(run)))
    for folder in (None, run):
        assert any("of its audits follow" in line for line in check_report(path, run_dir=folder))


def test_audits_of_any_chance_pass(open_run):
    """Curves with many equal scores, few members, and none at a rate: drawn whole, and thinned."""
    open_plan, random, drawn = PrivacyPlan.read(open_run / "plan.json"), np.random.default_rng(1), set()
    for judged, levels in ((12, 3), (50, 4), (300, 20), (300, 2), (1000, 100), (5000, 100000)) * 4:
        scores, members = random.integers(0, levels, judged).astype(float), np.arange(judged) % 3 == 0
        audit = {"name": "x", **json.loads(training_of(open_plan, scores + members, members))}
        check_audits(part([audit]), open_plan)
        drawn.add(len(audit["attack"]["roc"]) < 200)
    assert drawn == {True, False}


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


def put(*place, value):
    """Replaces an entry of an audit: ``place`` begins with the audit's name; a callable changes what is there."""

    def change(audits):
        entry = at(audits, place[0])
        for key in place[1:-1]:
            entry = entry[key]
        entry[place[-1]] = value(entry[place[-1]]) if callable(value) else value

    return change


def carefully_lower(audits):
    """A kinder hit rate with an interval that fits: only the curve knows better."""
    attack = at(audits, "step")["attack"]
    row, n = attack["hit_rates"][1], attack["members"]
    hits = round(row["hits"] * n) - 20
    row |= {"hits": hits / n, "low": float(rate_low(hits, n, 0.975)), "high": float(rate_high(hits, n, 0.975))}


def carefully_higher(audits):
    attack = at(audits, "step")["attack"]
    row, n = attack["hit_rates"][1], attack["members"]
    hits = round(row["hits"] * n) + 150  # the curve is thinned, and knows no fewer
    row |= {"hits": hits / n, "low": float(rate_low(hits, n, 0.975)), "high": float(rate_high(hits, n, 0.975))}


def a_contradiction_hidden(audits):
    row = at(audits, "one-run")["attack"]["hit_rates"][0]
    row["allowed"] = row["low"] * 0.9


def a_weaker_bound_carefully(audits):
    """With its share: the counts know better."""
    audit = at(audits, "one-run")
    audit["epsilon_lower"] *= 0.9
    audit["details"]["share"] *= 0.9


def a_weaker_strength_carefully(audits):
    audit = at(audits, "step")
    audit["details"]["strength"] *= 0.9
    audit["details"]["noise_multiplier_at_most"] /= 0.9


def a_point_that_is_no_share(audits):
    roc = at(audits, "one-run")["attack"]["roc"]
    i = next(i for i, (a, b) in enumerate(pairwise(roc)) if b[1] > a[1] and a[1] > 0 and a[0] > 0)
    roc[i][1] += (roc[i + 1][1] - roc[i][1]) / 2.5


def both_confidences(audits):
    at(audits, "step")["confidence"] = at(audits, "step")["attack"]["confidence"] = 0.9


def another_limit_rate(audits):
    """Where the limit is as high as the plan's: at a rate that nobody asked for."""
    limit = at(audits, "step")["attack"]["limit"]
    limit[7] = limit[8]


def renamed(audits):
    audits[0]["name"], audits[1]["name"] = "shadow", "one-run"


def twice(audits):
    audits[1]["name"] = audits[0]["name"]


FORGERIES = [
    (put("step", "details", "threshold", value=lambda x: x + 0.1), "step/details/threshold"),
    (renamed, "order of their names"),
    (twice, "order of their names, each once"),
    (put("step", "details", "verdict", value="proven"), "step/details/verdict says what no audit does"),
    (put("step", "attack", "roc", value=[[0, 0], [0.5, 1]]), "step/attack/roc says what no attack does"),
    (put("step", "delta", value=1e-5), "step/delta"),
    (put("step", "details", "theoretical", value=9.0), "step/details/theoretical says what no audit of"),
    (put("step", "details", "theoretical", value=None), "step/details/theoretical says what no audit of"),
    (put("step", "details", "theoretical", value="inf"), "step/details/theoretical says what no audit of"),
    (put("step", "details", "share", value=lambda x: x * 0.99), "details/share"),
    (put("step", "details", "share", value=None), "details/share is None"),
    (put("step", "details", "contradicts", value=True), "step/details/contradicts says what no audit"),
    (put("step", "details", "noise_multiplier", value=2.0), "details/noise_multiplier is 2.0"),
    (put("one-run", "details", "steps", value=100), "details/steps is 100"),
    (put("step", "attack", "of", value="training"), "attack/of is training"),
    (put("one-run", "attack", "of", value="step"), "attack/of is step"),
    (a_weaker_bound_carefully, "one-run/epsilon_lower"),
    (put("one-run", "confidence", value=0.9), "one-run/confidence is 0.9"),
    (put("one-run", "details", "strength", value=lambda x: x * 0.9), "one-run/details/strength"),
    (put("one-run", "details", "correct", value=lambda x: x - 10), "one-run/details/epsilon_lower_assuming_nothing"),
    (put("one-run", "details", "correct", value=10000), "one-run/details/correct is 10000 of"),
    (put("one-run", "details", "candidates", value=2), "one-run/details/candidates is 2"),
    (lambda audits: at(audits, "one-run")["details"].pop("strength"), "one-run/details/strength is missing"),
    (put("one-run", "details", "canaries", value=999), "one-run/details/canaries is 999"),
    (put("one-run", "details", "epsilon_lower_assuming_nothing", value=lambda x: x + 0.1), "assuming_nothing"),
    (put("one-run", "details", "mu_lower", value=1.0), "one-run/details/mu_lower is 1.0"),
    (a_weaker_strength_carefully, "step/details/strength"),
    (both_confidences, "step/confidence is 0.9"),
    (put("step", "details", "misses", value=lambda x: x + 50), "step/details/misses_high"),
    (put("step", "details", "misses", value=100000), "step/details/misses is 100000"),
    (put("step", "details", "runs_with", value=1999), "step/details/runs_with is 1999"),
    (put("step", "details", "misses_high", value=0.9), "step/details/misses_high"),
    (put("step", "details", "false_alarms_high", value=0.9), "step/details/false_alarms_high"),
    (put("step", "details", "noise_multiplier_at_most", value=9.0), "step/details/noise_multiplier_at_most"),
    (put("step", "details", "in_every_step", value=False), "step/details/assumes"),
    (put("step-coins", "details", "in_every_step", value=True), "step-coins/details/assumes"),
    (put("step", "details", "one_step_epsilon_lower", value=1.0), "step/details/one_step_epsilon_lower"),
    (put("step", "details", "one_step_theoretical", value=3.0), "step/details/one_step_theoretical"),
    (put("step", "details", "one_step_contradicts", value=True), "step/details/one_step_contradicts"),
    (put("step", "epsilon_lower", value=0.0), "step/details/share"),
    (lambda audits: at(audits, "step")["details"].pop("misses"), "step/details/misses is missing"),
    (put("step", "attack", "auc", value=lambda x: x - 0.02), "step/attack/auc"),
    (put("step", "attack", "auc", value=lambda x: x + 0.02), "step/attack/auc"),
    (put("shadow", "attack", "auc", value=lambda x: x - 1e-6), "shadow/attack/auc"),
    (a_point_that_is_no_share, "no shares of those it judged"),
    (put("shadow", "attack", "members", value=lambda x: x - 1), "shadow/(details/canaries|attack)"),
    (put("step", "attack", "hit_rates", 0, "hits", value=lambda x: x + 1e-4), "step/attack/hit_rates/0/hits"),
    (put("step", "attack", "hit_rates", 0, "rate", value=0.0005), "step/attack/hit_rates are at"),
    (carefully_lower, "step/attack/hit_rates/1/hits is .*, and not so on the curve"),
    (carefully_higher, "step/attack/hit_rates/1/hits is .*, and not so on the curve"),
    (put("step", "attack", "hit_rates", 0, "low", value=0.0), "step/attack/hit_rates/0/low"),
    (put("step", "attack", "hit_rates", 0, "high", value=1.0), "step/attack/hit_rates/0/high"),
    (put("step", "attack", "hit_rates", 1, "false_alarms_high", value=0.5), "hit_rates/1/false_alarms_high"),
    (put("step", "attack", "hit_rates", 1, "allowed", value=lambda x: x * 1.01), "step/attack/hit_rates/1/allowed"),
    (put("step", "attack", "hit_rates", 1, "allowed", value=None), "step/attack/hit_rates/1/allowed is None"),
    (put("step", "attack", "hit_rates", 1, "contradicts", value=True), "hit_rates/1/contradicts is True"),
    (a_contradiction_hidden, "one-run/attack/hit_rates/0/allowed"),
    (put("step", "attack", "confidence", value=0.99), "step/attack/confidence is 0.99, and that of the bound"),
    (put("step", "attack", "limit", 30, 1, value=lambda x: x * 1.005), "step/attack/limit/30/1"),
    (put("one-run", "attack", "limit", value=None), "one-run/attack/limit is missing"),
    (lambda audits: at(audits, "step")["attack"]["limit"].pop(7), "step/attack/limit has 101 points, and 102"),
    (another_limit_rate, "step/attack/limit/7/0"),
    (lambda audits: at(audits, "one-run")["attack"]["hit_rates"].pop(0), "one-run/attack/hit_rates are at"),
    (put("step", "method", value="one private step, 4001 times"), "step/method says what no audit of this plan does"),
    (put("step", "method", value="All is well, 4000 times"), "step/method"),
    (put("one-run", "method", value="gradient canaries, one run, gaussian curves"), "one-run/method"),
    (put("one-run", "details", "assumes", value="Nothing about the mechanism."), "one-run/details/assumes"),
    (put("step", "details", "assumes", value=lambda said: said.replace("not ", "")), "step/details/assumes"),
    (put("one-run", "details", "trainings", value=0), "one-run/details/trainings"),
    (put("shadow", "details", "trainings", value=1), "shadow/details/trainings"),
    (put("shadow", "details", "looks_at_units", value=False), "shadow/details/looks_at_units"),
    (put("one-run", "details", "looks_at_units", value=True), "one-run/details/looks_at_units"),
    (put("one-run", "details", "shadow_models", value=4), "one-run/details/shadow_models"),
    (lambda audits: at(audits, "shadow")["details"].pop("shadow_models"), "shadow/details/shadow_models"),
    (lambda audits: at(audits, "step")["details"].pop("looks_at_units"), "step/details/looks_at_units"),
    (lambda audits: at(audits, "step")["details"].pop("trainings"), "step/details/trainings"),
    (lambda audits: at(audits, "one-run")["details"].pop("correct"), "one-run/details/correct is missing"),
    (lambda audits: at(audits, "one-run")["details"].pop("candidates"), "one-run/details/candidates is missing"),
    (put("one-run", "details", "one_step_epsilon_lower", value=9.0), "one-run/details/one_step_epsilon_lower"),
    (put("one-run", "attack", value=None), "one-run/(details|attack)"),
    (put("one-run", "details", "hits_above_limit", value=False), "one-run/details/hits_above_limit"),
    *((put("step", "details", key, value=None), f"step/details/{key}") for key in ("runs_with", "misses")),
    *((put("one-run", "details", key, value=None), f"details/{key}") for key in ("guessed_in", "correct")),
    (put("step", "epsilon_lower", value=None), "step shows an attack without its bound"),
]


@pytest.mark.parametrize(
    ("forgery", "reason"), FORGERIES, ids=[f"{k}-{reason[:40]}" for k, (_, reason) in enumerate(FORGERIES)]
)
def test_a_forged_value_is_found(audits, plan, forgery, reason):
    changed = copy.deepcopy(audits)
    forgery(changed)
    with pytest.raises(Disagreement, match=reason):
        check_audits(part(changed), plan)


def test_a_limit_of_the_whole_training_is_none_of_a_step(audits, plan):
    changed = copy.deepcopy(audits)
    at(changed, "step")["attack"]["limit"] = at(changed, "one-run")["attack"]["limit"]
    with pytest.raises(Disagreement, match="step/attack/limit/1/1"):
        check_audits(part(changed), plan)


def test_a_plan_without_privacy_sets_no_limit(plan, open_run):
    open_plan = PrivacyPlan.read(open_run / "plan.json")
    audit = {"name": "one-run", **json.loads(training_audit(open_plan, 1.5))}
    assert len(check_audits(part([audit]), open_plan)) == 1
    for forgery, reason in (
        (put("one-run", "epsilon_lower", value=lambda x: x / 2), "one-run/epsilon_lower"),
        (put("one-run", "delta", value=lambda x: x * 10), "one-run/details/epsilon_lower_assuming_nothing"),
        (put("one-run", "details", "correct", value=lambda x: x - 5), "one-run/details/epsilon_lower_assuming_nothing"),
        (put("one-run", "attack", "limit", value=[[0, 0], [1, 1]]), "limit is one that no plan sets"),
        (put("one-run", "attack", "hit_rates", 0, "allowed", value=0.5), "hit_rates/0/allowed"),
        (put("one-run", "details", "theoretical", value=8.0), "details/theoretical"),
        (put("one-run", "details", "share", value=0.5), "details/share"),
    ):
        changed = [copy.deepcopy(audit)]
        forgery(changed)
        with pytest.raises(Disagreement, match=reason):
            check_audits(part(changed), open_plan)


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


def test_a_report_leaves_figures_of_units_out_as_a_whole_or_shows_them(audits, plan):
    full = at(audits, "shadow")
    hidden = hide_units(full, plan)
    assert hidden.keys() == full.keys()
    assert (hidden["attack"], hidden["epsilon_lower"], hidden["delta"]) == (None, None, plan.delta)
    kept = {"theoretical", "contradicts", "assumes", "trainings", "looks_at_units", "shadow_models", "steps"}
    assert hidden["details"].keys() == kept | {"noise_multiplier", "hits_above_limit"}
    others = [audit for audit in audits if audit is not full]
    assert [hide_units(audit, plan) for audit in others] == others
    told = check_audits(part([hidden]), plan)
    assert told == ["Not verified: the attack shadow, whose figures this report leaves out."]
    second = full | {"name": "shadow-2"}
    for shown in ([full, second], [hidden, hide_units(second, plan)]):
        check_audits(part(shown), plan)
    with pytest.raises(Disagreement, match="of one attack on the training units are shown, and those of another"):
        check_audits(part([full, hidden | {"name": "shadow-2"}]), plan)


@pytest.mark.parametrize(
    ("forgery", "reason"),
    [
        (lambda a: a.update(epsilon_lower=1.0), "shadow/epsilon_lower is 1.0, and shown where"),
        (lambda a: a["details"].update(contradicts=True), "shadow/epsilon_lower is None, and shown where"),
        (lambda a: a.update(epsilon_lower=9.0, details=a["details"] | {"contradicts": True}), "THE GUARANTEE IS FALSE"),
        (lambda a: a.update(epsilon_lower=7.0, details=a["details"] | {"contradicts": True}), "details/contradicts"),
        (lambda a: a["details"].update(canaries=60), "shadow/details/canaries"),
        (lambda a: a["details"].pop("steps"), "shadow/details/steps"),
        (lambda a: a["details"].update(steps=3), "shadow/details/steps is 3"),
        (lambda a: a["details"].update(noise_multiplier=0.5), "shadow/details/noise_multiplier is 0.5"),
        (lambda a: a["details"].update(theoretical=9.0), "shadow/details/theoretical"),
        (lambda a: a["details"].update(looks_at_units=False), "on no training units"),
        (lambda a: a["details"].update(trainings=1), "shadow/details/trainings"),
        (lambda a: a["details"].update(assumes="Nothing."), "shadow/details/assumes"),
        (lambda a: a.update(method="shadow models, one run"), "shadow/method"),
        (lambda a: a.update(confidence=0.9), "shadow/confidence"),
        (lambda a: a.update(delta=1e-5), "shadow/delta"),
        (lambda a: a.update(delta=None), "shadow/delta"),
        (lambda a: a["details"].update(hits_above_limit=None), "shadow/details/hits_above_limit"),
        (lambda a: a["details"].pop("hits_above_limit"), "shadow/details/hits_above_limit"),
    ],
)
def test_a_forged_entry_without_figures_is_found(audits, plan, forgery, reason):
    audit = copy.deepcopy(hide_units(at(audits, "shadow"), plan))
    check_audits(part([audit]), plan)
    forgery(audit)
    if reason == "THE GUARANTEE IS FALSE":  # it holds together, and refutes
        check_audits(part([audit]), plan)
        assert "finds that epsilon is at least 9.000" in refuted([audit], plan)
        return
    with pytest.raises(Disagreement, match=reason):
        check_audits(part([audit]), plan)


def test_figures_of_units_are_left_out_of_a_run_without_privacy_too(open_run):
    """The delta of such an audit follows from the number of units."""
    open_plan = PrivacyPlan.read(open_run / "plan.json")
    full = {"name": "shadow", **json.loads(training_audit(open_plan, 3.0, judged=432, kind="member", shadows=4))}
    hidden = hide_units(full, open_plan)
    assert full["delta"] == 0.01 / 432
    assert (hidden["epsilon_lower"], hidden["delta"], hidden["attack"]) == (None, None, None)
    assert "432" not in json.dumps(hidden)
    check_audits(part([full]), open_plan)
    check_audits(part([hidden]), open_plan)
    with pytest.raises(Disagreement, match=r"shadow/delta is .*, and tells how many"):
        check_audits(part([hidden | {"delta": full["delta"]}]), open_plan)
    above = hidden | {"details": hidden["details"] | {"hits_above_limit": True}}
    with pytest.raises(Disagreement, match="shadow/details/hits_above_limit is True, and no plan sets a limit"):
        check_audits(part([above]), open_plan)


def test_names_of_unfinished_audits_are_sorted_and_not_those_of_finished_ones(audits, plan):
    said = part(audits)
    check_audits(said | {"unfinished_audits": ["a", "b"]}, plan)
    for names, reason in (
        (["b", "a"], "its unfinished audits are not in the order"),
        (["a", "a"], "its unfinished audits are not in the order"),
        (["A"], "its unfinished audits are not in the order"),
        (["step"], "the audit step is listed as finished and as unfinished"),
    ):
        with pytest.raises(Disagreement, match=reason):
            check_audits(said | {"unfinished_audits": names}, plan)


def test_sentences_of_audits_are_those_that_they_write(plan, open_run):
    assert all(kind_of(kind) for kind in (STEP, *METHODS.values()))
    open_plan = PrivacyPlan.read(open_run / "plan.json")
    for one in (plan, replace(plan, sample_rate=1.0), open_plan):
        audit = json.loads(training_audit(one, 1.0, 30))
        assert said_of("gradient canaries", one) == (audit["method"], audit["details"]["assumes"])
    for certain in (True, False):
        audit = json.loads(step_audit(plan, certain=certain))
        times = audit["attack"]["members"] + audit["attack"]["others"]
        said = said_of(STEP, plan, times=times, certain=certain)
        assert said == (audit["method"], audit["details"]["assumes"])


def test_fewer_trainings_than_its_audits_took_are_found(audits, plan):
    said = part(audits)
    assert said["audit_trainings"] > 0
    check_audits(said | {"audit_trainings": said["audit_trainings"] + 5}, plan)  # of audits that were not finished
    with pytest.raises(Disagreement, match="audit_trainings is"):
        check_audits(said | {"audit_trainings": said["audit_trainings"] - 1}, plan)
