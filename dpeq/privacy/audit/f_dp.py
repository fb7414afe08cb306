"""Auditing a trade-off curve in one run: Mahloujifar, Melis, Chaudhuri 2024, arXiv 2410.22235; with the argument.

The experiment is that of :mod:`dpeq.privacy.audit.one_run`: m canaries, fair coins, r guesses of which C are right.
Let p_i = P[C = i], and g the inverse of 1 - f (:mod:`dpeq.privacy.audit.curves`). For a canary j, a side b, all other
coins fixed, and E = {j is guessed b, and i - 1 or more of the other guesses are right}: with coin b, E means that j is
right and C >= i; with the other coin, that j is wrong and C >= i - 1. The two trainings are neighbours, so
P_b[E] <= 1 - f(P_other[E]), and 1 - f is concave, so the mean over b, the other coins and j gives, for every i,

    h_(i-1) >= g(t_i),   t_i = sum over k >= i of k p_k / m,   h_i = sum over k >= i of (r - k) p_k / m.

Suppose P[C >= v] = tau. How little probability can all counts have together? Put tau at v; then go down from v - 1 and
give each count no more than the inequality asks. That is least: t_i grows with every h_k, k < v, once t_v and h_v are
fixed (the weights k / (r - k) fall with k), so by induction any other way has every h and every t at least
as large; and mass above v only raises t_v and lowers h_v. If even so the total exceeds 1, which is t_0 + h_0 > r / m,
no mechanism with this curve gets v right with probability tau, nor with a larger one (scaled down, its p would do for
tau, as g is convex and g(0) = 0). Seeing v right then rejects the curve at confidence 1 - tau.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from dpeq.privacy._session import session
from dpeq.privacy.audit.counts import Array, Bits, Guesses, check_confidence, checked, correct_guesses
from dpeq.privacy.audit.curves import Curves, Inverse, largest_rejected
from dpeq.privacy.audit.one_run import check_counts, counted, tested
from dpeq.privacy.audit.result import AuditResult

__all__ = ["audit_f_dp", "rejects", "strength_lower"]

_ROUNDING = 1e-9
"""What the total must exceed 1 by: room for the rounding of the sums."""


def rejects(least_false_alarms: Inverse, canaries: int, guesses: int, correct: int, confidence: float) -> bool:
    """Whether ``correct`` right of ``guesses`` are too many for a mechanism with this curve, at ``confidence``."""
    check_counts(canaries, guesses, correct)
    check_confidence(confidence)
    tau = 1.0 - confidence
    whole = guesses / canaries * (1 + _ROUNDING)
    t, h = tau * correct / canaries, tau * (guesses - correct) / canaries
    for count in range(correct - 1, -1, -1):
        needed = least_false_alarms(t)
        if needed <= h:  # no count below needs any probability
            break
        t, h = t + count / (guesses - count) * (needed - h), needed
        if t + h > whole:
            return True
    return t + h > whole


@functools.lru_cache(maxsize=4096)
def strength_lower(curves: Curves, canaries: int, guesses: int, correct: int, confidence: float) -> float:
    """The largest strength of the family that the counts reject; 0 if none.

    Counts that reject a curve reject every one that allows less, so one strength says it all.
    """
    with session():
        return largest_rejected(curves, lambda least: rejects(least, canaries, guesses, correct, confidence))


def audit_f_dp(
    scores: Sequence[float] | Array,
    included: Sequence[bool] | Bits,
    curves: Curves,
    *,
    confidence: float = 0.95,
    candidates: Sequence[Guesses] | None = None,
    theoretical: float | None = None,
) -> AuditResult:
    """Lower bound on a family's strength, and by it on epsilon at ``curves.delta``.

    Experiment, guesses and ``candidates`` as for :func:`~dpeq.privacy.audit.one_run.audit_one_run`; what epsilon rests
    on beside is ``curves.assumes``. Raises what the family raises.
    """
    values, bits = checked(scores, included)
    choices, each = tested(len(values), candidates, confidence)
    found = []
    with session():
        for guesses in choices:
            correct = correct_guesses(values, bits, guesses)
            found.append((strength_lower(curves, len(values), guesses.total, correct, each), guesses, correct))
        best = max(found, key=lambda row: row[0])
        epsilon = curves.epsilon(best[0])
    return AuditResult(
        method=f"one run, {curves.name} curves",
        epsilon_lower=epsilon,
        mu_lower=curves.mu(best[0]),
        confidence=confidence,
        delta=curves.delta,
        theoretical=theoretical,
        assumes=curves.assumes,
        details={**counted(len(values), len(choices), best[1], best[2]), "strength": best[0]},
    )
