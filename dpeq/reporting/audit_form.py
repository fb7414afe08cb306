"""What the record of an audit may say: its numbers, its two sentences, and what each method of attack brings along.

Each function names the first entry that no audit has, or gives None. People decide by what is written there, so no
sentence passes that is not one of ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from dpeq.privacy.audit.curves import own_curves
from dpeq.privacy.audit.result import METHODS
from dpeq.privacy.audit.steps import STEP, said_of_step
from dpeq.privacy.plan import PrivacyPlan

__all__ = [
    "HIDDEN",
    "LIMIT_RATES",
    "hits_above_limit",
    "is_hidden",
    "is_name",
    "is_release",
    "kind_of",
    "odd_attack",
    "odd_claim",
    "odd_detail",
    "odd_record",
    "said_of",
    "shows_units",
]

HIDDEN = (
    *("theoretical", "contradicts", "assumes", "trainings", "looks_at_units", "shadow_models", "steps"),
    *("noise_multiplier", "hits_above_limit"),
)
"""The details that are left of an attack whose figures are not shown.

None is computed from the data but two truth values: ``contradicts``, and ``hits_above_limit``, which is there alone.
"""

LIMIT_RATES: tuple[float, ...] = (0.0, *np.geomspace(1e-5, 1.0, 101).tolist())
"""False alarm rates at which an audit says what the plan allows."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_FOLDER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
_LONGEST = 240  # characters of a method's name, and of what it assumes
_POINTS = 200  # of a curve
_ALWAYS = {"theoretical", "share", "contradicts", "assumes"}  # of the details
_ATTACK = {"of", "members", "others", "confidence", "auc", "hit_rates", "roc", "limit"}
_HIT_RATE = {"rate", "hits", "low", "high", "false_alarms_high", "allowed", "contradicts"}
_COUNTS = (
    *("runs_with", "runs_without", "misses", "false_alarms", "canaries", "guessed_in", "guessed_out", "correct"),
    *("candidates", "trainings", "shadow_models"),
)  # whole numbers of the details, where they are present
_ONE_STEP = ("one_step_epsilon_lower", "one_step_theoretical", "one_step_contradicts")


def is_name(name: Any) -> bool:
    """Whether the folder of an audit may be called so.

    >>> [is_name(name) for name in ("one-run", "step-2", "", "-x", "A", "a/b")]
    [True, True, False, False, False, False]
    """
    return isinstance(name, str) and _FOLDER_NAME.fullmatch(name) is not None


def is_hidden(audit: Mapping[str, Any]) -> bool:
    """Whether a report's entry leaves the figures of the attack out."""
    return audit["attack"] is None


def hits_above_limit(audit: Mapping[str, Any]) -> bool:
    """Whether any of an audit's hit rates lies above what the plan allows; an entry without figures says it itself."""
    if is_hidden(audit):
        return bool(audit["details"]["hits_above_limit"])
    return any(row["contradicts"] for row in audit["attack"]["hit_rates"])


