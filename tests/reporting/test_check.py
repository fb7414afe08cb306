from __future__ import annotations

import copy
import json

import pytest
from made_audits import step_audit

from dpeq.errors import DataError
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.accountants import gap_of
from dpeq.reporting.assumptions import list_assumptions
from dpeq.reporting.check import check_report
from dpeq.reporting.checklist import checklist
from dpeq.reporting.guarantee import Spent, readers, statement
from dpeq.reporting.model import build_report
from dpeq.reporting.risks import risk_from_dict


@pytest.fixture
def written(report, tmp_path):
    def write(change=lambda report: None):
        changed = copy.deepcopy(report)
        change(changed)
        path = tmp_path / "report.json"
        path.write_text(json.dumps(changed))
        return path

    return write


def test_a_true_report_passes_with_and_without_its_run(written, private_run):
    alone = check_report(written())
    assert len(alone) == 8
    assert alone[-1].startswith("Not verified: the run is not at hand")
    assert alone[3] == "Epsilon 7.9976 is what its constants cost over 400 steps, computed anew."
    with_run = check_report(written(), run_dir=private_run)
    assert with_run[:7] == alone[:7]
    assert "unbroken" in with_run[7]
    assert with_run[8].startswith("Scores, model, data, audits, warnings and origin")


def test_an_open_report_passes(open_report, open_run, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(open_report))
    assert "The run is marked as non-private throughout." in check_report(path, run_dir=open_run)


def test_reports_of_runs_of_images_pass(image_run, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(build_report(image_run, images_per_patient=3)))
    assert check_report(path, run_dir=image_run)


def restate(report: dict, plan: PrivacyPlan, **loss) -> None:
    """Makes every sentence of the guarantee follow from a forged loss, as a careful forger would."""
    guarantee = report["guarantee"]
    guarantee.update(loss)
    keys = ("steps", "epsilon", "mu", "accountant", "accountant_note", "complete")
    forged = Spent(*(guarantee[key] for key in keys))
    guarantee["statement"] = statement(plan, forged)
    guarantee.update(readers(plan, forged, risk_from_dict(report["risk"])))
    del report["checklist"]
    report["checklist"] = checklist(report)


def retell(report: dict) -> None:
    """Assumptions and checklist as they follow from a report that was changed."""
    report["assumptions"] = list_assumptions(report)
    del report["checklist"]
    report["checklist"] = checklist(report)


def plan_of(report: dict) -> PrivacyPlan:
    return PrivacyPlan.from_dict(report["plan"])


def lower_epsilon(report):
    report["guarantee"]["epsilon"] = 3.0


def lower_epsilon_carefully(report):
    restate(report, plan_of(report), epsilon=3.0)


def lower_epsilon_in_the_plan_too(report):
    report["plan"]["epsilon"]["pld"] = 3.0
    plan = plan_of(report)
    report["provenance"]["plan_sha256"] = plan.sha256
    restate(report, plan, epsilon=3.0)


def lower_mu_carefully(report):
    restate(report, plan_of(report), mu=0.5)


def raise_epsilon_carefully(report):
    restate(report, plan_of(report), epsilon=9.0)


def another_accountant(report):
    restate(report, plan_of(report), accountant="rdp")


def kinder_risk_carefully(report):
    report["risk"]["hit_rates"][1]["hits"] = 0.02
    report["risk"]["posteriors"][2]["best_guess"] = 0.51
    restate(report, plan_of(report))


def claim_fewer_steps(report):
    report["ledger"]["steps"] = 100


def more_steps_than_planned(report):
    report["ledger"]["steps"] = report["guarantee"]["steps"] = 500


def other_noise(report):
    report["plan"]["noise_multiplier"] = 3.0


def other_delta(report):
    report["guarantee"]["delta"] = 1e-7


def kinder_words(report):
    report["guarantee"]["officer"] = ["Nothing at all can be learnt."]


def risk_for_another_group(report):
    report["risk"]["group"] = 2
    restate(report, plan_of(report))


def group_risk_for_patients(report):
    report["group_risk"] = report["risk"]
    restate(report, plan_of(report))


def shuffled(report):
    report["guarantee"]["sampling"]["run"] = "Shuffled epochs."


def an_accountant_fewer(report):
    del report["accountants"]["epsilon"]["rdp"]


def kinder_answers(report):
    for name in report["accountants"]["epsilon"]:
        report["accountants"]["epsilon"][name] -= 1.0


