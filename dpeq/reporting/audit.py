"""What an audit of the trained model measured, held against the guarantee.

An audit attacks the model and gives a *lower* bound on the epsilon that it has, with some confidence: it can show
a guarantee to be false, and never to be true.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpeq.errors import DataError
from dpeq.privacy.accounting import upper_bound
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.numbers import percent_down, round_down, round_up, scientific
from dpeq.reporting.strict import read_strict

__all__ = ["contradiction", "odd_detail", "read_audit", "refutation"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_LONGEST = 240  # characters of a method's name, and of what it assumes
_KEYS = {"method", "epsilon_lower", "confidence", "delta", "details"}


def read_audit(run: Path) -> dict[str, Any] | None:
    """RUN/audit.json, or None without one.

    Its keys: ``method`` (a name), ``epsilon_lower`` >= 0 (a lower bound on epsilon at ``delta`` that holds with
    probability ``confidence``), and ``details`` (see :func:`odd_detail`). Raises :class:`DataError` otherwise.
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
    if not _is_sound(audit):
        raise DataError(f"{path} holds values that no audit has; audit the run again or remove the file.")
    return audit


def odd_detail(details: Mapping[str, Any]) -> str | None:
    """The first key of an audit's details that says what no audit does; None if all are sound.

    Numbers, truth values and nothing at all are; words are read by people who decide, so there are two: what the bound
    ``assumes``, and a ``theoretical`` epsilon of "inf".
    """
    for key, value in details.items():
        words = isinstance(value, str) and (
            (key == "theoretical" and value == "inf") or (key == "assumes" and len(value) <= _LONGEST)
        )
        plain = value is None or isinstance(value, bool | int | float)
        if not (words or plain) or not _NAME.fullmatch(key):
            return str(key)
    return None


def _is_sound(audit: dict[str, Any]) -> bool:
    lower, shares = audit["epsilon_lower"], (audit["confidence"], audit["delta"])
    return (
        isinstance(audit["method"], str)
        and 0 < len(audit["method"]) <= _LONGEST
        and isinstance(audit["details"], dict)
        and odd_detail(audit["details"]) is None
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in (lower, *shares))
        and lower >= 0
        and math.isfinite(lower)
        and all(0 < x < 1 for x in shares)
    )


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
        f"The audit ({audit['method']}) finds that epsilon is at least {round_down(audit['epsilon_lower'], 3)} with "
        f"confidence {percent_down(audit['confidence'])}, where the guarantee allows {round_up(allowed, 3)} at delta "
        f"{scientific(delta)}."
    )


def refutation(report: Mapping[str, Any]) -> str | None:
    """:func:`contradiction` of a report's own entries."""
    guarantee = report["guarantee"]
    if not guarantee["private"]:
        return None
    plan = PrivacyPlan.from_dict(report["plan"])
    return contradiction(report["audit"], plan, guarantee["steps"], guarantee["epsilon"])
