from __future__ import annotations

import copy
import html
import json
import re
from dataclasses import replace

import pytest
from finished_runs import cell_config, lay_down, plan_at
from made_audits import begin_audit, changed, put_audit, put_ledger, step_audit, training_audit

from dpeq.errors import ConfigError, DataError
from dpeq.export.statement import privacy_statement
from dpeq.privacy.accounting import upper_bound
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.risk import assess, assess_epsilon
from dpeq.reporting.audit import (
    contradiction,
    read_audit,
    read_audits,
    refutation,
    refuted,
    trainings_for_audits,
    unfinished_audits,
)
from dpeq.reporting.audit_form import odd_detail
from dpeq.reporting.audit_view import audit_view
from dpeq.reporting.check import Disagreement, check_contents
from dpeq.reporting.check_run import check_run
from dpeq.reporting.html import render_html
from dpeq.reporting.model import build_report
from dpeq.reporting.numbers import percent_up, round_down
from dpeq.reporting.risks import group_risk, risk_from_dict
from dpeq.reporting.rundir import ledger_facts
from dpeq.training.start import Start


def titles(report):
    return [entry["title"] for entry in report["assumptions"] if entry["kind"] == "attention"]


@pytest.fixture(scope="module")
def plan(private_run):
    return PrivacyPlan.read(private_run / "plan.json")


@pytest.fixture(scope="module")
def audit(plan):
    return json.loads(step_audit(plan))


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


def test_folders_that_are_no_audits_names_and_files_of_older_versions_are_refused(make_run, plan):
    run = make_run()
    put_audit(run, "Step_1", step_audit(plan))
    with pytest.raises(DataError, match="Step_1 is no name of an audit; rename it"):
        read_audits(run)
    (run / "audits" / "Step_1").rename(run / "audits" / "s")
    assert len(read_audits(run)) == 1
    (run / "audit.json").write_text("{}")
    for read in (read_audits, build_report):
        with pytest.raises(DataError, match=r"audit\.json is of an older version"):
            read(run)


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


def test_an_audit_contradicts_a_guarantee_at_its_own_delta(plan):
    audit = json.loads(training_audit(plan, 1.5))
    small, large = (
        upper_bound(plan.sample_rate, plan.noise_multiplier, plan.steps, delta)[0] for delta in (1e-6, 1e-2)
    )

    def contradicts(lower, delta, steps=plan.steps, epsilon=plan.epsilon_spent):
        return contradiction(audit | {"epsilon_lower": lower, "delta": delta}, plan, steps, epsilon) is not None

    assert small > plan.epsilon_spent > large
    assert contradicts(small + 0.01, 1e-6)
    assert not contradicts(small - 0.01, 1e-6)
    assert contradicts(large + 0.01, 1e-2)
    assert not contradicts(large - 0.01, 1e-2)
    assert contradicts(plan.epsilon_spent + 0.01, 1e-4)
    assert not contradicts(plan.epsilon_spent, 1e-4)
    assert contradicts(0.01, 1e-6, steps=0, epsilon=0.0)
    assert refuted([], plan) is None
    assert refuted([audit | {"epsilon_lower": plan.epsilon_spent}], plan) is None
    assert refuted([audit | {"epsilon_lower": plan.epsilon_spent * 1.001}], plan) is not None


def test_a_step_that_reveals_more_than_a_step_may_refutes_the_training(plan, audit):
    def found(lower):
        of_step = audit["details"] | {"one_step_epsilon_lower": lower}
        return contradiction(audit | {"details": of_step}, plan, plan.steps, plan.epsilon_spent)

    most = audit["details"]["one_step_theoretical"]
    assert found(most) is None
    assert "the epsilon of a single step is at least" in found(most * 1.001)


def test_what_a_step_may_reveal_follows_from_the_plan_and_not_from_the_record(make_run, plan):
    """A higher limit beside a bound hides no contradiction, and each step is held against its own kind."""
    limits = []
    for certain in (True, False):
        audit = json.loads(step_audit(plan, certain=certain))
        limits.append(most := audit["details"]["one_step_theoretical"])
        raised = {"one_step_epsilon_lower": most * 1.001, "one_step_theoretical": 9.0, "one_step_contradicts": False}
        put_audit(run := make_run(), "step", json.dumps(audit), details=raised)
        report = build_report(run)
        assert titles(report)[0] == "THE GUARANTEE IS FALSE"
        assert "where the plan has" in refutation(report)
        lower = changed(audit, details=raised | {"one_step_epsilon_lower": most * 0.999})
        assert refuted([lower], plan) is None
    assert limits[0] > limits[1] * 1.1


