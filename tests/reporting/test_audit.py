from __future__ import annotations

import html
import json
import re

import pytest

from dpeq.errors import ConfigError, DataError
from dpeq.export.statement import privacy_statement
from dpeq.privacy.accounting import upper_bound
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.risk import assess, assess_epsilon
from dpeq.reporting.audit import contradiction, read_audit
from dpeq.reporting.check import Disagreement, check_contents
from dpeq.reporting.html import render_html
from dpeq.reporting.model import build_report
from dpeq.reporting.privacy_view import _audit_rows
from dpeq.reporting.risks import group_risk, risk_from_dict
from dpeq.reporting.rundir import ledger_facts

AUDIT = {"method": "one run", "epsilon_lower": 2.5, "confidence": 0.95, "delta": 1e-4, "details": {"canaries": 1000}}


def titles(report):
    return [entry["title"] for entry in report["assumptions"] if entry["kind"] == "attention"]


def test_an_audit_beside_the_run_is_in_its_report(make_run):
    run = make_run()
    (run / "audit.json").write_text(json.dumps(AUDIT))
    report = build_report(run)
    assert report["audit"] == AUDIT
    assert titles(report) == []


def test_an_audit_above_the_guarantee_is_the_first_thing_said(make_run):
    run = make_run(warnings=["2 files were skipped"])
    (run / "audit.json").write_text(json.dumps(AUDIT | {"epsilon_lower": 9.0}))
    report = build_report(run)
    assert titles(report)[0] == "THE GUARANTEE IS FALSE"
    text = report["assumptions"][0]["text"]
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    assert "at least 9.000 with confidence 95.0 %, where the guarantee allows 7.998 at delta 1 × 10⁻⁴" in text
    assert "Do not release this model" in text


