"""What an audit of the trained model measured, held against the guarantee.

An audit attacks the model and gives a *lower* bound on the epsilon that it has, with some confidence: it can show
a guarantee to be false, and never to be true.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dpeq.errors import DataError
from dpeq.privacy.accounting import upper_bound
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.strict import read_strict

__all__ = ["contradiction", "read_audit"]

_KEYS = {"method", "epsilon_lower", "confidence", "delta", "details"}


def read_audit(run: Path) -> dict[str, Any] | None:
    """RUN/audit.json, or None without one.

    Its keys: ``method`` (a name), ``epsilon_lower`` >= 0 (a lower bound on epsilon at ``delta`` that holds with
    probability ``confidence``), and ``details`` (whatever else the method says). Raises :class:`DataError` otherwise.
    """
    path = run / "audit.json"
    try:
        audit = read_strict(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); audit the run again or remove the file.") from error
    if not isinstance(audit, dict) or set(audit) != _KEYS:
        raise DataError(f"{path} does not have the keys {', '.join(sorted(_KEYS))} alone; audit the run again.")
    lower, shares = audit["epsilon_lower"], (audit["confidence"], audit["delta"])
    sound = (
        isinstance(audit["method"], str)
        and audit["method"] != ""
        and isinstance(audit["details"], dict)
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in (lower, *shares))
        and lower >= 0
        and math.isfinite(lower)
        and all(0 < x < 1 for x in shares)
    )
    if not sound:
        raise DataError(f"{path} holds values that no audit has; audit the run again or remove the file.")
    return audit


def contradiction(audit: dict[str, Any] | None, plan: PrivacyPlan, steps: int, epsilon: float) -> str | None:
    """One sentence when the audit measured more than the training allows at the audit's own delta.

    ``epsilon`` is what the guarantee states at the plan's delta.
    """
    if audit is None or not plan.private:
        return None
    allowed, delta = epsilon, audit["delta"]
    if delta != plan.delta:
        allowed, _, _ = upper_bound(plan.sample_rate, plan.noise_multiplier, steps, delta)
    if audit["epsilon_lower"] <= allowed:
        return None
    return (
        f"The audit ({audit['method']}) finds that epsilon is at least {audit['epsilon_lower']:.4g} with confidence "
        f"{audit['confidence']:.4g}, where the guarantee allows {allowed:.4g} at delta {delta:.3g}."
    )