def test_an_audit_without_privacy_is_held_against_no_epsilon(tmp_path, open_run):
    open_plan = PrivacyPlan.read(open_run / "plan.json")
    audit = json.loads(training_audit(open_plan, 1.5))
    for theoretical, sound in (("inf", True), (None, True), (8.0, False), (True, False)):
        text = json.dumps(changed(audit, details={"theoretical": theoretical}))
        (tmp_path / "audit.json").write_text(text)
        if sound:
            assert read_audit(tmp_path, open_plan)["delta"] != open_plan.delta
            continue
        with pytest.raises(DataError, match="details/theoretical"):
            read_audit(tmp_path, open_plan)


COUNTS = (
    *("runs_with", "runs_without", "misses", "false_alarms", "canaries", "guessed_in", "guessed_out", "correct"),
    "candidates",
)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"epsilon_lower": -1.0}, "epsilon_lower"),
        ({"epsilon_lower": float("inf")}, "cannot be read"),
        ({"epsilon_lower": "2"}, "epsilon_lower"),
        ({"epsilon_lower": True}, "epsilon_lower"),
        ({"confidence": 1.0}, "confidence"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1e-5}, "delta"),
        ({"details": {"theoretical": 9.0}}, "details/theoretical"),
        ({"details": {"theoretical": None}}, "details/theoretical"),
        ({"details": {"theoretical": "inf"}}, "details/theoretical"),
        ({"details": {"hits_above_limit": False}}, "details/hits_above_limit"),
        *(({"details": {key: None}}, f"details/{key}") for key in COUNTS),
        ({"details": {"misses": 3.0}}, "details/misses"),
        ({"details": {"misses": -1}}, "details/misses"),
        ({"details": {"correct": True}}, "details/correct"),
        ({"method": ""}, "method"),
        ({"method": "x" * 241}, "method"),
        ({"method": "one private step, 4001 times"}, "method"),
        ({"method": "A proof of the guarantee"}, "method"),
        ({"details": {"assumes": "Nothing."}}, "details/assumes"),
        ({"details": {"in_every_step": False}}, "details/assumes"),
        ({"details": {"looks_at_units": True}}, "details/looks_at_units"),
        ({"details": {"looks_at_units": None}}, "details/looks_at_units"),
        ({"details": {"trainings": 1}}, "details/trainings"),
        ({"details": {"shadow_models": 4}}, "details/shadow_models"),
        ({"details": {"one_step_epsilon_lower": None}}, "details/one_step_epsilon_lower"),
        ({"details": {"one_step_theoretical": "inf"}}, "details/one_step_theoretical"),
        ({"details": {"one_step_contradicts": True}}, "details/one_step_contradicts"),
        ({"details": {"contradicts": True}}, "details/contradicts"),
        ({"attack": {"members": 1999}}, "method"),
        ({"details": {"verdict": "the guarantee is proven"}}, "details/verdict"),
        ({"details": {"assumes": "x" * 241}}, "details/assumes"),
        ({"details": {"assumes": 1}}, "details/assumes"),
        ({"details": {"theoretical": "8"}}, "details/theoretical"),
        ({"details": {"Verdict: proven": 1}}, "details/Verdict: proven"),
        ({"details": {"canaries": [1, 2]}}, "details/canaries"),
        ({"details": {"trainings": -1}}, "details/trainings"),
        ({"details": {"trainings": 1.5}}, "details/trainings"),
        ({"details": {"looks_at_units": 1}}, "details/looks_at_units"),
        ({"details": {"contradicts": None}}, "details/contradicts"),
        ({"more": 1}, "keys"),
        ({"attack": {"of": "a step"}}, "attack/of"),
        ({"attack": {"members": 0}}, "attack/members"),
        ({"attack": {"others": 2.0}}, "attack/others"),
        ({"attack": {"confidence": 0.4}}, "attack/confidence"),
        ({"attack": {"auc": 1.1}}, "attack/auc"),
        ({"attack": {"hit_rates": []}}, "attack/hit_rates"),
        ({"attack": {"hit_rates": [{"rate": 0.1}]}}, "attack/hit_rates"),
        ({"attack": {"roc": [[0, 0], [0.5, 1], [0.4, 1], [1, 1]]}}, "attack/roc"),
        ({"attack": {"roc": [[0, 0], [0.5, 0.5], [0.6, 0.4], [1, 1]]}}, "attack/roc"),
        ({"attack": {"roc": [[0, 0.1], [1, 1]]}}, "attack/roc"),
        ({"attack": {"roc": [[0, 0], [0.5, 0.9]]}}, "attack/roc"),
        ({"attack": {"roc": [[0, 0]] * 200 + [[1, 1]]}}, "attack/roc"),
        ({"attack": {"limit": [[0, 0], [1, 1, 1]]}}, "attack/limit"),
        ({"attack": {"limit": []}}, "attack/limit"),
        ({"attack": {"limit": [[0, 0], [1e-9, 1e-4]]}}, "attack/limit"),
        ({"attack": {"verdict": 1}}, "in attack what"),
    ],
)
def test_an_audit_that_is_none_is_refused(tmp_path, plan, audit, change, place):
    assert read_audit(tmp_path, plan) is None
    (tmp_path / "audit.json").write_text(json.dumps(changed(audit)))
    assert read_audit(tmp_path, plan) == audit
    (tmp_path / "audit.json").write_text(json.dumps(changed(audit, **change)))
    with pytest.raises(DataError, match=rf"audit\.json .*{place}.*; restore it from a backup\.$") as raised:
        read_audit(tmp_path, plan)
    assert "call it" not in str(
        raised.value
    )  # a folder without its result would count as begun, and hide what it found
    (tmp_path / "audit.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_audit(tmp_path, plan)


@pytest.mark.parametrize("key", ["one_step_epsilon_lower", "one_step_theoretical", "one_step_contradicts", "trainings"])
def test_an_audit_of_a_step_says_what_the_step_reveals(tmp_path, plan, audit, key):
    del (details := dict(audit["details"]))[key]
    (tmp_path / "audit.json").write_text(json.dumps(audit | {"details": details}))
    with pytest.raises(DataError, match=f"details/{key}"):
        read_audit(tmp_path, plan)


def test_an_audit_of_another_plan_is_refused_by_its_words(tmp_path, plan, audit):
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    with pytest.raises(DataError, match="details/assumes"):
        read_audit(tmp_path, replace(plan, steps=plan.steps + 1))


def test_results_that_a_report_would_overlook_are_refused(make_run, plan, tmp_path):
    """Deeper, beside the folders, behind a link: bad news could lie in any of them."""
    elsewhere = make_run()
    put_audit(elsewhere, "step", step_audit(plan))

    def refused(run, reason):
        for read in (read_audits, unfinished_audits, build_report):
            with pytest.raises(DataError, match=reason):
                read(run)

    run = make_run()
    put_audit(run, "step", step_audit(plan))
    (run / "audits" / "step").rename(run / "audits" / "deep")
    (run / "audits" / "step").mkdir()
    (run / "audits" / "deep").rename(run / "audits" / "step" / "old")
    refused(run, r"step/old/audit\.json is not where a report looks for audits; move its folder")
    run = make_run()
    put_audit(run, "step", step_audit(plan))
    (run / "audits" / "step" / "audit.json").rename(run / "audits" / "audit.json")
    refused(run, r"audits/audit\.json is not where a report looks")
    for name, target in (("step", elsewhere / "audits" / "step"), ("gone", tmp_path / "nothing")):
        run = make_run()
        (run / "audits").mkdir()
        (run / "audits" / name).symlink_to(target)
        refused(run, f"audits/{name} is a symbolic link, and audits belong to their run")
    run = make_run()
    (run / "audits").symlink_to(elsewhere / "audits")
    refused(run, "audits is a symbolic link")
    assert len(read_audits(elsewhere)) == 1


def test_audits_belong_to_the_run_they_were_begun_of(make_run, plan, tmp_path):
    run = make_run()
    folder = put_audit(run, "step", step_audit(plan))

    def begun(text, reason):
        (folder / "begun.json").write_text(text)
        with pytest.raises(DataError, match=reason):
            read_audits(run)

    begun(json.dumps({"plan_sha256": "0" * 64}), "audit of another plan")
    begun("{}", "audit of another plan")
    begun("[]", "audit of another plan")
    begun("{", r"begun\.json cannot be read \(.*\); restore it from a backup\.$")
    named = json.dumps({"plan_sha256": plan.sha256, "run": "ab"})
    begun(named, rf"^{run} lacks start\.json, which says which run it is; restore it from a backup\.$")
    (run / "start.json").touch()
    ledger = (run / "ledger.jsonl").rename(run / "moved")
    begun(named, rf"^{run} lacks ledger\.jsonl, .*; restore it from a backup\.$")
    ledger.rename(run / "ledger.jsonl")
    (folder / "begun.json").unlink()
    with pytest.raises(DataError, match=r"lacks begun\.json, which says what was audited; restore it from a backup\.$"):
        read_audits(run)
    begun_run = lay_down(tmp_path, cell_config(tmp_path, "x", 8.0))
    name, theirs = Start.read(begun_run).run, plan_at(8.0)
    folder = put_audit(begun_run, "step", step_audit(theirs))
    for own, fine in ((name, True), ("0" * 32, False)):
        (folder / "begun.json").write_text(json.dumps({"plan_sha256": theirs.sha256, "run": own}))
        if fine:
            assert len(read_audits(begun_run)) == 1
        else:
            with pytest.raises(DataError, match="is of an audit of another run"):
                read_audits(begun_run)


def test_audits_without_a_result_are_named(make_run, plan):
    run = make_run()
    put_audit(run, "step", step_audit(plan))
    begin_audit(run, "one-run")
    put_ledger(run / "audits" / "shadow" / "target", plan, 1)
    (run / "audits" / "empty").mkdir()
    assert unfinished_audits(run) == ["one-run", "shadow"]
    report = build_report(run)
    assert ([audit["name"] for audit in report["audits"]], report["unfinished_audits"]) == (
        *(["step"], ["one-run", "shadow"]),
    )
    begin_audit(run, "Two")
    with pytest.raises(DataError, match="Two is no name of an audit"):
        unfinished_audits(run)


def test_what_an_audit_spent_is_not_guessed_from_a_damaged_ledger(make_run, plan):
    run = make_run()
    put_ledger(run / "audits" / "shadow" / "target", plan, 2)
    ledger = run / "audits" / "shadow" / "target" / "audit-ledger.jsonl"
    whole = ledger.read_bytes()
    torn = "is empty or torn in its first line, so that"
    damaged = "is damaged .* was changed after it was written.*, so that"
    for content, reason in ((b"", torn), (whole[:40], torn), (whole.replace(b'"step"', b'"stop"'), damaged)):
        ledger.write_bytes(content)
        with pytest.raises(DataError, match=rf"{ledger}, a ledger of the audit shadow, {reason}.*restore it") as raised:
            trainings_for_audits(run, plan)
        assert str(raised.value).count(";") == 1  # one mend: to begin anew would forget what was spent
        assert "delete" not in str(raised.value)
    ledger.unlink()
    put_ledger(ledger.parent, replace(plan, steps=plan.steps + 1), 1)
    with pytest.raises(DataError, match=r"another plan than .*; put the audit's folder back to its own run\.$"):
        trainings_for_audits(run, plan)
    ledger.write_bytes(whole)
    assert trainings_for_audits(run, plan) == 1


@pytest.mark.parametrize(("key", "value"), [("contradicts", 1), ("allowed", 1.5), ("low", -0.1), ("rate", 0.5)])
def test_a_hit_rate_that_is_none_is_refused(tmp_path, plan, audit, key, value):
    rows = [audit["attack"]["hit_rates"][0] | {key: value}, audit["attack"]["hit_rates"][1]]
    (tmp_path / "audit.json").write_text(json.dumps(changed(audit, attack={"hit_rates": rows})))
    with pytest.raises(DataError, match="attack/hit_rates"):
        read_audit(tmp_path, plan)


@pytest.mark.parametrize("missing", ["theoretical", "share", "contradicts", "assumes"])
def test_a_bound_says_what_it_is_held_against(audit, missing):
    assert odd_detail({key: value for key, value in audit["details"].items() if key != missing}) == missing


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


def test_details_are_numbers_and_two_known_words(audit):
    details = {
        **{"theoretical": "inf", "share": None, "contradicts": True, "assumes": "That all steps are alike."},
        **{"mu_lower": None, "n": 2},
    }
    assert odd_detail(details) is None


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
