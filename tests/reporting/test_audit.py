"""Audits of a run as its report reads them: which are refused, which refute."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from finished_runs import cell_config, lay_down, plan_at
from made_audits import begin_audit, changed, put_audit, put_ledger, step_audit, titles, training_audit

from dpeq.errors import DataError
from dpeq.privacy.accounting import upper_bound
from dpeq.privacy.plan import PrivacyPlan
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
from dpeq.reporting.model import build_report
from dpeq.training.start import Start


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


def test_details_are_numbers_and_two_known_words(audit):
    details = {
        **{"theoretical": "inf", "share": None, "contradicts": True, "assumes": "That all steps are alike."},
        **{"mu_lower": None, "n": 2},
    }
    assert odd_detail(details) is None
