"""Verifies a finished ``report.json`` without trusting it: schema, arithmetic, accountant, ledger if at hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dpeq.errors import ConfigError, DataError
from dpeq.privacy.accounting import mu_bound, upper_bound
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.guarantee import Spent, attacker, statement
from dpeq.reporting.model import validate
from dpeq.reporting.rundir import ledger_facts, read_plan

__all__ = ["check_report"]

# Releases of an accountant differ in the last digits of their discretisation; a false claim differs by far more.
_SLACK = 1e-2


def check_report(path: Path, *, run_dir: Path | None = None) -> list[str]:
    """Raises :class:`DataError` when ``path`` does not hold together; returns a sentence for each thing verified.

    The guarantee is computed anew from the constants of the plan and the number of steps in the ledger. With
    ``run_dir`` (or when ``plan.json`` and ``ledger.jsonl`` lie beside the report) the ledger is read and compared.
    """
    path = Path(path)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a report ({error}); name a report.json that dpeq wrote.") from error
    validate(report)
    done = [f"The report satisfies schema version {report['schema_version']}."]
    try:
        plan = PrivacyPlan.from_dict(report["plan"])
    except ConfigError as error:
        raise _refusal(path, str(error).rstrip(".")) from error
    done.append(_check_plan(path, report, plan))
    done.append(_check_loss(path, report, plan))
    folder = Path(run_dir) if run_dir is not None else path.parent
    if run_dir is not None or all((folder / name).is_file() for name in ("plan.json", "ledger.jsonl")):
        done.append(_check_run(path, report, folder))
    return done


def _check_plan(path: Path, report: dict[str, Any], plan: PrivacyPlan) -> str:
    guarantee = report["guarantee"]
    if plan.sha256 != report["provenance"]["plan_sha256"]:
        raise _refusal(path, "the plan was changed after the report was written (its hash differs)")
    for key in ("delta", "unit", "neighbouring", "private"):
        if guarantee[key] != getattr(plan, key):
            raise _refusal(path, f"the guarantee says {key} {guarantee[key]!r}, the plan {getattr(plan, key)!r}")
    steps = report["ledger"]["steps"]
    if steps > plan.steps:
        raise _refusal(path, f"the ledger has {steps} steps, the plan allows {plan.steps}")
    if guarantee["steps"] != steps or guarantee["complete"] != (steps == plan.steps):
        raise _refusal(path, f"the guarantee is stated for {guarantee['steps']} steps, the ledger has {steps}")
    return "The guarantee agrees with the plan and with the steps in the ledger."


def _check_loss(path: Path, report: dict[str, Any], plan: PrivacyPlan) -> str:
    guarantee, steps = report["guarantee"], report["ledger"]["steps"]
    epsilon = math.inf if guarantee["epsilon"] == "inf" else float(guarantee["epsilon"])
    if plan.private == math.isinf(epsilon):
        raise _refusal(
            path, f"epsilon {guarantee['epsilon']} does not fit a {'' if plan.private else 'non-'}private plan"
        )
    claimed = Spent(
        steps, epsilon, guarantee["mu"], guarantee["accountant"], guarantee["accountant_note"], guarantee["complete"]
    )
    if guarantee["statement"] != statement(plan, claimed):
        raise _refusal(path, "the sentence that states the guarantee does not carry its numbers")
    if guarantee["attacker"] != json.loads(json.dumps(attacker(claimed, plan.delta))):
        raise _refusal(path, "the attacker's odds do not follow from epsilon, delta and mu")
    if not plan.private:
        return "The run is marked as non-private throughout."
    if claimed.complete and epsilon < plan.epsilon_spent:
        raise _refusal(path, f"epsilon {epsilon:.4f} is below the {plan.epsilon_spent:.4f} that the plan spends")
    if steps:
        truth, name, _ = upper_bound(plan.sample_rate, plan.noise_multiplier, steps, plan.delta)
        if epsilon < truth - _SLACK * max(1.0, truth):
            raise _refusal(path, f"epsilon {epsilon:.4f} is below {truth:.4f}, which {name} computes for its constants")
        mu = mu_bound(plan.sample_rate, plan.noise_multiplier, steps, plan.delta) if claimed.mu is not None else None
        if mu is not None and claimed.mu < mu - _SLACK * max(1.0, mu):
            raise _refusal(path, f"mu {claimed.mu:.4f} is below the {mu:.4f} that its constants give")
    return f"Epsilon {epsilon:.4f} covers what its constants cost over {steps:,} steps, computed anew."


def _check_run(path: Path, report: dict[str, Any], folder: Path) -> str:
    plan = read_plan(folder / "plan.json")
    if plan.sha256 != report["provenance"]["plan_sha256"]:
        raise _refusal(path, f"{folder / 'plan.json'} is not the plan of this report")
    facts = ledger_facts(folder / "ledger.jsonl", plan)
    if (facts.head, facts.steps) != (report["ledger"]["head"], report["ledger"]["steps"]):
        raise _refusal(path, f"the ledger in {folder} has grown or changed since; build the report again")
    return f"The ledger in {folder} is unbroken and ends in the hash that the report names."


def _refusal(path: Path, reason: str) -> DataError:
    return DataError(f"{path} does not hold together: {reason}; do not rely on it.")
