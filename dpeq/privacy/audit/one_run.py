"""Auditing (epsilon, delta) in one run: Steinke, Nasr, Jagielski 2023, arXiv 2305.08846, Theorem 5.2.

m canaries are each in or out of the training set by a fair coin of their own. An attacker sees what training released
and guesses r of the coins, r fixed beforehand. If training is (epsilon, delta)-DP under adding or removing one unit,
then with W the sum of r coins that come up right with probability e^eps / (1 + e^eps)

    P[v guesses or more are right] <= P[W >= v] + 2 m delta * max over i in 1..m of P[v > W >= v - i] / i.

With delta = 0 that is the randomised response of every coin by itself; delta lets training, rarely, reveal i coins at
once. Nothing is assumed about the mechanism or the attack, and canaries may disturb each other.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from dpeq.errors import ConfigError
from dpeq.privacy.audit.counts import Array, Bits, Guesses, check_confidence, checked, correct_guesses, even_guesses
from dpeq.privacy.audit.result import AuditResult

__all__ = ["audit_one_run", "epsilon_lower", "p_value"]

_EPSILON_MAX = 100.0


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Largest probability of ``correct`` or more right guesses under (``epsilon``, ``delta``)-DP, or a bound on it.

    Raises :class:`ConfigError` unless 0 <= correct <= guesses <= canaries.
    """
    check_counts(canaries, guesses, correct)
    if not 0 <= delta < 1:
        raise ConfigError(f"Delta is {delta}; give a number of at least 0 and below 1.")
    from scipy.special import expit
    from scipy.stats import binom

    right = expit(epsilon)
    tail = float(binom.sf(correct - 1, guesses, right))
    if delta == 0 or correct == 0:
        return min(tail, 1.0)
    below = binom.pmf(np.arange(correct - 1, -1, -1), guesses, right).cumsum()  # P[v > W >= v - i], i = 1, 2, ...
    lifted = float((below / np.arange(1, correct + 1)).max())
    return min(tail + 2.0 * canaries * delta * lifted, 1.0)


@functools.lru_cache(maxsize=4096)
def epsilon_lower(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """Epsilon that the counts reject at ``confidence``: at ``delta`` the mechanism's own is larger; 0 if none.

    Any epsilon whose :func:`p_value` is small enough is a sound answer, whether or not that rises with epsilon: it
    bounds the probability of so many right guesses, for every mechanism with a smaller epsilon too.

    >>> round(epsilon_lower(1000, 100, 75, 1e-4, 0.95), 3)  # the example of the paper's Appendix D
    0.673
    """
    check_confidence(confidence)
    significance = 1.0 - confidence
    if p_value(canaries, guesses, correct, 0.0, delta) > significance:
        return 0.0
    low, high = 0.0, _EPSILON_MAX
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if p_value(canaries, guesses, correct, middle, delta) <= significance:
            low = middle
        else:
            high = middle
        if high < 1e-9:
            return 0.0
    return low


def audit_one_run(
    scores: Sequence[float] | Array,
    included: Sequence[bool] | Bits,
    *,
    delta: float,
    confidence: float = 0.95,
    candidates: Sequence[Guesses] | None = None,
    theoretical: float | None = None,
) -> AuditResult:
    """Lower bound on epsilon at ``delta`` from the ``scores`` of canaries and whether each was ``included``.

    Every canary's coin must have been fair and independent of all else, and the scores computed without looking at
    them. The numbers of guesses must be named before looking at the scores: a tenth of the canaries in and a tenth out
    by default. With several ``candidates`` the best counts, and each is tested at its share of 1 - ``confidence``
    (Bonferroni).
    """
    values, bits = checked(scores, included)
    choices, each = tested(len(values), candidates, confidence)
    found = []
    for guesses in choices:
        correct = correct_guesses(values, bits, guesses)
        found.append((epsilon_lower(len(values), guesses.total, correct, delta, each), guesses, correct))
    best = max(found, key=lambda row: row[0])
    return AuditResult(
        method="one run",
        epsilon_lower=best[0],
        mu_lower=None,
        confidence=confidence,
        delta=delta,
        theoretical=theoretical,
        assumes="Nothing about the mechanism.",
        details=counted(len(values), len(choices), best[1], best[2]),
    )


def tested(canaries: int, candidates: Sequence[Guesses] | None, confidence: float) -> tuple[tuple[Guesses, ...], float]:
    """The numbers of guesses to test, and the confidence that each needs for all of them together to hold."""
    check_confidence(confidence)
    choices = (even_guesses(canaries),) if candidates is None else tuple(Guesses(*choice) for choice in candidates)
    if not choices:
        raise ConfigError("No number of guesses was named; name one at least.")
    return choices, 1.0 - (1.0 - confidence) / len(choices)


def counted(canaries: int, candidates: int, guesses: Guesses, correct: int) -> dict[str, int]:
    return {
        "canaries": canaries,
        "guessed_in": guesses.highest,
        "guessed_out": guesses.lowest,
        "correct": correct,
        "candidates": candidates,
    }


def check_counts(canaries: int, guesses: int, correct: int) -> None:
    if not 0 <= correct <= guesses <= canaries or guesses < 1:
        raise ConfigError(
            f"{correct} right of {guesses} guesses on {canaries} canaries cannot be; give counts of one experiment."
        )
