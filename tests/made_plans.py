"""Plans of any constants, whose epsilon an accountant has computed."""

from __future__ import annotations

from typing import Any, Literal

from dpeq.privacy import accounting
from dpeq.privacy.plan import PrivacyPlan

DELTA = 1e-5


def made_plan(
    rate: float, sigma: float, steps: int, *, accountant: Literal["pld", "rdp"] = "pld", **changes: Any
) -> PrivacyPlan:
    """The plan of ``steps`` at ``rate`` under noise multiplier ``sigma``; without privacy where that is 0."""
    spent = float("inf")
    if sigma > 0:
        bound = {"pld": accounting.epsilon_pld, "rdp": accounting.epsilon_rdp}[accountant]
        spent = bound(rate, sigma, steps, DELTA)
    values: dict[str, Any] = {
        "epsilon_target": spent,
        "delta": DELTA,
        "unit": "image",
        "sample_rate": rate,
        "steps": steps,
        "expected_batch_size": 8,
        "noise_multiplier": sigma,
        "max_grad_norm": 0.5,
        "public_units": 100,
        "accountant": accountant if sigma > 0 else "none",
        "epsilon": {accountant: spent} if sigma > 0 else {},
    }
    return PrivacyPlan(**{**values, **changes})
