"""Attacks on the training units themselves: their figures are left out, their warnings never."""

from __future__ import annotations

import copy
import html
import json
import re

import pytest
from made_audits import put_audit, step_audit, titles, training_audit

from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.audit import refutation
from dpeq.reporting.check import Disagreement, check_contents
from dpeq.reporting.check_run import check_run
from dpeq.reporting.html import render_html
from dpeq.reporting.model import build_report
from dpeq.reporting.numbers import round_down

FIGURES = "Figures of an attack on the training data themselves"


@pytest.fixture(scope="module")
def shadow(plan):
    return training_audit(plan, 0.5, judged=600, kind="member", shadows=8)


def notes(report):
    return {entry["title"]: entry for entry in report["assumptions"]}


def test_figures_from_the_units_themselves_are_shown_where_they_are_asked_for(make_run, plan, shadow):
    run = make_run()
    put_audit(run, "shadow", shadow)
    put_audit(run, "one-run", training_audit(plan, 1.5))
    shown = build_report(run, attacks_on_units=True)
    assert shown["audits"][1] == {"name": "shadow", **json.loads(shadow)}
    entry = notes(shown)
    assert (entry[FIGURES]["kind"], entry["Trainings for audits"]["kind"]) == ("attention", "not_covered")
    assert "the attack shadow was judged by: the training patients" in entry[FIGURES]["text"]
    assert "tell how many training patients there are" in entry[FIGURES]["text"]
    assert "Its audits took 10 trainings on the same data" in entry["Trainings for audits"]["text"]
    assert (
        "The figures of one-run in this report are a release of such a training"
        in entry["Trainings for audits"]["text"]
    )
    hidden = build_report(run)
    assert [audit["name"] for audit in hidden["audits"]] == ["one-run", "shadow"]
    assert hidden["audits"][0] == shown["audits"][0]
    assert FIGURES not in notes(hidden)
    assert notes(hidden)["Trainings for audits"] == entry["Trainings for audits"]
    for report in (shown, hidden):
        check_contents(report)
        assert "audits" in check_run(report, run)[-1]
    for texts in ((step_audit(plan),), (training_audit(plan, 1.5),)):
        other = make_run()
        put_audit(other, "one", texts[0])
        told = notes(build_report(other, attacks_on_units=True))
        assert FIGURES not in told
        assert ("Trainings for audits" in told) is (texts[0] != step_audit(plan))


def test_no_count_of_units_is_anywhere_in_a_report_that_was_not_asked_for_it(make_run, plan, shadow):
    run = make_run()
    put_audit(run, "shadow", shadow)
    attack = json.loads(shadow)["attack"]
    report = build_report(run)
    page = render_html(report)
    only = " ".join(html.unescape(re.sub("<[^>]+>", " ", page[page.index('id="audits"') :])).split())
    only = only[: only.index("What it rests on")]
    for count in (attack["members"], attack["others"], 600):
        assert f'"members": {count}' not in json.dumps(report)
        assert str(count) not in only
    assert report["audits"][0]["attack"] is None
    for told in (
        "This attack was carried out. Its bound on ε did not contradict the plan",
        "tell how many there are, so they are left out here: they lie with the run",
        "'dpeq report RUN --attacks-on-units' shows them",
        "It took 9 further trainings on the same data",
    ):
        assert told in only
    assert "ε at least" not in only
    answers = {row["item"]: row["answer"] for rows in report["checklist"].values() for row in rows}
    said = answers["Algorithms and their correctness"]
    assert "; an attack on the training units (shadow) did not contradict the plan by its bound on epsilon; its" in said
    for word in ("members", "guessed", "strength", "share", "auc", "roc"):
        assert word not in json.dumps(report["audits"])
    forged = copy.deepcopy(report)
    forged["audits"][0]["details"]["trainings"] = 5
    forged["audits"][0]["details"]["shadow_models"] = 4
    with pytest.raises(Disagreement, match="audits/0/details/trainings is 5, and 9"):
        check_run(forged, run)