def accountants_that_contradict(report):
    report["accountants"]["epsilon"]["rdp"] = 7.0


def a_flat_curve(report):
    report["epsilon_curve"][5][1] = report["epsilon_curve"][4][1]


def ticked_off(report):
    report["checklist"]["nist"][-1]["answer"] = "Yes."


def an_assumption_less(report):
    report["assumptions"].pop()


def an_assumption_of_its_own(report):
    report["assumptions"].append({"kind": "assumption", "title": "Certified", "text": "By the authority."})


def a_kinder_assumption(report):
    report["assumptions"][0]["text"] = "All is well."


def images_without_a_warning(report):
    item = {"png": "iVBORw0KGgo=", "truth": "normal", "answer": "normal", "probability": 1.0, "correct": True}
    report["images"] = {"consent": "All patients consented.", "items": [item]}


def data_of_another_unit(report):
    report["data"]["unit"] = "image"


def data_of_other_classes(report):
    report["data"]["classes"] = ["a", "b"]


def impossible_plan(report):
    report["plan"]["epsilon_target"] = 1.0


@pytest.mark.parametrize(
    ("forgery", "reason"),
    [
        (lower_epsilon, "sentence"),
        (lower_epsilon_carefully, "epsilon 3.0000 is below 7.9976"),
        (lower_epsilon_in_the_plan_too, "but its constants cost"),
        (lower_mu_carefully, "mu 0.5"),
        (raise_epsilon_carefully, "epsilon 9.0000 is above"),
        (another_accountant, "does not rest on what it names"),
        (kinder_risk_carefully, "risk/hit_rates/1/hits is 0.02"),
        (claim_fewer_steps, "stated for 400 steps"),
        (more_steps_than_planned, "the plan allows 400"),
        (other_noise, "plan was changed"),
        (other_delta, "delta"),
        (kinder_words, "sentences for the officer"),
        (risk_for_another_group, "speaks of 2 patients"),
        (group_risk_for_patients, "speaks of 1 patients"),
        (shuffled, "sampling"),
        (an_accountant_fewer, "gap|rdp has neither"),
        (kinder_answers, "answers"),
        (accountants_that_contradict, "contradict each other"),
        (a_flat_curve, "epsilon_curve/5/1"),
        (ticked_off, "checklist"),
        (an_assumption_less, "assumptions has 12 entries"),
        (an_assumption_of_its_own, "assumptions has 14 entries"),
        (a_kinder_assumption, "assumptions/0/text is 'All is well.'"),
        (images_without_a_warning, "assumptions"),
        (data_of_another_unit, "the data protect one image"),
        (data_of_other_classes, "other classes"),
        (impossible_plan, "above its epsilon_target"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_forgeries_are_found_without_the_run(written, forgery, reason):
    with pytest.raises(DataError, match=f"(?s)does not hold together.*({reason})"):
        check_report(written(forgery))


def test_another_ledger_or_plan_is_found(written, make_run, private_run):
    with pytest.raises(DataError, match="grown or changed"):
        check_report(written(), run_dir=make_run(steps=399))
    other = make_run(plan=json.loads((private_run / "plan.json").read_text()) | {"views": 2})
    with pytest.raises(DataError, match="not the plan"):
        check_report(written(), run_dir=other)


@pytest.mark.parametrize("part", ["utility", "validation", "symmetry", "audits"])
def test_what_no_count_fixes_is_held_against_the_run(written, private_run, part):
    def forge(report):
        if part in ("utility", "validation"):
            report[part]["brier"]["low"] -= 0.01
        elif part == "symmetry":
            report[part]["worst_error"] /= 2
        else:
            report[part] = [{"name": "step", **json.loads(step_audit(plan_of(report)))}]
            retell(report)

    path = written(forge)
    assert check_report(path)
    with pytest.raises(DataError, match="does not hold together"):
        check_report(path, run_dir=private_run)


def test_no_report_is_said_in_one_sentence(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        check_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(DataError, match="schema"):
        check_report(tmp_path / "report.json")


def test_an_accountant_that_the_report_leaves_out_is_told(written):
    def leave_out(report):
        del report["accountants"]["epsilon"]["rdp"]
        report["accountants"]["missing"]["rdp"] = "All is well."
        report["accountants"]["gap"] = gap_of(report["accountants"]["epsilon"])
        del report["checklist"]
        report["checklist"] = checklist(report)

    assert "; rdp, which it has no answer of, answer here as well." in " ".join(check_report(written(leave_out)))
