"""What reports, pages, checks and exports say of the audits of a run."""

from __future__ import annotations

import html
import json
import re

import pytest
from made_audits import changed, put_audit, put_ledger, step_audit, titles, training_audit

from dpeq.export.statement import privacy_statement
from dpeq.reporting.audit import read_audits
from dpeq.reporting.audit_view import audit_view
from dpeq.reporting.check import Disagreement, check_contents
from dpeq.reporting.html import render_html
from dpeq.reporting.model import build_report
from dpeq.reporting.numbers import percent_up
from dpeq.reporting.rundir import ledger_facts


def test_all_audits_of_a_run_are_in_its_report_by_name(make_run, plan):
    run = make_run()
    for name, text in (("step-2", step_audit(plan)), ("one-run", training_audit(plan, 1.5))):
        put_audit(run, name, text)
    (run / "audits" / "notes.txt").touch()
    report = build_report(run)
    assert report["audits"] == [
        {"name": "one-run", **json.loads(training_audit(plan, 1.5))},
        {"name": "step-2", **json.loads(step_audit(plan))},
    ]
    assert titles(report) == []
    nothing = build_report(make_run())
    assert (nothing["audits"], nothing["unfinished_audits"]) == ([], [])
    (make := make_run() / "audits").write_text("a file of that name is no folder of audits")
    assert read_audits(make.parent) == []


def test_one_audit_of_several_above_the_guarantee_is_the_first_thing_said(make_run, plan):
    run = make_run(warnings=["2 files were skipped"])
    put_audit(run, "a", training_audit(plan, 1.5))
    put_audit(run, "b", step_audit(plan), epsilon_lower=9.0)
    put_audit(run, "c", training_audit(plan, 1.5, kind="input"), epsilon_lower=9.5)
    report = build_report(run)
    assert titles(report)[0] == "THE GUARANTEE IS FALSE"
    text = report["assumptions"][0]["text"]
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "(one private step, 4000 times) finds that epsilon is at least 9.000 with confidence 95.0 %, where the "
        "guarantee allows 7.998 at" in text
    )
    assert "(input canaries, one run, subsampled gaussian curves) finds that epsilon is at least 9.500" in text
    assert "gradient canaries" not in text
    assert "Do not release this model" in text


def test_a_report_that_an_audit_refutes_says_so_wherever_it_speaks_of_its_guarantee(make_run, plan):
    run = make_run()
    folder = put_audit(run, "step", step_audit(plan), epsilon_lower=9.0009, confidence=0.99996)
    report = build_report(run)
    guarantee = report["guarantee"]
    assert guarantee["statement"].startswith("THE GUARANTEE IS FALSE: ")
    for reader in ("officer", "clinician", "reviewer"):
        assert guarantee[reader][0].startswith("THE GUARANTEE IS FALSE: ")
        assert "%" not in " ".join(guarantee[reader])
    answers = {row["item"]: row["answer"] for rows in report["checklist"].values() for row in rows}
    assert answers["Epsilon"] == "8.00 was claimed for each patient and is REFUTED by an audit: no tier."
    assert answers["Privacy parameters"].startswith("REFUTED by an audit; claimed were ε = 8.00")
    assert answers["Formal statement"].startswith("THE GUARANTEE IS FALSE")
    correct = answers["Algorithms and their correctness"].replace("\N{NO-BREAK SPACE}", " ")
    assert "steps; epsilon was recomputed from the plan's constants; REFUTED. The audit (one private step" in correct
    assert "at least 9.000 with confidence 99.9 %, where the guarantee allows 7.998" in correct
    assert "strongest" not in correct
    page = render_html(report)
    text = " ".join(html.unescape(re.sub("<[^>]+>", " ", page)).split())
    assert "<title>REFUTED: " in page
    assert "GUARANTEE REFUTED" in text
    assert "An audit has refuted the limit" in text
    assert "proven limit" not in text
    cards = re.sub("<[^>]+>", " ", page[page.index('<dl class="cards">') : page.index("</dl>", page.index("cards"))])
    for told in ("8.00", "10⁻⁴", "1 in 10,000", "at most", "≤"):
        assert told not in cards
    assert cards.count("refuted by an audit") == 2
    assert text.count("By bad luck alone a bound is too high in up to one audit of twenty.") == 2
    with pytest.raises(Disagreement, match="audits/step/confidence is 0"):  # the figure was put in
        check_contents(report)
    (folder / "audit.json").write_text(step_audit(plan))
    held = build_report(run)
    assert "REFUTED" not in render_html(held) + json.dumps(held)


