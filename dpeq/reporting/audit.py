"""What audits of a run measured, held against its guarantee.

An audit attacks the training, or one step of it, and gives a *lower* bound on the epsilon that it has, with some
confidence: it can show a guarantee to be false, and never to be true. Those of a run lie in ``RUN/audits/NAME``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dpeq.errors import DataError
from dpeq.privacy.accounting import upper_bound
from dpeq.privacy.composition import read_audit_ledgers
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.numbers import percent_down, round_down, round_up, scientific
from dpeq.reporting.strict import read_strict

__all__ = [
    "FOLDER",
    "contradiction",
    "is_name",
    "odd_attack",
    "odd_detail",
    "read_audit",
    "read_audits",
    "refutation",
    "refuted",
    "trainings_for_audits",
]

FOLDER = "audits"
"""Of a run: each audit in a folder of its own name."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_FOLDER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
_LONGEST = 240  # characters of a method's name, and of what it assumes
_POINTS = 200  # of a curve
_KEYS = {"method", "epsilon_lower", "confidence", "delta", "details", "attack"}
_ALWAYS = {"theoretical", "share", "contradicts", "assumes"}  # of the details
_ATTACK = {"of", "members", "others", "confidence", "auc", "hit_rates", "roc", "limit"}
_HIT_RATE = {"rate", "hits", "low", "high", "false_alarms_high", "allowed", "contradicts"}


def read_audits(run: Path) -> list[dict[str, Any]]:
    """Every finished audit in RUN/audits, sorted by ``name``, which is its folder's and added to :func:`read_audit`'s.

    Raises :class:`DataError` for one that is damaged or whose folder's name is none, and for RUN/audit.json, where
    older versions kept one audit: what it found must not be overlooked.
    """
    if (old := run / "audit.json").exists():
        raise DataError(
            f"{old} is of an older version, which kept one audit of a run; audit the run again, then remove the file."
        )
    found = []
    for folder in sorted((run / FOLDER).glob("*/")):
        audit = read_audit(folder)
        if audit is None:
            continue  # it was begun, and says nothing yet
        if not is_name(folder.name):
            raise DataError(
                f"{folder} is no name of an audit; rename it: small letters, digits and dashes, 41 at most."
            )
        found.append({"name": folder.name, **audit})
    return found


def read_audit(folder: Path) -> dict[str, Any] | None:
    """FOLDER/audit.json, or None without one.

    Its keys: ``method`` (a name), ``epsilon_lower`` >= 0 (a lower bound on epsilon at ``delta`` that holds with
    probability ``confidence``), ``details`` (see :func:`odd_detail`) and ``attack`` (see :func:`odd_attack`). Raises
    :class:`DataError` otherwise.
    """
    path = folder / "audit.json"
    try:
        audit = read_strict(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); audit again, or remove {folder}.") from error
    if not isinstance(audit, dict) or set(audit) != _KEYS:
        raise DataError(f"{path} does not have the keys {', '.join(sorted(_KEYS))} alone; audit again.")
    if place := _odd(audit):
        raise DataError(f"{path} says in {place} what no audit does; audit again, or remove {folder}.")
    return audit


def trainings_for_audits(run: Path, plan: PrivacyPlan) -> int:
    """How many further trainings on the data of ``run`` its audits took or began, by their ledgers.

    What a finished audit says that it took counts where ledgers are missing. Raises :class:`DataError` for a ledger
    that is damaged or of another plan than the run's.
    """
    below: Counter[str] = Counter()
    for spent in read_audit_ledgers(run):
        if spent.plan.sha256 != plan.sha256:
            raise DataError(
                f"The ledger {spent.path} belongs to another plan than {run / 'plan.json'}; restore the plan it was "
                "made with."
            )
        below[spent.path.relative_to(run / FOLDER).parts[0]] += 1
    said = Counter({audit["name"]: audit["details"].get("trainings", 0) for audit in read_audits(run)})
    return (below | said).total()  # of each name the larger number


def is_name(name: Any) -> bool:
    """Whether the folder of an audit may be called so.

    >>> [is_name(name) for name in ("one-run", "step-2", "", "-x", "A", "a/b")]
    [True, True, False, False, False, False]
    """
    return isinstance(name, str) and _FOLDER_NAME.fullmatch(name) is not None


def odd_detail(details: Mapping[str, Any]) -> str | None:
    """The first key of an audit's details that says what no audit does, or that is missing; None if all are sound.

    Numbers, truth values and nothing at all are; words are read by people who decide, so there are two: what the bound
    ``assumes``, and a ``theoretical`` epsilon of "inf".
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
    kinds = {"contradicts": bool, "one_step_contradicts": bool, "looks_at_units": bool, "in_every_step": bool}
    kinds |= {"assumes": str, "trainings": int}
    wrong = (key for key, kind in kinds.items() if key in details and type(details[key]) is not kind)
    return next(wrong, "trainings" if details.get("trainings", 0) < 0 else None)


def odd_attack(attack: Any) -> str | None:
    """The first key of an audit's ``attack`` that says what no attack does; "attack" for what is none; None if sound.

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


def _odd(audit: dict[str, Any]) -> str | None:
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


def contradiction(audit: Mapping[str, Any], plan: PrivacyPlan, steps: int, epsilon: float) -> str | None:
    """One sentence when the audit measured more than the training allows at the audit's own delta, or than a step does.

    ``epsilon`` is what the guarantee states at the plan's delta.
    """
    if not plan.private:
        return None
    allowed, delta, details = epsilon, audit["delta"], audit["details"]
    if delta != plan.delta:
        allowed, _, _ = upper_bound(plan.sample_rate, plan.noise_multiplier, steps, delta)
    sure = f"with confidence {percent_down(audit['confidence'])}"
    if audit["epsilon_lower"] > allowed:
        return (
            f"The audit ({audit['method']}) finds that epsilon is at least {round_down(audit['epsilon_lower'], 3)} "
            f"{sure}, where the guarantee allows {round_up(allowed, 3)} at delta {scientific(delta)}."
        )
    of_step, of_plan = details.get("one_step_epsilon_lower"), details.get("one_step_theoretical")
    if _is_number(of_step) and _is_number(of_plan) and of_step > of_plan:
        return (
            f"The audit ({audit['method']}) finds that the epsilon of a single step is at least "
            f"{round_down(of_step, 3)} {sure}, where the plan has {round_up(of_plan, 3)} at delta {scientific(delta)}."
        )
    return None


def refuted(audits: Sequence[Mapping[str, Any]], plan: PrivacyPlan, steps: int, epsilon: float) -> str | None:
    """:func:`contradiction` of each audit that has one, sentence after sentence; None where none has."""
    found = [contradiction(audit, plan, steps, epsilon) for audit in audits]
    return " ".join(sentence for sentence in found if sentence) or None


def refutation(report: Mapping[str, Any]) -> str | None:
    """:func:`refuted` of a report's own entries."""
    guarantee = report["guarantee"]
    if not guarantee["private"]:
        return None
    plan = PrivacyPlan.from_dict(report["plan"])
    return refuted(report["audits"], plan, guarantee["steps"], guarantee["epsilon"])
