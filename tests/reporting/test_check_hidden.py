"""Entries of attacks whose figures a report leaves out: none may tell of the units, and no warning may be lost."""

from __future__ import annotations

import copy
import json

import pytest
from made_audits import named, part, training_audit

from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.audit import hide_units, refuted
from dpeq.reporting.check_audit import check_audits
from dpeq.reporting.check_privacy import Disagreement


def test_a_report_leaves_figures_of_units_out_as_a_whole_or_shows_them(audits, plan):
    full = named(audits, "shadow")
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
    audit = copy.deepcopy(hide_units(named(audits, "shadow"), plan))
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
