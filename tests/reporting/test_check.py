from __future__ import annotations

import copy
import json

import pytest

from dpeq.errors import DataError
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.check import check_report
from dpeq.reporting.guarantee import Spent, attacker, statement


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
    assert len(check_report(written())) == 3
    assert "unbroken" in check_report(written(), run_dir=private_run)[-1]


def test_an_open_report_passes(open_report, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(open_report))
    assert "non-private throughout" in check_report(path)[-1]


def restate(report: dict, plan: PrivacyPlan, **loss) -> None:
    """Makes every number of the guarantee follow from a forged loss, as a careful forger would."""
    guarantee = report["guarantee"]
    guarantee.update(loss)
    keys = ("steps", "epsilon", "mu", "accountant", "accountant_note", "complete")
    forged = Spent(*(guarantee[key] for key in keys))
    guarantee["statement"] = statement(plan, forged)
    guarantee["attacker"] = attacker(forged, plan.delta)


def lower_epsilon(report):
    report["guarantee"]["epsilon"] = 3.0


def lower_epsilon_carefully(report):
    restate(report, PrivacyPlan.from_dict(report["plan"]), epsilon=3.0)


def lower_epsilon_in_the_plan_too(report):
    report["plan"]["epsilon"]["pld"] = 3.0
    plan = PrivacyPlan.from_dict(report["plan"])
    report["provenance"]["plan_sha256"] = plan.sha256
    restate(report, plan, epsilon=3.0)


def lower_mu_carefully(report):
    restate(report, PrivacyPlan.from_dict(report["plan"]), mu=0.5)


def claim_fewer_steps(report):
    report["ledger"]["steps"] = 100


def more_steps_than_planned(report):
    report["ledger"]["steps"] = report["guarantee"]["steps"] = 500


def other_noise(report):
    report["plan"]["noise_multiplier"] = 3.0


def other_delta(report):
    report["guarantee"]["delta"] = 1e-7


def kinder_odds(report):
    report["guarantee"]["attacker"]["best_guess"] = 0.51


def impossible_plan(report):
    report["plan"]["epsilon_target"] = 1.0


@pytest.mark.parametrize(
    ("forgery", "reason"),
    [
        (lower_epsilon, "sentence"),
        (lower_epsilon_carefully, "below"),
        (lower_epsilon_in_the_plan_too, "computes for its constants"),
        (lower_mu_carefully, "mu 0.5"),
        (claim_fewer_steps, "stated for 400 steps"),
        (more_steps_than_planned, "the plan allows 400"),
        (other_noise, "plan was changed"),
        (other_delta, "delta"),
        (kinder_odds, "odds"),
        (impossible_plan, "above its epsilon_target"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_forgeries_are_found_without_the_run(written, forgery, reason):
    with pytest.raises(DataError, match=reason):
        check_report(written(forgery))


def test_another_ledger_or_plan_is_found(written, make_run, private_run):
    with pytest.raises(DataError, match="grown or changed"):
        check_report(written(), run_dir=make_run(steps=399))
    other = make_run(plan=json.loads((private_run / "plan.json").read_text()) | {"views": 2})
    with pytest.raises(DataError, match="not the plan"):
        check_report(written(), run_dir=other)


def test_no_report_is_said_in_one_sentence(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        check_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(DataError, match="schema"):
        check_report(tmp_path / "report.json")
