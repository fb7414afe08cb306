"""The privacy figures of a report, computed anew from its plan and its number of steps."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any

import numpy as np

from dpeq.errors import DataError
from dpeq.privacy import accounting
from dpeq.privacy.accounting import Comparison, epsilon_curve, mu_bound, upper_bound
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.risk import assess
from dpeq.reporting.accountants import NOTHING, gap_of
from dpeq.reporting.audit import refuted
from dpeq.reporting.guarantee import Spent, readers, sampling, spent, statement
from dpeq.reporting.risks import risk_from_dict

__all__ = ["Disagreement", "check_accountants", "check_guarantee", "check_risk"]

_ABOVE = 1e-3  # relative; what a bound may lie above its recomputation, by another release of an accountant
_BELOW = 1e-6  # relative; rounding of another machine, and nothing more: a bound below the truth is false
_TAIL = 1e-3  # relative, for mu and the risk: they reach to deltas of 1e-10, where a processor's own rounding shows
_CURVE = 1e-5  # relative, for the deltas of a drawn profile; its bend between two points comes to this
_NOISE = 1e-12  # absolute, for figures that are nearly 0

# Figures that were asked for and not computed.
_CHOSEN = {"unit", "group", "delta", "basis", "note", "runs", "false_alarms", "base_rate", "prior", "exception"}
_LIBRARIES = {"pld": "pld", "prv": "prv_upper", "opacus_prv": "opacus_prv", "rdp": "rdp"}


class Disagreement(Exception):
    """What about a report does not hold together: a clause."""


def check_guarantee(report: dict[str, Any], plan: PrivacyPlan) -> str:
    """Epsilon, mu, what they rest on, and every sentence that carries them."""
    guarantee, steps = report["guarantee"], report["ledger"]["steps"]
    epsilon = math.inf if guarantee["epsilon"] == "inf" else float(guarantee["epsilon"])
    if plan.private == math.isinf(epsilon):
        raise Disagreement(
            f"epsilon {guarantee['epsilon']} does not fit a {'' if plan.private else 'non-'}private plan"
        )
    claimed = Spent(
        steps, epsilon, guarantee["mu"], guarantee["accountant"], guarantee["accountant_note"], guarantee["complete"]
    )
    if found := refuted(report["audits"], plan):  # before sentences, which say so
        raise Disagreement(f"THE GUARANTEE IS FALSE. {found.rstrip('.')}")
    if guarantee["statement"] != statement(plan, claimed):
        raise Disagreement("the sentence that states the guarantee does not carry its numbers")
    risk = None if report["risk"] is None else risk_from_dict(report["risk"])
    for reader, sentences in readers(plan, claimed, risk).items():
        if guarantee[reader] != sentences:
            raise Disagreement(f"the sentences for the {reader} do not carry the numbers of the risk")
    if guarantee["sampling"] != sampling(plan, report["provenance"]["rng"]):
        raise Disagreement("what it says of the sampling does not follow from the plan")
    if not plan.private:
        if report["accountants"] != NOTHING or report["epsilon_curve"]:
            raise Disagreement("accountants answer for a plan that is not private")
        return "The run is marked as non-private throughout."
    _check_loss(claimed, plan)
    if differs := _difference(report["epsilon_curve"], _curve(plan), "epsilon_curve"):
        raise Disagreement(differs)
    return f"Epsilon {epsilon:.4f} is what its constants cost over {steps:,} steps, computed anew."


def _check_loss(claimed: Spent, plan: PrivacyPlan) -> None:
    try:
        expected = spent(plan, claimed.steps)
    except DataError as error:
        raise Disagreement(str(error).rstrip(".")) from error
    for name in ("accountant", "note"):
        if getattr(claimed, name) != getattr(expected, name):
            raise Disagreement(f"the guarantee does not rest on what it names ({name})")
    truth, by, _ = upper_bound(plan.sample_rate, plan.noise_multiplier, claimed.steps, plan.delta)
    if _below(claimed.epsilon, truth):
        raise Disagreement(f"epsilon {claimed.epsilon:.4f} is below {truth:.4f}, which {by} computes for its constants")
    if _above(claimed.epsilon, expected.epsilon):
        raise Disagreement(f"epsilon {claimed.epsilon:.4f} is above the {expected.epsilon:.4f} that was spent")
    if (claimed.mu is None) != (expected.mu is None):
        raise Disagreement(f"mu is {claimed.mu}, and {expected.mu} for its constants")
    if claimed.mu is None or expected.mu is None:
        return
    mu = mu_bound(plan.sample_rate, plan.noise_multiplier, claimed.steps, plan.delta)
    if (mu is not None and _below(claimed.mu, mu, _TAIL)) or _above(claimed.mu, expected.mu):
        raise Disagreement(f"mu {claimed.mu:.4f} is not the {expected.mu if mu is None else mu:.4f} of its constants")


def check_risk(report: dict[str, Any], plan: PrivacyPlan) -> str:
    """Every figure of the risk, for a unit and for a group."""
    steps, group = report["ledger"]["steps"], report["group_risk"]
    for name, said in (("risk", report["risk"]), ("group_risk", group)):
        if said is None:
            continue
        if (name == "risk" and said["group"] != 1) or (name == "group_risk" and plan.unit != "image"):
            raise Disagreement(f"the {name} speaks of {said['group']} {said['unit']}s, which the plan does not")
        if differs := _difference(said, _risk(plan, steps, said["group"]), name):
            raise Disagreement(differs)
    return "The risk follows from the plan and the steps, computed anew."


def check_accountants(report: dict[str, Any], plan: PrivacyPlan) -> str:
    """Every accountant's answer, as far as it answers here."""
    said, steps = report["accountants"], report["ledger"]["steps"]
    if steps == 0:
        if said != NOTHING:
            raise Disagreement("accountants answer where no step was taken")
        return "No step was taken, so there is nothing to compare."
    if found := Comparison(said["epsilon"], {}).contradiction:
        raise Disagreement(found.rstrip("."))
    if said["gap"] != gap_of(said["epsilon"]):
        raise Disagreement("the gap between the accountants is not that of their answers")
    for library, answer in _LIBRARIES.items():
        if (answer in said["epsilon"]) == (library in said["missing"]):
            raise Disagreement(f"accountant {library} has neither one answer nor one reason for having none")
    anew = _comparison(plan.sample_rate, plan.noise_multiplier, steps, plan.delta)
    silent = [name for name in said["epsilon"] if name not in anew.epsilon]
    for name, value in said["epsilon"].items():
        if name in anew.epsilon and not abs(value - anew.epsilon[name]) <= _ABOVE * anew.epsilon[name] + _NOISE:
            raise Disagreement(
                f"accountant {name} answers {anew.epsilon[name]:.6g} here, and {value:.6g} in the report"
            )
    asked = "The accountants answer here what the report says"
    if silent:
        asked += f", but for {', '.join(silent)}, which give no answer here"
    if unasked := sorted(anew.epsilon.keys() - said["epsilon"].keys()):
        asked += f"; {', '.join(unasked)}, which it has no answer of, answer here as well"
    return f"{asked}."