def shows_units(audits: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any entry shows figures that were computed from the training units, without noise."""
    return any(audit["details"]["looks_at_units"] and not is_hidden(audit) for audit in audits)


def is_release(audit: Mapping[str, Any]) -> bool:
    """Whether an entry shows figures that a training with canaries released: they are of noised sums or weights."""
    return not is_hidden(audit) and audit["details"]["trainings"] > 0 and not audit["details"]["looks_at_units"]


def kind_of(method: str) -> str | None:
    """What was attacked by whom, as the method's name begins; None for a method of nobody's.

    >>> kind_of("shadow models, one run, gaussian curves"), kind_of("a glance")
    ('shadow models', None)
    """
    first = method.partition(",")[0]
    return first if first in (STEP, *METHODS.values()) else None


def said_of(kind: str, plan: PrivacyPlan, *, times: int = 0, certain: bool = False) -> tuple[str, str]:
    """The name of the method and what its bound assumes, as an audit of ``kind`` under ``plan`` says them.

    ``times`` counts the repetitions of a step, and ``certain`` says that the unit was in every one.
    """
    if kind == STEP:
        return said_of_step(plan, times, certain)
    if not plan.private:
        return f"{kind}, one run", "Nothing about the mechanism."
    curves = own_curves(plan)
    return f"{kind}, one run, {curves.name} curves", curves.assumes


def odd_record(audit: Mapping[str, Any]) -> str | None:
    """Of a whole record, by the kinds of its values alone."""
    lower, details = audit["epsilon_lower"], audit["details"]
    if not (isinstance(audit["method"], str) and 0 < len(audit["method"]) <= _LONGEST):
        return "method"
    if not (_is_number(lower) and 0 <= lower < math.inf):
        return "epsilon_lower"
    for key in ("confidence", "delta"):
        if not (_is_share(audit[key]) and 0 < audit[key] < 1):
            return key
    if not isinstance(details, dict):
        return "details"
    if (found := odd_detail(details)) is not None:
        return f"details/{found}"
    if (found := odd_attack(audit["attack"])) is not None:
        return "attack" if found == "attack" else f"attack/{found}"
    return None


def odd_detail(details: Mapping[str, Any]) -> str | None:
    """Of the details: numbers, truth values and nothing at all are sound.

    Words are read by people who decide, so there are two: what the bound ``assumes``, and a ``theoretical`` epsilon of
    "inf".
    """
    if missing := sorted(_ALWAYS - details.keys()):
        return missing[0]
    for key, value in details.items():
        words = isinstance(value, str) and (
            (key == "theoretical" and value == "inf") or (key == "assumes" and len(value) <= _LONGEST)
        )
        plain = value is None or isinstance(value, bool | int | float)
        if not (words or plain) or not _NAME.fullmatch(key):
            return str(key)
    kinds: dict[str, type] = {
        "contradicts": bool,
        "one_step_contradicts": bool,
        "looks_at_units": bool,
        "in_every_step": bool,
        "hits_above_limit": bool,
        "assumes": str,
    }
    kinds |= dict.fromkeys(_COUNTS, int)
    wrong = (key for key, kind in kinds.items() if key in details and type(details[key]) is not kind)
    below = (key for key in _COUNTS if key in details and details[key] < 0)
    return next(wrong, None) or next(below, None)


def odd_claim(audit: Mapping[str, Any], plan: PrivacyPlan) -> str | None:
    """Of a record, or of a report's entry, under ``plan``: its words, what its method took, what it is held against and
    what it contradicts.

    A contradiction that the numbers beside it do not bear out is none. ``audit`` has passed the checks of its form.
    """
    details, attack, kind = audit["details"], audit["attack"], kind_of(audit["method"])
    of_step = kind == STEP
    times = 0
    if kind is None or (of_step and (attack is None or not plan.private)):
        return "method"
    if of_step:
        times = attack["members"] + attack["others"]
        if missing := [key for key in ("in_every_step", *_ONE_STEP) if key not in details]:
            return f"details/{missing[0]}"
        if wrong := [key for key in _ONE_STEP[:2] if not _is_number(details[key])]:
            return f"details/{wrong[0]}"
    elif extra := [key for key in ("in_every_step", *_ONE_STEP) if key in details]:
        return f"details/{extra[0]}"
    method, assumes = said_of(kind, plan, times=times, certain=details.get("in_every_step", False))
    if audit["method"] != method:
        return "method"
    if details["assumes"] != assumes:
        return "details/assumes"
    shadows = details.get("shadow_models", 0)
    if (kind == METHODS["member"]) is not (shadows > 0):
        return "details/shadow_models"
    took = {STEP: 0, METHODS["member"]: shadows + 1}.get(kind, 1)
    for key, value in (("trainings", took), ("looks_at_units", kind == METHODS["member"])):
        if details.get(key) != value:
            return f"details/{key}"
    if plan.private and audit["delta"] != plan.delta:
        return "delta"
    claimed = (plan.epsilon_spent,) if plan.private else ("inf", None)
    if details["theoretical"] not in claimed:
        return "details/theoretical"
    if ("hits_above_limit" in details) is not (attack is None):
        return "details/hits_above_limit"
    if details["contradicts"] and not _exceeds(audit["epsilon_lower"], details["theoretical"]):
        return "details/contradicts"
    if of_step and details[_ONE_STEP[2]] and not _exceeds(*(details[key] for key in _ONE_STEP[:2])):
        return f"details/{_ONE_STEP[2]}"
    return None


def odd_attack(attack: Any) -> str | None:
    """Of an audit's ``attack``; "attack" for what is none.

    An attack names what it was ``of`` ("step": one private step; "training": a whole one), how many ``members`` and
    ``others`` it judged, the ``confidence`` of its limits, its ``auc``, ``hit_rates`` as
    :class:`~dpeq.privacy.audit.membership.HitRate` has them, the curve ``roc`` of (false alarm rate, hit rate) from
    (0, 0) to (1, 1) and the ``limit`` of such pairs that the plan sets, up to (1, 1), None without privacy.
    """
    if not isinstance(attack, dict) or set(attack) != _ATTACK:
        return "attack"
    confidence = attack["confidence"]
    sound = {
        "of": attack["of"] in ("step", "training"),
        "members": _is_count(attack["members"]),
        "others": _is_count(attack["others"]),
        "confidence": _is_share(confidence) and 0.5 <= confidence < 1,
        "auc": _is_share(attack["auc"]),
        "hit_rates": _are_hit_rates(attack["hit_rates"]),
        "roc": _is_curve(attack["roc"]) and [attack["roc"][0], attack["roc"][-1]] == [[0, 0], [1, 1]],
        "limit": attack["limit"] is None or (_is_curve(attack["limit"]) and attack["limit"][-1] == [1, 1]),
    }
    return next((key for key, is_sound in sound.items() if not is_sound), None)


def _exceeds(lower: Any, theoretical: Any) -> bool:
    return _is_number(lower) and _is_number(theoretical) and lower > theoretical


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_hit_rates(rows: Any) -> bool:
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) and set(row) == _HIT_RATE for row in rows)):
        return False
    shares = all(_is_share(row[key]) for row in rows for key in _HIT_RATE - {"allowed", "contradicts"})
    others = all((row["allowed"] is None or _is_share(row["allowed"])) for row in rows)
    flags = all(isinstance(row["contradicts"], bool) for row in rows)
    return shares and others and flags and all(a["rate"] < b["rate"] for a, b in pairwise(rows))


def _is_curve(points: Any) -> bool:
    """At least two and at most 200 pairs of shares, of which neither side ever falls."""
    if not (isinstance(points, list) and 2 <= len(points) <= _POINTS):
        return False
    if not all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_share, pair)) for pair in points):
        return False
    return all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(points))
