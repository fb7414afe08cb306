"""Verifies a finished ``report.json`` without trusting it: schema, accountants, risk, scores, the run if at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpeq.errors import ConfigError, DataError
from dpeq.privacy import accounting
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.assumptions import list_assumptions
from dpeq.reporting.audit import read_audit
from dpeq.reporting.check_privacy import Disagreement, check_accountants, check_guarantee, check_risk
from dpeq.reporting.check_utility import check_utility
from dpeq.reporting.checklist import checklist
from dpeq.reporting.guarantee import spent
from dpeq.reporting.model import validate
from dpeq.reporting.rundir import RunDirectory, ledger_facts, read_plan, read_run
from dpeq.reporting.strict import not_finite, read_strict

__all__ = ["Disagreement", "check_contents", "check_report"]


def check_report(path: Path, *, run_dir: Path | None = None) -> list[str]:
    """Raises :class:`DataError` when ``path`` does not hold together; returns a sentence for each thing verified.

    Epsilon, all accountants and the whole risk are computed anew from the constants of the plan and the number of
    steps in the ledger; sentences must carry their numbers; scores must agree with each other as far as counts can
    tell. With ``run_dir`` (or when ``plan.json`` and ``ledger.jsonl`` lie beside the report) the ledger and the scores
    are read and compared, too. Without the run, the ends of intervals, and scores that no count fixes (such as the
    Brier score), are not verified.
    """
    path = Path(path)
    try:
        report = read_strict(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a report ({error}); name a report.json that dpeq wrote.") from error
    with accounting.session("pld"):  # loads while the rest is compared
        validate(report)
        done = [f"The report satisfies schema version {report['schema_version']}."]
        try:
            done += check_contents(report)
            folder = Path(run_dir) if run_dir is not None else path.parent
            if run_dir is not None or all((folder / name).is_file() for name in ("plan.json", "ledger.jsonl")):
                done += _check_run(report, folder)
        except Disagreement as error:
            raise DataError(f"{path} does not hold together: {error}; do not rely on it.") from error
    return done


def check_contents(report: dict[str, Any]) -> list[str]:
    """The same for a report that satisfies its schema, without its run; raises :class:`Disagreement`."""
    if place := not_finite(report):
        raise Disagreement(f"{place} is no finite number")
    try:
        plan = PrivacyPlan.from_dict(report["plan"])
    except ConfigError as error:
        raise Disagreement(str(error).rstrip(".")) from error
    done = [_check_plan(report, plan)]
    if plan.private:
        done.append(check_risk(report, plan))  # before the sentences, which read it
    done.append(check_guarantee(report, plan))
    if plan.private:
        done.append(check_accountants(report, plan))
    scores = {"test": report["utility"], "validation": report["validation"]}
    if report["companion"] is not None:
        scores["companion"] = report["companion"]["utility"]
        if report["companion"]["utility"]["n"] != report["utility"]["n"]:
            raise Disagreement("the companion was tested on another number of cases")
    for name, utility in scores.items():
        if utility is not None:
            check_utility(utility, name)
    done.append("Scores, counts and curves agree with each other.")
    if report["checklist"] != checklist({key: value for key, value in report.items() if key != "checklist"}):
        raise Disagreement("the answers of the checklist do not follow from the report")
    return done


def _check_plan(report: dict[str, Any], plan: PrivacyPlan) -> str:
    guarantee = report["guarantee"]
    if plan.sha256 != report["provenance"]["plan_sha256"]:
        raise Disagreement("the plan was changed after the report was written (its hash differs)")
    for key in ("delta", "unit", "neighbouring", "private"):
        if guarantee[key] != getattr(plan, key):
            raise Disagreement(f"the guarantee says {key} {guarantee[key]!r}, the plan {getattr(plan, key)!r}")
    steps = report["ledger"]["steps"]
    if steps > plan.steps:
        raise Disagreement(f"the ledger has {steps} steps, the plan allows {plan.steps}")
    if guarantee["steps"] != steps or guarantee["complete"] != (steps == plan.steps):
        raise Disagreement(f"the guarantee is stated for {guarantee['steps']} steps, the ledger has {steps}")
    return "The guarantee agrees with the plan and with the steps in the ledger."


def _check_run(report: dict[str, Any], folder: Path) -> list[str]:
    plan = read_plan(folder / "plan.json")
    if plan.sha256 != report["provenance"]["plan_sha256"]:
        raise Disagreement(f"{folder / 'plan.json'} is not the plan of this report")
    facts = ledger_facts(folder / "ledger.jsonl", plan)
    if (facts.head, facts.steps) != (report["ledger"]["head"], report["ledger"]["steps"]):
        raise Disagreement(f"the ledger in {folder} has grown or changed since; build the report again")
    done = [f"The ledger in {folder} is unbroken and ends in the hash that the report names."]
    if not (folder / "metrics.json").is_file():
        return done
    source = read_run(folder)
    _check_files(report, source, folder)
    return [*done, f"Scores and warnings are those of the files in {folder}."]


def _check_files(report: dict[str, Any], source: RunDirectory, folder: Path) -> None:
    metrics = source.metrics
    told = {key: value for key, value in report["utility"].items() if key not in ("weights", "split")}
    for name, said, found in (
        ("part on test scores", told, metrics["test"]),
        ("choice of weights", report["utility"]["weights"], metrics["weights"]),
        ("part on validation scores", report["validation"], metrics.get("val")),
        ("symmetry", report["symmetry"], metrics.get("symmetry")),
        ("audit", report["audit"], read_audit(folder)),
    ):
        if said != found:
            raise Disagreement(f"its {name} is not what lies in {folder}; build the report again")
    group = report["group_risk"]
    loss = spent(source.plan, source.ledger.steps)
    told_warnings = list_assumptions(
        source,
        loss,
        images_per_patient=None if group is None else group["group"],
        images=report["images"] is not None,
    )
    if report["assumptions"] != json.loads(json.dumps(told_warnings)):
        raise Disagreement(f"its warnings and assumptions are not those of the files in {folder}")
