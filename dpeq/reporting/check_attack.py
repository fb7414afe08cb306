"""The attack of an audit, computed anew: its ROC curve, its hit rates, and what the plan allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from dpeq.privacy.audit.counts import rate_high, rate_low
from dpeq.privacy.audit.curves import profile_of
from dpeq.privacy.audit.membership import RATES
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.tradeoff import Profile
from dpeq.reporting.audit_form import LIMIT_RATES
from dpeq.reporting.check_privacy import Disagreement

__all__ = ["check_attack", "same", "step_of"]

_EXACT = 1e-9  # relative, and absolute: rounding of closed forms
_LIMIT = 1e-3  # relative, for limits: a profile reaches to deltas where a processor's own rounding shows
_DRAWN = 200  # points of a curve that was thinned


def check_attack(audit: Mapping[str, Any], plan: PrivacyPlan, place: str) -> None:
    attack = audit["attack"]
    profile = None
    if plan.private:
        of_step = attack["of"] == "step"
        profile = profile_of(step_of(plan, audit["details"]["in_every_step"]) if of_step else plan)
    if (attack["limit"] is None) == plan.private:
        raise Disagreement(f"{place}/limit is {'missing' if plan.private else 'one that no plan sets'}")
    if attack["confidence"] != audit["confidence"]:
        raise Disagreement(f"{place}/confidence is {attack['confidence']}, and that of the bound {audit['confidence']}")
    if profile is not None:
        if len(attack["limit"]) != len(LIMIT_RATES):
            raise Disagreement(
                f"{place}/limit has {len(attack['limit'])} points, and {len(LIMIT_RATES)} in every audit"
            )
        for i, ((rate, hits), known) in enumerate(zip(attack["limit"], LIMIT_RATES, strict=True)):
            same(f"{place}/limit/{i}/0", rate, known)
            same(f"{place}/limit/{i}/1", hits, profile.hit_rate(known), _LIMIT)
    _check_roc(attack, place)
    if attack["of"] == "step":
        _check_threshold(attack, audit["details"], place)
    if (rates := [row["rate"] for row in attack["hit_rates"]]) != list(RATES):
        raise Disagreement(f"{place}/hit_rates are at {rates}, and at {list(RATES)} in every audit")
    for i, row in enumerate(attack["hit_rates"]):
        _check_hit_rate(attack, row, profile, f"{place}/hit_rates/{i}")


def _check_hit_rate(attack: Mapping[str, Any], row: Mapping[str, Any], profile: Profile | None, place: str) -> None:
    members, others = attack["members"], attack["others"]
    hits, passing = round(row["hits"] * members), math.floor(row["rate"] * others + _EXACT)
    same(f"{place}/hits", row["hits"], hits / members)
    # At a threshold that lets so many others pass: on the curve fewer of them mean no more hits, and more no fewer.
    points = _counted(attack)
    thinned = any(t > hits if a <= passing else t < hits for a, t in points)
    if thinned if len(points) >= _DRAWN else hits not in _hits_at(points, passing):
        raise Disagreement(f"{place}/hits is {row['hits']:.6g}, and not so on the curve")
    side = 1.0 - (1.0 - attack["confidence"]) / 2
    same(f"{place}/low", row["low"], float(rate_low(hits, members, side)))
    same(f"{place}/high", row["high"], float(rate_high(hits, members, side)))
    alarms = float(rate_high(passing, others, side))
    same(f"{place}/false_alarms_high", row["false_alarms_high"], alarms)
    same(f"{place}/allowed", row["allowed"], None if profile is None else profile.hit_rate(alarms), _LIMIT)
    if row["contradicts"] is not (row["allowed"] is not None and row["low"] > row["allowed"]):
        raise Disagreement(f"{place}/contradicts is {row['contradicts']}, and not so")


def _check_roc(attack: Mapping[str, Any], place: str) -> None:
    """Points are shares of whole numbers; the area is that below them, as far as those that were left out can tell."""
    roc = attack["roc"]
    for i, (a, t) in enumerate(roc):
        for share, count in ((a, attack["others"]), (t, attack["members"])):
            if abs(share * count - round(share * count)) > _EXACT * count:
                raise Disagreement(f"{place}/roc/{i} is {a:.6g}, {t:.6g}, which are no shares of those it judged")
    steps = [(b[0] - a[0], a[1], b[1]) for a, b in pairwise(roc)]
    if len(roc) < _DRAWN:  # all of it: straight lines between the points
        low = high = sum(width * (left + right) / 2 for width, left, right in steps)
    else:
        low, high = sum(width * left for width, left, _ in steps), sum(width * right for width, _, right in steps)
    if not low - _EXACT <= attack["auc"] <= high + _EXACT:
        raise Disagreement(f"{place}/auc is {attack['auc']:.6g}, and {low:.6g} to {high:.6g} below its curve")


def _counted(attack: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The curve in whole numbers of others and members."""
    return [(round(a * attack["others"]), round(t * attack["members"])) for a, t in attack["roc"]]


def _hits_at(points: Sequence[tuple[int, int]], passing: int) -> set[int]:
    """How many members a threshold may hit that accuses no more than ``passing`` others, by a curve drawn whole.

    A curve is drawn without the points between equal steps. Where others and members share scores a step goes both
    ways, and the curve does not tell into how many equal ones it was cut.
    """
    last = max(i for i, (a, _) in enumerate(points) if a <= passing)
    (a, t), (to_a, to_t) = points[last], points[min(last + 1, len(points) - 1)]
    wide, high = to_a - a, to_t - t
    parts = [k for k in range(1, math.gcd(wide, high) + 1) if wide % k == 0 and high % k == 0]
    return {t + (passing - a) * k // wide * (high // k) for k in parts} if wide else {t}


def _check_threshold(attack: Mapping[str, Any], details: Mapping[str, Any], place: str) -> None:
    """What the threshold that was named beforehand found is a point of the curve, or one that was left out of it."""
    alarms, hits, points = details["false_alarms"], attack["members"] - details["misses"], _counted(attack)
    between = all((a <= alarms and t <= hits) or (a >= alarms and t >= hits) for a, t in points)
    on_line = any(
        a <= alarms <= to_a and t <= hits <= to_t and (alarms - a) * (to_t - t) == (hits - t) * (to_a - a)
        for (a, t), (to_a, to_t) in pairwise(points)
    )
    if not between or (len(points) < _DRAWN and not on_line):
        raise Disagreement(
            f"{place}/roc does not pass through the {alarms} false alarms and {hits} hits at the audit's threshold"
        )


def step_of(plan: PrivacyPlan, certain: bool) -> PrivacyPlan:
    """The plan of the one step that was audited, with its coins or without; what it claims is not asked."""
    return replace(plan, steps=1, sample_rate=1.0 if certain else plan.sample_rate)


def same(place: str, said: Any, truth: float | None, rounding: float = _EXACT) -> None:
    if truth is None or said is None or isinstance(said, bool | str):
        if said is not truth:
            raise Disagreement(f"{place} is {said}, and {truth} when computed anew")
    elif not abs(said - truth) <= rounding * abs(truth) + _EXACT:  # so that NaN is wrong
        raise Disagreement(f"{place} is {said:.6g}, and {truth:.6g} when computed anew")
