"""Audits in a report, computed anew: whatever in them follows from the plan or from their own counts must do so."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import pairwise

import pytest
from made_audits import named, part, put_audit, step_audit, training_audit

from dpeq.privacy.audit.counts import rate_high, rate_low
from dpeq.privacy.audit.result import METHODS
from dpeq.privacy.audit.steps import STEP
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.audit_form import kind_of, said_of
from dpeq.reporting.check import check_report
from dpeq.reporting.check_audit import check_audits
from dpeq.reporting.check_privacy import Disagreement
from dpeq.reporting.model import build_report


def test_true_audits_pass_alone_in_a_report_and_beside_their_run(audits, plan, make_run, tmp_path):
    assert [audit["name"] for audit in audits] == ["one-run", "shadow", "step", "step-coins"]
    assert len(named(audits, "one-run")["attack"]["roc"]) == 200  # thinned
    assert len(named(audits, "shadow")["attack"]["roc"]) < 60  # drawn whole
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


def put(*place, value):
    """Replaces an entry of an audit: ``place`` begins with the audit's name; a callable changes what is there."""

    def change(audits):
        entry = named(audits, place[0])
        for key in place[1:-1]:
            entry = entry[key]
        entry[place[-1]] = value(entry[place[-1]]) if callable(value) else value

    return change


def carefully_lower(audits):
    """A kinder hit rate with an interval that fits: only the curve knows better."""
    attack = named(audits, "step")["attack"]
    row, n = attack["hit_rates"][1], attack["members"]
    hits = round(row["hits"] * n) - 20
    row |= {"hits": hits / n, "low": float(rate_low(hits, n, 0.975)), "high": float(rate_high(hits, n, 0.975))}


def carefully_higher(audits):
    attack = named(audits, "step")["attack"]
    row, n = attack["hit_rates"][1], attack["members"]
    hits = round(row["hits"] * n) + 150  # the curve is thinned, and knows no fewer
    row |= {"hits": hits / n, "low": float(rate_low(hits, n, 0.975)), "high": float(rate_high(hits, n, 0.975))}


def a_contradiction_hidden(audits):
    row = named(audits, "one-run")["attack"]["hit_rates"][0]
    row["allowed"] = row["low"] * 0.9


def a_weaker_bound_carefully(audits):
    """With its share: the counts know better."""
    audit = named(audits, "one-run")
    audit["epsilon_lower"] *= 0.9
    audit["details"]["share"] *= 0.9


def a_weaker_strength_carefully(audits):
    audit = named(audits, "step")
    audit["details"]["strength"] *= 0.9
    audit["details"]["noise_multiplier_at_most"] /= 0.9


def a_point_that_is_no_share(audits):
    roc = named(audits, "one-run")["attack"]["roc"]
    i = next(i for i, (a, b) in enumerate(pairwise(roc)) if b[1] > a[1] and a[1] > 0 and a[0] > 0)
    roc[i][1] += (roc[i + 1][1] - roc[i][1]) / 2.5


def both_confidences(audits):
    named(audits, "step")["confidence"] = named(audits, "step")["attack"]["confidence"] = 0.9


def another_limit_rate(audits):
    """Where the limit is as high as the plan's: at a rate that nobody asked for."""
    limit = named(audits, "step")["attack"]["limit"]
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
    (lambda audits: named(audits, "one-run")["details"].pop("strength"), "one-run/details/strength is missing"),
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
    (lambda audits: named(audits, "step")["details"].pop("misses"), "step/details/misses is missing"),
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
    (lambda audits: named(audits, "step")["attack"]["limit"].pop(7), "step/attack/limit has 101 points, and 102"),
    (another_limit_rate, "step/attack/limit/7/0"),
    (lambda audits: named(audits, "one-run")["attack"]["hit_rates"].pop(0), "one-run/attack/hit_rates are at"),
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
    (lambda audits: named(audits, "shadow")["details"].pop("shadow_models"), "shadow/details/shadow_models"),
    (lambda audits: named(audits, "step")["details"].pop("looks_at_units"), "step/details/looks_at_units"),
    (lambda audits: named(audits, "step")["details"].pop("trainings"), "step/details/trainings"),
    (lambda audits: named(audits, "one-run")["details"].pop("correct"), "one-run/details/correct is missing"),
    (lambda audits: named(audits, "one-run")["details"].pop("candidates"), "one-run/details/candidates is missing"),
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
    named(changed, "step")["attack"]["limit"] = named(changed, "one-run")["attack"]["limit"]
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
