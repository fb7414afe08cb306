"""What every accountant answers for the steps that a run spent, side by side."""

from __future__ import annotations

from typing import Any

from dpeq.privacy import accounting
from dpeq.privacy.accounting import AccountingError, Comparison
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.remembered import remembered

__all__ = ["NOTHING", "compared", "gap_of", "remembered_comparison", "to_dict"]

NOTHING: dict[str, Any] = {"epsilon": {}, "missing": {}, "gap": None}
"""Where there is nothing to ask: no noise, or no step."""


def compared(plan: PrivacyPlan, steps: int) -> dict[str, Any]:
    """The report's entry ``accountants`` for the first ``steps`` of ``plan``.

    Raises :class:`~dpeq.privacy.accounting.AccountingError` when a lower bound lies above an upper one: then one of two
    accountants is wrong, and no report may rest on either.
    """
    if not plan.private or steps == 0:
        return dict(NOTHING)
    comparison = remembered_comparison(plan.sample_rate, plan.noise_multiplier, steps, plan.delta)
    if comparison.contradiction is not None:
        raise AccountingError(comparison.contradiction)
    return to_dict(comparison)


def to_dict(comparison: Comparison) -> dict[str, Any]:
    return {"epsilon": comparison.epsilon, "missing": comparison.missing, "gap": comparison.gap}


def gap_of(epsilon: dict[str, float]) -> float | None:
    """:attr:`dpeq.privacy.accounting.Comparison.gap` of a report's own figures."""
    return Comparison(dict(epsilon), {}).gap


def remembered_comparison(q: float, sigma: float, steps: int, delta: float) -> Comparison:
    """:func:`dpeq.privacy.accounting.compare` with every accountant, asked once per machine if all of them answer.

    The answers stand in the report for comparison; its epsilon is recomputed for every report and every check.
    """

    def ask() -> dict[str, float]:
        comparison = accounting.compare(q, sigma, steps, delta, opacus=True)
        if comparison.missing:  # perhaps only for want of time
            raise _Incomplete(comparison)
        return comparison.epsilon

    try:
        return Comparison(remembered({"compare": [q, sigma, steps, delta]}, ask), {})
    except _Incomplete as answer:
        return answer.comparison


class _Incomplete(Exception):
    def __init__(self, comparison: Comparison) -> None:
        super().__init__()
        self.comparison = comparison