@lru_cache(maxsize=16)
def _comparison(q: float, sigma: float, steps: int, delta: float) -> Comparison:
    return accounting.compare(q, sigma, steps, delta, opacus=True)


@lru_cache(maxsize=16)
def _risk(plan: PrivacyPlan, steps: int, group: int) -> Any:
    risk = assess(plan, steps, group=group)
    assert risk is not None  # the plan is private
    return json.loads(json.dumps(risk.to_dict()))


@lru_cache(maxsize=16)
def _curve(plan: PrivacyPlan) -> list[list[float]]:
    return [list(point) for point in epsilon_curve(plan)]


def _below(said: float, truth: float, rounding: float = _BELOW) -> bool:
    # Here and below: NaN compares false, so a comparison says what holds and is negated.
    return not said >= truth - rounding * truth - _NOISE


def _above(said: float, truth: float) -> bool:
    return not said <= truth + _ABOVE * truth + _NOISE


def _difference(said: Any, truth: Any, place: str, key: str = "") -> str | None:
    """Where ``said`` is not ``truth``: a clause, or None. Figures are upper bounds, but the rates of misses, lower."""
    if isinstance(truth, dict) and isinstance(said, dict) and said.keys() == truth.keys():
        pairs = [(f"{place}/{name}", name, said[name], truth[name]) for name in truth]
    elif key == "profile":
        return _other_profile(said, truth, place)
    elif isinstance(truth, list) and isinstance(said, list) and len(said) == len(truth) and key not in _CHOSEN:
        pairs = [(f"{place}/{i}", key, one, other) for i, (one, other) in enumerate(zip(said, truth, strict=True))]
    elif key in _CHOSEN or not (_is_number(said) and _is_number(truth)):
        return None if said == truth else f"{place} is {said!r}, and {truth!r} when computed anew"
    else:
        misses = key == "trade_off" and place.endswith("/1")
        rounding = _TAIL if key in ("mu", "regret") else _BELOW
        better = not said <= truth + _BELOW * truth + _NOISE if misses else _below(said, truth, rounding)
        if better or not abs(said - truth) <= _ABOVE * truth + _NOISE:
            return f"{place} is {said:.6g}, and {truth:.6g} when computed anew"
        return None
    return next((found for where, name, one, other in pairs if (found := _difference(one, other, where, name))), None)


def _other_profile(said: list[list[float]], truth: list[list[float]], place: str) -> str | None:
    """Whether both are points of one curve; how far it reaches, and so where its points lie, may differ a little."""
    if len(said) != len(truth):
        return f"{place} has {len(said)} points, and {len(truth)} when computed anew"
    points, deltas = (np.asarray(column, dtype=np.float64) for column in zip(*truth, strict=True))
    asked, answers = (np.asarray(column, dtype=np.float64) for column in zip(*said, strict=True))
    drawn = np.exp(np.interp(asked, points, np.log(np.maximum(deltas, _NOISE))))
    moved = np.abs(asked - points)
    near = moved <= _TAIL * points + _NOISE
    low, high = ((1 + sign * (part + 0.1 * moved)) * drawn for sign, part in ((-1, _CURVE), (1, _ABOVE)))
    right = (answers >= low - 2 * _NOISE) & (answers <= high + 2 * _NOISE)
    wrong = np.flatnonzero(~(near & right))  # so that NaN is wrong
    if not len(wrong):
        return None
    i = int(wrong[0])
    return f"{place}/{i} is {asked[i]:.6g}, {answers[i]:.6g}, and {points[i]:.6g}, {deltas[i]:.6g} when computed anew"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
