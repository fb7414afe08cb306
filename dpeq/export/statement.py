"""The privacy statement that every exported file carries, from the plan and the ledger of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.audit import refuted
from dpeq.reporting.guarantee import spent, statement
from dpeq.reporting.rundir import LedgerFacts

__all__ = ["no_statement", "privacy_statement"]


def privacy_statement(
    plan: PrivacyPlan, ledger: LedgerFacts, audits: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What the report says of the guarantee, as JSON; epsilon is recomputed from the plan's constants, not copied.

    A run without privacy is labelled ``NON-PRIVATE``, and its statement begins with that word. ``audits`` are what
    :func:`~dpeq.reporting.audit.read_audits` gives: where one contradicts the guarantee, label and statement say so.

    Raises:
        DataError: when the plan's constants cost more than it states.
    """
    loss = spent(plan, ledger.steps)
    found = refuted(audits, plan) is not None
    sentence = statement(plan, loss, found)
    label = "GUARANTEE REFUTED" if found else "DIFFERENTIALLY PRIVATE"
    return {
        "label": label if plan.private else "NON-PRIVATE",
        "private": plan.private,
        "statement": sentence if plan.private else f"NON-PRIVATE. {sentence}",
        "epsilon": loss.epsilon if plan.private else "inf",
        "delta": plan.delta,
        "mu": loss.mu,
        "unit": plan.unit,
        "neighbouring": plan.neighbouring,
        "sampling": plan.sampling,
        "accountant": loss.accountant,
        "accountant_note": loss.note,
        "steps": loss.steps,
        "complete": loss.complete,
        "plan": plan.to_dict(),
        "plan_sha256": plan.sha256,
        "ledger": {"head": ledger.head, "steps": ledger.steps},
    }


def no_statement() -> dict[str, Any]:
    """For a network that comes without its run: nothing is promised."""
    return {
        "label": "NO PRIVACY STATEMENT",
        "private": False,
        "statement": "NO PRIVACY STATEMENT. This network was exported without the run that trained it, so nothing is "
        "known of what it may reveal about its training data.",
        "epsilon": None,
        "delta": None,
        "mu": None,
        "unit": None,
    }