def test_an_audit_contradicts_a_guarantee_at_its_own_delta(private_run):
    plan = PrivacyPlan.read(private_run / "plan.json")
    small, large = (
        upper_bound(plan.sample_rate, plan.noise_multiplier, plan.steps, delta)[0] for delta in (1e-6, 1e-2)
    )

    def contradicts(lower, delta, steps=plan.steps, epsilon=plan.epsilon_spent):
        return contradiction(AUDIT | {"epsilon_lower": lower, "delta": delta}, plan, steps, epsilon) is not None

    assert small > plan.epsilon_spent > large
    assert contradicts(small + 0.01, 1e-6)
    assert not contradicts(small - 0.01, 1e-6)
    assert contradicts(large + 0.01, 1e-2)
    assert not contradicts(large - 0.01, 1e-2)
    assert contradicts(plan.epsilon_spent + 0.01, 1e-4)
    assert not contradicts(plan.epsilon_spent, 1e-4)
    assert contradicts(0.01, 1e-6, steps=0, epsilon=0.0)
    assert contradiction(None, plan, plan.steps, plan.epsilon_spent) is None


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon_lower": -1.0},
        {"epsilon_lower": float("inf")},
        {"epsilon_lower": "2"},
        {"confidence": 1.0},
        {"delta": 0.0},
        {"method": ""},
        {"method": "x" * 241},
        {"details": None},
        {"details": {"verdict": "the guarantee is proven"}},
        {"details": {"assumes": "x" * 241}},
        {"details": {"theoretical": "8"}},
        {"details": {"Verdict: proven": 1}},
        {"details": {"canaries": [1, 2]}},
        {"more": 1},
    ],
)
def test_an_audit_that_is_none_is_refused(tmp_path, change):
    assert read_audit(tmp_path) is None
    (tmp_path / "audit.json").write_text(json.dumps(AUDIT | change))
    with pytest.raises(DataError, match=r"audit\.json"):
        read_audit(tmp_path)
    (tmp_path / "audit.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_audit(tmp_path)


def test_a_risk_comes_back_from_a_report_bit_for_bit(private_run):
    plan = PrivacyPlan.read(private_run / "plan.json")
    unbounded = assess_epsilon(1000.0, 1e-5, "image", note="Nothing better was to be had.")
    for risk in (assess(plan), assess(plan, 100), assess(plan, 0), unbounded):
        assert risk_from_dict(json.loads(json.dumps(risk.to_dict()))) == risk
    with pytest.raises(DataError, match="none that dpeq writes"):
        risk_from_dict({"epsilon": 1.0})


def test_a_group_of_images_is_asked_for_where_it_means_something(image_run, private_run, open_run):
    images, patients, open_plan = (PrivacyPlan.read(run / "plan.json") for run in (image_run, private_run, open_run))
    one, three = assess(images), group_risk(images, 400, 3)
    assert (three.group, three.unit) == (3, "image")
    assert three.advantage > one.advantage
    assert group_risk(images, 400, 1) == one
    assert group_risk(patients, 400, None) is None
    for plan, count, reason in (
        (patients, 3, "protects whole patients"),
        (PrivacyPlan.from_dict(open_plan.to_dict() | {"unit": "image"}), 3, "not private"),
        (images, 0, "most images"),
    ):
        with pytest.raises(ConfigError, match=reason):
            group_risk(plan, 400, count)


def test_the_report_of_images_states_the_patients_risk_and_says_where(image_run):
    alone, grouped = build_report(image_run), build_report(image_run, images_per_patient=3)
    assert alone["group_risk"] is None
    assert grouped["group_risk"]["group"] == 3
    assert grouped["risk"] == alone["risk"]
    texts = [next(e["text"] for e in r["assumptions"] if e["title"].startswith("One image")) for r in (alone, grouped)]
    assert "--images-per-patient K" in texts[0]
    assert "What holds for 3 images of one patient is stated" in texts[1]


def test_details_are_numbers_and_two_known_words(tmp_path):
    details = {
        "theoretical": "inf",
        "assumes": "That all steps are alike.",
        "mu_lower": None,
        "contradicts": True,
        "n": 2,
    }
    (tmp_path / "audit.json").write_text(json.dumps(AUDIT | {"details": details}))
    assert read_audit(tmp_path)["details"] == details


def test_a_report_that_an_audit_refutes_says_so_wherever_it_speaks_of_its_guarantee(make_run):
    run = make_run()
    (run / "audit.json").write_text(json.dumps(AUDIT | {"epsilon_lower": 9.0009, "confidence": 0.99996}))
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
    assert correct.endswith("at least 9.000 with confidence 99.9 %, MORE THAN THE GUARANTEE ALLOWS.")
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
    with pytest.raises(Disagreement, match="THE GUARANTEE IS FALSE"):
        check_contents(report)
    (run / "audit.json").write_text(json.dumps(AUDIT))
    held = build_report(run)
    assert "REFUTED" not in render_html(held) + json.dumps(held)


def test_bounds_of_an_audit_are_rounded_to_the_safe_side(report):
    details = {"mu_lower": 1.23456, "misses_high": 0.01234, "noise_multiplier_at_most": 1.23451, "theoretical": 7.99761}
    audit = AUDIT | {"epsilon_lower": 1.2399, "confidence": 0.99996, "details": details}
    rows = {name: value.replace("\N{NO-BREAK SPACE}", " ") for name, value in _audit_rows(report | {"audit": audit})}
    assert rows["ε is at least"].startswith("1.23 at")
    assert rows["Confidence"] == "99.9 %"
    assert [rows[key] for key in ("mu lower", "misses high", "noise multiplier at most", "theoretical")] == [
        *("1.234", "0.013", "1.235", "7.998")
    ]
    forged = json.loads(json.dumps(report | {"audit": audit | {"details": {"verdict": "proven"}}}))
    with pytest.raises(Disagreement, match="audit/details/verdict"):
        check_contents(forged)


def test_exported_files_say_that_their_guarantee_is_refuted(private_run):
    plan = PrivacyPlan.read(private_run / "plan.json")
    ledger = ledger_facts(private_run / "ledger.jsonl", plan)
    said = privacy_statement(plan, ledger, AUDIT | {"epsilon_lower": 9.0})
    assert said["label"] == "GUARANTEE REFUTED"
    assert said["statement"].startswith("THE GUARANTEE IS FALSE")
    for audit in (None, AUDIT):
        said = privacy_statement(plan, ledger, audit)
        assert said["label"] == "DIFFERENTIALLY PRIVATE"
        assert said["statement"].startswith("Training satisfies")