def test_hits_above_their_limit_are_told_without_the_figures(make_run, plan, shadow):
    """A warning is not lost with what it rests on."""
    run, quiet, audit = make_run(), make_run(), json.loads(shadow)
    put_audit(quiet, "shadow", shadow)
    audit["attack"]["hit_rates"][1]["contradicts"] = True
    put_audit(run, "shadow", json.dumps(audit))
    title = "An attack hit more often than the plan allows"
    report, below = build_report(run), build_report(quiet)
    assert report["schema_version"] == "3.1"
    assert [one["audits"][0]["details"]["hits_above_limit"] for one in (report, below)] == [True, False]
    assert (titles(report), titles(below)) == ([title], [])
    text = notes(report)[title]["text"]
    assert text.startswith(
        "Hits above their limit: the attack shadow, whose figures are left out here. Those that were judged in one "
    )
    assert "this is no proof. 2 hit rates were tested" in text
    assert "%" not in text
    said = "It hit more often than the plan allows; its bound on ε did not contradict the plan."
    assert [said in html.unescape(render_html(one)) for one in (report, below)] == [True, False]
    answers = {row["item"]: row["answer"] for rows in report["checklist"].values() for row in rows}
    assert (
        "; an attack on the training units (shadow) hit more often than the plan allows, and did not contradict the "
        "plan by its bound on epsilon; its figures" in answers["Algorithms and their correctness"]
    )
    check_contents(report)
    check_run(report, run)
    for one, folder in ((report, quiet), (below, run)):
        with pytest.raises(Disagreement, match="audits/0/details/hits_above_limit is"):
            check_run(one | {"run": folder.name}, folder)
    forged = copy.deepcopy(report)
    forged["audits"][0]["details"]["hits_above_limit"] = False
    with pytest.raises(Disagreement, match="checklist do not follow"):
        check_contents(forged)
    put_audit(run, "one-run", training_audit(plan, 1.5))
    assert "2 hit rates were tested" not in (both := notes(build_report(run))[title]["text"])
    assert "4 hit rates were tested" in both


def test_a_refutation_by_an_attack_on_the_units_is_never_left_out(make_run, plan):
    run = make_run()
    above = {"contradicts": True, "share": 9.0009 / plan.epsilon_spent}
    put_audit(
        *(run, "shadow", training_audit(plan, 2.0, kind="member", shadows=4)), epsilon_lower=9.0009, details=above
    )
    full, hidden = build_report(run, attacks_on_units=True), build_report(run)
    assert full["audits"][0]["details"]["contradicts"]
    lower = full["audits"][0]["epsilon_lower"]
    assert (hidden["audits"][0]["epsilon_lower"], hidden["audits"][0]["attack"]) == (lower, None)
    for report in (full, hidden):
        assert titles(report)[0] == "THE GUARANTEE IS FALSE"
        assert report["guarantee"]["statement"].startswith("THE GUARANTEE IS FALSE")
        with pytest.raises(Disagreement, match="shadow/epsilon_lower" if report is full else "THE GUARANTEE IS FALSE"):
            check_contents(report)  # the counts do not say so
    assert refutation(full) == refutation(hidden)
    text = html.unescape(render_html(hidden))
    assert "GUARANTEE REFUTED" in text
    assert f"It CONTRADICTED the plan: ε is at least {round_down(lower)}, where the plan has at most 8.00." in text


def test_a_run_without_privacy_keeps_the_figures_of_its_units_too(make_run, open_run):
    plan = PrivacyPlan.read(open_run / "plan.json")
    run = make_run(plan=plan.to_dict(), rng="seeded", seed=0)
    put_audit(run, "shadow", training_audit(plan, 3.0, judged=432, kind="member", shadows=4))
    hidden, shown = build_report(run), build_report(run, attacks_on_units=True)
    assert "432" not in json.dumps(hidden["audits"])
    assert FIGURES not in notes(hidden)
    assert notes(shown)[FIGURES]["kind"] == "attention"
    assert "are covered by nothing" in notes(shown)[FIGURES]["text"]
    for report in (hidden, shown):
        text = notes(report)["Trainings for audits"]["text"]
        assert text.startswith("Its audits took 5 trainings on the same data under the same plan, finished or not.")
        assert "They had no noise either" in text
        assert "budget" not in text
        check_contents(report)
        check_run(report, run)
    assert "There is no plan that it could contradict." in render_html(hidden)
