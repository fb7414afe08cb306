"""What audits say, computed anew: their limits from the plan's constants, their bounds from their own counts.

The counts themselves (how many were judged, guessed right, or found at a threshold) follow from nothing: for these the
run is asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from dpeq.privacy.accounting import upper_bound
from dpeq.privacy.audit.counts import rate_high, rate_low
from dpeq.privacy.audit.curves import GaussianCurves, own_curves, profile_of
from dpeq.privacy.audit.f_dp import strength_lower as guessed_strength
from dpeq.privacy.audit.many_runs import limits
from dpeq.privacy.audit.many_runs import strength_lower as told_strength
from dpeq.privacy.audit.one_run import epsilon_lower
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.tradeoff import Profile
from dpeq.reporting.audit import is_name, odd_attack, odd_detail
from dpeq.reporting.check_privacy import Disagreement
from dpeq.reporting.check_run import UNVERIFIED

__all__ = ["check_audits"]

_EXACT = 1e-9  # relative, and absolute: rounding of closed forms
_LIMIT = 1e-3  # relative, for limits: a profile reaches to deltas where a processor's own rounding shows
_BOUND = 5e-3  # relative, for bounds that are searched for, to a thousandth each
_DRAWN = 200  # points of a curve that was thinned


def check_audits(report: Mapping[str, Any], plan: PrivacyPlan) -> list[str]:
    """A sentence for what was verified, one for what could not be; raises :class:`Disagreement` at the first fault."""
    audits, trainings = report["audits"], report["audit_trainings"]
    if (said := sum(audit["details"].get("trainings", 0) for audit in audits)) > trainings:
        raise Disagreement(f"audit_trainings is {trainings}, and its audits took {said}")
    if not audits:
        return []
    names = [audit["name"] for audit in audits]
    if names != sorted(set(names)) or not all(map(is_name, names)):
        raise Disagreement("its audits are not in the order of their names, each once")
    loose = []
    for audit in audits:
        place = f"audits/{audit['name']}"
        if (odd := odd_detail(audit["details"])) is not None:
            raise Disagreement(f"{place}/details/{odd} says what no audit does")
        if (odd := odd_attack(audit["attack"])) is not None:
            raise Disagreement(f"{place}/attack/{odd} says what no attack does")
        _check_claims(audit, plan, place)
        if not _check_bound(audit, plan, place):
            loose.append(audit["name"])
        _check_attack(audit, plan, f"{place}/attack")
    done = ["Limits, intervals and areas of its audits follow from the plan and from their counts, computed anew."]
    return done + [f"{UNVERIFIED}the bound of the audit {name}, which does not follow from counts." for name in loose]


def _check_claims(audit: Mapping[str, Any], plan: PrivacyPlan, place: str) -> None:
    """What the details say of the plan, and of the bound beside it."""
    details, lower = audit["details"], audit["epsilon_lower"]
    if plan.private and audit["delta"] != plan.delta:
        raise Disagreement(f"{place}/delta is {audit['delta']:g}, and {plan.delta:g} in the plan")
    claimed: Any = plan.epsilon_spent if plan.private else "inf"
    if details["theoretical"] not in ((claimed,) if plan.private else (claimed, None)):
        raise Disagreement(f"{place}/details/theoretical is {details['theoretical']}, and {claimed} in the plan")
    _same(f"{place}/details/share", details["share"], lower / plan.epsilon_spent if plan.private else None)
    above = plan.private and lower > plan.epsilon_spent
    if details["contradicts"] is not above:
        raise Disagreement(f"{place}/details/contradicts is {details['contradicts']}, and not so")
    for key, value in (("noise_multiplier", plan.noise_multiplier), ("steps", plan.steps)):
        if details.get(key, value) != value:
            raise Disagreement(f"{place}/details/{key} is {details[key]}, and {value} in the plan")
    if (audit["attack"]["of"] == "step") != ("in_every_step" in details):
        raise Disagreement(f"{place}/attack/of is {audit['attack']['of']}, and the bound of something else")


def _check_bound(audit: Mapping[str, Any], plan: PrivacyPlan, place: str) -> bool:
    """Whether the bound follows from counts among the details; it is then computed anew."""
    details = audit["details"]
    if audit["attack"]["of"] == "step":
        _check_step(audit, plan, place)
        return True
    if not {"canaries", "guessed_in", "guessed_out", "correct", "candidates"} <= details.keys():
        return False
    judged, guesses = details["canaries"], details["guessed_in"] + details["guessed_out"]
    if judged != audit["attack"]["members"] + audit["attack"]["others"]:
        raise Disagreement(f"{place}/details/canaries is {judged}, and others were attacked")
    if not (1 <= guesses <= judged and 0 <= details["correct"] <= guesses and details["candidates"] >= 1):
        raise Disagreement(f"{place}/details/correct is {details['correct']} of {guesses} guesses on {judged}")
    each = 1.0 - (1.0 - audit["confidence"]) / details["candidates"]
    bare = epsilon_lower(judged, guesses, details["correct"], audit["delta"], each)
    if (key := "epsilon_lower_assuming_nothing") in details:
        _same(f"{place}/details/{key}", details[key], bare, _BOUND)
    if not plan.private:  # there is no family of curves then
        _same(f"{place}/epsilon_lower", audit["epsilon_lower"], bare, _BOUND)
        return True
    if "strength" not in details:
        raise Disagreement(f"{place}/details/strength is missing")
    curves = own_curves(plan)
    strength = guessed_strength(curves, judged, guesses, details["correct"], each)
    _same(f"{place}/details/strength", details["strength"], strength, _BOUND)
    _same(f"{place}/epsilon_lower", audit["epsilon_lower"], curves.epsilon(details["strength"]), _BOUND)
    _same(f"{place}/details/mu_lower", details.get("mu_lower"), curves.mu(details["strength"]), _BOUND)
    return True


def _check_step(audit: Mapping[str, Any], plan: PrivacyPlan, place: str) -> None:
    """The two bounds of a repeated step, from its counts at a threshold."""
    details, attack, one = audit["details"], audit["attack"], _step_of(plan, audit["details"]["in_every_step"])
    wanted = {"runs_with", "runs_without", "false_alarms", "misses", "false_alarms_high", "misses_high", "strength"}
    wanted |= {"one_step_epsilon_lower", "one_step_theoretical", "one_step_contradicts", "noise_multiplier_at_most"}
    if missing := sorted(wanted - details.keys()):
        raise Disagreement(f"{place}/details/{missing[0]} is missing")
    counts = details["runs_with"], details["runs_without"]
    if counts != (attack["members"], attack["others"]):
        raise Disagreement(f"{place}/details/runs_with is {counts[0]}, and others were attacked")
    if not (0 <= details["misses"] <= counts[0] and 0 <= details["false_alarms"] <= counts[1]):
        raise Disagreement(f"{place}/details/misses is {details['misses']} of {counts[0]}")
    rates = limits(details["false_alarms"], counts[1], details["misses"], counts[0], audit["confidence"])
    _same(f"{place}/details/false_alarms_high", details["false_alarms_high"], rates.false_alarms)
    _same(f"{place}/details/misses_high", details["misses_high"], rates.misses)
    curves, strength = own_curves(one), details["strength"]
    _same(f"{place}/details/strength", strength, told_strength(curves, rates), _BOUND)
    at_most = 1.0 / strength if strength > 0 else None
    _same(f"{place}/details/noise_multiplier_at_most", details["noise_multiplier_at_most"], at_most)
    _same(
        f"{place}/details/one_step_epsilon_lower", details["one_step_epsilon_lower"], curves.epsilon(strength), _BOUND
    )
    truth, _, _ = upper_bound(one.sample_rate, one.noise_multiplier, 1, one.delta)
    _same(f"{place}/details/one_step_theoretical", details["one_step_theoretical"], truth, _LIMIT)
    if details["one_step_contradicts"] is not (details["one_step_epsilon_lower"] > details["one_step_theoretical"]):
        raise Disagreement(f"{place}/details/one_step_contradicts is {details['one_step_contradicts']}, and not so")
    if plan.sample_rate == 1.0:
        mu = strength * math.sqrt(plan.steps)
        epsilon, mu_lower = GaussianCurves(plan.delta).epsilon(mu), mu
    else:
        epsilon, mu_lower = own_curves(plan).epsilon(strength), None
    _same(f"{place}/epsilon_lower", audit["epsilon_lower"], epsilon, _BOUND)
    _same(f"{place}/details/mu_lower", details.get("mu_lower"), mu_lower, _BOUND)


def _check_attack(audit: Mapping[str, Any], plan: PrivacyPlan, place: str) -> None:
    attack = audit["attack"]
    profile = None
    if plan.private:
        of_step = attack["of"] == "step"
        profile = profile_of(_step_of(plan, audit["details"]["in_every_step"]) if of_step else plan)
    if (attack["limit"] is None) == plan.private:
        raise Disagreement(f"{place}/limit is {'missing' if plan.private else 'one that no plan sets'}")
    for i, (rate, hits) in enumerate(attack["limit"] or ()):
        assert profile is not None
        _same(f"{place}/limit/{i}/1", hits, profile.hit_rate(rate), _LIMIT)
    _check_roc(attack, place)
    for i, row in enumerate(attack["hit_rates"]):
        _check_hit_rate(attack, row, profile, f"{place}/hit_rates/{i}")


def _check_hit_rate(attack: Mapping[str, Any], row: Mapping[str, Any], profile: Profile | None, place: str) -> None:
    members, others = attack["members"], attack["others"]
    hits, passing = round(row["hits"] * members), math.floor(row["rate"] * others + _EXACT)
    _same(f"{place}/hits", row["hits"], hits / members)
    if not 0 < row["rate"] < 1:
        raise Disagreement(f"{place}/rate is {row['rate']}, which no attack is asked for")
    # At a threshold that lets so many others pass: on the curve fewer of them mean no more hits, and more no fewer.
    few, more = passing / others * (1 + _EXACT), row["hits"] + _EXACT
    if any(t > more if a <= few else t < row["hits"] - _EXACT for a, t in attack["roc"]):
        raise Disagreement(f"{place}/hits is {row['hits']:.6g}, and not so on the curve")
    side = 1.0 - (1.0 - attack["confidence"]) / 2
    _same(f"{place}/low", row["low"], float(rate_low(hits, members, side)))
    _same(f"{place}/high", row["high"], float(rate_high(hits, members, side)))
    alarms = float(rate_high(passing, others, side))
    _same(f"{place}/false_alarms_high", row["false_alarms_high"], alarms)
    _same(f"{place}/allowed", row["allowed"], None if profile is None else profile.hit_rate(alarms), _LIMIT)
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


def _step_of(plan: PrivacyPlan, certain: bool) -> PrivacyPlan:
    """The plan of the one step that was audited, with its coins or without; what it claims is not asked."""
    return replace(plan, steps=1, sample_rate=1.0 if certain else plan.sample_rate)


def _same(place: str, said: Any, truth: float | None, rounding: float = _EXACT) -> None:
    if truth is None or said is None or isinstance(said, bool | str):
        if said is not truth:
            raise Disagreement(f"{place} is {said}, and {truth} when computed anew")
    elif not abs(said - truth) <= rounding * abs(truth) + _EXACT:  # so that NaN is wrong
        raise Disagreement(f"{place} is {said:.6g}, and {truth:.6g} when computed anew")
