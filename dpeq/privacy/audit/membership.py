"""How well a membership attack does: its ROC curve, and its hit rate where it may hardly ever be wrong.

A mean over all false alarm rates hides the few units that an attack is sure of, so hit rates are given at 0.1 % and
1 % (Carlini et al. 2022, arXiv 2112.03570). A threshold that lets floor(rate * n) of n non-members pass is an order
statistic of theirs: members play no part in it, so the hits' interval is binomial (Clopper, Pearson 1934), and the
rate of false alarms to expect of others has the limit of :func:`~dpeq.privacy.audit.counts.rate_high`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dpeq.errors import ConfigError
from dpeq.privacy.audit.counts import Array, Bits, check_confidence, checked, rate_high, rate_low
from dpeq.privacy.tradeoff import Profile

__all__ = ["RATES", "HitRate", "Membership", "attack_quality"]

RATES = (0.001, 0.01)

_POINTS = 200


@dataclass(frozen=True)
class HitRate:
    """Hits of the attack at the threshold that lets at most a share ``rate`` of the non-members at hand pass.

    ``low`` and ``high`` bound the hit rate, ``false_alarms_high`` the rate of false alarms among all non-members (with
    few of them far above ``rate``); ``low`` and ``false_alarms_high`` hold together with the attack's confidence.
    ``allowed`` is the largest hit rate that the plan's privacy profile allows at ``false_alarms_high``, None without a
    profile; ``low`` above ``allowed`` contradicts the plan, as far as the units are independent: those of one training
    are not quite, unless they are canaries with weights of their own.
    """

    rate: float
    hits: float
    low: float
    high: float
    false_alarms_high: float
    allowed: float | None

    @property
    def contradicts(self) -> bool:
        return self.allowed is not None and self.low > self.allowed


@dataclass(frozen=True)
class Membership:
    """``roc`` lists (false alarm rate, hit rate) from (0, 0) to (1, 1), for drawing; ``auc`` is the area below."""

    members: int
    others: int
    confidence: float
    auc: float
    hit_rates: tuple[HitRate, ...]
    roc: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        plain["hit_rates"] = [{**asdict(row), "contradicts": row.contradicts} for row in self.hit_rates]
        plain["roc"] = [list(point) for point in self.roc]
        return plain


def attack_quality(
    scores: Sequence[float] | Array,
    included: Sequence[bool] | Bits,
    *,
    rates: Sequence[float] = RATES,
    confidence: float = 0.95,
    profile: Profile | None = None,
) -> Membership:
    """ROC curve and hit rates of ``scores``, higher for "it was in", of units that were ``included`` or not.

    Units must be independent for the intervals to hold. ``profile`` is the plan's (``rates`` are each tested by
    themselves: of many, some will be contradicted by chance). Raises :class:`ConfigError` for impossible rates, and
    where all units are in or all are out.
    """
    values, bits = checked(scores, included)
    check_confidence(confidence)
    if not all(0 < rate < 1 for rate in rates):
        raise ConfigError("A false alarm rate is not between 0 and 1; give shares, such as 0.01.")
    members, others = values[bits], np.sort(values[~bits])[::-1]
    if not members.size or not others.size:
        raise ConfigError("All units are in, or all are out; an attack is judged on both.")
    if not np.isfinite(values).all():
        raise ConfigError("A unit's score is infinite; give finite scores.")
    from sklearn.metrics import roc_auc_score, roc_curve

    x, y, _ = roc_curve(bits, values)
    kept = np.unique(np.linspace(0, len(x) - 1, min(_POINTS, len(x))).round().astype(int))
    return Membership(
        members=len(members),
        others=len(others),
        confidence=confidence,
        auc=float(roc_auc_score(bits, values)),
        hit_rates=tuple(_hit_rate(members, others, rate, confidence, profile) for rate in rates),
        roc=tuple((float(x[i]), float(y[i])) for i in kept),
    )


def _hit_rate(members: Array, falling: Array, rate: float, confidence: float, profile: Profile | None) -> HitRate:
    passing = math.floor(rate * len(falling) + 1e-9)
    hits = int((members > falling[passing]).sum())
    side = 1.0 - (1.0 - confidence) / 2
    alarms = float(rate_high(passing, len(falling), side))
    return HitRate(
        rate=rate,
        hits=hits / len(members),
        low=float(rate_low(hits, len(members), side)),
        high=float(rate_high(hits, len(members), side)),
        false_alarms_high=alarms,
        allowed=None if profile is None else profile.hit_rate(alarms),
    )
