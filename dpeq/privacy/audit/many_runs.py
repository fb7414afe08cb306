"""Auditing with many independent runs, some with one canary and some without it.

Each run gives a score; "it was in" is said of those above a threshold. False alarm rate and rate of misses are
binomial, their limits after Clopper and Pearson hold together with the confidence asked for (Bonferroni over the two),
and a curve that allows no such test is rejected: under (epsilon, delta)-DP that is

    epsilon >= max(ln((hits - delta) / false alarms), ln((1 - false alarms - delta) / misses)),

under Gaussian DP mu >= Phi^-1(hits) - Phi^-1(false alarms), with lower limits of hits, upper ones of false alarms and
misses (Nasr et al. 2023, arXiv 2302.07956). The first asks for rates about delta, which no affordable number of runs
shows; the second reads the whole curve off one of its points, and for a Gaussian mechanism explains nearly all.

The threshold is fixed beforehand, or chosen on some runs, at random, that do not count for the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpeq.errors import ConfigError
from dpeq.privacy._session import session
from dpeq.privacy.audit.counts import Array, check_confidence, rate_high
from dpeq.privacy.audit.curves import Curves, largest_rejected
from dpeq.privacy.audit.result import AuditResult

__all__ = ["Limits", "audit_many_runs", "limits", "strength_lower"]

CHOOSING = 0.1
"""Share of the runs that the threshold is chosen on."""

_THRESHOLDS, _NEIGHBOURS = 201, 21
"""How many thresholds are compared, each by a mean over so many: the best single one of a few runs is a lucky one."""


class Limits(NamedTuple):
    """Upper limits of a test's false alarm rate and rate of misses, that hold together."""

    false_alarms: float
    misses: float


def limits(false_alarms: int, without: int, misses: int, with_canary: int, confidence: float) -> Limits:
    """From counts: ``false_alarms`` among the runs ``without`` the canary, ``misses`` among those with it."""
    check_confidence(confidence)
    each = 1.0 - (1.0 - confidence) / 2
    return Limits(float(rate_high(false_alarms, without, each)), float(rate_high(misses, with_canary, each)))


def strength_lower(curves: Curves, rates: Limits) -> float:
    """The largest strength of the family that allows no test with these rates; 0 if none."""
    hits = 1.0 - rates.misses
    with session():
        return largest_rejected(curves, lambda least: least(hits) > rates.false_alarms)


def audit_many_runs(
    scores_with: Sequence[float] | Array,
    scores_without: Sequence[float] | Array,
    curves: Curves,
    *,
    threshold: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    theoretical: float | None = None,
) -> AuditResult:
    """Lower bound on a family's strength, and by it on epsilon at ``curves.delta``.

    One score for every run with the canary and for every one without, all runs independent. A ``threshold`` must be
    named before looking at the scores; without one a tenth of the runs, drawn by ``seed``, choose it and the others
    count. Raises :class:`ConfigError` for scores that are not numbers or too few, and what the family raises.
    """
    check_confidence(confidence)
    with_canary, without = _numbers(scores_with), _numbers(scores_without)
    chosen_on = 0
    if threshold is None:
        random = np.random.default_rng(seed)
        first, with_canary = _split(with_canary, random)
        second, without = _split(without, random)
        threshold = _choose(first, second, curves, confidence)
        chosen_on = len(first) + len(second)
    elif np.isnan(threshold):
        raise ConfigError("The threshold is not a number; give one, or none at all.")
    alarms, misses = int((without > threshold).sum()), int((with_canary <= threshold).sum())
    rates = limits(alarms, len(without), misses, len(with_canary), confidence)
    with session():
        strength = strength_lower(curves, rates)
        epsilon = curves.epsilon(strength)
    return AuditResult(
        method=f"many runs, {curves.name} curves",
        epsilon_lower=epsilon,
        mu_lower=curves.mu(strength),
        confidence=confidence,
        delta=curves.delta,
        theoretical=theoretical,
        assumes=curves.assumes,
        details={
            "runs_with": len(with_canary),
            "runs_without": len(without),
            "chosen_on": chosen_on,
            "threshold": float(threshold),
            "false_alarms": alarms,
            "misses": misses,
            "false_alarms_high": rates.false_alarms,
            "misses_high": rates.misses,
            "strength": strength,
        },
    )


def _numbers(scores: Sequence[float] | Array) -> Array:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) < 10:
        raise ConfigError("An audit of many runs needs at least ten runs with the canary and ten without; make more.")
    if not np.isfinite(values).all():
        raise ConfigError("A run's score is not a finite number; repair the attack.")
    return values


def _split(values: Array, random: np.random.Generator) -> tuple[Array, Array]:
    """Some to choose the threshold on, and the others: at random, for scores may come sorted."""
    count = max(1, round(CHOOSING * len(values)))
    mixed = random.permutation(values)
    return mixed[:count], mixed[count:]


def _choose(with_canary: Array, without: Array, curves: Curves, confidence: float) -> float:
    """The threshold that would prove most on these runs alone."""
    both = np.unique(np.concatenate([with_canary, without]))
    if len(both) > _THRESHOLDS:
        both = both[np.linspace(0, len(both) - 1, _THRESHOLDS).round().astype(int)]
    alarms = len(without) - np.searchsorted(np.sort(without), both, side="right")
    misses = np.searchsorted(np.sort(with_canary), both, side="right")
    each = 1.0 - (1.0 - confidence) / 2
    false_alarms = rate_high(alarms.astype(np.float64), len(without), each)
    hits = 1.0 - rate_high(misses.astype(np.float64), len(with_canary), each)
    inner = (false_alarms < 1.0) & (hits > 0.0)  # elsewhere one of the rates says nothing
    if not inner.any():
        return float(both[len(both) // 2])
    promise = curves.promise(false_alarms[inner], hits[inner])
    window = np.ones(min(_NEIGHBOURS, len(promise)))
    smooth = np.convolve(promise, window, "same") / np.convolve(np.ones(len(promise)), window, "same")
    return float(both[inner][int(smooth.argmax())])
