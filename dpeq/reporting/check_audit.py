"""What audits say, computed anew: their limits from the plan's constants, their bounds from their own counts.

The counts themselves (how many were judged, guessed right, or found at a threshold) follow from nothing: for these the
run is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpeq.privacy.accounting import upper_bound
from dpeq.privacy.audit.curves import own_curves
from dpeq.privacy.audit.f_dp import strength_lower as guessed_strength
from dpeq.privacy.audit.many_runs import limits
from dpeq.privacy.audit.many_runs import strength_lower as told_strength
from dpeq.privacy.audit.one_run import epsilon_lower
from dpeq.privacy.audit.steps import best_threshold, bound_on_training
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.audit_form import HIDDEN, is_hidden, is_name, odd_attack, odd_claim, odd_detail, shows_units
from dpeq.reporting.check_attack import check_attack, same, step_of
from dpeq.reporting.check_privacy import Disagreement
from dpeq.reporting.check_run import UNVERIFIED

__all__ = ["check_audits"]

_LIMIT = 1e-3  # relative, for epsilons of other processors
_BOUND = 5e-3  # relative, for bounds that are searched for, to a thousandth each
_CONFIDENCE = 0.95  # of every audit


def check_audits(report: Mapping[str, Any], plan: PrivacyPlan) -> list[str]:
    """A sentence for what was verified, one for what could not be; raises :class:`Disagreement` at the first fault."""
    audits, unfinished = report["audits"], report["unfinished_audits"]
    names = [audit["name"] for audit in audits]
    for what, listed in (("audits", names), ("unfinished audits", unfinished)):
        if listed != sorted(set(listed)) or not all(map(is_name, listed)):
            raise Disagreement(f"its {what} are not in the order of their names, each once")
    if both := sorted({*names} & {*unfinished}):
        raise Disagreement(f"the audit {both[0]} is listed as finished and as unfinished")
    hidden = [audit["name"] for audit in audits if is_hidden(audit)]
    for audit in audits:
        place = f"audits/{audit['name']}"
        _check_form(audit, plan, place)
        _check_claims(audit, plan, place)
        if not is_hidden(audit):
            _check_bound(audit, plan, place)
            check_attack(audit, plan, f"{place}/attack")
    if hidden and shows_units(audits):
        raise Disagreement("figures of one attack on the training units are shown, and those of another are not")
    took, said = sum(audit["details"]["trainings"] for audit in audits), report["audit_trainings"]
    if took > said:
        raise Disagreement(f"audit_trainings is {said}, and its audits took {took}")
    done = []
    if len(hidden) < len(audits):
        done.append(
            "Limits, intervals and areas of its audits follow from the plan and from their counts, computed anew."
        )
    return done + [f"{UNVERIFIED}the attack {name}, whose figures this report leaves out." for name in hidden]


def _check_form(audit: Mapping[str, Any], plan: PrivacyPlan, place: str) -> None:
    """Its words, and that no figure stands where none may."""
    details, lower = audit["details"], audit["epsilon_lower"]
    if not is_hidden(audit):
        if (odd := odd_detail(details)) is not None:
            raise Disagreement(f"{place}/details/{odd} says what no audit does")
        if (odd := odd_attack(audit["attack"])) is not None:
            raise Disagreement(f"{place}/attack/{odd} says what no attack does")
        if lower is None or audit["delta"] is None:
            raise Disagreement(f"{place} shows an attack without its bound")
    else:
        if odds := sorted(details.keys() ^ {*HIDDEN}):
            raise Disagreement(f"{place}/details/{odds[0]} says what no attack without its figures does")
        if details["looks_at_units"] is not True:
            raise Disagreement(f"{place}/attack is missing, and was on no training units")
        if (odd := odd_detail({**details, "share": None})) is not None:
            raise Disagreement(f"{place}/details/{odd} says what no audit does")
        if (lower is not None) is not details["contradicts"]:
            raise Disagreement(
                f"{place}/epsilon_lower is {lower}, and shown where the audit contradicts the plan alone"
            )
    if (odd := odd_claim(audit, plan)) is not None:
        raise Disagreement(f"{place}/{odd} says what no audit of this plan does")


def _check_claims(audit: Mapping[str, Any], plan: PrivacyPlan, place: str) -> None:
    """What the details say of the plan, and of the bound beside it."""
    details, lower, hidden = audit["details"], audit["epsilon_lower"], is_hidden(audit)
    if audit["confidence"] != _CONFIDENCE:
        raise Disagreement(f"{place}/confidence is {audit['confidence']}, and {_CONFIDENCE} in every audit")
    if hidden and not plan.private and audit["delta"] is not None:
        raise Disagreement(f"{place}/delta is {audit['delta']}, and tells how many units were attacked")
    if hidden and not plan.private and details["hits_above_limit"]:
        raise Disagreement(f"{place}/details/hits_above_limit is True, and no plan sets a limit")
    if not hidden:
        same(f"{place}/details/share", details["share"], lower / plan.epsilon_spent if plan.private else None)
    above = plan.private and lower is not None and lower > plan.epsilon_spent
    if details["contradicts"] is not above:
        raise Disagreement(f"{place}/details/contradicts is {details['contradicts']}, and not so")
    for key, value in (("noise_multiplier", plan.noise_multiplier), ("steps", plan.steps)):
        if details.get(key, value) != value:
            raise Disagreement(f"{place}/details/{key} is {details[key]}, and {value} in the plan")
    if not hidden and (audit["attack"]["of"] == "step") != ("in_every_step" in details):
        raise Disagreement(f"{place}/attack/of is {audit['attack']['of']}, and the bound of something else")


def _check_bound(audit: Mapping[str, Any], plan: PrivacyPlan, place: str) -> None:
    """The bound follows from counts among the details, and is computed anew."""
    details = audit["details"]
    if audit["attack"]["of"] == "step":
        _check_step(audit, plan, place)
        return
    counts = ("canaries", "guessed_in", "guessed_out", "correct", "candidates", "epsilon_lower_assuming_nothing")
    if missing := [key for key in counts if details.get(key) is None]:
        raise Disagreement(f"{place}/details/{missing[0]} is missing")
    judged, guesses = details["canaries"], details["guessed_in"] + details["guessed_out"]
    if judged != audit["attack"]["members"] + audit["attack"]["others"]:
        raise Disagreement(f"{place}/details/canaries is {judged}, and others were attacked")
    if not (1 <= guesses <= judged and 0 <= details["correct"] <= guesses):
        raise Disagreement(f"{place}/details/correct is {details['correct']} of {guesses} guesses on {judged}")
    if details["candidates"] != 1:
        raise Disagreement(f"{place}/details/candidates is {details['candidates']}, and 1 in every audit")
    each = audit["confidence"]
    bare = epsilon_lower(judged, guesses, details["correct"], audit["delta"], each)
    same(f"{place}/details/{counts[-1]}", details[counts[-1]], bare, _BOUND)
    if not plan.private:  # there is no family of curves then
        same(f"{place}/epsilon_lower", audit["epsilon_lower"], bare, _BOUND)
        return
    if "strength" not in details:
        raise Disagreement(f"{place}/details/strength is missing")
    curves = own_curves(plan)
    strength = guessed_strength(curves, judged, guesses, details["correct"], each)
    same(f"{place}/details/strength", details["strength"], strength, _BOUND)
    same(f"{place}/epsilon_lower", audit["epsilon_lower"], curves.epsilon(details["strength"]), _BOUND)
    same(f"{place}/details/mu_lower", details.get("mu_lower"), curves.mu(details["strength"]), _BOUND)


def _check_step(audit: Mapping[str, Any], plan: PrivacyPlan, place: str) -> None:
    """The two bounds of a repeated step, from its counts at a threshold."""
    details, attack, one = audit["details"], audit["attack"], step_of(plan, audit["details"]["in_every_step"])
    wanted = {
        "runs_with",
        "runs_without",
        "false_alarms",
        "misses",
        "false_alarms_high",
        "misses_high",
        "strength",
        "threshold",
    }
    wanted |= {"one_step_epsilon_lower", "one_step_theoretical", "one_step_contradicts", "noise_multiplier_at_most"}
    if missing := sorted(wanted - details.keys()):
        raise Disagreement(f"{place}/details/{missing[0]} is missing")
    counts = details["runs_with"], details["runs_without"]
    if counts != (attack["members"], attack["others"]):
        raise Disagreement(f"{place}/details/runs_with is {counts[0]}, and others were attacked")
    if not (0 <= details["misses"] <= counts[0] and 0 <= details["false_alarms"] <= counts[1]):
        raise Disagreement(f"{place}/details/misses is {details['misses']} of {counts[0]}")
    named = best_threshold(one, min(counts), audit["confidence"])  # by the plan, before anything was looked at
    same(f"{place}/details/threshold", details["threshold"], named)
    rates = limits(details["false_alarms"], counts[1], details["misses"], counts[0], audit["confidence"])
    same(f"{place}/details/false_alarms_high", details["false_alarms_high"], rates.false_alarms)
    same(f"{place}/details/misses_high", details["misses_high"], rates.misses)
    curves, strength = own_curves(one), details["strength"]
    same(f"{place}/details/strength", strength, told_strength(curves, rates), _BOUND)
    at_most = 1.0 / strength if strength > 0 else None
    same(f"{place}/details/noise_multiplier_at_most", details["noise_multiplier_at_most"], at_most)
    same(f"{place}/details/one_step_epsilon_lower", details["one_step_epsilon_lower"], curves.epsilon(strength), _BOUND)
    truth, _, _ = upper_bound(one.sample_rate, one.noise_multiplier, 1, one.delta)
    same(f"{place}/details/one_step_theoretical", details["one_step_theoretical"], truth, _LIMIT)
    if details["one_step_contradicts"] is not (details["one_step_epsilon_lower"] > details["one_step_theoretical"]):
        raise Disagreement(f"{place}/details/one_step_contradicts is {details['one_step_contradicts']}, and not so")
    epsilon, mu = bound_on_training(plan, strength)
    same(f"{place}/epsilon_lower", audit["epsilon_lower"], epsilon, _BOUND)
    same(f"{place}/details/mu_lower", details.get("mu_lower"), mu, _BOUND)
