"""Verifies a finished ``report.json`` without trusting it: schema, accountants, risk, scores; run and page if at hand.

A sentence that begins with :data:`~dpeq.reporting.check_run.UNVERIFIED` names what was not verified, and why not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpeq.errors import ConfigError, DataError
from dpeq.privacy import accounting
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.assumptions import list_assumptions
from dpeq.reporting.check_audit import check_audits
from dpeq.reporting.check_privacy import Disagreement, check_accountants, check_guarantee, check_risk
from dpeq.reporting.check_run import WITHOUT_RUN, check_page, check_run, difference
from dpeq.reporting.check_utility import check_utility
from dpeq.reporting.checklist import checklist
from dpeq.reporting.files import check_schema
from dpeq.reporting.html import render_html
from dpeq.reporting.strict import not_finite, read_strict

__all__ = ["Disagreement", "check_contents", "check_report"]


def check_report(path: Path, *, run_dir: Path | None = None) -> list[str]:
    """Raises :class:`DataError` when ``path`` does not hold together; returns a sentence for each thing verified.

    Epsilon, all accountants and the whole risk are computed anew from the constants of the plan and the number of
    steps in the ledger; sentences, assumptions and points of attention must follow from the report's own entries;
    scores must agree with each other as far as counts can tell; ``report.html`` beside the report must show it. With
    ``run_dir`` (or when ``plan.json`` and ``ledger.jsonl`` lie beside the report) every entry that the run's files
    decide is read anew and compared. What could not be verified is said in sentences that begin with
    :data:`~dpeq.reporting.check_run.UNVERIFIED`.
    """
    path = Path(path)
    try:
        report = read_strict(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a report ({error}); name a report.json that dpeq wrote.") from error
    with accounting.session("pld"):  # loads while the rest is compared
        check_schema(report, "report")
        done = [f"The report satisfies schema version {report['schema_version']}."]
        try:
            done += check_contents(report)
            folder = Path(run_dir) if run_dir is not None else path.parent
            if run_dir is not None or all((folder / name).is_file() for name in ("plan.json", "ledger.jsonl")):
                done += check_run(report, folder)
            else:
                done.append(WITHOUT_RUN)
            done += check_page(path, lambda: render_html(report), report["provenance"]["report_dpeq"])
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
    audited = check_audits(report, plan)  # before what they refute
    done.append(check_guarantee(report, plan))
    if plan.private:
        done.append(check_accountants(report, plan))
    done += audited
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
    told = list_assumptions({key: value for key, value in report.items() if key != "assumptions"})
    if differs := difference(report["assumptions"], told, "assumptions"):
        raise Disagreement(f"the assumptions and points of attention do not follow from the report ({differs})")
    done.append("Checklist, assumptions and points of attention follow from the other entries.")
    return done


def _scored(report: dict[str, Any]) -> tuple[Any, ...]:
    other = report["companion"]
    return report["utility"], report["validation"], None if other is None else other["utility"]


def _check_plan(report: dict[str, Any], plan: PrivacyPlan) -> str:
    guarantee = report["guarantee"]
    if plan.sha256 != report["provenance"]["plan_sha256"]:
        raise Disagreement("the plan was changed after the report was written (its hash differs)")
    for key in ("delta", "unit", "neighbouring", "private"):
        if guarantee[key] != getattr(plan, key):
            raise Disagreement(f"the guarantee says {key} {guarantee[key]!r}, the plan {getattr(plan, key)!r}")
    if report["data"]["unit"] != plan.unit:
        raise Disagreement(f"the data protect one {report['data']['unit']}, the plan one {plan.unit}")
    if any(part is not None and part["classes"] != report["data"]["classes"] for part in _scored(report)):
        raise Disagreement("the scores are of other classes than the data's")
    steps = report["ledger"]["steps"]
    if steps > plan.steps:
        raise Disagreement(f"the ledger has {steps} steps, the plan allows {plan.steps}")
    if guarantee["steps"] != steps or guarantee["complete"] != (steps == plan.steps):
        raise Disagreement(f"the guarantee is stated for {guarantee['steps']} steps, the ledger has {steps}")
    return "The guarantee agrees with the plan and with the steps in the ledger."
