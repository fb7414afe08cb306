"""What an audit found: a lower bound on epsilon, how sure it is, and what it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dpeq.errors import ConfigError

__all__ = ["METHODS", "AuditResult", "Kind"]

Kind = Literal["gradient", "input", "member"]
METHODS: dict[Kind, str] = {"gradient": "gradient canaries", "input": "input canaries", "member": "shadow models"}
"""How the methods of audits of a whole training begin, by what its canaries are."""


@dataclass(frozen=True)
class AuditResult:
    """With probability ``confidence`` at least, epsilon at ``delta`` is ``epsilon_lower`` or more, given ``assumes``.

    ``assumes`` says in one sentence what that rests on beside the design of the experiment. ``mu_lower`` is a lower
    bound on the mu of any Gaussian mechanism that dominates what was audited, whatever its own curve is (of a training
    of which one step was audited, ``assumes`` holds for it as well); None where the method tests no such curve.
    ``theoretical`` is the epsilon that the plan claims, if it was given. ``details`` holds plain JSON values: the
    counts that the bound was computed from.

    An audit that finds little proves nothing: the attack may be weak. One that finds more than the plan allows
    (:attr:`contradicts`) says that the code, the accountant or the experiment is wrong, or that the sample was one of
    the 1 - ``confidence`` unlucky ones.
    """

    method: str
    epsilon_lower: float
    mu_lower: float | None
    confidence: float
    delta: float
    theoretical: float | None
    assumes: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon_lower) and self.epsilon_lower >= 0):
            raise ConfigError(f"An audit's lower bound is {self.epsilon_lower}; give a finite number of at least 0.")
        if self.theoretical is not None and not self.theoretical >= 0:
            raise ConfigError(f"The theoretical epsilon is {self.theoretical}; give a number of at least 0, or none.")

    @property
    def share(self) -> float | None:
        """The part of the theoretical epsilon that the audit explains; None without one that is finite and not 0."""
        if self.theoretical is None or not 0 < self.theoretical < math.inf:
            return None
        return self.epsilon_lower / self.theoretical

    @property
    def contradicts(self) -> bool:
        """Whether the lower bound lies above the theoretical epsilon."""
        return self.theoretical is not None and self.epsilon_lower > self.theoretical

    def to_dict(self) -> dict[str, Any]:
        """JSON values: method, epsilon_lower, confidence, delta, and all else in "details"; infinity is "inf"."""
        return {
            "method": self.method,
            "epsilon_lower": self.epsilon_lower,
            "confidence": self.confidence,
            "delta": self.delta,
            "details": {
                "mu_lower": self.mu_lower,
                "theoretical": "inf" if self.theoretical == math.inf else self.theoretical,
                "share": self.share,
                "contradicts": self.contradicts,
                "assumes": self.assumes,
                **self.details,
            },
        }
