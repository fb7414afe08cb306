"""Epsilon spent after any step of a plan, for whoever shows it while a run goes on."""

from __future__ import annotations

import functools
from bisect import bisect_left

from dpeq.errors import ConfigError
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.remembered import remembered_curve

__all__ = ["EpsilonCurve"]


class EpsilonCurve:
    """Upper bound on epsilon after every step of ``plan``, read off :func:`dpeq.privacy.accounting.epsilon_curve`.

    The accountant is asked at about 25 steps, once per plan and process. Between two of them the answer is that of the
    later one: epsilon never falls from step to step, so this says too much and never too little.

    Raises:
        AccountingError: when the plan's accountant does not answer.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self._points = _points(plan)

    def after(self, step: int) -> float:
        """Epsilon of the first ``step`` steps; infinite from the first one on when the plan is non-private.

        Raises:
            ConfigError: for a step that the plan does not have, for which its accountant was not asked.
        """
        last = self._points[-1][0]
        if not 0 <= step <= last:
            raise ConfigError(f"The plan has no step {step}; ask for one from 0 to {last}.")
        return self._points[bisect_left(self._points, step, key=lambda point: point[0])][1]


@functools.lru_cache(maxsize=16)
def _points(plan: PrivacyPlan) -> tuple[tuple[int, float], ...]:
    return tuple(remembered_curve(plan))