def test_an_audit_that_truly_refutes_its_run_is_found_by_the_check(make_run, plan):
    run = make_run()
    put_audit(run, "step", step_audit(plan, louder=2.0))
    report = build_report(run)
    assert titles(report)[0] == "THE GUARANTEE IS FALSE"
    assert report["audits"][0]["details"]["contradicts"]
    with pytest.raises(Disagreement, match="THE GUARANTEE IS FALSE"):
        check_contents(report)


def test_hits_above_their_limit_need_attention_and_refute_nothing(make_run, plan):
    run, audit = make_run(), json.loads(training_audit(plan, 1.5))
    first = audit["attack"]["hit_rates"][0]
    first |= {"hits": 0.3, "low": 0.2579, "high": 0.3451, "allowed": 0.2341, "contradicts": True}
    put_audit(run, "one-run", json.dumps(audit))
    report = build_report(run)
    assert titles(report) == ["An attack hit more often than the plan allows"]
    text = report["assumptions"][0]["text"].replace("\N{NO-BREAK SPACE}", " ")
    alarms = percent_up(first["false_alarms_high"], 2).replace("\N{NO-BREAK SPACE}", " ")
    told = f"25.7 % at least at {alarms} false alarms (one-run), where 23.5 % are allowed the training. Those that"
    assert told in text
    assert "not quite independent of each other, so that this is no proof. 2 hit rates were tested" in text
    of_step = json.loads(step_audit(plan))
    of_step["attack"]["hit_rates"][0] |= {"contradicts": True}
    put_audit(other := make_run(), "step", json.dumps(of_step))
    text = build_report(other)["assumptions"][0]["text"]
    assert "are allowed a step. 2 hit rates were tested" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "REFUTED" not in json.dumps(report)


def test_trainings_of_an_audit_that_was_begun_are_told(make_run, plan):
    """They have spent, whether or not anything was ever found."""
    run = make_run()
    for name in ("target", "shadow-01"):
        put_ledger(run / "audits" / "shadow" / name, plan, 1)
    report = build_report(run)
    assert (report["audits"], report["audit_trainings"]) == ([], 2)
    entry = next(entry for entry in report["assumptions"] if entry["title"] == "Trainings for audits")
    assert "Its audits took 2 trainings on the same data under the same plan, finished or not." in entry["text"]
    assert entry["text"] in html.unescape(render_html(report))


def test_bounds_of_an_audit_are_rounded_to_the_safe_side(report, plan):
    details = {"misses_high": 0.01234, "noise_multiplier_at_most": 1.23451, "one_step_theoretical": 2.58101}
    details |= {"epsilon_lower_assuming_nothing": 0.5119, "one_step_epsilon_lower": 2.1999}
    audit = changed(json.loads(step_audit(plan)), epsilon_lower=1.2399, confidence=0.99996, details=details)
    shown = audit_view(report | {"audits": [{"name": "step", **audit}]})
    assert shown["audit_confidence"] == "99.9\N{NO-BREAK SPACE}%"
    assert shown["audit_summary"] == []
    rows = {what: (found, allowed) for what, found, allowed in shown["audits"][0]["rows"]}
    assert rows["ε of the training, at δ = 1\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10⁻⁴"] == (
        *("at least 1.23", "at most 8.00"),
    )
    assert rows["ε of one step"] == ("at least 2.19", "at most 2.59")
    rest = dict(shown["audits"][0]["rest"])
    keys = ("misses high", "noise multiplier at most", "epsilon lower assuming nothing")
    assert [rest[key] for key in keys] == ["0.013", "1.235", "0.511"]


def test_exported_files_say_that_their_guarantee_is_refuted(private_run, plan, audit):
    ledger = ledger_facts(private_run / "ledger.jsonl", plan)
    said = privacy_statement(plan, ledger, [audit, audit | {"epsilon_lower": 9.0}])
    assert said["label"] == "GUARANTEE REFUTED"
    assert said["statement"].startswith("THE GUARANTEE IS FALSE")
    for audits in ([], [audit]):
        said = privacy_statement(plan, ledger, audits)
        assert said["label"] == "DIFFERENTIALLY PRIVATE"
        assert said["statement"].startswith("Training satisfies")
